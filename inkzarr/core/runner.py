"""The one place that writes volumes: each block computed in one task, written once, and remembered.

::

    lazy array or block function ──> block ──> whole chunks on the store ──> line in the ledger
                                       │ failed: tried again, then reported; the others go on

A killed run, started again, takes up where it stopped. Memory is that of the blocks in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import dask.array as da
import numpy as np

from inkzarr.core.buffer import write_voxels
from inkzarr.core.cut import Cut
from inkzarr.core.errors import BlocksFailedError, DiskError, InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Computed, Job, Plan, Report, RunOptions
from inkzarr.core.ledger import Ledger
from inkzarr.core.lock import require_held
from inkzarr.core.pool import Pool, open_pool, writing
from inkzarr.core.progress import Progress
from inkzarr.core.records import BlockRecord
from inkzarr.core.target import agreeing_ledgers, held, open_target, refuse_foreign

if TYPE_CHECKING:
    import zarr

T = TypeVar("T")
BlockFunction = Callable[[Box], np.ndarray | Computed]
"""From a block's box to its voxels. One with a method ``narrowed(box)`` says what of it a task needs
that computes that block alone: this is what travels to a worker. Its ``over()``, where it has one, is called
in every process in the end."""

FLUSH_EVERY_S = 2.0
RETRIES = 2
FIRST_WAIT_S = 0.1
MOST_TOLD = 5


def plan_blocks(job: Job, options: RunOptions, **extra: str) -> Plan:
    """Say what `write_blocks` would do, and write nothing.

    Raises
    ------
    InputError
        As `write_blocks` would.
    """
    blocks = sum(1 for _ in job.blocks())
    left = len(unfinished(job, options))
    in_flight = min(job.in_flight(options), blocks)
    return Plan(job, blocks, blocks - left, in_flight * job.block_bytes + job.shared_bytes, extra)


def unfinished(job: Job, options: RunOptions) -> list[Box]:
    """The blocks that `write_blocks` would compute.

    Raises
    ------
    InputError
        The target holds something else.
    """
    if options.overwrite:
        refuse_foreign(job)
    ledgers = None if options.overwrite else agreeing_ledgers(job)
    boxes = list(job.blocks())
    finished = _finished(ledgers, boxes) if ledgers else set()
    return [box for box in boxes if box not in finished]


def write_blocks(job: Job, compute: BlockFunction | da.Array, options: RunOptions) -> Report:
    """Compute every block that is not yet written, and write it once.

    Parameters
    ----------
    job : Job
        What is written, and where.
    compute : callable or dask.array.Array
        From a block's box to its voxels (picklable where a cluster runs; `Computed` where the job has
        several arrays), or a lazy array of the job's shape, of which each block is computed in one task.
    options : RunOptions
        How it is carried out.

    Returns
    -------
    Report
        After every block is on the store and in the ledger.

    Raises
    ------
    InputError
        The target holds something else, another run writes to it, or a block finds bad input.
    StoreError
        Every block that failed did so for its store.
    BlocksFailedError
        Some blocks failed after every try; the others are written.
    """
    began = time.monotonic()
    pool = open_pool(options, job)
    try:
        with held(job), ExitStack() as leaving:
            leaving.callback(pool.stop)
            targets = open_target(job, options)
            ledgers = [ledger for _, ledger in targets]
            boxes = list(job.blocks())
            finished = _finished(ledgers, boxes)
            todo = [box for box in boxes if box not in finished]
            function = _LazyBlocks(compute) if isinstance(compute, da.Array) else compute
            task = _Task(function, tuple(array for array, _ in targets), job.stage, job.region)
            failed = _run(pool, job, task, todo, ledgers, options)
            if failed:
                raise _failure(failed, len(boxes))
            for ledger in ledgers:
                ledger.finish()
    finally:
        pool.close(getattr(compute, "over", None))
    nonzero = int(ledgers[0].chunk_table().nonzero.sum())
    seconds = time.monotonic() - began
    return Report(job.out, len(boxes), len(finished), nonzero, seconds, ledgers[0].tally())


@dataclass(frozen=True)
class _LazyBlocks:
    """Computes blocks of a lazy array, each on the thread that asks for it."""

    array: da.Array

    def __call__(self, box: Box) -> np.ndarray:
        return np.asarray(self.array[box.slices].compute(scheduler="synchronous"))


@dataclass(frozen=True)
class _Task:
    """One block: compute, write, measure; all that a worker needs to know."""

    compute: BlockFunction
    arrays: tuple[zarr.Array[Any], ...]
    stage: str
    region: Box | None

    def narrowed(self, box: Box) -> _Task:
        """The task for one block alone."""
        narrow = getattr(self.compute, "narrowed", None)
        return self if narrow is None else replace(self, compute=narrow(self._inner(box)))

    def _inner(self, box: Box) -> Box:
        return box if self.region is None else box.clip(self.region)

    def __call__(self, box: Box) -> list[BlockRecord]:
        done = _tried(lambda: self._computed(box))
        return _tried(lambda: self._written(box, done))

    def _computed(self, box: Box) -> Computed:
        found = self.compute(self._inner(box))
        return found if isinstance(found, Computed) else Computed((found,))

    def _written(self, box: Box, done: Computed) -> list[BlockRecord]:
        tallies = (done.tally, *({} for _ in self.arrays[1:]))
        parts = zip(self.arrays, done.arrays, tallies, strict=True)
        with writing():
            return [self._write(box, array, voxels, tally) for array, voxels, tally in parts]

    def _write(
        self, box: Box, array: zarr.Array[Any], voxels: np.ndarray | Cut, tally: dict[str, int]
    ) -> BlockRecord:
        inner = self._inner(box)
        if voxels.shape != inner.shape or voxels.dtype != array.dtype:
            msg = (
                f"block {inner} of {self.stage} came as {voxels.shape} {voxels.dtype}, "
                f"not {tuple(inner.shape)} {array.dtype}"
            )
            raise RuntimeError(msg)
        if inner != box:
            whole = np.zeros(box.shape, array.dtype)
            whole[inner.within(box)] = voxels
            voxels = whole
        write_voxels(array, box.slices, voxels)
        return BlockRecord.of(box, voxels, Zyx(*array.chunks), tally)


def _tried(once: Callable[[], T]) -> T:
    """What a call gives, which is made again where it fails for another reason than its input."""
    for attempt in range(RETRIES):
        try:
            return once()
        except InputError:
            raise
        except Exception:  # noqa: BLE001 - the last try raises it
            time.sleep(FIRST_WAIT_S * 2**attempt)
    return once()


def _run(
    pool: Pool, job: Job, task: _Task, todo: list[Box], ledgers: list[Ledger], options: RunOptions
) -> list[tuple[Box, Exception]]:
    """Keep blocks in flight until none is left; those that failed come back."""
    total = sum(job.work(job.inner(box)) for box in todo)
    progress = Progress(job.stage, total, unit=job.unit, json_lines=options.json_logs)
    pool.report_to(progress)
    lanes = _Lanes(job.chains(todo, pool.columns), pool.slots)
    flight = _InFlight(pool, job, task, ledgers, lanes, progress)
    flushed = time.monotonic()
    try:
        with progress:
            for lane in range(pool.slots):
                flight.submit(lane)
            while flight.pending:
                require_held()
                flight.go_on()
                if time.monotonic() - flushed > FLUSH_EVERY_S:
                    _flush(ledgers)
                    flushed = time.monotonic()
    finally:
        _flush(ledgers)
    return flight.failed


@dataclass
class _InFlight:
    """Blocks under way, by the future that ends once they are written; lanes, by that of their last block."""

    pool: Pool
    job: Job
    task: _Task
    ledgers: list[Ledger]
    lanes: _Lanes
    progress: Progress
    written: dict[Any, Box] = field(default_factory=dict)
    computed: dict[Any, int] = field(default_factory=dict)
    failed: list[tuple[Box, Exception]] = field(default_factory=list)

    @property
    def pending(self) -> set[Any]:
        return {*self.written, *self.computed}

    def submit(self, lane: int) -> None:
        """Start the next block of a lane, if there is one."""
        box = self.lanes.following(lane)
        if box is not None:
            place = lane if self.job.columns is not None else None
            written, computed = self.pool.submit(self.task.narrowed(box), box, place)
            self.written[written], self.computed[computed] = box, lane

    def go_on(self) -> None:
        """Wait for some, enter what is written, then start the next blocks of their lanes."""
        over = self.pool.wait(self.pending)
        for future in over & self.written.keys():
            self._take(future, self.written.pop(future))
        for future in over & self.computed.keys():
            self.submit(self.computed.pop(future))

    def _take(self, written: Any, box: Box) -> None:  # noqa: ANN401
        try:
            self._enter(self.pool.result(written))
        except InputError:
            self.pool.cancel(self.pending)
            for other in self.written:
                if other.done() and not other.cancelled() and other.exception() is None:
                    self._enter(other.result())
            raise
        except Exception as error:  # noqa: BLE001 - a failed block must not stop the others
            self.progress.say(f"block {box} failed: {_in_a_line(error)}")
            self.failed.append((box, error))
        self.progress.advance(self.job.work(self.job.inner(box)) - self.pool.ticked(box))

    def _enter(self, records: list[BlockRecord]) -> None:
        for ledger, record in zip(self.ledgers, records, strict=True):
            ledger.add(record)


class _Lanes:
    """Hands out blocks, one at a time in each lane; a lane ends a chain before it begins another."""

    def __init__(self, chains: list[list[Box]], lanes: int) -> None:
        self._chains = iter(chains)
        self._lanes: list[Iterator[Box]] = [iter(())] * lanes

    def following(self, lane: int) -> Box | None:
        """The next block of a lane; None where there is none."""
        box = next(self._lanes[lane], None)
        if box is None:
            self._lanes[lane] = iter(next(self._chains, ()))
            box = next(self._lanes[lane], None)
        return box


def _flush(ledgers: list[Ledger]) -> None:
    require_held()  # another run's ledger would take these blocks for its own
    for ledger in ledgers:
        ledger.flush()


def _finished(ledgers: list[Ledger], boxes: list[Box]) -> set[Box]:
    """The blocks all of whose chunks are recorded in every ledger, whatever the block size was then."""
    tables = [ledger.chunk_table() for ledger in ledgers if ledger.manifest is not None]
    if len(tables) < len(ledgers):
        return set()
    return {box for box in boxes if all(t.done[t.grid.cells(box).slices].all() for t in tables)}


def _failure(failed: list[tuple[Box, Exception]], blocks: int) -> Exception:
    """One error for all failed blocks: equal causes are told once, with the blocks they struck."""
    causes: dict[str, list[Box]] = {}
    for box, error in failed:
        causes.setdefault(_in_a_line(error), []).append(box)
    told = [f"{_few(list(map(str, boxes)), ' and ')}: {cause}" for cause, boxes in causes.items()]
    rest = "the others are written" if len(failed) < blocks else "none is written"
    msg = f"{len(failed)} of {blocks} blocks failed, {rest}; run again to go on. {_few(told, '; ')}"
    remote = all(isinstance(error, StoreError) and not isinstance(error, DiskError) for _, error in failed)
    return StoreError(msg) if remote else BlocksFailedError(msg)


def _few(texts: list[str], between: str) -> str:
    more = f" and {len(texts) - MOST_TOLD} more" if len(texts) > MOST_TOLD else ""
    return between.join(texts[:MOST_TOLD]) + more


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
