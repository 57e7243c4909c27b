"""Flatten: a prediction or a scan along a segment's surface, as the sheet that a papyrologist reads.

::

    surface ──tile──> strip of 64 rows ──> patch of 64 x 64 pixels ──> samples along its normals ──> sheet
                                             │
    volume  ──chunks, each about once──> the box of voxels around the patch

Tiles are written by the runner to ``{out}.tiles`` beside the sheet, where a run that was stopped takes up;
once all are there, the sheet is written from them band by band, and they are deleted. Memory is that of
the tiles in flight and of the chunks that are kept, whatever the sizes of sheet and volume.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from inkzarr.core.chunk_cache import ChunkCache
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.given import unify
from inkzarr.core.job import Computed, Job, Plan, Report, RunOptions
from inkzarr.core.progress import duration, size
from inkzarr.core.remote import is_remote
from inkzarr.core.runner import plan_blocks, write_blocks
from inkzarr.core.schema import CHUNK, DEFAULT_VOXEL_SIZE_UM, VolumeSpec
from inkzarr.core.store import open_readable, open_stored
from inkzarr.core.strips import OPAQUE, Reduce, look, pixel_spacing, sample_strip, to_bytes, told_scale
from inkzarr.core.surface import Surface, flat_surface, open_surface
from inkzarr.core.target import held
from inkzarr.readers.checksums import checksums
from inkzarr.readers.segments import surface_files
from inkzarr.writers.sheet import refuse_name, write_sheet

if TYPE_CHECKING:
    from os import PathLike

    import xarray as xr

    from inkzarr.core.lazy import Readable

STAGE = "flatten"
FLAT, TILES = "flat:", ".tiles"

STRIP = 64
"""Rows of surface that are read at once."""
CACHE_BYTES = 3 << 28
"""384 chunks of 128^3: what a row of tiles across a sheet 16,000 pixels wide shares with the next."""
REMOTE_THREADS = 16
BYTES_A_PIXEL = 600
"""Of a strip: points, normals, and what they are interpolated from."""
LARGEST_DEPTH = 256
SECONDS_A_SAMPLE, SECONDS_A_BYTE = 2e-8, 2e-9
"""On one core, for the time that a plan tells."""


@dataclass(frozen=True)
class FlattenSettings:
    """What the sheet shows.

    Parameters
    ----------
    depth : int
        Voxels on each side of the surface; samples are taken at every whole voxel from -depth to depth.
    reduce : str
        ``max`` or ``mean`` of a pixel's samples, or ``none``: all of them, a layer each.
    alpha : bool
        Whether pixels without a place in the volume are transparent, not only 0.
    block : int
        Edge of a tile in pixels, a multiple of 128; changes no pixel.

    Raises
    ------
    InputError
        A setting that cannot be.
    """

    depth: int = 16
    reduce: Reduce = "max"
    alpha: bool = False
    block: int = 1024

    def __post_init__(self) -> None:
        if not 0 <= self.depth <= LARGEST_DEPTH or self.depth % 1:
            msg = f"depth {self.depth} cannot be: give whole voxels from 0 to {LARGEST_DEPTH}"
            raise InputError(msg)
        if self.reduce not in get_args(Reduce):
            msg = f"reduce {self.reduce!r} is unknown: use {', '.join(get_args(Reduce))}"
            raise InputError(msg)
        if self.alpha and self.reduce == "none":
            msg = "layers have no alpha: leave it out, or reduce by max or mean"
            raise InputError(msg)
        if self.block < CHUNK or self.block % CHUNK:
            msg = f"block {self.block} cannot be: use a multiple of {CHUNK} pixels"
            raise InputError(msg)
        unify(self, depth=int, block=int)

    @property
    def layers(self) -> int:
        """How many are written."""
        return 2 * self.depth + 1 if self.reduce == "none" else 1

    @property
    def planes(self) -> int:
        """Of a tile: the layers, and the opacity where it is asked for."""
        return self.layers + self.alpha


@dataclass(frozen=True)
class FlattenReport:
    """What a run of `flatten` did.

    Parameters
    ----------
    out : str
        The sheet.
    shape : tuple of int
        Layers, rows and columns.
    run : Report
        Tiles and time.
    valid, outside : int
        Pixels with a place; those of them of which no sample lies in the volume.
    spacing : tuple of float
        Voxels from a pixel to the one below and to the one beside it, medians; about 1 in a right surface.
    needed, fetched : int
        Chunks in the boxes around patches, known ones of air left out; and how often one was read.
    seconds : float
        In all.
    """

    out: str
    shape: tuple[int, int, int]
    run: Report
    valid: int
    outside: int
    spacing: tuple[float, float]
    needed: int
    fetched: int
    seconds: float

    def __str__(self) -> str:
        """A line an item."""
        layers, rows, columns = self.shape
        ratio = f", each {self.fetched / self.needed:.2f} times" if self.needed else ""
        outside = f", {self.outside} of them outside the volume" if self.outside else ""
        ratio += f"; {self.run.traffic}" if self.run.traffic else ""
        before = f" ({self.run.resumed} from before)" if self.run.resumed else ""
        return "\n".join(
            [
                f"{self.out}: {rows} x {columns} pixels, {layers} layer{'s' * (layers > 1)}",
                f"pixels  {self.valid} valid{outside}",
                *filter(None, [told_scale(self.spacing)]),
                f"chunks  {self.needed} read{ratio}",
                f"tiles   {self.run.blocks}{before} in {duration(self.seconds)}",
            ]
        )


def flatten(
    volume: xr.DataArray | str | PathLike[str],
    surface: str | PathLike[str],
    out: str | PathLike[str],
    settings: FlattenSettings = FlattenSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> FlattenReport:
    """Write a volume along a surface as a picture; run again to go on where a run was stopped.

    Parameters
    ----------
    volume : path, URL or xarray.DataArray
        A prediction or a scan: uint8; uint16, of which the high byte is shown; or float of 0 .. 1.
        Of a lazy array, such as `inkzarr.predict` gives, the chunks that the surface touches are computed.
    surface : str
        A ``.ppm`` file, a tifxyz folder, or ``flat:Z``: slice Z of a volume that is itself flattened.
    out : path
        A local ``.png`` or ``.tif``; layers go to one ``.tif`` of many pages, or to a folder of NN.tif.
        One pixel is one voxel wide; the file says how many micrometres that is, where the volume does.
    settings : FlattenSettings
        What the sheet shows.
    options : RunOptions
        How it is carried out.
    storage_options : dict, optional
        For fsspec, of the volume.

    Returns
    -------
    FlattenReport
        After the sheet is written.

    Raises
    ------
    InputError
        Files or settings that cannot be used, an `out` that exists, no pixel with a place in the volume.
    StoreError, BlocksFailedError
        As `write_blocks`.

    Notes
    -----
    A sample outside the volume is 0 (beyond the centres of the outermost voxels, as with
    `scipy.ndimage.map_coordinates` of mode ``constant``), and counts in a mean. Pixels without a place are 0.

    Examples
    --------
    >>> import zarr
    >>> folder = getfixture("tmp_path")
    >>> _ = zarr.save_array(folder / "ink.zarr", np.full((5, 8, 9), 40, "uint8"))
    >>> report = flatten(folder / "ink.zarr", "flat:2", folder / "sheet.png", FlattenSettings(depth=2))
    >>> report.shape, report.valid
    ((1, 8, 9), 72)
    """
    began = time.monotonic()
    stored, sheet, job = _prepare(volume, str(surface), Path(out), settings, options, storage_options)
    job.in_flight(options)
    threads = REMOTE_THREADS if is_remote(stored.url) else max(2, os.cpu_count() or 2)
    cache, begun = ChunkCache(stored, job.shared_bytes, threads), Path(job.out).exists()
    with held(job):
        try:
            run = write_blocks(job, _Tiles(cache, sheet, settings), options)
        except InputError:
            if not begun:
                shutil.rmtree(job.out, ignore_errors=True)
            raise
        finally:
            cache.close()
        _refuse_nothing(run, job, sheet, stored)
        _write_sheet(job, Path(out), settings, stored.voxel_size_um)
        shutil.rmtree(job.out)
    chunks = [count for name, count in run.tally.items() if name.startswith("chunk ")]
    run = replace(run, traffic=stored.traffic())
    pixels = run.tally.get("valid", 0), run.tally.get("outside", 0), pixel_spacing(sheet)
    shape, seconds = (settings.layers, *sheet.shape), time.monotonic() - began
    return FlattenReport(str(out), shape, run, *pixels, len(chunks), sum(chunks), seconds)


def plan_flatten(
    volume: xr.DataArray | str | PathLike[str],
    surface: str | PathLike[str],
    out: str | PathLike[str],
    settings: FlattenSettings = FlattenSettings(),
    options: RunOptions = RunOptions(),
    *,
    storage_options: dict[str, Any] | None = None,
) -> Plan:
    """Say what `flatten` would do, and write nothing; one pixel of 64 x 64 is looked at.

    Raises
    ------
    InputError
        As `flatten` would.
    """
    stored, sheet, job = _prepare(volume, str(surface), Path(out), settings, options, storage_options)
    touched, valid = look(sheet, settings.depth, Grid(stored.shape, stored.chunks))
    samples = valid * sheet.shape[0] * sheet.shape[1] * (2 * settings.depth + 1)
    nbytes = touched * stored.chunks.volume * stored.dtype.itemsize
    cores = min(job.in_flight(options), os.cpu_count() or 1)
    seconds = (samples * SECONDS_A_SAMPLE + nbytes * SECONDS_A_BYTE) / cores
    extra = {
        "pixels": f"{sheet.shape[0]} x {sheet.shape[1]}, about {100 * valid:.0f} % valid",
        "chunks": f"about {touched}",
        "bytes in": f"about {size(nbytes)} before compression",
        "estimated time": f"about {duration(seconds)}, {cores} tiles at once",
    }
    return replace(plan_blocks(job, options), extra=extra)


@dataclass(frozen=True)
class _Tiles:
    """Computes tiles of the sheet; the box of a tile has planes as z, rows as y, columns as x."""

    cache: ChunkCache
    surface: Surface
    settings: FlattenSettings

    def __call__(self, box: Box) -> Computed:
        out = np.zeros(box.shape, np.uint8)
        volume = self.cache.volume
        tally: Counter[str] = Counter()
        cols = slice(box.start.x, box.stop.x)
        for top in range(box.start.y, box.stop.y, STRIP):
            rows = slice(top, min(top + STRIP, box.stop.y))
            here = slice(rows.start - box.start.y, rows.stop - box.start.y)
            tile = self.surface.tile(rows, cols)
            fetched: list[Zyx] = []
            values, outside = sample_strip(
                tile, self.settings.depth, self.settings.reduce, self.cache, fetched
            )
            out[: self.settings.layers, here] = to_bytes(values, volume.dtype, volume.name)
            if self.settings.alpha:
                out[-1, here][tile.valid] = OPAQUE
            # by name, so that the ledger can tell in the end how many chunks there were
            tally.update(f"chunk {index.z},{index.y},{index.x}" for index in fetched)
            tally.update(valid=int(np.count_nonzero(tile.valid)), outside=outside)
        return Computed((out,), dict(tally))


def _prepare(
    volume: xr.DataArray | str | PathLike[str],
    surface: str,
    out: Path,
    settings: FlattenSettings,
    options: RunOptions,
    storage_options: dict[str, Any] | None,
) -> tuple[Readable, Surface, Job]:
    """Open what is read, and say what is written."""
    tiles = out.with_name(f"{out.name}{TILES}")
    _check_out(out, tiles, settings, options)
    stored = open_readable(volume, storage_options=storage_options)
    if stored.dtype not in (np.uint8, np.uint16) and stored.dtype.kind != "f":
        msg = f"{stored.url or stored.name} holds {stored.dtype}: flatten uint8, uint16 or float of 0 .. 1"
        raise InputError(msg)
    sheet, files = _open_surface(surface, stored.shape)
    spec = VolumeSpec(
        Zyx(settings.planes, *sheet.shape),
        np.dtype(np.uint8),
        stored.voxel_size_um or DEFAULT_VOXEL_SIZE_UM,
        zarr_format=3,
        shard=settings.block,
    )
    rules = {name: value for name, value in asdict(settings).items() if name != "block"}
    told = {"volume": stored.identity, "surface": files, "settings": rules}
    width = min(settings.block, sheet.shape[1])
    cache = min(CACHE_BYTES, stored.shape.volume * stored.dtype.itemsize)
    strip = STRIP * width * (BYTES_A_PIXEL + 8 * settings.planes)
    job = Job(
        STAGE,
        str(tiles),
        spec,
        Zyx(settings.planes, settings.block, settings.block),
        told,
        block_bytes=strip + 3 * settings.planes * width * min(settings.block, sheet.shape[0]),
        shared_bytes=min(cache, options.memory // 2) if options.memory else cache,
        workers=max(2, os.cpu_count() or 2),
        work=lambda box: box.shape.y * box.shape.x,
        unit="pixel",
        inputs=tuple(filter(None, (stored.url, "" if surface.startswith(FLAT) else surface))),
    )
    return stored, sheet, job


def _open_surface(surface: str, shape: Zyx) -> tuple[Surface, dict[str, Any]]:
    """The surface, and what tells it from others."""
    if not surface.startswith(FLAT):
        opened = open_surface(surface)
        sums = checksums(f"{STAGE}, checksums", surface_files(Path(surface)), {})
        return opened, {Path(path).name: [one.bytes, one.crc32c] for path, one in sums.items()}
    try:
        z = float(surface.removeprefix(FLAT))
    except ValueError:
        z = np.nan
    if not 0 <= z <= shape.z - 1:
        msg = f"surface {surface!r} cannot be: give {FLAT}Z, a slice of the volume, from 0 to {shape.z - 1}"
        raise InputError(msg)
    return flat_surface((shape.y, shape.x), z), {FLAT: z}


def _check_out(out: Path, tiles: Path, settings: FlattenSettings, options: RunOptions) -> None:
    """Refuse a place that is taken; where tiles lie, a run goes on."""
    refuse_name(out, layers=settings.reduce == "none")
    if is_remote(str(out)) or not out.parent.is_dir():
        msg = f"{out} is in no local folder that exists: create it, or choose another"
        raise InputError(msg)
    if out.exists() and not options.overwrite and not tiles.exists():
        msg = f"{out} exists: choose another name, or --overwrite"
        raise InputError(msg)


def _refuse_nothing(run: Report, job: Job, sheet: Surface, stored: Readable) -> None:
    valid = run.tally.get("valid", 0)
    if valid > run.tally.get("outside", 0):
        return
    shutil.rmtree(job.out)
    if not valid:
        msg = f"{sheet.source} has no valid pixel: is it the right surface, or is all of it masked?"
        raise InputError(msg)
    shape = ",".join(map(str, stored.shape))
    msg = f"{sheet.source} lies outside {stored.name} ({shape}) as a whole: was it made for another scan?"
    raise InputError(msg)


def _write_sheet(job: Job, out: Path, settings: FlattenSettings, pixel_um: float | None) -> None:
    """Write the sheet from its tiles."""
    stored = open_stored(job.out)
    planes, rows, columns = stored.shape
    cuts = (Box(Zyx(0, y, 0), Zyx(planes, min(y + CHUNK, rows), columns)) for y in range(0, rows, CHUNK))
    bands = map(stored.read, cuts)
    if settings.alpha:  # beside grey, as both formats have it
        pairs = (np.moveaxis(band, 0, -1)[None] for band in bands)
        write_sheet(out, (1, rows, columns, planes), pairs, pixel_um=pixel_um)
    else:
        write_sheet(out, (planes, rows, columns), bands, pixel_um=pixel_um)
