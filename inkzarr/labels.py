"""Labels: 2D ink labels of flattened segments, brought back into the 3D volume that they were painted for.

::

    surface + label ──scan──> buckets: tiles of pixels by 3D cell ──one task a block──> ink, count

Every painted pixel votes for the voxels of its footprint along the surface's normal; a voxel's ink is
the mean of its votes. All votes for a block are counted by one task, so that there is nothing to lock,
nothing to add to what is stored, and nothing that depends on an order.
"""

from __future__ import annotations

import math
import os
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from inkzarr.core.buckets import Buckets, PixelCount, Rule, refuse_no_votes, scan_strip
from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Grid, Zyx
from inkzarr.core.given import several, unify
from inkzarr.core.job import Job, Plan, Report, RunOptions
from inkzarr.core.label_picture import draw_beside
from inkzarr.core.ledger import DONE, Ledger
from inkzarr.core.pool import map_in_order, open_pool
from inkzarr.core.progress import Progress, duration, size
from inkzarr.core.remote import open_store
from inkzarr.core.runner import plan_blocks, write_blocks
from inkzarr.core.schema import COUNT, DEFAULT_VOXEL_SIZE_UM, INK, VERSION, VolumeSpec
from inkzarr.core.store import open_stored
from inkzarr.core.target import agreeing_ledgers, held
from inkzarr.core.votes import TALLY, LabelBlocks
from inkzarr.core.voting import FAR
from inkzarr.readers.checksums import FileSums, as_stored, checksums, remember, remembered, unread
from inkzarr.readers.segments import Segment, files_of, find_segments, flat_segment
from inkzarr.readers.strips import look, painted_strips

if TYPE_CHECKING:
    from os import PathLike

STAGE = "labels"
Footprint = Literal["ray", "box"]


BYTES_A_VOXEL = 17 + 3 + 6
"""Of a block in flight: votes in numbers of 64 bits, the two arrays, and their chunks while compressed."""
BYTES_OF_POINTS = 160 << 19
SECONDS_A_PIXEL, SECONDS_A_CELL = 2.5e-7, 0.03
"""On one core, for the time that a plan tells."""


@dataclass(frozen=True)
class LabelSettings:
    """What the label volume holds.

    Parameters
    ----------
    like : path or None
        URL of the scan that the labels belong to: shape and voxel size are its own.
    shape : Zyx or None
        Or three numbers; in voxels, where there is no scan at hand.
    depth : float
        Voxels on each side of the surface, a multiple of 0.5.
    footprint : str
        ``ray``: the voxels along the normal. ``box``: the original project's, the box around that line.
    skip_blank : int
        Blocks of so many pixels squared without any ink were not painted, and do not vote; 0: all do.
    only, exclude : str or tuple of str
        Ids of segments to take, and to leave out; ``*`` and ``?`` stand for anything.
    all_versions : bool
        Keep all of the ids that differ in the last character only.
    flat : float or None
        The segments' folder is the flattened segment itself, ingested as a scan; its surface is this z.
    block : int
        Edge of a block in voxels; changes no voxel.

    Raises
    ------
    InputError
        A setting that cannot be.
    """

    like: str | PathLike[str] | None = None
    shape: Zyx | None = None
    depth: float = 4
    footprint: Footprint = "ray"
    skip_blank: int = 128
    only: str | tuple[str, ...] = ()
    exclude: str | tuple[str, ...] = ()
    all_versions: bool = False
    flat: float | None = None
    block: int = 256

    def __post_init__(self) -> None:
        unify(self, like=os.fspath, shape=Zyx.of, only=several, exclude=several)
        if not 0 <= self.depth <= 1000 or (2 * self.depth) % 1:
            msg = f"depth {self.depth} cannot be: give voxels from 0 to 1000, whole or half"
            raise InputError(msg)
        if self.footprint not in get_args(Footprint):
            msg = f"footprint {self.footprint!r} is unknown: use {' or '.join(get_args(Footprint))}"
            raise InputError(msg)
        if self.footprint == "box" and self.depth > 100:
            msg = f"depth {self.depth} is too much for boxes: use at most 100, or the footprint ray"
            raise InputError(msg)
        if self.skip_blank < 0 or self.block < 1:
            msg = (
                f"skip_blank {self.skip_blank} or block {self.block} cannot be: use 0 or more, and 1 or more"
            )
            raise InputError(msg)
        if self.flat is not None and not math.isfinite(self.flat):
            msg = f"flat {self.flat} cannot be: give the height z of the surface, in voxels"
            raise InputError(msg)
        if self.flat is not None and (self.only or self.exclude or self.all_versions):
            msg = "a flattened segment has one label: leave out --only, --exclude and --all-versions"
            raise InputError(msg)
        if self.like is not None and self.shape is not None:
            msg = f"both a volume {self.like} and a shape {tuple(self.shape)} were given: give one of them"
            raise InputError(msg)


@dataclass(frozen=True)
class LabelReport:
    """What a run of `labels` did.

    Parameters
    ----------
    run : Report
        Blocks and time.
    segments : dict
        By id: pixels used and dropped, and why; voxels dropped outside the volume; ``instead_of``: versions
        left out.
    labelled, ink, conflicts : int
        Voxels with a vote; those of them that are ink; those where one segment says ink, another none.
    votes : int
        Of all pixels for all voxels.
    picture : str
        PNG of the densest slices, over the scan; empty where none was drawn.
    """

    run: Report
    segments: dict[str, Any]
    labelled: int
    ink: int
    conflicts: int
    votes: int
    picture: str = ""

    @property
    def pixels(self) -> dict[str, int]:
        """Pixels (and voxels outside) of all segments together."""
        names = [field.name for field in fields(PixelCount)]
        return {name: sum(s["pixels"][name] for s in self.segments.values()) for name in names}

    def __str__(self) -> str:
        """A line an item."""
        pixels = self.pixels
        why = ", ".join(
            f"{n} {name}" for name, n in pixels.items() if n and name not in ("used", "dropped_voxels")
        )
        done = f"{self.run.out}: done already, all {self.run.blocks} blocks are from before"
        older = {name: s["instead_of"] for name, s in self.segments.items() if s.get("instead_of")}
        lines = [
            done if self.run.resumed == self.run.blocks else str(self.run),
            f"segments   {len(self.segments)}: {', '.join(self.segments)}",
            *([f"left out   {_older(older)}"] if older else []),
            f"pixels     {pixels['used']} used" + (f"; {why}" if why else ""),
            f"voxels     {self.labelled} labelled, {self.ink} of them ink, {self.votes} votes, "
            f"{pixels['dropped_voxels']} dropped outside the volume",
            f"conflicts  {self.conflicts} voxels where segments disagree",
        ]
        return "\n".join([*lines, *([f"picture    {self.picture}"] if self.picture else [])])


def labels(
    paths: str | PathLike[str],
    ink: str | PathLike[str],
    out: str | PathLike[str],
    settings: LabelSettings = LabelSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> LabelReport:
    """Write the 3D labels of all segments of a scroll; run again to go on where a run was stopped.

    Parameters
    ----------
    paths : path
        The tree of surfaces, see `inkzarr.readers.segments`; with ``flat`` the flattened volume.
    ink : path
        The folder of labels; with ``flat`` the label.
    out : str
        The label group, local or remote: arrays ``ink`` and ``count``.
    settings : LabelSettings
        What the volume holds.
    options : RunOptions
        How it is carried out.
    storage_options : dict, optional
        For fsspec, of the scan and of `out`.

    Returns
    -------
    LabelReport
        After every block is written.

    Raises
    ------
    InputError
        Files that cannot be used, no pixel at all that votes, or a target that holds something else;
        nothing was written.
    StoreError, BlocksFailedError
        As `write_blocks`.

    Examples
    --------
    >>> from inkzarr.testing.synthetic import SyntheticScroll
    >>> folder = getfixture("tmp_path")
    >>> SyntheticScroll(shape=(16, 160, 160)).write_segments(folder)
    >>> settings = LabelSettings(shape=Zyx(16, 160, 160))
    >>> report = labels(folder / "paths", folder / "inklabels", folder / "labels.zarr", settings)
    >>> report.labelled > report.ink > 0
    True
    """
    segments, job, rule = _prepare(str(paths), str(ink), str(out), settings, storage_options)
    plan_blocks(job, options)
    sums = checksums(
        f"{STAGE}, checksums", files_of(segments), remembered(job.out), json_lines=options.json_logs
    )
    job = _with_fingerprint(job, segments, settings, sums)
    ledgers = None if options.overwrite else agreeing_ledgers(job)
    if ledgers and all(ledger.manifest and ledger.manifest.state == DONE for ledger in ledgers):
        remember(job.out, sums)
        return _told_before(job, ledgers[0])
    surfaces = [segment.surface.unmasked() for segment in segments]
    with held(job), closing(Buckets(rule, surfaces)) as buckets:
        pixels = _fill(buckets, segments, job, settings, options)
        told = {
            one.id: one.provenance(sums, asdict(count)) for one, count in zip(segments, pixels, strict=True)
        }
        remember(job.out, sums)
        job = replace(_with_lineage(job, settings, told), holds=buckets.holds)
        run = write_blocks(job, LabelBlocks(buckets), options)
    try:
        picture = draw_beside(job.out, _scan_url(str(paths), settings), storage_options=storage_options)
    except (OSError, StoreError) as error:
        picture = f"not drawn: {error}"
    return _report(run, told, picture)


def plan_labels(
    paths: str | PathLike[str],
    ink: str | PathLike[str],
    out: str | PathLike[str],
    settings: LabelSettings = LabelSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> Plan:
    """Say what `labels` would do, and write nothing; one pixel of each tile is looked at.

    Raises
    ------
    InputError
        As `labels` would, but for damage amid the surfaces.
    """
    segments, job, rule = _prepare(str(paths), str(ink), str(out), settings, storage_options)
    touched, pixels, seen = look(segments, rule, settings.skip_blank)
    job = replace(job, holds=lambda box: bool(touched[rule.grid.cells(box).slices].any()))
    plan = plan_blocks(job, options)
    cells = int(np.count_nonzero(touched))
    in_flight = min(job.in_flight(options), max(1, plan.blocks))
    seconds = (pixels * SECONDS_A_PIXEL + cells * SECONDS_A_CELL) / min(in_flight, os.cpu_count() or 1)
    older = {segment.id: list(segment.instead_of) for segment in segments if segment.instead_of}
    extra = {
        "segments": f"{len(segments)}: {', '.join(segment.id for segment in segments)}",
        **({"left out": _older(older)} if older else {}),
        "pixels": f"{pixels} painted of {sum(s.shape[0] * s.shape[1] for s in segments)}",
        "chunks": f"about {cells}, seen through {seen} pixels",
        "bytes in": size(sum(path.stat().st_size for path in files_of(segments))),
        "estimated time": f"about {duration(seconds)}, {in_flight} blocks at once",
    }
    return replace(plan, extra=extra)


def _prepare(
    paths: str,
    ink: str,
    out: str,
    settings: LabelSettings,
    storage_options: dict[str, Any] | None,
) -> tuple[list[Segment], Job, Rule]:
    """Find the segments and check their files, and say what is written from them."""
    like = _scan_url(paths, settings)
    size_um = DEFAULT_VOXEL_SIZE_UM
    if like is not None:
        scan = open_stored(like, storage_options=storage_options)
        shape, size_um = scan.shape, scan.voxel_size_um or size_um
    elif settings.shape is not None:
        shape = settings.shape
    else:
        msg = "the labels' shape is not known: give --like VOLUME (the scan) or --shape Z,Y,X"
        raise InputError(msg)
    if max(shape) >= FAR:
        msg = f"shape {shape.z},{shape.y},{shape.x} is too large: give axes shorter than {FAR:.0f} voxels"
        raise InputError(msg)
    if settings.flat is not None:
        segments = [flat_segment(ink, (shape.y, shape.x), settings.flat)]
    else:
        chosen = {"only": several(settings.only), "exclude": several(settings.exclude)}
        segments = find_segments(paths, ink, **chosen, all_versions=settings.all_versions)
    spec = VolumeSpec(shape, np.dtype(INK.dtypes[0]), size_um, path=INK.name)
    count = replace(spec, dtype=np.dtype(COUNT.dtypes[0]), path=COUNT.name)
    rule = Rule(settings.depth, settings.footprint == "box", Grid(shape, spec.chunks))
    job = Job(
        STAGE,
        out,
        spec,
        Zyx.of(settings.block),
        {},
        workers=max(2, os.cpu_count() or 2),
        storage_options=storage_options,
        inputs=tuple(filter(None, (like, paths, ink))),
        more=(count,),
        holds=lambda _box: False,
    )
    cell = Zyx(*map(min, job.grid.cell, shape)).volume
    block, unpacked = cell * BYTES_A_VOXEL + BYTES_OF_POINTS, max(s.unpacked_bytes for s in segments)
    job = replace(job, block_bytes=block, shared_bytes=unpacked)
    # whether the target is another run's is told before files are read, which may take hours
    sums = unread(files_of(segments), remembered(out))
    return segments, _with_fingerprint(job, segments, settings, sums), rule


def _scan_url(paths: str, settings: LabelSettings) -> str | None:
    """The scan that the labels belong to, where it is known."""
    flat = paths if settings.flat is not None and settings.shape is None else None
    return os.fspath(settings.like) if settings.like else flat


def _with_fingerprint(job: Job, segments: list[Segment], settings: LabelSettings, sums: FileSums) -> Job:
    """The job, knowing all that changes a voxel: the files by their checksums, and the rules."""
    files = {segment.id: segment.told(sums) for segment in segments}
    if not all(one.crc32c for one in sums.values()):
        ledger = Ledger(open_store(job.out, storage_options=job.storage_options), INK.name)
        stored = ledger.manifest.fingerprint if ledger.load() and ledger.manifest else {}
        files = as_stored(files, stored.get("segments"))
    return replace(job, fingerprint={"segments": files, "settings": _rules(settings)})


def _told_before(job: Job, ledger: Ledger) -> LabelReport:
    """The report of a finished run, from what is stored."""
    stored = open_stored(f"{job.out.rstrip('/')}/{INK.name}", storage_options=job.storage_options)
    n, nonzero = len(ledger.records), int(ledger.chunk_table().nonzero.sum())
    return _report(Report(job.out, n, n, nonzero, 0.0, ledger.tally()), stored.lineage.get("segments", {}))


def _older(versions: dict[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(left)} in favour of {name}" for name, left in versions.items())


def _fill(
    buckets: Buckets, segments: list[Segment], job: Job, settings: LabelSettings, options: RunOptions
) -> list[PixelCount]:
    """Bucket the tiles of all segments by cell; what became of their pixels."""
    pixels = [PixelCount() for _ in segments]
    total = sum(segment.shape[0] * segment.shape[1] for segment in segments)
    pool = open_pool(options, job)
    try:
        with Progress(f"{STAGE}, points", total, unit="pixel", json_lines=options.json_logs) as progress:
            strips = painted_strips(segments, settings.skip_blank, pixels, progress)
            for scan in map_in_order(pool, partial(scan_strip, rule=buckets.rule), strips):
                buckets.add(scan)
                pixels[scan.segment].add(scan)
    finally:
        pool.close()
    refuse_no_votes(pixels)
    buckets.sort()
    return pixels


def _with_lineage(job: Job, settings: LabelSettings, told: dict[str, Any]) -> Job:
    lineage = {"stage": STAGE, "version": VERSION, "settings": _rules(settings), "segments": told}
    spec, *more = (replace(one, lineage=lineage) for one in job.specs)
    return replace(job, spec=spec, more=tuple(more))


def _rules(settings: LabelSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("depth", "footprint", "skip_blank", "flat")}


def _report(run: Report, told: dict[str, Any], picture: str = "") -> LabelReport:
    labelled, ink, conflicts, votes = (run.tally.get(name, 0) for name in TALLY)
    return LabelReport(run, told, labelled, ink, conflicts, votes, picture)
