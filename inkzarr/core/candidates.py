"""The table of letter candidates: shapes of components, from their sums, and how like letters they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.runs import FIRST, HIGH, LOW, MAX, MOMENT, PLACE, SUM, VOXELS, Ints
from inkzarr.core.schema import CANDIDATE_COLUMNS, CERTAIN_INK, LINEAGE
from inkzarr.core.whole import whole

PARQUET = ".parquet"
LETTER_UM = 2500.0
"""Letters of the scrolls are 1 to 5 mm; at half and at twice this length a component's size scores 0.6."""
PAIRS = ((0, 1), (0, 2), (1, 2))
VOXEL_VARIANCE = 1 / 12
"""Of places inside a cube of edge 1: a voxel is no point."""
EXACT = 2.0**63
"""Second moments about the centroid that are larger may have wrapped."""


@dataclass(frozen=True)
class Candidates:
    """Components as letter candidates, the best first.

    Parameters
    ----------
    columns : dict
        By the names of `inkzarr.core.schema.CANDIDATE_COLUMNS`, in their order.
    first : numpy.ndarray of int64
        Each component's first voxel, its number in C order in the volume; not stored.
    lineage : dict
        What made the table; JSON.
    """

    columns: dict[str, NDArray[Any]]
    first: Ints
    lineage: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many."""
        return len(self.first)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One column."""
        return self.columns[name]

    def box(self, row: int) -> Box:
        """The box of one component."""
        start, stop = ([int(self[f"{axis}{end}"][row]) for axis in "zyx"] for end in (0, 1))
        return Box(Zyx(*start), Zyx(*stop))


def rank(rows: Ints, voxel_size_um: float, lineage: dict[str, Any]) -> Candidates:
    """Turn the sums of components into the table, sorted by score.

    The sides of a component are those of the solid box with the same second moments: the square roots of
    12 times their eigenvalues. The score is the product of four numbers from 0 to 1::

        mean probability
        flatness         1 - thickness / width                 ink lies in a sheet
        strokes          1 - fill * width / length             a letter is no solid patch: it is long,
                                                               or leaves much of its box empty
        size             exp(-ln(length / 2.5 mm)^2 / 2 ln(2)^2)

    Parameters
    ----------
    rows : numpy.ndarray of int64, (n, 19)
        See `inkzarr.core.runs.COLUMNS`; in the order of their first voxels.
    voxel_size_um : float
        Edge of a voxel in micrometres.
    lineage : dict
        What made the table; JSON.

    Returns
    -------
    Candidates
        Shapes are nan, and the score 0, for a component so large (more than 10^11 voxels) that its second
        moments do not fit 64 bits.
    """
    voxels = rows[:, VOXELS].astype(np.float64)
    moments = covariance(rows)
    variances = np.linalg.eigvalsh(np.nan_to_num(moments))[:, ::-1]
    variances[np.isnan(moments).any((1, 2))] = np.nan
    length, width, thickness = np.sqrt(12 * variances.clip(0)).T
    flatness = 1 - thickness / width
    fill = np.minimum(voxels / (length * width * thickness), 1)
    strokes = 1 - fill * width / length
    mean = rows[:, SUM] / (CERTAIN_INK * voxels)
    size = np.exp(-0.5 * (np.log(length * voxel_size_um / LETTER_UM) / np.log(2)) ** 2)
    places = (rows[:, PLACE : PLACE + 3] / voxels[:, None]).T
    columns = {
        "id": np.arange(1, len(rows) + 1),
        "score": np.nan_to_num(mean * flatness * strokes * size),
        **dict(zip("zyx", places, strict=True)),
        **dict(zip(("z0", "y0", "x0"), rows[:, LOW:HIGH].T, strict=True)),
        **dict(zip(("z1", "y1", "x1"), rows[:, HIGH : HIGH + 3].T, strict=True)),
        "voxels": rows[:, VOXELS],
        "mean": mean,
        "max": rows[:, MAX] / CERTAIN_INK,
        "length_um": length * voxel_size_um,
        "width_um": width * voxel_size_um,
        "thickness_um": thickness * voxel_size_um,
        "flatness": flatness,
        "strokes": strokes,
    }
    order = np.argsort(-columns["score"], kind="stable")
    return Candidates({name: columns[name][order] for name in CANDIDATE_COLUMNS}, rows[order, FIRST], lineage)


def covariance(rows: Ints) -> NDArray[np.float64]:
    """Second moments of components about their centroids, in voxels squared, a voxel being a cube.

    Sums of products may have wrapped around 2^64. Moved to a whole-numbered place near the centroid
    they are small again, and exact: wrapping is undone by wrapping.

    Parameters
    ----------
    rows : numpy.ndarray of int64, (n, 19)
        See `inkzarr.core.runs.COLUMNS`.

    Returns
    -------
    numpy.ndarray of float64, (n, 3, 3)
        Axes z y x; nan where they do not fit 64 bits.
    """
    voxels, sums = rows[:, VOXELS], rows[:, PLACE : PLACE + 3]
    near = sums // voxels[:, None]
    rest = (sums - near * voxels[:, None]) / voxels[:, None]
    found = np.empty((len(rows), 3, 3))
    for number, (i, j) in enumerate((*((k, k) for k in range(3)), *PAIRS)):
        moved = rows[:, MOMENT + number] - near[:, i] * sums[:, j] - near[:, j] * sums[:, i]
        moved += voxels * near[:, i] * near[:, j]
        found[:, i, j] = found[:, j, i] = moved / voxels - rest[:, i] * rest[:, j]
    found += VOXEL_VARIANCE * np.eye(3)
    sides = (rows[:, HIGH : HIGH + 3] - rows[:, LOW:HIGH]).max(1).astype(np.float64)
    # half a side is the farthest that a voxel can lie from the middle, and a third of a square is more
    found[voxels * sides**2 / 3 > EXACT] = np.nan
    return found


def write_candidates(path: str | PathLike[str], table: Candidates) -> None:
    """Write the table as Parquet, its lineage in the metadata; replaced if it exists.

    Raises
    ------
    InputError
        It cannot be written there.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: pa.array(np.ascontiguousarray(column)) for name, column in table.columns.items()}
    told = {LINEAGE: json.dumps(table.lineage)}
    with whole(Path(path)) as partial:
        parquet.write_table(pa.table(columns).replace_schema_metadata(told), partial)
