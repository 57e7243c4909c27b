"""The compiled loops of the flatten stage: trilinear samples along the normals of a surface.

For every pixel, at ``point + t * normal`` with t = -depth, -depth + 1, ..., depth::

         normal
           ^      x  t =  2        a sample is the mean of the eight voxels around it, weighted by
           |      x  t =  1        nearness; outside the voxels' centres it is 0, as
      -----x-----    t =  0        `scipy.ndimage.map_coordinates(order=1, mode="constant")` has it
           x
           x         t = -2
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

MAXIMUM, MEAN, LAYERS = 0, 1, 2
"""What is kept of a pixel's samples."""


@njit(nogil=True, cache=True)
def reach(points, normals, valid, depth, shape):
    """The voxels that samples of a tile need, and how many of its pixels have a sample in the volume.

    Parameters
    ----------
    points, normals : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x.
    valid : numpy.ndarray of bool, (rows, columns)
        Which pixels are sampled.
    depth : int
        Steps on each side.
    shape : tuple of three int
        The volume, in voxels.

    Returns
    -------
    tuple
        First voxel and one past the last, along z, y, x (int64; the last may be one past the volume),
        and the number of pixels.
    """
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    first, last = np.zeros(3, np.int64), np.zeros(3, np.int64)
    inside = 0
    for row in range(valid.shape[0]):
        for col in range(valid.shape[1]):
            if not valid[row, col]:
                continue
            touches = True
            for axis in range(3):
                a = points[row, col, axis] - depth * normals[row, col, axis]
                b = points[row, col, axis] + depth * normals[row, col, axis]
                touches &= min(a, b) <= shape[axis] - 1 and max(a, b) >= 0
            if not touches:
                continue
            inside += 1
            for axis in range(3):
                a = points[row, col, axis] - depth * normals[row, col, axis]
                b = points[row, col, axis] + depth * normals[row, col, axis]
                low[axis] = min(low[axis], a, b)
                high[axis] = max(high[axis], a, b)
    if inside:
        for axis in range(3):
            first[axis] = math.floor(max(low[axis], 0.0))
            last[axis] = math.floor(min(high[axis], shape[axis] - 1.0)) + 2
    return first, last, inside


@njit(nogil=True, cache=True)
def _trilinear(voxels, z, y, x, origin):
    """The weighted mean of the eight voxels around a place."""
    iz, iy, ix = int(z), int(y), int(x)
    fz, fy, fx = np.float32(z - iz), np.float32(y - iy), np.float32(x - ix)
    a, b, c = np.uint64(iz - origin[0]), np.uint64(iy - origin[1]), np.uint64(ix - origin[2])
    one = np.uint64(1)
    v000, v001 = np.float32(voxels[a, b, c]), np.float32(voxels[a, b, c + one])
    v010, v011 = np.float32(voxels[a, b + one, c]), np.float32(voxels[a, b + one, c + one])
    v100, v101 = np.float32(voxels[a + one, b, c]), np.float32(voxels[a + one, b, c + one])
    v110, v111 = np.float32(voxels[a + one, b + one, c]), np.float32(voxels[a + one, b + one, c + one])
    v00, v01 = v000 + fx * (v001 - v000), v010 + fx * (v011 - v010)
    v10, v11 = v100 + fx * (v101 - v100), v110 + fx * (v111 - v110)
    v0, v1 = v00 + fy * (v01 - v00), v10 + fy * (v11 - v10)
    return v0 + fz * (v1 - v0)


@njit(nogil=True, cache=True)
def sample(points, normals, valid, depth, kept, voxels, origin, shape, out):
    """Sample a tile.

    Parameters
    ----------
    points, normals : numpy.ndarray of float64, (rows, columns, 3)
        z, y, x.
    valid : numpy.ndarray of bool, (rows, columns)
        Which pixels are sampled; the others of `out` are left alone.
    depth : int
        Steps on each side.
    kept : int
        `MAXIMUM`, `MEAN` or `LAYERS`.
    voxels : numpy.ndarray, three axes
        The voxels that `reach` tells, zeros past the volume's end.
    origin : numpy.ndarray of int64, (3,)
        The first of them.
    shape : tuple of three int
        The whole volume.
    out : numpy.ndarray of float32, (1 or 2 * depth + 1, rows, columns)
        Receives the samples, or what is kept of them.
    """
    steps = 2 * depth + 1
    zmax, ymax, xmax = shape[0] - 1.0, shape[1] - 1.0, shape[2] - 1.0
    for row in range(valid.shape[0]):
        for col in range(valid.shape[1]):
            if not valid[row, col]:
                continue
            pz, py, px = points[row, col, 0], points[row, col, 1], points[row, col, 2]
            nz, ny, nx = normals[row, col, 0], normals[row, col, 1], normals[row, col, 2]
            most, total = np.float32(0), np.float32(0)
            for k in range(steps):
                t = k - depth
                z, y, x = pz + t * nz, py + t * ny, px + t * nx
                value = np.float32(0)
                if 0 <= z <= zmax and 0 <= y <= ymax and 0 <= x <= xmax:
                    value = _trilinear(voxels, z, y, x, origin)
                if kept == LAYERS:
                    out[k, row, col] = value
                total += value
                if k == 0 or value > most or value != value:
                    most = value
            if kept == MAXIMUM:
                out[0, row, col] = most
            elif kept == MEAN:
                out[0, row, col] = total / np.float32(steps)
