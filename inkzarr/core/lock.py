"""A lock on an output: of two runs that write to one place, the second is refused.

::

    OUT/.inkzarr.lock    who: host, pid, which process of which machine       how long it has run
                         beat: 0, 1, 2, ...  raised every 10 s as long as the run lives

It lies on the output's own store, local or S3. No two clocks are ever compared: a lock is dead where its
process is gone from this machine; elsewhere, where its beat stood still while it was watched for a minute.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import socket
import threading
import time
import uuid
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from inkzarr.core.bodies import NO_BYTE
from inkzarr.core.errors import BlocksFailedError, DiskError, InputError, StoreError
from inkzarr.core.progress import Progress, duration
from inkzarr.core.remote import is_remote, open_store
from inkzarr.core.schema import LOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import Store

BEAT_S = 10.0
DEAD_S = 60.0
"""So long a beat that stands still is watched before its lock is taken over."""
WATCH_S = 1.0
SETTLE_S = 1.0
"""So long a run waits before it looks whether the lock that it wrote is its own: where two write it at once,
the last one stays."""

_live: set[str] = set()
"""Tokens of the locks that this process holds."""
_held: ContextVar[tuple[Lock, ...]] = ContextVar("held", default=())


@dataclass(frozen=True)
class Holder:
    """What a lock says of the run that holds it.

    Parameters
    ----------
    host, pid : str, int
        To be told.
    machine, born : str
        The machine's boot and process namespace, and when in its ticks the process began, since numbers of
        processes are given again; empty where the system does not say.
    token : str
        Of this one lock.
    since : float
        Seconds from the machine's boot until the run began, by the clock that nobody sets.
    beat : int
        Raised as long as the run lives.
    seconds : float
        For how long it ran at that beat, by the same clock.
    """

    host: str
    pid: int
    machine: str
    born: str
    token: str
    since: float
    beat: int = 0
    seconds: float = 0.0

    @classmethod
    def new(cls) -> Holder:
        """A lock of this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _machine(), _born(pid), uuid.uuid4().hex, time.monotonic())

    @classmethod
    def from_json(cls, text: str) -> Holder | None:
        """Read it; None where it cannot be read."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def gone(self) -> bool | None:
        """Whether the run is over; None where that cannot be told from here."""
        if not (self.machine and self.born) or self.machine != _machine():
            return None
        if self.pid == os.getpid():
            return self.token not in _live
        return _born(self.pid) != self.born

    def __str__(self) -> str:
        here = self.machine == _machine() != ""
        age = time.monotonic() - self.since if here else self.seconds
        return f"process {self.pid} on {self.host}, {duration(age)} old"


class Lock:
    """The lock of one output.

    Parameters
    ----------
    out : str
        The output, to be told.
    store : zarr.abc.store.Store
        Writable.
    key : str
        Of the lock in it.
    """

    def __init__(self, out: str, store: Store, key: str) -> None:
        self.out, self.store, self.key = out, store, key
        self.me = Holder.new()
        self.lost = False
        self._over, self._busy = threading.Event(), threading.Lock()

    def take(self) -> None:
        """Create the lock, or take over one that is dead, and keep it until it is released.

        Raises
        ------
        InputError
            Another run holds it.
        """
        _live.add(self.me.token)
        self._create()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def _create(self) -> None:
        sure, seen, since = not is_remote(self.out), None, 0.0
        while True:
            sync(self.store.set_if_not_exists(self.key, self._buffer()))
            text = self._read()
            holder = None if text is None else Holder.from_json(text)
            if text is None:
                continue  # released at this moment
            if holder is not None and holder.token == self.me.token:
                if sure:
                    return
                sure = True
                time.sleep(SETTLE_S)
                continue
            gone = None if holder is None else holder.gone()
            if gone is None and seen == text:
                gone = True if time.monotonic() - since > DEAD_S else None
            elif gone is None and seen is not None:
                gone = False
            if gone is False:
                msg = f"{self.out} is being written by another run, {holder}: wait for it, or stop it"
                raise InputError(msg)
            if gone:
                self._say(f"taken over from a run that is gone, {holder or 'unknown'}")
                sure = False
                sync(self.store.set(self.key, self._buffer()))
                continue
            if seen is None:
                self._say(f"{holder or 'another run'} may be writing, watched for up to {duration(DEAD_S)}")
                seen, since = text, time.monotonic()
            time.sleep(WATCH_S)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with (
                contextlib.suppress(StoreError),
                self._busy,
            ):  # it comes again, before anybody takes it for dead
                if not self._over.is_set():
                    self._renew()

    def _renew(self) -> None:
        """Raise the beat, unless somebody else has taken the lock."""
        self.lost = self.lost or not self._mine()
        if not self.lost:
            seconds = time.monotonic() - self.me.since
            self.me = replace(self.me, beat=self.me.beat + 1, seconds=round(seconds, 1))
            sync(self.store.set(self.key, self._buffer()))

    def require(self) -> None:
        """Do nothing as long as the lock is held.

        Raises
        ------
        BlocksFailedError
            Another run has taken it, since this one was stopped or cut off for long.
        """
        if self.lost:
            msg = f"{self.out} was taken over by another run while this one stood still: see to that one"
            raise BlocksFailedError(msg)

    @contextlib.contextmanager
    def emptied(self) -> Iterator[None]:
        """While all that is in the output is deleted, the lock included."""
        with self._busy:
            self.lost = self.lost or not self._mine()
            self.require()
            yield
            sync(self.store.set_if_not_exists(self.key, self._buffer()))
            self.lost = not self._mine()
        self.require()

    def release(self) -> None:
        """Give the output free, if it was taken."""
        try:
            self._over.set()
            _live.discard(self.me.token)
            self._delete()
        except KeyboardInterrupt:
            self._delete()
            raise

    def _delete(self) -> None:
        with self._busy, contextlib.suppress(StoreError):  # whoever comes next will find it dead
            if self._mine():
                sync(self.store.delete(self.key))

    def _mine(self) -> bool:
        text = self._read()
        holder = None if text is None else Holder.from_json(text)
        return holder is not None and holder.token == self.me.token

    def _read(self) -> str | None:
        try:
            found = sync(self.store.get(self.key, prototype=default_buffer_prototype()))
        except StoreError as error:
            if NO_BYTE in str(error):  # a power failure may leave it so
                return ""
            raise
        return None if found is None else found.to_bytes().decode(errors="replace")

    def _buffer(self) -> Any:  # noqa: ANN401
        return default_buffer_prototype().buffer.from_bytes(json.dumps(asdict(self.me)).encode())

    def _say(self, what: str) -> None:
        Progress(self.out, 0, unit="lock").say(f"{self.out}: {what}")


@contextlib.contextmanager
def locked(folder: str, *, name: str = LOCK, storage_options: dict[str, Any] | None = None) -> Iterator[Lock]:
    """Hold the lock of an output, and release it however the run ends.

    Parameters
    ----------
    folder : str
        In which the lock lies: the output, or the folder around a file; local path or URL. Where it does not
        exist it is made, and removed again if nothing was written to it.
    name : str
        Of the lock, which differs for files of one folder.
    storage_options : dict, optional
        For fsspec.

    Yields
    ------
    Lock
        The one that is held already, where this is asked for inside.

    Raises
    ------
    InputError
        Another run holds it, or a local folder cannot be written.
    StoreError
        The store failed.
    """
    place = folder.rstrip("/") if is_remote(folder) else os.path.realpath(folder.removeprefix("file://"))
    out = place if name == LOCK else f"{place}/{name.strip('.').removesuffix('.lock')}"
    for lock in _held.get():
        if (lock.out, lock.key) == (out, name):
            yield lock
            return
    made = [] if is_remote(folder) else [each for each in _and_above(Path(place)) if not each.exists()]
    lock = Lock(out, open_store(folder, storage_options=storage_options, read_only=False), name)
    before = _held.set((*_held.get(), lock))
    try:
        try:
            lock.take()
        except DiskError as error:
            msg = f"{folder} cannot be written: choose a folder that can ({error})"
            raise InputError(msg) from error
        if not is_remote(folder):
            _sweep(Path(place), name)
        yield lock
    finally:
        try:
            lock.release()
        finally:
            _held.reset(before)
            _remove_empty(made)


def require_held() -> None:
    """Raise where a lock that this run holds was taken over; see `Lock.require`."""
    for lock in _held.get():
        lock.require()


def _and_above(folder: Path) -> list[Path]:
    return [folder, *folder.parents]


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _sweep(folder: Path, name: str) -> None:
    """Remove what runs left that were killed while they wrote this lock, under the names that zarr gives."""
    for stray in folder.glob(f"{glob.escape(Path(name).stem)}.{'[0-9a-f]' * 32}.partial"):
        with contextlib.suppress(OSError):  # another user's, or open on Windows
            stray.unlink()


def _machine() -> str:
    """Tell this boot of this machine, and the namespace in which its processes are numbered."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began, in ticks since the boot; empty where there is none, or only its remains."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
