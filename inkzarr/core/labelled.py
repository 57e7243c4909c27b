"""Label groups: the arrays ``ink`` and ``count`` as one volume."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from inkzarr.core.errors import InputError
from inkzarr.core.schema import CERTAIN_INK, COUNT, DIMS, INK, UNLABELLED
from inkzarr.core.store import as_dataarray, open_all
from inkzarr.core.volume import StoredVolume, warn_unfinished


def open_labels(url: str, *, storage_options: dict[str, Any] | None = None) -> xr.DataArray:
    """Open a label group, lazily; an `UnfinishedWarning` tells where it is not all written yet.

    Parameters
    ----------
    url : str
        The group that the labels stage wrote: ``ink`` and ``count``; local path or URL.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    xarray.DataArray
        float32, dims z, y, x; 0 no ink .. 1 ink, and -1 where unlabelled; attrs as `open_volume`.

    Raises
    ------
    InputError
        Nothing there, or no label group.
    StoreError
        The store failed; also when voxels are computed.
    """
    ink, count = open_label_arrays(url, storage_options=storage_options)
    warn_unfinished([ink, count])
    values, votes = (as_dataarray(stored) for stored in (ink, count))
    lazy = da.map_blocks(_as_labels, values.data, votes.data, dtype=np.float32)
    return xr.DataArray(lazy, dims=DIMS, name="labels", attrs=values.attrs)


def open_label_arrays(
    url: str, *, storage_options: dict[str, Any] | None = None
) -> tuple[StoredVolume, StoredVolume]:
    """The arrays ``ink`` and ``count`` of a label group, for reading by the box; errors as `open_labels`."""
    arrays = open_all(url, coarse=False, storage_options=storage_options)
    found = {stored.level.path: stored for stored in arrays}
    if not {INK.name, COUNT.name} <= found.keys():
        msg = f"{url} is no label group: give one that inkzarr labels wrote, with {INK.name} and {COUNT.name}"
        raise InputError(msg)
    ink, count = found[INK.name], found[COUNT.name]
    if (ink.shape, ink.chunks) != (count.shape, count.chunks):
        msg = f"{url} has arrays of different shapes or chunks: write the labels anew"
        raise InputError(msg)
    return ink, count


def open_label_levels(url: str, *, storage_options: dict[str, Any] | None = None) -> list[xr.DataArray]:
    """Each level of a label group, finest first, as `open_labels`; empty where `url` is none."""
    found = [stored.level.path for stored in open_all(url, storage_options=storage_options)]
    if not {INK.name, COUNT.name} <= set(found):
        return []
    places = [path.removesuffix(INK.name).strip("/") for path in found if path.split("/")[-1] == INK.name]
    urls = ["/".join(filter(None, (str(url).rstrip("/"), place))) for place in places]
    return [open_labels(one, storage_options=storage_options) for one in urls]


def _as_labels(ink: np.ndarray, count: np.ndarray) -> np.ndarray:
    labels: np.ndarray = np.where(count > 0, ink / np.float32(CERTAIN_INK), np.float32(UNLABELLED))
    return labels.astype(np.float32)
