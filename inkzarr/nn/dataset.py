"""Windows to learn from: where they are, what is read of them, in which order.

A sample is a function of (seed, epoch, index) alone, whoever reads it, and when. Windows come in an
order that is random, but keeps near ones near, so that a chunk is decoded about once an epoch::

    cells of space, shuffled          A C B | E D F | ...        as many together as the cache holds
    their windows, shuffled           c1 a2 b1 a1 | f1 d2 ...
    in `LANES`, read side by side     lane 0: steps 0, 8, 16, ...   a worker reads whole lanes, so that
                                      lane 1: steps 1, 9, 17, ...   its chunks are not another's too
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from inkzarr.core.errors import InkzarrError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.nn.augment import Draw, draw, reach
from inkzarr.nn.chunks import ChunkCache, Labels, Voxels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from inkzarr.nn.config import Augment, Config, Numbers

LANES = 8
TRIES = 8
CELL = 2
"""Windows along each axis of a cell, whose windows are read together."""
LAST = -1000
"""After every other thing that a process does at its end."""
ORDER, CROP = 0, 1
Key = tuple[int, int]
"""Epoch, and index; an index beyond the windows counts them again, drawn anew."""


@dataclass(frozen=True, eq=False)
class Source:
    """One scan, its labels, and the windows to learn from.

    Parameters
    ----------
    voxels : Voxels
        The scan.
    labels : Labels or None
        Where there are any.
    corners : numpy.ndarray of int64, (n, 3)
        First voxel of each window.
    """

    voxels: Voxels
    labels: Labels | None
    corners: NDArray[np.int64]


class Sample(NamedTuple):
    """A crop, and what makes a window of it; see `nn.augment.apply`.

    Parameters
    ----------
    voxels : Tensor
        (z, y, x), raw.
    labels : Tensor or None
        Same shape, int16: 0 .. 255, and -1 where unlabelled.
    drawn : Draw
        What is done to it.
    matrix : Tensor
        (3, 4) float64.
    decoded : int
        Chunks that were decoded for it.
    touched : tuple of int
        Chunks that it touches: scan and label chunks of all sources have numbers of their own.
    """

    voxels: Tensor
    labels: Tensor | None
    drawn: Draw
    matrix: Tensor
    decoded: int
    touched: tuple[int, ...]


@dataclass(eq=False)
class Crops(Dataset["Sample | InkzarrError"]):
    """All windows of all sources, by key.

    Parameters
    ----------
    sources : list of Source
        One or more.
    window : (z, y, x)
        In voxels.
    seed : int
        Of all that is random.
    jitter : int
        Largest shift along each axis, in voxels.
    least : int
        Labelled voxels (without labels: voxels that are not 0) that a crop needs.
    augment : Augment
        What else is random.
    cache : ChunkCache
        Of this process.
    """

    sources: list[Source]
    window: Numbers
    seed: int
    jitter: int
    least: int
    augment: Augment
    cache: ChunkCache
    ends: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.ends = list(itertools.accumulate(len(source.corners) for source in self.sources))

    def __len__(self) -> int:
        """How many windows."""
        return self.ends[-1]

    def __getitem__(self, key: Key) -> Sample | InkzarrError:
        """Read a sample; a failure is handed over as it is, since a worker would wrap it."""
        try:
            return self.sample(*key)
        except InkzarrError as error:
            return error

    def sample(self, epoch: int, index: int) -> Sample:
        """Read the sample of a key.

        Raises
        ------
        StoreError
            A chunk cannot be had; it is named.
        """
        number, corner, shape = self.place(index % len(self))
        rng = np.random.default_rng((self.seed, CROP, epoch, index))
        drawn = draw(rng, self.augment, self.window)
        before = self.cache.decoded
        shifts = [*(self._shifted(rng, corner, shape) for _ in range(TRIES if self.jitter else 0)), corner]
        for shift in shifts:
            at = Box(shift, Zyx(*(a + w for a, w in zip(shift, self.window, strict=True))))
            box, matrix = drawn.crop(at)
            crop, touched = self._read(number, box)
            present = crop[-1][at.clip(box).within(box)]
            if np.count_nonzero(present >= 0 if len(crop) > 1 else present) >= self.least:
                break
        tensors = [torch.from_numpy(array) for array in crop]
        labels = tensors[1] if len(tensors) > 1 else None
        decoded = self.cache.decoded - before
        return Sample(tensors[0], labels, drawn, torch.from_numpy(matrix), decoded, tuple(touched))

    def place(self, row: int) -> tuple[int, Zyx, Zyx]:
        """The source of a window, its first voxel, and the scan's shape."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        source = self.sources[number]
        corner = source.corners[row - (self.ends[number - 1] if number else 0)]
        return number, Zyx(*map(int, corner)), source.voxels.stored.shape

    def _shifted(self, rng: np.random.Generator, corner: Zyx, shape: Zyx) -> Zyx:
        """A corner moved at random, but no further out of the volume than it is."""
        moved = corner + rng.integers(-self.jitter, self.jitter, size=3, endpoint=True)
        bounds = zip(moved, corner, shape, self.window, strict=True)
        return Zyx(*(int(min(max(m, min(0, c)), max(n - w, c))) for m, c, n, w in bounds))

    def _read(self, number: int, box: Box) -> tuple[list[NDArray[Any]], list[int]]:
        """Voxels, and labels where there are any, of a box; and the chunks it touches."""
        source = self.sources[number]
        arrays: list[Voxels | Labels] = [source.voxels]
        arrays += [] if source.labels is None else [source.labels]
        read = [self.cache.read(2 * number + k, array, box) for k, array in enumerate(arrays)]
        touched = [(2 * number + k) << 48 | place for k, (_, places) in enumerate(read) for place in places]
        return [array for array, _ in read], touched


class Order(Sampler[list[Key]]):
    """Batches of keys, for ever, from any step on; the same ones whatever the number of workers.

    Parameters
    ----------
    crops : Crops
        What is sampled.
    config : Config
        Batch, seed, windows an epoch, and the cache, which says how far near windows are kept near.
    processes : (int, int)
        Rank and number of processes; each takes its part of every batch.
    first : int
        Step to begin with.
    """

    def __init__(self, crops: Crops, config: Config, *, processes: Key = (0, 1), first: int = 0) -> None:
        self.rank, self.world = processes
        self.first, self.seed, self.batch = first, config.seed, config.batch
        windows = config.windows_per_epoch or len(crops)
        self.steps = math.ceil(windows / (config.batch * self.world))
        self.budget = config.cache_mb * 10**6 // LANES
        self.cells = _cells(crops)

    def __iter__(self) -> Iterator[list[Key]]:
        """The batches of this process."""
        for epoch in itertools.count(self.first // self.steps):
            rows = self.epoch(epoch)
            for step in range(
                self.first % self.steps if epoch == self.first // self.steps else 0, self.steps
            ):
                mine = rows[step, self.rank * self.batch : (self.rank + 1) * self.batch]
                yield [(epoch, int(index)) for index in mine]

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Indices of an epoch: (steps, windows in a step of all processes)."""
        size = self.steps * self.batch * self.world
        count = sum(len(rows) for rows, _ in self.cells)
        passes = [self._pass(epoch, number) + number * count for number in range(math.ceil(size / count))]
        batches = np.concatenate(passes)[:size].reshape(self.steps, -1)
        lanes = np.array_split(batches, LANES)
        return np.stack([lane[k] for k in range(len(lanes[0])) for lane in lanes if k < len(lane)])

    def _pass(self, epoch: int, number: int) -> NDArray[np.int64]:
        """All windows once: cells at random, then the windows of as many cells as the cache holds."""
        rng = np.random.default_rng((self.seed, ORDER, epoch, number))
        pools: list[list[NDArray[np.int64]]] = [[]]
        held = 0
        for place in rng.permutation(len(self.cells)):
            rows, nbytes = self.cells[place]
            if held + nbytes > self.budget and pools[-1]:
                pools.append([])
                held = 0
            pools[-1].append(rows)
            held += nbytes
        return np.concatenate([rng.permutation(np.concatenate(pool)) for pool in pools])


def load(crops: Crops, order: Any, *, workers: int, pinned: bool = False) -> DataLoader[Any]:  # noqa: ANN401
    """Read batches in `workers` processes (0: in this one), as lists of samples.

    Processes are spawned: threads of stores and of torch do not survive a fork.
    """
    return DataLoader(
        crops,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=list,
        pin_memory=pinned,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=2 if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_at_once,
    )


def _leave_at_once(_worker: int) -> None:
    """End this process without Python's own ending, in which threads of stores may abort it."""
    Finalize(None, os._exit, args=(0,), exitpriority=LAST)


def _cells(crops: Crops) -> list[tuple[NDArray[np.int64], int]]:
    """Windows by the cell of space that they begin in, with the bytes of the chunks that they touch."""
    found: list[tuple[NDArray[np.int64], int]] = []
    margin = np.array(reach(crops.augment, crops.window)) + crops.jitter
    first = 0
    for source in crops.sources:
        corners, window = source.corners, np.array(crops.window)
        cells = corners // (CELL * window)
        _, cell = np.unique(cells, axis=0, return_inverse=True)
        order = np.argsort(cell, kind="stable")
        stops = np.flatnonzero(np.diff(cell.reshape(-1)[order])) + 1
        stored = source.voxels.stored
        grid = Grid(stored.shape, stored.chunks)
        size = source.voxels.dtype.itemsize + (0 if source.labels is None else source.labels.dtype.itemsize)
        for rows in np.split(order, stops):
            low, high = corners[rows].min(0) - margin, corners[rows].max(0) + window + margin
            chunks = grid.cells(Box(Zyx(*map(int, low)), Zyx(*map(int, high)))).shape.volume
            found.append((first + rows.astype(np.int64), chunks * grid.cell.volume * size))
        first += len(corners)
    return found
