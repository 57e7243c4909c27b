"""Which cells of the volume the pixels of a tile vote into; compiled. For footprints see `voting`."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def _outside(point, normal, rule, first, last, shape):
    """How many voxels of a pixel's footprint lie outside the volume, and how many in it."""
    depth, box = rule
    if box:
        everything = kept = 1.0
        for axis in range(3):
            low, high = float(first[axis]), float(last[axis])
            everything *= high - low + 1
            kept *= max(0.0, min(high, shape[axis] - 1.0) - max(low, 0.0) + 1)
        return int(everything - kept), int(kept)
    count = held = 0
    before = (math.nan, math.nan, math.nan)
    for step in range(int(4 * depth) + 1):
        t = -depth + 0.5 * step
        z = np.floor(point[0] + t * normal[0] + 0.5)
        y = np.floor(point[1] + t * normal[1] + 0.5)
        x = np.floor(point[2] + t * normal[2] + 0.5)
        if (z, y, x) != before:
            before = (z, y, x)
            inside = 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]
            count += not inside
            held += inside
    return count, held


@njit(nogil=True, cache=True)
def _enter(number, first, last, shape, cell, begin, pairs, found):
    """Enter the cells that a reach meets for a tile, each once; how many pairs there are then."""
    counts = (-(-shape[1] // cell[1]), -(-shape[2] // cell[2]))
    for i in range(max(first[0], 0) // cell[0], min(last[0], shape[0] - 1) // cell[0] + 1):
        for j in range(max(first[1], 0) // cell[1], min(last[1], shape[1] - 1) // cell[1] + 1):
            for k in range(max(first[2], 0) // cell[2], min(last[2], shape[2] - 1) // cell[2] + 1):
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
def mark_cells(points, normals, used, rule, shape, cell, tile, reaches, found):
    """Which cells of the volume the pixels of each tile may vote into.

    Parameters
    ----------
    points, normals, used, rule
        Of a strip of tiles side by side; see `inkzarr.core.voting.find_reaches`.
    shape, cell : tuple of three int
        The volume and a cell, in voxels.
    tile : int
        Columns of a tile, whole parts; a tile is as high as the strip.
    reaches : tuple of numpy.ndarray
        What `inkzarr.core.voting.reaches_of` says of the strip.
    found : numpy.ndarray of int64, (n, 2)
        Receives tile and cell, the cell's number in C order; what does not fit is only counted.

    Returns
    -------
    tuple of int
        Pairs found, voxels dropped outside the volume, pixels that lie outside as a whole.
    """
    firsts, lasts, bounds = reaches
    edge = firsts.shape[2] - 1
    begin = pairs = dropped = lost = 0
    for j in range(bounds.shape[1]):
        number = j * edge // tile
        if j * edge % tile == 0:
            begin = pairs
        for i in range(bounds.shape[0]):
            part = bounds[i, j]
            if part[0] > part[3]:
                continue
            whole = True  # inside, and without a jump: what lies between would be entered too
            for axis in range(3):
                first, last = part[axis], part[axis + 3]
                whole &= first >= 0 and last < shape[axis] and last - first < cell[axis]
            if whole:
                pairs = _enter(number, part[:3], part[3:], shape, cell, begin, pairs, found)
                continue
            for row in range(i * edge, min((i + 1) * edge, used.shape[0])):
                for col in range(j * edge, min((j + 1) * edge, used.shape[1])):
                    if used[row, col]:
                        own = slice(3 * col, 3 * col + 3)
                        there = slice(own.start - 3 * j * edge, own.stop - 3 * j * edge)
                        first, last = firsts[i, j, row - i * edge, there], lasts[i, j, row - i * edge, there]
                        beyond, held = _outside(points[row, own], normals[row, own], rule, first, last, shape)
                        dropped += beyond
                        lost += not held
                        if held:
                            pairs = _enter(number, first, last, shape, cell, begin, pairs, found)
    return pairs, dropped, lost
