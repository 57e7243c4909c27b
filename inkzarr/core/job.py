"""What is to be written and how: the vocabulary of the runner."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.progress import duration, size
from inkzarr.core.schema import VolumeSpec

SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here changes a voxel.

    Parameters
    ----------
    scheduler : str or None
        Address of a ``distributed`` scheduler; None runs on threads of this process.
    workers : int or None
        Blocks in flight; None lets the stage and the memory decide.
    memory : int or None
        Bytes that the blocks in flight may take; None is half of this machine's.
    overwrite : bool
        Whether what is at the target is deleted first.
    json_logs : bool
        JSON lines instead of a progress bar.
    """

    scheduler: str | None = None
    workers: int | None = None
    memory: int | None = None
    overwrite: bool = False
    json_logs: bool = False


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

    @property
    def grid(self) -> Grid:
        """The array cut into blocks of whole chunks (shards)."""
        axes = zip(self.block, self.spec.unit, self.spec.shape, strict=True)
        return Grid(self.spec.shape, Zyx(*(min(-(-b // u), -(-n // u)) * u for b, u, n in axes)))

    def blocks(self) -> Iterator[Box]:
        """All blocks that touch the region."""
        return (self.grid.box(index) for index in self.grid.indices(self.region))

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
        limit = options.memory or int(SHARE_OF_MEMORY * _physical_memory())
        fit = (limit - self.shared_bytes) // max(1, self.block_bytes)
        if fit < 1 and options.memory:
            msg = (
                f"one block of {tuple(self.grid.cell)} needs {size(self.block_bytes + self.shared_bytes)}, "
                f"more than the {size(limit)} given: use smaller blocks or more memory"
            )
            raise InputError(msg)
        return max(1, min(options.workers or self.workers, fit))


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
        Voxels that are not 0.
    seconds : float
        Of this start.
    """

    out: str
    blocks: int
    resumed: int
    nonzero: int
    seconds: float

    def __str__(self) -> str:
        """One line."""
        before = f" ({self.resumed} from before)" if self.resumed else ""
        return f"{self.out}: {self.blocks} blocks{before} in {duration(self.seconds)}"


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
        lines = {
            "stage": self.job.stage,
            "out": self.job.out,
            "array": f"{','.join(map(str, spec.shape))} {spec.dtype.name}, Zarr v{spec.zarr_format}",
            "region": str(region),
            "blocks": f"{self.blocks} of {','.join(map(str, self.job.grid.cell))}, {self.done} done already",
            **self.extra,
            "bytes out": f"{size(region.shape.volume * spec.dtype.itemsize)} before compression",
            "peak memory": f"{size(self.peak_bytes)}",
        }
        width = max(map(len, lines))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
