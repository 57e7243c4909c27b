"""Zarr's buffer of voxels, which tells quickly whether a chunk is empty.

Zarr does not store a chunk that equals the fill value. How it compares takes ten times as long as compressing
the chunk, and stands on the one thread of its event loop; of whole numbers, two passes tell the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import BufferPrototype, default_buffer_prototype
from zarr.core.buffer.cpu import NDBuffer

WHOLE = "ui"
"""Kinds of dtype for which equal values have equal bytes: floats have two zeros, and nan."""


class Voxels(NDBuffer):
    """An array on its way to a store."""

    def all_equal(self, other: Any, equal_nan: bool = True) -> bool:  # noqa: ANN401, FBT001, FBT002 - zarr's
        """Whether all voxels are `other`."""
        voxels = self.as_numpy_array()
        if voxels.dtype.kind not in WHOLE or np.ndim(other) or not voxels.size:
            return super().all_equal(other, equal_nan)
        if voxels.ndim and (voxels[len(voxels) // 2] != other).any():
            return False  # as nearly always, and a chunk of a block does not lie in one piece
        return bool(voxels.max() == other == voxels.min())


def write_voxels(array: zarr.Array[Any], place: tuple[slice, ...], voxels: np.ndarray) -> None:
    """Write `voxels`, of the array's dtype, to where `place` says, of which empty chunks are not stored."""
    ours = BufferPrototype(default_buffer_prototype().buffer, Voxels)
    # inside of shards zarr takes no buffer but its own
    array.set_basic_selection(place, voxels, prototype=ours if array.shards is None else None)
