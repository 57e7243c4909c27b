"""Zarr's buffer of voxels, which spares the one thread of its event loop what stands there for each chunk.

Zarr fills a new chunk with the fill value before it copies voxels into it, and does not store one that equals
the fill value. How it compares takes ten times as long as compressing the chunk; of whole numbers, two passes
tell the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
import zarr
from zarr.core.buffer import BufferPrototype, default_buffer_prototype
from zarr.core.buffer.cpu import NDBuffer

from inkzarr.core.cut import Cut

WHOLE = "ui"
"""Kinds of dtype for which equal values have equal bytes: floats have two zeros, and nan."""


class Voxels(NDBuffer):
    """An array on its way to a store."""

    @classmethod
    def create(
        cls,
        *,
        shape: Iterable[int],
        dtype: Any,  # noqa: ANN401 - zarr's
        order: Literal["C", "F"] = "C",
        fill_value: Any = None,  # noqa: ANN401
    ) -> Self:
        """A chunk to be filled; of zeros as the system gives them, where these are what to fill it with."""
        zeros = np.dtype(dtype).kind in WHOLE and not fill_value
        return super().create(shape=shape, dtype=dtype, order=order, fill_value=0 if zeros else fill_value)

    def __setitem__(self, key: Any, value: Any) -> None:  # noqa: ANN401
        """Fill in voxels; those of the chunk as a whole are taken as they are."""
        if isinstance(value, NDBuffer) and value.shape == self.shape and value.dtype == self.dtype:
            self._data = value.as_ndarray_like()
        else:
            super().__setitem__(key, value)

    def all_equal(self, other: Any, equal_nan: bool = True) -> bool:  # noqa: ANN401, FBT001, FBT002 - zarr's
        """Whether all voxels are `other`."""
        voxels = self.as_numpy_array()
        if voxels.dtype.kind not in WHOLE or np.ndim(other) or not voxels.size:
            return super().all_equal(other, equal_nan)
        if voxels.ndim and (voxels[len(voxels) // 2] != other).any():
            return False  # as nearly always, and a chunk of a block does not lie in one piece
        return bool(voxels.max() == other == voxels.min())


def write_voxels(array: zarr.Array[Any], place: tuple[slice, ...], voxels: np.ndarray | Cut) -> None:
    """Write `voxels`, of the array's dtype, to where `place` says, of which empty chunks are not stored."""
    # inside of shards zarr takes no buffer but its own; what is not compressed, a store might keep as it is
    if array.shards is not None or not array.compressors:
        array.set_basic_selection(place, np.asarray(voxels))
        return
    ours = BufferPrototype(default_buffer_prototype().buffer, Voxels)
    given: Any = voxels
    if isinstance(voxels, Cut) and len(voxels.pieces) == 1:  # zarr takes such a block for the chunk itself
        (given,) = voxels.pieces.values()
    array.set_basic_selection(place, given, prototype=ours)
