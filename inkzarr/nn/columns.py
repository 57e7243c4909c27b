"""Blocks of a stored volume in columns along z: what one leaves, the next one need not do again.

A block is a layer of chunks, as wide as memory allows. What it leaves is kept in the process until the next
block takes it; one that finds nothing, on another worker or after a restart, begins afresh::

              y, x
            ┌──────┐
       z    │block1│ reads its halo above and below, runs all windows that touch it
            ├──────┤ leaves: the sums of windows that reach down, and the planes of voxels read for them
            │block2│ reads the next planes, runs the next windows
            └──────┘
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inkzarr.core.blending import Blend, windows_in_air
from inkzarr.core.geometry import Box, Windows, Zyx
from inkzarr.core.schema import CHUNK
from inkzarr.nn.engine import Engine, cached_engine
from inkzarr.nn.sliding import predict_block, seen
from inkzarr.nn.sums import Sums

if TYPE_CHECKING:
    from inkzarr.core.job import Job
    from inkzarr.core.volume import StoredVolume

WIDTHS = (1024, 512, 256, 128)
"""Of a block's cross-section, in voxels; a wider one would take hours between two records on a CPU."""
MOST_LEFT = 4
"""Blocks that leave something in a process at once: as many as are in flight there."""


class Left(NamedTuple):
    """What a block leaves to the next one along z.

    Parameters
    ----------
    sums : Sums
        In which the windows that reach into the next block are added already.
    voxels : numpy.ndarray
        Planes that were read already, from the first of layer ``sums.layer`` on.
    """

    sums: Sums
    voxels: np.ndarray


class Leavings:
    """What blocks left in this process, by the run and the place of the next block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: OrderedDict[tuple[str, Zyx], Left] = OrderedDict()

    def put(self, run: str, start: Zyx, left: Left) -> None:
        """Leave something to the block that begins at `start`; what other runs left is forgotten."""
        with self._lock:
            self._left[run, start] = left
            for key in list(self._left):
                if key[0] != run or len(self._left) > MOST_LEFT:
                    del self._left[key]

    def take(self, run: str, start: Zyx) -> Left | None:
        """Take what was left to the block that begins at `start`."""
        with self._lock:
            return self._left.pop((run, start), None)


leavings = Leavings()


class Foreseen(NamedTuple):
    """What blocks take: windows to run, without those known to lie in air, and bytes to read."""

    windows: int
    nbytes: int


@dataclass(frozen=True)
class Columns:
    """The block function of a stored volume; picklable, the network is loaded once in each process.

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
    region : Box
        What is predicted.
    run : str
        Tells what this run leaves from what others left.
    leaves : bool
        Whether a block leaves something to the next one.
    """

    stored: StoredVolume
    network: tuple[str, str | None, int | None, str, str]
    windows: Windows
    blend: Blend
    air: float
    region: Box
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    leaves: bool = True

    @property
    def engine(self) -> Engine:
        """The network, at work on its device."""
        return cached_engine(*self.network)

    @cached_property
    def air_windows(self) -> np.ndarray:
        """Which windows lie in air, as far as can be told without reading; bool, of the windows' counts."""
        return windows_in_air(self.windows, self.stored.may_exceed(self.air), self.stored.chunks)

    def holds(self, block: Box) -> bool:
        """Whether a block may hold anything: not all its windows are known to lie in air."""
        return not self.air_windows[self.windows.touching(block).slices].all()

    def narrowed(self, block: Box) -> Columns:
        """What one block needs: not the air, but whether a window that is run reaches into the next block."""
        z = block.stop.z
        below = Box(block.start._replace(z=z), block.stop._replace(z=z + 1))
        return replace(self, leaves=z < self.region.stop.z and self.holds(below))

    def __call__(self, block: Box) -> np.ndarray:
        """Predict one block; uint8, round(255 * probability)."""
        left = leavings.take(self.run, block.start)
        sums = left.sums if left else Sums(block, self.windows, self.blend, self.engine.device)
        box = seen(block, self.windows, sums.layer)
        voxels = self._read(box, left)
        found = predict_block(voxels, block, sums, self.engine, air=self.air)
        if self.leaves:
            kept = voxels[sums.layer * self.windows.stride.z - box.start.z :].copy()
            leavings.put(self.run, block.start._replace(z=block.stop.z), Left(sums, kept))
        return found

    def _read(self, box: Box, left: Left | None) -> np.ndarray:
        """Voxels of a box, down to the end of its last chunks, so that none is read twice."""
        deep = self.stored.chunks.z if self.stored.chunks.z <= self.windows.window.z else 1
        last = min(self.stored.shape.z, -(-box.stop.z // deep) * deep)
        there = box.start.z + (len(left.voxels) if left else 0)
        missing = Box(box.start._replace(z=there), box.stop._replace(z=last))
        if missing.empty and left:
            return left.voxels
        voxels = self.stored.read(missing)
        return np.concatenate([left.voxels, voxels]) if left else voxels

    def windows_of(self, block: Box, *, follows: bool) -> Box:
        """The windows that a block runs, after the one above it or afresh; counted in windows."""
        touching = self.windows.touching(block)
        first = -(-block.start.z // self.windows.stride.z) if follows else touching.start.z
        return Box(touching.start._replace(z=min(first, touching.stop.z)), touching.stop)

    def work(self, block: Box) -> int:
        """How many windows a block runs where all blocks of its column are computed."""
        return self.windows_of(block, follows=block.start.z > self.region.start.z).shape.volume

    def foresee(self, job: Job, boxes: list[Box]) -> Foreseen:
        """What blocks take, each column of them one after the other."""
        windows = nbytes = 0
        for chain in job.chains(boxes):
            bottom = -1
            for block in map(job.inner, chain):
                follows = block.start.z == bottom
                windows += int((~self.air_windows[self.windows_of(block, follows=follows).slices]).sum())
                z, y, x = seen(block, self.windows, self.windows.touching(block).start.z).shape
                nbytes += (block.shape.z if follows else z) * y * x * self.stored.dtype.itemsize
                bottom = block.stop.z if self.narrowed(block).leaves else -1
        return Foreseen(windows, nbytes)

    def seconds_a_window(self) -> float:
        """Time of one window on the device, after one to warm up; of a CPU the smallest one does for that."""
        engine, window = self.engine, self.windows.window
        least = Zyx.of(2 ** (engine.levels - 1)) if engine.device.type == "cpu" else window
        for shape in (least, window):
            batch = [engine.upload(np.ones(shape, self.stored.dtype))] * engine.batch
            began = time.perf_counter()
            engine.probabilities(batch, self.stored.dtype)[0].sum().item()
        return (time.perf_counter() - began) / engine.batch

    def widest(self, memory: int) -> Zyx:
        """A layer of chunks as wide as one block in flight may be: the wider, the fewer windows run twice."""
        for most in WIDTHS:
            y, x = (-(-n // -(-n // most)) for n in self.stored.shape[1:])
            block = Zyx(CHUNK, y, x)
            if self.block_bytes(block) + self.shared_bytes <= memory:
                break
        return block

    @property
    def shared_bytes(self) -> int:
        """Memory that all blocks share: the network's."""
        return self.engine.batch * self.engine.window_bytes(self.windows.window)

    def block_bytes(self, block: Zyx) -> int:
        """Memory of a block: what it reads, twice while planes are added, its sums, and its result twice."""
        shape, window = self.stored.shape, self.windows.window
        box = Box(Zyx(0, 0, 0), block).clip(Box.whole(shape)).shape
        halos = (2 * window.z, *(low + high for low, high in self.windows.halos(block)[1:]))
        read = Zyx(*(min(n, b + h) for n, b, h in zip(shape, box, halos, strict=True)))
        sums = np.dtype(np.float32).itemsize * window.z * box.y * box.x
        return 2 * read.volume * self.stored.dtype.itemsize + sums + 2 * box.volume
