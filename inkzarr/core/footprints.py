"""Which voxels a pixel of a surface votes for, and which cells: compiled loops of the labels stage.

A pixel's footprint, in float64 and the same in every loop::

    ray   t = -depth, -depth + 0.5, ..., depth:  voxel = floor(point + t * normal + 0.5), each once

                   . . . o o          both ends inside a box: so is every voxel between
                 . o o o . .          (each coordinate moves one way only, so a voxel that
               o o . . . .            comes again comes at once)

    box   per axis floor(min) .. ceil(max) of the points at -depth and +depth, at least one voxel
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

FAR = 1e15
"""Beyond, a place is no whole number any more."""


@njit(nogil=True, cache=True)
def _reach(point, normal, depth, box):
    """First and last voxel of a footprint along one axis, as floats."""
    if box:
        a, b = point - depth * normal, point + depth * normal
        low, high = np.floor(min(a, b)), np.ceil(max(a, b)) - 1.0
        return low, max(low, high)
    a, b = np.floor(point - depth * normal + 0.5), np.floor(point + depth * normal + 0.5)
    return min(a, b), max(a, b)


@njit(nogil=True, cache=True)
def _outside(points, normals, depth, shape):
    """How many voxels of a ray lie outside the volume; `points` and `normals` are of one pixel."""
    count = 0
    last = (math.nan, math.nan, math.nan)
    for step in range(int(4 * depth) + 1):
        t = -depth + 0.5 * step
        z = np.floor(points[0] + t * normals[0] + 0.5)
        y = np.floor(points[1] + t * normals[1] + 0.5)
        x = np.floor(points[2] + t * normals[2] + 0.5)
        if (z, y, x) != last:
            last = (z, y, x)
            inside = 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]
            count += not inside
    return count


@njit(nogil=True, cache=True)
def mark_cells(points, normals, used, rule, shape, cell, tile, found):
    """Which cells of the volume the pixels of each tile vote into.

    Parameters
    ----------
    points, normals : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x; finite where used.
    used : numpy.ndarray of bool, (rows, columns)
        Which pixels vote.
    rule : tuple of float and bool
        Depth in voxels, and whether the footprint is the box.
    shape, cell : tuple of three int
        The volume and a cell, in voxels.
    tile : int
        Columns of a tile; a tile is as high as the strip.
    found : numpy.ndarray of int64, (n, 2)
        Receives tile and cell, the cell's number in C order; what does not fit is only counted.

    Returns
    -------
    tuple of int
        Pairs found, voxels dropped outside the volume, pixels that lie outside as a whole.
    """
    depth, box = rule
    counts = (-(-shape[0] // cell[0]), -(-shape[1] // cell[1]), -(-shape[2] // cell[2]))
    low, high = np.empty(3), np.empty(3)
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    pairs = dropped = lost = 0
    for number in range(-(-used.shape[1] // tile)):
        begin = pairs
        recent = -1
        for row in range(used.shape[0]):
            for col in range(number * tile, min(used.shape[1], (number + 1) * tile)):
                if not used[row, col]:
                    continue
                everything, kept, inside = 1.0, 1.0, True
                for axis in range(3):
                    low[axis], high[axis] = _reach(
                        points[row, col, axis], normals[row, col, axis], depth, box
                    )
                    a, b = max(low[axis], 0.0), min(high[axis], shape[axis] - 1.0)
                    inside &= low[axis] == a and high[axis] == b
                    everything *= high[axis] - low[axis] + 1
                    kept *= max(0.0, b - a + 1)
                    first[axis] = int(min(a, FAR)) // cell[axis]
                    last[axis] = int(max(b, -1.0)) // cell[axis]
                if not inside:
                    if box:
                        dropped += int(everything - kept)
                    else:
                        dropped += _outside(points[row, col], normals[row, col], depth, shape)
                    if kept == 0:
                        lost += 1
                        continue
                for i in range(first[0], last[0] + 1):
                    for j in range(first[1], last[1] + 1):
                        for k in range(first[2], last[2] + 1):
                            place = (i * counts[1] + j) * counts[2] + k
                            if place == recent:
                                continue
                            recent = place
                            known = False
                            for at in range(begin, min(pairs, len(found))):
                                known |= found[at, 1] == place
                            if not known:
                                if pairs < len(found):
                                    found[pairs, 0], found[pairs, 1] = number, place
                                pairs += 1
    return pairs, dropped, lost


@njit(nogil=True, cache=True)
def places(p, n, times, start, shape, width, place):
    """The voxels of a ray that lie in a box, each once: their numbers in rows of `width`, and how many."""
    sz, sy, sx = np.int32(start[0]), np.int32(start[1]), np.int32(start[2])
    nz, ny, nx, row = np.int32(shape[0]), np.int32(shape[1]), np.int32(shape[2]), np.int32(width)
    az, bz = _reach(p[0], n[0], times[-1], False)
    ay, by = _reach(p[1], n[1], times[-1], False)
    ax, bx = _reach(p[2], n[2], times[-1], False)
    ez, ey, ex = sz + nz, sy + ny, sx + nx
    if bz < sz or by < sy or bx < sx or az >= ez or ay >= ey or ax >= ex:
        return 0
    last, found = np.int32(-1), -1
    if az >= sz and ay >= sy and ax >= sx and bz < ez and by < ey and bx < ex:
        # what is inside is not negative, so that cutting off the fraction is floor
        for step in range(len(times)):
            t = times[step]
            z = np.int32(p[0] + t * n[0] + 0.5) - sz
            y = np.int32(p[1] + t * n[1] + 0.5) - sy
            x = np.int32(p[2] + t * n[2] + 0.5) - sx
            place[step] = (z * ny + y) * row + x
        for step in range(len(times)):  # without a branch: whether a voxel comes again cannot be foretold
            at = place[step]
            found += at != last
            place[np.uintp(found)] = at
            last = at
        return found + 1
    for t in times:
        z = np.floor(p[0] + t * n[0] + 0.5)
        y = np.floor(p[1] + t * n[1] + 0.5)
        x = np.floor(p[2] + t * n[2] + 0.5)
        if z < sz or y < sy or x < sx or z >= ez or y >= ey or x >= ex:
            continue
        at = ((np.int32(z) - sz) * ny + np.int32(y) - sy) * row + np.int32(x) - sx
        if at != last:
            last = at
            found += 1
            place[found] = at
    return found + 1


@njit(nogil=True, cache=True)
def span(point, normal, depth, start, size):
    """First and last voxel of a box footprint along one axis that lie in a box of voxels, from its start."""
    low, high = _reach(point, normal, depth, True)
    return max(low - start, 0.0), min(high - start, size - 1.0)
