"""Windows of stored arrays, out of a bounded cache of decoded chunks."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.remote import is_remote
from inkzarr.core.schema import UNLABELLED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inkzarr.core.volume import StoredVolume

REMOTE_THREADS = 16
LABEL_DTYPE = np.dtype(np.int16)


@dataclass(frozen=True, eq=False)
class Voxels:
    """A scan, by the chunk.

    Parameters
    ----------
    stored : StoredVolume
        The scan.
    """

    stored: StoredVolume
    fill: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the scan."""
        return self.stored.dtype

    def load(self, box: Box, _index: Zyx) -> NDArray[Any] | None:
        """One chunk."""
        return np.ascontiguousarray(self.stored.read(box))


@dataclass(frozen=True, eq=False)
class Labels:
    """A label group, by the chunk: int16, 0 .. 255, and -1 where unlabelled.

    Parameters
    ----------
    ink, stored : StoredVolume
        Mean painted values, and votes.
    holds : numpy.ndarray of bool
        Which chunks may hold labels; the others are not read.
    """

    ink: StoredVolume
    stored: StoredVolume
    holds: NDArray[np.bool_]
    fill: int = int(UNLABELLED)
    dtype: np.dtype[Any] = LABEL_DTYPE

    def load(self, box: Box, index: Zyx) -> NDArray[Any] | None:
        """One chunk; None where nothing in it is labelled."""
        if not self.holds[index]:
            return None
        known = self.stored.read(box) > 0
        return np.where(known, self.ink.read(box), LABEL_DTYPE.type(self.fill)) if known.any() else None


@dataclass
class ChunkCache:
    """Decoded chunks, the least recently used of which go first.

    Parameters
    ----------
    limit : int
        Bytes; at least one chunk is always held.

    Attributes
    ----------
    decoded : int
        Chunks that were read so far.
    """

    limit: int
    decoded: int = 0
    _held: OrderedDict[tuple[int, int], NDArray[Any] | None] = field(default_factory=OrderedDict, repr=False)
    _bytes: int = 0
    _pool: ThreadPoolExecutor | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """A worker begins with an empty cache."""
        return {"limit": self.limit, "decoded": 0, "_held": OrderedDict(), "_bytes": 0, "_pool": None}

    def read(self, number: int, array: Voxels | Labels, box: Box) -> tuple[NDArray[Any], list[int]]:
        """Read a box, which may reach beyond the volume: there is the array's fill value.

        Parameters
        ----------
        number : int
            Of the array, for this cache.
        array : Voxels or Labels
            What is read.
        box : Box
            In voxels of the volume; may begin below 0 and end past it.

        Returns
        -------
        numpy.ndarray, list of int
            Of the box's shape; and the numbers of the chunks that it touches.
        """
        grid = Grid(array.stored.shape, array.stored.chunks)
        found = np.full(tuple(box.shape), array.fill, array.dtype)
        touched = list(grid.indices(box))
        flat = [int(np.ravel_multi_index(index, grid.counts)) for index in touched]
        chunks = {place: self._held[number, place] for place in flat if (number, place) in self._held}
        missing = [(place, index) for place, index in zip(flat, touched, strict=True) if place not in chunks]
        for place in chunks:
            self._held.move_to_end((number, place))
        for (place, _), chunk in zip(missing, self._load(array, grid, [i for _, i in missing]), strict=True):
            chunks[place] = chunk
            self._keep((number, place), chunk)
        for place, index in zip(flat, touched, strict=True):
            chunk = chunks[place]
            if chunk is not None:
                held = grid.box(index)
                shared = held.clip(box)
                found[shared.within(box)] = chunk[shared.within(held)]
        return found, flat

    def _load(self, array: Voxels | Labels, grid: Grid, places: list[Zyx]) -> list[NDArray[Any] | None]:
        """Decode chunks; of a remote store, several at once."""
        self.decoded += len(places)
        if len(places) < 2 or not is_remote(array.stored.url):
            return [array.load(grid.box(index), index) for index in places]
        self._pool = self._pool or ThreadPoolExecutor(REMOTE_THREADS)
        return list(self._pool.map(lambda index: array.load(grid.box(index), index), places))

    def _keep(self, key: tuple[int, int], chunk: NDArray[Any] | None) -> None:
        self._held[key] = chunk
        self._bytes += 0 if chunk is None else chunk.nbytes
        while self._bytes > self.limit and len(self._held) > 1:
            _, gone = self._held.popitem(last=False)
            self._bytes -= 0 if gone is None else gone.nbytes
