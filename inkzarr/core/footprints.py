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


def reaches_of(
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    used: NDArray[np.bool_],
    rule: tuple[float, bool],
    start: tuple[int, ...],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """How far pixels vote, and parts of 16 x 16 of them; see `find_reaches`."""
    rows, cols = used.shape
    reaches = np.empty((6, rows, cols), np.int32)
    bounds = np.empty((6, -(-rows // PART), -(-cols // PART)), np.int32)
    find_reaches(points, normals, used, rule, start, reaches, bounds)
    return reaches, bounds


@njit(nogil=True, cache=True)
def find_reaches(points, normals, used, rule, start, reaches, bounds):
    """How far pixels vote.

    Parameters
    ----------
    points, normals : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x; finite where used.
    used : numpy.ndarray of bool, (rows, columns)
        Which pixels vote.
    rule : tuple of float and bool
        Depth in voxels, and whether the footprint is the box.
    start : tuple of three int
        The voxel from which others are counted.
    reaches : numpy.ndarray of int32, (6, rows, columns)
        Receives the first z, y, x and the last z, y, x of a pixel's footprint; the first lies past the last
        where a pixel does not vote.
    bounds : numpy.ndarray of int32, (6, rows / PART, columns / PART)
        Receives the same of parts of 16 x 16 pixels.
    """
    depth, box = rule
    rows, cols = used.shape
    row_points, row_normals = np.empty((2, cols))  # side by side, so that several are computed at once
    for axis in range(3):
        begin = np.float64(start[axis])
        for row in range(rows):
            for col in range(cols):
                row_points[col], row_normals[col] = points[row, col, axis], normals[row, col, axis]
            for col in range(cols):
                low, high = _reach(row_points[col], row_normals[col], depth, box)
                low, high = min(max(low - begin, -FAR), FAR), min(max(high - begin, -FAR), FAR)
                votes = used[row, col]
                reaches[axis, row, col] = np.int32(low) if votes else np.int32(NOWHERE)
                reaches[axis + 3, row, col] = np.int32(high) if votes else np.int32(-NOWHERE)
        for i in range(bounds.shape[1]):
            for j in range(bounds.shape[2]):
                first, last = np.int32(NOWHERE), np.int32(-NOWHERE)
                for row in range(i * PART, min((i + 1) * PART, rows)):
                    for col in range(j * PART, min((j + 1) * PART, cols)):
                        first, last = (
                            min(first, reaches[axis, row, col]),
                            max(last, reaches[axis + 3, row, col]),
                        )
                bounds[axis, i, j], bounds[axis + 3, i, j] = first, last


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
def mark_cells(points, normals, used, rule, shape, cell, tile, reaches, bounds, found):
    """Which cells of the volume the pixels of each tile may vote into.

    Parameters
    ----------
    points, normals, used, rule, reaches, bounds
        See `find_reaches`; the reaches are counted from 0.
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
    begin = pairs = dropped = lost = 0
    for j in range(bounds.shape[2]):
        number = j * PART // tile
        if j * PART % tile == 0:
            begin = pairs
        for i in range(bounds.shape[1]):
            part = bounds[:, i, j]
            if part[0] > part[3]:
                continue
            whole = True  # inside, and without a jump: what lies between would be entered too
            for axis in range(3):
                first, last = part[axis], part[axis + 3]
                whole &= first >= 0 and last < shape[axis] and last - first < cell[axis]
            if whole:
                pairs = _enter(number, part, shape, cell, begin, pairs, found)
                continue
            for row in range(i * PART, min((i + 1) * PART, rows)):
                for col in range(j * PART, min((j + 1) * PART, cols)):
                    if used[row, col]:
                        beyond, held = _outside(points[row, col], normals[row, col], rule, shape)
                        dropped += beyond
                        lost += not held
                        if held:
                            reach = reaches[:, row, col]
                            pairs = _enter(number, reach, shape, cell, begin, pairs, found)
    return pairs, dropped, lost
