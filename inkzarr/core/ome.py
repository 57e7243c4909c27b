"""OME-NGFF metadata of a volume, 0.4 (Zarr v2) and 0.5 (Zarr v3): read leniently, written exactly."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from inkzarr.core.errors import InputError
from inkzarr.core.schema import DIMS, FULL_RESOLUTION, VolumeSpec

MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}


@dataclass(frozen=True)
class Level:
    """One resolution of a volume.

    Parameters
    ----------
    path : str
        The array's path in the group.
    voxel_size_um : float or None
        Edge of a voxel along z in micrometres; None where the metadata does not say.
    spacing_um : tuple of three floats, or None
        Edges of a voxel along z, y and x in micrometres.
    origin_um : tuple of three floats
        Where the centre of the first voxel lies, z y x in micrometres.
    """

    path: str
    voxel_size_um: float | None = None
    spacing_um: tuple[float, ...] | None = None
    origin_um: tuple[float, ...] = (0.0, 0.0, 0.0)


def read_levels(attributes: dict[str, Any], um: float | None = None) -> list[Level]:
    """The resolutions that a group's attributes list, finest first.

    Levels are told by their paths and ordered by the volume of a voxel, since published groups list them in
    any order; where a scale is missing, as listed. A scale's unit is honoured; without one it is in
    micrometres, but where the finest is 1 along all axes, which many tools write who know no size.

    Parameters
    ----------
    attributes : dict
        Of the group; ``multiscales`` directly (0.4) or under ``ome`` (0.5).
    um : float, optional
        The edge of the finest voxel in micrometres, where the scale tells none.

    Returns
    -------
    list of Level
        Empty where the group is no multiscale image.
    """
    multiscales = attributes.get("ome", attributes).get("multiscales") or []
    if not multiscales:
        return []
    axes = [a if isinstance(a, dict) else {"name": a} for a in multiscales[0].get("axes", [])]
    names = [axis.get("name") for axis in axes]
    columns = [names.index(dim) if dim in names else i - len(DIMS) for i, dim in enumerate(DIMS)]
    units: list[float | None] = [None] * len(DIMS)
    if len(axes) >= len(DIMS):
        units = [MICROMETRES.get(axes[c].get("unit") or "micrometer") for c in columns]
    levels = []
    for dataset in multiscales[0].get("datasets", []):
        scale, shift = _placed(dataset, multiscales[0])
        spacing, origin = _in_um(scale, columns, units), _in_um(shift, columns, units)
        levels.append(_level(str(dataset["path"]), spacing, origin))
    if any(level.spacing_um is None for level in levels):
        return levels
    levels = sorted(levels, key=lambda level: math.prod(level.spacing_um or ()))
    if any(axis.get("unit") for axis in axes) or not levels or levels[0].spacing_um != (1.0, 1.0, 1.0):
        return levels
    return [_in_edges(level, um) for level in levels]


def read_axes(attributes: dict[str, Any]) -> str:
    """The first letters of the axes that a group's attributes name, in stored order, such as ``zyx``.

    Parameters
    ----------
    attributes : dict
        Of the group, or of an array as xarray writes it (``_ARRAY_DIMENSIONS``).

    Returns
    -------
    str
        In lower case; empty where no axes are named, or not as they should be.
    """
    try:
        multiscales = attributes.get("ome", attributes).get("multiscales") or [{}]
        axes = multiscales[0].get("axes") or attributes.get("_ARRAY_DIMENSIONS") or []
        names = [axis.get("name") if isinstance(axis, dict) else axis for axis in axes]
    except (AttributeError, LookupError, TypeError):
        return ""
    return "".join(str(name)[:1].lower() for name in names)


def write_levels(spec: VolumeSpec, name: str, factors: list[int]) -> dict[str, Any]:
    """The group's attributes for level paths ``0``, ``1``, ... of a volume.

    Parameters
    ----------
    spec : VolumeSpec
        Of the full resolution.
    name : str
        Of the image.
    factors : list of int
        Downsampling of each level against full resolution, 1 first.

    Returns
    -------
    dict
        With ``multiscales`` as the Zarr format wants it, and the lineage.
    """
    um = spec.voxel_size_um
    datasets: list[dict[str, Any]] = []
    for path, factor in enumerate(factors):
        datasets.append(_dataset(str(path), [um] * len(DIMS), [0.0] * len(DIMS), factor))
    image = {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in DIMS],
        "datasets": datasets,
    }
    if spec.zarr_format == 2:
        return {"multiscales": [{"version": "0.4", **image}]}
    return {"ome": {"version": "0.5", "multiscales": [image]}}


def add_level(attributes: dict[str, Any], path: str, factor: int, downscaling: str) -> dict[str, Any]:
    """The group's attributes with one coarser level more; all else stays as it was.

    Parameters
    ----------
    attributes : dict
        Of the group; not changed.
    path : str
        Of the new level.
    factor : int
        Its downsampling against the level at path ``0``, whose scale, unit and place are kept::

            factor 2    | 0 | 1 | 2 | 3 |    voxel centres: the new first one lies half a
                        |   0   |   1   |    fine voxel behind the old first one

    downscaling : str
        How it was made, such as ``mean``; noted as the image's ``type`` where it has none.

    Raises
    ------
    InputError
        The group lists no level ``0`` with a scale.
    """
    attributes = copy.deepcopy(attributes)
    image = attributes.get("ome", attributes)["multiscales"][0]
    finest = [dataset for dataset in image["datasets"] if str(dataset["path"]) == FULL_RESOLUTION]
    scale = _transform(finest[0], "scale") if finest else None
    if scale is None:
        msg = f"the group lists no level {FULL_RESOLUTION} with a scale: ingest the volume anew"
        raise InputError(msg)
    shift = _transform(finest[0], "translation") or [0.0] * len(scale)
    others = [dataset for dataset in image["datasets"] if str(dataset["path"]) != path]
    image["datasets"] = [*others, _dataset(path, scale, shift, factor)]
    image.setdefault("type", downscaling)
    return attributes


def only_full_resolution(attributes: dict[str, Any]) -> dict[str, Any]:
    """The group's attributes without any level but ``0``; `attributes` is not changed."""
    attributes = copy.deepcopy(attributes)
    image = attributes.get("ome", attributes)["multiscales"][0]
    image["datasets"] = [d for d in image["datasets"] if str(d["path"]) == FULL_RESOLUTION]
    image.pop("type", None)
    return attributes


def _dataset(path: str, scale: list[float], shift: list[float], factor: int) -> dict[str, Any]:
    """One level, `factor` times coarser than the one with `scale` and `shift` (one number an axis)."""
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [s * factor for s in scale]}]
    moved = [t + s * (factor - 1) / 2 for t, s in zip(shift, scale, strict=True)]
    if any(moved):
        transforms.append({"type": "translation", "translation": moved})
    return {"path": path, "coordinateTransformations": transforms}


def _transform(dataset: dict[str, Any], kind: str) -> list[float] | None:
    """The numbers of a level's ``scale`` or ``translation``, one an axis."""
    for transform in dataset.get("coordinateTransformations") or []:
        if transform.get("type") == kind and kind in transform:
            return [float(number) for number in transform[kind]]
    return None


def _placed(dataset: dict[str, Any], image: dict[str, Any]) -> tuple[list[float] | None, list[float] | None]:
    """Scale and translation of a level, those of the whole image included, which come after its own."""
    scale, shift = _transform(dataset, "scale"), _transform(dataset, "translation")
    if more := _transform(image, "scale"):
        scale, shift = (part and [a * b for a, b in zip(part, more, strict=True)] for part in (scale, shift))
    if moved := _transform(image, "translation"):
        shift = [a + b for a, b in zip(shift or [0.0] * len(moved), moved, strict=True)]
    return scale, shift


def _level(path: str, spacing: tuple[float, ...] | None, origin: tuple[float, ...] | None) -> Level:
    return Level(path, spacing[0] if spacing else None, spacing, origin or Level.origin_um)


def _in_edges(level: Level, um: float | None) -> Level:
    """A level whose numbers are edges of the finest voxel, each `um` micrometres or nobody knows what."""
    if um is None:
        return Level(level.path)
    spacing, origin = (tuple(n * um for n in part) for part in (level.spacing_um or (), level.origin_um))
    return _level(level.path, spacing, origin)


def _in_um(
    numbers: list[float] | None, columns: list[int], units: list[float | None]
) -> tuple[float, ...] | None:
    """The numbers of z, y and x in micrometres; None where they or a unit are not known."""
    if numbers is None or None in units:
        return None
    return tuple(numbers[c] * unit for c, unit in zip(columns, units, strict=True) if unit is not None)
