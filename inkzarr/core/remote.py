"""A store that is careful: it retries, times out, and takes nothing but "no such key" for an empty chunk.

Silence would turn scroll into air: a 403, a 5xx, a reset, a time-out or a body without a byte is an
error that names the key, never a missing chunk.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from inkzarr.core.errors import InputError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

ATTEMPTS = 6
TIMEOUT_S = 60.0
FIRST_WAIT_S = 0.2
FINAL_STATUS = frozenset(range(400, 500)) - {408, 429}

T = TypeVar("T")


class CarefulStore(WrapperStore["Store"]):
    """Wrap a store so that a fault is retried, then raised with the key it struck.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The store to be careful with.
    attempts : int
        Tries for each request, at least 1.

    Raises
    ------
    StoreError
        From any read or write that failed in every try.
    """

    def __init__(self, store: Store, attempts: int = 1) -> None:
        super().__init__(store)
        self._attempts = attempts

    def _with_store(self, store: Store) -> CarefulStore:
        return type(self)(store, self._attempts)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key; None only where the store says that there is none."""

        async def once() -> Buffer | None:
            try:
                found = await self._store.get(key, prototype, byte_range)
            except FileNotFoundError:
                return None
            if found is not None and len(found) == 0:
                msg = "the body holds no byte"
                raise OSError(msg)
            return found

        return await self._try("read", key, once)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Read several parts of keys, each with care."""
        parts = (self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
        return list(await asyncio.gather(*parts))

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key."""
        await self._try("write", key, lambda: self._store.set(key, value))

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self._try("delete", key, lambda: self._store.delete(key))

    async def _try(self, verb: str, key: str, once: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, self._attempts + 1):
            try:
                return await asyncio.wait_for(once(), TIMEOUT_S)
            except Exception as error:
                if attempt == self._attempts or _is_final(error):
                    msg = f"cannot {verb} {key} of {self._store} ({attempt} tries): {_tell(error)}"
                    raise StoreError(msg) from error
                wait = FIRST_WAIT_S * 2 ** (attempt - 1)
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
        msg = "a request needs at least one try"
        raise RuntimeError(msg)


def open_store(url: str, *, storage_options: dict[str, Any] | None = None, read_only: bool = True) -> Store:
    """Open the store at `url`, carefully.

    Parameters
    ----------
    url : str
        A local path, or any URL that fsspec knows (``http(s)://``, ``s3://``).
    storage_options : dict, optional
        For fsspec, such as ``{"anon": True}``.
    read_only : bool
        Whether writing is refused.

    Returns
    -------
    zarr.abc.store.Store
        Local or remote, wrapped in `CarefulStore`.

    Raises
    ------
    InputError
        The URL's protocol is unknown, or its library is not installed.
    """
    if not is_remote(url):
        return CarefulStore(LocalStore(url.removeprefix("file://"), read_only=read_only))
    try:
        store = FsspecStore.from_url(url, storage_options=storage_options, read_only=read_only)
    except (ImportError, ValueError) as error:
        msg = f"{url} cannot be opened ({error}): for http and s3 install inkzarr[remote]"
        raise InputError(msg) from error
    return CarefulStore(store, ATTEMPTS)


def is_remote(url: str) -> bool:
    """Whether `url` names anything but a local path."""
    protocol = fsspec.utils.get_protocol(url)
    return protocol not in ("file", "local")


def _is_final(error: BaseException) -> bool:
    if isinstance(error, PermissionError):
        return True
    return getattr(error, "status", None) in FINAL_STATUS


def _tell(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {TIMEOUT_S:g} s"
    status = getattr(error, "status", None)
    if status is not None:
        return f"HTTP status {status}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
