"""Counting the votes for a block: its tiles' points are read again, and each cell counts by itself."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.buckets import TILE, Buckets, Rule, Tile
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Computed
from inkzarr.core.voting import GROUP_SHIFT, finish, settle, vote

BATCH = 1 << 19
"""Pixels whose points a block holds at once."""
SPARES = 24
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
    buckets : Buckets or None
        Sorted; None where no block is left to do.
    """

    buckets: Buckets | None

    def narrowed(self, box: Box) -> VotedBlock:
        """The function for one block alone, with the values of its tiles in it."""
        if self.buckets is None:
            msg = f"block {box} was not scanned"
            raise RuntimeError(msg)
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
        for cell, votes, conflicts in count_votes(list(self.tiles), box, self.rule):
            place = cell.within(box)
            labelled, painted, cast = finish(votes, ink[place], count[place])
            for name, n in zip(tally, (labelled, painted, conflicts, cast), strict=True):
                tally[name] += int(n)
        return Computed((ink, count), tally)


@dataclass
class Ballot:
    """The votes for the voxels of one cell.

    Parameters
    ----------
    box : Box
        The cell.
    shared : bool
        Whether several segments vote.
    """

    box: Box
    shared: bool

    def __post_init__(self) -> None:
        size, others = self.box.shape.volume, self.box.shape.volume if self.shared else 0
        self._votes, self._total = _spare.take(size, np.int64), _spare.take(others, np.int64)
        self._turn = _spare.take(-(-others >> GROUP_SHIFT), np.int32)

    def cast(self, tile: PointTile, who: int, rule: Rule) -> None:
        """Count the votes of a tile; those of one segment come together."""
        ballot = (self._votes, self._total, self._turn, who if self.shared else 0)
        start, shape = tuple(self.box.start), tuple(self.box.shape)
        vote(tile.points, tile.normals, tile.values, tile.used, rule.footprint, start, shape, ballot)

    def close(self) -> tuple[Ints, int]:
        """The votes of all segments, z y x, to be cleared; and how many voxels they disagree about."""
        if not self.shared:
            return self._votes.reshape(self.box.shape), 0
        conflicts = settle(self._votes, self._total, self._turn)
        return self._total.reshape(self.box.shape), int(conflicts)

    def give_back(self) -> None:
        """Let another cell have the arrays, once the votes are cleared."""
        _spare.give(self._votes, self._total, self._turn)


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


def count_votes(tiles: list[Tile], box: Box, rule: Rule) -> Iterator[tuple[Box, Ints, int]]:
    """The votes for the cells of a box: each cell's box, its votes, z y x, and its conflicts.

    The votes must be cleared before the next cell is asked for, as `finish` does.
    """
    voters: dict[int, set[int]] = {}
    for tile in tiles:
        for cell in tile.cells:
            voters.setdefault(cell, set()).add(tile.segment)
    counts = rule.grid.counts
    boxes = {cell: rule.grid.box(Zyx(*map(int, np.unravel_index(cell, counts)))) for cell in voters}
    ballots = {cell: Ballot(boxes[cell].clip(box), len(voters[cell]) > 1) for cell in sorted(voters)}
    who = {segment: at for at, segment in enumerate(sorted({tile.segment for tile in tiles}), start=1)}
    for batch in _batches(tiles):
        for run in _runs(batch):
            points = _read(run)
            for cell in sorted({cell for tile in run for cell in tile.cells}):
                ballots[cell].cast(points, who[run[0].segment], rule)
    for ballot in ballots.values():
        votes, conflicts = ballot.close()
        yield ballot.box, votes, conflicts
        ballot.give_back()


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
