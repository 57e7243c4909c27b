"""Where a pixel's footprint reaches, and which cells of the volume it votes into; compiled.

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
from numpy.typing import NDArray

PART = 16
"""Pixels squared whose footprints are bounded together."""
FAR = 1e9
"""Beyond, it does not matter where a footprint ends."""
NOWHERE = 1 << 30


@njit(nogil=True, cache=True)
def _reach(point, normal, depth, box):
    """First and last voxel of a footprint along one axis, as floats."""
    a, b = point - depth * normal, point + depth * normal
    low, high = min(a, b), max(a, b)
    if box:
        first = np.floor(low)
        return first, max(first, np.ceil(high) - 1.0)
    return np.floor(low + 0.5), np.floor(high + 0.5)


def side_by_side(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points or normals of a tile as the loops read them: (rows, 3 * columns), a pixel's z, y, x together."""
    return np.ascontiguousarray(points).reshape(len(points), -1)


@njit(nogil=True, cache=True)
def reaches_room():
    """Room for the reaches of a part, and one row more; see `find_reaches`."""
    return np.empty((PART + 1, 3 * PART), np.int32), np.empty((PART + 1, 3 * PART), np.int32)


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
            first[k], last[k] = np.int32(min(max(low, -FAR), FAR)), np.int32(min(max(high, -FAR), FAR))
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
def _outside(point, normal, rule, shape):
    """How many voxels of a pixel's footprint lie outside the volume, and how many in it."""
    depth, box = rule
    if box:
        everything = kept = 1.0
        for axis in range(3):
            low, high = _reach(point[axis], normal[axis], depth, box)
            everything *= high - low + 1
            kept *= max(0.0, min(high, shape[axis] - 1.0) - max(low, 0.0) + 1)
        return int(everything - kept), int(kept)
    count = held = 0
    last = (math.nan, math.nan, math.nan)
    for step in range(int(4 * depth) + 1):
        t = -depth + 0.5 * step
        z = np.floor(point[0] + t * normal[0] + 0.5)
        y = np.floor(point[1] + t * normal[1] + 0.5)
        x = np.floor(point[2] + t * normal[2] + 0.5)
        if (z, y, x) != last:
            last = (z, y, x)
            inside = 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]
            count += not inside
            held += inside
    return count, held


@njit(nogil=True, cache=True)
def _enter(number, reach, shape, cell, begin, pairs, found):
    """Enter the cells that a reach meets for a tile, each once; how many pairs there are then."""
    counts = (-(-shape[1] // cell[1]), -(-shape[2] // cell[2]))
    for i in range(max(reach[0], 0) // cell[0], min(reach[3], shape[0] - 1) // cell[0] + 1):
        for j in range(max(reach[1], 0) // cell[1], min(reach[4], shape[1] - 1) // cell[1] + 1):
            for k in range(max(reach[2], 0) // cell[2], min(reach[5], shape[2] - 1) // cell[2] + 1):
                place = (i * counts[0] + j) * counts[1] + k
                known = False
                for at in range(begin, min(pairs, len(found))):
                    known |= found[at, 1] == place
                if not known:
                    if pairs < len(found):
                        found[pairs, 0], found[pairs, 1] = number, place
                    pairs += 1
    return pairs


@njit(nogil=True, cache=True)
def mark_cells(points, normals, used, rule, shape, cell, tile, found):
    """Which cells of the volume the pixels of each tile may vote into.

    Parameters
    ----------
    points, normals, used, rule
        Of a strip of tiles side by side; see `find_reaches`.
    shape, cell : tuple of three int
        The volume and a cell, in voxels.
    tile : int
        Columns of a tile, whole parts; a tile is as high as the strip.
    found : numpy.ndarray of int64, (n, 2)
        Receives tile and cell, the cell's number in C order; what does not fit is only counted.

    Returns
    -------
    tuple of int
        Pairs found, voxels dropped outside the volume, pixels that lie outside as a whole.
    """
    rows, cols = used.shape
    firsts, lasts = reaches_room()
    begin = pairs = dropped = lost = 0
    for left in range(0, cols, PART):
        number = left // tile
        if left % tile == 0:
            begin = pairs
        for top in range(0, rows, PART):
            part = find_reaches(points, normals, used, rule, top, left, firsts, lasts)
            if part[0] > part[3]:
                continue
            whole = True  # inside, and without a jump: what lies between would be entered too
            for axis in range(3):
                first, last = part[axis], part[axis + 3]
                whole &= first >= 0 and last < shape[axis] and last - first < cell[axis]
            if whole:
                pairs = _enter(number, part, shape, cell, begin, pairs, found)
                continue
            for row in range(top, min(top + PART, rows)):
                for col in range(left, min(left + PART, cols)):
                    if used[row, col]:
                        k = 3 * col
                        p = (points[row, k], points[row, k + 1], points[row, k + 2])
                        n = (normals[row, k], normals[row, k + 1], normals[row, k + 2])
                        beyond, held = _outside(p, n, rule, shape)
                        dropped += beyond
                        lost += not held
                        if held:
                            first, last = firsts[row - top, k - 3 * left :], lasts[row - top, k - 3 * left :]
                            reach = (first[0], first[1], first[2], last[0], last[1], last[2])
                            pairs = _enter(number, reach, shape, cell, begin, pairs, found)
    return pairs, dropped, lost
