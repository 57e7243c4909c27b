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
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.schema import CHUNK
from inkzarr.nn.aside import THREADS, Column, Part, aside
from inkzarr.nn.engine import Engine, cached_engine
from inkzarr.nn.sliding import Seen, predict_block
from inkzarr.nn.sums import Sums
from inkzarr.nn.threads import on_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inkzarr.core.blending import Blend
    from inkzarr.core.geometry import Windows
    from inkzarr.core.volume import StoredVolume


PLANES = 4
"""Of sums, taken at a time."""
LARGEST_CELL = 512
"""Along an axis."""


def cells_of(stored: StoredVolume) -> Grid:
    """The volume in cells that are read as a whole: chunks, small ones put together, huge ones cut."""
    sides = (c if CHUNK <= c <= LARGEST_CELL else max(1, CHUNK // c) * min(c, CHUNK) for c in stored.chunks)
    return Grid(stored.shape, Zyx(*sides))


@dataclass(frozen=True)
class Run:
    """What all blocks of a run share; picklable, the network is loaded once in each process.

    Parameters
    ----------
    stored : StoredVolume
        The scan.
    network : tuple
        Path of the checkpoint, axes, batch, device, dtype and SHA-256, as `cached_engine` takes them.
    windows : Windows
        Of the whole volume.
    blend : str
        ``gaussian`` or ``constant``.
    air : float
        A window whose voxels are all at most this is not run.
    name : str
        Tells what this run leaves from what others left.
    """

    stored: StoredVolume
    network: tuple[str, str | None, int | None, str, str, str]
    windows: Windows
    blend: Blend
    air: float
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def engine(self) -> Engine:
        """The network, at work on its device."""
        return cached_engine(*self.network)


@dataclass(frozen=True)
class PredictedBlock:
    """The function of one block.

    Parameters
    ----------
    run : Run
        What it shares with all others.
    column : Box
        What is predicted of the block's column.
    last : bool
        Whether no later block of the column may hold anything.
    touching : tuple of Zyx
        The windows that touch the block, in C order, without those known to lie in air.
    later : tuple of Box
        The later blocks of its column that they touch, and that may hold anything.
    """

    run: Run
    column: Box
    last: bool
    touching: tuple[Zyx, ...]
    later: tuple[Box, ...]

    def __call__(self, block: Box) -> np.ndarray:
        """Predict the block; uint8, round(255 * probability)."""
        engine = self.run.engine
        on_cpu = engine.device.type == "cpu"
        with aside.column(self.run.name, self.column.start, in_file=on_cpu, last=self.last) as column:
            box = self._around(block)
            room = aside.borrow("sums", box.shape, np.int32) if on_cpu else None
            sums = Sums(box, self.run.windows, self.run.blend, engine.device, room)
            told = _take(column, block, sums)
            todo = [index for index in self.touching if index not in told]
            seen = self._read(column, todo, block)
            before = frozenset(sums.ran)
            found = predict_block(block, todo, seen, sums, engine, air=self.run.air)
            for later in self.later:
                self._leave(column, later, sums, todo, sums.ran - before)
            column.drop(block.start)
        aside.give(voxels=seen.voxels)
        if room is not None:
            sums.clear(block)
            aside.give(sums=room)
        return found

    def _around(self, block: Box) -> Box:
        """The block, with all voxels of later ones that its windows reach."""
        reach = self.run.windows.reach(block)
        stops = (block.stop, *(later.clip(reach).stop for later in self.later))
        return Box(block.start, Zyx(*map(max, *stops, block.stop)))

    def _read(self, column: Column, todo: list[Zyx], block: Box) -> Seen:
        """What windows see, of kept cells from there; cells that later blocks may see are kept."""
        grid, box = cells_of(self.run.stored), self._reach(todo, block)
        voxels = aside.borrow("voxels", box.shape, self.run.stored.dtype)

        def take(n: int, count: int, indices: list[Zyx]) -> list[Zyx]:
            """A share of the cells, of those that were kept; the others."""
            missing = []
            for index in indices[n::count]:
                part = grid.box(index).clip(box)
                z, y, x = part.within(grid.box(index))
                place = column.cells.get(index)
                kept = None if place is None else column.shelf.planes(place, z.start, z.stop)
                if kept is None:
                    missing.append(index)
                else:
                    voxels[part.within(box)] = kept[:, y, x]
            return missing

        with column.lock:
            shares = on_threads(THREADS, take, [(list(grid.indices(box)),)])
        missing = sorted(index for (share,) in shares for index in share)
        for cells in _boxes(missing, grid):
            whole = Box(grid.box(cells.start).start, grid.box(Zyx(*(n - 1 for n in cells.stop))).stop)
            read = self.run.stored.read(whole)
            voxels[whole.clip(box).within(box)] = read[whole.clip(box).within(whole)]
            with column.lock:
                for index in cells.indices():
                    cell = grid.box(index)
                    if index not in column.cells and self._is_ahead(cell, block):
                        place = column.shelf.put(read[cell.within(whole)])
                        column.cells |= {} if place is None else {index: place}
        with column.lock:
            for index in [index for index in column.cells if _passed(grid.box(index), block)]:
                column.shelf.drop(column.cells.pop(index))
        return Seen(box, voxels)

    def _reach(self, todo: list[Zyx], block: Box) -> Box:
        """What windows see of the volume."""
        if not todo:
            return Box(block.start, block.start)
        first, last = (Zyx(*map(end, zip(*todo, strict=True))) for end in (min, max))
        box = Box(self.run.windows.box(first).start, self.run.windows.box(last).stop)
        return box.clip(Box.whole(self.run.windows.shape))

    def _is_ahead(self, cell: Box, block: Box) -> bool:
        """Whether a cell goes on where other blocks of the column do."""
        axes = zip(cell.stop, block.stop, self.column.stop, strict=True)
        return not self.last and any(a > b and c > b for a, b, c in axes)

    def _leave(self, column: Column, later: Box, sums: Sums, todo: list[Zyx], ran: set[Zyx]) -> None:
        """Leave to a later block what the windows `todo` say of it, of which `ran` were not air."""
        touching, box = self.run.windows.touching(later), later.clip(sums.box)
        told = frozenset(index for index in todo if index in touching)
        added = told & ran
        place = column.shelf.put(sums.part(box)) if added else None
        if told and (place is not None or not added):
            column.leave(later.start, Part(box, place, added, told))


def _take(column: Column, block: Box, sums: Sums) -> set[Zyx]:
    """Add what earlier blocks left to one, a few planes at a time; the windows that it tells of.

    Where a part cannot be read back, nothing is taken.
    """

    def add(n: int, count: int, part: Part) -> bool:
        """Every count-th few planes, the same of all parts, as no other thread may add there."""
        first, end = part.box.start.z, part.box.stop.z
        for z in range(sums.box.start.z + n * PLANES, end, count * PLANES):
            start, stop = max(z, first), min(z + PLANES, end)
            if start < stop:
                given = column.shelf.planes(part.place, start - first, stop - first)
                if given is None:
                    return False
                box = Box(part.box.start._replace(z=start), part.box.stop._replace(z=stop))
                into: Any = sums.part(box)  # by NumPy on a CPU, as torch would add on threads of its own
                into = into.numpy() if isinstance(given, np.ndarray) else into
                into += given
        return True

    parts = column.parts(block.start)
    if not all(map(all, on_threads(THREADS, add, [(part,) for part in parts if part.ran]))):
        sums.reset()
        return set()
    sums.ran.update(*(part.ran for part in parts))
    return set().union(*(part.told for part in parts))


def _boxes(indices: list[Zyx], grid: Grid) -> Iterator[Box]:
    """Cells in C order, layer by layer: as one box, or one by one where they do not fill it, or are large."""
    for _, layer in itertools.groupby(indices, key=lambda index: index.z):
        cells = list(layer)
        axes = list(zip(*cells, strict=True))
        box = Box(Zyx(*map(min, axes)), Zyx(*(1 + max(axis) for axis in axes)))
        full = box.shape.volume == len(cells) and grid.cell.volume <= 2 * CHUNK**3
        yield from [box] if full else (Box(at, Zyx(*(n + 1 for n in at))) for at in cells)


def _passed(cell: Box, block: Box) -> bool:
    """Whether no block after this one will see a cell that one of this layer, or the one above, kept."""
    above = cell.stop.z <= block.start.z
    behind = all(a <= b for a, b in zip(cell.stop, block.stop, strict=True))
    return cell.stop.z > block.start.z - block.shape.z and (above or behind)
