"""Components: where the ink is, as a list of connected voxels, measured and ranked as letters.

::

    prediction ──one task a block──> runs, joined ──> a row of sums a component ─┐
                                     and the planes that other blocks look at ───┴──> joined across blocks
    joined ──> candidates.parquet, contact sheet                 (--labels: blocks again ──> ids)

Every block is read once. No volume of labels is made, unless it is asked for; memory is that of the blocks in
flight, of the components that reach into blocks to come, and of those that are large enough to count.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inkzarr.core.candidates import PARQUET, Candidates, rank, write_candidates
from inkzarr.core.errors import InputError
from inkzarr.core.foreground import LabelBlocks, Source, label_block
from inkzarr.core.gallery import LONGEST, NO_LETTERS, Viewer, picture_folder, places, write_page
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.given import unify
from inkzarr.core.job import Job, Plan, Report, RunOptions
from inkzarr.core.joins import Joiner
from inkzarr.core.pool import Pool, map_in_order, open_pool
from inkzarr.core.progress import Progress, duration, size
from inkzarr.core.remote import is_remote, without_secrets
from inkzarr.core.runner import plan_blocks, write_blocks
from inkzarr.core.schema import (
    CERTAIN_INK,
    COMPONENT_IDS,
    DEFAULT_VOXEL_SIZE_UM,
    PREDICTION,
    VERSION,
    VolumeSpec,
)
from inkzarr.core.store import open_stored
from inkzarr.core.target import refuse_inside
from inkzarr.core.volume import StoredVolume

if TYPE_CHECKING:
    from os import PathLike

STAGE = "components"
PAGE = ".html"
REMOTE_WORKERS = 8
"""Blocks in flight where a store answers slowly."""
BYTES_A_VOXEL, BYTES_A_LABEL = 2 + 6, 8
"""Of a block in flight: its voxels, twice while they are decoded, and at most a run every other voxel; labels
twice while they are compressed."""
BYTES_A_DRAWN_VOXEL = BYTES_A_VOXEL + 1
"""Of a candidate on the contact sheet: the component alone comes on top."""
SECONDS_A_VOXEL = 6e-9
"""On one core, for the time that a plan tells."""


@dataclass(frozen=True)
class ComponentSettings:
    """What a component is, and what is made beside the table.

    Parameters
    ----------
    threshold : float
        The least probability of a component's voxels, above 0 and at most 1. A stored voxel belongs to one
        where its value is at least 255 x threshold, rounded up: 128 for 0.5, 51 for 0.2 (a decimal fraction
        is taken as it is written).
    min_voxels : int
        Smaller components are counted, but not told.
    labels : path or None
        URL of a volume of the components' ids, written where it is named.
    sheet : path or None
        A page ``SHEET.html`` with pictures of the best 100, and the folder ``SHEET`` of the same as PNG.
    scan : path or None
        The scan of which the page shows slices.
    block : int
        Edge of a block in voxels; changes nothing that is written.

    Raises
    ------
    InputError
        A setting that cannot be.
    """

    threshold: float = 0.5
    min_voxels: int = 1000
    labels: str | PathLike[str] | None = None
    sheet: str | PathLike[str] | None = None
    scan: str | PathLike[str] | None = None
    block: int = 256

    def __post_init__(self) -> None:
        unify(self, labels=os.fspath, sheet=os.fspath, scan=os.fspath)
        if not 0 < self.threshold <= 1:
            msg = f"threshold {self.threshold} is no probability to ask for: it is above 0 and at most 1"
            raise InputError(msg)
        if self.min_voxels < 1 or self.block < 1:
            msg = f"min_voxels {self.min_voxels} or block {self.block} cannot be: both are 1 or more"
            raise InputError(msg)
        if self.scan is not None and self.sheet is None:
            msg = f"the scan {self.scan} is for the contact sheet: add --sheet SHEET.html, or leave it out"
            raise InputError(msg)

    @property
    def least(self) -> int:
        """The smallest stored value of a component's voxels, 1 to 255."""
        return math.ceil(CERTAIN_INK * Fraction(str(float(self.threshold))))


@dataclass(frozen=True)
class ComponentReport:
    """What was found.

    Parameters
    ----------
    out : str
        The table.
    components, small : int
        Components in the table, and those that were too small.
    voxels : int
        Of the components in the table.
    best : Box or None
        Around the candidate that is most like a letter; None where there is none.
    blocks, read : int
        All blocks of the volume, and those that may hold anything and were read.
    seconds : float
        In all.
    sheet : str
        The contact sheet; empty where none was asked for.
    labels : Report or None
        Of the volume of ids.
    """

    out: str
    components: int
    small: int
    voxels: int
    best: Box | None
    blocks: int
    read: int
    seconds: float
    sheet: str = ""
    labels: Report | None = None

    def __str__(self) -> str:
        """A line an item."""
        lines = [
            f"{self.out}: {self.components} components of {self.voxels} voxels ({self.small} are too small), "
            f"from {self.read} of {self.blocks} blocks in {duration(self.seconds)}",
            f"best       {self.best}" if self.best else f"best       {NO_LETTERS}",
            *([f"sheet      {self.sheet}"] if self.sheet else []),
            *([f"labels     {self.labels}"] if self.labels else []),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class ComponentPlan:
    """What a run would do; nothing was written.

    Parameters
    ----------
    lines : dict
        By item.
    labels : Plan or None
        Of the volume of ids, before it is known which blocks hold any.
    """

    lines: dict[str, str]
    labels: Plan | None

    def __str__(self) -> str:
        """A line an item."""
        width = max(map(len, self.lines))
        told = [f"{name:<{width}}  {text}" for name, text in self.lines.items()]
        return "\n".join([*told, *(["", str(self.labels)] if self.labels else [])])


def components(
    prediction: str | PathLike[str],
    out: str | PathLike[str],
    settings: ComponentSettings = ComponentSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> ComponentReport:
    """Write the table of letter candidates: the connected components (26 neighbours) of high probability.

    The same table comes out whatever the blocks, the workers and the scheduler.

    Parameters
    ----------
    prediction : str
        uint8, finished; local path or URL.
    out : path
        Parquet, see `inkzarr.core.schema.CANDIDATE_COLUMNS`; replaced if it exists.
    settings : ComponentSettings
        What a component is, and what is made beside the table.
    options : RunOptions
        How it is carried out; ``overwrite`` deletes what is at the place of the labels.
    storage_options : dict, optional
        For fsspec, of all volumes.

    Returns
    -------
    ComponentReport
        How many there are.

    Raises
    ------
    InputError
        No finished prediction, names that cannot be; nothing was written.
    StoreError, BlocksFailedError
        A chunk cannot be read, or labels cannot be written.

    Notes
    -----
    A run that was stopped is run again: the table is made anew, of the labels only what is missing.

    Examples
    --------
    >>> import zarr
    >>> folder = getfixture("tmp_path")
    >>> ink = np.zeros((8, 40, 40), "uint8")
    >>> ink[2:5, 10:30, 12:16] = 200
    >>> _ = zarr.save_array(folder / "ink.zarr", ink)
    >>> components(folder / "ink.zarr", folder / "letters.parquet").components
    0
    >>> settings = ComponentSettings(min_voxels=100)
    >>> components(folder / "ink.zarr", folder / "letters.parquet", settings).voxels
    240
    """
    began = time.monotonic()
    source, job = _prepare(str(prediction), Path(out), settings, storage_options)
    if settings.labels is not None:
        plan_blocks(job, options)
    pool = open_pool(options, job)
    try:
        joiner = join_blocks(pool, source, job, settings, options)
        rows, ids = joiner.close()
        um = source.stored.voxel_size_um or DEFAULT_VOXEL_SIZE_UM
        table = rank(rows, um, _lineage(source.stored, settings, um))
        write_candidates(out, table)
        if settings.sheet is not None:
            scan = _open_scan(settings, source.stored, storage_options)
            _write_sheet(pool, Path(settings.sheet), table, source, settings.least, scan)
    finally:
        pool.close()
    written = None
    if settings.labels is not None:
        boxes = {job.grid.box(index): of_block for index, of_block in ids.items() if of_block.any()}
        blocks = {box: (source.parts(box), of_block) for box, of_block in boxes.items()}
        job = dataclasses.replace(job, holds=blocks.__contains__)
        label = LabelBlocks(source.stored, settings.least, settings.min_voxels, blocks)
        written = write_blocks(job, label, options)
    counts = job.grid.counts.volume, sum(map(source.holds, map(job.grid.box, job.grid.indices())))
    found = len(rows), joiner.small, int(table["voxels"].sum()), table.box(0) if len(table) else None
    sheet = "" if settings.sheet is None else str(settings.sheet)
    return ComponentReport(str(out), *found, *counts, time.monotonic() - began, sheet, written)


def plan_components(
    prediction: str | PathLike[str],
    out: str | PathLike[str],
    settings: ComponentSettings = ComponentSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> ComponentPlan:
    """Say what `components` would do, and write nothing.

    Raises
    ------
    InputError
        As `components` would, but for what only the voxels tell.
    """
    source, job = _prepare(str(prediction), Path(out), settings, storage_options)
    blocks = list(job.blocks())
    voxels = sum(part.shape.volume for box in blocks for part in source.parts(box))
    in_flight = max(1, min(job.in_flight(options), len(blocks)))
    seconds = voxels * SECONDS_A_VOXEL / min(in_flight, os.cpu_count() or 1)
    cell = ",".join(map(str, job.grid.cell))
    lines = {
        "stage": STAGE,
        "out": str(out),
        "component": f"values from {settings.least} up, {settings.min_voxels} voxels or more",
        "blocks": f"{len(blocks)} of {job.grid.counts.volume} may hold something, {cell} each",
        "bytes in": f"{size(voxels)} before compression",
        "peak memory": f"{size(in_flight * job.block_bytes)}",
        "estimated time": f"about {duration(seconds)}, {in_flight} blocks at once",
    }
    return ComponentPlan(lines, plan_blocks(job, options) if settings.labels is not None else None)


def join_blocks(
    pool: Pool, source: Source, job: Job, settings: ComponentSettings, options: RunOptions
) -> Joiner:
    """Label every block of `job` that may hold anything, and join what was found in C order."""
    joiner = Joiner(settings.min_voxels, remember=settings.labels is not None)
    blocks = [index for index in job.grid.indices() if source.holds(job.grid.box(index))]
    boxes = [job.grid.box(index) for index in blocks]
    label = partial(label_block, stored=source.stored, least=settings.least, min_voxels=settings.min_voxels)
    total = sum(box.shape.volume for box in boxes)
    with Progress(STAGE, total, unit="voxel", json_lines=options.json_logs) as progress:
        pool.report_to(progress)
        found = map_in_order(pool, label, ((box, source.parts(box)) for box in boxes))
        for index, box, one in zip(blocks, boxes, found, strict=True):
            joiner.add(index, one)
            progress.advance(box.shape.volume)
    return joiner


def _prepare(
    prediction: str, out: Path, settings: ComponentSettings, storage_options: dict[str, Any] | None
) -> tuple[Source, Job]:
    """Open the prediction and check all names, and say how it is cut and what the labels are."""
    _refuse_name(out, PARQUET, "the table")
    if settings.sheet is not None:
        _refuse_name(Path(settings.sheet), PAGE, "the contact sheet")
        pictures = picture_folder(Path(settings.sheet))
        read = (prediction, settings.scan, settings.labels)
        refuse_inside(str(pictures), [str(one) for one in read if one])
    inputs = (prediction, *([os.fspath(settings.scan)] if settings.scan else []))
    for file in filter(None, (out, settings.sheet)):
        refuse_inside(str(file), inputs)
    stored = open_stored(prediction, storage_options=storage_options)
    if stored.dtype.name not in PREDICTION.dtypes:
        msg = f"{prediction} holds {stored.dtype}: a prediction is uint8, {PREDICTION.meaning}"
        raise InputError(msg)
    stored.require_finished()
    _open_scan(settings, stored, storage_options)
    lineage = _lineage(stored, settings, stored.voxel_size_um or DEFAULT_VOXEL_SIZE_UM)
    um = lineage["voxel_size_um"]
    spec = VolumeSpec(stored.shape, np.dtype(COMPONENT_IDS.dtypes[0]), um, lineage)
    source = Source(stored, stored.may_exceed(settings.least - 1))
    rules = {"threshold": settings.least, "min_voxels": settings.min_voxels}
    job = Job(
        STAGE,
        os.fspath(settings.labels or out),
        spec,
        Zyx(*(max(1, round(settings.block / c)) * c for c in stored.chunks)),
        {"prediction": stored.identity, "settings": rules} if settings.labels else {},
        workers=REMOTE_WORKERS if is_remote(prediction) else max(2, os.cpu_count() or 2),
        storage_options=storage_options,
        inputs=inputs,
        holds=source.holds,
    )
    cell = Zyx(*map(min, job.grid.cell, stored.shape)).volume
    each = BYTES_A_VOXEL + (BYTES_A_LABEL if settings.labels else 0)
    drawn = Zyx(*(min(LONGEST, n) for n in stored.shape)).volume if settings.sheet else 0
    return source, dataclasses.replace(job, block_bytes=max(cell * each, drawn * BYTES_A_DRAWN_VOXEL))


def _lineage(stored: StoredVolume, settings: ComponentSettings, um: float) -> dict[str, Any]:
    source = without_secrets(stored.url).rstrip("/").rsplit("/", 1)[-1]
    rules = {"threshold": settings.threshold, "least": settings.least, "min_voxels": settings.min_voxels}
    told = {"source": source, "shape": list(stored.shape), "voxel_size_um": um, **rules}
    return {"stage": STAGE, "version": VERSION, **told}


def _refuse_name(path: Path, suffix: str, what: str) -> None:
    if path.suffix != suffix or not path.parent.is_dir() or path.is_dir():
        msg = f"{what} cannot be written to {path}: its name ends in {suffix}, in a folder that exists"
        raise InputError(msg)


def _open_scan(
    settings: ComponentSettings, stored: StoredVolume, storage_options: dict[str, Any] | None
) -> StoredVolume | None:
    if settings.scan is None:
        return None
    scan = open_stored(os.fspath(settings.scan), storage_options=storage_options)
    scan.require_finished()
    if scan.shape != stored.shape:
        msg = f"the scan {settings.scan} is {tuple(scan.shape)}, the prediction {tuple(stored.shape)}: "
        raise InputError(msg + "give the scan that it was made from")
    return scan


def _write_sheet(
    pool: Pool, path: Path, table: Candidates, source: Source, least: int, scan: StoredVolume | None
) -> None:
    pictures = map_in_order(pool, Viewer(source.stored, scan, least), places(table, source.stored.shape))
    write_page(path, table, pictures, source.stored, scan)
