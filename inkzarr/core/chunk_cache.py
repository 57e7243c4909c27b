"""Decoded chunks of a volume that several threads read: each fetched about once, in bounded memory."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from inkzarr.core.geometry import Box, Grid, Zyx

if TYPE_CHECKING:
    from inkzarr.core.lazy import Readable

Chunk = np.ndarray | None
"""The voxels of a chunk; None where all are 0."""
LEAST = 1 << 10
"""Bytes that an empty chunk is taken for."""
OLDEST = 64
"""Chunks that are looked at when room is needed."""


class ChunkCache:
    """The chunks of a volume that were used last.

    Chunks are fetched by threads of the cache's own, so that one reader can have several under way::

        start(a), start(b), start(c)     under way
        voxels(box over a, b)            waits for what it needs

    A copy in another process (it can be pickled) has its own memory, shared by all copies there.

    Parameters
    ----------
    volume : StoredVolume or LazyVolume
        Where chunks come from.
    nbytes : int
        What decoded chunks may take; those that are being fetched come on top.
    threads : int
        Chunks fetched at once.
    """

    def __init__(self, volume: Readable, nbytes: int, threads: int) -> None:
        self.volume, self.nbytes, self.threads = volume, nbytes, threads
        self.grid = Grid(volume.shape, volume.chunks)
        self._token = uuid.uuid4().hex
        self._held = _Held(threads)

    def __getstate__(self) -> dict[str, Any]:
        """Without the chunks."""
        return {name: value for name, value in self.__dict__.items() if name != "_held"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the process's chunks of the same cache."""
        self.__dict__.update(state)
        self._held = _held_by(self._token, self.threads)

    def start(self, index: Zyx) -> bool:
        """Begin to fetch a chunk; False where it is here or under way, or known to be empty."""
        held = self._held
        with held.lock:
            if index in held.chunks:
                held.chunks.move_to_end(index)
                return False
            if self.volume.known_empty(index):
                return False
            held.chunks[index] = held.pool.submit(self._fetch, index)
        return True

    def chunk(self, index: Zyx, fetched: list[Zyx]) -> Chunk:
        """The voxels of a chunk; `fetched` takes note where it was not here.

        Raises
        ------
        StoreError
            It cannot be had; asked for again, it is fetched again.
        """
        held = self._held
        while not self.volume.known_empty(index):
            if self.start(index):
                fetched.append(index)
            with held.lock:
                future = held.chunks.get(index)
            if future is None:  # crowded out meanwhile
                continue
            try:
                return future.result()
            except Exception:
                with held.lock:
                    if held.chunks.get(index) is future:
                        del held.chunks[index]
                raise
        return None

    def voxels(self, box: Box, fetched: list[Zyx]) -> Chunk:
        """The voxels of a box, which may reach past the volume's end (zeros there); None where all are 0.

        Raises
        ------
        StoreError
            A chunk cannot be had.
        """
        indices = list(self.grid.indices(box))
        ahead = iter(indices)
        for index in itertools.islice(ahead, self.threads):
            if self.start(index):
                fetched.append(index)
        whole: Chunk = None
        for index in indices:
            for following in itertools.islice(ahead, 1):
                if self.start(following):
                    fetched.append(following)
            chunk = self.chunk(index, fetched)
            if chunk is None:
                continue
            if whole is None:
                half = self.volume.dtype == np.float16  # which compiled loops do not take
                whole = np.zeros(box.shape, np.float32 if half else self.volume.dtype)
            here = self.grid.box(index)
            part = here.clip(box)
            whole[part.within(box)] = chunk[part.within(here)]
        return whole

    def close(self) -> None:
        """Fetch no more, and forget all."""
        self._held.pool.shutdown(wait=False, cancel_futures=True)
        self._held.chunks.clear()

    def _fetch(self, index: Zyx) -> Chunk:
        found: Chunk = self.volume.read(self.grid.box(index))
        if found is not None and not found.any():
            found = None
        self._held.keep(index, LEAST if found is None else found.nbytes, self.nbytes)
        return found


class _Held:
    """The chunks of one process, those used last at the end."""

    def __init__(self, threads: int) -> None:
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="chunk")
        self.chunks: OrderedDict[Zyx, Future[Chunk]] = OrderedDict()
        self._sizes: dict[Zyx, int] = {}
        self._total = 0

    def keep(self, index: Zyx, nbytes: int, most: int) -> None:
        """Take note of a chunk that has come, and forget the oldest; what is under way has no size yet."""
        with self.lock:
            self._total += nbytes - self._sizes.get(index, 0)
            self._sizes[index] = nbytes
            for oldest in list(itertools.islice(self.chunks, OLDEST)):
                if self._total <= most:
                    break
                if oldest in self._sizes and oldest != index:
                    self._total -= self._sizes.pop(oldest)
                    del self.chunks[oldest]


@lru_cache(maxsize=1)
def _held_by(token: str, threads: int) -> _Held:  # noqa: ARG001 - a run's token names its chunks
    return _Held(threads)
