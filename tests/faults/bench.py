"""Runs that meet a fault: forks of one process that has imported everything, and never starts a thread itself."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.faults.stages import LOCAL, STAGES, make

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

INTERRUPTED, BAD_INPUT, STORE, BLOCKS, DAMAGE = 130, 3, 4, 5, 6
GIVEN = "s3://given"
"""Where the inputs lie on S3."""
STARTS = 6
"""A run is started so often before it is given up."""
CHANGING = ("state.pt", "log.jsonl")
"""They tell how long a training took; pictures and notes beside volumes only help, and are not compared either."""


class WrongError(Exception):
    """A promise was broken."""


class Bench:
    """The place where runs are started, hurt, taken up and compared.

    Parameters
    ----------
    home : pathlib.Path
        Of the inputs; outputs lie in ``home/out``.

    Attributes
    ----------
    moments : random.Random
        When a run is hurt, and how; each trial's own.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.out, self.log_file = home, home / "out", home / "log.txt"
        self.moments = random.Random(0)
        self.children: set[int] = set()
        self.whole: dict[str, dict[str, bytes]] = {}
        self.left: dict[Path, bytes] = {}
        self.seconds: dict[str, float] = {}
        self.want(self.finish(self.fork(lambda: make(home))), 0)

    # processes

    def fork(self, call: Callable[[], object], *, log: str = "") -> int:
        """Call something in a process of its own, whose messages go to the log, or to another file."""
        child = os.fork()
        if child:
            self.children.add(child)
            return child
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # to which the bench is deaf
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if log else os.O_TRUNC)
            file = os.open(self.home / log if log else self.log_file, mode)
            os.dup2(file, 1)
            os.dup2(file, 2)
            call()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except BaseException:  # noqa: BLE001 - whatever it was, the log tells
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def start(
        self,
        name: str,
        *more: str,
        patch: Callable[[], object] = lambda: None,
        source: str = "",
        target: str = "",
    ) -> int:
        """Start a stage by its command line, after a patch of that process alone."""
        words = STAGES[name].words(source or str(self.home), target or str(self.out))
        return self.command([word.replace(LOCAL, str(self.home)) for word in words] + list(more), patch)

    def command(self, words: Sequence[str], patch: Callable[[], object] = lambda: None) -> int:
        """Start a command line."""

        def call() -> None:
            import torch

            from inkzarr.cli import main
            from inkzarr.core import lock, remote, runner

            torch.set_num_threads(1)
            runner.FLUSH_EVERY_S, remote.FIRST_WAIT_S, lock.SETTLE_S = 0.0, 0.05, 0.05
            patch()
            main(list(words))

        return self.fork(call)

    def finish(self, child: int) -> int:
        """Its exit code, or minus the signal that killed it."""
        self.children.discard(child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGKILL:
            self.left = {path: path.read_bytes() for path in self.out.rglob("*.lock")}
        return code

    def end_all(self) -> None:
        """Kill what a broken trial left running."""
        for child in list(self.children):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            self.finish(child)

    @staticmethod
    def running(child: int) -> bool:
        """Whether it has not ended."""
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def log(self) -> str:
        """What the last process said."""
        return self.log_file.read_text(errors="replace")

    def want(self, code: int, *wanted: int) -> int:
        """Complain of another exit code."""
        if code not in wanted:
            msg = f"exit code {code}, not {wanted}: {self.log()[-3000:]}"
            raise WrongError(msg)
        return code

    # outputs

    def clear(self, name: str) -> None:
        """An empty place for outputs; the pyramid's volume is there, without levels."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        if name == "pyramid":
            shutil.copytree(self.home / "scan.zarr", self.out / "scan.zarr")

    def undisturbed(self, name: str) -> dict[str, bytes]:
        """What a stage writes where nothing goes wrong."""
        if name not in self.whole:
            self.clear(name)
            began = time.monotonic()
            self.want(self.finish(self.start(name)), 0)
            self.seconds[name] = time.monotonic() - began
            self.whole[name] = self.tree()
        return self.whole[name]

    def tree(self) -> dict[str, bytes]:
        """Every file of the outputs; of a manifest without the command, which holds places."""
        files = [path for path in self.out.rglob("*") if path.is_file() and path.name not in CHANGING]
        return {
            str(path.relative_to(self.out)): self.unplaced(path.name, path.read_bytes())
            for path in files
            if not path.name.endswith((".sources.json", ".zarr.png"))
        }

    def unplaced(self, name: str, body: bytes) -> bytes:
        """A manifest without the command, and a page without the place of its input."""
        if name.endswith(".html"):
            for place in (str(self.home), GIVEN):
                body = body.replace(place.encode(), b"")
        if name != "manifest.json":
            return body
        return json.dumps(
            {key: value for key, value in json.loads(body).items() if key != "command"}
        ).encode()

    def compare(self, name: str, found: dict[str, bytes] | None = None) -> None:
        """Complain of any byte that is not the undisturbed run's."""
        wanted, found = self.undisturbed(name), self.tree() if found is None else found
        if differing := sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)):
            msg = f"{name}: other bytes in {differing[:5]}"
            raise WrongError(msg)

    def recorded(self) -> int:
        """Blocks in ledgers, and whole files."""
        count = 0
        for path in self.out.rglob("*"):
            with suppress(OSError):
                blocks = path.name.startswith("blocks") and path.name.endswith(".jsonl")
                count += len(path.read_bytes().splitlines()) if blocks else path.suffix in (".pt", ".png")
        return count

    def wait(self, child: int, name: str) -> None:
        """Until a random moment: early on, or soon after one of the next blocks is recorded."""
        if STAGES[name].file or self.moments.random() < 0.3:
            time.sleep(self.moments.uniform(0, 0.6 * self.seconds[name]))
            return
        wanted = self.recorded() + self.moments.randint(1, 5)
        while self.recorded() < wanted and self.running(child):
            time.sleep(0.01)
        time.sleep(self.moments.uniform(0, 0.05))

    def drop_left(self) -> None:
        """Remove the locks of a run that was killed once its file was there: the next to write it takes them."""
        for path, held in self.left.items():
            if path.exists() and path.read_bytes() == held:
                path.unlink()

    def resume(self, name: str, *more: str, allowed: tuple[int, ...] = (), **how: Any) -> int:
        """Start until it is done; how many starts that took."""
        allowed += () if STAGES[name].volume else (BAD_INPUT,)
        for number in range(1, STARTS):
            code = self.want(self.finish(self.start(name, *more, **how)), 0, *allowed)
            if code == 0 or " exists: " in self.log():  # a file is whole once it is there
                self.drop_left()
                return number
        msg = f"not done after {STARTS} starts: {self.log()[-3000:]}"
        raise WrongError(msg)


def slowly(seconds: float) -> Callable[[], None]:
    """A patch: every block, every read and every step takes so much longer."""

    def patch() -> None:
        from inkzarr.core.runner import _Task
        from inkzarr.core.volume import StoredVolume
        from inkzarr.nn.gradients import Gradients

        def slowed(honest):
            def slow(self, *given, **options):
                time.sleep(seconds)
                return honest(self, *given, **options)

            return slow

        for owner, method in ((_Task, "__call__"), (StoredVolume, "__getitem__"), (Gradients, "__call__")):
            setattr(owner, method, slowed(getattr(owner, method)))

    return patch
