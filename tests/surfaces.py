"""Surfaces and volumes that flattening is tested on, and what scipy makes of them."""

import numpy as np
import zarr
from scipy.ndimage import map_coordinates

from inkzarr.core.geometry import Zyx

SHAPE = Zyx(40, 52, 60)


def wavy(rows, cols, rng, shape=SHAPE):
    """A random curved surface that leaves the volume here and there, with holes, NaN and a jump."""
    row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    phase = rng.uniform(0, 6, 3)
    size = np.array(shape)
    points = np.stack(
        [
            size[axis] * (0.5 + 0.55 * np.sin(phase[axis] + row / 31 + (axis - 1) * col / 23))
            for axis in range(3)
        ],
        -1,
    )
    points[rows // 2 :, cols // 2 :] += rng.uniform(-20, 20, 3)
    normals = rng.normal(size=(rows, cols, 3)) * 0.1 + rng.normal(size=3)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    hole = rng.random((rows, cols)) < 0.1
    points[hole] = normals[hole] = 0
    points[0, 0] = np.nan
    valid = ~hole
    valid[0, 0] = False
    return points, normals, valid


def reference(volume, points, normals, valid, depth, reduce):
    """All samples at once, by scipy; in the volume's values."""
    t = np.arange(-depth, depth + 1)[:, None, None, None]
    at = np.where(valid[..., None], points, 0) + t * normals
    found = map_coordinates(volume.astype(np.float64), np.moveaxis(at, -1, 0), order=1, mode="constant")
    found[:, ~valid] = 0
    return {"max": found.max(0, keepdims=True), "mean": found.mean(0, keepdims=True), "none": found}[reduce]


def stored_volume(folder, dtype="uint8", chunks=(16, 20, 24), seed=0):
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, np.iinfo(dtype).max, SHAPE, dtype, endpoint=True)
    voxels[:, :20] = 0
    zarr.create_array(folder / "v.zarr", data=voxels, chunks=chunks, zarr_format=2)
    return voxels
