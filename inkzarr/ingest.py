"""Ingest: slices, HDF5, NRRD or another Zarr become one OME-Zarr volume of 128^3 chunks.

::

    source   strips, tiles, chunks ──read──> block, z y x ──to_uint8──> whole chunks on the store

A block is as long along each axis as it takes to decode each strip, tile or chunk about once.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import AXES, Box, Grid, Zyx, check_axes
from inkzarr.core.job import Job, Plan, Report, RunOptions
from inkzarr.core.packing import compressor
from inkzarr.core.progress import Progress, duration, size
from inkzarr.core.records import BlockRecord
from inkzarr.core.remote import is_remote
from inkzarr.core.runner import plan_blocks, write_blocks
from inkzarr.core.schema import DEFAULT_VOXEL_SIZE_UM, VERSION, VolumeSpec
from inkzarr.readers import ZARR_FILES, Source, open_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

STAGE = "ingest"
Dtype = Literal["uint8", "keep"]

LARGEST_READ = 512 * 2**20
"""Bytes of source voxels that a block holds where no memory was given."""
REPEATED = 1.25
"""Voxels decoded for each one kept that are put up with, for the sake of smaller blocks."""
UNITS_IN_FLIGHT = 20
"""Chunks (shards) of a block that the store compresses at once, measured; each is there twice."""
COPIES_OF_CELL = 2
"""A strip, tile or chunk while it is decoded: its compressed bytes and its voxels."""
SAMPLE_DEPTH = 8
"""Slices that a plan reads to estimate the time."""


@dataclass(frozen=True)
class IngestSettings:
    """What the volume becomes.

    Parameters
    ----------
    axes : str
        The source's axes as stored, slowest first.
    voxel_size_um : float or None
        Edge of a voxel in micrometres; None is the source's own, else 7.91.
    dtype : str
        ``uint8`` (uint16 gives its high byte) or ``keep``.
    zarr_format : int
        2 or 3.
    shard : int or None
        Edge of a shard in voxels, Zarr 3 only.

    Raises
    ------
    InputError
        Axes or a dtype that cannot be.
    """

    axes: str = AXES
    voxel_size_um: float | None = None
    dtype: Dtype = "uint8"
    zarr_format: int = 2
    shard: int | None = None

    def __post_init__(self) -> None:
        check_axes(self.axes)
        if self.dtype not in get_args(Dtype):
            msg = f"dtype {self.dtype!r} cannot be: use {' or '.join(get_args(Dtype))}"
            raise InputError(msg)


def ingest(
    source: str | PathLike[str],
    out: str | PathLike[str],
    settings: IngestSettings = IngestSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> Report:
    """Write a source as an OME-Zarr volume; run again to go on where a run was stopped.

    Parameters
    ----------
    source : str
        A folder of TIFF slices, a TIFF of pages, ``file.h5::dataset``, NRRD, or a Zarr volume.
    out : str
        The OME-Zarr group, local or remote.
    settings : IngestSettings
        What the volume becomes.
    options : RunOptions
        How it is carried out.
    storage_options : dict, optional
        For fsspec, of source and target.

    Returns
    -------
    Report
        After every block is written.

    Raises
    ------
    InputError
        The source cannot be used, or the target holds something else; nothing was written, unless a
        strip or chunk in the midst of the source turns out damaged.
    StoreError, BlocksFailedError
        As `write_blocks`.

    Examples
    --------
    >>> import numpy, tifffile
    >>> folder = getfixture("tmp_path")
    >>> scan = numpy.full((4, 6, 5), 0x12FF, "uint16")
    >>> tifffile.imwrite(folder / "scan.tif", scan, photometric="minisblack")
    >>> report = ingest(folder / "scan.tif", folder / "scan.zarr", IngestSettings(voxel_size_um=7.91))
    >>> report.nonzero
    120
    """
    volume, job = _prepare(str(source), str(out), settings, options, storage_options)
    assumed = _size_um(volume, settings)[1]
    plan_blocks(job, options)
    volume.read(Box(Zyx(0, 0, 0), Zyx(1, 1, 1)))
    if assumed:
        say = Progress(STAGE, 0, unit=job.unit, json_lines=options.json_logs).say
        say(f"{volume.name} does not tell its voxel size: {assumed}; --voxel-size sets it")
    return write_blocks(job, _BlockReader(volume, job.spec.dtype), options)


def plan_ingest(
    source: str | PathLike[str],
    out: str | PathLike[str],
    settings: IngestSettings = IngestSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> Plan:
    """Say what `ingest` would do, and write nothing; a few slices are read to estimate the time.

    Raises
    ------
    InputError
        As `ingest` would.
    """
    volume, job = _prepare(str(source), str(out), settings, options, storage_options)
    plan = plan_blocks(job, options)
    size_um, assumed = _size_um(volume, settings)
    in_flight = min(job.in_flight(options), plan.blocks)
    left = (plan.blocks - plan.done) / plan.blocks
    seconds = _seconds_a_voxel(volume, job) * volume.shape.volume * left / in_flight
    extra = {
        "voxel size": assumed or f"{size_um:g} um",
        "bytes in": f"{size(volume.shape.volume * volume.dtype.itemsize)} of {volume.dtype.name} voxels",
        "estimated time": f"about {duration(seconds)}, {in_flight} blocks at once",
    }
    repeated = math.prod(map(_repeated, job.grid.cell, volume.block, volume.shape))
    if repeated > REPEATED:
        told = f"{repeated:.1f} times: strips or chunks of the source are larger than a block"
        extra["decoded"] = f"{told}; more --memory makes larger blocks"
    return replace(plan, extra=extra)


def to_uint8(voxels: np.ndarray) -> np.ndarray:
    """One block as uint8: of uint16 the high byte, rounded down; uint8 stays as it is.

    Parameters
    ----------
    voxels : numpy.ndarray
        uint8 or uint16, any shape, the full range of the dtype.

    Returns
    -------
    numpy.ndarray
        uint8, of the same shape: ``value >> 8``.

    Examples
    --------
    >>> to_uint8(np.array([0, 255, 256, 65535], "uint16"))
    array([  0,   0,   1, 255], dtype=uint8)
    """
    if voxels.dtype == np.uint8:
        return voxels
    high = np.empty(voxels.shape, np.uint8)
    np.right_shift(voxels, 8, out=high, casting="unsafe")
    return high


def choose_block(spec: VolumeSpec, cell: Zyx, fits: Callable[[Zyx], bool]) -> Zyx:
    """The smallest block that decodes each cell about once; where none fits, that which comes nearest.

    Along an axis, a block of ``b`` voxels touches cells that hold ``b + c - 1`` on average: the
    share decoded in vain falls as the block grows, and is nothing where cells and blocks align::

        cells    |----c----|---------|---------|
        block         [=====b=====]              decoded: two cells

    Parameters
    ----------
    spec : VolumeSpec
        What is written: a block is made of its chunks, or shards.
    cell : Zyx
        What is decoded at once (a strip, a tile, a chunk), in voxels.
    fits : callable
        Whether a block of that shape may be in flight.

    Returns
    -------
    Zyx
        In voxels; at least one chunk (shard), even if that does not fit.

    Examples
    --------
    Slices stored in strips of one row: as wide as the slice, one chunk high and deep.

    >>> spec = VolumeSpec(Zyx(1000, 1000, 1000), np.dtype("uint8"))
    >>> choose_block(spec, Zyx(1, 1, 1000), lambda block: True)
    Zyx(z=128, y=128, x=1024)
    """
    best = (float("inf"), 0, spec.unit)
    for block in itertools.starmap(Zyx, itertools.product(*map(_lengths, spec.unit, spec.shape))):
        repeated = math.prod(map(_repeated, block, cell, spec.shape))
        rank = (max(repeated, REPEATED), block.volume, block)
        if rank < best and fits(block):
            best = rank
    return best[-1]


def _lengths(unit: int, length: int) -> list[int]:
    """Lengths that a block may have along an axis: whole chunks, up to all of it."""
    whole = -(-length // unit)
    counts = {*range(1, 9), *(2**power for power in range(3, whole.bit_length())), whole}
    return sorted(count * unit for count in counts if count <= whole)


def _repeated(block: int, cell: int, length: int) -> float:
    """Voxels decoded for each one kept, along one axis."""
    return 1.0 if block >= length or block % cell == 0 else (block + cell - 1) / block


@dataclass(frozen=True)
class _BlockReader:
    """Reads a block as it is to be written."""

    source: Source
    dtype: np.dtype[Any]

    def __call__(self, box: Box) -> np.ndarray:
        voxels = self.source.read(box)
        return voxels if voxels.dtype == self.dtype else to_uint8(voxels)


def _prepare(
    source: str,
    out: str,
    settings: IngestSettings,
    options: RunOptions,
    storage_options: dict[str, Any] | None,
) -> tuple[Source, Job]:
    """Open the source, and say what is written from it."""
    _refuse_itself(source, out)
    volume = open_source(source, axes=settings.axes, storage_options=storage_options)
    dtype = np.dtype("uint8") if settings.dtype == "uint8" else volume.dtype
    size_um, _ = _size_um(volume, settings)
    told = {"axes": settings.axes, "dtype": settings.dtype, "voxel_size_um": size_um}
    lineage = {"stage": STAGE, "version": VERSION, "source": volume.name, "settings": told}
    spec = VolumeSpec(volume.shape, dtype, size_um, lineage, settings.zarr_format, settings.shard)
    workers = os.cpu_count() or 1
    limit = options.memory // (options.workers or workers) if options.memory else None

    def fits(block: Zyx) -> bool:
        clipped = Zyx(*map(min, block, spec.shape))
        if limit is not None:
            return _block_bytes(volume, spec, clipped) <= limit
        return clipped.volume * volume.dtype.itemsize <= LARGEST_READ

    block = choose_block(spec, volume.block, fits)
    job = Job(
        STAGE,
        out,
        spec,
        block,
        fingerprint={"source": volume.identity, "settings": told},
        block_bytes=_block_bytes(volume, spec, Zyx(*map(min, block, spec.shape))),
        workers=workers,
        storage_options=storage_options,
    )
    return volume, job


def _block_bytes(source: Source, spec: VolumeSpec, block: Zyx) -> int:
    """Peak memory of one block in flight: voxels read, voxels written, and what decodes and compresses."""
    read = block.volume * source.dtype.itemsize
    written = block.volume if spec.dtype != source.dtype else 0
    cell = COPIES_OF_CELL * source.block.volume * source.dtype.itemsize
    units = min(Grid(block, spec.unit).counts.volume, UNITS_IN_FLIGHT)
    store = 2 * units * spec.unit.volume * spec.dtype.itemsize
    return read + max(cell, written + store)


def _size_um(source: Source, settings: IngestSettings) -> tuple[float, str]:
    """Edge of a voxel in micrometres, and what to say where it is only assumed."""
    told = settings.voxel_size_um if settings.voxel_size_um is not None else source.voxel_size_um
    if told is not None:
        return told, ""
    return DEFAULT_VOXEL_SIZE_UM, f"{DEFAULT_VOXEL_SIZE_UM} um is assumed"


def _seconds_a_voxel(source: Source, job: Job) -> float:
    """Time to read, convert, compress and sum up a voxel, measured on a few slices amid the volume."""
    shape, cell = source.shape, job.grid.cell
    depth = min(shape.z, max(SAMPLE_DEPTH, min(source.block.z, cell.z)))
    wanted = Zyx(depth, *map(min, cell[1:], shape[1:]))
    start = Zyx(*((n - w) // 2 for n, w in zip(shape, wanted, strict=True)))
    box = Box(start, Zyx(*(a + w for a, w in zip(start, wanted, strict=True))))
    began = time.monotonic()
    voxels = _BlockReader(source, job.spec.dtype)(box)
    for piece in voxels:
        compressor(job.spec.dtype).encode(np.ascontiguousarray(piece))
    BlockRecord.of(box, voxels, job.spec.chunks)
    return (time.monotonic() - began) / box.shape.volume


def _refuse_itself(source: str, out: str) -> None:
    """Refuse a target that is the source, holds it, or lies in a Zarr source: overwriting would delete it."""
    if "://" in source and is_remote(source):
        same = source.rstrip("/") == out.rstrip("/")
    else:
        names = (source.partition("::")[0], out)
        here, there = (Path(name.removeprefix("file://")).resolve() for name in names)
        inside = here in there.parents and any((here / name).exists() for name in ZARR_FILES)
        same = here == there or there in here.parents or inside
    if same:
        msg = f"source {source} and target {out} lie in each other: choose a target elsewhere"
        raise InputError(msg)
