"""The compiled loops of the labels stage: which voxels a pixel of a surface votes for, and counting votes.

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

COUNT_SHIFT = 34
"""A voxel's votes are one int64: how many, above bit 34, and the sum of their values below."""
ONE = 1 << COUNT_SHIFT
SUM = ONE - 1
FULL = ((1 << 26) - 1) << COUNT_SHIFT
"""67 million votes for one voxel: further ones are not counted, so that nothing wraps."""
MOST_VOTES = 65535
INK = 128
"""Mean value from which a voxel is said to be ink."""
SAYS_INK, SAYS_NONE = 1 << 60, 1 << 61
"""Above the votes of all segments: what any of them said."""
BOTH = SAYS_INK | SAYS_NONE
GROUP_SHIFT = 5
"""Voxels that follow each other are settled 32 at a time."""
FAR = 1e15
"""Beyond, a place is no whole number any more."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


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
def _places(p, n, times, start, shape, place):
    """The voxels of a ray that lie in a box, each once: their numbers in C order, and how many."""
    sz, sy, sx = np.int32(start[0]), np.int32(start[1]), np.int32(start[2])
    nz, ny, nx = np.int32(shape[0]), np.int32(shape[1]), np.int32(shape[2])
    az, bz = _reach(p[0], n[0], times[-1], False)
    ay, by = _reach(p[1], n[1], times[-1], False)
    ax, bx = _reach(p[2], n[2], times[-1], False)
    ez, ey, ex = sz + nz, sy + ny, sx + nx
    if bz < sz or by < sy or bx < sx or az >= ez or ay >= ey or ax >= ex:
        return 0
    found = 0
    last = np.int32(-1)
    if az >= sz and ay >= sy and ax >= sx and bz < ez and by < ey and bx < ex:
        # what is inside is not negative, so that cutting off the fraction is floor
        for step in range(len(times)):
            t = times[step]
            z = np.int32(p[0] + t * n[0] + 0.5) - sz
            y = np.int32(p[1] + t * n[1] + 0.5) - sy
            x = np.int32(p[2] + t * n[2] + 0.5) - sx
            place[step] = (z * ny + y) * nx + x
        for step in range(len(times)):
            at = place[step]
            if at != last:
                last = at
                place[found] = at
                found += 1
        return found
    for t in times:
        z = np.floor(p[0] + t * n[0] + 0.5)
        y = np.floor(p[1] + t * n[1] + 0.5)
        x = np.floor(p[2] + t * n[2] + 0.5)
        if z < sz or y < sy or x < sx or z >= ez or y >= ey or x >= ex:
            continue
        at = ((np.int32(z) - sz) * ny + np.int32(y) - sy) * nx + np.int32(x) - sx
        if at != last:
            last = at
            place[found] = at
            found += 1
    return found


@njit(nogil=True, cache=True)
def _settle(votes, total, group):
    """Add the votes of the segment that voted last in a group of voxels to those of all; what it said."""
    for at in range(group << GROUP_SHIFT, min((group + 1) << GROUP_SHIFT, len(votes))):
        mine, held = votes[at], total[at]
        if mine:
            number = mine >> COUNT_SHIFT
            said = SAYS_INK if 2 * (mine & SUM) + number >= 2 * INK * number else SAYS_NONE
            if (held & ~BOTH) + (number << COUNT_SHIFT) <= FULL:
                held += mine
            total[at] = held | said
            votes[at] = 0


@njit(nogil=True, cache=True)
def _add_box(votes, total, turn, who, p, n, depth, start, shape, gain):
    """Add a pixel's votes to the voxels of its box footprint that lie in a box."""
    az, bz = _reach(p[0], n[0], depth, True)
    ay, by = _reach(p[1], n[1], depth, True)
    ax, bx = _reach(p[2], n[2], depth, True)
    az, bz = max(az - start[0], 0.0), min(bz - start[0], shape[0] - 1.0)
    ay, by = max(ay - start[1], 0.0), min(by - start[1], shape[1] - 1.0)
    ax, bx = max(ax - start[2], 0.0), min(bx - start[2], shape[2] - 1.0)
    if az > bz or ay > by or ax > bx:
        return
    first, width = np.int64(ax), np.int64(bx) - np.int64(ax) + 1
    for i in range(np.int64(az), np.int64(bz) + 1):
        for j in range(np.int64(ay), np.int64(by) + 1):
            base = (i * shape[1] + j) * shape[2] + first
            if who:
                for group in range(base >> GROUP_SHIFT, ((base + width - 1) >> GROUP_SHIFT) + 1):
                    if turn[group] != who:
                        if turn[group]:
                            _settle(votes, total, group)
                        turn[group] = who
            run = votes[base : base + width]
            for at in range(len(run)):  # without a branch, so that it is done several voxels at once
                run[at] += gain if run[at] < FULL else 0


@njit(nogil=True, cache=True)
def vote(points, normals, values, used, rule, start, shape, ballot):
    """Add the votes of a tile's pixels to the voxels of one box.

    Parameters
    ----------
    points, normals : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x; finite where used.
    values, used : numpy.ndarray of uint8 and bool, (rows, columns)
        Painted values, and which pixels vote.
    rule : tuple of float and bool
        Depth in voxels, and whether the footprint is the box.
    start, shape : tuple of three int
        The box; votes for voxels beyond it are left to others.
    ballot : tuple of votes, total, turn and who
        The box's voxels in C order: votes (int64, see `COUNT_SHIFT`) of the segment that voted last and
        of those before it; whose turn it was last (int32) in each group of voxels, see `GROUP_SHIFT`; and
        the number of the segment that votes now. Where one segment votes alone, who is 0, and votes is all
        that is used.
    """
    depth, box = rule
    votes, total, turn, who = ballot
    times = np.arange(int(4 * depth) + 1) * 0.5 - depth
    place = np.empty(len(times), np.int32)
    for row in range(used.shape[0]):
        for col in range(used.shape[1]):
            if not used[row, col]:
                continue
            p = (points[row, col, 0], points[row, col, 1], points[row, col, 2])
            n = (normals[row, col, 0], normals[row, col, 1], normals[row, col, 2])
            gain = ONE + np.int64(values[row, col])
            if box:
                _add_box(votes, total, turn, who, p, n, depth, start, shape, gain)
                continue
            found = _places(p, n, times, start, shape, place)
            for at in place[:found]:
                group = at >> GROUP_SHIFT
                if who and turn[group] != who:
                    if turn[group]:
                        _settle(votes, total, group)
                    turn[group] = who
                if votes[at] < FULL:
                    votes[at] += gain


@njit(nogil=True, cache=True)
def settle(votes, total, turn):
    """Add the votes that are left to those of all, and clear them; voxels where segments disagree."""
    conflicts = 0
    for group in range(len(turn)):
        if turn[group]:
            _settle(votes, total, group)
            turn[group] = 0
            for at in range(group << GROUP_SHIFT, min((group + 1) << GROUP_SHIFT, len(votes))):
                conflicts += total[at] >= BOTH
                total[at] &= ~BOTH
    return conflicts


@njit(nogil=True, cache=True)
def finish(votes, ink, count):
    """The stored arrays of a box, from its votes, which are cleared.

    Parameters
    ----------
    votes : numpy.ndarray of int64, z y x
        See `COUNT_SHIFT`.
    ink, count : numpy.ndarray of uint8 and uint16, z y x
        Receive the mean, rounded half up, and the votes, at most 65535; 0 on entry.

    Returns
    -------
    tuple of int
        Voxels with a vote, those of them that are ink, and votes.
    """
    labelled = painted = cast = 0
    for i in range(votes.shape[0]):
        for j in range(votes.shape[1]):
            for k in range(votes.shape[2]):
                one = votes[i, j, k]
                if one:
                    number = one >> COUNT_SHIFT
                    mean = (2 * (one & SUM) + number) // (2 * number)
                    ink[i, j, k] = mean
                    count[i, j, k] = min(number, MOST_VOTES)
                    labelled += 1
                    painted += mean >= INK
                    cast += number
                    votes[i, j, k] = 0
    return labelled, painted, cast


@njit(nogil=True, cache=True)
def split_points(stored, tolerance, points, normals, valid):
    """Points and normals, z y x, of stored x, y, z, nx, ny, nz; valid where finite and not six zeros.

    Parameters
    ----------
    stored : numpy.ndarray of float64, (rows, columns, 6)
        As a PPM holds them.
    tolerance : float
        A normal whose length differs from 1 by more is made a unit vector.
    points, normals, valid : numpy.ndarray
        Receive the result; 0 where not valid.
    """
    for row in range(valid.shape[0]):
        for col in range(valid.shape[1]):
            good, some = True, False
            for i in range(6):
                value = stored[row, col, i]
                good &= np.isfinite(value)
                some |= value != 0
            valid[row, col] = good and some
            for i in range(3):
                points[row, col, i] = stored[row, col, 2 - i] if good else 0.0
                normals[row, col, i] = stored[row, col, 5 - i] if good else 0.0
            z, y, x = normals[row, col, 0], normals[row, col, 1], normals[row, col, 2]
            length = math.sqrt(z * z + y * y + x * x)
            if length > 0 and abs(length - 1) > tolerance:
                for i in range(3):
                    normals[row, col, i] /= length


@njit(nogil=True, cache=True)
def count_pieces(ink, count, threshold, of_z, of_y, of_x, pieces):
    """Labelled and ink voxels of each piece of a chunk.

    Parameters
    ----------
    ink, count : numpy.ndarray of uint8 and uint16, z y x
        A chunk of a label group.
    threshold : int
        Mean value from which a voxel is ink.
    of_z, of_y, of_x : numpy.ndarray of int64
        Piece of each voxel along each axis.
    pieces : numpy.ndarray of int64, (pieces along z, y, x, 2)
        Labelled and ink voxels are added to it.
    """
    for i in range(count.shape[0]):
        for j in range(count.shape[1]):
            for k in range(count.shape[2]):
                if count[i, j, k]:
                    pieces[of_z[i], of_y[j], of_x[k], 0] += 1
                    pieces[of_z[i], of_y[j], of_x[k], 1] += ink[i, j, k] >= threshold
