"""What a scanner sees of papyrus and ink: noise and fibres, the same whatever block is asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.geometry import Box, Grid, Zyx

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float32]

TILE = Zyx(32, 32, 32)
BLOBS = (1, 2, 3)
HALO = sum(BLOBS)
OVERSAMPLED = 4
PERIOD = 512 * OVERSAMPLED


def white(seed: int, box: Box) -> Floats:
    """White noise of unit variance; a voxel's value depends on `seed` and its place alone.

    The volume is cut into tiles with a random generator each, and a box is put together from those it
    touches::

        tiles  |......|......|......|
        box       [==========]

    Parameters
    ----------
    seed : int
        Of the whole volume.
    box : Box
        In voxels; may reach below 0 by up to one tile.
    """
    lifted = box.shift(TILE)
    out = np.empty(box.shape, np.float32)
    for index in Grid(lifted.stop, TILE).indices(lifted):
        start = Zyx(*(i * edge for i, edge in zip(index, TILE, strict=True)))
        tile = Box(start, Zyx(*(a + edge for a, edge in zip(start, TILE, strict=True))))
        shared = tile.clip(lifted)
        values = np.random.default_rng([seed, *index]).standard_normal(TILE, dtype=np.float32)
        out[shared.within(lifted)] = values[shared.within(tile)]
    return out


def smooth(noise: Floats, reaches: Sequence[int]) -> Floats:
    """Weighted means of neighbours, scaled so that white noise keeps unit variance.

    One pass a reach ``d`` and an axis: ``a[i - d] + 2 a[i] + a[i + d]``. Sums of shifted slices, in an
    order that does not depend on the array's extent: the same bytes whatever the block.

    Parameters
    ----------
    noise : numpy.ndarray of float32
        With a halo of ``sum(reaches)`` on every side, which is cut off.
    reaches : sequence of int
        In voxels.
    """
    weights = np.ones(1)
    for reach in reaches:
        kernel = np.zeros(2 * reach + 1)
        kernel[[0, reach, -1]] = 1, 2, 1
        weights = np.convolve(weights, kernel)
        for axis in range(noise.ndim):
            size = noise.shape[axis] - 2 * reach
            low, middle, high = (
                noise[tuple(slice(at, at + size) if a == axis else slice(None) for a in range(noise.ndim))]
                for at in (0, reach, 2 * reach)
            )
            total = low + high
            total += middle
            total += middle
            noise = total
    scaled: Floats = noise * np.float32(float(np.linalg.norm(weights)) ** -noise.ndim)
    return scaled


@lru_cache(maxsize=8)
def fibres(seed: int, layers: int) -> Floats:
    """A pattern across fibres: unit variance, periodic along the first axis.

    Parameters
    ----------
    seed : int
        Of the pattern.
    layers : int
        How many voxels the pattern is deep.

    Returns
    -------
    numpy.ndarray of float32, (PERIOD, layers * OVERSAMPLED)
        Four samples a voxel; read-only.
    """
    shape = (PERIOD, layers * OVERSAMPLED)
    grain = np.random.default_rng([seed, 2]).standard_normal(shape)
    reach = [np.minimum(np.arange(n), n - np.arange(n)) for n in shape]
    width = 1.8 * OVERSAMPLED
    kernel = np.exp(-(reach[0][:, None] ** 2 + reach[1] ** 2) / (2 * width**2))
    grain = np.fft.ifft2(np.fft.fft2(grain) * np.fft.fft2(kernel)).real
    pattern: Floats = (grain / grain.std()).astype(np.float32)
    pattern.flags.writeable = False
    return pattern


def fibre_at(pattern: Floats, across: NDArray[np.float64], depth: NDArray[np.float64]) -> Floats:
    """The nearest sample of a `fibres` pattern, both places in voxels."""
    row = np.floor(across * OVERSAMPLED).astype(np.int64) % PERIOD
    layer = np.floor(depth * OVERSAMPLED).astype(np.int64) % pattern.shape[1]
    found: Floats = pattern[row, layer]
    return found
