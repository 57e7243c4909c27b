"""Windings of the synthetic scroll as segments: true surfaces, ink labels, and files of both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.errors import InputError
from inkzarr.core.png import write_png
from inkzarr.core.ppm import mask_path, write_ppm_bands
from inkzarr.core.surface import Surface, write_tifxyz
from inkzarr.testing.letters import ink_at
from inkzarr.testing.spiral import Spiral

BAND = 1 << 18
GRID_STEP = 8


@dataclass(frozen=True)
class _Sheet:
    """Reads tiles of the surface, straight from the spiral."""

    spiral: Spiral
    first: tuple[int, int]

    def __call__(
        self, rows: slice, cols: slice
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        row, col = np.ogrid[rows, cols]
        points, normals = self.spiral.points(row + self.first[0], col + self.first[1])
        return points, normals, np.ones(points.shape[:2], np.bool_)


@dataclass(frozen=True)
class Segment:
    """A piece of the sheet, flattened at one voxel a pixel.

    Parameters
    ----------
    id : str
        14 digits.
    spiral : Spiral
        The whole sheet.
    page : numpy.ndarray of bool
        The ink's pattern, see `inkzarr.testing.letters.page`.
    rows, columns : slice
        The part of the sheet that the segment holds.
    """

    id: str
    spiral: Spiral
    page: NDArray[np.bool_]
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def surface(self) -> Surface:
        """The sheet's written layer, at the middle of its depth; normals point away from the axis."""
        sheet = _Sheet(self.spiral, (self.rows.start, self.columns.start))
        return Surface(self.shape, self.shape, f"segment {self.id}", sheet)

    @property
    def label(self) -> NDArray[np.uint8]:
        """Where ink is, (rows, columns): 255 ink, 0 none."""
        return self.label_tile(slice(0, self.shape[0]), slice(0, self.shape[1]))

    def label_tile(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """A tile of `label`; slices with bounds."""
        row, col = np.ogrid[rows, cols]
        ink = ink_at(self.page, row + self.rows.start, col + self.columns.start)
        return ink.astype(np.uint8) * np.uint8(255)


def write_segment(segment: Segment, folder: str | Path, *, kind: str) -> None:
    """Write one segment's surface, mask and label below `folder`, in bands of rows.

    Raises
    ------
    InputError
        A kind other than ``ppm`` or ``tifxyz``.
    """
    home, labels = Path(folder) / "paths" / segment.id, Path(folder) / "inklabels"
    surface, full = segment.surface, segment.shape
    if kind == "ppm":
        home.mkdir(parents=True, exist_ok=True)
        target = home / f"{segment.id}.ppm"
        write_ppm_bands(target, full, (surface.tile(rows, slice(None)) for rows in _bands(full)))
        write_png(
            mask_path(target),
            full,
            (np.full((b.stop - b.start, full[1]), 255, np.uint8) for b in _bands(full)),
        )
    elif kind == "tifxyz":
        stored = tuple(math.ceil(n / GRID_STEP) for n in full)
        row, col = (np.arange(n, dtype=np.float64) * GRID_STEP for n in stored)
        points, _ = segment.spiral.points(row[:, None] + segment.rows.start, col + segment.columns.start)
        scale = (1 / GRID_STEP, 1 / GRID_STEP)
        write_tifxyz(home / f"{segment.id}.tifxyz", points, scale=scale, uuid=segment.id)
        full = (stored[0] * GRID_STEP, stored[1] * GRID_STEP)
    else:
        msg = f"segments of kind {kind!r} are not known: use 'ppm' or 'tifxyz'"
        raise InputError(msg)
    labels.mkdir(parents=True, exist_ok=True)
    bands = (segment.label_tile(rows, slice(0, full[1])) for rows in _bands(full))
    write_png(labels / f"{segment.id}_inklabels.png", full, bands)


def _bands(shape: tuple[int, int]) -> Iterator[slice]:
    step = max(1, BAND // shape[1])
    return (slice(at, min(at + step, shape[0])) for at in range(0, shape[0], step))
