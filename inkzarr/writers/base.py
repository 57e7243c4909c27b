"""What writers share: the cut-out that is written, and its voxels laid out in a file in bounded memory.

Each chunk is read once, in any order, and its rows are written where they belong::

    chunks  |__|__|__|__|  ──>  a block of whole chunks  ──>  rows at their places in the file

Memory is that of the two blocks in flight, at most 256 MB together (more only where one chunk is larger).
"""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from inkzarr.core.geometry import AXES, Box, Grid, Zyx
from inkzarr.core.volume import StoredVolume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCKS_IN_FLIGHT = 2
"""One is read while the other is written."""
BLOCK_BYTES = 2**26
"""Voxels of one block; decoding and the byte order take as much again."""
UM_PER_MM = 1e3


@dataclass(frozen=True)
class Cutout:
    """What is written: a box of a level, and where it lies.

    Parameters
    ----------
    stored : StoredVolume
        The level.
    box : Box
        In voxels of the level.
    dtype : numpy.dtype
        In the file, little-endian.
    spacing_um : tuple of three floats, or None
        Edges of a voxel along z, y and x in micrometres; None where the volume does not say.
    origin_um : tuple of three floats
        Centre of the box's first voxel, z y x in micrometres from that of the full resolution.
    """

    stored: StoredVolume
    box: Box
    dtype: np.dtype[Any]
    spacing_um: tuple[float, ...] | None
    origin_um: tuple[float, ...]

    @classmethod
    def of(cls, stored: StoredVolume, box: Box | str | None) -> Cutout:
        """The part of a level that lies in `box` (None: all of it); float16, which no format has, as float32.

        Raises
        ------
        InputError
            The box is malformed, empty or reaches outside the volume.
        """
        inside = Box.whole(stored.shape) if box is None else Box.parse(str(box), stored.shape)
        um = stored.voxel_size_um
        spacing = stored.level.spacing_um or (None if um is None else (um,) * len(AXES))
        dtype = np.dtype(np.float32) if stored.dtype == np.float16 else stored.dtype
        places = zip(stored.level.origin_um, inside.start, spacing or (UM_PER_MM,) * len(AXES), strict=True)
        origin = tuple(o + n * step for o, n, step in places)
        return cls(stored, inside, dtype.newbyteorder("<"), spacing, origin)

    @property
    def nbytes(self) -> int:
        """Of its voxels."""
        return self.box.shape.volume * self.dtype.itemsize

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Edges of a voxel along x, y and z in millimetres, as medical formats have them; 1 where unknown."""
        return tuple(um / UM_PER_MM for um in reversed(self.spacing_um or (UM_PER_MM,) * len(AXES)))

    @property
    def origin_mm(self) -> tuple[float, ...]:
        """Centre of the first voxel, x y z in millimetres."""
        return tuple(um / UM_PER_MM for um in reversed(self.origin_um))


def block_shape(shape: Zyx, chunks: Zyx, itemsize: int) -> Zyx:
    """Whole chunks that are read at once: as wide, then as high, then as deep as memory allows.

    Examples
    --------
    >>> block_shape(Zyx(14376, 7888, 8096), Zyx(128, 128, 128), 1)
    Zyx(z=128, y=128, x=4096)
    """
    cell = chunks
    for axis in reversed(range(len(cell))):
        times = max(1, BLOCK_BYTES // (cell.volume * itemsize))
        needed = -(-shape[axis] // chunks[axis])
        cell = Zyx(*(c * min(times, needed) if i == axis else c for i, c in enumerate(cell)))
    return cell


def fill(
    file: BinaryIO,
    offset: int,
    cutout: Cutout,
    *,
    planes: tuple[int, int] = (0, 1),
    advance: Callable[[int], object] | None = None,
) -> None:
    """Read every chunk of the box once, and write its rows where they belong.

    Parameters
    ----------
    file : file
        Open for writing; what is not written of it reads as zeros.
    offset : int
        Where the voxels begin, in bytes.
    cutout : Cutout
        What is written, in C order.
    planes : tuple of two ints
        The axis that comes first in the file, and its step: ``(1, 3)`` lays out every third plane of z and x.
    advance : callable, optional
        Is told the voxels that are done.
    """
    axis, step = planes
    box = _axis_first(cutout.box, axis)
    shape = box.shape._replace(z=-(-box.shape.z // step))
    cell = block_shape(cutout.box.shape, cutout.stored.chunks, cutout.stored.dtype.itemsize)
    grid = Grid(cutout.stored.shape, cell)
    lock = threading.Lock()

    def move(block: Box) -> None:
        voxels = np.moveaxis(cutout.stored.read(block), axis, 0)[::step]
        if voxels.any():  # what is not written is zeros, and takes no disk
            rows = np.ascontiguousarray(voxels, dtype=cutout.dtype)
            first = _axis_first(block, axis).shift(box.start, sign=-1).start
            with lock:
                _put(file, offset, shape, first, rows)
        if advance is not None:
            advance(block.shape.volume)

    with ThreadPoolExecutor(BLOCKS_IN_FLIGHT) as pool:
        blocks = (grid.box(index).clip(cutout.box) for index in grid.indices(cutout.box))
        moves = [pool.submit(move, block) for block in blocks]
        try:
            for moved in moves:
                moved.result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_planes(
    cutout: Cutout, scratch: Path, *, axis: int = 0, step: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """Every `step`-th plane across an axis, in order, each chunk decoded once.

    A layer of chunks is laid out in a nameless file on disk, and read from there plane by plane: a layer of a
    whole scroll is 8 GB, more than memory may hold::

        | chunk | chunk | chunk |  ──>  file of one layer  ──>  plane, plane, plane, ...

    Parameters
    ----------
    cutout : Cutout
        What is cut into planes.
    scratch : Path
        The folder for that file.
    axis : int
        0, 1, 2: planes of y and x, z and x, z and y.
    step : int
        From one plane to the next, in voxels.

    Yields
    ------
    tuple of int and numpy.ndarray
        Where the plane lies along the axis, in voxels of the level, and its voxels.
    """
    box = cutout.box
    thickness = cutout.stored.chunks[axis]
    _, rows, columns = _axis_first(box, axis).shape
    plane = np.empty((rows, columns), cutout.dtype)
    places = range(box.start[axis], box.stop[axis], step)
    with tempfile.TemporaryFile(dir=scratch) as file:
        while places:
            end = (places[0] // thickness + 1) * thickness
            layer = places[: len(range(places[0], min(end, box.stop[axis]), step))]
            places = places[len(layer) :]
            bounds = _along(box, axis, layer[0], layer[-1] + 1)
            file.truncate(0)
            file.truncate(len(layer) * plane.nbytes)
            fill(file, 0, replace(cutout, box=bounds), planes=(axis, step))
            file.seek(0)
            for place in layer:
                file.readinto(plane.data.cast("B"))
                yield place, plane


def layer_bytes(cutout: Cutout, axis: int = 0) -> int:
    """What the file of one layer may take on disk while planes are read."""
    thickness = min(cutout.stored.chunks[axis], cutout.box.shape[axis])
    return cutout.nbytes // cutout.box.shape[axis] * thickness


def _axis_first(box: Box, axis: int) -> Box:
    """The same box with `axis` named first, the others in their order."""
    order = [axis, *(other for other in range(len(AXES)) if other != axis)]
    return Box(Zyx(*(box.start[i] for i in order)), Zyx(*(box.stop[i] for i in order)))


def _along(box: Box, axis: int, start: int, stop: int) -> Box:
    """The same box from `start` to `stop` along one axis."""
    name = AXES[axis]
    return Box(box.start._replace(**{name: start}), box.stop._replace(**{name: stop}))


def _put(file: BinaryIO, offset: int, shape: Zyx, first: Zyx, voxels: np.ndarray) -> None:
    """Write a block into an array of `shape` in C order: by the plane where the block is as wide as it."""
    _, rows, columns = shape
    height, width = voxels.shape[1:]
    runs = voxels if width == columns else voxels.reshape(-1, width)
    for n, run in enumerate(runs):
        z, y = (n, 0) if runs is voxels else divmod(n, height)
        at = ((first.z + z) * rows + first.y + y) * columns + first.x
        file.seek(offset + at * voxels.itemsize)
        file.write(run.data)
