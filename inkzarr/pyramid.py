"""Pyramid: coarser levels of a volume, each half as fine as the one below, for viewers and quick looks.

::

    level 0   | a | b | c | d | e |     along each axis; 2 x 2 x 2 voxels become one
    level 1   |  ab   |  cd   | e |     at an odd end: what the voxels that exist give

A level is listed in the group's metadata once all of it is written. Level n of a label group is a label group
of its own, at path ``n``, whose voxels have the votes of all eight below; viewers find its ``ink`` listed.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import google_crc32c
import numpy as np
import zarr
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.halving import Reduce, halve, halve_labels
from inkzarr.core.job import Computed, Job, Plan, Report, RunOptions
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.lock import locked
from inkzarr.core.ome import add_level, only_full_resolution, read_levels, write_levels
from inkzarr.core.progress import size, tick
from inkzarr.core.remote import is_remote, open_store
from inkzarr.core.runner import plan_blocks, write_blocks
from inkzarr.core.schema import CHUNK, COUNT, FULL_RESOLUTION, INK, LEDGER_FOLDER, VolumeSpec
from inkzarr.core.store import open_all, open_stored
from inkzarr.core.target import names
from inkzarr.core.volume import StoredVolume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 256
"""Edge of a block of the level that is written, in voxels."""
PIECE = 128
"""Edge of what is halved at once: small enough for the processor's cache, and for whole shards."""
REMOTE_WORKERS = 8
"""Blocks in flight where a store answers slowly."""

IDS_BYTES = 4
"""From so many bytes up a whole number is taken for an id: no scan or prediction has them."""

Below = tuple[StoredVolume, ...]
"""The level that is halved: one array, or a label group's ink and count."""


def pyramid(
    volume_url: str,
    *,
    levels: int | None = None,
    reduce: Reduce = "mean",
    options: RunOptions = RunOptions(),
    storage_options: dict[str, Any] | None = None,
) -> list[Report]:
    """Add levels 1, 2, ... to an OME-Zarr or label group; run again to go on where a run was stopped.

    Parameters
    ----------
    volume_url : str
        The group, local or remote; its full resolution is at path ``0``, and finished.
    levels : int, optional
        How many to add; default: until a level fits one chunk (128 along every axis).
    reduce : str
        ``mean`` (whole numbers are averaged exactly and rounded half up; labels by their votes) or ``max``,
        which ids need, as `components` writes them.
    options : RunOptions
        How it is carried out; ``overwrite`` deletes all levels but ``0`` first.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    list of Report
        One a level; the group lists them.

    Raises
    ------
    InputError
        A bare array, an unfinished level 0, a mean of ids, levels that another tool or other settings
        made, or more levels than there are voxels to halve; nothing was written.
    StoreError, BlocksFailedError
        As the runner's; the level is not listed then.

    Examples
    --------
    >>> from inkzarr.core.runner import write_blocks
    >>> scan = getfixture("tmp_path") / "scan.zarr"
    >>> job = Job("ingest", str(scan), VolumeSpec(Zyx(5, 4, 4), np.dtype("uint8")), Zyx.of(128), {})
    >>> _ = write_blocks(job, lambda box: np.ones(box.shape, "uint8"), RunOptions())
    >>> _ = pyramid(scan, levels=1)
    >>> open_stored(scan, level=1).shape
    Zyx(z=3, y=2, x=2)
    """
    # refuses before anything is changed
    plans = plan_pyramid(
        volume_url, levels=levels, reduce=reduce, options=options, storage_options=storage_options
    )
    group = _open_group(str(volume_url).rstrip("/"), storage_options)
    reports = []
    with locked(group.url, storage_options=storage_options):
        group.prepare(overwrite=options.overwrite)
        options = dataclasses.replace(options, overwrite=False)
        for number, plan in enumerate(plans, start=1):
            below = group.level(number - 1)
            job = dataclasses.replace(plan.job, fingerprint=_fingerprint(below, reduce))
            halved = HalvedLabels(below[0], below[1], reduce) if below[1:] else HalvedBlocks(below[0], reduce)
            reports.append(write_blocks(job, halved, options))
            group.list_level(number, reduce)
    return reports


def plan_pyramid(
    volume_url: str,
    *,
    levels: int | None = None,
    reduce: Reduce = "mean",
    options: RunOptions = RunOptions(),
    storage_options: dict[str, Any] | None = None,
) -> list[Plan]:
    """Say what `pyramid` would do, one plan a level, and write nothing.

    Raises
    ------
    InputError
        As `pyramid` would.
    """
    if reduce not in get_args(Reduce):
        msg = f"reduce {reduce!r} is unknown: use {' or '.join(get_args(Reduce))}"
        raise InputError(msg)
    group = _open_group(str(volume_url).rstrip("/"), storage_options)
    finest = group.full_resolution()
    _refuse_mean_of_ids(finest, reduce)
    listed: list[str] = []
    if not options.overwrite:
        group.refuse_foreign_levels()
        listed = group.listed()
    plans = []
    for number, shape in enumerate(_shapes(finest.shape, levels), start=1):
        job, look = group.job(finest, number, shape), dataclasses.replace(options, overwrite=True)
        below = group.level(number - 1) if str(number - 1) in listed else ()
        if below and all(stored.finished for stored in below):
            job, look = dataclasses.replace(job, fingerprint=_fingerprint(below, reduce)), options
        nbytes = size(Zyx(*(2 * n for n in shape)).volume * finest.dtype.itemsize)
        plans.append(
            plan_blocks(job, look, level=str(number), **{"bytes in": f"{nbytes} before compression"})
        )
    return plans


@dataclass(frozen=True)
class HalvedBlocks:
    """The block function: reads a box of the level below, twice as large, and halves it.

    Parameters
    ----------
    below : StoredVolume
        The level that is read.
    reduce : str
        ``mean`` or ``max``.
    """

    below: StoredVolume
    reduce: Reduce

    def __call__(self, box: Box) -> np.ndarray:
        """The voxels of `box`, in voxels of the level that is written."""
        halved = np.empty(box.shape, self.below.dtype)
        for piece, twice in _pieces(box, self.below.shape):
            halved[piece.within(box)] = halve(self.below.read(twice), self.reduce)
            tick(piece.shape.volume)
        return halved


@dataclass(frozen=True)
class HalvedLabels:
    """The block function for labels: reads both arrays of the level below, and halves them together.

    Parameters
    ----------
    ink, count : StoredVolume
        Of the level that is read.
    reduce : str
        ``mean`` or ``max``.
    """

    ink: StoredVolume
    count: StoredVolume
    reduce: Reduce

    def __call__(self, box: Box) -> Computed:
        """Ink and votes of `box`, in voxels of the level that is written."""
        ink, count = (np.empty(box.shape, stored.dtype) for stored in (self.ink, self.count))
        for piece, twice in _pieces(box, self.ink.shape):
            where = piece.within(box)
            ink[where], count[where] = halve_labels(self.ink.read(twice), self.count.read(twice), self.reduce)
            tick(piece.shape.volume)
        return Computed((ink, count))


def _pieces(box: Box, below: Zyx) -> Iterator[tuple[Box, Box]]:
    """A block in pieces, and what each covers of the level below, whose shape is `below`."""
    pieces = Grid(box.shape, Zyx.of(PIECE))
    for index in pieces.indices():
        piece = pieces.box(index).shift(box.start)
        start, stop = (Zyx(*(2 * n for n in corner)) for corner in (piece.start, piece.stop))
        yield piece, Box(start, stop).clip(Box.whole(below))


def _refuse_mean_of_ids(finest: StoredVolume, reduce: Reduce) -> None:
    """Ids are names: their mean is the id of something else, or of nothing."""
    wide = finest.dtype.kind in "ui" and finest.dtype.itemsize >= IDS_BYTES
    if reduce == "mean" and (wide or finest.lineage.get("stage") == "components"):
        msg = f"{finest.url} holds ids ({finest.dtype}), of which a mean is none: use --reduce max"
        raise InputError(msg)


def _shapes(shape: Zyx, levels: int | None) -> list[Zyx]:
    """Shapes of levels 1, 2, ...

    Raises
    ------
    InputError
        Not a positive number of levels, or more than there are voxels to halve.
    """
    fitting = (max(shape) - 1).bit_length() - (CHUNK - 1).bit_length()
    most = (max(shape) - 1).bit_length()
    count = max(0, fitting) if levels is None else levels
    if levels is not None and not 1 <= levels <= most:
        msg = f"levels {levels} cannot be: a volume of {tuple(shape)} can be halved 1 to {most} times"
        raise InputError(msg)
    return [Zyx(*(-(-n // 2**number) for n in shape)) for number in range(1, count + 1)]


def _fingerprint(below: Below, reduce: Reduce) -> dict[str, Any]:
    """What changes a voxel: the voxels below, by the ledger's checksums where there is one, and how."""
    told = [_identity(stored) for stored in below]
    return {"below": told if told[1:] else told[0], "reduce": reduce}


def _identity(below: StoredVolume) -> dict[str, Any]:
    layout = {"path": below.level.path, "shape": list(below.shape), "dtype": below.dtype.name}
    if below.ledger is None:
        identity: dict[str, Any] = {"identity": below.identity}
    else:
        identity = {"voxels": google_crc32c.value(below.ledger.chunk_table().crc32c.tobytes())}
    return {**layout, **identity}


@dataclass(frozen=True)
class _Group:
    """The OME-Zarr group that gets the levels."""

    url: str
    storage_options: dict[str, Any] | None

    def listed(self) -> list[str]:
        """Paths of the levels that the group's metadata lists: these are finished."""
        return [level.path for level in open_stored(self.url, storage_options=self.storage_options).levels]

    def level(self, number: int) -> Below:
        """Level `number`, which the group lists."""
        at = self.listed().index(str(number))
        return (open_stored(self.url, level=at, storage_options=self.storage_options),)

    def job(self, finest: StoredVolume, number: int, shape: Zyx) -> Job:
        """Level `number` as the runner writes it, laid out as the finest is; the fingerprint comes later."""
        shards = finest.array.shards
        spec = VolumeSpec(
            shape,
            finest.dtype,
            zarr_format=finest.array.metadata.zarr_format,
            shard=None if shards is None else -(-max(shards) // CHUNK) * CHUNK,
            path=str(number),
        )
        workers = REMOTE_WORKERS if is_remote(self.url) else max(2, os.cpu_count() or 2)
        title, options = f"pyramid {number}", self.storage_options
        job = Job(title, self.url, spec, Zyx.of(BLOCK), {}, workers=workers, storage_options=options)
        piece = Zyx(*(min(PIECE, n) for n in job.grid.cell)).volume
        voxels = 2 * job.grid.cell.volume + 16 * piece  # the block and its copy, the voxels below and theirs
        return dataclasses.replace(job, block_bytes=voxels * finest.dtype.itemsize)

    def full_resolution(self) -> StoredVolume:
        """Level 0, which is refused where a pyramid cannot stand on it."""
        paths = self.listed()
        if paths == [""]:
            msg = f"{self.url} is a bare array, which cannot hold levels: ingest it into a group first"
            raise InputError(msg)
        if FULL_RESOLUTION not in paths:
            msg = f"{self.url} has levels {', '.join(paths)}, none at path {FULL_RESOLUTION}: ingest it anew"
            raise InputError(msg)
        (finest,) = self.level(0)
        add_level(finest.attributes, "1", 2, "mean")
        finest.require_finished()
        return finest

    def refuse_foreign_levels(self) -> None:
        """Raise where levels are there that no run of ours wrote."""
        store = open_store(self.url, storage_options=self.storage_options)
        there = {name for name in names(store, "") if name.isdecimal()} | set(self.listed())
        foreign = sorted(there - names(store, LEDGER_FOLDER) - {FULL_RESOLUTION})
        if foreign:
            made = f"{self.url} has levels that inkzarr did not write ({', '.join(foreign)})"
            msg = f"{made}: keep them, or replace them with --overwrite"
            raise InputError(msg)

    def prepare(self, *, overwrite: bool) -> None:
        """Make room for levels: where overwriting, all but the finest are unlisted, then deleted."""
        self._change(self.without_levels if overwrite else dict)
        if not overwrite:
            return
        store = open_store(self.url, storage_options=self.storage_options, read_only=False)
        # only plain numbers are deleted: a listed path may lead anywhere
        for name in names(store, "") | names(store, LEDGER_FOLDER):
            if name.isdecimal() and name != FULL_RESOLUTION:
                sync(store.delete_dir(name))
                sync(store.delete_dir(f"{LEDGER_FOLDER}/{name}"))

    def without_levels(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """The group's attributes without any level but the finest."""
        return only_full_resolution(attributes)

    def list_level(self, number: int, reduce: Reduce) -> None:
        """Add a finished level to the group's metadata."""
        self._change(lambda attributes: add_level(attributes, str(number), 2**number, reduce))

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change the group's attributes, and its consolidated metadata (Zarr 2) where it has any."""
        store = open_store(self.url, storage_options=self.storage_options, read_only=False)
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        before = dict(group.attrs)
        if (after := change(before)) != before:
            group.update_attributes(after)
        if ".zmetadata" in names(store, ""):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ZarrUserWarning)  # of the ledger, which is no array
                zarr.consolidate_metadata(store, zarr_format=2)


class _LabelGroup(_Group):
    """A label group: level n is a label group of its own at path ``n``, with its own ledgers."""

    def listed(self) -> list[str]:
        paths = [level.path for level in read_levels(self.level(0)[0].attributes)]
        return [FULL_RESOLUTION, *(path.removesuffix(f"/{INK.name}") for path in paths[1:])]

    def level(self, number: int) -> Below:
        url = f"{self.url}/{number}" if number else self.url
        return open_label_arrays(url, storage_options=self.storage_options)

    def job(self, finest: StoredVolume, number: int, shape: Zyx) -> Job:
        job = super().job(finest, number, shape)
        um = (finest.voxel_size_um or job.spec.voxel_size_um) * 2**number
        ink = dataclasses.replace(job.spec, path=INK.name, voxel_size_um=um)
        count = dataclasses.replace(ink, path=COUNT.name, dtype=np.dtype(COUNT.dtypes[0]))
        block_bytes = 3 * job.block_bytes  # votes have two bytes
        return dataclasses.replace(
            job, out=f"{self.url}/{number}", spec=ink, more=(count,), block_bytes=block_bytes
        )

    def full_resolution(self) -> StoredVolume:
        ink, count = self.level(0)
        for stored in (ink, count):
            stored.require_finished()
        return ink

    def refuse_foreign_levels(self) -> None:
        """Nothing: the runner refuses a level that it did not write."""

    def without_levels(self, attributes: dict[str, Any]) -> dict[str, Any]:
        return attributes | {
            key: type(attributes[key])() for key in ("multiscales", "ome") if key in attributes
        }

    def list_level(self, number: int, reduce: Reduce) -> None:
        finest = self.full_resolution()
        um = finest.voxel_size_um or VolumeSpec.voxel_size_um
        zarr_format = finest.array.metadata.zarr_format
        spec = VolumeSpec(finest.shape, finest.dtype, um, zarr_format=zarr_format)
        listing = write_levels(spec, finest.name, [2**n for n in range(number + 1)])
        image = listing.get("ome", listing)["multiscales"][0]
        image["type"] = reduce
        for n, dataset in enumerate(image["datasets"]):
            dataset["path"] = f"{n}/{INK.name}" if n else INK.name
        self._change(lambda attributes: {**attributes, **listing})


def _open_group(url: str, storage_options: dict[str, Any] | None) -> _Group:
    paths = {one.level.path for one in open_all(url, coarse=False, storage_options=storage_options)}
    return (_LabelGroup if {INK.name, COUNT.name} <= paths else _Group)(url, storage_options)
