"""What is to be written and how: the vocabulary of the runner."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inkzarr.core.cut import Cut
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.progress import duration, size
from inkzarr.core.schema import FULL_RESOLUTION, VolumeSpec

SHARE_OF_MEMORY = 0.5
ADDRESS = re.compile(r":\d+/?$|^inproc://")


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here changes a voxel.

    Parameters
    ----------
    scheduler : str or None
        Address of a ``distributed`` scheduler, ``tcp://HOST:PORT``; None runs on threads of this process.
    workers : int or None
        Blocks in flight; None lets the stage and the memory decide.
    memory : int or None
        Bytes that the blocks in flight may take; None is half of this machine's.
    overwrite : bool
        Whether what is at the target is deleted first.
    json_logs : bool
        JSON lines instead of a progress bar.
    command : tuple of str, or None
        The words of a command line that does the same, for ``verify --repair``: without secrets, and with
        ``OUT`` in place of the output.

    Raises
    ------
    InputError
        An address without a port.
    """

    scheduler: str | None = None
    workers: int | None = None
    memory: int | None = None
    overwrite: bool = False
    json_logs: bool = False
    command: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.scheduler and not ADDRESS.search(self.scheduler):
            msg = f"scheduler {self.scheduler!r} is no address: give tcp://HOST:PORT, or leave it out"
            raise InputError(msg)

    @property
    def memory_limit(self) -> int:
        """Bytes that the blocks in flight may take."""
        return self.memory or int(SHARE_OF_MEMORY * _physical_memory())


@dataclass(frozen=True)
class Job:
    """One volume to be written.

    Parameters
    ----------
    stage : str
        What the progress calls it.
    out : str
        URL of the OME-Zarr group.
    spec : VolumeSpec
        The array's layout.
    block : Zyx
        Voxels computed in one task, rounded up to whole chunks (shards).
    fingerprint : dict
        Input, checkpoint, and every setting that changes a voxel; JSON.
    block_bytes : int
        Peak memory of one block in flight.
    shared_bytes : int
        Memory that all blocks share, such as a network's.
    workers : int
        Blocks in flight where the options do not say.
    region : Box or None
        Write this box only; the rest of the array stays empty.
    work : callable
        Units of work in a box, for the progress; default: voxels.
    unit : str
        Name of one unit of work.
    storage_options : dict or None
        For fsspec; never stored.
    inputs : tuple of str
        URLs of what is read, with which the target must not share a place.
    more : tuple of VolumeSpec
        Further arrays that each task writes: of the same shape and layout, in the same group.
    holds : callable or None
        Whether a block may hold anything; the others stay empty, and are neither computed nor recorded.
    columns : Zyx or None
        Blocks leave something to later ones that saves them work, where both are computed in one process:
        those of a column of this size, in voxels, are computed one after the other.
    """

    stage: str
    out: str
    spec: VolumeSpec
    block: Zyx
    fingerprint: dict[str, Any]
    block_bytes: int = 0
    shared_bytes: int = 0
    workers: int = 1
    region: Box | None = None
    work: Callable[[Box], int] = field(default=lambda box: box.shape.volume)
    unit: str = "voxel"
    storage_options: dict[str, Any] | None = field(default=None, repr=False)
    inputs: tuple[str, ...] = ()
    more: tuple[VolumeSpec, ...] = ()
    holds: Callable[[Box], bool] | None = field(default=None, repr=False)
    columns: Zyx | None = None

    @property
    def specs(self) -> tuple[VolumeSpec, ...]:
        """All arrays that are written."""
        return (self.spec, *self.more)

    @property
    def makes_group(self) -> bool:
        """Whether the group is this job's own; else it adds an array to a group that is there."""
        return self.spec.path == FULL_RESOLUTION or bool(self.more)

    @property
    def grid(self) -> Grid:
        """The array cut into blocks of whole chunks (shards)."""
        axes = zip(self.block, self.spec.unit, self.spec.shape, strict=True)
        return Grid(self.spec.shape, Zyx(*(min(-(-b // u), -(-n // u)) * u for b, u, n in axes)))

    def blocks(self) -> Iterator[Box]:
        """All blocks that touch the region and may hold anything."""
        grid = self.grid
        boxes = (grid.box(index) for index in grid.indices(self.region))
        return boxes if self.holds is None else filter(self.holds, boxes)

    def chains(self, boxes: list[Box], least: int = 1) -> list[list[Box]]:
        """Sort blocks into those that are computed one after the other: columns, or every block by itself.

        Parameters
        ----------
        boxes : list of Box
            In C order.
        least : int
            Columns are cut where there are fewer than this.

        Returns
        -------
        list of list of Box
            Independent of each other.
        """
        if self.columns is None:
            return [[box] for box in boxes]
        columns: dict[tuple[int, ...], list[Box]] = {}
        for box in boxes:
            place = tuple(a // c for a, c in zip(box.start, self.columns, strict=True))
            columns.setdefault(place, []).append(box)
        pieces = -(-least // max(1, len(columns)))
        cut = ((column, max(1, -(-len(column) // pieces))) for column in columns.values())
        return [column[at : at + size] for column, size in cut for at in range(0, len(column), size)]

    def inner(self, box: Box) -> Box:
        """The part of a block that is computed."""
        return box if self.region is None else box.clip(self.region)

    def in_flight(self, options: RunOptions) -> int:
        """How many blocks run at once on this machine.

        Raises
        ------
        InputError
            One block alone needs more than the memory that was given.
        """
        limit = options.memory_limit
        fit = (limit - self.shared_bytes) // max(1, self.block_bytes)
        if fit < 1 and options.memory:
            msg = (
                f"one block of {tuple(self.grid.cell)} needs {size(self.block_bytes + self.shared_bytes)}, "
                f"more than the {size(limit)} given: use smaller blocks or more memory"
            )
            raise InputError(msg)
        return max(1, min(options.workers or self.workers, fit))


@dataclass(frozen=True)
class Computed:
    """What a block function gives where a job has several arrays, or something to count.

    Parameters
    ----------
    arrays : tuple of numpy.ndarray or Cut
        One for each of the job's `specs`, all of the block's shape.
    tally : dict of str to int
        Counts that add up over blocks; the ledger keeps them.
    """

    arrays: tuple[np.ndarray | Cut, ...]
    tally: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a run did.

    Parameters
    ----------
    out : str
        URL of the group.
    blocks, resumed : int
        All blocks, and those that an earlier start had written.
    nonzero : int
        Voxels that are not 0, of the first array.
    seconds : float
        Of this start.
    tally : dict of str to int
        What the stage counted, in all starts.
    traffic : str
        What this start fetched of a remote volume, where the stage tells.
    """

    out: str
    blocks: int
    resumed: int
    nonzero: int
    seconds: float
    tally: dict[str, int] = field(default_factory=dict)
    traffic: str = ""

    def __str__(self) -> str:
        """One line."""
        before = f" ({self.resumed} from before)" if self.resumed else ""
        traffic = f"; {self.traffic}" if self.traffic else ""
        return f"{self.out}: {self.blocks} blocks{before} in {duration(self.seconds)}{traffic}"


@dataclass(frozen=True)
class Plan:
    """What a run would do; nothing was written.

    Parameters
    ----------
    job : Job
        The run.
    blocks, done : int
        All blocks, and those that are written already.
    peak_bytes : int
        Memory of the blocks in flight, and what they share.
    extra : dict of str to str
        What the stage adds: windows, bytes in, estimated time.
    """

    job: Job
    blocks: int
    done: int
    peak_bytes: int
    extra: dict[str, str]

    def __str__(self) -> str:
        """A line an item."""
        spec = self.job.spec
        region = self.job.region or Box.whole(spec.shape)
        kinds = " + ".join(one.dtype.name for one in self.job.specs)
        nbytes = region.shape.volume * sum(one.dtype.itemsize for one in self.job.specs)
        if self.job.holds is not None:
            voxels = sum(self.job.inner(box).shape.volume for box in self.job.blocks())
            nbytes = voxels * nbytes // region.shape.volume
        lines = {
            "stage": self.job.stage,
            "out": self.job.out,
            "array": f"{','.join(map(str, spec.shape))} {kinds}, Zarr v{spec.zarr_format}",
            "region": str(region),
            "blocks": f"{self.blocks} of {','.join(map(str, self.job.grid.cell))}, {self.done} done already",
            **self.extra,
            "bytes out": f"{size(nbytes)} before compression",
            "peak memory": f"{size(self.peak_bytes)}",
        }
        width = max(map(len, lines))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
