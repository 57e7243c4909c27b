"""Levels that no metadata lists: published groups of arrays 0, 1, 2 ..., named after their voxel size."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import zarr

from inkzarr.core.ome import Level
from inkzarr.core.remote import without_secrets
from inkzarr.core.schema import DIMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import Store

MOST_LEVELS = 16


def numbered(member: Callable[[str], object], url: str) -> list[Level]:
    """Levels of a published group that lists none: arrays 0, 1, 2 ..., each about half of the one before.

    Parameters
    ----------
    member : callable
        Gives what lies at a path of the group.
    url : str
        Of the group.
    """
    found: list[zarr.Array[Any]] = []
    while isinstance(array := member(str(len(found))), zarr.Array) and len(found) < MOST_LEVELS:
        if array.ndim != len(DIMS) or (found and not _is_half(array, found[-1])):
            return []
        found.append(array)
    ums = [um_in_name(url, _factor(array, found[0])) for array in found]
    levels = enumerate(ums)
    return [Level(str(n), um, None if um is None else (um,) * len(DIMS)) for n, um in levels]


def _is_half(array: zarr.Array[Any], finer: zarr.Array[Any]) -> bool:
    return all(abs(2 * n - fine) <= 2 for n, fine in zip(array.shape, finer.shape, strict=True))


def _factor(array: zarr.Array[Any], finest: zarr.Array[Any]) -> int:
    """How many voxels of the finest level are one of the array's, along an axis: a power of 2."""
    return 1 << max(0, round(math.log2(max(finest.shape) / max(array.shape))))


def named_um(url: str, array: zarr.Array[Any], beside: tuple[Store, str] | None) -> float | None:
    """The voxel size that the name of an array or of the folder around it tells; of a level, by its size."""
    factor = 1
    if beside is not None and beside[1].isdigit() and beside[1] != "0":
        try:
            factor = _factor(array, zarr.open_array(beside[0], path="0", mode="r"))
        except Exception:  # noqa: BLE001 - without the finest level nobody knows what a level's voxel is
            return None
    return um_in_name(url, factor)


def um_in_name(url: str, factor: int = 1) -> float | None:
    """Micrometres, as published volumes are named: ``54keV_7.91um_Scroll1A.zarr``."""
    names = without_secrets(url).rstrip("/").split("/")[-2:]
    found = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)um(?![a-z])", "/".join(names))
    return float(found[-1]) * factor if found and float(found[-1]) > 0 else None
