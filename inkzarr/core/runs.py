"""Connected components of one block by runs: no label volume, and every sum a component has in the same pass.

A run is a stretch of foreground along x. Two runs in neighbouring rows touch (26 neighbours) where one
begins at most one voxel after the other ends::

    row y      . # # # . . # #        a run meets those of four rows before its own:
    row y+1    # . . . # # . .        (z, y-1), (z-1, y-1), (z-1, y), (z-1, y+1)

Runs are joined by union-find, always to the one that comes first, so that components are numbered by
their first voxel in C order: whatever labels a block again finds the same numbers.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Labels = NDArray[np.int32]


@njit(nogil=True, cache=True)
def _count(voxels, least, begins):
    """Runs of each row, as the number of the row's first run in C order; one more entry at the end."""
    depth, height, width = voxels.shape
    total = 0
    for z in range(depth):
        for y in range(height):
            begins[z * height + y] = total
            row = voxels[z, y]
            total += row[0] >= least
            found = 0
            for x in range(1, width):
                found += (row[x] >= least) & (row[x - 1] < least)
            total += found
    begins[depth * height] = total
    return total


@njit(nogil=True, cache=True)
def _root(parent, run):
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


@njit(nogil=True, cache=True)
def _meet(starts, stops, parent, mine, first, last):
    """Join the runs of one row, `mine`, with those of another, ``first .. last``, that touch them."""
    run, end = mine
    other = first
    while run < end and other < last:
        if stops[other] < starts[run]:
            other += 1
        elif stops[run] < starts[other]:
            run += 1
        else:
            a, b = _root(parent, run), _root(parent, other)
            if a < b:
                parent[b] = a
            else:
                parent[a] = b
            if stops[other] < stops[run]:
                other += 1
            else:
                run += 1


@njit(nogil=True, cache=True)
def find_runs(voxels, least):
    """All runs of a block, and the component of each.

    Parameters
    ----------
    voxels : numpy.ndarray of uint8, z y x
        The block.
    least : int
        The smallest value that is foreground, 1 to 255.

    Returns
    -------
    tuple
        begins (int64, rows + 1): the first run of each row; starts, stops (int32, runs): first voxel of
        each run along x, and one past its last; component (int32, runs): from 0; how many components.
    """
    depth, height, width = voxels.shape
    begins = np.empty(depth * height + 1, np.int64)
    total = _count(voxels, np.uint8(least), begins)
    starts, stops = np.empty(total, np.int32), np.empty(total, np.int32)
    parent = np.empty(total, np.int32)
    for z in range(depth):
        for y in range(height):
            at = z * height + y
            run, end = begins[at], begins[at + 1]
            if run == end:
                continue
            row = voxels[z, y]
            inside = False
            for x in range(width):
                if (row[x] >= least) != inside:
                    if inside:
                        stops[run] = x
                        run += 1
                    else:
                        starts[run] = x
                        parent[run] = run
                    inside = not inside
            if inside:
                stops[run] = width
            mine = (begins[at], end)
            if y:
                _meet(starts, stops, parent, mine, begins[at - 1], begins[at])
            if z:
                for near in range(max(y - 1, 0), min(y + 2, height)):
                    above = at - height + near - y
                    _meet(starts, stops, parent, mine, begins[above], begins[above + 1])
    found = 0
    for run in range(total):
        if parent[run] == run:
            parent[run] = found
            found += 1
        else:
            parent[run] = parent[parent[run]]
    return begins, starts, stops, parent, found


@njit(nogil=True, cache=True)
def census(begins, starts, stops, component, found, shape, is_open):
    """Voxels of each component, and whether it may go on in another block.

    Parameters
    ----------
    begins, starts, stops, component, found : numpy.ndarray and int
        As `find_runs` gives them.
    shape : tuple of three int
        The block, in voxels.
    is_open : numpy.ndarray of bool, (3, 2)
        Whether the volume goes on past the block's low and its high side along z, y and x.

    Returns
    -------
    tuple of numpy.ndarray
        voxels (int64) and touches (bool), one a component.
    """
    depth, height, width = shape
    voxels, touches = np.zeros(found, np.int64), np.zeros(found, np.bool_)
    for z in range(depth):
        in_z = (z == 0 and is_open[0, 0]) or (z == depth - 1 and is_open[0, 1])
        for y in range(height):
            in_y = (y == 0 and is_open[1, 0]) or (y == height - 1 and is_open[1, 1])
            for run in range(begins[z * height + y], begins[z * height + y + 1]):
                one = component[run]
                voxels[one] += stops[run] - starts[run]
                at_x = (starts[run] == 0 and is_open[2, 0]) or (stops[run] == width and is_open[2, 1])
                touches[one] |= in_z | in_y | at_x
    return voxels, touches


VOXELS, FIRST, LOW, HIGH, MAX, SUM, PLACE, MOMENT = 0, 1, 2, 5, 8, 9, 10, 13
COLUMNS = 19
"""A component's row of int64: voxels; first voxel, its number in C order in the volume; box, first voxel
and one past the last (z y x each); largest value and sum of values; sums of z, y, x and of their
products zz, yy, xx, zy, zx, yx. Rows of parts of a component merge exactly: sums add (modulo 2^64, see
`inkzarr.core.candidates`), boxes and values take the smaller or the larger."""


def empty_rows(count: int) -> Ints:
    """Rows of components without any voxel yet, to which `weigh` and `merge` add."""
    rows = np.zeros((count, COLUMNS), np.int64)
    rows[:, [FIRST, *range(LOW, HIGH)]] = 1 << 62
    return rows


@njit(nogil=True, cache=True)
def merge(rows, into, merged):
    """Add rows of parts to the rows of whole components.

    Parameters
    ----------
    rows : numpy.ndarray of int64, (n, 19)
        Of the parts.
    into : numpy.ndarray of int32, (n,)
        For each part its component, from 0; -1 where it is left out.
    merged : numpy.ndarray of int64, (m, 19)
        Receives the result; from `empty_rows`.
    """
    for part in range(len(rows)):
        if into[part] < 0:
            continue
        row, whole = rows[part], merged[into[part]]
        whole[VOXELS] += row[VOXELS]
        whole[FIRST] = min(whole[FIRST], row[FIRST])
        for axis in range(3):
            whole[LOW + axis] = min(whole[LOW + axis], row[LOW + axis])
            whole[HIGH + axis] = max(whole[HIGH + axis], row[HIGH + axis])
        whole[MAX] = max(whole[MAX], row[MAX])
        for column in range(SUM, COLUMNS):
            whole[column] += row[column]


@njit(nogil=True, cache=True)
def weigh(voxels, runs, ids, start, shape, rows):
    """The rows of components, see `COLUMNS`.

    Parameters
    ----------
    voxels : numpy.ndarray of uint8, z y x
        The block.
    runs : tuple
        begins, starts, stops and component of `find_runs`.
    ids : numpy.ndarray of int32
        For each component its row, from 1; 0 where it is left out.
    start, shape : tuple of three int
        The block's first voxel, and the volume's shape.
    rows : numpy.ndarray of int64, (n, 19)
        Receives the result; from `empty_rows`.
    """
    begins, starts, stops, component = runs
    for i in range(voxels.shape[0]):
        z = start[0] + i
        for j in range(voxels.shape[1]):
            y = start[1] + j
            at = i * voxels.shape[1] + j
            line = voxels[i, j]
            for run in range(begins[at], begins[at + 1]):
                number = ids[component[run]]
                if number == 0:
                    continue
                row = rows[number - 1]
                a, b = np.int64(starts[run]), np.int64(stops[run])
                total, largest = np.int64(0), np.uint8(0)
                for x in range(a, b):
                    total += line[x]
                    largest = max(largest, line[x])
                a, b = a + start[2], b + start[2]
                n = b - a
                xs = n * (a + b - 1) // 2
                row[VOXELS] += n
                row[FIRST] = min(row[FIRST], (z * shape[1] + y) * shape[2] + a)
                row[LOW], row[LOW + 1] = min(row[LOW], z), min(row[LOW + 1], y)
                row[LOW + 2] = min(row[LOW + 2], a)
                row[HIGH], row[HIGH + 1] = max(row[HIGH], z + 1), max(row[HIGH + 1], y + 1)
                row[HIGH + 2] = max(row[HIGH + 2], b)
                row[MAX] = max(row[MAX], np.int64(largest))
                row[SUM] += total
                row[PLACE] += n * z
                row[PLACE + 1] += n * y
                row[PLACE + 2] += xs
                row[MOMENT] += n * z * z
                row[MOMENT + 1] += n * y * y
                # of (a + i)^2 for i below n, where only terms that cannot wrap are divided
                row[MOMENT + 2] += n * a * a + a * n * (n - 1) + (n - 1) * n * (2 * n - 1) // 6
                row[MOMENT + 3] += n * z * y
                row[MOMENT + 4] += z * xs
                row[MOMENT + 5] += y * xs


@njit(nogil=True, cache=True)
def paint(first, last, runs, ids, out):
    """Write the runs of some rows into a picture of them.

    Parameters
    ----------
    first, last : numpy.ndarray of int64, (rows,)
        Runs of each row, the last one excluded.
    runs : tuple
        begins, starts, stops and component of `find_runs`.
    ids : numpy.ndarray
        What each component is painted with; 0 is not painted.
    out : numpy.ndarray, (rows, x)
        Of zeros; receives the result.
    """
    _, starts, stops, component = runs
    for row in range(len(first)):
        for run in range(first[row], last[row]):
            one = ids[component[run]]
            if one:
                for x in range(starts[run], stops[run]):
                    out[row, x] = one


@njit(nogil=True, cache=True)
def touching(low, high, pairs):
    """Which labels of two facing planes touch, each voxel having 9 neighbours in the other plane.

    Parameters
    ----------
    low, high : numpy.ndarray of int32, two axes
        Labels, 0 where none. Along an axis of length 1 in one of them, the planes meet at an edge.
    pairs : numpy.ndarray of int64
        Receives both labels of a pair, that of `low` above bit 32; room for 8 a voxel of `low`.

    Returns
    -------
    int
        How many pairs; the same pair may come again.
    """
    count = 0
    recent = np.int64(-1)
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            if not low[i, j]:
                continue
            mine = np.int64(low[i, j]) << 32
            if i < high.shape[0] and j < high.shape[1] and high[i, j]:
                # what is opposite touches all others that this voxel touches
                pair = mine | high[i, j]
                if pair != recent:
                    pairs[count] = recent = pair
                    count += 1
                continue
            for near in range(max(i - 1, 0), min(i + 2, high.shape[0])):
                for by in range(max(j - 1, 0), min(j + 2, high.shape[1])):
                    pair = mine | high[near, by]
                    if high[near, by] and pair != recent:
                        pairs[count] = recent = pair
                        count += 1
    return count


@njit(nogil=True, cache=True)
def project(voxels, runs, chosen, down, right, corner, out):
    """The largest value of each line of sight through some components, seen from any direction.

    Parameters
    ----------
    voxels : numpy.ndarray of uint8, z y x
        The block.
    runs : tuple
        begins, starts, stops and component of `find_runs`.
    chosen : numpy.ndarray of uint8
        For each component whether it is seen.
    down, right : tuple of three float
        z, y, x: where a picture's rows and columns go, of length 1.
    corner : tuple of two float
        The first row's and column's place along them.
    out : numpy.ndarray of uint8, (rows, columns)
        Of zeros; receives the result. Places outside are left out.
    """
    begins, starts, stops, component = runs
    for z in range(voxels.shape[0]):
        for y in range(voxels.shape[1]):
            at = z * voxels.shape[1] + y
            for run in range(begins[at], begins[at + 1]):
                if not chosen[component[run]]:
                    continue
                for x in range(starts[run], stops[run]):
                    row = int(np.floor(z * down[0] + y * down[1] + x * down[2] - corner[0] + 0.5))
                    col = int(np.floor(z * right[0] + y * right[1] + x * right[2] - corner[1] + 0.5))
                    if 0 <= row < out.shape[0] and 0 <= col < out.shape[1]:
                        out[row, col] = max(out[row, col], voxels[z, y, x])
