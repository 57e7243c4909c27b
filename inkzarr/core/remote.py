"""A store that is careful: it retries, times out, and takes nothing but "no such key" for an empty chunk.

Silence would turn scroll into air: a 403, a 5xx, a reset, a time-out or a body without a byte is an
error that names the key, never a missing chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from inkzarr.core.bodies import BLOSC_HEADER, check_blosc, check_length
from inkzarr.core.chunk_folder import ChunkFolder
from inkzarr.core.errors import DiskError, InputError, StoreError, hide_secrets
from inkzarr.core.schema import LEDGER_FOLDER, METADATA
from inkzarr.core.traffic import Traffic
from inkzarr.core.walk import delete_below, delete_key, keys_below, refuse_dangling

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

ATTEMPTS = 6
CONCURRENCY = 64
"""Requests of one array read at once, also where a cluster's worker reads."""
TIMEOUT_S = 60.0
"""Of silence; a slow line may take longer for a chunk."""
LONGEST_S = 600.0
"""Of one try in all."""
FIRST_WAIT_S = 0.2
WEB = ("http", "https")
S3 = ("s3", "s3a")
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
        self.blosc: set[str] = set()
        """Prefixes of keys that hold blosc frames, which are decoded past their end when cut short."""
        self.kept: ChunkFolder | None = None
        """Where chunks are kept on a local disk."""
        self.traffic = Traffic()
        self._fetching: dict[str, asyncio.Event] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fetching": {}, "traffic": Traffic()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        _once_only(self._store)
        _raise_concurrency(self._attempts)

    def _with_store(self, store: Store) -> CarefulStore:
        made = type(self)(store, self._attempts)
        made.kept = self.kept
        return made

    @property
    def supports_listing(self) -> bool:
        """Whether the store can tell all its keys: the pages of a web server are no such list."""
        return self._store.supports_listing and not self._web

    @property
    def _web(self) -> bool:
        protocol = getattr(getattr(self._store, "fs", None), "protocol", ())
        return "http" in ((protocol,) if isinstance(protocol, str) else protocol)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key; None only where the store says that there is none."""
        if key.rpartition("/")[2] in METADATA or LEDGER_FOLDER in key:
            return await self._fetch(key, prototype, byte_range)
        name = key if byte_range is None else f"{key} {byte_range}"
        if self.kept is None:
            found = await self._fetch(key, prototype, byte_range)
            fetched = found is not None
        else:
            found, fetched = await self._keep(self.kept, name, key, prototype, byte_range)
        if found is not None and self._attempts > 1:
            self.traffic.note(name, len(found), fetched=len(found) * fetched)
        return found

    async def _keep(
        self,
        kept: ChunkFolder,
        name: str,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None,
    ) -> tuple[Buffer | None, bool]:
        """What is kept under a name, else fetched and kept; and whether it was fetched."""
        while (other := self._fetching.get(name)) is not None:  # another block wants the same chunk
            await other.wait()
        self._fetching[name] = asyncio.Event()
        try:
            held = await asyncio.to_thread(kept.get, name)
            if held is not None:
                return prototype.buffer.from_bytes(held), False
            found = await self._fetch(key, prototype, byte_range)
            if found is not None:
                await asyncio.to_thread(kept.put, name, found.to_bytes())
            return found, True
        finally:
            self._fetching.pop(name).set()

    async def _fetch(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        async def once() -> Buffer | None:
            try:
                found = await self._store.get(key, prototype, byte_range)
            except FileNotFoundError:
                return None
            if found is None and isinstance(self._store, LocalStore):
                refuse_dangling(self._store.root / key)
            if found is not None:
                check_length(len(found), byte_range)
                if byte_range is None and self._is_blosc(key):
                    check_blosc(found[:BLOSC_HEADER].to_bytes(), len(found))
            return found

        return await self._try("read", key, once)

    def _is_blosc(self, key: str) -> bool:
        name = key.rpartition("/")[2]
        return name not in METADATA and any(key.startswith(prefix) for prefix in self.blosc)

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

    async def exists(self, key: str) -> bool:
        """Whether a key is there, found out with care: zarr asks for small keys only."""
        return await self.get(key, default_buffer_prototype()) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key."""
        await self._try("write", key, lambda: self._store.set(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a key unless it is there; in one step on local disks and S3, in two on stores that cannot."""
        await self._try("write", key, lambda: self._create(key, value))

    async def _create(self, key: str, value: Buffer) -> None:
        if not isinstance(self._store, FsspecStore):
            try:
                await self._store.set_if_not_exists(key, value)
            except FileNotFoundError:  # half written, it was swept by a run that has the lock
                if not (isinstance(self._store, LocalStore) and self._store.root.is_dir()):
                    raise
            return
        path = f"{self._store.path}/{key}".lstrip("/")
        try:
            await self._store.fs._pipe_file(path, value.to_bytes(), mode="create")
        except FileExistsError:
            return
        except OSError as error:
            if error.errno != errno.ENOSYS:  # the server's own "not implemented"; all else is a failure
                raise
            await self._store.set_if_not_exists(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self._try("delete", key, lambda: delete_key(self._store, key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete all keys of a folder, or of the whole store."""
        await self._try("delete", prefix or "all", lambda: delete_below(self._store, prefix))

    def list(self) -> AsyncIterator[str]:
        """All keys."""
        return self._list("", lambda: keys_below(self._store, ""))

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys of a folder."""
        return self._list(prefix, lambda: keys_below(self._store, prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """What lies directly in a folder."""
        return self._list(prefix, lambda: self._store.list_dir(prefix))

    async def _list(
        self, prefix: str, listing: Callable[[], AsyncIterator[str]]
    ) -> AsyncGenerator[str, None]:
        async def once() -> list[str]:
            with contextlib.suppress(FileNotFoundError):
                return [key async for key in listing()]
            return []

        for key in await self._try("list", prefix or "all", once):
            yield key

    async def _try(self, verb: str, key: str, once: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, self._attempts + 1):
            try:
                return await asyncio.wait_for(once(), LONGEST_S)
            except Exception as error:  # noqa: BLE001 - raised again, without secrets
                if attempt == self._attempts or _is_final(error):
                    msg = f"cannot {verb} {key} of {self._place} ({attempt} tries): {_tell(error)}"
                    kind = DiskError if isinstance(self._store, LocalStore) else StoreError
                    raise kind(msg) from harmless(error)
                wait = FIRST_WAIT_S * 2 ** (attempt - 1)
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads tries, keeps no secret
        msg = "a request needs at least one try"
        raise RuntimeError(msg)

    @property
    def _place(self) -> str:
        if not isinstance(self._store, FsspecStore):
            return str(self._store)
        return without_secrets(self._store.fs.unstrip_protocol(self._store.path))


def open_store(url: str, *, storage_options: dict[str, Any] | None = None, read_only: bool = True) -> Store:
    """Open the store at `url`, carefully.

    Parameters
    ----------
    url : str
        A local path, or any URL that fsspec knows (``http(s)://``, ``s3://``).
    storage_options : dict, optional
        For fsspec, such as ``{"anon": True}``; options of one kind of store alone as
        ``{"s3": {"key": ...}, "https": {...}}``; and ``cache``, a folder of this machine in which chunks
        that are read are kept.
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
    storage_options = dict(storage_options or {})
    cache = storage_options.pop("cache", None)
    if not is_remote(url):
        return CarefulStore(LocalStore(os.path.realpath(url.removeprefix("file://")), read_only=read_only))
    protocol = fsspec.utils.get_protocol(url)
    try:
        options = _with_care(protocol, _of_protocol(protocol, storage_options))
        store = FsspecStore.from_url(url, storage_options=options, read_only=read_only)
        _once_only(store)
    except (ImportError, ValueError) as error:
        msg = f"{url} cannot be opened ({error}): for http and s3 install inkzarr[remote]"
        raise InputError(msg) from harmless(error)
    _raise_concurrency(ATTEMPTS)
    careful = CarefulStore(store, ATTEMPTS)
    if cache is not None and read_only:
        server = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url", "")
        careful.kept = ChunkFolder(os.path.realpath(cache), f"{url} {server}".rstrip())
    return careful


def fault_of(url: str) -> type[StoreError]:
    """The kind of error that a failure of the store at `url` is."""
    return StoreError if is_remote(url) else DiskError


def is_refusal(error: StoreError) -> bool:
    """Whether a remote store answered that a key is not for us, which some answer for keys that they lack."""
    return not isinstance(error, DiskError) and error.__cause__ is not None and _is_final(error.__cause__)


def is_remote(url: str) -> bool:
    """Whether `url` names anything but a local path."""
    protocol = fsspec.utils.get_protocol(url)
    return protocol not in ("file", "local")


def without_secrets(url: str) -> str:
    """A URL without user, password and query, fit for files and messages.

    Examples
    --------
    >>> without_secrets("https://me:secret@host/scan.zarr?token=1")
    'https://host/scan.zarr'
    """
    return hide_secrets(url) if is_remote(url) else url


def _raise_concurrency(attempts: int) -> None:
    if attempts > 1:
        zarr.config.set({"async.concurrency": max(CONCURRENCY, zarr.config.get("async.concurrency"))})


def _of_protocol(protocol: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of one kind of store: those that are everybody's, and its own."""
    kinds = {name for name, value in given.items() if isinstance(value, dict)} & {*WEB, *S3, protocol}
    return {**{name: given[name] for name in given if name not in kinds}, **given.get(protocol, {})}


def _with_care(protocol: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options of a store that gives up on silence, asks once for a key, and lists what is there now."""
    if protocol in S3:
        config = {
            "connect_timeout": TIMEOUT_S,
            "read_timeout": TIMEOUT_S,
            "max_pool_connections": CONCURRENCY,
            "retries": {"total_max_attempts": 1},
            **given.get("config_kwargs", {}),
        }
        # s3fs asks for an object's size before each read, unless it reads the object in one piece
        return {"use_listings_cache": False, "max_concurrency": 1, **given, "config_kwargs": config}
    if protocol not in WEB:
        return {"use_listings_cache": False, **given}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
    return {**given, "client_kwargs": {"timeout": timeout, **given.get("client_kwargs", {})}}


def _once_only(store: Store) -> None:
    """Switch off the tries of s3fs: ours would multiply them."""
    fs = getattr(store, "fs", None)
    if fs is not None and "s3" in fs.protocol:
        fs.retries = 1


def _status(error: BaseException) -> int | None:
    return getattr(error, "status", None)


def _is_final(error: BaseException) -> bool:
    if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
        return True
    return _status(error) in FINAL_STATUS


def _with_status(error: Exception, status: int | None) -> Exception:
    error.__dict__["status"] = status
    return error


def harmless(error: Exception) -> Exception:
    """An error that may stand in a traceback: itself, or one that says the same without secrets."""
    told = repr(error)
    if hide_secrets(f"{told} {error}") == f"{told} {error}":
        return error
    harmless = PermissionError if isinstance(error, PermissionError) else OSError
    return _with_status(harmless(hide_secrets(told)), _status(error))


def _tell(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {TIMEOUT_S:g} s"
    if _status(error) is not None:
        return f"HTTP status {_status(error)}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
