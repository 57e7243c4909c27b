"""Files and folders that appear only once they are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from inkzarr.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def whole(out: Path, *, locked: bool = False) -> Iterator[Path]:
    """Give a place to write to; what was written there replaces `out` at the end, and goes where that fails.

    Parameters
    ----------
    out : pathlib.Path
        A file, or a folder that replaces a folder.
    locked : bool
        Whether a lock keeps other runs away from `out`; what a run that was killed left there goes then.

    Yields
    ------
    pathlib.Path
        Beside `out`, where nothing is yet.

    Raises
    ------
    InputError
        The disk is full, or does not let write.

    Examples
    --------
    >>> out = getfixture("tmp_path") / "told.txt"
    >>> with whole(out) as partial:
    ...     _ = partial.write_text("all of it")
    >>> out.read_text()
    'all of it'
    """
    tag = "" if locked else f".{os.getpid()}"
    partial, before = (out.with_name(f".{out.name}{tag}.{state}") for state in ("partial", "before"))
    try:
        _remove(partial)
        yield partial
        if partial.is_dir() and out.is_dir():  # which no folder can replace
            _remove(before)
            out.replace(before)
        partial.replace(out)
        _remove(before)
    except OSError as error:
        msg = f"{out} cannot be written ({error}): make room or choose another place, and run again"
        raise InputError(msg) from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
