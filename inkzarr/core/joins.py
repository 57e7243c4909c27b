"""Components across blocks: those of single blocks, joined over the faces, edges and corners they share.

::

    +-------+-------+      blocks come in C order; each is compared with its 13 neighbours before it,
    |   A  #|#  B   |      of which the planes that look at later blocks are kept, as long as those
    |      #|##     |      are to come. Nothing else is kept of a block but one row of numbers for each
    +-------+-------+      component that is large, or may go on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from inkzarr.core.geometry import Zyx
from inkzarr.core.runs import (
    FIRST,
    VOXELS,
    Bytes,
    Ints,
    Labels,
    census,
    empty_rows,
    find_runs,
    merge,
    paint,
    touching,
    weigh,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inkzarr.core.geometry import Box

SETTLE_AT = 1 << 14
"""Rows, at 152 bytes each, from which on what is held is merged, and what is known to be small dropped."""
EARLIER = [step for step in itertools.product((-1, 0, 1), repeat=3) if step < (0, 0, 0)]
"""From a block to its 13 neighbours that come before it in C order."""
LAST_LOOKERS = ((1, 1, 1), (0, 1, 1), (0, 0, 1))
"""From a block to the last that looks at its high plane along z, y and x."""


@dataclass(frozen=True)
class Plane:
    """Labels of a block's outermost voxels on one side; only the foreground is stored.

    Parameters
    ----------
    shape : tuple of two int
        The plane's axes in order z y x.
    at, labels : numpy.ndarray of int32
        Places in C order, and the label of each, from 1.
    """

    shape: tuple[int, ...]
    at: Labels
    labels: Labels

    @classmethod
    def of(cls, dense: Labels) -> Plane:
        """From an array of labels, 0 is background."""
        at = np.flatnonzero(dense).astype(np.int32)
        return cls(dense.shape, at, dense.ravel()[at])

    def dense(self) -> Labels:
        """As an array again."""
        plane = np.zeros(self.shape, np.int32)
        plane.ravel()[self.at] = self.labels
        return plane

    def renumbered(self, labels: Labels) -> Plane:
        """The same places with other labels."""
        return Plane(self.shape, self.at, labels)


@dataclass(frozen=True)
class Found:
    """The components of one block that are large, or may go on in another.

    Parameters
    ----------
    rows : numpy.ndarray of int64, (n, 19)
        See `inkzarr.core.runs.COLUMNS`; in the order of their first voxels.
    planes : dict of Plane
        By axis and side (0 low, 1 high), where the volume goes on and there is any foreground; labelled
        in the order of `rows`.
    small : int
        Other components, which end inside the block and are too small to be told.
    """

    rows: Ints
    planes: dict[tuple[int, int], Plane]
    small: int


@dataclass(frozen=True)
class BlockRuns:
    """A block cut into runs, and which of its components count; see `inkzarr.core.runs`.

    Parameters
    ----------
    box : Box
        The block.
    runs : tuple of numpy.ndarray
        begins, starts, stops, component.
    ids : numpy.ndarray of int32
        For each component its number among those that count, from 1; 0 for the others.
    """

    box: Box
    runs: tuple[Ints, Labels, Labels, Labels]
    ids: Labels

    @classmethod
    def of(cls, voxels: Bytes, box: Box, shape: Zyx, least: int, min_voxels: int) -> BlockRuns:
        """Label a block of a volume of `shape`; what is smaller than `min_voxels` counts if it may go on."""
        begins, starts, stops, component, found = find_runs(voxels, least)
        runs = begins, starts, stops, component
        ends = zip(box.start, box.stop, shape, strict=True)
        is_open = np.array([(low > 0, high < size) for low, high, size in ends])
        size, touches = census(*runs, found, tuple(box.shape), is_open)
        counts = touches | (size >= min_voxels)
        return cls(box, runs, np.where(counts, np.cumsum(counts), 0).astype(np.int32))

    def found(self, voxels: Bytes, shape: Zyx) -> Found:
        """What the block tells of its components."""
        rows = empty_rows(int(self.ids.max(initial=0)))
        weigh(voxels, self.runs, self.ids, tuple(self.box.start), tuple(shape), rows)
        return Found(rows, self._planes(shape) if len(rows) else {}, len(self.ids) - len(rows))

    def painted(self, ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The block as a volume of labels; `ids` has one for each component that counts."""
        out = np.zeros(self.box.shape, np.uint32)
        lookup = np.concatenate([np.zeros(1, np.uint32), ids])[self.ids]
        begins = self.runs[0]
        paint(begins[:-1], begins[1:], self.runs, lookup, out.reshape(-1, out.shape[2]))
        return out

    def _planes(self, shape: Zyx) -> dict[tuple[int, int], Plane]:
        begins, starts, stops, component = self.runs
        depth, height, width = self.box.shape
        rows = begins[:-1].reshape(depth, height), begins[1:].reshape(depth, height)
        planes = {}
        for side, axis in itertools.product((0, 1), range(3)):
            if not (self.box.stop[axis] < shape[axis] if side else self.box.start[axis] > 0):
                continue
            if axis < 2:
                first, last = (np.ascontiguousarray(ends.take(-side, axis)) for ends in rows)
                plane = np.zeros((len(first), width), np.int32)
                paint(first, last, self.runs, self.ids, plane)
            else:
                run = (rows[1] - 1 if side else rows[0]).clip(0, len(starts) - 1)
                ends = stops[run] == width if side else starts[run] == 0
                plane = np.where((rows[0] < rows[1]) & ends, self.ids[component[run]], np.int32(0))
            if plane.any():
                planes[axis, side] = Plane.of(plane)
        return planes


class Joiner:
    """Joins the components of blocks that come in C order.

    Memory is that of the foreground on one layer of blocks' planes, of the components that reach them and
    of those that count: from `settle_at` rows on, those that cannot grow any more and are small are
    forgotten.

    Parameters
    ----------
    min_voxels : int
        Smaller components are counted, not told.
    remember : bool
        Whether `close` tells the final number of every block's components.
    settle_at : int
        Rows that are held before they are merged.
    """

    def __init__(self, min_voxels: int, *, remember: bool = False, settle_at: int = SETTLE_AT) -> None:
        self.small = 0
        self._min_voxels, self._settle_at = min_voxels, settle_at
        self._rows: list[Ints] = []
        self._held = 0
        self._merged = 0
        self._pairs: list[Ints] = []
        self._high: tuple[dict[Zyx, Plane], ...] = ({}, {}, {})
        self._places: dict[Zyx, Labels] | None = {} if remember else None

    def add(self, index: Zyx, found: Found) -> None:
        """Take in the components of block `index`; blocks without any may be left out."""
        self._forget_before(index)
        self.small += found.small
        if not len(found.rows):
            return
        base = np.int32(self._held)
        planes = {at: plane.renumbered(plane.labels + base) for at, plane in found.planes.items()}
        self._join(index, planes)
        for axis in range(3):
            if (axis, 1) in planes:
                self._high[axis][index] = planes[axis, 1]
        if self._places is not None:
            self._places[index] = np.arange(self._held, self._held + len(found.rows), dtype=np.int32)
        self._rows.append(found.rows)
        self._held += len(found.rows)
        if self._held > self._settle_at + 2 * self._merged:
            self._settle()

    def close(self) -> tuple[Ints, dict[Zyx, NDArray[np.uint32]]]:
        """All components that are large enough, ordered by their first voxel.

        Returns
        -------
        tuple
            Their rows; and, where it was to be remembered, for each block the numbers of its components,
            from 1 in the order of the rows, 0 for those that are too small.
        """
        for kept in self._high:
            kept.clear()
        self._settle()
        (rows,) = self._rows
        order = np.argsort(rows[:, FIRST])
        number = np.zeros(len(rows) + 1, np.uint32)
        number[order] = np.arange(1, len(rows) + 1, dtype=np.uint32)
        return rows[order], {index: number[place] for index, place in (self._places or {}).items()}

    def _join(self, index: Zyx, planes: dict[tuple[int, int], Plane]) -> None:
        """Find what the block shares with the 13 before it."""
        low = {axis: plane.dense() for (axis, side), plane in planes.items() if not side}
        for step in EARLIER:
            axis = next(i for i, by in enumerate(step) if by)
            found = self._high[axis].get(Zyx(*(i + by for i, by in zip(index, step, strict=True))))
            if found is None or axis not in low:
                continue
            mine, other = low[axis], found.dense()
            for place, by in enumerate(np.delete(step, axis)):
                if by:  # the blocks meet at an edge or a corner
                    mine = mine.take([0 if by < 0 else -1], place)
                    other = other.take([-1 if by < 0 else 0], place)
            pairs = np.empty(8 * np.count_nonzero(mine), np.int64)
            pairs = np.unique(pairs[: touching(mine, other, pairs)])
            if len(pairs):
                self._pairs.append(pairs)

    def _forget_before(self, index: Zyx) -> None:
        """Drop the planes that no block from `index` on looks at."""
        for kept, step in zip(self._high, LAST_LOOKERS, strict=True):
            while kept:
                eldest = next(iter(kept))
                if tuple(i + by for i, by in zip(eldest, step, strict=True)) >= index:
                    break
                del kept[eldest]

    def _settle(self) -> None:
        """Merge the rows of joined components; forget those that are small and cannot grow."""
        pairs = np.concatenate([np.empty(0, np.int64), *self._pairs])
        ends = (pairs >> 32) - 1, (pairs & 0xFFFFFFFF) - 1
        graph = coo_array((np.ones(len(pairs), np.bool_), ends), shape=(self._held, self._held))
        count, merged = connected_components(graph, directed=False)
        voxels = np.zeros(count, np.int64)
        np.add.at(voxels, merged, np.concatenate([voxels[:0], *(rows[:, VOXELS] for rows in self._rows)]))
        keep = voxels >= self._min_voxels
        for plane in itertools.chain.from_iterable(kept.values() for kept in self._high):
            keep[merged[plane.labels - 1]] = True
        self.small += count - int(keep.sum())
        number = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)[merged]
        self._rows, self._pairs = [self._merge(number, int(keep.sum()))], []
        for kept in self._high:
            for index, plane in kept.items():
                kept[index] = plane.renumbered(number[plane.labels - 1] + np.int32(1))
        if self._places is not None:
            number = np.append(number, np.int32(-1))  # -1 stays what it is
            self._places = {index: number[place] for index, place in self._places.items()}
        self._held = self._merged = len(self._rows[0])

    def _merge(self, number: Labels, count: int) -> Ints:
        """The rows, each dropped as soon as it is merged into that of its `number`; -1 is left out."""
        merged = empty_rows(count)
        self._rows.reverse()
        while self._rows:
            rows = self._rows.pop()
            merge(rows, number[: len(rows)], merged)
            number = number[len(rows) :]
        return merged
