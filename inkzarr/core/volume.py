"""A volume on a store: its voxels by the box, and what can be told of them without reading."""

from __future__ import annotations

import math
import re
import sys
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec
from zarr.core.sync import sync

from inkzarr.core.bounded import bounded
from inkzarr.core.errors import InkzarrError, InputError, StoreError, UnfinishedWarning
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.ledger import DONE, Ledger
from inkzarr.core.ome import Level
from inkzarr.core.progress import size
from inkzarr.core.remote import CarefulStore, fault_of, is_refusal, is_remote, without_secrets
from inkzarr.core.schema import DIMS, LINEAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zarr.abc.store import Store

DECODES = 3
"""How often a remote chunk is asked for that does not decode, such as a proxy's page in its place."""
AGAIN = "run the command that makes it again, until it is done"
NUMBER = re.compile(r"\d{1,9}")
NUMBERS = "uif"
"""Kinds of dtype that a voxel may have: whole numbers and floats."""


@dataclass(frozen=True, eq=False, repr=False)
class StoredVolume:
    """A volume on a store: what it is, and its voxels by the box.

    Parameters
    ----------
    url : str
        Of the group or the array.
    array : zarr.Array
        The level that was opened.
    level : Level
        Its path in the group ("" for a bare array) and voxel size.
    levels : tuple of Level
        All of the group's, finest first.
    attributes : dict
        Of the group, or of the bare array.
    beside : tuple of Store and str, or None
        Of an array that was opened by its own URL: the store of the folder around it, in which its group and
        ledger are, and its name there.
    """

    url: str
    array: zarr.Array[Any]
    level: Level
    levels: tuple[Level, ...]
    attributes: dict[str, Any]
    beside: tuple[Store, str] | None = None

    def __post_init__(self) -> None:
        store, outermost = self.array.store, self.array.compressors[-1:]
        blosc = bool(outermost) and isinstance(outermost[0], BloscCodec | Blosc)
        if isinstance(store, CarefulStore) and blosc and self.array.shards is None:
            store.blosc.add(f"{self.array.path}/".lstrip("/"))

    def __repr__(self) -> str:
        """Without anything secret: workers of a cluster log it."""
        return (
            f"<StoredVolume {without_secrets(self.url)} {self.level.path} {tuple(self.shape)} {self.dtype}>"
        )

    @property
    def name(self) -> str:
        """The last part of the URL, without anything secret."""
        return without_secrets(self.url).rsplit("/", 1)[-1]

    @property
    def shape(self) -> Zyx:
        """In voxels."""
        return Zyx(*self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one voxel, in the machine's byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def ndim(self) -> int:
        """Three."""
        return len(DIMS)

    @property
    def chunks(self) -> Zyx:
        """What is compressed at once, in voxels."""
        return Zyx(*self.array.chunks)

    @property
    def voxel_size_um(self) -> float | None:
        """Edge of a voxel in micrometres, where it is known."""
        return self.level.voxel_size_um or own_voxel_size(self.attributes)

    @property
    def lineage(self) -> dict[str, Any]:
        """What made the volume, where inkzarr did."""
        found = self.attributes.get(LINEAGE)
        return found if isinstance(found, dict) else {}

    @cached_property
    def ledger(self) -> Ledger | None:
        """The array's ledger, where it has one."""
        return self._load(Ledger.load)

    def _load(self, read: Callable[[Ledger], bool]) -> Ledger | None:
        ledger = Ledger(*(self.beside or (self.array.store, self.level.path)))
        try:
            if read(ledger):
                return ledger
        except StoreError as error:
            if self.beside is None or not is_refusal(error):
                raise
            return None  # who may read an array need not be allowed to look around it
        try:
            headless = ledger.headless()
        except StoreError as error:
            if not is_refusal(error):
                raise
            headless = False  # nor to list it
        if headless:
            place = f"{without_secrets(self.url)}, level {self.level.path or '.'}"
            told = f"the ledger of {place} has lost its manifest.json: what is missing may be air or not"
            msg = f"{told}; make that level again by the command that made it, with --overwrite"
            raise InputError(msg)
        return None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this volume's voxels from others', for fingerprints.

        The checksum is of all voxels where there is a ledger, else of three chunks: the first, the middle
        and the last.
        """
        name = "/".join(filter(None, (self.name, self.level.path)))
        layout = {"shape": list(self.shape), "dtype": self.dtype.name, "chunks": list(self.chunks)}
        if self.ledger is not None:
            return {"name": name, **layout, "voxels": zlib.crc32(self.ledger.chunk_table().crc32c.tobytes())}
        grid = Grid(self.shape, self.chunks)
        places = [Zyx(*(part * (n - 1) // 2 for n in grid.counts)) for part in range(3)]
        sample = [zlib.crc32(self.read(grid.box(place)).tobytes()) for place in places]
        return {"name": name, **layout, "sample": sample}

    @property
    def finished(self) -> bool:
        """Whether all of it is written, as far as can be told: false where a ledger says otherwise."""
        manifest = None if self.ledger is None else self.ledger.manifest
        return manifest is None or manifest.state == DONE

    @property
    def made(self) -> Box:
        """What its run was asked for: all of it, or a box beyond which nothing was written."""
        manifest = None if self.ledger is None else self.ledger.manifest
        region = None if manifest is None else manifest.region
        return Box.whole(self.shape) if region is None else Box(*(Zyx.of(side) for side in region))

    def unfinished(self) -> str:
        """What to tell of a run that was not finished, else ""; of one that was, no record is read."""
        ledger = self._load(Ledger.load_manifest)
        if ledger is None or ledger.manifest is None or ledger.manifest.state == DONE or self.ledger is None:
            return ""
        done = self.ledger.chunk_table().done[self.ledger.cells.slices]
        missing = f"{done.size - np.count_nonzero(done)} of {done.size} chunks are missing"
        if ledger.manifest.sparse:  # those known to be empty have no record
            missing = f"at most {missing}"
        return f"{without_secrets(self.url)} is unfinished: {AGAIN} ({missing})"

    def require_finished(self) -> None:
        """Refuse a volume whose run was not finished: what is not written yet would be read as air.

        Raises
        ------
        InputError
            Naming the volume and the remedy.
        """
        if not self.finished:
            msg = f"{self.url} is unfinished: {AGAIN}"
            raise InputError(msg)

    @cached_property
    def _written(self) -> np.ndarray | None:
        """Which chunks hold voxels that are not 0, and which zeros alone, by the ledger.

        bool, two arrays of the chunk grid's shape. What the run was to write and is not recorded, such as by
        lines that a damaged ledger lost, is neither.
        """
        if self.ledger is None:
            return None
        table, cells = self.ledger.chunk_table(), self.ledger.cells.slices
        empty = np.ones(table.done.shape, bool)
        empty[cells] = table.done[cells] & (table.nonzero[cells] == 0)
        return np.stack([table.nonzero > 0, empty])

    def known_empty(self, index: Zyx) -> bool:
        """Whether the ledger says that chunk `index` holds zeros alone."""
        return self._written is not None and bool(self._written[1][index])

    @cached_property
    def bounded_array(self) -> zarr.Array[Any]:
        """The array, as it is read: a chunk unpacks to no more than it holds."""
        return bounded(self.array)

    def __getstate__(self) -> dict[str, Any]:
        """Without the ledger, of which readers in other processes need two bits a chunk."""
        written, packed = self._written, None
        if written is not None:
            packed = zlib.compress(np.packbits(written).tobytes(), 1), written.shape
        kept = {name: value for name, value in self.__dict__.items() if name != "bounded_array"}
        return {**kept, "ledger": None, "_written": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo `__getstate__`."""
        if state["_written"] is not None:
            bits, shape = state["_written"]
            unpacked = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=math.prod(shape))
            state["_written"] = unpacked.reshape(shape).view(bool)
        del state["ledger"]
        self.__dict__.update(state)

    def traffic(self) -> str:
        """What this process fetched of a remote volume, in words; "" where it fetched or needed nothing."""
        found = getattr(self.array.store, "traffic", None)
        if found is None or not found.needed:
            return ""
        times = f"{found.fetched / found.needed:.2f} times"
        return f"{size(found.fetched)} fetched, {size(found.needed)} needed ({times})"

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, which lies inside the volume.

        Returns
        -------
        numpy.ndarray
            Of the box's shape and the volume's dtype.

        Raises
        ------
        StoreError
            A chunk cannot be had or does not decode; it is named.
        """
        return self[box.slices]

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        """Index with slices, as Dask does; what came from afar and does not decode is asked for again."""
        return self._decode(key, DECODES if is_remote(self.url) else 1)

    def _decode(self, key: tuple[slice, ...], tries: int) -> np.ndarray:
        try:
            return self._get(key)
        except InkzarrError:
            raise
        except Exception as error:
            if tries > 1:
                self._forget(key)
                return self._decode(key, tries - 1)
            raise fault_of(self.url)(self._name_bad_chunk(key, error)) from error

    def _forget(self, key: tuple[slice, ...]) -> None:
        """Let go of the chunks that are kept on a disk, of which one is not sound."""
        kept = getattr(self.array.store, "kept", None)
        if kept is None:
            return
        for index in Grid(self.shape, self.chunks).indices(self._region(key)):
            kept.forget(f"{self.array.path}/{self.chunk_key(index)}".lstrip("/"))

    def _get(self, key: tuple[slice, ...]) -> np.ndarray:
        voxels = np.asarray(self.bounded_array[key], dtype=self.dtype)
        if self._written is not None:
            self._refuse_lost_chunks(self._region(key), voxels)
        return voxels

    def _refuse_lost_chunks(self, region: Box, voxels: np.ndarray) -> None:
        """A chunk that the ledger knows to hold something, and that is not there, is not air."""
        grid = Grid(self.shape, self.chunks)
        if voxels.shape != region.shape or self._written is None:
            return
        for index in grid.indices(region):
            if not self._written[0][index] or voxels[grid.box(index).clip(region).within(region)].any():
                continue
            key = f"{self.array.path}/{self.chunk_key(index)}".lstrip("/")
            if not sync(self.array.store.exists(key)):
                msg = f"chunk {key} of {self.url} is lost, its ledger knows of voxels in it: make it again"
                raise fault_of(self.url)(msg)

    def _region(self, key: tuple[slice, ...]) -> Box:
        slices = [k if isinstance(k, slice) else slice(k, k + 1) for k in key]
        bounds = [s.indices(n) for s, n in zip(slices, self.shape, strict=True)]
        return Box(Zyx(*(b[0] for b in bounds)), Zyx(*(b[1] for b in bounds)))

    def _name_bad_chunk(self, key: tuple[slice, ...], error: Exception) -> str:
        region, grid = self._region(key), Grid(self.shape, self.chunks)
        for index in grid.indices(region):
            try:
                self._get(grid.box(index).slices)
            except StoreError as chunk_error:
                return str(chunk_error)
            except Exception as chunk_error:  # noqa: BLE001 - codecs raise anything
                why = str(chunk_error) or type(chunk_error).__name__
                which = f"chunk {self.chunk_key(index)} of {self.url}"
                return f"{which} does not decode ({why}): copy or make it again"
        return f"{self.url} cannot be read at {region}: {error}"

    def chunk_key(self, index: Zyx) -> str:
        """The key, below the array's own, of what is stored of chunk `index`: a chunk, or its shard."""
        stored = self.array.shards or self.array.chunks
        axes = zip(index, self.array.chunks, stored, strict=True)
        return str(self.array.metadata.encode_chunk_key(tuple(i * c // s for i, c, s in axes)))

    def may_exceed(self, threshold: float) -> np.ndarray:
        """Which chunks (bool, of the grid's shape) may hold more than `threshold`, told without reading any.

        From the ledger's largest voxels; else from the list of stored chunks, since a chunk that is
        not stored holds the fill value; else every chunk may.
        """
        counts = Grid(self.shape, self.chunks).counts
        fill_exceeds = not float(self.array.fill_value or 0) <= threshold
        if self.ledger is not None:
            return ~(self.ledger.chunk_table().high <= threshold)
        stored = None if fill_exceeds else self.stored_chunks()
        return np.ones(counts, bool) if stored is None else stored

    def stored_chunks(self) -> np.ndarray | None:
        """Which chunks exist (bool, of the chunk grid's shape); None where a store or shards hide it."""
        if self.array.shards is not None or not self.array.store.supports_listing:
            return None
        prefix = f"{self.array.path}/".lstrip("/")
        found = np.zeros(Grid(self.shape, self.chunks).counts, bool)
        encode = self.array.metadata.encode_chunk_key

        async def collect() -> None:
            async for key in self.array.store.list_prefix(prefix):
                name = key.removeprefix(prefix)
                index = tuple(map(int, NUMBER.findall(name)))
                if len(index) == found.ndim and np.less(index, found.shape).all() and encode(index) == name:
                    found[index] = True

        try:
            sync(collect())
        except StoreError:
            return None
        return found if found.any() else None

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        """Tell this volume from others without reading it."""
        return (self.url, self.level.path, str(self.array.metadata.to_dict()))


def warn_unfinished(volumes: Iterable[StoredVolume]) -> None:
    """Warn, once, of what was opened together and is not all written; in the caller's code outside inkzarr.

    Parameters
    ----------
    volumes : iterable of StoredVolume
        Levels or arrays of one volume; their ledgers alone are read.
    """
    told = next(filter(None, (stored.unfinished() for stored in volumes)), "")
    if not told:
        return
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("inkzarr."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(told, UnfinishedWarning, stacklevel=depth)


def own_voxel_size(attributes: dict[str, Any]) -> float | None:
    """What inkzarr noted of the voxel size, in micrometres, where it made the volume."""
    found = attributes.get(LINEAGE)
    return found.get("voxel_size_um") if isinstance(found, dict) else None
