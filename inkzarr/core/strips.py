"""Strips of a surface, sampled from the chunks of a volume.

::

    strip   +------+------+------+     a patch of 64 x 64 pixels; the box of voxels around its
            | p0   | p1   | p2   |     normals is small, and stays in the processor's cache
            +------+------+------+
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.sampling import LAYERS, MAXIMUM, MEAN, reach, sample
from inkzarr.core.surface import Surface, SurfaceTile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inkzarr.core.chunk_cache import ChunkCache

Reduce = Literal["max", "mean", "none"]
KEPT = {"max": MAXIMUM, "mean": MEAN, "none": LAYERS}
PATCH = 64
MOST_VOXELS = 1 << 22
"""Of a patch's box; where a surface jumps, a patch is halved until it fits."""
OPAQUE = 255
LOOK_EVERY = 64
"""Pixels between those that a plan looks at."""
SCALE_OFF = 1.25
"""Times that pixels may be nearer or farther than a voxel without a word."""
ROW_PAIRS = 16
"""Of which the distance between pixels is measured."""


def sample_strip(
    tile: SurfaceTile, depth: int, reduce: Reduce, cache: ChunkCache, fetched: list[Zyx]
) -> tuple[np.ndarray, int]:
    """Sample a strip of a surface along its normals.

    Parameters
    ----------
    tile : SurfaceTile
        Rows and columns of any number.
    depth : int
        Samples are taken at t = -depth .. depth, a voxel apart.
    reduce : str
        ``max`` or ``mean`` of a pixel's samples, or ``none``: all of them.
    cache : ChunkCache
        The volume's chunks.
    fetched : list of Zyx
        Receives the chunks that had to be read.

    Returns
    -------
    numpy.ndarray of float32, (layers, rows, columns)
        In the volume's own values; 0 where invalid.
    int
        Valid pixels of which no sample lies in the volume.

    Raises
    ------
    StoreError
        A chunk cannot be had.
    """
    out = np.zeros((2 * depth + 1 if reduce == "none" else 1, *tile.valid.shape), np.float32)
    shape = tuple(cache.volume.shape)
    patches = list(_patches(tile, depth, shape))
    ahead = (index for *_, box in patches for index in cache.grid.indices(box))
    for index, _ in zip(ahead, range(cache.threads), strict=False):
        if cache.start(index):
            fetched.append(index)
    outside = int(np.count_nonzero(tile.valid))
    for place, inside, box in patches:
        outside -= inside
        voxels = cache.voxels(box, fetched)
        if voxels is None:
            continue
        part, origin = _part(tile, place), np.array(box.start, np.int64)
        samples = np.zeros((len(out), *part.valid.shape), np.float32)
        sample(*part, depth, KEPT[reduce], voxels, origin, shape, samples)
        out[(slice(None), *place)] = samples
    return out, outside


def to_bytes(values: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """Samples as grey levels: uint8 rounded half up, the high byte of uint16, 255 times a probability.

    Parameters
    ----------
    values : numpy.ndarray of float32
        Samples.
    dtype : numpy.dtype
        Of the volume that they were taken from.
    name : str
        Of the volume, for messages.

    Raises
    ------
    InputError
        Floats outside of 0 .. 1.

    Examples
    --------
    >>> to_bytes(np.array([0.4, 0.5, 255], np.float32), np.dtype("uint8"), "v").tolist()
    [0, 1, 255]
    """
    if dtype == np.uint8:
        grey = np.floor(values + np.float32(0.5))
    elif dtype == np.uint16:
        grey = np.floor(values / np.float32(256))
    else:
        wrong = ~((values >= 0) & (values <= 1))
        if wrong.any():
            msg = f"{name} holds {values[wrong][0]:g}: a volume of floats is flattened where it is 0 .. 1"
            raise InputError(msg)
        grey = np.floor(values * np.float32(OPAQUE) + np.float32(0.5))
    return grey.astype(np.uint8)


def look(surface: Surface, depth: int, grid: Grid) -> tuple[int, float]:
    """Look at a pixel of each 64 x 64: cells of the volume that they touch, and the share that is valid."""
    touched = np.zeros(grid.counts, np.bool_)
    seen = valid = 0
    steps = np.arange(-depth, depth + 1)[:, None, None]
    for row in range(0, surface.shape[0], LOOK_EVERY):
        tile = surface.tile(slice(row, row + 1), slice(0, surface.shape[1]))
        known = tile.valid[:, ::LOOK_EVERY]
        seen, valid = seen + known.size, valid + int(np.count_nonzero(known))
        points, normals = (array[:, ::LOOK_EVERY][known] for array in (tile.points, tile.normals))
        at = np.floor(points + steps * normals).reshape(-1, 3)
        at = at[((at >= 0) & (at < grid.shape)).all(-1)]
        touched[tuple((at // grid.cell).astype(np.int64).T)] = True
    return int(np.count_nonzero(touched)), valid / seen


def pixel_spacing(surface: Surface) -> tuple[float, float]:
    """Voxels from a pixel to the one below it and to the one beside it: medians of a few rows; else nan.

    Examples
    --------
    >>> from inkzarr.core.surface import flat_surface
    >>> pixel_spacing(flat_surface((4, 5), z=1))
    (1.0, 1.0)
    """
    rows = np.linspace(0, max(0, surface.shape[0] - 2), ROW_PAIRS).astype(int)
    tiles = [surface.tile(slice(row, row + 2), slice(0, surface.shape[1])) for row in np.unique(rows)]
    medians = []
    for axis in (0, 1):
        steps = []
        for tile in tiles:
            points, valid = np.moveaxis(tile.points, axis, 0), np.moveaxis(tile.valid, axis, 0)
            steps.append(np.linalg.norm(np.diff(points, axis=0), axis=-1)[valid[1:] & valid[:-1]])
        known = np.concatenate(steps)
        medians.append(float(np.median(known)) if known.size else np.nan)
    return medians[0], medians[1]


def told_scale(spacing: tuple[float, float]) -> str:
    """A line where pixels are no voxels, so that their size in the file is not true; else nothing."""
    if all(1 / SCALE_OFF <= far <= SCALE_OFF or np.isnan(far) for far in spacing):
        return ""
    apart = f"{spacing[0]:.2g} x {spacing[1]:.2g} voxels apart"
    return f"scale   pixels lie {apart}, not 1: the surface's scale is off"


def _patches(
    tile: SurfaceTile, depth: int, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, slice], int, Box]]:
    """Parts of a strip that reach into the volume: how many pixels do, and the box of voxels around them."""
    height, width = tile.valid.shape
    todo = [(slice(0, height), slice(at, min(at + PATCH, width))) for at in range(0, width, PATCH)][::-1]
    while todo:
        place = todo.pop()
        first, last, inside = reach(*_part(tile, place), depth, shape)
        box = Box(Zyx(*first.tolist()), Zyx(*last.tolist()))
        rows, cols = place
        if inside and box.shape.volume <= MOST_VOXELS:
            yield place, inside, box
        elif inside and cols.stop - cols.start > 1:
            todo += [(rows, part) for part in _halves(cols)]
        elif inside and rows.stop - rows.start > 1:
            todo += [(part, cols) for part in _halves(rows)]
        elif inside:
            yield place, inside, box


def _part(tile: SurfaceTile, place: tuple[slice, slice]) -> SurfaceTile:
    whole = np.ascontiguousarray
    return SurfaceTile(whole(tile.points[place]), whole(tile.normals[place]), whole(tile.valid[place]))


def _halves(part: slice) -> list[slice]:
    middle = (part.start + part.stop) // 2
    return [slice(middle, part.stop), slice(part.start, middle)]
