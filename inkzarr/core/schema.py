"""Every array and table that stages hand to each other: name, dims, dtype and meaning, once.

Stages never import each other; this is all that they share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx

VERSION = "0.1.0"
SERIES = VERSION.rpartition(".")[0]
"""Of versions that compute the same voxels."""

DIMS = ("z", "y", "x")
CHUNK = 128
DEFAULT_VOXEL_SIZE_UM = 7.91
FULL_RESOLUTION = "0"
LEDGER_FOLDER = ".inkzarr"
LOCK = ".inkzarr.lock"
"""Lies in an output as long as a run writes to it."""
LINEAGE = "inkzarr"
METADATA = (".zgroup", ".zarray", ".zattrs", ".zmetadata", "zarr.json")


@dataclass(frozen=True)
class ArraySchema:
    """One named array of the project.

    Parameters
    ----------
    name : str
        What it is called in messages, and its path in a label group.
    dtypes : tuple of str
        The dtypes it may have on disk.
    meaning : str
        What one voxel says.
    """

    name: str
    dtypes: tuple[str, ...]
    meaning: str


SCAN = ArraySchema("scan", ("uint8", "uint16"), "X-ray absorption, full range of the dtype")
INK = ArraySchema("ink", ("uint8",), "mean of the painted values 0..255, rounded half up")
COUNT = ArraySchema("count", ("uint16",), "votes per voxel, saturating; 0 is unlabelled, which is not no ink")
PREDICTION = ArraySchema("prediction", ("uint8",), "round(255 * probability of ink)")
COMPONENT_IDS = ArraySchema(
    "components", ("uint32",), "id of the component in the table of candidates; 0 is none"
)

UNLABELLED = -1.0
"""Where a label volume has no vote, in Python."""
CERTAIN_INK = 255
INK_THRESHOLD = 128
"""Mean painted value from which a voxel is ink."""

PATCH_COLUMNS = {
    "z": "first voxel of the window",
    "y": "first voxel of the window",
    "x": "first voxel of the window",
    "labelled": "voxels of the window with a vote",
    "ink": "voxels of the window whose mean painted value is 128 or more",
}
"""The table of patches, one row a window; all columns are int64."""

CANDIDATE_COLUMNS = {
    "id": "number of the component, 1, 2, ... in the order of their first voxels (z, then y, then x)",
    "score": "0 to 1, larger is more like a letter; the table is sorted by it",
    "z": "centroid, voxels (of the voxels' centres)",
    "y": "centroid, voxels",
    "x": "centroid, voxels",
    "z0": "box: first voxel",
    "y0": "box: first voxel",
    "x0": "box: first voxel",
    "z1": "box: one past the last voxel",
    "y1": "box: one past the last voxel",
    "x1": "box: one past the last voxel",
    "voxels": "how many",
    "mean": "mean probability",
    "max": "largest probability",
    "length_um": "longest side of the solid box that has the component's second moments, micrometres",
    "width_um": "its middle side, micrometres",
    "thickness_um": "its shortest side, micrometres",
    "flatness": "1 - thickness / width: 0 is a ball or a rod, near 1 a sheet",
    "strokes": "1 - fill * width / length, where fill is voxels / box: 0 is a solid square, near 1 a line",
}
"""The table of letter candidates, one row a component; id, box and voxels are int64, all others float64."""

ARRAYS = {schema.name: schema for schema in (SCAN, INK, COUNT, PREDICTION)}


@dataclass(frozen=True)
class VolumeSpec:
    """A volume as it is laid out on disk.

    Parameters
    ----------
    shape : Zyx
        In voxels.
    dtype : numpy.dtype
        Of one voxel.
    voxel_size_um : float
        Edge of one voxel in micrometres.
    lineage : dict
        What made it: stage, source and settings, without anything secret; JSON.
    zarr_format : int
        2 (OME-NGFF 0.4) or 3 (OME-NGFF 0.5).
    shard : int or None
        Edge of a shard in voxels; Zarr 3 only, a multiple of 128.
    path : str
        The array's path in its group.

    Raises
    ------
    InputError
        A shape without voxels, an unknown format, or a shard that format 2 or the chunks do not allow.
    """

    shape: Zyx
    dtype: np.dtype[Any]
    voxel_size_um: float = DEFAULT_VOXEL_SIZE_UM
    lineage: dict[str, Any] = field(default_factory=dict)
    zarr_format: int = 2
    shard: int | None = None
    path: str = FULL_RESOLUTION

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            msg = f"shape {tuple(self.shape)} holds no voxel: every axis needs at least one"
            raise InputError(msg)
        if not 0 < self.voxel_size_um < float("inf"):
            msg = f"voxel size {self.voxel_size_um} um cannot be: give a positive number of micrometres"
            raise InputError(msg)
        if self.zarr_format not in (2, 3):
            msg = f"Zarr format {self.zarr_format} is unknown: use 2 or 3"
            raise InputError(msg)
        if self.shard is not None and self.zarr_format == 2:
            msg = f"shard {self.shard} needs Zarr format 3: add --zarr-format 3"
            raise InputError(msg)
        if self.shard is not None and (self.shard < CHUNK or self.shard % CHUNK):
            msg = f"shard {self.shard} does not hold whole chunks: use a multiple of {CHUNK}"
            raise InputError(msg)

    @property
    def chunks(self) -> Zyx:
        """128 along each axis, smaller only where the volume is smaller."""
        return Zyx(*(min(CHUNK, n) for n in self.shape))

    @property
    def shards(self) -> Zyx | None:
        """The shard's shape: whole chunks, no larger than the volume needs."""
        if self.shard is None:
            return None
        axes = zip(self.shape, self.chunks, strict=True)
        return Zyx(*(min(self.shard // CHUNK, -(-n // c)) * c for n, c in axes))

    @property
    def unit(self) -> Zyx:
        """What is written at once: a shard where there are shards, else a chunk."""
        return self.shards or self.chunks
