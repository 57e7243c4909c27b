"""Counting the votes for a block: its tiles' points are read again, segment by segment."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.bricks import EDGE, NARROW, WIDE, Bricks, Layout, finish, settle
from inkzarr.core.buckets import TILE, Buckets, Rule, Tile
from inkzarr.core.cut import Cut
from inkzarr.core.geometry import Box
from inkzarr.core.job import Computed
from inkzarr.core.voting import SIDE, side_by_side, vote

BATCH = 1 << 15
"""Pixels whose points a block holds at once."""
MOST_PIXELS = WIDE.most
"""So many may vote before their votes are settled."""

TALLY = ("labelled", "ink", "conflicts", "votes")
"""What each block counts; voxels with a vote, those that are ink, those where segments disagree, votes."""

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


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

    Numbers of 32 bits hold the votes of nearly every block, and are half as much to move as those of 64.
    A block in which a voxel gets too many for them is counted again.

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
        with suppress(OverflowError):  # whose traceback would hold the spoilt votes
            return count_votes(self.tiles, box, self.rule, NARROW)
        return count_votes(self.tiles, box, self.rule, WIDE)


def count_votes(tiles: tuple[Tile, ...], box: Box, rule: Rule, layout: Layout) -> Computed:
    """``ink`` and ``count`` of a block, and its tally.

    Raises
    ------
    OverflowError
        A voxel may have got more votes than `layout` holds.
    """
    ink, count = (Cut.empty(box.shape, np.dtype(kind), rule.grid.cell) for kind in (np.uint8, np.uint16))
    ballot = Ballot(box, layout, len({tile.segment for tile in tiles}) > 1)
    for points, segment in point_tiles(tiles):
        ballot.cast(points, segment, rule)
    return Computed((ink, count), dict(zip(TALLY, ballot.close(ink, count), strict=True)))


@dataclass
class Ballot:
    """The votes for the voxels of one block.

    A segment whose tiles have more than 67 million pixels in one block is settled now and then: of it
    alone, the conflicts may be miscounted.

    Parameters
    ----------
    box : Box
        The block.
    layout : Layout
        What a voxel's number holds.
    shared : bool
        Whether several segments vote.
    """

    box: Box
    layout: Layout
    shared: bool

    def __post_init__(self) -> None:
        self._cast, self._who = 0, -1
        z, y, x = self.box.shape
        self._across = -(-y // EDGE), -(-x // EDGE)
        self._bricks = _spare.take(z * math.prod(self._across), self.layout.dtype)
        self._room = np.zeros(SIDE**3, self.layout.dtype)

    def cast(self, tile: PointTile, segment: int, rule: Rule) -> None:
        """Count the votes of some pixels; those of one segment come together.

        Raises
        ------
        OverflowError
            A voxel may have got more votes than its number holds: the ballot is spoilt.
        """
        if self._cast and (segment != self._who or self._cast + tile.used.size > MOST_PIXELS):
            self.settle()
        self._who, self._cast = segment, self._cast + tile.used.size
        points, normals = side_by_side(tile.points), side_by_side(tile.normals)
        pixels = (points, normals, tile.values, tile.used, rule.footprint)
        block = (tuple(self.box.start), tuple(self.box.shape))
        if vote(*pixels, *block, self.layout, self._bricks, self._room):
            raise OverflowError

    def settle(self) -> None:
        """Make the votes of the segment that voted last the block's.

        Raises
        ------
        OverflowError
            As `cast`.
        """
        if settle(self._bricks, self.layout) and self.layout != WIDE:
            raise OverflowError
        self._cast = 0

    def close(self, ink: Cut, count: Cut) -> tuple[int, ...]:
        """Fill in the stored arrays of the block, in chunks of whole bricks; what `TALLY` names.

        Raises
        ------
        OverflowError
            As `cast`.
        ValueError
            A chunk begins amid a brick.
        """
        if any(at % EDGE for start in ink.pieces for at in start[1:]):
            msg = f"chunks of {ink.shape} do not begin at multiples of {EDGE} voxels along y and x"
            raise ValueError(msg)
        self.settle()
        counted = [
            finish(self._bricks, self.layout, self._across, tuple(start), piece, count.pieces[start])
            for start, piece in ink.pieces.items()
        ]
        self._bricks.forget()
        _spare.give(self._bricks)
        labelled, painted, conflicts, cast = (sum(some) for some in zip(*counted, strict=True))
        return labelled, painted, conflicts if self.shared else 0, cast


class _Spare(threading.local):
    """The bricks of a thread's block before: memory that is new takes as long as counting."""

    def __init__(self) -> None:
        self._held: Bricks | None = None

    def take(self, size: int, dtype: np.dtype) -> Bricks:
        """Bricks without a vote, so many or more."""
        held, self._held = self._held, None
        if held is None or held.pool.dtype != dtype or len(held.mine) < size:
            return Bricks.room(size, dtype)
        return held

    def give(self, bricks: Bricks) -> None:
        """Take back what is finished."""
        self._held = bricks


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


def point_tiles(tiles: tuple[Tile, ...]) -> Iterator[tuple[PointTile, int]]:
    """Pixels of tiles, those that fill a rectangle together, and their segments; read when asked for."""
    for patch in _patches(tiles):
        yield _read(patch), patch[0].segment


def _patches(tiles: tuple[Tile, ...]) -> list[list[Tile]]:
    """Tiles that fill a rectangle, which are read at once; those of one segment come together."""
    rows = _joined([[tile] for tile in tiles], _beside)
    return _joined(sorted(rows, key=lambda run: (run[0].segment, *_columns(run), run[0].row)), _below)


def _joined(runs: list[list[Tile]], fits: Callable[[list[Tile], list[Tile]], bool]) -> list[list[Tile]]:
    """Each run together with those before it that it fits, as far as their points may be held at once."""
    joined: list[list[Tile]] = []
    for run in runs:
        if joined and fits(joined[-1], run) and len(joined[-1]) + len(run) <= BATCH // TILE**2:
            joined[-1] = joined[-1] + run
        else:
            joined.append(run)
    return joined


def _columns(run: list[Tile]) -> tuple[int, int]:
    return run[0].col, run[-1].col + run[-1].cols


def _beside(left: list[Tile], right: list[Tile]) -> bool:
    last, tile = left[-1], right[0]
    return (last.segment, last.row, last.col + last.cols) == (tile.segment, tile.row, tile.col)


def _below(over: list[Tile], run: list[Tile]) -> bool:
    last, tile = over[-1], run[0]
    where = (last.segment, last.row + last.rows, over[0].col, last.col + last.cols)
    return where == (tile.segment, tile.row, *_columns(run))


def _read(patch: list[Tile]) -> PointTile:
    first, last = patch[0], patch[-1]
    rows, cols = slice(first.row, last.row + last.rows), slice(first.col, last.col + last.cols)
    points, normals, _ = first.surface.tile(rows, cols)
    values, used = np.empty(points.shape[:2], np.uint8), np.empty(points.shape[:2], np.bool_)
    for tile in patch:
        row, col = tile.row - first.row, tile.col - first.col
        place = slice(row, row + tile.rows), slice(col, col + tile.cols)
        values[place], used[place] = _unpack(tile)
    return PointTile(points, normals, values, used)


def _unpack(tile: Tile) -> tuple[Bytes, Bools]:
    shape, size = (tile.rows, tile.cols), tile.rows * tile.cols
    data = np.frombuffer(zlib.decompress(tile.packed), np.uint8)
    return data[:size].reshape(shape), np.unpackbits(data[size:], count=size).view(np.bool_).reshape(shape)
