"""Compressed voxels, unpacked once into a temporary file, in bounded memory."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import zlib
from gzip import BadGzipFile, GzipFile
from typing import TYPE_CHECKING, Any

from inkzarr.core.errors import InputError
from inkzarr.core.progress import size

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator
    from pathlib import Path

COPY_BYTES = 2**22


class Packed:
    """Voxels compressed by gzip, unpacked into an unnamed temporary file when first asked for.

    The temporary file vanishes with the process, however that ends; pickled, another process
    unpacks its own.

    Parameters
    ----------
    path : Path
        The compressed file.
    start : int
        Where the compressed bytes begin.
    skip, nbytes : int
        Unpacked bytes before the first voxel, and of all voxels.
    """

    def __init__(self, path: Path, start: int, skip: int, nbytes: int) -> None:
        self.path, self.start, self.skip, self.nbytes = path, start, skip, nbytes
        self._lock = threading.Lock()
        self._unpacked: io.FileIO | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[io.FileIO]:
        """The unpacked file, for one thread at a time; its first byte is the first voxel's.

        Raises
        ------
        InputError
            The compressed bytes are damaged or too few, or the temporary folder is too small.
        """
        with self._lock:
            if self._unpacked is None:
                self._unpacked = self._unpack()
            yield self._unpacked

    def _unpack(self) -> io.FileIO:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if free < self.nbytes:
            msg = f"{self.path.name} unpacks to {size(self.nbytes)}, {folder} has {size(free)}: set TMPDIR"
            raise InputError(msg)
        target = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                _copy(GzipFile(fileobj=file), target, self.skip, self.nbytes)
        except (EOFError, BadGzipFile, zlib.error) as error:
            target.close()
            msg = f"{self.path.name} does not unpack ({error}): copy it again"
            raise InputError(msg) from error
        except BaseException:
            target.close()
            raise
        return target

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.start, self.skip, self.nbytes))

    def __del__(self) -> None:
        if self._unpacked is not None:
            self._unpacked.close()


def _copy(packed: GzipFile, target: io.FileIO, skip: int, nbytes: int) -> None:
    """Unpack the voxels, and read on to the end so that the checksum is compared."""
    todo = skip + nbytes
    while todo > 0:
        piece = packed.read(min(COPY_BYTES, todo))
        if not piece:
            msg = f"{todo} bytes are missing"
            raise EOFError(msg)
        todo -= len(piece)
        wanted = memoryview(piece)[min(skip, len(piece)) :]
        skip -= len(piece) - len(wanted)
        while wanted:
            wanted = wanted[target.write(wanted) :]
    if packed.read(1):
        msg = "it holds more bytes than its sizes tell"
        raise EOFError(msg)
