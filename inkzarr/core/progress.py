"""Progress with an ETA: a bar in a terminal or notebook, quiet lines in a log, JSON lines where asked for."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from inkzarr.core.errors import hide_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

LINE_EVERY_S = 15.0

_tick: ContextVar[Callable[[int], None] | None] = ContextVar("tick", default=None)


def tick(done: int) -> None:
    """Tell from inside a block that `done` more units of work are done; silent where nobody listens."""
    listener = _tick.get()
    if listener is not None:
        listener(done)


@contextlib.contextmanager
def listening(listener: Callable[[int], None]) -> Iterator[None]:
    """Send the ticks of this thread to `listener`."""
    token = _tick.set(listener)
    try:
        yield
    finally:
        _tick.reset(token)


class Progress:
    """Shows how far a run is, on stderr or below a notebook's cell; safe to advance from any thread.

    Parameters
    ----------
    title : str
        What runs.
    total : int
        Units of work in all.
    unit : str
        Name of one unit.
    json_lines : bool
        Print JSON lines instead of a bar or text.
    before : int
        Units that an earlier run has done; the ETA does not take them for work of this one.
    silent : bool
        Show nothing: for all processes of a run but the one that speaks.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str,
        json_lines: bool = False,
        before: int = 0,
        silent: bool = False,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._json, self._silent = json_lines, silent
        self._done = self._before = before
        self._note = ""
        self._lock = threading.Lock()
        self._began = self._said = time.monotonic()
        self._bar = None if json_lines or silent else _bar(title, total, unit, before)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._line()

    def advance(self, done: int) -> None:
        """Count `done` more units (or fewer, where a block is tried again)."""
        with self._lock:
            self._done += done
            if self._bar is not None:
                self._bar.show(min(self._done, self.total))
            elif time.monotonic() - self._said >= LINE_EVERY_S:
                self._line()

    def expect(self, total: int) -> None:
        """Take `total` for the units in all from now on, where a run ends by time."""
        with self._lock:
            self.total = total
            if self._bar is not None:
                self._bar.expect(total)
                self._bar.show(min(self._done, total))

    def note(self, text: str) -> None:
        """Show a few words, such as a loss, beside the title from now on."""
        with self._lock:
            self._note = text
            if self._bar is not None:
                self._bar.name(f"{self.title}, {text}")

    def say(self, message: str) -> None:
        """Print one line beside the progress, without anything secret."""
        message = hide_secrets(message)
        if self._bar is not None:
            self._bar.say(message)
        else:
            self._print(json.dumps({"stage": self.title, "message": message}) if self._json else message)

    def _line(self) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        new, done = self._done - self._before, min(self._done, self.total)  # a block tried again counts twice
        left = seconds / new * (self.total - done) if new else None
        if self._json:
            state = {"stage": self.title, "done": done, "total": self.total, "unit": self.unit}
            state |= {"note": self._note} if self._note else {}
            seconds_left = None if left is None else round(left, 1)
            self._print(json.dumps({**state, "seconds": round(seconds, 1), "seconds_left": seconds_left}))
            return
        share = f"{100 * done / self.total:.0f} %" if self.total else "100 %"
        eta = "" if left is None or done == self.total else f", {duration(left)} left"
        end = f"{duration(seconds)}{eta}" + (f"; {self._note}" if self._note else "")
        self._print(f"{self.title}: {share}, {done} of {self.total} {self.unit}s, {end}")

    def _print(self, line: str) -> None:
        if not self._silent:
            _print(line)


def duration(seconds: float) -> str:
    """A time as people say it.

    Examples
    --------
    >>> duration(7), duration(150), duration(9000)
    ('7 s', '2.5 min', '2.5 h')
    """
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def size(nbytes: float) -> str:
    """Bytes as people say them.

    Examples
    --------
    >>> size(512), size(2_500_000)
    ('512 B', '2.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


class _Bar(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def show(self, done: int) -> None: ...
    def expect(self, total: int) -> None: ...
    def name(self, title: str) -> None: ...
    def say(self, message: str) -> None: ...


class _TerminalBar:
    """Rich's, on stderr."""

    def __init__(self, title: str, total: int, unit: str, before: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit}s"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._rich = RichProgress(*columns, console=Console(stderr=True), transient=False)
        self._task = self._rich.add_task(title, total=total, completed=before)
        self.start, self.stop = self._rich.start, self._rich.stop

    def show(self, done: int) -> None:
        self._rich.update(self._task, completed=done)

    def expect(self, total: int) -> None:
        self._rich.tasks[0].total = total  # an update would forget the speed

    def name(self, title: str) -> None:
        self._rich.update(self._task, description=title)

    def say(self, message: str) -> None:
        self._rich.console.print(message, markup=False, highlight=False)


class _NotebookBar:
    """tqdm's widget, below the cell."""

    def __init__(self, title: str, total: int, unit: str, before: int) -> None:
        from tqdm.notebook import tqdm

        self._tqdm: Any = tqdm(initial=before, total=total, desc=title, unit=unit, unit_scale=True)
        self.stop, self.say = self._tqdm.close, _print

    def start(self) -> None:
        """It is shown as soon as it is made."""

    def show(self, done: int) -> None:
        self._tqdm.update(done - self._tqdm.n)

    def expect(self, total: int) -> None:
        self._tqdm.total = self._tqdm.container.children[1].max = total

    def name(self, title: str) -> None:
        self._tqdm.set_description(title)


def in_jupyter() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _bar(title: str, total: int, unit: str, before: int) -> _Bar | None:
    if in_jupyter():
        with contextlib.suppress(ImportError):  # without inkzarr[jupyter] there are lines
            return _NotebookBar(title, total, unit, before)
    return _TerminalBar(title, total, unit, before) if sys.stderr.isatty() else None


def _print(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
