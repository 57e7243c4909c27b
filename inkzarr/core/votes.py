"""Counting the votes for a block: its tiles' points are read again, and each cell counts by itself."""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.buckets import TILE, Buckets, Rule, Tile
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Computed
from inkzarr.core.voting import GROUP_SHIFT, MOST_PIXELS, finish, padded, settle, vote

BATCH = 1 << 19
"""Pixels whose points a block holds at once."""
SPARES = 32
"""Arrays that a thread keeps: those of a block of 2 x 2 x 2 cells."""

TALLY = ("labelled", "ink", "conflicts", "votes")
"""What each block counts; voxels with a vote, those that are ink, those where segments disagree, votes."""

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelBlocks:
    """The block function's source: knows the tiles of every block, and gives a task those of its own.

    Parameters
    ----------
    buckets : Buckets
        Sorted.
    """

    buckets: Buckets

    def narrowed(self, box: Box) -> VotedBlock:
        """The function for one block alone, with the values of its tiles in it."""
        return VotedBlock(tuple(self.buckets.tiles(box)), self.buckets.rule)

    def __call__(self, box: Box) -> Computed:
        """Compute one block."""
        return self.narrowed(box)(box)


@dataclass(frozen=True)
class VotedBlock:
    """Counts the votes for one block.

    Parameters
    ----------
    tiles : tuple of Tile
        All that vote into the block.
    rule : Rule
        How pixels become votes.
    """

    tiles: tuple[Tile, ...]
    rule: Rule

    def __call__(self, box: Box) -> Computed:
        """``ink`` (uint8) and ``count`` (uint16) of `box`."""
        ink, count = np.zeros(box.shape, np.uint8), np.zeros(box.shape, np.uint16)
        tally = dict.fromkeys(TALLY, 0)
        for ballot in count_votes(list(self.tiles), box, self.rule):
            place = ballot.box.within(box)
            for name, n in zip(TALLY, ballot.close(ink[place], count[place]), strict=True):
                tally[name] += n
        return Computed((ink, count), tally)


@dataclass
class Ballot:
    """The votes for the voxels of one cell.

    ::

        votes  of the segment that votes now       fresh    groups of 32 voxels of a row that hold any
        total  of the segments before it           settled  groups that hold any

    `votes` and `total` hold a number a voxel, see `inkzarr.core.voting.COUNT_SHIFT`, and rows of whole
    groups; where only one segment votes, `total` is empty. A segment of more than 67 million pixels in
    one cell is settled now and then: of it alone, the conflicts may be miscounted.

    Parameters
    ----------
    box : Box
        The cell.
    shared : bool
        Whether several segments vote.
    pixels : int
        How many may vote, at most.
    """

    box: Box
    shared: bool
    pixels: int

    def __post_init__(self) -> None:
        self._cast = self._who = 0
        z, y, x = self.box.shape
        size = z * y * padded(x)
        several = size if self.shared or self.pixels > MOST_PIXELS else 0
        self._votes, self._total = _spare.take(size, np.int64), _spare.take(several, np.int64)
        groups = size >> GROUP_SHIFT
        self._fresh, self._settled = _spare.take(groups, np.bool_), _spare.take(groups, np.bool_)

    def cast(self, tile: PointTile, columns: Ints, who: int, rule: Rule) -> None:
        """Count the votes of some columns of a tile; those of one segment come together."""
        pixels = len(tile.used) * int((columns[:, 1] - columns[:, 0]).sum())
        if self._who not in (0, who) or self._cast + pixels > MOST_PIXELS:
            self._settle()
        self._who, self._cast = who, self._cast + pixels
        start, shape = tuple(self.box.start), tuple(self.box.shape)
        vote(*tile, columns, rule.footprint, start, shape, self._votes, self._fresh)

    def _settle(self) -> None:
        settle(self._votes, self._total, self._fresh, self._settled)
        self._cast = 0

    def close(self, ink: Bytes, count: NDArray[np.uint16]) -> tuple[int, ...]:
        """Fill in the stored arrays of the cell, 0 on entry; what `TALLY` names."""
        if len(self._total):
            self._settle()
            found = finish(self._total, self._settled, ink, count)
        else:
            found = finish(self._votes, self._fresh, ink, count)
        _spare.give(self._votes, self._total, self._fresh, self._settled)
        labelled, painted, conflicts, cast = map(int, found)
        return labelled, painted, conflicts if self.shared else 0, cast


class _Spare(threading.local):
    """Arrays of zeros that were used and cleared: making new ones costs as much as counting."""

    def __init__(self) -> None:
        self._held: list[NDArray[Any]] = []

    def take(self, size: int, dtype: type) -> NDArray[Any]:
        """An array of zeros, in C order."""
        for at, array in enumerate(self._held):
            if len(array) == size and array.dtype == dtype:
                return self._held.pop(at)
        return np.zeros(size, dtype)

    def give(self, *arrays: NDArray[Any]) -> None:
        """Take back arrays that are zeros again."""
        self._held = [*self._held, *(array for array in arrays if len(array))][-SPARES:]


_spare = _Spare()


class PointTile(NamedTuple):
    """Pixels with their places and values, rows and columns.

    Parameters
    ----------
    points, normals : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x.
    values, used : numpy.ndarray of uint8 and bool, (rows, columns)
        Painted values, and which pixels vote.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    values: Bytes
    used: Bools


class Casting(NamedTuple):
    """What a tile, or several side by side, cast into one cell.

    Parameters
    ----------
    cell : int
        Its number in C order.
    points : PointTile
        The pixels.
    columns : numpy.ndarray of int64, (n, 2)
        First column and one past the last of the parts that may vote into the cell.
    who : int
        Number of the segment, at least 1.
    """

    cell: int
    points: PointTile
    columns: Ints
    who: int


def count_votes(tiles: list[Tile], box: Box, rule: Rule) -> Iterator[Ballot]:
    """The votes for the cells of a box, each to be closed before the next is asked for."""
    ballots = open_ballots(tiles, box, rule)
    for cell, points, columns, who in castings(tiles):
        ballots[cell].cast(points, columns, who, rule)
    yield from ballots.values()


def open_ballots(tiles: list[Tile], box: Box, rule: Rule) -> dict[int, Ballot]:
    """Ballots for the cells of a box that its tiles vote into, by the cell's number."""
    voters: dict[int, set[int]] = {}
    pixels: Counter[int] = Counter()
    for tile in tiles:
        for cell in tile.cells:
            voters.setdefault(cell, set()).add(tile.segment)
            pixels[cell] += tile.rows * tile.cols
    counts = rule.grid.counts
    boxes = {cell: rule.grid.box(Zyx(*map(int, np.unravel_index(cell, counts)))) for cell in voters}
    return {
        cell: Ballot(boxes[cell].clip(box), len(voters[cell]) > 1, pixels[cell]) for cell in sorted(voters)
    }


def castings(tiles: list[Tile]) -> Iterator[Casting]:
    """What the tiles of a box cast; their points are read as they are asked for."""
    who = {segment: at for at, segment in enumerate(sorted({tile.segment for tile in tiles}), start=1)}
    for batch in _batches(tiles):
        for run in _runs(batch):
            points = _read(run)
            for cell, columns in _columns(run).items():
                yield Casting(cell, points, columns, who[run[0].segment])


def _columns(run: list[Tile]) -> dict[int, Ints]:
    """By cell, which columns of a run vote into it: first ones, and those past the last, side by side."""
    parts: dict[int, list[list[int]]] = {}
    for tile in run:
        first = tile.col - run[0].col
        for cell in tile.cells:
            of = parts.setdefault(cell, [])
            if of and of[-1][1] == first:
                of[-1][1] += tile.cols
            else:
                of.append([first, first + tile.cols])
    return {cell: np.array(of, np.int64) for cell, of in parts.items()}


def _batches(tiles: list[Tile]) -> Iterator[list[Tile]]:
    for at in range(0, len(tiles), BATCH // TILE**2):
        yield tiles[at : at + BATCH // TILE**2]


def _runs(tiles: list[Tile]) -> Iterator[list[Tile]]:
    """Tiles side by side, which are read at once."""
    run: list[Tile] = []
    for tile in tiles:
        last = run[-1] if run else tile
        if run and (last.segment, last.row, last.col + last.cols) != (tile.segment, tile.row, tile.col):
            yield run
            run = []
        run.append(tile)
    if run:
        yield run


def _read(run: list[Tile]) -> PointTile:
    first, last = run[0], run[-1]
    rows, cols = slice(first.row, first.row + first.rows), slice(first.col, last.col + last.cols)
    points, normals, _ = first.surface.tile(rows, cols)
    parts = [_unpack(tile) for tile in run]
    values, used = (np.concatenate(planes, axis=1) for planes in zip(*parts, strict=True))
    return PointTile(points, normals, values, used)


def _unpack(tile: Tile) -> tuple[Bytes, Bools]:
    shape, size = (tile.rows, tile.cols), tile.rows * tile.cols
    data = np.frombuffer(zlib.decompress(tile.packed), np.uint8)
    return data[:size].reshape(shape), np.unpackbits(data[size:], count=size).view(np.bool_).reshape(shape)
