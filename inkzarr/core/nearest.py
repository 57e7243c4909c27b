"""The nearest box among many, by a KD-tree whose distance is that between boxes, not between points.

Two boxes with centres ``d`` apart and half edges that sum to ``w`` have, along an axis, a gap of
``max(0, |d| - w)``; their distance is Euclidean over the axes::

    +-----+                         a cell of the tree can hold nothing nearer than its own box, widened
    |  A  | <-- gap --> +-----+     by w, is: all of it is left out where that is too far
    +-----+             |  B  |
                        +-----+

Places are doubled, so that centres are whole numbers and every distance is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

LEAF = 16
DEPTH = 64

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BoxTree:
    """A KD-tree of box centres.

    Parameters
    ----------
    points : numpy.ndarray of int64, (n, 3)
        Doubled centres, sorted by leaf.
    lows, highs : numpy.ndarray of int64, (nodes, 3)
        What each node spans; the children of node i are 2 i + 1 and 2 i + 2.
    parts : numpy.ndarray of int64, (nodes, 2)
        First point and one past the last of each node.
    leaves : int
        The first node that is a leaf.
    """

    points: Ints
    lows: Ints
    highs: Ints
    parts: Ints
    leaves: int

    @classmethod
    def of(cls, points: Ints) -> BoxTree:
        """Build it; memory is that of the points.

        Parameters
        ----------
        points : numpy.ndarray of int64, (n, 3)
            Doubled centres, at least one.
        """
        points = np.unique(points, axis=0)
        levels = max(0, int(np.ceil(np.log2(len(points) / LEAF))))
        nodes = 2 ** (levels + 1) - 1
        lows, highs = np.zeros((nodes, 3), np.int64), np.zeros((nodes, 3), np.int64)
        parts = np.zeros((nodes, 2), np.int64)
        parts[0] = 0, len(points)
        leaves = 2**levels - 1
        for node in range(nodes):
            first, last = parts[node].tolist()
            part = points[first:last]
            lows[node], highs[node] = part.min(0), part.max(0)
            if node >= leaves:
                continue
            axis, middle = int(np.argmax(highs[node] - lows[node])), (last - first) // 2
            points[first:last] = part[np.argpartition(part[:, axis], middle)]
            parts[2 * node + 1], parts[2 * node + 2] = (first, first + middle), (first + middle, last)
        return cls(points, lows, highs, parts, leaves)

    def too_near(self, queries: Ints, widths: Ints, limit: float) -> tuple[NDArray[np.bool_], float]:
        """Which boxes lie nearer than a limit to any box of the tree, and how near the others come.

        Parameters
        ----------
        queries : numpy.ndarray of int64, (m, 3)
            Doubled centres.
        widths : numpy.ndarray of int64, (3,)
            Doubled sums of half edges along each axis; 0 measures from centre to centre.
        limit : float
            In voxels.

        Returns
        -------
        tuple of numpy.ndarray of bool, (m,), and float
            Nearer than the limit, and the smallest distance of those that are not, in voxels; infinite
            where there are none.
        """
        near = np.zeros(len(queries), np.bool_)
        tree = (self.points, self.lows, self.highs, self.parts, self.leaves)
        least = _search(queries, widths.astype(np.int64), (2.0 * limit) ** 2, *tree, near)
        return near, float(np.sqrt(least)) / 2


@njit(nogil=True, cache=True)
def _search(queries, widths, limit, points, lows, highs, parts, leaves, near):
    stack = np.empty(DEPTH, np.int64)
    least = np.inf
    for at in range(len(queries)):
        q = queries[at]
        best = max(least, limit)
        top = 1
        stack[0] = 0
        while top:
            top -= 1
            node = stack[top]
            bound = 0.0
            for axis in range(3):
                gap = max(lows[node, axis] - q[axis], q[axis] - highs[node, axis]) - widths[axis]
                if gap > 0:
                    bound += float(gap) * float(gap)
            if bound >= best:
                continue
            if node < leaves:
                one, other = 2 * node + 1, 2 * node + 2
                far = near_first(q, lows, highs, one, other)
                stack[top] = one if far else other
                stack[top + 1] = other if far else one
                top += 2
                continue
            for place in range(parts[node, 0], parts[node, 1]):
                distance = 0.0
                for axis in range(3):
                    gap = abs(points[place, axis] - q[axis]) - widths[axis]
                    if gap > 0:
                        distance += float(gap) * float(gap)
                best = min(best, distance)
            if best < limit:
                break
        if best < limit:
            near[at] = True
        elif best < least:
            least = best
    return least


@njit(nogil=True, cache=True)
def near_first(q, lows, highs, one, other):
    """Whether the second of two nodes is the nearer one, by their centres."""
    first = second = 0.0
    for axis in range(3):
        first += abs(2 * q[axis] - lows[one, axis] - highs[one, axis])
        second += abs(2 * q[axis] - lows[other, axis] - highs[other, axis])
    return second < first
