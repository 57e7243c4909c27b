"""Checksums of input files: each read once, by several threads; one that did not change is not read again."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c

from inkzarr.core.errors import InputError
from inkzarr.core.progress import Progress
from inkzarr.core.remote import is_remote

if TYPE_CHECKING:
    from collections.abc import Iterable

PIECE = 1 << 20
THREADS = 8


class FileSum(NamedTuple):
    """What a file was when it was read.

    Parameters
    ----------
    bytes : int
        Its size.
    mtime_ns : int
        When it was changed, in nanoseconds.
    crc32c : str
        Of all its bytes, 8 hexadecimal digits; empty where it was not read.
    """

    bytes: int
    mtime_ns: int
    crc32c: str


FileSums = dict[str, FileSum]
"""By absolute path."""


def remembered(out: str) -> FileSums:
    """What was noted beside a local output, see `remember`; nothing where there is no such note."""
    try:
        stored = json.loads(_note(out).read_bytes())
        return {path: FileSum(int(n), int(changed), str(crc)) for path, (n, changed, crc) in stored.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}


def remember(out: str, sums: FileSums) -> None:
    """Note checksums in a hidden file beside a local output: the next start need not read the files."""
    if is_remote(out) or not sums:
        return
    note = _note(out)
    partial = note.with_name(f"{note.name}.{os.getpid()}.partial")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(sums, indent=0, sort_keys=True))
        partial.replace(note)
    except OSError:
        partial.unlink(missing_ok=True)  # it only saves time


def unread(paths: Iterable[Path], known: FileSums) -> FileSums:
    """Sizes, with the checksums that are known of files that did not change; no file is read.

    Raises
    ------
    InputError
        A file is gone.
    """
    found = {}
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            msg = f"{path} can no longer be read ({error}): was it moved?"
            raise InputError(msg) from error
        name = str(path.absolute())
        found[name] = FileSum(stat.st_size, stat.st_mtime_ns, "")
        if name in known and known[name][:2] == found[name][:2]:
            found[name] = known[name]
    return found


def checksums(title: str, paths: Iterable[Path], known: FileSums, *, json_lines: bool = False) -> FileSums:
    """Checksums of the whole content of files; those that are known and did not change are not read.

    Parameters
    ----------
    title : str
        Of the progress.
    paths : iterable of pathlib.Path
        The files.
    known : dict
        See `remembered`.
    json_lines : bool
        Progress as JSON lines.

    Raises
    ------
    InputError
        A file cannot be read.
    """
    found = unread(paths, known)
    todo = [path for path, one in found.items() if not one.crc32c]
    if not todo:
        return found
    total = sum(found[path].bytes for path in todo)
    threads = min(THREADS, os.cpu_count() or 1)
    with (
        Progress(title, total, unit="byte", json_lines=json_lines) as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        for path, crc in zip(todo, pool.map(lambda path: _crc32c(path, progress), todo), strict=True):
            found[path] = found[path]._replace(crc32c=crc)
    return found


def as_stored(files: dict[str, Any], stored: object) -> dict[str, Any]:
    """Files by segment and name, where one that was not read is taken for the stored one if it is as long.

    Parameters
    ----------
    files : dict
        By segment and name: ``bytes`` and ``crc32c``, which is empty where the file was not read.
    stored : dict
        The same of an earlier run; anything else is passed over.
    """
    known = stored if isinstance(stored, dict) else {}

    def settle(segment: str, name: str, told: dict[str, Any]) -> dict[str, Any]:
        before = known.get(segment, {}).get(name, {})
        same = not told["crc32c"] and before.get("bytes") == told["bytes"]
        return before if same else told

    return {id_: {n: settle(id_, n, told) for n, told in of.items()} for id_, of in files.items()}


def _crc32c(path: str, progress: Progress) -> str:
    crc = 0
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(PIECE):
                crc = google_crc32c.extend(crc, piece)
                progress.advance(len(piece))
    except OSError as error:
        msg = f"{path} cannot be read ({error}): copy it again"
        raise InputError(msg) from error
    return f"{crc:08x}"


def _note(out: str) -> Path:
    """``.{name}.sources.json`` beside the output."""
    if is_remote(out):
        return Path(os.devnull)
    place = Path(out.removeprefix("file://")).absolute()
    return place.with_name(f".{place.name}.sources.json")
