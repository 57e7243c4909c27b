r"""One block of a stored volume, given what earlier ones of its column left, leaves the same to later ones.

::

         ┌────────┬────────┐
         │ block  ├> later │    [====]  a window that touches several blocks is run by the first of them:
         ├───v────┼─\>─────┤            what it says of the others is summed up, and left to them
         │ later  │  later │
         └────────┴────────┘            the voxels around, which they will see, are kept in whole cells

What was left is a cache. A block that finds nothing, as another worker computed the one before, or the run
was taken up again, runs all windows that touch it, and its voxels are the same.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.schema import CHUNK
from inkzarr.nn.aside import Column, Part, aside
from inkzarr.nn.engine import cached_engine
from inkzarr.nn.sliding import Seen, predict_block
from inkzarr.nn.sums import Sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inkzarr.core.blending import Blend
    from inkzarr.core.geometry import Windows
    from inkzarr.core.volume import StoredVolume


PLANES = 4
"""Of sums, taken at a time."""


def cells_of(stored: StoredVolume) -> Grid:
    """The volume in cells that are read as a whole: its chunks, small ones put together, large ones cut."""
    return Grid(stored.shape, Zyx(*(CHUNK // c * c if c < CHUNK else CHUNK for c in stored.chunks)))


@dataclass(frozen=True)
class PredictedBlock:
    """The function of one block; picklable, the network is loaded once in each process.

    Parameters
    ----------
    stored : StoredVolume
        The scan.
    network : tuple
        Path of the checkpoint, axes, batch, device and dtype, as `cached_engine` takes them.
    windows : Windows
        Of the whole volume.
    blend : str
        ``gaussian`` or ``constant``.
    air : float
        A window whose voxels are all at most this is not run.
    run : str
        Tells what this run leaves from what others left.
    column : Zyx
        Where the block's column begins.
    touching : tuple of Zyx
        The windows that touch the block, in C order, without those known to lie in air.
    later : tuple of Box
        The later blocks of its column that they touch, and that may hold anything.
    """

    stored: StoredVolume
    network: tuple[str, str | None, int | None, str, str]
    windows: Windows
    blend: Blend
    air: float
    run: str
    column: Zyx
    touching: tuple[Zyx, ...]
    later: tuple[Box, ...]

    def __call__(self, block: Box) -> np.ndarray:
        """Predict the block; uint8, round(255 * probability)."""
        engine = cached_engine(*self.network)
        column = aside.column(self.run, self.column, in_file=engine.device.type == "cpu")
        box = self._around(block)
        room = column.borrow("sums", box.shape, np.int32) if engine.device.type == "cpu" else None
        sums = Sums(box, self.windows, self.blend, engine.device, room)
        known: set[Zyx] = set()
        for part in column.take(block.start):
            if known.isdisjoint(part.seen):  # else a window was run twice, after a failure or a restart
                known |= part.seen
                self._take(column, part, sums)
            if part.place is not None:
                column.shelf.drop(part.place)
        todo = [index for index in self.touching if index not in known]
        before = frozenset(sums.ran)
        seen = self._read(column, self._seen(todo, block), block)
        found = predict_block(block, todo, seen, sums, engine, air=self.air)
        for later in self.later:
            self._leave(column, later, sums, todo, sums.ran - before)
        if room is not None:
            sums.clear(block)
            column.give(sums=room)
        column.give(voxels=seen.voxels)
        aside.tidy(self.run, self.column)
        return found

    def _take(self, column: Column, part: Part, sums: Sums) -> None:
        """Add what an earlier block left, a few planes at a time."""
        sums.ran |= part.ran
        for z in range(part.box.start.z, part.box.stop.z if part.ran else part.box.start.z, PLANES):
            stop = min(z + PLANES, part.box.stop.z)
            box = Box(part.box.start._replace(z=z), part.box.stop._replace(z=stop))
            given = column.shelf.planes(part.place, z - part.box.start.z, stop - part.box.start.z)
            sums.part(box).add_(torch.as_tensor(given))

    def _around(self, block: Box) -> Box:
        """The block, with all voxels of later ones that its windows reach."""
        reach = self.windows.reach(block)
        stops = (block.stop, *(later.clip(reach).stop for later in self.later))
        return Box(block.start, Zyx(*map(max, *stops, block.stop)))

    def _seen(self, todo: list[Zyx], block: Box) -> Box:
        """What windows see of the volume."""
        if not todo:
            return Box(block.start, block.start)
        first, last = (Zyx(*map(end, zip(*todo, strict=True))) for end in (min, max))
        box = Box(self.windows.box(first).start, self.windows.box(last).stop)
        return box.clip(Box.whole(self.windows.shape))

    def _read(self, column: Column, seen: Box, block: Box) -> Seen:
        """The voxels of a box, those of kept cells from there; cells that later blocks will see are kept."""
        grid = cells_of(self.stored)
        voxels = column.borrow("voxels", seen.shape, self.stored.dtype)
        with column.lock:
            missing = []
            for index in grid.indices(seen):
                if index not in column.cells:
                    missing.append(index)
                    continue
                part = grid.box(index).clip(seen)
                z, y, x = part.within(grid.box(index))
                voxels[part.within(seen)] = column.shelf.planes(column.cells[index], z.start, z.stop)[:, y, x]
            for cells in _boxes(missing):
                box = Box(grid.box(cells.start).start, grid.box(Zyx(*(n - 1 for n in cells.stop))).stop)
                read = self.stored.read(box)
                voxels[box.clip(seen).within(seen)] = read[box.clip(seen).within(box)]
                for index in cells.indices() if self.later else ():
                    cell = grid.box(index)
                    if any(a > b for a, b in zip(cell.stop, block.stop, strict=True)):
                        column.cells[index] = column.shelf.put(read[cell.within(box)])
            for index in [index for index in column.cells if _passed(grid.box(index), block)]:
                column.shelf.drop(column.cells.pop(index))
        return Seen(seen, voxels)

    def _leave(self, column: Column, later: Box, sums: Sums, todo: list[Zyx], ran: set[Zyx]) -> None:
        """Leave to a later block what the windows `todo` say of it, of which `ran` were not air."""
        touching, box = self.windows.touching(later), later.clip(sums.box)
        seen = frozenset(index for index in todo if index in touching)
        if seen:
            added = seen & ran
            place = column.shelf.put(sums.part(box)) if added else None
            column.leave(later.start, Part(box, place, added, seen))


def _boxes(indices: list[Zyx]) -> Iterator[Box]:
    """Cells in C order, layer by layer: as one box, or one by one where they do not fill it."""
    for _, layer in itertools.groupby(indices, key=lambda index: index.z):
        cells = list(layer)
        axes = list(zip(*cells, strict=True))
        box = Box(Zyx(*map(min, axes)), Zyx(*(1 + max(axis) for axis in axes)))
        full = box.shape.volume == len(cells)
        yield from [box] if full else (Box(at, Zyx(*(n + 1 for n in at))) for at in cells)


def _passed(cell: Box, block: Box) -> bool:
    """Whether no block after this one will see a cell that one of this layer, or the one above, kept."""
    above = cell.stop.z <= block.start.z
    behind = all(a <= b for a, b in zip(cell.stop, block.stop, strict=True))
    return cell.stop.z > block.start.z - block.shape.z and (above or behind)
