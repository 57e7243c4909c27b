"""One trial: a fault, a stage, and how it ended; run in one of several processes, each with a bench of its own."""

from __future__ import annotations

import random
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.bench import Bench, WrongError
from tests.faults.faults import FAULTS, disk_full

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

LONGEST_S = 900
"""A trial that takes longer hangs."""
NOT_TRIED = "not tried"

_benches: list[Bench] = []


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Parameters
    ----------
    fault, stage : str
        By their names.
    seed : str
        Of the moments.
    """

    fault: str
    stage: str
    seed: str

    def __str__(self) -> str:
        return f"{self.fault}, {self.stage}"


def begin(home: str, numbers: SimpleQueue[int]) -> None:
    """Make this process's bench; an interrupt is the parent's, so that a trial ends before the table is printed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)  # by a function, so that what it starts is not deaf as well
    signal.signal(signal.SIGALRM, _hangs)
    place = Path(home) / f"{numbers.get()}"
    place.mkdir()
    _benches.append(Bench(place))


def run(trial: Trial) -> tuple[str, str]:
    """How it ended, and what broke; empty where nothing did."""
    (bench,) = _benches
    hurt = FAULTS[trial.fault][0]
    bench.moments = random.Random(str((trial.fault, trial.stage, trial.seed)))
    signal.alarm(LONGEST_S)
    try:
        bench.undisturbed(trial.stage)
        bench.clear(trial.stage)
        how = hurt(bench, trial.stage)
        if NOT_TRIED not in how and hurt is not disk_full:  # that disk is gone
            bench.compare(trial.stage)
    except WrongError as wrong:
        return "", str(wrong)
    except Exception:  # noqa: BLE001 - the other trials go on
        return "", traceback.format_exc()
    finally:
        signal.alarm(0)
        bench.end_all()
    return how, ""


def _ignore(_number: int, _frame: object) -> None:
    pass


def _hangs(_number: int, _frame: object) -> None:
    msg = f"it hangs: not done in {LONGEST_S} s"
    raise WrongError(msg)
