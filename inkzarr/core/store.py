"""Open and create volumes: OME-Zarr groups and bare arrays, local or remote."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import tokenize
from zarr.errors import NodeNotFoundError, ZarrUserWarning

from inkzarr.core.bounded import unknown_codecs
from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import AXES, Grid, Zyx
from inkzarr.core.lazy import LazyVolume, Readable
from inkzarr.core.numbered import named_um, numbered, um_in_name
from inkzarr.core.ome import Level, read_axes, read_levels, write_levels
from inkzarr.core.packing import compressor
from inkzarr.core.remote import harmless, is_refusal, is_remote, open_store, without_secrets
from inkzarr.core.schema import ARRAYS, COUNT, DIMS, INK, LINEAGE, VolumeSpec
from inkzarr.core.volume import NUMBERS, StoredVolume, own_voxel_size, warn_unfinished

if TYPE_CHECKING:
    from os import PathLike

    from zarr.abc.store import Store

LARGEST_CHUNK = 2**32
"""Bytes that one chunk may take in memory; beyond, the array is refused."""
NO_PLACE = "ct"
"""Axes of channels and times."""
MOST_CHUNKS = 2**28
"""Of an array, and of a shard; a scroll has less than a million."""


def open_stored(
    url: str, *, level: int = 0, axes: str = AXES, storage_options: dict[str, Any] | None = None
) -> StoredVolume:
    """Open one level of a volume for reading by the box; nothing but metadata is read.

    Parameters
    ----------
    url : str
        An OME-Zarr group (0.4, 0.5), a label group's array or any bare Zarr array; local path or URL.
    level : int
        Position among the group's resolutions, finest first.
    axes : str
        The order in which the caller takes them to be stored; where it is ``zyx``, a volume that names
        another is refused.
    storage_options : dict, optional
        For fsspec.

    Raises
    ------
    InputError
        Nothing there, not a volume of three axes, in another order, or no such level.
    StoreError
        The store failed.
    """
    url = str(url).rstrip("/")
    store = open_store(url, storage_options=storage_options)
    node = _open_node(store, url)
    if isinstance(node, zarr.Array):
        return _open_array(node, url, level, axes, storage_options)
    attributes = _attributes(node, url)
    levels = _levels(attributes, url) or numbered(partial(_member, node, url), url)
    if not levels:
        inside = ", ".join(_arrays(node, url)) or "nothing"
        msg = f"{url} is a group without multiscales: name one of its arrays (it holds {inside})"
        raise InputError(msg)
    if not 0 <= level < len(levels):
        msg = f"level {level} does not exist in {url}: it has {len(levels)}, 0 is the finest"
        raise InputError(msg)
    _check_order(read_axes(attributes), axes, url)
    array = _member(node, url, levels[level].path)
    return StoredVolume(url, _check_array(array, url), levels[level], tuple(levels), attributes)


def open_levels(url: str, *, storage_options: dict[str, Any] | None = None) -> list[StoredVolume]:
    """All resolutions of a volume to look at, finest first; a warning tells where they are unfinished."""
    finest = open_stored(url, storage_options=storage_options)
    coarser = range(1, len(finest.levels))
    levels = [finest, *(open_stored(url, level=level, storage_options=storage_options) for level in coarser)]
    warn_unfinished(levels)
    return levels


def open_readable(
    volume: xr.DataArray | str | PathLike[str], *, storage_options: dict[str, Any] | None = None
) -> Readable:
    """What is given as a lazy array or by its URL, for reading by the box; finished, or refused."""
    if isinstance(volume, xr.DataArray):
        return LazyVolume(volume)
    stored = open_stored(str(volume), storage_options=storage_options)
    stored.require_finished()
    return stored


def open_all(
    url: str, *, coarse: bool = True, storage_options: dict[str, Any] | None = None
) -> list[StoredVolume]:
    """Every level of an image, every array of a label group, or the one bare array; see `open_stored`.

    Of a label group, the arrays of the coarser levels that it lists follow, unless not `coarse`.
    """
    url = str(url).rstrip("/")
    node = _open_node(open_store(url, storage_options=storage_options), url)
    attributes = _attributes(node, url)
    images: list[Level] = []
    if isinstance(node, zarr.Group):
        images = _levels(attributes, url) or numbered(partial(_member, node, url), url)
    labels = images[:1] and images[0].path == INK.name  # of which viewers find the ink alone listed
    arrays = _arrays(node, url) if isinstance(node, zarr.Group) and (labels or not images) else {}
    if not arrays or isinstance(node, zarr.Array):
        return [open_stored(url, level=n, storage_options=storage_options) for n in range(len(images) or 1)]
    um = own_voxel_size(attributes)
    levels = [Level(name, um) for name in arrays]
    found: list[object] = [*arrays.values()]
    for level in images[1:] if labels and coarse else []:
        place = level.path.removesuffix(INK.name)
        both = [replace(level, path=f"{place}{name}") for name in (COUNT.name, INK.name)]
        levels += both
        found += [_member(node, url, one.path) for one in both]
    pairs = zip(levels, found, strict=True)
    return [StoredVolume(url, _check_array(array, url), n, tuple(levels), attributes) for n, array in pairs]


def open_volume(url: str, *, level: int = 0, storage_options: dict[str, Any] | None = None) -> xr.DataArray:
    """Open a scan or prediction, lazily; an `UnfinishedWarning` tells where it is not all written yet.

    Parameters
    ----------
    url : str
        An OME-Zarr group or a bare Zarr array, v2 or v3; local path, ``http(s)://`` or ``s3://``.
    level : int
        Resolution, 0 is the finest.
    storage_options : dict, optional
        For fsspec, such as ``{"anon": True}``.

    Returns
    -------
    xarray.DataArray
        Dims z, y, x; Dask-backed, one Dask chunk a stored chunk; attrs ``voxel_size_um``,
        ``source``, and the lineage where inkzarr made the volume.

    Raises
    ------
    InputError
        Nothing there, not a volume of three axes, or no such level.
    StoreError
        The store failed; also when voxels are computed, naming the chunk.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> _ = zarr.save_array(folder / "scan.zarr", np.zeros((4, 8, 8), "uint8"))
    >>> scan = open_volume(folder / "scan.zarr")
    >>> scan.dims, scan.shape
    (('z', 'y', 'x'), (4, 8, 8))
    """
    stored = open_stored(url, level=level, storage_options=storage_options)
    warn_unfinished([stored])
    return as_dataarray(stored)


def as_dataarray(stored: StoredVolume) -> xr.DataArray:
    """A stored volume as a lazy array with named axes."""
    name = f"volume-{tokenize(stored)}"
    meta = np.empty((0,) * len(DIMS), stored.dtype)
    lazy = da.from_array(stored, chunks=tuple(stored.chunks), name=name, fancy=False, meta=meta)
    attrs: dict[str, Any] = {"voxel_size_um": stored.voxel_size_um, "source": without_secrets(stored.url)}
    if stored.lineage:
        attrs["lineage"] = stored.lineage
    return xr.DataArray(lazy, dims=DIMS, name="volume", attrs=attrs)


def create_volume(store: Store, spec: VolumeSpec, name: str) -> zarr.Array[Any]:
    """Create the OME-Zarr group and its empty array of compressed chunks; nothing may be there yet.

    Parameters
    ----------
    store : zarr.abc.store.Store
        Writable; the group is its root.
    spec : VolumeSpec
        The array's layout.
    name : str
        Of the image.
    """
    return create_level(create_group(store, spec, write_levels(spec, name, [1])), spec)


def create_group(store: Store, spec: VolumeSpec, image: dict[str, Any] | None = None) -> zarr.Group:
    """Create the group alone, with the metadata of an `image` where its arrays are levels of one."""
    attributes = {**(image or {}), LINEAGE: spec.lineage | {"voxel_size_um": spec.voxel_size_um}}
    v: Any = spec.zarr_format
    return zarr.create_group(store, zarr_format=v, overwrite=False, attributes=attributes)


def create_level(group: zarr.Group, spec: VolumeSpec) -> zarr.Array[Any]:
    """Create one level's array in an existing group, empty, as `spec` says."""
    encoding: Any = {"name": "default", "separator": "/"}
    if spec.zarr_format == 2:
        encoding = {"name": "v2", "separator": "/"}
    return group.create_array(
        spec.path,
        shape=tuple(spec.shape),
        chunks=tuple(spec.chunks),
        shards=spec.shards and tuple(spec.shards),
        dtype=spec.dtype,
        compressors=compressor(spec.dtype, spec.zarr_format),
        filters=None,
        fill_value=0,
        chunk_key_encoding=encoding,
        dimension_names=DIMS if spec.zarr_format == 3 else None,
        attributes={LINEAGE: spec.lineage} if spec.path in ARRAYS else None,
    )


def _open_node(store: Store, url: str) -> zarr.Array[Any] | zarr.Group:
    if "\n" in url:  # an array as it prints itself
        msg = f"{url.splitlines()[0]} ... is no place: give the path or URL of a volume on disk"
        raise InputError(msg)
    try:
        return zarr.open(store, mode="r")
    except StoreError:
        raise
    except (FileNotFoundError, NodeNotFoundError) as error:
        msg = f"no Zarr volume at {url}: give the folder or URL that holds .zgroup, .zarray or zarr.json"
        raise InputError(msg) from harmless(error)
    except Exception as error:  # noqa: BLE001 - zarr raises anything
        msg = f"the metadata at {url} cannot be used: {error}"
        raise InputError(msg) from harmless(error)


def _open_array(
    array: zarr.Array[Any], url: str, level: int, axes: str, storage_options: dict[str, Any] | None
) -> StoredVolume:
    """An array that was named itself, with what the group around it knows: voxel size, lineage, ledger."""
    if level != 0:
        msg = (
            f"level {level} does not exist in {url}: it has 1, an array; give the group that lists the levels"
        )
        raise InputError(msg)
    own = _attributes(array, url)
    beside: tuple[Store, str] | None = None
    around: dict[str, Any] = {}
    if (place := _around(url)) is not None:
        beside = open_store(place[0], storage_options=storage_options), place[1]
        around = _attributes_around(beside[0], array)
    um = own_voxel_size(own) or own_voxel_size(around) or named_um(url, array, beside)
    found = Level("", um)
    told = "".join(
        (name or "")[:1] for name in getattr(array.metadata, "dimension_names", None) or ()
    ).lower()
    with contextlib.suppress(InputError):
        named = [one for one in _levels(around, url) if beside and one.path == beside[1]]
        found = replace(named[0], path="", voxel_size_um=named[0].voxel_size_um or um) if named else found
        told = read_axes(around) if named else told
    _check_order(told or read_axes(own), axes, url)
    lineage = {LINEAGE: around[LINEAGE]} if LINEAGE in around else {}
    return StoredVolume(url, _check_array(array, url), found, (found,), {**lineage, **own}, beside)


def _check_order(told: str, taken: str, url: str) -> None:
    """Refuse a volume taken for z, y, x whose metadata names other axes, or these in another order."""
    if taken != AXES or told == AXES or len(told) != len(AXES) or not set(told) <= {*AXES, *NO_PLACE}:
        return
    remedy = f"ingest it with --axes {told}" if set(told) == set(AXES) else "take one channel or time of it"
    msg = f"{url} has axes {' '.join(told)}, in this order; a volume is z y x: {remedy}"
    raise InputError(msg)


def _around(url: str) -> tuple[str, str] | None:
    """The folder around an array, and the array's name in it; None where it has none."""
    place = url if is_remote(url) else os.path.realpath(url.removeprefix("file://"))
    if is_remote(url) and not urlsplit(url).path.strip("/"):
        return None
    folder, _, name = place.rpartition("/")
    return folder or "/", name


def _attributes_around(store: Store, array: zarr.Array[Any]) -> dict[str, Any]:
    """Of the group that holds the array; empty where there is none, or none that can be read."""
    zarr_format: Any = array.metadata.zarr_format
    try:
        return dict(zarr.open_group(store, mode="r", zarr_format=zarr_format, use_consolidated=False).attrs)
    except StoreError as error:
        if is_refusal(error):
            return {}
        raise
    except Exception:  # noqa: BLE001 - the array is what was asked for, and it can be read
        return {}


def _attributes(node: zarr.Array[Any] | zarr.Group, url: str) -> dict[str, Any]:
    try:
        return dict(node.attrs)
    except (TypeError, ValueError) as error:
        msg = f"the attributes at {url} cannot be used ({error}): they are a JSON object"
        raise InputError(msg) from error


def _levels(attributes: dict[str, Any], url: str) -> list[Level]:
    try:
        return read_levels(attributes, own_voxel_size(attributes) or um_in_name(url))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        msg = f"the multiscales metadata at {url} cannot be used ({error!r}): name one of its arrays"
        raise InputError(msg) from error


def _member(group: zarr.Group, url: str, path: str) -> object:
    """What lies at a path that metadata names: never outside the group."""
    if "\0" in path or "\\" in path or ".." in path.split("/"):
        msg = f"the multiscales metadata at {url} names {path!r}, which leads out of it: name an array's path"
        raise InputError(msg)
    try:
        return group.get(path)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - zarr raises anything
        msg = f"the metadata of {path} at {url} cannot be used: {error}"
        raise InputError(msg) from harmless(error)


def _arrays(group: zarr.Group, url: str) -> dict[str, zarr.Array[Any]]:
    if not group.store.supports_listing and group.metadata.consolidated_metadata is None:
        named = {name: _member(group, url, name) for name in sorted(ARRAYS)}
        return {name: array for name, array in named.items() if isinstance(array, zarr.Array)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # of the ledger, which is no array
        try:
            return dict(sorted(group.arrays()))
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - zarr raises anything
            msg = f"the metadata of an array in {url} cannot be used: {error}"
            raise InputError(msg) from harmless(error)


def _check_array(array: object, url: str) -> zarr.Array[Any]:
    if not isinstance(array, zarr.Array):
        msg = f"{url} names a level that is no array: its multiscales metadata is wrong"
        raise InputError(msg)
    if array.ndim != len(DIMS):
        msg = f"{url} has {array.ndim} axes {array.shape}: a volume has three, z y x; write one channel alone"
        raise InputError(msg)
    dtype = np.dtype(array.dtype)
    if dtype.kind not in NUMBERS:
        msg = f"{url} holds dtype {dtype}: a voxel is a whole number or a float"
        raise InputError(msg)
    if min(array.shape) < 1:
        msg = f"{url} has shape {array.shape}: every axis needs at least one voxel"
        raise InputError(msg)
    if min(array.chunks) < 1:
        msg = f"{url} has chunks of {array.chunks}: each holds at least one voxel"
        raise InputError(msg)
    if Zyx(*array.chunks).volume * dtype.itemsize > LARGEST_CHUNK:
        msg = f"{url} has chunks of {array.chunks} {dtype}: more than {LARGEST_CHUNK} bytes each are refused"
        raise InputError(msg)
    for whole in filter(None, (array.shape, array.shards)):
        if Grid(Zyx(*whole), Zyx(*array.chunks)).counts.volume > MOST_CHUNKS:
            msg = (
                f"{url} has chunks of {array.chunks} in {whole}: more than {MOST_CHUNKS} of them are refused"
            )
            raise InputError(msg)
    if unknown := unknown_codecs(array):
        msg = f"{url} is packed by codec {unknown[0]!r}, which is not read: write it with blosc, zstd or gzip"
        raise InputError(msg)
    return array
