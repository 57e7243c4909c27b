"""The keys below a folder of a store, as reading finds them; and their deletion."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from typing import TYPE_CHECKING

from zarr.storage import FsspecStore, LocalStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from zarr.abc.store import Store

AT_ONCE = 64
"""Keys that are deleted side by side."""
PATTERN = {*"*?["}
"""What fsspec takes for more than a letter."""


async def delete_key(store: Store, key: str) -> None:
    """Delete one key, and none whose name it would match as a pattern, as fsspec's own deletion would."""
    if not isinstance(store, FsspecStore):
        await store.delete(key)
        return
    with contextlib.suppress(FileNotFoundError, *store.allowed_exceptions):
        await store.fs._rm_file(f"{store.path.rstrip('/')}/{key}")


async def delete_below(store: Store, prefix: str) -> None:
    """Delete all keys of a folder; "" is the whole store.

    Raises
    ------
    OSError
        A key is refused: S3, asked for many at a time, says so in its answer alone.
    """
    if not (isinstance(store, FsspecStore) and PATTERN & {*store.path, *prefix}):
        with contextlib.suppress(FileNotFoundError):
            await store.delete_dir(prefix)
    if isinstance(store, FsspecStore):
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        left = [key async for key in store.list_prefix(prefix) if key.startswith(folder)]
        for at in range(0, len(left), AT_ONCE):
            await asyncio.gather(*(delete_key(store, key) for key in left[at : at + AT_ONCE]))


async def keys_below(store: Store, prefix: str) -> AsyncIterator[str]:
    """All keys of a folder; "" is the whole store.

    On a local disk links are followed, as reading follows them, but not back into a folder above. A folder
    that may not be looked into and a link that leads nowhere are errors: zarr's own list passes over them,
    and what a list leaves out would be taken for empty.

    Raises
    ------
    OSError
        A folder cannot be looked into, or a link leads nowhere.
    """
    if not isinstance(store, LocalStore):
        async for key in store.list_prefix(prefix):
            yield key
        return
    for path in _files(os.path.join(store.root, prefix), ()):  # noqa: PTH118 - strings, of many chunks
        yield os.path.relpath(path, store.root).replace(os.sep, "/")


def _files(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        found = os.stat(folder)  # noqa: PTH116
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # deleted meanwhile
        refuse_dangling(folder)
        return
    place = (found.st_dev, found.st_ino)
    if place in above:
        return
    for entry in entries:
        if entry.is_symlink():
            refuse_dangling(entry.path)
        if entry.is_dir():
            yield from _files(entry.path, (*above, place))
        else:
            yield entry.path


def refuse_dangling(path: str | Path) -> None:
    """Do nothing where a path is there, or is not, but for a link on the way that leads nowhere.

    Raises
    ------
    OSError
        It does: that is no "no such key", as where a disk is not mounted.
    """
    at = os.fspath(path)
    while not os.path.lexists(at):
        at = os.path.dirname(at)  # noqa: PTH120
    try:
        os.stat(at)  # noqa: PTH116
    except FileNotFoundError as error:
        raise OSError(errno.EIO, "a link that leads nowhere", at) from error
