"""What blocks leave to later ones of their column, in the process that computes both.

Sums of windows that reach into a later block, and cells of voxels that it will see, are set aside: on a CPU
in one unnamed file of the temporary folder, so that memory does not grow with the column; on a GPU where
they are. It is a cache: what is not found is computed or read again, and no voxel depends on it.
"""

from __future__ import annotations

import math
import tempfile
import threading
import weakref
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from inkzarr.core.errors import DiskError
from inkzarr.core.progress import size

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from inkzarr.core.geometry import Box, Zyx

MOST_COLUMNS = 16
"""Of which something is kept in a process at once: as many as may be in flight there."""


class Place(NamedTuple):
    """Where an array lies in a shelf's file.

    Parameters
    ----------
    offset : int
        In bytes.
    shape : tuple of int
        Of the array.
    dtype : numpy.dtype
        Of the array.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Shelf:
    """Arrays set aside, in a file whose places are used again, or as they are.

    Parameters
    ----------
    in_file : bool
        Whether they are NumPy arrays that should take no memory.

    Examples
    --------
    >>> shelf = Shelf(in_file=True)
    >>> place = shelf.put(np.arange(6).reshape(3, 2))
    >>> shelf.planes(place, 1, 3)
    array([[2, 3],
           [4, 5]])
    """

    def __init__(self, *, in_file: bool) -> None:
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(buffering=0) if in_file else None  # noqa: SIM115 - as long as this
        if self._file is not None:
            weakref.finalize(self, self._file.close)
        self._free: dict[int, list[int]] = defaultdict(list)
        self._end = 0

    def put(self, array: Any) -> Any:  # noqa: ANN401
        """Set a copy of a tensor or array aside; what finds it again.

        Raises
        ------
        DiskError
            The temporary folder is full.
        """
        if self._file is None:
            return array.clone() if isinstance(array, torch.Tensor) else array.copy()
        array = np.asarray(array)
        with self._lock:
            free = self._free[array.nbytes]
            offset = free.pop() if free else self._end
            self._end = max(self._end, offset + array.nbytes)
            try:
                self._file.seek(offset)
                for plane in array:
                    rest = np.ascontiguousarray(plane).data.cast("B")
                    while rest:
                        rest = rest[self._file.write(rest) :]
            except OSError as error:
                what = (
                    f"{size(array.nbytes)} cannot be set aside in {tempfile.gettempdir()} ({error.strerror})"
                )
                msg = f"{what}: make room there, or set TMPDIR to a folder with more"
                raise DiskError(msg) from error
        return Place(offset, array.shape, array.dtype)

    def planes(self, place: Any, start: int, stop: int) -> Any:  # noqa: ANN401
        """Part of an array, along its first axis."""
        if self._file is None:
            return place[start:stop]
        found = np.empty((stop - start, *place.shape[1:]), place.dtype)
        with self._lock:
            self._file.seek(place.offset + start * found[0].nbytes)
            rest = found.data.cast("B")
            while rest:
                rest = rest[self._file.readinto(rest) :]
        return found

    def drop(self, place: Any) -> None:  # noqa: ANN401
        """Give a place back."""
        if self._file is not None:
            with self._lock:
                self._free[math.prod(place.shape) * place.dtype.itemsize].append(place.offset)


class Part(NamedTuple):
    """What one block leaves to another.

    Parameters
    ----------
    box : Box
        The voxels that the sums are of, inside the other block.
    place : object
        Where the sums are.
    ran, seen : frozenset of Zyx
        Windows that they are the sums of, and these with those that were found to be air.
    """

    box: Box
    place: Any
    ran: frozenset[Zyx]
    seen: frozenset[Zyx]


def _owner(array: np.ndarray) -> np.ndarray:
    """The array that a view is of."""
    return array if array.base is None else _owner(array.base)


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
    cells : dict of Zyx to object
        Places of cells of voxels; to be used under `lock`.
    """

    def __init__(self, *, in_file: bool) -> None:
        self.shelf, self.lock = Shelf(in_file=in_file), threading.Lock()
        self.cells: dict[Zyx, Any] = {}
        self.parts: dict[Zyx, list[Part]] = defaultdict(list)
        self._rooms: dict[str, np.ndarray] = {}

    def borrow(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array for one block after the other: making room anew takes long, and leaves gaps in memory.

        Zeros at first, then what was given back under that name.
        """
        count = math.prod(shape)
        with self.lock:
            room = self._rooms.pop(name, np.empty(0, dtype))
        room = room if len(room) >= count else np.zeros(count, dtype)
        return room[:count].reshape(shape)

    def give(self, **arrays: np.ndarray) -> None:
        """Give borrowed arrays back, by name."""
        with self.lock:
            self._rooms |= {name: _owner(array) for name, array in arrays.items()}

    def leave(self, start: Zyx, part: Part) -> None:
        """Leave something to the block that begins at `start`."""
        with self.lock:
            self.parts[start].append(part)

    def take(self, start: Zyx) -> list[Part]:
        """Take what was left to the block that begins at `start`; the places are then to be dropped."""
        with self.lock:
            return self.parts.pop(start, [])


class Aside:
    """The columns of this process, by run and place; those of other runs are forgotten, and all but a few."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._columns: OrderedDict[tuple[str, Zyx], Column] = OrderedDict()

    def column(self, run: str, start: Zyx, *, in_file: bool) -> Column:
        """The column that begins at `start`."""
        with self._lock:
            found = self._columns.pop((run, start), None) or Column(in_file=in_file)
            self._columns[run, start] = found
            for key in list(self._columns):
                if key[0] != run or len(self._columns) > MOST_COLUMNS:
                    del self._columns[key]
            return found

    def tidy(self, run: str, start: Zyx) -> None:
        """Forget a column of which no sums are left: it is done, or what follows is air."""
        with self._lock:
            column = self._columns.get((run, start))
            if column is not None and not column.parts:
                del self._columns[run, start]

    def forget(self, run: str) -> None:
        """Forget a run that is over."""
        with self._lock:
            for key in [key for key in self._columns if key[0] == run]:
                del self._columns[key]

    def __len__(self) -> int:
        """How many columns something was left of."""
        return len(self._columns)


aside = Aside()
