"""The faults: each hurts a run of a stage, takes it up again, compares all bytes, and tells how the run ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import zarr

from tests.faults.bench import BAD_INPUT, BLOCKS, DAMAGE, GIVEN, INTERRUPTED, STORE, WrongError, slowly
from tests.faults.cluster import cluster
from tests.faults.s3 import bucket
from tests.faults.stages import CLUSTER, STAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.bench import Bench

SLOW_S = 0.05
MISSES, EARLIER = 4, 0.7
PAGE, LARGE = 4096, 2**16
"""Bytes: of memory, of which such a disk has a whole number; and of an output that does not fit a few pages."""


def killed(bench: Bench, name: str) -> str:
    """SIGKILL at a random moment; a run that was quicker is started anew, and hit earlier."""
    for _ in range(MISSES):
        bench.clear(name)
        child = bench.start(name)
        bench.wait(child, name)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if bench.finish(child):
            bench.resume(name)
            return "taken up, same bytes"
        bench.seconds[name] *= EARLIER
    return "done before it was hit"


def interrupted(number: signal.Signals) -> Callable[[Bench, str], str]:
    """SIGINT or SIGTERM at a random moment: the ledger is flushed, exit 130, the line to go on."""

    def interrupt(bench: Bench, name: str) -> str:
        child = bench.start(name, patch=slowly(SLOW_S))
        bench.wait(child, name)
        os.kill(child, number)
        code = bench.want(bench.finish(child), INTERRUPTED, 0, -number)
        if code != INTERRUPTED:
            bench.resume(name)
            return "done before it was hit" if code == 0 else "hit before it began"
        told = bench.log()
        if "Traceback" in told or (not STAGES[name].file and "To go on: inkzarr " not in told):
            msg = f"no line to go on: {told}"
            raise WrongError(msg)
        if left := [path.name for path in bench.out.rglob("*.lock")]:
            msg = f"left locked: {left}"
            raise WrongError(msg)
        bench.resume(name)
        return "130, taken up, same bytes"

    return interrupt


def worker_killed(bench: Bench, name: str) -> str:
    """SIGKILL for one of two worker processes."""
    with cluster(bench) as running:
        child = bench.start(name, "--scheduler", running.address, patch=slowly(SLOW_S))
        bench.wait(child, name)
        os.kill(bench.moments.choice(running.workers), signal.SIGKILL)
        code = bench.want(bench.finish(child), 0, BLOCKS)
    if code:
        bench.resume(name)
    return "same bytes" if code == 0 else "5, taken up, same bytes"


def scheduler_lost(bench: Bench, name: str) -> str:
    """SIGKILL for the scheduler and its workers."""
    with cluster(bench) as running:
        child = bench.start(name, "--scheduler", running.address, patch=slowly(SLOW_S))
        bench.wait(child, name)
        for pid in (running.scheduler, *running.workers):
            os.kill(pid, signal.SIGKILL)
        code = bench.want(bench.finish(child), 0, BAD_INPUT, BLOCKS)
    if code and "scheduler" not in bench.log():
        msg = f"not told of the scheduler: {bench.log()}"
        raise WrongError(msg)
    if code == 0:
        return "done before it was lost"
    bench.resume(name)
    return f"{code}, taken up, same bytes"


def disk_full(bench: Bench, name: str) -> str:
    """A small tmpfs that fills up, and is larger at the next start."""
    before = [path.stat().st_size for path in bench.out.rglob("*") if path.is_file()]
    size = sum(map(len, bench.undisturbed(name).values()))
    bench.clear(name)
    volume = bench.home / "aside"
    shutil.move(bench.out, volume)
    bench.out.mkdir()
    room = sum(before) + int(bench.moments.uniform(0.2, 0.8) * max(0, size - sum(before)))
    room = max(PAGE, room + (2 * PAGE if size > LARGE else 0))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room}", "none", bench.out],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(volume)
        return "not tried: no tmpfs can be mounted here"
    try:
        shutil.copytree(volume, bench.out, dirs_exist_ok=True)
        code = bench.want(bench.finish(bench.start(name)), 0, BAD_INPUT, STORE, BLOCKS)
        if code and "Traceback" in bench.log():
            msg = f"a traceback for a full disk: {bench.log()}"
            raise WrongError(msg)
        subprocess.run(["mount", "-o", "remount,size=256m", bench.out], check=True)
        bench.resume(name)
        bench.compare(name)
    finally:
        subprocess.run(["umount", bench.out], check=True)
        shutil.rmtree(volume)
    return f"{code}, taken up, same bytes" if code else "it fitted"


def remote(*, starts: tuple[int, ...] = (), **how: float) -> Callable[[Bench, str], str]:
    """Volumes are read from and written to S3, behind a proxy that fails or dawdles."""

    def over_s3(bench: Bench, name: str) -> str:
        with bucket(bench, **how) as (options, fetch):
            given = "--storage-options", json.dumps(options)
            number = bench.resume(name, *given, allowed=starts, source=GIVEN, target="s3://made")
            there = fetch()
        shutil.rmtree(bench.out / "scan.zarr", ignore_errors=True)  # on which the pyramid stood
        for key, body in there.items():
            path = bench.out / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        return "same bytes" if number == 1 else f"same bytes after {number} starts"

    return over_s3


def two_runs(bench: Bench, name: str) -> str:
    """A second run on the same output."""
    first = bench.start(name, patch=slowly(4 * SLOW_S))
    end = time.monotonic() + bench.seconds[name]
    while not (locked := list(bench.out.rglob("*.lock"))) and bench.running(first) and time.monotonic() < end:
        time.sleep(0.002)
    code = bench.want(bench.finish(bench.start(name)), 0, BAD_INPUT)
    over = not bench.running(first)
    other = bench.want(bench.finish(first), 0, *([] if locked else [BAD_INPUT]))
    told = bench.log()
    bench.want(min(code, other), 0)
    if code == other == 0:
        if locked and not over:
            msg = f"both wrote at once: {told}"
            raise WrongError(msg)
        return "one after the other, same bytes"
    if "is being written by another run, process " not in told and "exists" not in told:
        msg = f"not told of the other: {told}"
        raise WrongError(msg)
    return "the first was done" if "exists" in told else "one refused, same bytes"


def clock_jumps(bench: Bench, name: str) -> str:
    """The wall clock jumps by years at every look, and the run is killed and taken up."""

    def jumping() -> None:
        moments = bench.moments
        honest = time.time
        time.time = lambda: honest() + moments.uniform(-1e8, 1e8)
        time.time_ns = lambda: int(1e9 * time.time())

    child = bench.start(name, patch=jumping)
    bench.wait(child, name)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    bench.finish(child)
    bench.resume(name, patch=jumping)
    return "same bytes"


def ledger_hurt(bench: Bench, name: str) -> str:
    """Killed, and a file of the ledger (of a training: its state) is cut short or deleted."""
    given = set(bench.out.rglob("*"))
    child = bench.start(name, patch=slowly(SLOW_S))
    bench.wait(child, name)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    bench.finish(child)
    files = [path for path in bench.out.rglob("*") if path.parent.parent.name == ".inkzarr"]
    files = [path for path in [*files, *bench.out.rglob("state.pt")] if path not in given]
    if not files:
        bench.resume(name)
        return "hit before there was any, same bytes"
    chosen = bench.moments.choice(sorted(files))
    body = chosen.read_bytes()
    if bench.moments.random() < 0.5:
        chosen.write_bytes(body[: bench.moments.randrange(len(body))])
    else:
        chosen.unlink()
    code = bench.want(bench.finish(bench.start(name)), 0, BAD_INPUT)
    if code == 0:
        return "same bytes"
    told = bench.log()
    if "--overwrite" in told:
        bench.want(bench.finish(bench.start(name, "--overwrite")), 0)
    elif "start again in another folder" in told:
        bench.clear(name)
        bench.resume(name)
    else:
        msg = f"no remedy is told: {told}"
        raise WrongError(msg)
    return "refused, begun afresh, same bytes"


def begun(bench: Bench) -> int:
    """Blocks recorded by arrays whose run is not done, and a training's state."""
    count = len(list(bench.out.rglob("state.pt")))
    for manifest in bench.out.rglob("manifest.json"):
        if json.loads(manifest.read_text())["state"] == "running":
            count += sum(len(part.read_text().splitlines()) for part in manifest.parent.glob("blocks*"))
    return count


def upgraded(bench: Bench, name: str) -> str:
    """Killed, and another version of the package goes on."""

    def newer() -> None:
        from inkzarr.core import target

        for module in (target, *(sys.modules[f"inkzarr.{stage}"] for stage in ("predict", "nn.folder"))):
            module.SERIES = "9.9"

    child = bench.start(name, patch=slowly(SLOW_S))
    bench.wait(child, name)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    bench.finish(child)
    recorded = begun(bench)
    code = bench.want(bench.finish(bench.start(name, patch=newer)), 0, BAD_INPUT)
    if " exists: " in bench.log():
        return "done before it was hit"
    if code and "version" not in bench.log():
        msg = f"not told of the version: {bench.log()}"
        raise WrongError(msg)
    if code == 0:  # it is whole, and of one version alone
        if recorded:
            msg = f"another version went on with {recorded} blocks of this one: {bench.log()}"
            raise WrongError(msg)
        bench.clear(name)
        bench.resume(name)
        return "nothing to take up"
    bench.resume(name)
    return "refused; the old version goes on, same bytes"


def damaged(bench: Bench, name: str) -> str:
    """A chunk is cut short, emptied, flipped, exchanged or deleted: named, and repaired."""
    volume = bench.out / STAGES[name].volume
    given = set(bench.out.rglob("*"))  # the level under a pyramid
    bench.want(bench.finish(bench.start(name)), 0)
    written = set(volume.rglob("*")) - given
    chunks = [path for path in written if path.is_file() and path.name.isdecimal()]
    chunk, other = bench.moments.sample(sorted(chunks), 2)
    body = bytearray(chunk.read_bytes())
    kind = bench.moments.choice(["cut short", "emptied", "flipped", "exchanged", "deleted"])
    if kind == "cut short":
        chunk.write_bytes(body[: len(body) // 2])
    elif kind == "emptied":
        chunk.write_bytes(b"")
    elif kind == "flipped":
        body[bench.moments.randrange(16, len(body))] ^= 1 << bench.moments.randrange(8)
        chunk.write_bytes(bytes(body))
    elif kind == "exchanged":
        chunk.write_bytes(other.read_bytes())
        other.write_bytes(bytes(body))
    else:
        chunk.unlink()
    code = bench.want(bench.finish(bench.command(["verify", str(volume)])), 0, DAMAGE)
    if code == 0:  # the bytes differ where no voxel is: beyond the volume, or between codec blocks
        if kind not in ("flipped", "exchanged"):
            msg = f"{kind}, and not seen: {chunk}"
            raise WrongError(msg)
        places = (
            path for path in chunk.parents if {".zarray", "zarr.json"} & {p.name for p in path.iterdir()}
        )
        array = str(next(places))
        hurt = zarr.open_array(array, mode="r")[:]
        bench.clear(name)
        bench.resume(name)
        if not np.array_equal(hurt, zarr.open_array(array, mode="r")[:]):
            msg = f"{kind}, and not seen: {chunk}"
            raise WrongError(msg)
        return "changed no voxel"
    if chunk.relative_to(volume).parts[0] not in bench.log():
        msg = f"not named: {bench.log()}"
        raise WrongError(msg)
    bench.want(bench.finish(bench.command(["verify", str(volume), "--repair"])), 0)
    return "6, named and repaired, same bytes"


STORED = tuple(name for name, stage in STAGES.items() if stage.stored)
KEEPING = tuple(name for name, stage in STAGES.items() if stage.ledger)
FAULTS: dict[str, tuple[Callable[[Bench, str], str], tuple[str, ...]]] = {
    "SIGKILL at a random moment": (killed, tuple(STAGES)),
    "SIGINT": (interrupted(signal.SIGINT), tuple(STAGES)),
    "SIGTERM": (interrupted(signal.SIGTERM), tuple(STAGES)),
    "a worker process killed": (worker_killed, CLUSTER),
    "the scheduler lost": (scheduler_lost, CLUSTER),
    "disk full, then freed": (disk_full, tuple(STAGES)),
    "S3 that fails 20 % of requests": (remote(fail=0.2, starts=(STORE, BLOCKS)), STORED),
    "slow reads (S3, 0.1 s each)": (remote(delay=0.1), STORED),
    "two runs on one output": (two_runs, tuple(STAGES)),
    "a clock that jumps": (clock_jumps, tuple(STAGES)),
    "ledger cut short or deleted": (ledger_hurt, KEEPING),
    "package upgraded between starts": (upgraded, KEEPING),
    "a chunk damaged": (damaged, tuple(name for name, stage in STAGES.items() if stage.volume)),
}
