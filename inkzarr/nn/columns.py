"""Blocks of a stored volume in columns along z: what one leaves, a later one need not do again.

A column is up to 1024 x 1024 voxels wide and goes down through the volume. Its blocks are computed one after
the other, layer by layer; a window is run by the first one that it touches, see `inkzarr.nn.blocks`::

              x
           ┌──┬──┬──┐┌──┬──┬──┐
       y,z │ 1│ 2│ 3││ 1│ 2│ 3│     two columns, one layer of each: windows on the border of the columns
           ├──┼──┼──┤├──┼──┼──┤     are run in both, all others once
           │ 4│ 5│ 6││ 4│ 5│ 6│
           └──┴──┴──┘└──┴──┴──┘
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inkzarr.core.blending import windows_in_air
from inkzarr.core.geometry import Box, Grid, Windows, Zyx
from inkzarr.core.schema import CHUNK
from inkzarr.nn.aside import forget
from inkzarr.nn.blocks import PredictedBlock, Run, cells_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from inkzarr.core.job import Job

WIDTH = 1024
"""Of a column, in voxels: the wider, the fewer windows are run twice, and the more is set aside."""
EDGES = (1024, 512, 256, 128)
"""Of a block's cross-section on a GPU: what one leaves stays there."""
CPU_EDGES = (256, 128)
"""On a CPU, so that memory is the same for small volumes and large ones."""


class Foreseen(NamedTuple):
    """What blocks take: windows to run, without those known to lie in air, and bytes to read."""

    windows: int
    nbytes: int


def _touched(windows: Windows, run: np.ndarray, first: Zyx, grid: Grid, cells: Box) -> np.ndarray:
    """Which cells of a grid any window touches of those that `run` tells, which begins at window `first`."""
    for axis in range(run.ndim):
        parts = []
        for number in range(cells.start[axis], cells.stop[axis]):
            at = Zyx(*(number if a == axis else n for a, n in enumerate(cells.start)))
            touching = windows.touching(grid.box(at))
            ends = (max(0, end[axis] - first[axis]) for end in (touching.start, touching.stop))
            parts.append(run[(slice(None),) * axis + (slice(*ends),)].any(axis))
        run = np.stack(parts, axis)
    return run


@dataclass(frozen=True)
class Columns:
    """The block function of a stored volume.

    Parameters
    ----------
    run : Run
        What all blocks share.
    region : Box
        What is predicted.
    block : Zyx
        The size of a block, in voxels.
    """

    run: Run
    region: Box
    block: Zyx = Zyx(CHUNK, CHUNK, CHUNK)

    @cached_property
    def _blocks(self) -> Grid:
        return Grid(self.run.stored.shape, self.block)

    @cached_property
    def columns(self) -> Grid:
        """The volume in columns, each of as many blocks side by side as make up to `WIDTH` voxels."""
        depth, *others = self.run.stored.shape
        even = [-(-n // -(-n // WIDTH)) for n in others]
        return Grid(
            self.run.stored.shape,
            Zyx(depth, *(-(-n // b) * b for n, b in zip(even, self.block[1:], strict=True))),
        )

    def column(self, block: Box) -> Box:
        """The part of a block's column that is predicted."""
        return self.columns.box(self.columns.cells(block).start).clip(self.region)

    @cached_property
    def air_windows(self) -> np.ndarray:
        """Which windows lie in air, as far as can be told without reading; bool, of the windows' counts."""
        return windows_in_air(
            self.run.windows, self.run.stored.may_exceed(self.run.air), self.run.stored.chunks
        )

    @cached_property
    def _held(self) -> np.ndarray:
        """Which blocks may hold anything; bool, of the grid of blocks."""
        return _touched(self.run.windows, ~self.air_windows, Zyx(0, 0, 0), self._blocks, self._blocks.cells())

    @cached_property
    def _lasts(self) -> set[Zyx]:
        """The last block of each column that may hold anything, in cells of the grid of blocks."""
        found = set()
        for index in self.columns.indices(self.region):
            cells = self._blocks.cells(self.columns.box(index).clip(self.region))
            held = np.argwhere(self._held[cells.slices])
            found |= {Zyx(*(int(a + n) for a, n in zip(cells.start, end, strict=True))) for end in held[-1:]}
        return found

    def holds(self, block: Box) -> bool:
        """Whether a block may hold anything: not all its windows are known to lie in air."""
        (z, y, x), (depth, height, width) = block.start, self.block
        return bool(self._held[z // depth, y // height, x // width])

    def narrowed(self, block: Box) -> PredictedBlock:
        """The function of one block, which knows its windows and the blocks that come after it."""
        touching, column = self.run.windows.touching(block), self.column(block)
        lies = self.air_windows[touching.slices].ravel()
        windows = tuple(index for index, air in zip(touching.indices(), lies, strict=True) if not air)
        ahead = Box(block.start, self.run.windows.reach(block).stop).clip(column)
        others = (self._blocks.box(index).clip(self.region) for index in self._blocks.indices(ahead))
        later = tuple(box for box in others if box != block and self.holds(box))
        last = self._blocks.cells(block).start in self._lasts
        return PredictedBlock(self.run, column, last, windows, later)

    def __call__(self, block: Box) -> np.ndarray:
        """Predict one block; uint8, round(255 * probability)."""
        return self.narrowed(block)(block)

    @property
    def over(self) -> Callable[[], None]:
        """What every process calls in the end."""
        return partial(forget, self.run.name)

    def work(self, block: Box) -> int:
        """How many windows a block runs where all of its column are computed."""
        touching, column, stride = (
            self.run.windows.touching(block),
            self.column(block),
            self.run.windows.stride,
        )
        axes = zip(block.start, column.start, stride, touching.start, touching.stop, strict=True)
        firsts = (max(first, -(-a // s)) if a > c else first for a, c, s, first, _ in axes)
        return math.prod(max(0, last - first) for first, last in zip(firsts, touching.stop, strict=True))

    @property
    def redundancy(self) -> float:
        """How often a window is run on the whole: once in each column that it touches."""
        columns = (self.columns.box(index).clip(self.region) for index in self.columns.indices(self.region))
        run = sum(self.run.windows.touching(column).shape.volume for column in columns)
        return run / self.run.windows.touching(self.region).shape.volume

    def foresee(self, job: Job, boxes: list[Box]) -> Foreseen:
        """What blocks take where these and no others are computed; some more, where others are done already.

        A window on the border to a block that is done may touch two of these neither of which begins before
        the other along every axis: both run it.
        """
        windows = nbytes = 0
        cells = cells_of(self.run.stored)
        for chain in job.chains(boxes):
            column = self.column(job.inner(chain[0]))
            runs, reads = self.run.windows.touching(column), cells.cells(self.run.windows.reach(column))
            run = ~self.air_windows[runs.slices]
            if len(chain) < np.count_nonzero(self._held[self._blocks.cells(column).slices]):
                left = np.zeros(runs.shape, bool)
                for block in map(job.inner, chain):
                    left[self.run.windows.touching(block).within(runs)] = True
                run &= left
            read = _touched(self.run.windows, run, runs.start, cells, reads)
            windows += int(np.count_nonzero(run))
            ends = zip(reads.start, reads.stop, cells.cell, cells.shape, strict=True)
            z, y, x = (np.diff(np.minimum(np.arange(a, b + 1) * c, n)) for a, b, c, n in ends)
            nbytes += int((read * z[:, None, None] * y[:, None] * x).sum()) * self.run.stored.dtype.itemsize
        return Foreseen(windows, nbytes)

    def seconds_a_window(self) -> float:
        """Time of one window on the device, after one to warm up; of a CPU the smallest one does for that."""
        engine, window = self.run.engine, self.run.windows.window
        least = engine.multiples if engine.device.type == "cpu" else window
        for shape in (least, window):
            batch = [engine.upload(np.ones(shape, self.run.stored.dtype))] * engine.batch
            began = time.perf_counter()
            engine.probabilities(batch, self.run.stored.dtype)[0].sum().item()
        return (time.perf_counter() - began) / engine.batch

    def widest(self, memory: int) -> Zyx:
        """A layer of chunks as wide as one block in flight may be."""
        for most in CPU_EDGES if self.run.engine.device.type == "cpu" else EDGES:
            y, x = (-(-n // -(-n // most)) for n in self.run.stored.shape[1:])
            block = Zyx(CHUNK, y, x)
            if self.block_bytes(block) + self.shared_bytes <= memory:
                break
        return block

    @property
    def shared_bytes(self) -> int:
        """Memory that all blocks share: the network's."""
        return self.run.engine.batch * self.run.engine.window_bytes(self.run.windows.window)

    def block_bytes(self, block: Zyx) -> int:
        """Memory of a block: its sums and those it leaves, what it reads, twice, and two results, twice.

        The second one is the block before, which is being written.
        """
        low, high = zip(*self.run.windows.halos(block), strict=True)

        def volume(*more: tuple[int, ...]) -> int:
            return math.prod(map(min, self.run.stored.shape, map(sum, zip(block, *more, strict=True))))

        seen = volume(low, high)
        read = max(seen, cells_of(self.run.stored).cell.volume)
        return 4 * volume(high) + (seen + read) * self.run.stored.dtype.itemsize + 4 * volume()

    @property
    def set_aside(self) -> int:
        """Bytes of the temporary folder that a column takes, about.

        Sums for the layer below, the row beside and the block beside; cells for the layer below.
        """
        if self.run.engine.device.type != "cpu" or self.columns.cell == self._blocks.cell:
            return 0
        (_, z), (_, y), (_, x) = halos = self.run.windows.halos(self.block)
        width, block = self.columns.cell, self.block
        row = width.x + width.x // block.x * x
        sums = z * (width.y + width.y // block.y * y) * row + block.z * (y * row + block.y * x)
        stored = self.run.stored
        beside = zip(width[1:], stored.shape[1:], halos[1:], strict=True)
        seen = (z, *(min(w, n) + sum(halo) for w, n, halo in beside))
        voxels = math.prod(-(-n // cell) * cell for n, cell in zip(seen, cells_of(stored).cell, strict=True))
        return 4 * sums + voxels * stored.dtype.itemsize
