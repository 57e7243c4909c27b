"""Eight voxels as one: values by their mean or maximum, labels by all their votes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

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
    # a plane without votes beyond an odd end changes nothing
    odd = [(0, n % 2) for n in ink.shape]
    values, votes = (np.pad(part, odd).astype(np.uint32) for part in (ink, count))
    total = _pairs(votes, np.add, votes.dtype)
    if reduce == "max":
        halved = _pairs(values * (votes > 0), np.maximum, values.dtype)
    else:
        weighted = _pairs(values * votes, np.add, values.dtype)
        halved = (2 * weighted + total) // np.maximum(2 * total, 1)
    return halved.astype(ink.dtype), np.minimum(total, np.iinfo(count.dtype).max).astype(count.dtype)
