"""Where blocks are computed: threads of this process, or the workers of a ``distributed`` scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
    wait,
)
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from inkzarr.core.errors import BlocksFailedError, InputError
from inkzarr.core.extras import require
from inkzarr.core.progress import Progress, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inkzarr.core.geometry import Box
    from inkzarr.core.job import Job, RunOptions
    from inkzarr.core.records import BlockRecord

    Task = Callable[[Box], list[BlockRecord]]

POLL_S = 2.0
CONNECT_S = 20.0
STOP_S = 10.0


class _Gate:
    """Lets blocks write, many at a time, until the run gives its target up."""

    def __init__(self) -> None:
        self._changed, self._within, self._shut = threading.Condition(), 0, False

    def __enter__(self) -> None:
        with self._changed:
            if self._shut:
                msg = "the run of this block is over: what it computed is not written"
                raise InputError(msg)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._within -= 1
            self._changed.notify_all()

    def shut(self) -> None:
        """Let no more in, and wait a while for those within: a store may not answer."""
        with self._changed:
            self._shut = True
            self._changed.wait_for(lambda: not self._within, STOP_S)


class _Here(threading.local):
    gate: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    computed: Future[None] | None = None


_here = _Here()


def writing() -> contextlib.AbstractContextManager[None]:
    """While a block, which is computed now, is written.

    Refused on a thread whose run is over, as another may write there now.
    """
    _over(_here.computed)
    return _here.gate


def _over(future: Future[None] | None) -> None:
    if future is not None:
        with contextlib.suppress(InvalidStateError):  # it was over before
            future.set_result(None)


class Pool(Protocol):
    """Keeps tasks in flight; futures are whatever the pool's library has."""

    slots: int
    """Blocks in flight; of lanes those that are computed, and as many may be written."""
    columns: int
    """Columns of blocks that there must be, so that all machines have work."""

    def report_to(self, progress: Progress) -> None:
        """Say where the work can be watched, and tell of it as it is done."""

    def submit(self, task: Task, box: Box, lane: int | None = None) -> tuple[Any, Any]:
        """Start one block, of a lane near the others of it.

        Returns
        -------
        written, computed
            Futures: the first one's `result` are its records; once the second is over, the next block of its
            lane may begin. They may be the same.
        """

    def wait(self, pending: set[Any]) -> set[Any]:
        """Those of `pending` that are done, perhaps none after a moment."""

    def ticked(self, box: Box) -> int:
        """Units of work that a block told of while it ran."""

    def call(self, function: Callable[[Any], Any], item: object) -> Any:  # noqa: ANN401
        """Start something that is no block."""

    def result(self, future: Any) -> Any:  # noqa: ANN401
        """Wait for what `call` started."""

    def cancel(self, pending: set[Any]) -> None:
        """Give up `pending`; what already runs on this machine is waited for."""

    def stop(self) -> None:
        """Let no block on a thread of this process write any more, before the target is let go of."""

    def close(self, over: Callable[[], object] | None = None) -> None:
        """Start no more blocks; every process that computed some calls `over`."""


class Threads:
    """Blocks on threads of this process; their ticks reach the progress."""

    columns = 1

    def __init__(self, slots: int, *, lanes: bool = False) -> None:
        self.slots = slots
        self._gate = _Gate()
        threads = 2 * slots if lanes else slots  # of lanes, as many blocks again are written
        self._pool = ThreadPoolExecutor(
            threads, "block", initializer=setattr, initargs=(_here, "gate", self._gate)
        )
        self._progress: Progress | None = None
        self._ticks: dict[Box, int] = {}

    def report_to(self, progress: Progress) -> None:
        """Tell of the work as it is done."""
        self._progress = progress

    def submit(
        self, task: Task, box: Box, lane: int | None = None
    ) -> tuple[Future[list[BlockRecord]], Future[Any]]:
        """Start one block; the next one of its lane may begin while it is written."""
        if lane is None:
            written = self._pool.submit(self._listen, task, box, None)
            return written, written
        computed: Future[None] = Future()
        computed.set_running_or_notify_cancel()  # it is over when its block is, or is given up
        written = self._pool.submit(self._listen, task, box, computed)
        written.add_done_callback(lambda _: _over(computed))
        return written, computed

    def _listen(self, task: Task, box: Box, computed: Future[None] | None) -> list[BlockRecord]:
        def listener(done: int) -> None:
            self._ticks[box] = self._ticks.get(box, 0) + done
            if self._progress is not None:
                self._progress.advance(done)

        _here.computed = computed
        with listening(listener):
            return task(box)

    def ticked(self, box: Box) -> int:
        """Units of work that a block told of while it ran."""
        return self._ticks.pop(box, 0)

    def call(self, function: Callable[[Any], Any], item: object) -> Future[Any]:
        """Start something that is no block."""
        return self._pool.submit(function, item)

    def result(self, future: Future[Any]) -> Any:  # noqa: ANN401
        """Wait for what `call` started."""
        return future.result()

    def wait(self, pending: set[Future[Any]]) -> set[Future[Any]]:
        """Those that are done, perhaps none after a moment."""
        return wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED).done

    def cancel(self, pending: set[Future[Any]]) -> None:
        """Give up what has not begun, and wait for the others."""
        for future in pending:
            future.cancel()
        wait(pending)

    def stop(self) -> None:
        """Let no block write any more; one that does is waited for, for ten seconds at most."""
        self._gate.shut()

    def close(self, over: Callable[[], object] | None = None) -> None:
        """Start no more blocks."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if over is not None:
            over()


class Cluster:
    """Blocks as tasks of a ``distributed`` scheduler, named by stage and place."""

    def __init__(self, options: RunOptions, job: Job) -> None:
        distributed = require("distributed", f"scheduler {options.scheduler}", "cluster")
        try:
            self._client = distributed.Client(options.scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            msg = f"no scheduler answers at {options.scheduler} ({error}): start one, or leave it out"
            raise InputError(msg) from error
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._address = options.scheduler
        self._run = f"{job.stage}-{time.time_ns():x}"
        threads = self._client.nthreads()
        self._workers = sorted(threads)
        self.slots = options.workers or max(1, 2 * sum(threads.values()))
        self.columns = self.slots

    def report_to(self, progress: Progress) -> None:
        """Say where the dashboard is."""
        progress.say(f"dashboard: {self._client.dashboard_link}")

    def submit(self, task: Task, box: Box, lane: int | None = None) -> tuple[Any, Any]:
        """Start one block; where it is of a lane, on that lane's worker unless another one is idle."""
        place: dict[str, Any] = {}
        if lane is not None and self._workers:
            place = {"workers": self._workers[lane % len(self._workers)], "allow_other_workers": True}
        future = self._client.submit(task, box, key=(self._run, *box.start), pure=False, **place)
        future.add_done_callback(self._done.put)
        return future, future

    def ticked(self, box: Box) -> int:  # noqa: ARG002
        """Units of work that a block told of while it ran."""
        return 0

    def call(self, function: Callable[[Any], Any], item: object) -> Any:  # noqa: ANN401
        """Start something that is no block."""
        self._refuse_lost()
        return self._client.submit(function, item, pure=False)

    def result(self, future: Any) -> Any:  # noqa: ANN401
        """Wait for what `call` started.

        Raises
        ------
        BlocksFailedError
            The scheduler is gone.
        """
        while True:
            self._refuse_lost(cancelled=future.cancelled())
            over = future.status in ("finished", "error")
            try:
                return future.result(timeout=None if over else POLL_S)
            except OSError:  # no answer yet, the task's own, or nobody hands over what is done
                if over:
                    self._refuse_lost(cancelled=future.status == "finished")
                    raise
            except (CancelledError, asyncio.CancelledError):
                self._refuse_lost(cancelled=True)

    def _refuse_lost(self, *, cancelled: bool = False) -> None:
        if cancelled or self._client.status != "running":
            msg = f"the scheduler at {self._address} is gone; what is written stays, run again to go on"
            raise BlocksFailedError(msg)

    def wait(self, pending: set[Any]) -> set[Any]:
        """Those that are done, perhaps none after a moment.

        Raises
        ------
        BlocksFailedError
            The scheduler is gone.
        """
        done = set()
        with contextlib.suppress(Empty):
            done.add(self._done.get(timeout=POLL_S))
            while True:
                done.add(self._done.get_nowait())
        self._refuse_lost(cancelled=any(future.cancelled() for future in done))
        return done & pending

    def cancel(self, pending: set[Any]) -> None:
        """Give up what has not begun; the workers end what has."""
        self._client.cancel(list(pending))

    def stop(self) -> None:
        """Do nothing: the workers end what they began."""

    def close(self, over: Callable[[], object] | None = None) -> None:
        """Start no more blocks."""
        if over is not None and self._client.status == "running":
            with contextlib.suppress(OSError):  # a worker that is gone has nothing left
                self._client.run(over, on_error="ignore")
        self._client.close()


def open_pool(options: RunOptions, job: Job) -> Pool:
    """Threads, or a cluster where a scheduler is named."""
    return (
        Cluster(options, job)
        if options.scheduler
        else Threads(job.in_flight(options), lanes=job.columns is not None)
    )


def map_in_order(pool: Pool, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results of `function` in the order of `items`, a few of which are in memory at once."""
    pending: deque[Any] = deque()
    for item in items:
        pending.append(pool.call(function, item))
        if len(pending) > 2 * pool.slots:
            yield pool.result(pending.popleft())
    while pending:
        yield pool.result(pending.popleft())
