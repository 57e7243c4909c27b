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
from inkzarr.core.geometry import Grid, Zyx
from inkzarr.core.given import unify
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.patches import Patches, refuse_suffix, write_patches
from inkzarr.core.pieces import count_pieces
from inkzarr.core.progress import Progress, duration
from inkzarr.core.remote import is_remote, without_secrets
from inkzarr.core.schema import INK_THRESHOLD, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

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
        One window, in voxels; one number is for all axes, of the stride too.
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
        unify(self, window=Zyx.of, stride=Zyx.of)
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
    refuse_suffix(out)
    ink, count = open_label_arrays(str(labels), storage_options=storage_options)
    for array in (ink, count):
        _refuse_unfinished(array, str(labels))
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

    What the ledgers tell is not read: an empty chunk, one without ink; and where windows are made of whole
    chunks, how many voxels of a chunk are labelled, and how many of them are ink.
    """
    axes = zip(count.shape, settings.window, settings.step, strict=True)
    z, y, x = whole = tuple(_Axis.of(0, *axis) for axis in axes)
    threads = workers or (REMOTE_THREADS if is_remote(count.url) else os.cpu_count() or 1)
    holding = count.may_exceed(0)
    counter = _Counter(ink, count, settings, ink.may_exceed(INK_THRESHOLD - 1))
    total = _Total(Zyx(z.last, y.last, x.last))
    if all((axis.cuts[:-1] % n == 0).all() for axis, n in zip(whole, count.chunks, strict=True)):
        chunks, read = _count_chunks(counter, holding, threads)
        total.add(_rows(_pieces(chunks, whole, count.chunks), whole))
    else:
        read = int(np.count_nonzero(holding))
        for _, rows in _in_flight(counter, holding, threads):
            total.add(rows)
    indices, labelled, painted = total.close()
    corners = np.stack(np.unravel_index(indices, total.counts), -1) * np.array(settings.step)
    table = Patches(corners.astype(np.int64), labelled, painted, settings.window)
    return table, int(np.count_nonzero(holding)), read


def _count_chunks(counter: _Counter, holding: np.ndarray, threads: int) -> tuple[np.ndarray, int]:
    """Labelled and ink voxels of every chunk, (chunks along z, y, x, 2); and how many had to be read."""
    labelled, painted = _known(counter.count), _known(counter.ink, upper=True)
    painted[~counter.inked] = 0
    chunks = np.where(holding[..., None], np.stack([labelled, painted], -1), 0)
    unknown = np.asarray((chunks < 0).any(-1))
    for index, found in _in_flight(counter.whole, unknown, threads):
        chunks[index] = found
    return chunks, int(np.count_nonzero(unknown))


def _known(stored: StoredVolume, *, upper: bool = False) -> np.ndarray:
    """Voxels that are not 0, or those in the upper half of the dtype's range; -1 where no ledger tells."""
    table = None if stored.ledger is None else stored.ledger.chunk_table()
    if table is None or (upper and stored.dtype != np.uint8):
        return np.full(Grid(stored.shape, stored.chunks).counts, -1, np.int64)
    return table.upper if upper else np.where(table.done, table.nonzero, -1)


@dataclass(frozen=True)
class _Counter:
    """Counts the voxels of one chunk, window by window.

    Parameters
    ----------
    ink, count : StoredVolume
        The label group's arrays.
    settings : PatchSettings
        The windows.
    inked : numpy.ndarray of bool
        Chunks that may hold ink.
    """

    ink: StoredVolume
    count: StoredVolume
    settings: PatchSettings
    inked: np.ndarray

    def __call__(self, index: Zyx) -> np.ndarray:
        """Rows of window (three numbers), labelled and ink voxels."""
        ink, count = self._read(index)
        box = Grid(self.count.shape, self.count.chunks).box(index)
        axes = zip(box.start, box.stop, self.settings.window, self.settings.step, strict=True)
        z, y, x = (_Axis.of(*axis) for axis in axes)
        pieces = np.zeros((len(z.cuts) - 1, len(y.cuts) - 1, len(x.cuts) - 1, 2), np.int64)
        count_pieces(ink, count, INK_THRESHOLD, z.piece, y.piece, x.piece, pieces)
        return _rows(pieces, (z, y, x))

    def whole(self, index: Zyx) -> tuple[int, int]:
        """Labelled and ink voxels of the chunk."""
        ink, count = self._read(index)
        return int(np.count_nonzero(count)), int(np.count_nonzero((ink >= INK_THRESHOLD) & (count > 0)))

    def _read(self, index: Zyx) -> tuple[np.ndarray, np.ndarray]:
        box = Grid(self.count.shape, self.count.chunks).box(index)
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


def _pieces(chunks: np.ndarray, axes: tuple[_Axis, ...], size: Zyx) -> np.ndarray:
    """Sums of the chunks in each piece of the volume."""
    for number, (axis, n) in enumerate(zip(axes, size, strict=True)):
        chunks = np.add.reduceat(chunks, axis.cuts[:-1] // n, axis=number)
    return chunks


def _rows(pieces: np.ndarray, axes: tuple[_Axis, ...]) -> np.ndarray:
    """Rows of window (three numbers), labelled and ink voxels, of windows with any label."""
    for number, axis in enumerate(axes):
        pieces = _windows(pieces, axis, number)
    places = np.argwhere(pieces[..., 0] > 0)
    found = pieces[tuple(places.T)]
    return np.column_stack([places + np.array([axis.first for axis in axes]), found]).astype(np.int64)


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


def _refuse_unfinished(array: StoredVolume, url: str) -> None:
    if not array.finished:
        msg = f"the labels at {url} are unfinished: run inkzarr labels again, then patches"
        raise InputError(msg)


def _in_flight(function: Callable[[Zyx], Any], chosen: np.ndarray, threads: int) -> Iterator[tuple[Zyx, Any]]:
    """Results for the chosen chunks of a grid, in order, a few at once."""
    pending: deque[tuple[Zyx, Future[Any]]] = deque()
    places = [Zyx(*map(int, at)) for at in np.argwhere(chosen)]
    if not places:
        return
    with Progress(STAGE, len(places), unit="chunk") as progress, ThreadPoolExecutor(threads) as pool:
        try:
            for index in [*places, None]:
                if index is not None:
                    pending.append((index, pool.submit(function, index)))
                while pending and (index is None or len(pending) > 2 * threads):
                    first, future = pending.popleft()
                    yield first, future.result()
                    progress.advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
