"""A folder that keeps chunks of remote volumes, so that each is fetched once; safe for several processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

LARGEST = 50 * 10**9
"""Bytes that a folder may grow to; then what was not used for longest goes."""
SWEEP_EVERY = 64
"""Chunks kept between two looks at the folder's size."""
CHECKSUM = 4
"""Bytes in front of each file's content."""


@dataclass
class ChunkFolder:
    """Chunks on a local disk, by where they come from.

    A file is written beside its place and renamed, and begins with its checksum: a reader finds all of it, or
    nothing. Nobody asks whether the remote volume has changed: empty the folder where it has.

    Parameters
    ----------
    path : str
        The folder; made if need be.
    place : str
        URL of the volume, its query and fragment included, and its server where the URL does not name it.
        Only its hash is written.
    most : int
        Bytes.

    Examples
    --------
    >>> kept = ChunkFolder(str(getfixture("tmp_path")), "https://host/scan.zarr")
    >>> kept.get("0/0/0/0") is None
    True
    >>> kept.put("0/0/0/0", b"voxels")
    >>> kept.get("0/0/0/0")
    b'voxels'
    """

    path: str
    place: str = field(repr=False)
    most: int = LARGEST
    _puts: int = 0

    def get(self, name: str) -> bytes | None:
        """What is kept under a name; None where nothing is, or where it is damaged."""
        file = self._file(name)
        try:
            content = file.read_bytes()
            os.utime(file)
        except OSError:
            return None
        body = content[CHECKSUM:]
        return body if content[:CHECKSUM] == _checksum(body) else None

    def put(self, name: str, body: bytes) -> None:
        """Keep something; a disk that is full keeps nothing, and fails nobody."""
        file = self._file(name)
        partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(_checksum(body) + body)
            partial.replace(file)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
        if self._puts % SWEEP_EVERY == 0:
            self._sweep()
        self._puts += 1

    def forget(self, key: str) -> None:
        """Delete what is kept of a key, or of parts of it: it does not decode."""
        whole = self._file(key)
        for file in [whole, *whole.parent.glob(f"{whole.name}-*")]:
            with contextlib.suppress(OSError):
                file.unlink()

    def _sweep(self) -> None:
        """Delete what was not used for longest, until a tenth is free."""
        found = []
        for file in Path(self.path).glob("??/*"):
            with contextlib.suppress(OSError):
                told = file.stat()
                found.append((told.st_mtime, told.st_size, file))
        total = sum(nbytes for _, nbytes, _ in found)
        if total <= self.most:
            return
        for _, nbytes, file in sorted(found):
            if total <= 0.9 * self.most:
                break
            with contextlib.suppress(OSError):
                file.unlink()
                total -= nbytes

    def _file(self, name: str) -> Path:
        """A name is a key, or a key and, after a space, a part of it."""
        key, *part = name.split(" ", 1)
        digest = hashlib.sha256(f"{self.place}\n{key}".encode()).hexdigest()
        parts = (f"-{hashlib.sha256(one.encode()).hexdigest()[:16]}" for one in part)
        return Path(self.path, digest[:2], "".join([digest[2:], *parts]))


def _checksum(body: bytes) -> bytes:
    return int(google_crc32c.value(body)).to_bytes(CHECKSUM, "little")
