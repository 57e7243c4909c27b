r"""Blending overlapping windows: the weights with which a window's voxels count.

A voxel's probability is the weighted mean over the windows that cover it::

    weight   1 |      ___             ___          windows A and B overlap by half:
               |    /  A  \         /  B  \        where A fades, B takes over
          1e-3 |__/         \__ __/         \__
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Windows, Zyx

Blend = Literal["gaussian", "constant"]

SIGMAS_PER_WINDOW = 8
FLOOR = 1e-3


def window_weights(window: Zyx, blend: Blend) -> np.ndarray:
    """The weight of every voxel of a window.

    Parameters
    ----------
    window : Zyx
        In voxels.
    blend : str
        ``gaussian``: the product over the axes of ``exp(-((i - (window-1)/2) / (window/8))^2 / 2)``, and
        1e-3 where that is smaller. ``constant``: 1 everywhere.

    Returns
    -------
    numpy.ndarray
        float32 of the window's shape.

    Raises
    ------
    InputError
        An unknown blend.

    Examples
    --------
    >>> window_weights(Zyx(1, 1, 3), "gaussian")
    array([[[0.0285655, 1.       , 0.0285655]]], dtype=float32)
    """
    if blend not in get_args(Blend):
        msg = f"blend {blend!r} is unknown: use {' or '.join(get_args(Blend))}"
        raise InputError(msg)
    if blend == "constant":
        return np.ones(window, np.float32)
    z, y, x = (np.exp(-(((np.arange(n) - (n - 1) / 2) / (n / SIGMAS_PER_WINDOW)) ** 2) / 2) for n in window)
    weights: np.ndarray = np.maximum(z[:, None, None] * y[:, None] * x, FLOOR)
    return weights.astype(np.float32)


def windows_in_air(windows: Windows, occupied: np.ndarray, chunks: Zyx) -> np.ndarray:
    """Which windows touch no occupied chunk.

    Parameters
    ----------
    windows : Windows
        Of the whole volume.
    occupied : numpy.ndarray
        bool, of the chunk grid's shape.
    chunks : Zyx
        One chunk, in voxels.

    Returns
    -------
    numpy.ndarray
        bool, of the shape of ``windows.counts``.
    """
    for axis, count in enumerate(windows.counts):
        lows = np.arange(count) * windows.stride[axis]
        highs = np.minimum(lows + windows.window[axis], windows.shape[axis])
        touched = zip(lows // chunks[axis], -(-highs // chunks[axis]), strict=True)
        parts = [occupied.take(range(low, high), axis).any(axis) for low, high in touched]
        occupied = np.stack(parts, axis)
    return ~occupied
