"""Which tiles of which segments vote into which cell of a volume: the points of all segments, bucketed.

A bucket holds tiles of 64 x 64 pixels by their place on the segment, with their painted values; the points
are read again from the surface when a block is computed, so that nothing of their size is ever stored::

    segment   +----+----+----+         volume    +-------+-------+
              | t0 | t1 | t2 |  ---------------> | t0 t1 | t1 t2 |   cells of one chunk
              +----+----+----+                   +-------+-------+
"""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.cells import mark_cells
from inkzarr.core.errors import DiskError, InputError
from inkzarr.core.geometry import Box, Grid
from inkzarr.core.surface import Surface
from inkzarr.core.voting import reaches_of, side_by_side

TILE = 64

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """How pixels become votes.

    Parameters
    ----------
    depth : float
        Voxels on each side of the surface, a multiple of 0.5.
    box : bool
        Whether the footprint is the box, else the ray.
    grid : Grid
        The volume cut into cells of one chunk.
    """

    depth: float
    box: bool
    grid: Grid

    @property
    def footprint(self) -> tuple[float, bool]:
        """For the compiled loops."""
        return float(self.depth), self.box


@dataclass(frozen=True)
class Strip:
    """A row of painted tiles that is scanned at once.

    Parameters
    ----------
    segment : int
        Number of the segment.
    surface : Surface
        Where the pixels lie.
    row, col : int
        The first pixel; multiples of the tile.
    values : numpy.ndarray of uint8, (rows, columns)
        Painted values.
    used : numpy.ndarray of bool, same shape
        Which pixels are painted and supervised.
    there : numpy.ndarray of bool or None, same shape
        Which pixels a mask leaves a place, where `surface` does not know it.
    """

    segment: int
    surface: Surface
    row: int
    col: int
    values: Bytes
    used: Bools
    there: Bools | None = None


@dataclass(frozen=True)
class Scan:
    """What was found in a strip.

    Parameters
    ----------
    segment : int
        Number of the segment.
    tiles : numpy.ndarray of int64, (n, 4)
        First row and column, rows, columns; only tiles that vote.
    packed : tuple of bytes
        Values and use of each tile, compressed.
    pairs : numpy.ndarray of int64, (m, 2)
        A tile's number in `tiles`, and a cell's number in C order.
    used, invalid, outside, dropped : int
        Pixels that vote; that have no place; that lie outside the volume as a whole; voxels outside.
    """

    segment: int
    tiles: Ints
    packed: tuple[bytes, ...]
    pairs: Ints
    used: int
    invalid: int
    outside: int
    dropped: int


@dataclass
class PixelCount:
    """What became of a segment's pixels.

    Parameters
    ----------
    used : int
        Pixels that vote.
    blank, unsupervised, invalid, outside : int
        Pixels in unpainted blocks; off the supervision mask; without a place; wholly outside the volume.
    dropped_voxels : int
        Voxels of footprints that lie outside the volume.
    """

    used: int = 0
    blank: int = 0
    unsupervised: int = 0
    invalid: int = 0
    outside: int = 0
    dropped_voxels: int = 0

    def add(self, scan: Scan) -> None:
        """Count a strip."""
        self.used += scan.used
        self.invalid += scan.invalid
        self.outside += scan.outside
        self.dropped_voxels += scan.dropped


def refuse_no_votes(pixels: list[PixelCount]) -> None:
    """Refuse segments of which no pixel votes.

    Raises
    ------
    InputError
        Saying what became of the pixels.
    """
    if any(count.used for count in pixels):
        return
    total = {f.name: sum(getattr(count, f.name) for count in pixels) for f in fields(PixelCount)}
    msg = (
        f"no pixel of {len(pixels)} segments votes "
        f"({total['blank']} blank, {total['unsupervised']} unsupervised, "
        f"{total['invalid']} without a place, {total['outside']} outside the volume): "
        "check the labels, the masks and the volume's shape, or use --skip-blank 0"
    )
    raise InputError(msg)


def scan_strip(strip: Strip, rule: Rule) -> Scan:
    """Read a strip's points, and say which cells each of its tiles votes into."""
    height, width = strip.used.shape
    rows, cols = slice(strip.row, strip.row + height), slice(strip.col, strip.col + width)
    points, normals, valid = strip.surface.tile(rows, cols)
    valid = valid if strip.there is None else valid & strip.there
    used = strip.used & valid
    shape, cell = tuple(rule.grid.shape), tuple(rule.grid.cell)
    pixels = (side_by_side(points), side_by_side(normals), used, rule.footprint)
    reaches = reaches_of(*pixels)
    room = 8 * (-(-width // TILE)) + 64
    while True:
        found = np.empty((room, 2), np.int64)
        pairs, dropped, outside = mark_cells(*pixels, shape, cell, TILE, reaches, found)
        if pairs <= room:
            break
        room = pairs
    numbers, which = np.unique(found[:pairs, 0], return_inverse=True)
    tiles, packed = np.empty((len(numbers), 4), np.int64), []
    for at, number in enumerate(numbers.tolist()):
        part = slice(number * TILE, min(width, (number + 1) * TILE))
        tiles[at] = strip.row, strip.col + part.start, height, part.stop - part.start
        packed.append(_pack(strip.values[:, part], used[:, part]))
    inside = np.stack([which.reshape(-1), found[:pairs, 1]], -1)
    voting, invalid = np.count_nonzero(used), np.count_nonzero(strip.used & ~valid)
    return Scan(
        strip.segment,
        tiles,
        tuple(packed),
        inside,
        int(voting - outside),
        int(invalid),
        int(outside),
        int(dropped),
    )


class Tile(NamedTuple):
    """One tile that votes into a block.

    Parameters
    ----------
    surface : Surface
        Without its mask.
    segment : int
        Number of the segment.
    row, col, rows, cols : int
        Its pixels.
    packed : bytes
        Values and use.
    """

    surface: Surface
    segment: int
    row: int
    col: int
    rows: int
    cols: int
    packed: bytes


@contextlib.contextmanager
def _told_of_the_folder() -> Iterator[None]:
    """An error of the temporary folder, in a line."""
    try:
        yield
    except OSError as error:
        msg = (
            f"painted pixels cannot be set aside in {tempfile.gettempdir()} ({error.strerror}): make room "
            "there, or set TMPDIR to another folder"
        )
        raise DiskError(msg) from error


@dataclass
class Buckets:
    """The tiles of all segments by cell; values lie in a temporary file.

    Parameters
    ----------
    rule : Rule
        How pixels become votes.
    surfaces : list of Surface
        Of the segments, by number.
    """

    rule: Rule
    surfaces: list[Surface]
    _tiles: list[Ints] = field(default_factory=list)
    _pairs: list[Ints] = field(default_factory=list)
    _count: int = 0
    _end: int = 0

    def __post_init__(self) -> None:
        with _told_of_the_folder():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the buckets

    def add(self, scan: Scan) -> None:
        """Take in one strip; strips come in the order of segments, rows and columns."""
        if not len(scan.tiles):
            return
        sizes = np.array([len(one) for one in scan.packed], np.int64)
        starts = self._end + np.cumsum(sizes) - sizes
        with _told_of_the_folder():
            self._file.write(b"".join(scan.packed))
        self._end += int(sizes.sum())
        segment = np.full(len(sizes), scan.segment, np.int64)
        self._tiles.append(np.column_stack([segment, scan.tiles, starts, sizes]))
        self._pairs.append(scan.pairs + np.array([self._count, 0]))
        self._count += len(sizes)

    def close(self) -> None:
        """Delete the temporary file."""
        with contextlib.suppress(OSError):  # what a full folder did not take is told already
            self._file.close()

    def sort(self) -> None:
        """Put the tiles of each cell together, once all strips are in."""
        self._table = np.concatenate([np.empty((0, 7), np.int64), *self._tiles])
        pairs = np.concatenate([np.empty((0, 2), np.int64), *self._pairs])
        pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
        self._members, self._cells = pairs[:, 0].copy(), pairs[:, 1].copy()
        self._tiles, self._pairs = [], []
        self._touched = np.zeros(self.rule.grid.counts, np.bool_)
        self._touched.reshape(-1)[self._cells] = True
        with _told_of_the_folder():
            self._file.flush()

    def holds(self, box: Box) -> bool:
        """Whether any cell of a box gets a vote."""
        return bool(self._touched[self.rule.grid.cells(box).slices].any())

    def tiles(self, box: Box) -> Iterator[Tile]:
        """The tiles that vote into a box of whole cells, in the order of segments, rows and columns."""
        grid = self.rule.grid
        cells = [(index.z * grid.counts.y + index.y) * grid.counts.x + index.x for index in grid.indices(box)]
        ends = np.searchsorted(self._cells, [cells, [cell + 1 for cell in cells]]).T.tolist()
        for tile in sorted({tile for first, last in ends for tile in self._members[first:last].tolist()}):
            segment, row, col, rows, cols, start, size = self._table[tile].tolist()
            self._file.seek(start)
            packed, surface = self._file.read(size), self.surfaces[segment]
            yield Tile(surface, segment, row, col, rows, cols, packed)


def _pack(values: Bytes, used: Bools) -> bytes:
    return zlib.compress(values.tobytes() + np.packbits(used).tobytes(), 1)
