"""Verify: every chunk read, decoded and compared with what the ledger says was written.

Without a ledger every stored chunk is decoded, which finds what is cut short or does not decode, but no
flipped bit in raw chunks nor in codecs without a checksum: only a ledger finds those.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from zarr.core.sync import sync

from inkzarr.core.errors import DamageError, InputError, StoreError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.ledger import DONE, STRUCK
from inkzarr.core.lock import locked
from inkzarr.core.progress import Progress, duration, size
from inkzarr.core.records import ChunkTable
from inkzarr.core.remote import is_remote, open_store, without_secrets
from inkzarr.core.store import open_all
from inkzarr.core.volume import StoredVolume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from os import PathLike

    from zarr.abc.store import Store

LOCAL_THREADS, REMOTE_THREADS = 8, 32
BYTES_IN_FLIGHT = 2**29
"""Decoded bytes of the chunks in flight, unless one chunk alone is larger."""
SHOWN, NO_LEDGER = 10, "no ledger"
UNRECORDED = "is not in the ledger, which says that the run is done"
CUT_SHORT = ("the body holds", "the blosc frame is cut short")
"""How `inkzarr.core.remote.CarefulStore` tells that a key is there but has fewer bytes than it must."""


@dataclass(frozen=True)
class LevelCheck:
    """What was found in one array.

    Parameters
    ----------
    path : str
        In the group; "" for a bare array.
    chunks : int
        Those that were read.
    nbytes : int
        Their voxels.
    ledger : str
        What they were compared with: ``done``, ``unfinished: 12 of 64 chunks`` or ``no ledger``.
    damaged : tuple of str
        Key of each damaged chunk, and what is wrong with it.
    places : tuple of Zyx
        Where the damaged chunks lie in the chunk grid, without those that are only not recorded.
    """

    path: str
    chunks: int
    nbytes: int
    ledger: str
    damaged: tuple[str, ...]
    places: tuple[Zyx, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What was found in a volume.

    Parameters
    ----------
    url : str
        As it was asked for.
    levels : tuple of LevelCheck
        Finest first; of a label group, the arrays of each level.
    seconds : float
        How long it took.
    source : str
        As it is opened again: `url`, and what is secret in it.
    """

    url: str
    levels: tuple[LevelCheck, ...]
    seconds: float
    source: str = field(default="", repr=False)

    @property
    def damaged(self) -> list[str]:
        """Key of every damaged chunk below `url`, and what is wrong with it."""
        return [line for level in self.levels for line in level.damaged]

    @property
    def unfinished(self) -> list[str]:
        """Paths of the arrays whose run has not finished."""
        return [level.path for level in self.levels if level.ledger not in (DONE, NO_LEDGER)]

    def raise_for_damage(self) -> None:
        """Do nothing where all is well.

        Raises
        ------
        DamageError
            Naming the damaged chunks.
        """
        if self.damaged:
            more = f"; and {len(self.damaged) - SHOWN} more" if len(self.damaged) > SHOWN else ""
            shown = "; ".join(self.damaged[:SHOWN])
            chunks = "chunk is" if len(self.damaged) == 1 else "chunks are"
            msg = (
                f"{len(self.damaged)} {chunks} damaged in {self.url} ({shown}{more}): "
                "repair them with --repair, restore them from a copy, or write the volume anew"
            )
            raise DamageError(msg)

    def __str__(self) -> str:
        """A line a level, a line a damaged chunk."""
        lines = [
            f"{level.path or '.'}: {level.chunks} chunks, {size(level.nbytes)} read, "
            f"ledger {level.ledger.removesuffix(' ledger')}, {len(level.damaged) or 'none'} damaged"
            for level in self.levels
        ]
        return "\n".join([f"{self.url}: verified in {duration(self.seconds)}", *lines, *self.damaged])


def verify(
    url: str | PathLike[str],
    *,
    level: int | None = None,
    storage_options: dict[str, Any] | None = None,
) -> VerifyReport:
    """Read every chunk of a volume, and tell which are not what was written.

    Parameters
    ----------
    url : str
        An OME-Zarr group, a label group or a bare array; local path or URL.
    level : int, optional
        Position of one level, 0 is the finest, or of one array of a label group, as listed; default: all.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    VerifyReport
        Whose `raise_for_damage` raises where a chunk is damaged.

    Raises
    ------
    InputError
        Nothing there, no such level, or a ledger that cannot be read.
    StoreError
        The store failed, so that nothing can be said of a chunk.

    Examples
    --------
    >>> import zarr
    >>> folder = getfixture("tmp_path")
    >>> _ = zarr.save_array(folder / "scan.zarr", np.ones((4, 8, 8), "uint8"))
    >>> verify(folder / "scan.zarr").damaged
    []
    """
    began = time.monotonic()
    arrays = open_all(str(url), storage_options=storage_options)
    if level is not None and not 0 <= level < len(arrays):
        msg = f"level {level} does not exist in {url}: it has {len(arrays)}, 0 is the finest"
        raise InputError(msg)
    chosen = arrays if level is None else [arrays[level]]
    checks = tuple(_verify_array(stored) for stored in chosen)
    return VerifyReport(without_secrets(arrays[0].url), checks, time.monotonic() - began, str(url))


@dataclass(frozen=True)
class Struck:
    """Blocks of one array that are to be computed again.

    Parameters
    ----------
    path : str
        The array's.
    blocks : int
        How many were struck from its ledger.
    stage : str
        What made the array.
    command : tuple of str, or None
        The words of the command line that computes them; None where none is recorded.
    """

    path: str
    blocks: int
    stage: str
    command: tuple[str, ...] | None


def strike(report: VerifyReport, *, storage_options: dict[str, Any] | None = None) -> list[Struck]:
    """Delete the damaged chunks, and strike their blocks from the ledger: what made them computes them again.

    Until then all readers refuse the volume as unfinished. The same command computes exactly these blocks,
    and those of an earlier repair that was interrupted.

    Parameters
    ----------
    report : VerifyReport
        What was found.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    list of Struck
        One an array, finest first; in this order they are to be computed.

    Raises
    ------
    InputError
        The volume is an array that was named itself, has no ledger, or another run writes to it; nothing
        was changed.
    """
    lost = {check.path for check in report.levels if any(line.endswith(UNRECORDED) for line in check.damaged)}
    places = {check.path: check.places for check in report.levels if check.places or check.path in lost}

    def chosen() -> list[StoredVolume]:
        every = open_all(report.source, storage_options=storage_options)
        return [stored for stored in every if stored.level.path in places or _was_struck(stored)]

    arrays = chosen()
    for stored in arrays:
        if stored.beside is not None or stored.ledger is None:
            told = f"{report.url} has no ledger of its own, which a repair needs"
            msg = f"{told}: name the group that inkzarr wrote"
            raise InputError(msg)
    if not arrays:
        return []
    with locked(report.source, storage_options=storage_options):
        store = open_store(report.source, storage_options=storage_options, read_only=False)
        return [_strike_array(stored, places.get(stored.level.path, ()), store) for stored in chosen()]


def _was_struck(stored: StoredVolume) -> bool:
    """Whether an earlier repair was ended before its blocks were computed."""
    ledger = None if stored.beside is not None else stored.ledger
    return ledger is not None and ledger.manifest is not None and ledger.manifest.state == STRUCK


def _strike_array(stored: StoredVolume, places: tuple[Zyx, ...], store: Store) -> Struck:
    """First the ledger, then the chunks: whenever this is cut off, nothing that is lost is called done."""
    ledger = stored.ledger
    if ledger is None or ledger.manifest is None:
        msg = "only arrays with a ledger are struck"
        raise RuntimeError(msg)
    ledger.store = store
    grid = Grid(stored.shape, stored.chunks)
    damaged = np.zeros(grid.counts, bool)
    for place in places:
        damaged[place] = True
    lost = {box for box in ledger.records if damaged[grid.cells(box).slices].any()}
    ledger.strike(lost)
    for key in sorted({_key(stored, index) for index in places}):
        sync(store.delete(key))
    stage = str(ledger.manifest.fingerprint.get("stage"))
    return Struck(stored.level.path, len(lost), stage.split()[0], ledger.manifest.command)


@dataclass(frozen=True)
class ChunkCheck:
    """Reads one chunk and says what is wrong with it.

    Parameters
    ----------
    stored : StoredVolume
        The array.
    table : ChunkTable or None
        What its ledger knows; None compares with nothing.
    expected : Box
        Chunks, counted in chunks, that a finished run must have recorded; empty while unfinished.
    """

    stored: StoredVolume
    table: ChunkTable | None
    expected: Box

    def __call__(self, index: Zyx) -> str | None:
        """What is wrong with chunk `index`; None where nothing is.

        Raises
        ------
        StoreError
            The store failed, which is no damage.
        """
        box = Grid(self.stored.shape, self.stored.chunks).box(index)
        try:
            voxels = np.asarray(self.stored.bounded_array[box.slices], dtype=self.stored.dtype)
        except StoreError as error:
            if str(error.__cause__).startswith(CUT_SHORT):
                return f"is cut short: {error.__cause__}"
            raise
        except Exception as error:  # noqa: BLE001 - codecs raise anything
            return f"does not decode: {type(error).__name__}: {' '.join(str(error).split())}"
        return None if self.table is None else self._compare(index, voxels, self.table)

    def _compare(self, index: Zyx, voxels: np.ndarray, table: ChunkTable) -> str | None:
        if not table.done[index]:
            return self._judge_unrecorded(index, voxels)
        if not table.nonzero[index]:
            return "holds voxels where only zeros were written" if voxels.any() else None
        if google_crc32c.value(np.ascontiguousarray(voxels).tobytes()) == table.crc32c[index]:
            return None
        if not sync(self.stored.array.store.exists(_key(self.stored, index))):
            return "is missing"
        return f"holds other voxels than were written (crc32c is not {table.crc32c[index]:08x})"

    def _judge_unrecorded(self, index: Zyx, voxels: np.ndarray) -> str | None:
        """Only the chunks outside the box that a finished run was to write may be unrecorded, and empty."""
        corners = zip(self.expected.start, index, self.expected.stop, strict=True)
        if all(low <= n < high for low, n, high in corners):
            return UNRECORDED
        return "holds voxels where none were to be written" if voxels.any() else None


def _verify_array(stored: StoredVolume) -> LevelCheck:
    """Read all chunks of one array that can be told good from bad."""
    path = stored.level.path
    grid, (table, expected, state) = Grid(stored.shape, stored.chunks), _ledger(stored)
    if table is not None and table.grid != grid:
        told = f"{path or '.'}: the array's shape or chunks are not the ledger's: its metadata was changed"
        return LevelCheck(path, 0, 0, state, (told,))
    known = None  # every chunk
    if table is None:
        known = stored.stored_chunks()
    elif state != DONE:
        known = table.done
    indices = grid.indices() if known is None else (Zyx(*map(int, at)) for at in np.argwhere(known))
    count = grid.counts.volume if known is None else int(np.count_nonzero(known))
    check = ChunkCheck(stored, table, expected)
    damaged, places, nbytes = [], [], 0
    name = "verify" + (f" {path}" if path else "")
    with Progress(name, count, unit="chunk") as progress:
        for index, wrong in _in_flight(check, indices, _threads(stored)):
            nbytes += grid.box(index).shape.volume * stored.dtype.itemsize
            progress.advance(1)
            if wrong is not None:
                damaged.append(f"{_name(stored, index)} {wrong}")
            if wrong not in (None, UNRECORDED):
                places.append(index)
    return LevelCheck(path, count, nbytes, state, tuple(damaged), tuple(places))


def _ledger(stored: StoredVolume) -> tuple[ChunkTable | None, Box, str]:
    """What the ledger knows, the chunks that its run was to write, and its state."""
    nothing = Box(Zyx(0, 0, 0), Zyx(0, 0, 0))
    if stored.ledger is None or stored.ledger.manifest is None:
        return None, nothing, NO_LEDGER
    manifest, table = stored.ledger.manifest, stored.ledger.chunk_table()
    expected = stored.ledger.cells
    if manifest.state == DONE:
        return table, expected, DONE
    done = np.count_nonzero(table.done[expected.slices])
    return table, nothing, f"unfinished: {done} of {expected.shape.volume} chunks"


def _threads(stored: StoredVolume) -> int:
    most = REMOTE_THREADS if is_remote(stored.url) else LOCAL_THREADS
    return max(1, min(most, BYTES_IN_FLIGHT // (2 * stored.chunks.volume * stored.dtype.itemsize)))


def _key(stored: StoredVolume, index: Zyx) -> str:
    return f"{stored.array.path}/{stored.chunk_key(index)}".lstrip("/")


def _name(stored: StoredVolume, index: Zyx) -> str:
    """A chunk's key below the URL; in a shard, with its place in the shard, counted in chunks."""
    key = _key(stored, index)
    if stored.array.shards is None:
        return key
    inside = (n % (s // c) for n, s, c in zip(index, stored.array.shards, stored.chunks, strict=True))
    return f"{key} [{','.join(map(str, inside))}]"


def _in_flight(
    check: Callable[[Zyx], str | None], indices: Iterable[Zyx], threads: int
) -> Iterator[tuple[Zyx, str | None]]:
    """Check all chunks, in order, with no more than `threads` of them in memory."""
    pending: deque[tuple[Zyx, Future[str | None]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in indices:
                pending.append((index, pool.submit(check, index)))
                if len(pending) > 2 * threads:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
