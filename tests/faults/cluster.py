"""A scheduler and two worker processes, as forks: nothing is imported anew."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from tests.faults.bench import Bench

WORKERS = 2


@dataclass(frozen=True)
class Cluster:
    """What runs.

    Parameters
    ----------
    address : str
        Of the scheduler.
    scheduler : int
        Its pid.
    workers : tuple of int
        Theirs.
    """

    address: str
    scheduler: int
    workers: tuple[int, ...]


@contextlib.contextmanager
def cluster(bench: Bench) -> Iterator[Cluster]:
    """Run them, until they are killed at the end."""
    ours, its = multiprocessing.Pipe()
    scheduler = bench.fork(lambda: asyncio.run(schedule(its)), log="cluster.txt")
    address = ours.recv()
    workers = tuple(
        bench.fork(lambda: asyncio.run(work(address, its)), log="cluster.txt") for _ in range(WORKERS)
    )
    for _ in workers:
        ours.recv()
    try:
        yield Cluster(address, scheduler, workers)
    finally:
        for pid in (*workers, scheduler):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            bench.finish(pid)


async def schedule(told: Connection) -> None:
    """Be the scheduler."""
    from distributed import Scheduler

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        told.send(scheduler.address)
        await scheduler.finished()


async def work(address: str, told: Connection) -> None:
    """Be a worker."""
    from distributed import Worker

    async with Worker(address, nthreads=1, host="127.0.0.1", dashboard=False) as worker:
        told.send(worker.address)
        await worker.finished()
