"""A segment's label with its rules applied: which pixels are painted and supervised, strip by strip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inkzarr.readers.segments import Segment

LONGEST = 4096
"""Columns of a strip, whose points are 13 MB where it is 64 rows high."""

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Painted:
    """A label in memory.

    Parameters
    ----------
    values : numpy.ndarray of uint8, (rows, columns)
        As painted.
    supervised : numpy.ndarray of bool or None, same shape
        Where the label counts.
    masked : numpy.ndarray of bool or None, same shape
        Where the surface's mask leaves it a place.
    written : numpy.ndarray of bool, (rows / edge, columns / edge)
        Blocks with any ink; all where blank ones are not skipped.
    edge : int
        Of a block, in pixels.
    blank, unsupervised : int
        Pixels in blocks without ink, and other pixels off the supervision mask.
    """

    values: Bytes
    supervised: Bools | None
    masked: Bools | None
    written: Bools
    edge: int
    blank: int
    unsupervised: int

    @property
    def count(self) -> int:
        """Pixels that may vote."""
        return self.values.size - self.blank - self.unsupervised

    def used(self, rows: slice, cols: slice) -> Bools:
        """Which pixels may vote: in a block that is painted, and supervised."""
        row, col = (np.arange(part.start, part.stop) // self.edge for part in (rows, cols))
        wide = self.written[row[0] : row[-1] + 1, col[0] : col[-1] + 1]
        used: Bools = wide.repeat(np.bincount(col - col[0]), axis=1)[row - row[0]]
        return used if self.supervised is None else used & self.supervised[rows, cols]

    def there(self, rows: slice, cols: slice) -> Bools | None:
        """Which pixels the surface's mask leaves a place; None: all."""
        return None if self.masked is None else self.masked[rows, cols]

    def strips(self, tile: int) -> Iterator[tuple[int, int, Bytes, Bools]]:
        """First row and column, values and use of rows of tiles, without those in which nothing is used."""
        height, width = self.values.shape
        for row in range(0, height, tile):
            rows = slice(row, min(row + tile, height))
            used = self.used(rows, slice(0, width))
            some = np.logical_or.reduceat(used.any(axis=0), np.arange(0, width, tile))
            edges = np.flatnonzero(np.diff(np.pad(some, 1).astype(np.int8)))
            for first, last in edges.reshape(-1, 2) * tile:
                for col in range(int(first), int(last), LONGEST):
                    cols = slice(col, min(col + LONGEST, int(last), width))
                    yield row, col, self.values[rows, cols], used[:, cols]

    def samples(self, tile: int) -> Iterator[tuple[int, int]]:
        """One pixel that may vote of each tile, by row and column."""
        for row, col, _, used in self.strips(tile):
            for at in range(0, used.shape[1], tile):
                there = np.argwhere(used[:, at : at + tile])
                if len(there):
                    down, right = there[len(there) // 2]
                    yield row + int(down), col + at + int(right)


def paint(segment: Segment, skip_blank: int) -> Painted:
    """Read a segment's label, supervision mask and the mask of its surface.

    Parameters
    ----------
    segment : Segment
        Headers are checked already.
    skip_blank : int
        Edge of the blocks that count as unpainted where they hold no ink; 0: none does.

    Raises
    ------
    InputError
        A PNG is damaged.
    """
    shape = segment.shape
    values = segment.label.read(shape)
    supervised = None if segment.supervision is None else segment.supervision.nonzero(shape)
    masked = segment.surface.mask()
    edge = skip_blank or max(shape)
    rows, cols = (np.arange(0, n, edge) for n in shape)
    written = np.ones((len(rows), len(cols)), np.bool_)
    if skip_blank:
        for at, row in enumerate(rows):
            written[at] = np.logical_or.reduceat(values[row : row + edge].any(axis=0), cols)
    down, right = (
        np.minimum(starts + edge, n) - starts for starts, n in zip((rows, cols), shape, strict=True)
    )
    blank = int(((~written) * np.outer(down, right)).sum())
    whole = Painted(values, supervised, masked, written, edge, blank, 0)
    if supervised is None:
        return whole
    kept = sum(np.count_nonzero(used) for *_, used in whole.strips(edge if edge < LONGEST else LONGEST))
    return replace(whole, unsupervised=values.size - blank - int(kept))
