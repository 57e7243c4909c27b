"""Moments and maxima of maps, each in one pass.

On a CPU torch's own reductions take three to fifteen times as long where channels are last.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from inkzarr.nn.unet import halves

LAST = torch.channels_last_3d
LANES = 8
"""A row of one channel is taken as one of so many, a vector's."""


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel.

    Parameters
    ----------
    x : Tensor
        (N, C, Z, Y, X).

    Returns
    -------
    mean, variance : Tensor
        (N, C), float64; the variance is that of the voxels at hand (no correction).
    """
    if x.device.type != "cpu":
        variance, mean = torch.var_mean(x.float(), (2, 3, 4), correction=0)
        return mean.double(), variance.double()
    voxels, lanes = _voxels(x.float()), x.shape[1] == 1 and x.shape[4] % LANES == 0
    if lanes:
        voxels = voxels.reshape(*voxels.shape[:3], -1, LANES)
    means, variances = np.empty((2, len(voxels), voxels.shape[4]))
    for window in zip(voxels, means, variances, strict=True):
        _moments(*window)
    if lanes:
        variances = (variances.mean(1) + means.var(1))[:, None]
        means = means.mean(1, keepdims=True)
    return torch.from_numpy(means), torch.from_numpy(variances)


def halve(x: Tensor, *, flat: bool) -> Tensor:
    """Max-pooling by 2.

    Parameters
    ----------
    x : Tensor
        (N, C, Z, Y, X), all even, but a flat network's Z.
    flat : bool
        Whether z is not halved.

    Returns
    -------
    Tensor
        (N, C, Z/2, Y/2, X/2), flat (N, C, Z, Y/2, X/2).
    """
    factors = halves(flat=flat)
    if x.device.type != "cpu":
        return F.max_pool3d(x, factors)
    sizes = (size // factor for size, factor in zip(x.shape[2:], factors, strict=True))
    out = torch.empty((*x.shape[:2], *sizes), dtype=torch.float32, device="cpu", memory_format=LAST)
    for window, half in zip(_voxels(x.float()), _voxels(out), strict=True):
        _halve(window, half, factors[0])
    return out.to(x.dtype)


def _voxels(x: Tensor) -> np.ndarray:
    """(N, Z, Y, X, C); a view where channels are last."""
    return x.permute(0, 2, 3, 4, 1).contiguous().numpy()


@njit(nogil=True, cache=True, error_model="numpy")
def _moments(x, means, variances):
    """Row by row, so that squares are of small numbers; what a row's mean was rounded by is made up for."""
    depth, height, width, channels = x.shape
    means[:], variances[:] = 0, 0
    total, mean, rest = np.empty((3, channels), np.float32)
    for z in range(depth):
        for y in range(height):
            total[:] = 0
            for i in range(width):
                for c in range(channels):
                    total[c] += x[z, y, i, c]
            for c in range(channels):
                mean[c] = total[c] / np.float32(width)
                total[c], rest[c] = 0, 0
            for i in range(width):
                for c in range(channels):
                    off = x[z, y, i, c] - mean[c]
                    rest[c] += off
                    total[c] += off * off
            for c in range(channels):
                by = np.float64(rest[c]) / width
                of_row = mean[c] + by
                means[c] += of_row
                variances[c] += total[c] / width - by * by + of_row * of_row
    for c in range(channels):
        means[c] /= depth * height
        variances[c] = variances[c] / (depth * height) - means[c] * means[c]
        if variances[c] < 0:  # a nan is not
            variances[c] = 0


@njit(nogil=True, cache=True)
def _halve(x, out, planes):
    """Of the rows that become one, whichever is larger, then of every two voxels."""
    depth, height, width, channels = out.shape
    row = np.empty(2 * width * channels, np.float32)
    pairs = row.reshape(width, 2, channels)
    for z in range(depth):
        for y in range(height):
            row[:] = x[planes * z, 2 * y].reshape(-1)
            for dz in range(planes):
                one, other = x[planes * z + dz, 2 * y].reshape(-1), x[planes * z + dz, 2 * y + 1].reshape(-1)
                for i in range(len(row)):
                    row[i] = _larger(row[i], _larger(one[i], other[i]))
            for i in range(width):
                for c in range(channels):
                    out[z, y, i, c] = _larger(pairs[i, 0, c], pairs[i, 1, c])


@njit(inline="always")
def _larger(one, other):
    """Nan where either is."""
    return other if other > one or other != other else one
