"""OME-NGFF metadata of a volume, 0.4 (Zarr v2) and 0.5 (Zarr v3): read leniently, written exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inkzarr.core.schema import DIMS, VolumeSpec

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
    """

    path: str
    voxel_size_um: float | None = None


def read_levels(attributes: dict[str, Any]) -> list[Level]:
    """The resolutions that a group's attributes list, finest first.

    Levels are told by their paths, whatever their order, since published groups list them in any;
    a scale's unit is honoured.

    Parameters
    ----------
    attributes : dict
        Of the group; ``multiscales`` directly (0.4) or under ``ome`` (0.5).

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
    z = names.index("z") if "z" in names else -3
    unit = MICROMETRES.get(axes[z].get("unit") or "micrometer") if len(axes) >= len(DIMS) else None
    levels = []
    for dataset in multiscales[0].get("datasets", []):
        transforms = dataset.get("coordinateTransformations") or []
        scales = [t["scale"] for t in transforms if t.get("type") == "scale" and "scale" in t]
        size = float(scales[0][z]) * unit if scales and unit is not None else None
        levels.append(Level(str(dataset["path"]), size))
    return sorted(levels, key=lambda level: (level.voxel_size_um or 0, len(level.path), level.path))


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
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [um * factor] * len(DIMS)}]
        if factor > 1:
            shift = um * (factor - 1) / 2
            transforms.append({"type": "translation", "translation": [shift] * len(DIMS)})
        datasets.append({"path": str(path), "coordinateTransformations": transforms})
    image = {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in DIMS],
        "datasets": datasets,
    }
    if spec.zarr_format == 2:
        return {"multiscales": [{"version": "0.4", **image}]}
    return {"ome": {"version": "0.5", "multiscales": [image]}}
