"""Files and folders that appear only once they are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from inkzarr.core.errors import InputError
from inkzarr.core.lock import locked

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give a place to write to; what was written there replaces `out` at the end, and goes where that fails.

    What a run that was killed left beside `out` goes too.

    Parameters
    ----------
    out : pathlib.Path
        A file, or a folder that replaces a folder.

    Yields
    ------
    pathlib.Path
        Beside `out`, where nothing is yet.

    Raises
    ------
    InputError
        Another run writes `out`, its folder does not exist, or the disk is full, or does not let write.

    Examples
    --------
    >>> out = getfixture("tmp_path") / "told.txt"
    >>> with whole(out) as partial:
    ...     _ = partial.write_text("all of it")
    >>> out.read_text()
    'all of it'
    """
    out = Path(os.path.realpath(out)) if os.path.islink(out) else out  # noqa: PTH114 - which does not raise
    folder = out.absolute().parent
    if not folder.is_dir():
        msg = f"{out} cannot be written: {folder} is no folder: create it, or choose another place"
        raise InputError(msg)
    partial, before = (out.with_name(f".{out.name}.{state}") for state in ("partial", "before"))
    with locked(str(folder), name=f".{out.name}.lock"):
        try:
            _restore(before, out)
            _remove(partial)
            yield partial
            try:
                if partial.is_dir() and out.is_dir():  # which no folder can replace
                    _remove(before)
                    out.replace(before)
                partial.replace(out)
            except BaseException:
                _restore(before, out)
                raise
            _remove(before)
        except OSError as error:
            msg = f"{out} cannot be written ({error}): make room or choose another place, and run again"
            raise InputError(msg) from error
        finally:
            _remove(partial)


def _restore(before: Path, out: Path) -> None:
    """Put back what was there, where a run ended after it moved that away and before the new came."""
    if before.exists() and not out.exists():
        before.replace(out)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
