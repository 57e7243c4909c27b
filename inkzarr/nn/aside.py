"""What blocks leave to later ones of their column, in the process that computes both.

Sums of windows that reach into a later block, and cells of voxels that it will see, are set aside: on a CPU
in one unnamed file of the temporary folder a column, so that memory does not grow with it; on a GPU in
memory, sums in the device's. It is a cache: what is not found is computed or read again.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import logging
import math
import os
import tempfile
import threading
import weakref
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from inkzarr.core.errors import DiskError
from inkzarr.core.progress import size
from inkzarr.nn.threads import on_threads, share

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from numpy.typing import DTypeLike

    from inkzarr.core.geometry import Box, Zyx

log = logging.getLogger(__name__)
_seeking = threading.Lock()
"""Where a file has but one place at a time, as on Windows."""

THREADS = "aside"
"""Those that write and read what is set aside."""
IDLE_COLUMNS = 4
"""That are kept where as many blocks at once at most were computed; of more blocks, as many again."""


class Place(NamedTuple):
    """Where an array lies in a shelf's file.

    Parameters
    ----------
    offset, room : int
        In bytes.
    shape : tuple of int
        Of the array.
    dtype : numpy.dtype
        Of the array.
    """

    offset: int
    room: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Shelf:
    """Arrays set aside, in a file whose places are used again, or as they are.

    Parameters
    ----------
    in_file : bool
        Whether they go to a file; else they stay where they are, tensors on their device.

    Raises
    ------
    DiskError
        No file can be made.

    Examples
    --------
    >>> shelf = Shelf(in_file=True)
    >>> place = shelf.put(np.arange(6).reshape(3, 2))
    >>> shelf.planes(place, 1, 3)
    array([[2, 3],
           [4, 5]])
    """

    def __init__(self, *, in_file: bool) -> None:
        self._lock, self._file = threading.Lock(), None
        self._free: list[tuple[int, int]] = []  # room and offset, the smallest first
        self._end, self._warned = 0, False
        if in_file:
            try:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this
            except OSError as error:
                msg = (
                    f"no temporary file can be made ({error}): set TMPDIR to a folder that can be written to"
                )
                raise DiskError(msg) from error
            weakref.finalize(self, self._file.close)

    def put(self, array: Any) -> Any:  # noqa: ANN401
        """Set a copy of a tensor or array aside.

        Returns
        -------
        object
            Its place; None where the temporary folder, or the device's memory, is full, which is warned of
            once.
        """
        if self._file is None:
            try:
                return array.clone() if isinstance(array, torch.Tensor) else array.copy()
            except (MemoryError, torch.OutOfMemoryError):
                self._warn(f"{size(array.nbytes)} cannot be set aside in memory", "give less --memory")
                return None
        array = np.asarray(array)
        with self._lock:
            at = bisect.bisect_left(self._free, (array.nbytes, 0))
            room, offset = self._free.pop(at) if at < len(self._free) else (array.nbytes, self._end)
            self._end = max(self._end, offset + room)
        place = Place(offset, room, array.shape, array.dtype)
        try:
            on_threads(THREADS, _write, [(self._file, offset, array)])
        except OSError as error:
            self.drop(place)
            what = f"{size(array.nbytes)} cannot be set aside in {tempfile.gettempdir()} ({error.strerror})"
            self._warn(what, "make room there, or set TMPDIR to another folder")
            return None
        return place

    def _warn(self, what: str, remedy: str) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            log.warning("%s, windows are run twice: %s", what, remedy)

    def planes(self, place: Any, start: int, stop: int) -> Any:  # noqa: ANN401
        """Part of an array, along its first axis; None, with a warning, where it cannot be had."""
        if self._file is None:
            return place[start:stop]
        found = np.empty((stop - start, *place.shape[1:]), place.dtype)
        try:
            _read(self._file, place.offset + start * found[0].nbytes, found)
        except OSError as error:
            what = f"what was set aside in {tempfile.gettempdir()} cannot be read back ({error.strerror})"
            self._warn(what, "set TMPDIR to another folder")
            return None
        return found

    def drop(self, place: Any) -> None:  # noqa: ANN401
        """Give a place back."""
        if self._file is not None:
            with self._lock:
                if place.offset + place.room == self._end:
                    self._end = place.offset
                else:
                    bisect.insort(self._free, (place.room, place.offset))


def _write(n: int, count: int, file: FileIO, offset: int, array: np.ndarray) -> None:
    """The n-th of `count` shares of an array, plane by plane, as most are parts of a larger one."""
    for z in share(n, count, len(array)):
        at, rest = offset + z * array[z].nbytes, np.ascontiguousarray(array[z]).data.cast("B")
        while rest:
            written = _write_at(file, rest, at)
            at, rest = at + written, rest[written:]


def _read(file: FileIO, offset: int, array: np.ndarray) -> None:
    rest = array.data.cast("B")
    while rest:
        if not (found := _read_at(file, rest, offset)):
            raise OSError(errno.EIO, "its file was cut short")
        offset, rest = offset + found, rest[found:]


def _write_at(file: FileIO, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(file.fileno(), data, offset)
    with _seeking:
        file.seek(offset)
        return file.write(data)


def _read_at(file: FileIO, data: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [data], offset)
    with _seeking:
        file.seek(offset)
        return file.readinto(data)


class Part(NamedTuple):
    """What one block leaves to another.

    Parameters
    ----------
    box : Box
        The voxels that the sums are of, inside the other block.
    place : object
        Where the sums are; None where `ran` is empty.
    ran, told : frozenset of Zyx
        Windows that they are the sums of, and these with those that were found to be air.
    """

    box: Box
    place: Any
    ran: frozenset[Zyx]
    told: frozenset[Zyx]


class Column:
    """What blocks of a column left in this process.

    Parameters
    ----------
    in_file : bool
        As of `Shelf`.

    Attributes
    ----------
    shelf : Shelf
        Where it lies.
    lock : threading.Lock
        Of `cells` and their places.
    cells : dict of Zyx to object
        Places of cells of voxels.
    users : int
        How many blocks are being computed.
    """

    def __init__(self, *, in_file: bool) -> None:
        self.shelf, self.lock = Shelf(in_file=in_file), threading.Lock()
        self.cells: dict[Zyx, Any] = {}
        self.users = 0
        self._parts: dict[Zyx, list[Part]] = defaultdict(list)

    def leave(self, start: Zyx, part: Part) -> None:
        """Leave something to the block that begins at `start`."""
        with self.lock:
            self._parts[start].append(part)

    def parts(self, start: Zyx) -> list[Part]:
        """What was left to the block that begins at `start`, no window in two of them.

        A window may have been run twice, after a failure or a restart: of parts that share one, the one that
        tells of more windows is given.
        """
        told: set[Zyx] = set()
        found = []
        with self.lock:
            for part in sorted(self._parts[start], key=lambda part: -len(part.told)):
                if told.isdisjoint(part.told):
                    told |= part.told
                    found.append(part)
        return found

    def drop(self, start: Zyx) -> None:
        """Forget what was left to the block that begins at `start`: it is done."""
        with self.lock:
            for part in self._parts.pop(start, []):
                if part.place is not None:
                    self.shelf.drop(part.place)


class Aside:
    """The columns of this process, by run and place, and memory that its blocks use one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._columns: OrderedDict[tuple[str, Zyx], Column] = OrderedDict()
        self._rooms: dict[str, list[np.ndarray]] = defaultdict(list)
        self._users = self._most = 0

    @contextlib.contextmanager
    def column(self, run: str, start: Zyx, *, in_file: bool, last: bool) -> Iterator[Column]:
        """The column that begins at `start`, for one block; forgotten after the `last`.

        What other runs left is forgotten, and all but some columns that no block uses.
        """
        with self._lock:
            found = self._columns.pop((run, start), None) or Column(in_file=in_file)
            self._columns[run, start] = found
            found.users += 1
            self._users += 1
            self._most = max(self._most, self._users)
            idle = [key for key, column in self._columns.items() if not column.users]
            others = [key for key in idle if key[0] != run]
            for key in others or idle[: -max(IDLE_COLUMNS, 2 * self._most)]:
                del self._columns[key]
        try:
            yield found
        finally:
            with self._lock:
                found.users -= 1
                self._users -= 1
                if last and not found.users:
                    self._columns.pop((run, start), None)

    def borrow(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array for one block after the other: making room anew takes long, and leaves gaps in memory.

        Zeros at first, then what was given back under that name.
        """
        count = math.prod(shape)
        with self._lock:
            room = self._rooms[name].pop() if self._rooms[name] else np.empty(0, dtype)
        if len(room) < count or room.dtype != dtype:
            room = np.zeros(count, dtype)
        return room[:count].reshape(shape)

    def give(self, **arrays: np.ndarray) -> None:
        """Give borrowed arrays back, by name."""
        with self._lock:
            for name, array in arrays.items():
                self._rooms[name].append(_owner(array))

    def forget(self, run: str) -> None:
        """Forget a run that is over."""
        with self._lock:
            for key in [key for key in self._columns if key[0] == run]:
                del self._columns[key]
            self._rooms.clear()

    def __len__(self) -> int:
        """How many columns something was left of."""
        return len(self._columns)


def _owner(array: np.ndarray) -> np.ndarray:
    """The array that a view is of."""
    return array if array.base is None else _owner(array.base)


aside = Aside()


def forget(run: str) -> None:
    """Forget a run that is over, in this process."""
    aside.forget(run)
