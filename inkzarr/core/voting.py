"""How far the footprints of pixels reach, and casting their votes for the voxels of a block; compiled.

A pixel's footprint, in float64 and the same in every loop::

    ray   t = -depth, -depth + 0.5, ..., depth:  voxel = floor(point + t * normal + 0.5), each once

                   . . . o o          both ends inside a box: so is every voxel between
                 . o o o . .          (each coordinate moves one way only, so a voxel that
               o o . . . .            comes again comes at once)

    box   per axis floor(min) .. ceil(max) of the points at -depth and +depth, at least one voxel

Pixels side by side vote for much the same voxels. So 16 x 16 of them, a part, are added up in a room of 32^3
voxels, which stays in the processor's nearest memory, and then poured into the block's bricks::

    ray   each voxel of the line gets       box   8 corners get the vote, + or -, and running sums along
          the vote                                x, y and z make the box of them (a summed area, undone)

        . . . . .                           + . . - .       + + + . .       o o o . .
        . o o . .                           . . . . .  =>   . . . . .  =>   o o o . .    (a plane of it)
        . . . o .                           - . . + .       - - - . .       . . . . .

What lies beyond the block is not poured. A part votes voxel by voxel where it does not fit into a room, where
it reaches into a brick that the block's end cuts, and where rays leave the volume at its beginning.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from inkzarr.core.bricks import EDGE, EDGE_SHIFT, VOXELS, VOXELS_SHIFT

PART = 16
"""Pixels squared whose footprints are bounded together."""
FAR = 1e9
"""No volume is as long; beyond, it does not matter where a footprint lies."""
NOWHERE = 1 << 30
SIDE = 32
PLANE = SIDE * SIDE
ROOM = SIDE - EDGE
"""Voxels along each axis that may get votes, whole bricks; those around them are for sums and corners."""


def side_by_side(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points or normals of a tile as the loops read them: (rows, 3 * columns), a pixel's z, y, x together."""
    rows, cols = points.shape[:2]
    return np.ascontiguousarray(points).reshape(rows, 3 * cols)


@njit(nogil=True, cache=True)
def _reach(point, normal, depth, box):
    """First and last voxel of a footprint along one axis, as floats."""
    a, b = point - depth * normal, point + depth * normal
    low, high = min(a, b), max(a, b)
    if box:
        first = np.floor(low)
        return first, max(first, np.ceil(high) - 1.0)
    return np.floor(low + 0.5), np.floor(high + 0.5)


@njit(nogil=True, cache=True)
def find_reaches(points, normals, used, rule, top, left, firsts, lasts):
    """How far the pixels of a part, 16 x 16 of a tile, vote.

    Parameters
    ----------
    points, normals : numpy.ndarray of float64, (rows, 3 * columns)
        Of the tile, see `side_by_side`; finite where used.
    used : numpy.ndarray of bool, (rows, columns)
        Which pixels vote.
    rule : tuple of float and bool
        Depth in voxels, and whether the footprint is the box.
    top, left : int
        The part's first row and column.
    firsts, lasts : numpy.ndarray of int32, (PART + 1, 3 * PART)
        Receive the first and the last z, y, x of each pixel's footprint, row by row; the first lies past the
        last where a pixel does not vote. The row past them is scratch.

    Returns
    -------
    tuple of six int
        First z, y, x and last z, y, x of the part.
    """
    depth, box = rule
    height, width = min(PART, used.shape[0] - top), min(PART, used.shape[1] - left)
    for row in range(height):
        columns = slice(3 * left, 3 * (left + width))
        p, n = points[top + row, columns], normals[top + row, columns]
        first, last = firsts[row], lasts[row]
        for k in range(len(p)):  # several at once
            low, high = _reach(p[k], n[k], depth, box)
            more = min(high - low, FAR)  # a footprint keeps its size, as voxels outside are counted
            first[k] = np.int32(min(max(low, -FAR - more), FAR))
            last[k] = np.int32(min(max(high, -FAR), FAR + more))
        for col in range(width):
            if not used[top + row, left + col]:
                for k in range(3 * col, 3 * col + 3):
                    first[k], last[k] = NOWHERE, -NOWHERE
    lowest, highest = firsts[PART], lasts[PART]
    lowest[:], highest[:] = NOWHERE, -NOWHERE
    for row in range(height):
        first, last = firsts[row], lasts[row]
        for k in range(3 * width):
            lowest[k], highest[k] = min(lowest[k], first[k]), max(highest[k], last[k])
    z, y, x, end_z, end_y, end_x = NOWHERE, NOWHERE, NOWHERE, -NOWHERE, -NOWHERE, -NOWHERE
    for k in range(0, 3 * width, 3):
        z, y, x = min(z, lowest[k]), min(y, lowest[k + 1]), min(x, lowest[k + 2])
        end_z, end_y, end_x = max(end_z, highest[k]), max(end_y, highest[k + 1]), max(end_x, highest[k + 2])
    return z, y, x, end_z, end_y, end_x


@njit(nogil=True, cache=True)
def find_all_reaches(points, normals, used, rule, firsts, lasts, bounds):
    """Find the reaches of all parts of a tile.

    Parameters
    ----------
    points, normals, used, rule
        See `find_reaches`.
    firsts, lasts : numpy.ndarray of int32, (rows / PART, columns / PART, PART + 1, 3 * PART)
        Receive those of each part.
    bounds : numpy.ndarray of int64, (rows / PART, columns / PART, 6)
        Receives what is returned for each.
    """
    for i in range(bounds.shape[0]):
        for j in range(bounds.shape[1]):
            part = find_reaches(points, normals, used, rule, i * PART, j * PART, firsts[i, j], lasts[i, j])
            for k in range(6):
                bounds[i, j, k] = part[k]


def reaches_of(
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    used: NDArray[np.bool_],
    rule: tuple[float, bool],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """How far the pixels of a tile vote, part by part, and the parts; see `find_all_reaches`."""
    parts = tuple(-(-size // PART) for size in used.shape)
    firsts, lasts = np.empty((2, *parts, PART + 1, 3 * PART), np.int32)
    bounds = np.empty((*parts, 6), np.int64)
    find_all_reaches(points, normals, used, rule, firsts, lasts, bounds)
    return firsts, lasts, bounds


@njit(nogil=True, cache=True)
def _place(bricks, brick):
    """Where a brick's votes of this segment begin in the pool; at first they are 0."""
    place = bricks.mine[brick]
    if not place:
        sizes = bricks.sizes
        if sizes[2]:
            sizes[2] -= 1
            place = bricks.free[sizes[2]]
        else:
            sizes[1] += 1
            place = np.uint32(sizes[1])
        bricks.mine[brick] = place
        bricks.reached[sizes[0]] = brick
        sizes[0] += 1
        for k in range(VOXELS):
            bricks.pool[(np.uintp(place) << np.uintp(VOXELS_SHIFT)) + np.uintp(k)] = 0
    return np.uintp(place) << np.uintp(VOXELS_SHIFT)


@njit(nogil=True, cache=True)
def _brick(z, y, x, shape):
    """The number of a voxel's brick."""
    return (z * ((shape[1] + EDGE - 1) >> EDGE_SHIFT) + (y >> EDGE_SHIFT)) * (
        (shape[2] + EDGE - 1) >> EDGE_SHIFT
    ) + (x >> EDGE_SHIFT)


@njit(nogil=True, cache=True)
def _add(z, y, x, shape, gain, bricks):
    """Add a vote to one voxel; what it holds then."""
    at = _place(bricks, _brick(z, y, x, shape)) + np.uintp((y & (EDGE - 1)) * EDGE + (x & (EDGE - 1)))
    bricks.pool[at] += gain
    return bricks.pool[at]


@njit(nogil=True, cache=True)
def _sum_corners(room, nz, ny, nx):
    """Make boxes of their corners."""
    for z in range(1, nz + 1):
        for y in range(1, ny + 1):
            at = np.uintp(z * PLANE + y * SIDE)
            for x in range(1, nx):
                room[at + np.uintp(x)] += room[at + np.uintp(x - 1)]
            above, behind = at - np.uintp(SIDE), at - np.uintp(PLANE)
            for x in range(SIDE):
                k = np.uintp(x)
                room[at + k] += room[above + k] + room[behind + k] - room[behind - np.uintp(SIDE) + k]


@njit(nogil=True, cache=True)
def _pour(room, low, first, last, shape, bricks):
    """Add a room's votes to the bricks from `first` to `last`; the bits of all that they hold then."""
    seen, pool = 0, bricks.pool
    for z in range(first[0], last[0] + 1):
        for y in range(first[1] & -EDGE, last[1] + 1, EDGE):
            brick = _brick(z, y, first[2], shape)
            row = (z - low[0] + 1) * PLANE + (y - low[1] + 1) * SIDE - low[2]
            for x in range(first[2] & -EDGE, last[2] + 1, EDGE):
                at = np.uintp(row + x)
                some = 0
                for j in range(EDGE):
                    for k in range(EDGE):
                        some |= room[at + np.uintp(j * SIDE + k)]
                if some:
                    to = _place(bricks, brick)
                    for j in range(EDGE):
                        for k in range(EDGE):
                            pool[to + np.uintp(j * EDGE + k)] += room[at + np.uintp(j * SIDE + k)]
                            seen |= pool[to + np.uintp(j * EDGE + k)]
                brick += 1
    return seen


@njit(nogil=True, cache=True)
def _put_box(first, last, origin, gain, room):
    """Put a vote at the corners of a box in a room."""
    z, behind = (first[0] - origin[0]) * PLANE, (last[0] - origin[0] + 1) * PLANE
    y, below = (first[1] - origin[1]) * SIDE, (last[1] - origin[1] + 1) * SIDE
    x, past = first[2] - origin[2], last[2] - origin[2] + 1
    room[np.uintp(z + y + x)] += gain
    room[np.uintp(z + y + past)] -= gain
    room[np.uintp(z + below + x)] -= gain
    room[np.uintp(z + below + past)] += gain
    room[np.uintp(behind + y + x)] -= gain
    room[np.uintp(behind + y + past)] += gain
    room[np.uintp(behind + below + x)] += gain
    room[np.uintp(behind + below + past)] -= gain


@njit(nogil=True, cache=True)
def _put_ray(p, n, times, origin, gain, places, room):
    """Put a vote at each voxel of a ray in a room; where nothing is negative, cutting off is floor."""
    begin = np.int32(origin[0] * PLANE + origin[1] * SIDE + origin[2])
    for step in range(len(times)):  # several at once, as long as all have 32 bits
        t = times[step]
        z, y, x = (
            np.int32(p[0] + t * n[0] + 0.5),
            np.int32(p[1] + t * n[1] + 0.5),
            np.int32(p[2] + t * n[2] + 0.5),
        )
        at = np.int32(np.int32(z * np.int32(PLANE)) + np.int32(y * np.int32(SIDE)))
        places[step] = np.int32(at + np.int32(x - begin))
    last = np.int32(-1)
    for step in range(len(times)):  # without a branch: whether a voxel comes again cannot be foretold
        at = places[step]
        room[np.uintp(at)] += gain if at != last else 0
        last = at


@njit(nogil=True, cache=True)
def _add_box(first, last, start, shape, gain, bricks):
    """Add a vote to each voxel of a box that lies in the block; the bits of all that they hold then."""
    seen = 0
    begin, end = max(first[2] - start[2], 0), min(last[2] - start[2], shape[2] - 1)
    if begin > end:
        return seen
    for z in range(max(first[0] - start[0], 0), min(last[0] - start[0], shape[0] - 1) + 1):
        for y in range(max(first[1] - start[1], 0), min(last[1] - start[1], shape[1] - 1) + 1):
            for left in range(begin & -EDGE, end + 1, EDGE):
                row = _place(bricks, _brick(z, y, left, shape)) + np.uintp((y & (EDGE - 1)) * EDGE)
                for x in range(max(left, begin), min(left + EDGE, end + 1)):
                    bricks.pool[row + np.uintp(x - left)] += gain
                    seen |= bricks.pool[row + np.uintp(x - left)]
    return seen


@njit(nogil=True, cache=True)
def _add_ray(p, n, times, start, shape, gain, bricks):
    """Add a vote to each voxel of a ray that lies in the block; the bits of all that they hold then."""
    seen = 0
    last = (-1.0, -1.0, -1.0)
    for t in times:
        z = np.floor(p[0] + t * n[0] + 0.5) - start[0]
        y = np.floor(p[1] + t * n[1] + 0.5) - start[1]
        x = np.floor(p[2] + t * n[2] + 0.5) - start[2]
        if 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2] and (z, y, x) != last:
            last = (z, y, x)
            seen |= _add(int(z), int(y), int(x), shape, gain, bricks)
    return seen


@njit(nogil=True, cache=True)
def vote(points, normals, values, used, rule, start, shape, layout, bricks, room):
    """Cast the votes of pixels of one segment for the voxels of a block.

    Parameters
    ----------
    points, normals, used, rule
        See `find_reaches`.
    values : numpy.ndarray of uint8, (rows, columns)
        Painted values.
    start, shape : tuple of three int
        The block; votes for voxels beyond it are left to others.
    layout : Layout
        Of the bricks' numbers.
    bricks : Bricks
        Receives the votes.
    room : numpy.ndarray, (SIDE ** 3,)
        Zeros, before and after; numbers as the bricks have them.

    Returns
    -------
    bool
        Whether a voxel got more votes than its number holds: those that were left were not cast.
    """
    depth, box = rule
    rows, cols = used.shape
    times = np.arange(int(4 * depth) + 1) * 0.5 - depth
    places = np.empty(len(times), np.int32)
    size = (PART + 1, 3 * PART)
    firsts, lasts = np.empty(size, np.int32), np.empty(size, np.int32)  # halves of one array take longer
    end = (shape[0] - 1, shape[1] - 1, shape[2] - 1)
    full = (layout.most + 1) << layout.shift
    seen = 0
    for top in range(0, rows, PART):
        for left in range(0, cols, PART):
            part = find_reaches(points, normals, used, rule, top, left, firsts, lasts)
            begin = (part[0] - start[0], part[1] - start[1], part[2] - start[2])
            stop = (part[3] - start[0], part[4] - start[1], part[5] - start[2])
            first = (max(begin[0], 0), max(begin[1], 0), max(begin[2], 0))
            last = (min(stop[0], end[0]), min(stop[1], end[1]), min(stop[2], end[2]))
            if first[0] > last[0] or first[1] > last[1] or first[2] > last[2]:
                continue
            low = (begin[0], begin[1] & -EDGE, begin[2] & -EDGE)
            nz = stop[0] - low[0] + 1
            ny, nx = (stop[1] | EDGE - 1) - low[1] + 1, (stop[2] | EDGE - 1) - low[2] + 1
            small = max(nz, ny, nx) <= ROOM and (box or min(part[0], part[1], part[2]) >= 0)
            # what of the room lies beyond the block lies beyond its bricks too
            small &= stop[1] <= end[1] or shape[1] % EDGE == 0
            small &= stop[2] <= end[2] or shape[2] % EDGE == 0
            origin = (start[0] + low[0] - 1, start[1] + low[1] - 1, start[2] + low[2])
            for row in range(top, min(top + PART, rows)):
                for col in range(left, min(left + PART, cols)):
                    if not used[row, col]:
                        continue
                    gain = (1 << layout.shift) + np.int64(values[row, col])
                    if box:
                        i, k = row - top, 3 * (col - left)
                        a = (firsts[i, k], firsts[i, k + 1], firsts[i, k + 2])
                        b = (lasts[i, k], lasts[i, k + 1], lasts[i, k + 2])
                        if small:
                            _put_box(a, b, origin, gain, room)
                        else:
                            seen |= _add_box(a, b, start, shape, gain, bricks)
                        continue
                    k = 3 * col
                    p = (points[row, k], points[row, k + 1], points[row, k + 2])
                    n = (normals[row, k], normals[row, k + 1], normals[row, k + 2])
                    if small:
                        _put_ray(p, n, times, origin, gain, places, room)
                    else:
                        seen |= _add_ray(p, n, times, start, shape, gain, bricks)
            if small:
                if box:
                    _sum_corners(room, nz, ny, nx)
                seen |= _pour(room, low, first, last, shape, bricks)
                room[PLANE : (nz + 2) * PLANE] = 0
            if seen >= full:
                return True
    return False
