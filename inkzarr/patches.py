"""Patches: the windows of a label volume in which something is labelled, found in its stored chunks alone.

::

    windows   [=======]               start at every multiple of the stride
                  [=======]
    cuts      |   |   |   |           where a window begins or ends: voxels are counted between
    chunk     |-----------------|     cuts, and a window is the sum of its pieces
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.ledger import DONE
from inkzarr.core.patches import Patches, write_patches
from inkzarr.core.progress import Progress, duration
from inkzarr.core.remote import is_remote, without_secrets
from inkzarr.core.schema import INK_THRESHOLD, VERSION
from inkzarr.core.voting import count_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike

    from inkzarr.core.ledger import ChunkTable
    from inkzarr.core.volume import StoredVolume

STAGE = "patches"
REMOTE_THREADS = 16
GATHER = 1 << 22
"""Pieces of windows that are summed up at once."""


@dataclass(frozen=True)
class PatchSettings:
    """Which windows are kept.

    Parameters
    ----------
    window : Zyx
        One window, in voxels.
    stride : Zyx or None
        From one window to the next, in voxels; None is the window.
    min_labelled : int
        Labelled voxels that a window needs at least.

    Raises
    ------
    InputError
        Not positive.
    """

    window: Zyx = Zyx(128, 128, 128)
    stride: Zyx | None = None
    min_labelled: int = 1

    def __post_init__(self) -> None:
        if min(*self.window, *self.step, self.min_labelled) < 1:
            msg = (
                f"window {tuple(self.window)}, stride {tuple(self.step)} or min_labelled {self.min_labelled} "
                "cannot be: all are 1 or more"
            )
            raise InputError(msg)

    @property
    def step(self) -> Zyx:
        """The stride, in voxels."""
        return self.window if self.stride is None else self.stride


@dataclass(frozen=True)
class PatchReport:
    """What was found.

    Parameters
    ----------
    out : str
        The table.
    windows, labelled, ink : int
        Windows kept, and the voxels in them.
    chunks, stored : int
        Chunks that were read, and those that hold labels.
    seconds : float
        In all.
    """

    out: str
    windows: int
    labelled: int
    ink: int
    chunks: int
    stored: int
    seconds: float

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.out}: {self.windows} windows with {self.labelled} labelled voxels, {self.ink} ink, "
            f"from {self.stored} stored chunks ({self.chunks} read) in {duration(self.seconds)}"
        )


def patches(
    labels: str | PathLike[str],
    out: str | PathLike[str],
    settings: PatchSettings = PatchSettings(),
    *,
    workers: int | None = None,
    storage_options: dict[str, Any] | None = None,
) -> PatchReport:
    """Write the table of windows that hold labels.

    Parameters
    ----------
    labels : str
        The label group, finished; local path or URL.
    out : path
        Parquet, or ``.npy`` by its name; replaced if it exists.
    settings : PatchSettings
        Which windows are kept.
    workers : int, optional
        Chunks read at once.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    PatchReport
        How many there are.

    Raises
    ------
    InputError
        No label group, an unfinished one, or no window that has enough labels; nothing was written.
    StoreError
        A chunk cannot be read.
    """
    began = time.monotonic()
    ink, count = open_label_arrays(str(labels), storage_options=storage_options)
    _refuse_unfinished(count, str(labels))
    places, stored, read = find_windows(ink, count, settings, workers=workers)
    source = without_secrets(str(labels)).rstrip("/").rsplit("/", 1)[-1]
    told = {"stride": list(settings.step), "min_labelled": settings.min_labelled}
    lineage = {"stage": STAGE, "version": VERSION, "source": source, "shape": list(count.shape), **told}
    enough = np.asarray(places.labelled) >= settings.min_labelled
    table = places.take(enough, **lineage)
    if not len(table):
        msg = (
            f"no window of {labels} has {settings.min_labelled} labelled voxels: "
            "use a smaller --min-labelled, or check the labels"
        )
        raise InputError(msg)
    write_patches(Path(out), table)
    labelled, painted = (int(column.sum()) for column in (table.labelled, table.ink) if column is not None)
    return PatchReport(str(out), len(table), labelled, painted, read, stored, time.monotonic() - began)


def find_windows(
    ink: StoredVolume, count: StoredVolume, settings: PatchSettings, *, workers: int | None = None
) -> tuple[Patches, int, int]:
    """All windows with a labelled voxel, in C order; chunks that hold labels, and those that were read.

    What the ledgers tell is not read: an empty chunk, one without ink, or how much is labelled in a
    chunk that lies in one window as a whole.
    """
    grid = Grid(count.shape, count.chunks)
    table, inked = _table(count), ink.may_exceed(INK_THRESHOLD - 1)
    holding = [Zyx(*map(int, at)) for at in np.argwhere(count.may_exceed(0))]
    counter = _Counter(ink, count, settings, table, inked)
    total = _Total(Zyx(*(-(-n // s) for n, s in zip(count.shape, settings.step, strict=True))))
    threads = workers or (REMOTE_THREADS if is_remote(count.url) else os.cpu_count() or 1)
    read = 0
    with Progress(STAGE, len(holding), unit="chunk") as progress:
        for found, touched in _in_flight(counter, (grid.box(at) for at in holding), threads):
            total.add(found)
            read += touched
            progress.advance(1)
    indices, labelled, painted = total.close()
    corners = np.stack(np.unravel_index(indices, total.counts), -1) * np.array(settings.step)
    return Patches(corners.astype(np.int64), labelled, painted, settings.window), len(holding), read


@dataclass(frozen=True)
class _Counter:
    """Counts the voxels of one chunk, window by window."""

    ink: StoredVolume
    count: StoredVolume
    settings: PatchSettings
    table: ChunkTable | None
    inked: np.ndarray

    def __call__(self, box: Box) -> tuple[np.ndarray, int]:
        """Rows of window (three numbers), labelled and ink voxels; and whether anything was read."""
        axes = zip(box.start, box.stop, self.settings.window, self.settings.step, strict=True)
        z, y, x = (_Axis.of(*axis) for axis in axes)
        if self.table is not None and z.whole and y.whole and x.whole:
            labelled, painted, read = self._known(box, self.table)
            return np.array([[z.first, y.first, x.first, labelled, painted]], np.int64), read
        ink, count = self._read(box)
        pieces = np.zeros((len(z.cuts) - 1, len(y.cuts) - 1, len(x.cuts) - 1, 2), np.int64)
        count_pieces(ink, count, INK_THRESHOLD, z.piece, y.piece, x.piece, pieces)
        sums = _windows(_windows(_windows(pieces, z, 0), y, 1), x, 2)
        places = np.argwhere(sums[..., 0] > 0)
        found = sums[tuple(places.T)]
        return np.column_stack([places + np.array([z.first, y.first, x.first]), found]).astype(np.int64), 1

    def _known(self, box: Box, table: ChunkTable) -> tuple[int, int, int]:
        """Labelled voxels of a chunk, by the ledger; its ink voxels, and whether these were read."""
        index = tuple(a // c for a, c in zip(box.start, self.count.chunks, strict=True))
        inked = bool(self.inked[index])
        painted = np.count_nonzero(self.ink.read(box) >= INK_THRESHOLD) if inked else 0
        return int(table.nonzero[index]), int(painted), int(inked)

    def _read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        index = tuple(a // c for a, c in zip(box.start, self.count.chunks, strict=True))
        count = self.count.read(box)
        return (self.ink.read(box) if self.inked[index] else np.zeros(count.shape, np.uint8)), count


@dataclass(frozen=True)
class _Axis:
    """The windows that touch a chunk along one axis, and the pieces between their ends.

    Parameters
    ----------
    first, last : int
        Windows, the last one excluded.
    cuts : numpy.ndarray
        Voxels of the chunk at which a piece begins, and its end.
    piece : numpy.ndarray
        Piece of each voxel.
    starts, stops : numpy.ndarray
        Pieces of each window.
    """

    first: int
    last: int
    cuts: np.ndarray
    piece: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of(cls, low: int, high: int, window: int, stride: int) -> _Axis:
        """For the voxels ``low .. high``."""
        first, last = max(0, (low - window) // stride + 1), -(-high // stride)
        begin = np.arange(first, last) * stride
        ends = np.clip(np.stack([begin, begin + window]), low, high)
        cuts = np.unique(np.concatenate([ends.ravel(), [low, high]]))
        piece = np.searchsorted(cuts, np.arange(low, high), side="right") - 1
        starts, stops = np.searchsorted(cuts, ends)
        return cls(first, last, cuts - low, piece, starts, stops)

    @property
    def whole(self) -> bool:
        """Whether the chunk lies in one window alone, as a whole."""
        return self.last - self.first == 1 and len(self.cuts) == 2 and bool(self.stops[0])


def _windows(pieces: np.ndarray, axis: _Axis, number: int) -> np.ndarray:
    """Sums of pieces, window by window along one axis."""
    before = np.zeros([n + (i == number) for i, n in enumerate(pieces.shape)], np.int64)
    inner = [slice(None)] * pieces.ndim
    inner[number] = slice(1, None)
    np.cumsum(pieces, axis=number, out=before[tuple(inner)])
    sums: np.ndarray = before.take(axis.stops, number) - before.take(axis.starts, number)
    return sums


class _Total:
    """Sums the rows of all chunks by window; what is held grows with the windows found alone."""

    def __init__(self, counts: Zyx) -> None:
        self.counts = counts
        self._rows: list[np.ndarray] = []
        self._held = 0

    def add(self, rows: np.ndarray) -> None:
        """Take in the rows of one chunk."""
        if not len(rows):
            return
        index = np.ravel_multi_index(tuple(rows[:, :3].T), self.counts)
        self._rows.append(np.column_stack([index, rows[:, 3:]]))
        self._held += len(rows)
        if self._held > GATHER:
            self._gather()
            self._held = 0

    def close(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows in C order, with their labelled and ink voxels."""
        self._gather()
        index, labelled, painted = self._rows[0].T
        return index, labelled, painted

    def _gather(self) -> None:
        rows = np.concatenate([np.empty((0, 3), np.int64), *self._rows])
        index, place = np.unique(rows[:, 0], return_inverse=True)
        sums = np.zeros((len(index), 2), np.int64)
        np.add.at(sums, place.reshape(-1), rows[:, 1:])
        self._rows = [np.column_stack([index, sums])]


def _table(count: StoredVolume) -> ChunkTable | None:
    return None if count.ledger is None else count.ledger.chunk_table()


def _refuse_unfinished(count: StoredVolume, url: str) -> None:
    manifest = count.ledger and count.ledger.manifest
    if manifest and manifest.state != DONE:
        msg = f"the labels at {url} are unfinished: run inkzarr labels again, then patches"
        raise InputError(msg)


def _in_flight(counter: _Counter, boxes: Iterable[Box], threads: int) -> Iterator[tuple[np.ndarray, int]]:
    """Count all chunks, in order, a few at once."""
    pending: deque[Future[tuple[np.ndarray, int]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for box in boxes:
                pending.append(pool.submit(counter, box))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
