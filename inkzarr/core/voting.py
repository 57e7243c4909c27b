"""Counting votes for voxels, and other compiled loops over pixels and voxels."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from inkzarr.core.footprints import places, span

COUNT_SHIFT = 34
"""A voxel's votes are one int64: how many, above bit 34, and the sum of their values below."""
ONE = 1 << COUNT_SHIFT
SUM = ONE - 1
MOST_PIXELS = (1 << 26) - 1
"""So many may vote before their votes are settled."""
FULL = MOST_PIXELS << COUNT_SHIFT
"""67 million votes for one voxel: further ones are not counted, so that nothing wraps."""
MOST_VOTES = 65535
INK = 128
"""Mean value from which a voxel is said to be ink."""
SAYS_INK, SAYS_NONE = 1 << 60, 1 << 61
"""Above the votes of all segments: what any of them said."""
BOTH = SAYS_INK | SAYS_NONE
GROUP_SHIFT = 5
"""Voxels that follow each other are settled 32 at a time."""
OVERHANG = 8
"""Voxels past the last to which nothing is added, since eight are added to at once."""


@njit(nogil=True, cache=True)
def _settle(votes, total, group):
    """Add the votes of the segment that voted last in a group of voxels to those of all; what it said."""
    for at in range(group << GROUP_SHIFT, min((group + 1) << GROUP_SHIFT, len(total))):
        mine, held = votes[at], total[at]
        if mine:
            number = mine >> COUNT_SHIFT
            said = SAYS_INK if 2 * (mine & SUM) + number >= 2 * INK * number else SAYS_NONE
            if (held & ~BOTH) + (number << COUNT_SHIFT) <= FULL:
                held += mine
            total[at] = held | said
            votes[at] = 0


@njit(nogil=True, cache=True)
def _claim(votes, total, turn, mixed, group, who):
    """Let a segment vote in a group of voxels; what another one voted there is settled first."""
    if turn[group]:
        _settle(votes, total, group)
        mixed[group] = True
    turn[group] = who


@njit(nogil=True, cache=True)
def _add_eight(votes, at, a, b, c, d, e, f, g, h):
    """Add to eight voxels that follow each other, without a loop whose end would be guessed wrong."""
    votes[at] += a
    votes[at + np.uintp(1)] += b
    votes[at + np.uintp(2)] += c
    votes[at + np.uintp(3)] += d
    votes[at + np.uintp(4)] += e
    votes[at + np.uintp(5)] += f
    votes[at + np.uintp(6)] += g
    votes[at + np.uintp(7)] += h


@njit(nogil=True, cache=True)
def _add_box(p, n, depth, start, shape, gain, ballot):
    """Add a pixel's votes to the voxels of its box footprint that lie in a box, eight along x at once."""
    votes, total, turn, mixed, who = ballot
    az, bz = span(p[0], n[0], depth, start[0], shape[0])
    ay, by = span(p[1], n[1], depth, start[1], shape[1])
    ax, bx = span(p[2], n[2], depth, start[2], shape[2])
    if az > bz or ay > by or ax > bx:
        return
    first, width = np.int64(ax), np.int64(bx) - np.int64(ax) + 1
    eights = (width - 1) // 8
    rest = width - 8 * eights
    a, b, c = gain if rest > 1 else 0, gain if rest > 2 else 0, gain if rest > 3 else 0
    d, e, f = gain if rest > 4 else 0, gain if rest > 5 else 0, gain if rest > 6 else 0
    g = gain if rest > 7 else 0
    for i in range(np.int64(az), np.int64(bz) + 1):
        for j in range(np.int64(ay), np.int64(by) + 1):
            at = np.uintp((i * shape[1] + j) * shape[2] + first)
            for group in range(at >> GROUP_SHIFT, ((at + np.uintp(width - 1)) >> GROUP_SHIFT) + 1):
                if turn[group] != who:
                    _claim(votes, total, turn, mixed, group, who)
            for _ in range(eights):
                _add_eight(votes, at, gain, gain, gain, gain, gain, gain, gain, gain)
                at += np.uintp(8)
            _add_eight(votes, at, gain, a, b, c, d, e, f, g)


@njit(nogil=True, cache=True)
def vote(points, normals, values, used, columns, rule, start, shape, ballot):
    """Add the votes of pixels to the voxels of one box.

    Parameters
    ----------
    points, normals : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x; finite where used.
    values, used : numpy.ndarray of uint8 and bool, (rows, columns)
        Painted values, and which pixels vote.
    columns : numpy.ndarray of int64, (n, 2)
        First column and one past the last of the parts that may vote into the box.
    rule : tuple of float and bool
        Depth in voxels, and whether the footprint is the box.
    start, shape : tuple of three int
        The box; votes for voxels beyond it are left to others.
    ballot : tuple of votes, total, turn, mixed and who
        See `inkzarr.core.votes.Ballot`; and the number of the segment that votes now, at least 1.
    """
    depth, box = rule
    votes, total, turn, mixed, who = ballot
    times = np.arange(int(4 * depth) + 1) * 0.5 - depth
    place = np.empty(len(times), np.int32)
    for part in range(len(columns)):
        for row in range(used.shape[0]):
            for col in range(columns[part, 0], columns[part, 1]):
                if not used[row, col]:
                    continue
                p = (points[row, col, 0], points[row, col, 1], points[row, col, 2])
                n = (normals[row, col, 0], normals[row, col, 1], normals[row, col, 2])
                gain = ONE + np.int64(values[row, col])
                if box:
                    _add_box(p, n, depth, start, shape, gain, ballot)
                    continue
                for found in range(places(p, n, times, start, shape, place)):
                    at = np.uintp(place[found])
                    group = at >> GROUP_SHIFT
                    if turn[group] != who:
                        _claim(votes, total, turn, mixed, group, who)
                    votes[at] += gain


@njit(nogil=True, cache=True)
def settle(votes, total, turn, mixed):
    """Add the votes of the segments that voted last to those of all; see `inkzarr.core.votes.Ballot`."""
    for group in range(len(turn)):
        if turn[group]:
            _settle(votes, total, group)
            mixed[group] = True


@njit(nogil=True, cache=True)
def finish(votes, total, turn, mixed, ink, count):
    """The stored arrays of a box, from its votes, which are cleared.

    Parameters
    ----------
    votes, total, turn, mixed : numpy.ndarray
        See `inkzarr.core.votes.Ballot`.
    ink, count : numpy.ndarray of uint8 and uint16, z y x
        Receive the mean, rounded half up, and the votes, at most 65535; 0 on entry.

    Returns
    -------
    tuple of int
        Voxels with a vote, those of them that are ink, those where segments disagree, and votes.
    """
    labelled = painted = conflicts = cast = 0
    rows, width = ink.shape[1], ink.shape[2]
    for group in range(len(turn)):
        if not turn[group]:
            continue
        several = mixed[group]
        if several:
            _settle(votes, total, group)
        held = total if several else votes
        first = group << GROUP_SHIFT
        i, j, k = first // (rows * width), first // width % rows, first % width
        for at in range(first, min(first + (1 << GROUP_SHIFT), ink.size)):
            one = held[at]
            if one:
                held[at] = 0
                conflicts += one >= BOTH
                one &= ~BOTH
                number = one >> COUNT_SHIFT
                mean = one & SUM if number == 1 else (2 * (one & SUM) + number) // (2 * number)
                ink[i, j, k] = mean
                count[i, j, k] = min(number, MOST_VOTES)
                labelled += 1
                painted += mean >= INK
                cast += number
            k += 1
            if k == width:
                k, j = 0, j + 1
                if j == rows:
                    j, i = 0, i + 1
        turn[group], mixed[group] = 0, False
    return labelled, painted, conflicts, cast


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
