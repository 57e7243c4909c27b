"""``python -m tests.faults [--kills N] [--rounds N] [--few N] [--jobs N] [--only WORD]``: hurt every stage, print a table."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING

from tests.faults.faults import FAULTS, killed
from tests.faults.trial import NOT_TRIED, Trial, begin, run

if TYPE_CHECKING:
    from collections.abc import Iterator

BROKEN = "BROKEN"
INTERRUPTED = 130


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of all stages together")
    parser.add_argument("--rounds", type=int, default=1, help="of all other faults, over all stages")
    parser.add_argument("--few", type=int, help="stages a fault, in turn; default: all that it can strike")
    parser.add_argument("--jobs", type=int, default=2, help="trials at once")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    trials = list(plan(given))
    ended: dict[Trial, str] = {}
    broken: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):  # a job in the background is deaf to the first
        signal.signal(number, signal.default_int_handler)
    try:
        import_all()
        for trial, how, wrong in results(trials, given.jobs):
            ended[trial] = BROKEN if wrong else how
            broken += [f"{trial}: {wrong}"] if wrong else []
            print(f"{time.strftime('%X')} {trial}: {wrong or how}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the table comes first
    rows = list(summary(trials, ended))
    print(json.dumps({"rows": rows, "broken": broken}) if given.json else table(rows))
    for line in [] if given.json else broken:
        print(f"\n{BROKEN}: {line}")
    if len(ended) < len(trials):
        print(f"\ninterrupted after {len(ended)} of {len(trials)} trials", flush=True)
        return INTERRUPTED
    return 1 if broken else 0


def plan(given: argparse.Namespace) -> Iterator[Trial]:
    """What is tried: of each fault, the stages in turn."""
    turn = 0
    for fault, (hurt, stages) in FAULTS.items():
        if given.only in fault:
            count = given.kills if hurt is killed else given.rounds * (given.few or len(stages))
            for number in range(count):
                yield Trial(fault, stages[(turn + number) % len(stages)], f"{given.seed} {number}")
            turn += count


def results(trials: list[Trial], jobs: int) -> Iterator[tuple[Trial, str, str]]:
    """Each trial, as it ends: how, and what broke."""
    with tempfile.TemporaryDirectory() as home:
        numbers = multiprocessing.get_context("fork").SimpleQueue()
        for number in range(jobs):
            numbers.put(number)
        # its processes are forked here, by the only thread that there is
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), begin, (home, numbers))
        pending: dict[Future[tuple[str, str]], Trial] = {pool.submit(run, trial): trial for trial in trials}
        try:
            for done in as_completed(pending):
                yield pending[done], *done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def import_all() -> None:
    """All that runs need, once; forks have it."""
    import distributed
    import moto.server
    import numba.core.registry
    import s3fs
    import torch._dynamo

    import inkzarr.cli
    from inkzarr import (  # noqa: F401
        components,
        evaluate,
        export,
        flatten,
        ingest,
        labels,
        patches,
        predict,
        pretrain,
        pyramid,
        split,
        train,
        verify,
    )

    numba.core.registry.cpu_target.target_context.refresh()
    assert distributed
    assert inkzarr.cli
    assert moto.server
    assert s3fs
    assert torch._dynamo


def summary(
    trials: list[Trial], ended: dict[Trial, str]
) -> Iterator[tuple[str, int, int, int, dict[str, int]]]:
    """A row a fault: times tried, stages, survived, how it ended."""
    for fault, of_fault in itertools.groupby(trials, lambda trial: trial.fault):
        tried = [trial for trial in of_fault if trial in ended]
        struck = [trial for trial in tried if NOT_TRIED not in ended[trial]]
        survived = sum(ended[trial] != BROKEN for trial in struck)
        stages = len({trial.stage for trial in struck})
        yield fault, len(struck), stages, survived, dict(Counter(ended[trial] for trial in tried))


def table(rows: list[tuple[str, int, int, int, dict[str, int]]]) -> str:
    """As Markdown."""
    lines = ["| fault | tried | stages | survived | how it ended |", "|---|---|---|---|---|"]
    for fault, tried, stages, survived, ended in rows:
        how = "; ".join(f"{n} {what}" for what, n in sorted(ended.items(), key=lambda item: -item[1]))
        of = len(FAULTS[fault][1])
        lines.append(f"| {fault} | {tried} | {stages} of {of} | {survived} | {how} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
