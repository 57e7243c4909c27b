"""What a ledger holds of chunks and blocks, and the table of all chunks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import google_crc32c
import numpy as np

from inkzarr.core.cut import Cut
from inkzarr.core.geometry import Box, Grid, Zyx


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What one chunk holds.

    Parameters
    ----------
    crc32c : int
        Of the voxels' bytes in C order, before compression.
    nonzero : int
        Voxels that are not 0.
    low, high : float
        Smallest and largest voxel; nan where the chunk holds a nan.
    upper : int or None
        Voxels in the upper half of an unsigned dtype's range: of ``ink``, those that are ink; None for other
        dtypes, and where an earlier version measured the chunk.
    """

    crc32c: int
    nonzero: int
    low: float
    high: float
    upper: int | None = None

    @classmethod
    def of(cls, voxels: np.ndarray) -> ChunkRecord:
        """Measure the voxels of one chunk (any shape and dtype)."""
        packed = np.ascontiguousarray(voxels).view()
        packed.flags.writeable = False  # the checksum takes no other, and copying costs more than it
        high, nonzero, upper = packed.max().item(), int(np.count_nonzero(packed)), None
        natural = packed.dtype.kind == "u"
        low = 0 if natural and nonzero < packed.size else packed.min().item()
        if natural:
            half = 1 << (8 * packed.itemsize - 1)
            upper = 0 if high < half else int(np.count_nonzero(packed >= half))
        return cls(google_crc32c.value(packed), nonzero, low, high, upper)

    def to_json(self) -> list[float]:
        """What a line holds of it."""
        told = [self.crc32c, self.nonzero, self.low, self.high]
        return told if self.upper is None else [*told, self.upper]


@dataclass(frozen=True)
class BlockRecord:
    """One finished block, and the chunks in it.

    Parameters
    ----------
    start, stop : Zyx
        The block's box in voxels, z y x.
    nbytes : int
        Bytes of its voxels, before compression.
    chunks : tuple of ChunkRecord
        In C order over the block.
    tally : dict of str to int
        What the stage counted in the block beside its voxels.
    """

    start: Zyx
    stop: Zyx
    nbytes: int
    chunks: tuple[ChunkRecord, ...]
    tally: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, box: Box, voxels: np.ndarray | Cut, chunks: Zyx, tally: dict[str, int] | None = None
    ) -> BlockRecord:
        """Measure a block's `voxels`, of the shape of `box`, chunk by chunk."""
        inner = Grid(box.shape, chunks)
        records = tuple(ChunkRecord.of(voxels[inner.box(index).slices]) for index in inner.indices())
        return cls(box.start, box.stop, voxels.nbytes, records, tally or {})

    @property
    def box(self) -> Box:
        """The block's voxels."""
        return Box(self.start, self.stop)

    @property
    def nonzero(self) -> int:
        """Voxels that are not 0."""
        return sum(chunk.nonzero for chunk in self.chunks)

    def to_json(self) -> str:
        """One line."""
        chunks = [chunk.to_json() for chunk in self.chunks]
        summary = {
            "low": min(c.low for c in self.chunks),
            "high": max(c.high for c in self.chunks),
            "nonzero": self.nonzero,
        }
        head = {"start": self.start, "stop": self.stop, "nbytes": self.nbytes}
        told = {"tally": self.tally} if self.tally else {}
        return json.dumps({**head, **summary, **told, "chunks": chunks}, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> BlockRecord:
        """Read a line back."""
        data = json.loads(line)
        chunks = tuple(ChunkRecord(*c) for c in data["chunks"])
        tally = data.get("tally", {})
        return cls(Zyx(*data["start"]), Zyx(*data["stop"]), data["nbytes"], chunks, tally)


@dataclass
class ChunkTable:
    """What the ledger knows of every chunk: arrays of the chunk grid's shape.

    Parameters
    ----------
    grid : Grid
        Of the array's chunks.
    done : numpy.ndarray
        bool; whether the chunk is recorded.
    crc32c, nonzero : numpy.ndarray
        uint32 and int64; 0 where not done.
    high : numpy.ndarray
        float64, largest voxel; infinite where not done.
    upper : numpy.ndarray
        int64, voxels in the upper half of the dtype's range; -1 where that is not known.
    """

    grid: Grid
    done: np.ndarray
    crc32c: np.ndarray
    nonzero: np.ndarray
    high: np.ndarray
    upper: np.ndarray

    @classmethod
    def empty(cls, grid: Grid) -> ChunkTable:
        """Nothing done."""
        n = grid.counts
        infinite, unknown = np.full(n, np.inf), np.full(n, -1, np.int64)
        return cls(grid, np.zeros(n, bool), np.zeros(n, np.uint32), np.zeros(n, np.int64), infinite, unknown)

    def put(self, box: Box, record: BlockRecord) -> None:
        """Enter the chunks of one block."""
        cells = self.grid.cells(box)
        shape = cells.shape
        self.done[cells.slices] = True
        self.crc32c[cells.slices] = np.reshape([c.crc32c for c in record.chunks], shape)
        self.nonzero[cells.slices] = np.reshape([c.nonzero for c in record.chunks], shape)
        self.high[cells.slices] = np.reshape([c.high for c in record.chunks], shape)
        upper = [-1 if c.upper is None else c.upper for c in record.chunks]
        self.upper[cells.slices] = np.reshape(upper, shape)
