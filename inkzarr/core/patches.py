"""Tables of windows: Parquet with their lineage, or .npy with their corners alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.card import card
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.picture import png
from inkzarr.core.schema import DIMS, LINEAGE, PATCH_COLUMNS
from inkzarr.core.whole import whole

PARQUET, NPY = ".parquet", ".npy"
DEFAULT_WINDOW = 128
NPY_START, LONGEST_HEADER = 12, 2**16
"""Bytes: up to the header's length, in .npy of version 2 and later; and more than numpy reads of a header."""
MAP_PIXELS = 256


@dataclass(frozen=True)
class Patches:
    """Windows of a label volume.

    Parameters
    ----------
    corners : numpy.ndarray of int64, (n, 3)
        First voxel of each window: z, y, x.
    labelled, ink : numpy.ndarray of int64, (n,), or None
        Voxels with a label, and those of them that are ink; None where the table does not tell.
    window : Zyx or None
        One window, in voxels; None where the table does not tell.
    lineage : dict
        What made it; JSON.
    """

    corners: NDArray[np.int64]
    labelled: NDArray[np.int64] | None = None
    ink: NDArray[np.int64] | None = None
    window: Zyx | None = None
    lineage: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many windows."""
        return len(self.corners)

    def take(self, chosen: NDArray[Any], **lineage: object) -> Patches:
        """Some of the windows, by index or mask; `lineage` is added."""
        labelled, ink = (None if column is None else column[chosen] for column in (self.labelled, self.ink))
        return Patches(self.corners[chosen], labelled, ink, self.window, self.lineage | lineage)

    def _repr_html_(self) -> str:
        """For Jupyter: how many, where, and a map of them; all text is escaped."""
        facts: dict[str, object] = {}
        if self.window is not None:
            facts["window"] = ",".join(map(str, self.window))
        for name, column in (("labelled voxels", self.labelled), ("of them ink", self.ink)):
            if column is not None:
                facts[name] = int(column.sum())
        if not len(self):
            return card("0 windows", facts | self.lineage)
        low, high = self.corners.min(0), self.corners.max(0)
        facts["first voxels"] = ",".join(f"{a}..{b}" for a, b in zip(low, high, strict=True))
        caption = "windows seen along z: y down, x to the right; the brighter, the more"
        return card(f"{len(self)} windows", facts | self.lineage, picture=png(_map(self)), caption=caption)


def refuse_suffix(path: str | PathLike[str]) -> None:
    """Refuse a name of a table that says neither of its formats.

    Raises
    ------
    InputError
        It ends in neither ``.parquet`` nor ``.npy``.
    """
    if Path(path).suffix not in (PARQUET, NPY):
        msg = f"patches cannot be written to {path}: its name ends in {PARQUET} or {NPY}"
        raise InputError(msg)


def write_patches(path: str | PathLike[str], patches: Patches) -> None:
    """Write a table: ``.npy`` (int64, n x 3) or Parquet, by the name; replaced if it exists."""
    with whole(Path(path)) as partial, partial.open("wb") as file:
        if Path(path).suffix == NPY:
            np.save(file, patches.corners)
        else:
            _write_parquet(file, patches)


def read_patches(path: str | PathLike[str]) -> Patches:
    """Read a table that `write_patches` or another tool wrote.

    Raises
    ------
    InputError
        Missing, damaged, or without the columns z, y and x.
    """
    where = Path(path)
    if not where.is_file():
        msg = f"patches {where} do not exist: write them with inkzarr patches"
        raise InputError(msg)
    try:
        return _read_npy(where) if where.suffix == NPY else _read_parquet(where)
    # what reads them raises errors of many kinds; every one of them means that the file is damaged
    except Exception as error:
        msg = f"patches {where} cannot be read ({error}): give Parquet with columns z, y, x, or .npy of n x 3"
        raise InputError(msg) from error


def _map(patches: Patches) -> NDArray[np.uint8]:
    """How many windows begin at each place of y and x (uint8), at most 256 places a side."""
    plane = patches.corners[:, 1:] - patches.corners[:, 1:].min(0)
    steps = plane // max(1, np.gcd.reduce(plane.ravel()))
    steps //= max(1, -(-int(steps.max() + 1) // MAP_PIXELS))
    counts = np.zeros(steps.max(0) + 1, np.int64)
    np.add.at(counts, (steps[:, 0], steps[:, 1]), 1)
    zoom = max(1, MAP_PIXELS // max(counts.shape))
    grey = np.where(counts > 0, 64 + 191 * counts // counts.max(), 0).astype(np.uint8)
    return grey.repeat(zoom, 0).repeat(zoom, 1)


def _write_parquet(file: Any, patches: Patches) -> None:  # noqa: ANN401
    import pyarrow as pa
    from pyarrow import parquet

    columns = dict(zip(DIMS, patches.corners.T, strict=True))
    for name, column in (("labelled", patches.labelled), ("ink", patches.ink)):
        columns[name] = np.zeros(len(patches), np.int64) if column is None else column
    table = pa.table({name: pa.array(np.ascontiguousarray(columns[name])) for name in PATCH_COLUMNS})
    told = {"window": patches.window and list(patches.window), **patches.lineage}
    parquet.write_table(table.replace_schema_metadata({LINEAGE: json.dumps(told)}), file)


def _read_parquet(path: Path) -> Patches:
    from pyarrow import parquet

    table = parquet.read_table(path)
    missing = [name for name in DIMS if name not in table.column_names]
    if missing:
        msg = f"no column {missing[0]}"
        raise ValueError(msg)
    columns = {n: table[n].to_numpy() for n in PATCH_COLUMNS if n in table.column_names}
    told = json.loads((table.schema.metadata or {}).get(LINEAGE.encode(), b"{}"))
    window = told.pop("window", None)
    corners = _corners(np.stack([columns[name] for name in DIMS], -1))
    size = None if window is None else Zyx.of(window)
    return Patches(corners, columns.get("labelled"), columns.get("ink"), size, told)


def _read_npy(path: Path) -> Patches:
    with path.open("rb") as file:
        start = file.read(NPY_START)
    # numpy takes memory for as long a header as the file says that it has
    if start[6:7] > b"\x01" and int.from_bytes(start[8:], "little") > LONGEST_HEADER:
        msg = "its header is too long"
        raise ValueError(msg)
    return Patches(_corners(np.load(path, mmap_mode="r", allow_pickle=False)))


def _corners(found: NDArray[Any]) -> NDArray[np.int64]:
    if found.ndim != 2 or found.shape[1] != len(DIMS) or found.dtype.kind not in "iu":
        msg = f"an array of {found.shape} {found.dtype}"
        raise ValueError(msg)
    return np.ascontiguousarray(found, np.int64)
