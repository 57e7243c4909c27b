"""One interface over flattened sheets: where each pixel of a segment lies in the volume.

PPM and tifxyz files, and surfaces that are computed, are read tile by tile; see `open_surface`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.card import card
from inkzarr.core.errors import InkzarrError, InputError
from inkzarr.core.picture import png
from inkzarr.core.ppm import open_ppm, write_ppm
from inkzarr.core.tifxyz import open_tifxyz, write_tifxyz

__all__ = ["Surface", "SurfaceTile", "flat_surface", "open_surface", "write_ppm", "write_tifxyz"]

STRIPS, STRIP_PIXELS = 64, 1 << 15
"""What a thumbnail reads of a surface: rows, and pixels of each at most."""
THUMBNAIL_PIXELS = 256

Read = Callable[[slice, slice], tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]]


class SurfaceTile(NamedTuple):
    """A rectangle of pixels of a surface.

    Parameters
    ----------
    points : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x in voxels; a whole number is a voxel's centre. 0 where invalid.
    normals : numpy.ndarray of float64, (rows, columns, 3)
        Unit vectors, z, y, x; 0 where invalid, or where a lone grid point has no neighbour to make one.
    valid : numpy.ndarray of bool, (rows, columns)
        Whether the pixel has a place in the volume.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Surface:
    """A flattened sheet: each pixel's place in the volume, and the direction across the sheet there.

    ::

              columns
            +--------->            normal
            |  . . . .               ^   points[row, col] = z, y, x
       rows |  . . . .     ->   .....|.....
            |  . . . .         a sheet in the volume
            v

    Nothing is held in memory: `tile` reads what is asked for. It can be sent to other processes.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns, in pixels.
    stored_shape : tuple of int
        Rows and columns of the stored grid; less than `shape` for a tifxyz at full resolution.
    source : str
        Where it comes from, for messages.
    read : callable
        Points, normals and validity of two slices with bounds inside `shape`; must be picklable.

    Examples
    --------
    >>> surface = flat_surface((4, 5), z=7)
    >>> surface.tile(slice(1, 2), slice(3, None)).points.tolist()
    [[[7.0, 1.0, 3.0], [7.0, 1.0, 4.0]]]
    """

    shape: tuple[int, int]
    stored_shape: tuple[int, int]
    source: str
    read: Read

    def tile(self, rows: slice, cols: slice) -> SurfaceTile:
        """The pixels ``[rows, cols]``, cut off at the surface's end as an array's are.

        Raises
        ------
        InputError
            A slice with a step, or a file that changed or cannot be read.
        """
        bounds = []
        for part, size in zip((rows, cols), self.shape, strict=True):
            start, stop, step = part.indices(size)
            if step != 1:
                msg = f"slice step {step} cannot be read from a surface: read step 1 and thin out the tile"
                raise InputError(msg)
            bounds.append(slice(start, max(start, stop)))
        return SurfaceTile(*self.read(*bounds))

    def tiles(self, edge: int | tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """The slices of all tiles of `edge` pixels (or of rows and columns), in C order; the last are ragged.

        Examples
        --------
        >>> [cols for _, cols in flat_surface((2, 5), z=0).tiles(3)]
        [slice(0, 3, None), slice(3, 5, None)]
        """
        edges = (edge, edge) if isinstance(edge, int) else edge
        cuts = (
            [slice(at, min(at + step, size)) for at in range(0, size, step)]
            for size, step in zip(self.shape, edges, strict=True)
        )
        yield from itertools.product(*cuts)

    def unmasked(self) -> Surface:
        """The same surface without a mask that lies beside its file, for one who knows what is valid."""
        read = getattr(self.read, "unmasked", None)
        return self if read is None else replace(self, read=read())

    @property
    def masked(self) -> bool:
        """Whether a mask that must be decoded whole narrows it."""
        return bool(getattr(self.read, "has_mask", False))

    def mask(self) -> NDArray[np.bool_] | None:
        """The mask that lies beside the file, decoded whole, a byte a pixel; None where there is none."""
        decode = getattr(self.read, "mask", None)
        found: NDArray[np.bool_] | None = None if decode is None else decode()
        return found

    @property
    def points(self) -> NDArray[np.float64]:
        """All points, (rows, columns, 3); 24 bytes a pixel in memory, so use `tile` for a large surface."""
        return self._whole().points

    @property
    def normals(self) -> NDArray[np.float64]:
        """All normals, (rows, columns, 3); 24 bytes a pixel in memory."""
        return self._whole().normals

    @property
    def valid(self) -> NDArray[np.bool_]:
        """The validity of all pixels, (rows, columns)."""
        return self._whole().valid

    def _repr_html_(self) -> str:
        """For Jupyter: size, place and a picture of the places, from a few rows; all text is escaped."""
        rows, columns = self.shape
        facts: dict[str, object] = {"pixels": f"{rows} x {columns}"}
        if self.stored_shape != self.shape:
            facts["stored grid"] = " x ".join(map(str, self.stored_shape))
        try:
            points, valid = self._sample()
        except InkzarrError as error:
            return card(self.source, facts, caption=f"no picture: {error}")
        facts["valid"] = f"{100 * valid.mean():.3g} % of a sample"
        if not valid.any():
            return card(self.source, facts)
        low, high = points[valid].min(0), points[valid].max(0)
        facts["lies in"] = ", ".join(
            f"{axis} {a:.0f}..{b:.0f}" for axis, a, b in zip("zyx", low, high, strict=True)
        )
        share = np.where(valid[..., None], (points - low) / np.maximum(high - low, 1), 0)
        colours = (255 * share).astype(np.uint8).repeat(-(-min(rows, THUMBNAIL_PIXELS) // len(valid)), 0)
        return card(self.source, facts, picture=png(colours), caption="place: z red, y green, x blue")

    def _sample(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Points and validity of at most 64 rows, thinned out to 256 columns."""
        rows, columns = self.shape
        start = max(0, (columns - STRIP_PIXELS) // 2)
        part = slice(start, min(columns, start + STRIP_PIXELS))
        step = -(-(part.stop - part.start) // THUMBNAIL_PIXELS)
        places = np.unique(np.linspace(0, rows - 1, min(rows, STRIPS)).astype(int))
        tiles = [self.tile(slice(row, row + 1), part) for row in places]
        points = np.concatenate([tile.points[:, ::step] for tile in tiles])
        return points, np.concatenate([tile.valid[:, ::step] for tile in tiles])

    def _whole(self) -> SurfaceTile:
        return self.tile(slice(None), slice(None))


@dataclass(frozen=True)
class _Flat:
    z: float

    def __call__(
        self, rows: slice, cols: slice
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        row, col = np.ogrid[rows, cols]
        points = np.empty((row.size, col.size, 3))
        points[..., 0], points[..., 1], points[..., 2] = self.z, row, col
        normals = np.zeros_like(points)
        normals[..., 0] = 1
        return points, normals, np.ones(points.shape[:2], np.bool_)


def flat_surface(shape: tuple[int, int], z: float) -> Surface:
    """The slice at height `z` as a surface: row is y, column is x, the normal points to larger z.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns.
    z : float
        In voxels.

    Examples
    --------
    >>> flat_surface((2, 2), z=3).normals[0, 0].tolist()
    [1.0, 0.0, 0.0]
    """
    return Surface(shape, shape, f"flat surface at z={z:g}", _Flat(z))


def open_surface(path: str | Path, shape: tuple[int, int] | None = None) -> Surface:
    """Open a PPM file or a tifxyz folder; nothing but its header is read.

    Parameters
    ----------
    path : str or pathlib.Path
        A ``.ppm`` file (with ``{stem}_mask.png`` beside it, if there is one) or a folder with ``meta.json``.
    shape : tuple of int, optional
        Rows and columns that a tifxyz is interpolated to, such as those of a label; default is
        its full resolution, stored / scale. A PPM has but one shape.

    Raises
    ------
    InputError
        Missing, malformed, of an impossible size, or not of the shape asked for.
    """
    where = Path(path)
    if where.is_dir():
        read: Any = open_tifxyz(where, shape)
    elif where.is_file():
        read = open_ppm(where)
        if shape is not None and tuple(shape) != read.shape:
            found = f"{read.shape[0]} x {read.shape[1]}"
            msg = f"{where} is {found} pixels, not {shape[0]} x {shape[1]}: a PPM is not resized"
            raise InputError(msg)
    else:
        msg = f"surface {where} does not exist: give a .ppm file or a tifxyz folder"
        raise InputError(msg)
    return Surface(read.shape, read.stored_shape, str(where), read)
