"""Eight voxels as one: values by their mean or maximum, labels by all their votes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

Reduce = Literal["mean", "max"]


def halve(voxels: np.ndarray, reduce: Reduce = "mean") -> np.ndarray:
    """Each 2 x 2 x 2 voxels as one; at an odd end, the voxels that exist.

    Parameters
    ----------
    voxels : numpy.ndarray
        Z, Y, X; whole numbers or floats.
    reduce : str
        ``mean``: exact for whole numbers, rounded half up (towards +infinity), and in twice the
        precision for floats of up to 32 bits; a nan makes a nan. ``max``: the largest.

    Returns
    -------
    numpy.ndarray
        Same dtype, ceil(shape / 2).

    Examples
    --------
    >>> halve(np.array([[[1, 2, 9], [3, 4, 8]]], "uint8"))
    array([[[3, 9]]], dtype=uint8)
    """
    # a last plane counted twice changes neither a maximum nor a mean of the voxels that exist
    odd = [(0, n % 2) for n in voxels.shape]
    whole = np.pad(voxels, odd, mode="edge") if any(map(any, odd)) else voxels
    dtype = voxels.dtype
    halved: np.ndarray
    if reduce == "max":
        halved = _pairs(whole, np.maximum, dtype)
    elif dtype.kind == "f":
        wide = np.dtype(f"f{min(8, 2 * dtype.itemsize)}")
        halved = (_pairs(whole, np.add, wide) / 8).astype(dtype)
    elif dtype.itemsize == 8:  # no wider integer: add eighths and what is left of them
        halved = _pairs(whole >> 3, np.add, dtype) + ((_pairs(whole & 7, np.add, dtype) + 4) >> 3)
    else:
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
        halved = ((_pairs(whole, np.add, wide) + 4) >> 3).astype(dtype)
    return halved


def _pairs(voxels: np.ndarray, combine: Callable[..., np.ndarray], dtype: np.dtype[Any]) -> np.ndarray:
    """Combine neighbours along z, then y, then x, in `dtype`; every axis is even."""
    voxels = combine(voxels[0::2], voxels[1::2], dtype=dtype)
    voxels = combine(voxels[:, 0::2], voxels[:, 1::2], dtype=dtype)
    return combine(voxels[..., 0::2], voxels[..., 1::2], dtype=dtype)


def halve_labels(
    ink: np.ndarray, count: np.ndarray, reduce: Reduce = "mean"
) -> tuple[np.ndarray, np.ndarray]:
    """Each 2 x 2 x 2 labelled voxels as one, which has all their votes; unlabelled ones have no say.

    Parameters
    ----------
    ink : numpy.ndarray
        uint8, Z, Y, X: mean painted value; 0 where unlabelled.
    count : numpy.ndarray
        uint16, same shape: votes; 0 is unlabelled.
    reduce : str
        ``mean``: of the votes, rounded half up; ``max``: the largest value.

    Returns
    -------
    tuple of numpy.ndarray
        `ink` and `count` of ceil(shape / 2); votes saturate.

    Examples
    --------
    >>> halve_labels(np.array([[[200, 0]]], "uint8"), np.array([[[3, 0]]], "uint16"))
    (array([[[200]]], dtype=uint8), array([[[3]]], dtype=uint16))
    """
    shape = tuple((n + 1) // 2 for n in ink.shape)
    halved, total = np.empty(shape, ink.dtype), np.empty(shape, count.dtype)
    _halve_votes(np.ascontiguousarray(ink), np.ascontiguousarray(count), reduce == "max", halved, total)
    return halved, total


@njit(nogil=True, cache=True)
def _halve_votes(ink, count, largest, halved, total):
    """Fill `halved` and `total`, a row of theirs from up to four rows of `ink` and `count`."""
    depth, height, width = ink.shape
    most = np.uint32(np.iinfo(total.dtype).max)
    values, votes = np.empty(halved.shape[2], np.uint32), np.empty(halved.shape[2], np.uint32)
    for z in range(halved.shape[0]):
        for y in range(halved.shape[1]):
            values[:], votes[:] = 0, 0
            for a in range(2 * z, min(2 * z + 2, depth)):
                for b in range(2 * y, min(2 * y + 2, height)):
                    for start in range(min(2, width)):
                        _add_every_second(ink[a, b, start::2], count[a, b, start::2], largest, values, votes)
            for x in range(halved.shape[2]):
                halved[z, y, x], total[z, y, x] = values[x], min(votes[x], most)
                if votes[x] and not largest:
                    halved[z, y, x] = (2 * values[x] + votes[x]) // (2 * votes[x])


@njit(nogil=True, cache=True)
def _add_every_second(ink, count, largest, values, votes):
    for x in range(len(ink)):
        voters = np.uint32(count[x])
        if largest:
            values[x] = max(values[x], np.uint32(ink[x]) if voters else np.uint32(0))
        else:
            values[x] += np.uint32(ink[x]) * voters
        votes[x] += voters
