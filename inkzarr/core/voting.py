"""Casting the votes of pixels for the voxels of a block; compiled.

Pixels side by side vote for much the same voxels. So 16 x 16 of them, a part, are added up in a room of 32^3
voxels, which stays in the processor's nearest memory, and then poured into the block's bricks::

    ray   each voxel of the line gets       box   8 corners get the vote, + or -, and running sums along
          the vote                                x, y and z make the box of them (a summed area, undone)

        . . . . .                           + . . - .       + + + . .       o o o . .
        . o o . .                           . . . . .  =>   . . . . .  =>   o o o . .    (a plane of it)
        . . . o .                           - . . + .       - - - . .       . . . . .

A part whose footprints reach further than a room votes voxel by voxel.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from inkzarr.core.bricks import EDGE, EDGE_SHIFT, VOXELS, VOXELS_SHIFT
from inkzarr.core.footprints import PART

SIDE = 32
PLANE = SIDE * SIDE
ROOM = SIDE - EDGE
"""Voxels along each axis that may get votes, whole bricks; those around them are for sums and corners."""


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
def _pour(room, nz, ny, nx, low, shape, bricks):
    """Add a room's votes to the bricks, and clear it; the bits of all that they hold then."""
    seen, pool = 0, bricks.pool
    for z in range(nz):
        for y in range(0, ny, EDGE):
            brick = _brick(low[0] + z, low[1] + y, low[2], shape)
            for x in range(0, nx, EDGE):
                at = np.uintp((z + 1) * PLANE + (y + 1) * SIDE + x)
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
    for z in range(1, nz + 2):
        for y in range(1, ny + 2):
            for x in range(SIDE):
                room[np.uintp(z * PLANE + y * SIDE + x)] = 0
    return seen


@njit(nogil=True, cache=True)
def _put_box(reach, low, gain, room):
    """Put a vote at the corners of a box in a room."""
    z, behind = (reach[0] - low[0] + 1) * PLANE, (reach[3] - low[0] + 2) * PLANE
    y, below = (reach[1] - low[1] + 1) * SIDE, (reach[4] - low[1] + 2) * SIDE
    x, past = reach[2] - low[2], reach[5] - low[2] + 1
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
    """Put a vote at each voxel of a ray that lies in the block as a whole."""
    z, y, x = np.int32(origin[0]), np.int32(origin[1]), np.int32(origin[2])
    for step in range(len(times)):
        t = times[step]
        # what is inside is not negative, so that cutting off the fraction is floor
        i, j, k = (
            np.int32(p[0] + t * n[0] + 0.5),
            np.int32(p[1] + t * n[1] + 0.5),
            np.int32(p[2] + t * n[2] + 0.5),
        )
        places[step] = (i - z) * np.int32(PLANE) + (j - y) * np.int32(SIDE) + k - x
    last = np.int32(-1)
    for step in range(len(times)):  # without a branch: whether a voxel comes again cannot be foretold
        at = places[step]
        room[np.uintp(at)] += gain if at != last else 0
        last = at


@njit(nogil=True, cache=True)
def _add_box(reach, shape, gain, bricks):
    """Add a vote to each voxel of a box; the bits of all that they hold then."""
    seen = 0
    for z in range(reach[0], reach[3] + 1):
        for y in range(reach[1], reach[4] + 1):
            for left in range(reach[2] & -EDGE, reach[5] + 1, EDGE):
                row = _place(bricks, _brick(z, y, left, shape)) + np.uintp((y & (EDGE - 1)) * EDGE)
                for x in range(max(left, reach[2]), min(left + EDGE, reach[5] + 1)):
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
def vote(points, normals, values, used, rule, start, shape, reaches, bounds, layout, bricks, room):
    """Cast the votes of pixels of one segment for the voxels of a block.

    Parameters
    ----------
    points, normals, used, rule, reaches, bounds
        See `inkzarr.core.footprints.find_reaches`; reaches are counted from the block's first voxel.
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
    times = np.arange(int(4 * depth) + 1) * 0.5 - depth
    places = np.empty(len(times), np.int32)
    end = (shape[0] - 1, shape[1] - 1, shape[2] - 1)
    full = (layout.most + 1) << layout.shift
    seen = 0
    for i in range(bounds.shape[1]):
        for j in range(bounds.shape[2]):
            part = bounds[:, i, j]
            first = (max(part[0], 0), max(part[1], 0), max(part[2], 0))
            last = (min(part[3], end[0]), min(part[4], end[1]), min(part[5], end[2]))
            if first[0] > last[0] or first[1] > last[1] or first[2] > last[2]:
                continue
            inside = part[0] == first[0] and part[1] == first[1] and part[2] == first[2]
            inside &= part[3] == last[0] and part[4] == last[1] and part[5] == last[2]
            low = (first[0], first[1] & -EDGE, first[2] & -EDGE)
            nz = last[0] - low[0] + 1
            ny, nx = (last[1] | EDGE - 1) - low[1] + 1, (last[2] | EDGE - 1) - low[2] + 1
            small = max(nz, ny, nx) <= ROOM and (box or inside)
            origin = (start[0] + low[0] - 1, start[1] + low[1] - 1, start[2] + low[2])
            for row in range(i * PART, min((i + 1) * PART, used.shape[0])):
                for col in range(j * PART, min((j + 1) * PART, used.shape[1])):
                    if not used[row, col]:
                        continue
                    gain = (1 << layout.shift) + np.int64(values[row, col])
                    if box:
                        a, b, c = reaches[0, row, col], reaches[1, row, col], reaches[2, row, col]
                        d, e, f = reaches[3, row, col], reaches[4, row, col], reaches[5, row, col]
                        if not inside:
                            a, b, c = max(a, 0), max(b, 0), max(c, 0)
                            d, e, f = min(d, end[0]), min(e, end[1]), min(f, end[2])
                            if a > d or b > e or c > f:
                                continue
                        if small:
                            _put_box((a, b, c, d, e, f), low, gain, room)
                        else:
                            seen |= _add_box((a, b, c, d, e, f), shape, gain, bricks)
                        continue
                    p = (points[row, col, 0], points[row, col, 1], points[row, col, 2])
                    n = (normals[row, col, 0], normals[row, col, 1], normals[row, col, 2])
                    if small:
                        _put_ray(p, n, times, origin, gain, places, room)
                    else:
                        seen |= _add_ray(p, n, times, start, shape, gain, bricks)
            if small:
                if box:
                    _sum_corners(room, nz, ny, nx)
                seen |= _pour(room, nz, ny, nx, low, shape, bricks)
            if seen >= full:
                return True
    return False
