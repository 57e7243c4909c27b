"""Which voxels a pixel of a surface votes for, counting the votes, and other compiled loops over pixels.

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
GROUP = 1 << GROUP_SHIFT


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
    """How many voxels of a ray lie outside the volume, and how many in it; of one pixel."""
    count = held = 0
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
            held += inside
    return count, held


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
                        beyond, held = _outside(points[row, col], normals[row, col], depth, shape)
                        dropped += beyond
                        kept = float(held)
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


@njit(nogil=True, cache=True)
def padded(width):
    """A row's voxels with those past its end that make it whole groups."""
    return (width + GROUP - 1) >> GROUP_SHIFT << GROUP_SHIFT


@njit(nogil=True, cache=True)
def _add_box(p, n, depth, start, shape, gain, votes, fresh):
    """Add a pixel's votes to the voxels of its box footprint that lie in a box."""
    az, bz = span(p[0], n[0], depth, start[0], shape[0])
    ay, by = span(p[1], n[1], depth, start[1], shape[1])
    ax, bx = span(p[2], n[2], depth, start[2], shape[2])
    if az > bz or ay > by or ax > bx:
        return
    first, width, row = np.int64(ax), np.int64(bx) - np.int64(ax) + 1, padded(shape[2])
    for i in range(np.int64(az), np.int64(bz) + 1):
        for j in range(np.int64(ay), np.int64(by) + 1):
            at = np.uintp((i * shape[1] + j) * row + first)
            for k in range(width):
                votes[at + np.uintp(k)] += gain
            for group in range(at >> GROUP_SHIFT, ((at + np.uintp(width - 1)) >> GROUP_SHIFT) + 1):
                fresh[group] = True


@njit(nogil=True, cache=True)
def vote(points, normals, values, used, columns, rule, start, shape, votes, fresh):
    """Add the votes of pixels of one segment to the voxels of one box.

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
    votes, fresh : numpy.ndarray of int64 and bool
        See `inkzarr.core.votes.Ballot`.
    """
    depth, box = rule
    times = np.arange(int(4 * depth) + 1) * 0.5 - depth
    place = np.empty(len(times), np.int32)
    row_of_votes = padded(shape[2])
    for part in range(len(columns)):
        for row in range(used.shape[0]):
            for col in range(columns[part, 0], columns[part, 1]):
                if not used[row, col]:
                    continue
                p = (points[row, col, 0], points[row, col, 1], points[row, col, 2])
                n = (normals[row, col, 0], normals[row, col, 1], normals[row, col, 2])
                gain = ONE + np.int64(values[row, col])
                if box:
                    _add_box(p, n, depth, start, shape, gain, votes, fresh)
                    continue
                for found in range(places(p, n, times, start, shape, row_of_votes, place)):
                    at = np.uintp(place[found])
                    votes[at] += gain
                    fresh[at >> GROUP_SHIFT] = True


@njit(nogil=True, cache=True)
def settle(votes, total, fresh, settled):
    """Add the votes of one segment to those of all and clear them; see `inkzarr.core.votes.Ballot`."""
    for group in range(len(fresh)):
        if not fresh[group]:
            continue
        fresh[group], settled[group] = False, True
        begin = group << GROUP_SHIFT
        voted, before = votes[begin : begin + GROUP], total[begin : begin + GROUP]
        for k in range(GROUP):
            mine, held = voted[k], before[k]
            number = mine >> COUNT_SHIFT
            said = SAYS_INK if 2 * (mine & SUM) + number >= number * 2 * INK else SAYS_NONE
            full = (held & ~BOTH) + (number << COUNT_SHIFT) > FULL
            before[k] = (held + (0 if full else mine)) | (said if mine else 0)
            voted[k] = 0


@njit(nogil=True, cache=True)
def finish(total, settled, ink, count):
    """The stored arrays of a box, from its votes, which are cleared.

    Parameters
    ----------
    total, settled : numpy.ndarray of int64 and bool
        Votes of all segments, and the groups that hold any; see `inkzarr.core.votes.Ballot`.
    ink, count : numpy.ndarray of uint8 and uint16, z y x
        Receive the mean, rounded half up, and the votes, at most 65535; 0 on entry.

    Returns
    -------
    tuple of int
        Voxels with a vote, those of them that are ink, those where segments disagree, and votes.
    """
    labelled = painted = conflicts = cast = 0
    groups = padded(ink.shape[2]) >> GROUP_SHIFT
    for group in range(len(settled)):
        if not settled[group]:
            continue
        settled[group] = False
        i, j = group // groups // ink.shape[1], group // groups % ink.shape[1]
        first, begin = group % groups << GROUP_SHIFT, group << GROUP_SHIFT
        voted = total[begin : begin + GROUP]
        means, numbers = ink[i, j, first : first + GROUP], count[i, j, first : first + GROUP]
        for k in range(len(means)):
            held = voted[k]
            if held:
                voted[k] = 0
                number = (held & ~BOTH) >> COUNT_SHIFT
                # exact: a quotient of whole numbers below 2^52 is never rounded up to a whole number
                mean = int((2.0 * (held & SUM) + number) / (2.0 * number))
                means[k] = mean
                numbers[k] = min(number, MOST_VOTES)
                labelled += 1
                painted += mean >= INK
                conflicts += held >= BOTH
                cast += number
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
