"""tifxyz surfaces: a coarse grid of points in three TIFF files, interpolated to full resolution."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from inkzarr.core.errors import InputError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Tile = tuple[Floats, Floats, Bools]

FORMAT = "tifxyz"
AXES = ("z", "y", "x")
INVALID = -1.0
MOST = 1 << 31
MOST_UNPACKED = 1 << 28
KEEP = 255
SNAP = 1e-6
LARGEST_SCALE = 1e9


@dataclass(frozen=True)
class Tifxyz:
    """A tifxyz folder whose sizes were checked; calling it reads a tile of `shape` pixels.

    Pixel ``i`` lies at ``i * stored / shape`` on the grid, along rows and along columns, and is the
    bilinear mean of the grid points around it; it is valid if all those with a weight above 0 are::

        grid      o . . . o . . . x      o valid, x invalid, . pixels between
                  1 1 1 1 1 0 0 0 0      validity of this row at 4 pixels a cell

    Normals are made at the grid points (columns x rows, in x, y, z: a flat grid with x to the right and
    y down has normals along +z) and interpolated alike.

    Parameters
    ----------
    path : pathlib.Path
        The folder.
    stored_shape : tuple of int
        Rows and columns of the grid.
    shape : tuple of int
        Rows and columns in pixels.
    """

    path: Path
    stored_shape: tuple[int, int]
    shape: tuple[int, int]

    def __call__(self, rows: slice, cols: slice) -> Tile:
        """Points, normals and validity of a tile, as `inkzarr.core.surface.SurfaceTile` tells them."""
        size = (max(0, rows.stop - rows.start), max(0, cols.stop - cols.start))
        if 0 in size:
            return np.zeros((*size, 3)), np.zeros((*size, 3)), np.zeros(size, np.bool_)
        down, right = (
            _weights(part, stored, full)
            for part, stored, full in zip((rows, cols), self.stored_shape, self.shape, strict=True)
        )
        # one more grid point on each side than is interpolated: normals are differences of neighbours
        window = [slice(max(0, int(at.min()) - 1), int(at.max()) + 3) for at, _ in (down, right)]
        points, exists = self._grid(window[0], window[1])
        normals = grid_normals(points, exists)
        total, across, valid = np.zeros((*size, 3)), np.zeros((*size, 3)), np.ones(size, np.bool_)
        for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
            index, weight, inside = [], [], []
            for (at, part), first, step, count in zip(
                (down, right), window, corner, exists.shape, strict=True
            ):
                place = at + step - first.start
                index.append(np.minimum(place, count - 1))
                weight.append(part if step else 1 - part)
                inside.append(place < count)
            share = weight[0][:, None] * weight[1]
            there = exists[np.ix_(*index)] & (inside[0][:, None] & inside[1])
            valid &= there | (share == 0)
            total += share[..., None] * points[np.ix_(*index)]
            across += share[..., None] * normals[np.ix_(*index)]
        total[~valid] = 0
        across[~valid] = 0
        return total, _unit(across), valid

    def _grid(self, rows: slice, cols: slice) -> tuple[Floats, Bools]:
        """Grid points and which of them exist; 0 where they do not."""
        points = np.stack([_plane(self.path / f"{axis}.tif")[rows, cols] for axis in AXES], -1).astype(
            np.float64
        )
        exists = (np.isfinite(points) & (points != INVALID)).all(-1)
        mask = self.path / "mask.tif"
        if mask.exists():
            exists &= _mask(mask, self.stored_shape)[rows, cols]
        points[~exists] = 0
        return points, exists


def _weights(part: slice, stored: int, full: int) -> tuple[NDArray[np.int64], Floats]:
    """The grid point before each pixel, and how far the pixel is on the way to the next, 0 <= f < 1."""
    at = np.arange(part.start, part.stop) * (stored / full)
    near = np.rint(at)
    at = np.where(abs(at - near) < SNAP, near, at)
    before = np.floor(at)
    return before.astype(np.int64), at - before


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: Floats = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return units


def grid_normals(points: Floats, exists: Bools) -> Floats:
    """Unit normals of a grid of points: differences along columns, crossed with those along rows.

    Central differences where both neighbours exist, one-sided at holes and edges, 0 where a point has
    no neighbour at all along rows or along columns.

    Parameters
    ----------
    points : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x.
    exists : numpy.ndarray of bool, (rows, columns)
        Which points count.

    Returns
    -------
    numpy.ndarray of float64, (rows, columns, 3)
        z, y, x.

    Examples
    --------
    >>> points = np.stack(np.broadcast_arrays(5.0, *np.mgrid[:2, :2]), -1)
    >>> grid_normals(points, np.ones((2, 2), bool))[0, 0].tolist()
    [1.0, 0.0, 0.0]
    """
    along_rows, along_cols = (_difference(points, exists, axis) for axis in (0, 1))
    # with z, y, x reversed on both sides, a x b in x, y, z is b x a of the reversed vectors
    return _unit(np.where(exists[..., None], np.cross(along_rows, along_cols), 0))


def _difference(points: Floats, exists: Bools, axis: int) -> Floats:
    """From the neighbour before (or the point itself) to the one after (or itself), along `axis`."""
    there = exists.swapaxes(0, axis)
    grid = points.swapaxes(0, axis)
    ahead, behind = grid.copy(), grid.copy()
    ahead[:-1] = np.where(there[1:, :, None], grid[1:], grid[:-1])
    behind[1:] = np.where(there[:-1, :, None], grid[:-1], grid[1:])
    return (ahead - behind).swapaxes(0, axis)


def open_tifxyz(path: Path, shape: tuple[int, int] | None = None) -> Tifxyz:
    """Read meta.json and the headers of the TIFF files, and check them against each other.

    Raises
    ------
    InputError
        A file missing or unreadable, no usable scale, planes or a mask of sizes that do not fit.
    """
    scale = _scale(path)
    sizes = {axis: _header(path / f"{axis}.tif") for axis in AXES}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{axis}.tif {rows} x {cols}" for axis, (rows, cols) in sizes.items())
        msg = f"{path} has planes of different sizes ({told}): export them again in one size"
        raise InputError(msg)
    stored = sizes["z"]
    full = shape
    if full is None:
        exact = (stored[0] / scale[1], stored[1] / scale[0])
        if not all(0.5 <= n < MOST for n in exact):
            msg = (
                f"{path} has {stored[0]} x {stored[1]} grid points at scale {list(scale)}, so "
                f"{exact[0]:.4g} x {exact[1]:.4g} pixels: correct it, in grid cells per voxel"
            )
            raise InputError(msg)
        full = (math.floor(exact[0] + 0.5), math.floor(exact[1] + 0.5))
    if not all(0 < n < MOST for n in full):
        msg = f"shape {tuple(full)} cannot be interpolated: rows and columns must be from 1 to {MOST - 1}"
        raise InputError(msg)
    mask = path / "mask.tif"
    if mask.exists():
        found = _header(mask)
        if found[0] % stored[0] or found[1] % stored[1]:
            msg = (
                f"mask {mask} is {found[0]} x {found[1]} pixels but its grid is {stored[0]} x {stored[1]}: "
                f"it must be a whole multiple, export it again or remove it"
            )
            raise InputError(msg)
    return Tifxyz(path, stored, (int(full[0]), int(full[1])))


def _scale(path: Path) -> tuple[float, float]:
    """Grid cells per voxel along columns and rows, from meta.json."""
    meta = path / "meta.json"
    if not meta.is_file():
        msg = f"folder {path} has no meta.json: give a tifxyz folder, with x.tif, y.tif, z.tif and meta.json"
        raise InputError(msg)
    try:
        fields = json.loads(meta.read_bytes())
    except (ValueError, RecursionError) as error:
        msg = f"{meta} is no JSON ({error}): export the surface again"
        raise InputError(msg) from error
    kind = fields.get("format", FORMAT) if isinstance(fields, dict) else None
    if kind != FORMAT:
        msg = f"{meta} is not of the format {FORMAT!r}: 'format' is {kind!r}"
        raise InputError(msg)
    scale = fields.get("scale")
    numbers = isinstance(scale, list) and len(scale) == 2 and all(type(v) in (int, float) for v in scale)
    if not numbers or not all(0 < v < LARGEST_SCALE for v in scale):
        msg = (
            f"{meta} has scale {scale!r}: give two positive numbers, grid cells per voxel along columns, rows"
        )
        raise InputError(msg)
    return float(scale[0]), float(scale[1])


def _header(path: Path) -> tuple[int, int]:
    """Rows and columns of a TIFF's first image, without reading its values."""
    if not path.is_file():
        msg = f"{path} does not exist: a tifxyz folder holds x.tif, y.tif, z.tif and meta.json"
        raise InputError(msg)
    try:
        with tifffile.TiffFile(path) as tif:
            page: Any = tif.pages[0]
            rows, cols, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
            kind = page.dtype.kind if page.dtype is not None else "?"
            packed = not page.is_memmappable
            cut = path.stat().st_size < max(
                (a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0
            )
    except Exception as error:  # tifffile raises errors of many kinds; each means a damaged header
        msg = f"{path} cannot be read as TIFF ({error}): export the surface again"
        raise InputError(msg) from error
    mask = path.stem == "mask"
    if cut or kind not in "fiu" or (samples != 1 and not mask) or min(rows, cols) < 1:
        told = "is cut short" if cut else f"has {rows} x {cols} pixels, {samples} samples, of kind {kind!r}"
        msg = f"{path} {told}: it must be one whole plane of numbers, export the surface again"
        raise InputError(msg)
    if packed and rows * cols > MOST_UNPACKED:
        msg = (
            f"{path} unpacks to {rows} x {cols} pixels: beyond {MOST_UNPACKED} of them store it uncompressed"
        )
        raise InputError(msg)
    return rows, cols


def _plane(path: Path) -> NDArray[Any]:
    """One coordinate or mask, (rows, columns): mapped where the file allows it, else unpacked once."""
    try:
        stat = path.stat()
    except OSError as error:
        msg = f"{path} can no longer be read ({error}): was it moved?"
        raise InputError(msg) from error
    return _cached_plane(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _cached_plane(path: Path, changed: int, size: int) -> NDArray[Any]:  # noqa: ARG001
    try:
        with tifffile.TiffFile(path) as tif:
            page: Any = tif.pages[0]
            plane: NDArray[Any] = (
                tifffile.memmap(path, page=0, mode="r") if page.is_memmappable else page.asarray()
            )
            first_sample = page.axes.index("S") if "S" in page.axes else None
    # codecs raise errors of their own kinds; every one of them means that the file is damaged
    except Exception as error:
        msg = f"{path} cannot be unpacked ({error}): export the surface again"
        raise InputError(msg) from error
    return plane if first_sample is None else plane.take(0, axis=first_sample)


def _mask(path: Path, shape: tuple[int, int]) -> Bools:
    stat = path.stat()
    return _cached_mask(path, stat.st_mtime_ns, stat.st_size, shape)


@lru_cache(maxsize=2)
def _cached_mask(path: Path, changed: int, size: int, shape: tuple[int, int]) -> Bools:  # noqa: ARG001
    """Which grid points the mask keeps: those whose mask pixels are all 255 or more."""
    keep = _plane(path) >= KEEP
    steps = (keep.shape[0] // shape[0], keep.shape[1] // shape[1])
    kept: Bools = np.all(keep.reshape(shape[0], steps[0], shape[1], steps[1]), axis=(1, 3))
    return kept


def write_tifxyz(
    path: str | Path,
    points: NDArray[np.floating],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    valid: Bools | None = None,
    uuid: str | None = None,
) -> None:
    """Write a grid of points as a tifxyz folder.

    Parameters
    ----------
    path : str or pathlib.Path
        The folder; made if need be.
    points : numpy.ndarray of float, (rows, columns, 3)
        z, y, x in voxels.
    scale : tuple of float
        Grid cells per voxel, along columns and along rows: 0.05 is a grid point every 20 voxels.
    valid : numpy.ndarray of bool, (rows, columns), optional
        Where false, -1 is written.
    uuid : str, optional
        The segment's id; default is the folder's name.

    Raises
    ------
    InputError
        An array that is no surface, or a scale that is not positive.
    """
    if points.ndim != 3 or points.shape[2] != len(AXES) or 0 in points.shape:
        msg = f"points of shape {points.shape} are no surface: they need the shape (rows, columns, 3)"
        raise InputError(msg)
    if len(scale) != 2 or not all(0 < v < math.inf for v in scale):
        msg = (
            f"scale {scale!r} cannot be: give two positive numbers, grid cells per voxel along columns, rows"
        )
        raise InputError(msg)
    exists = np.isfinite(points).all(-1)
    if valid is not None:
        exists &= valid
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    box: list[list[float]] = [[], []]
    for axis, plane in zip("xyz", np.moveaxis(points, -1, 0)[::-1], strict=True):
        stored = np.where(exists, plane, INVALID).astype(np.float32)
        tifffile.imwrite(folder / f"{axis}.tif", stored, photometric="minisblack")
        some = stored[exists] if exists.any() else np.zeros(1, np.float32)
        box[0].append(float(some.min()))
        box[1].append(float(some.max()))
    name = folder.name.removesuffix(f".{FORMAT}")
    meta = {
        "bbox": box,
        "format": FORMAT,
        "scale": [float(v) for v in scale],
        "type": "seg",
        "uuid": uuid or name,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=4) + "\n")
