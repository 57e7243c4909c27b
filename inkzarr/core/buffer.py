"""Zarr's buffer of voxels, which spares the one thread of its event loop what stands there for each chunk.

Zarr fills a new chunk with the fill value before it copies voxels into it, and does not store one that equals
the fill value. How it compares takes ten times as long as compressing the chunk; of whole numbers, two passes
tell the same. A block that comes cut into chunks does not go through the loop before it is compressed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
import zarr
from zarr.core.buffer import BufferPrototype, default_buffer_prototype
from zarr.core.buffer.cpu import Buffer, NDBuffer
from zarr.core.common import concurrent_map
from zarr.core.metadata import ArrayV2Metadata
from zarr.core.sync import sync
from zarr.storage import StorePath

from inkzarr.core.cut import Cut
from inkzarr.core.geometry import Grid, Zyx

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
        """A chunk to be filled; zeros take no memory before something else is filled in."""
        if np.dtype(dtype).kind not in WHOLE or fill_value:
            return super().create(shape=shape, dtype=dtype, order=order, fill_value=fill_value)
        return cls.from_numpy_array(np.broadcast_to(np.zeros((), dtype), tuple(shape)))

    def __setitem__(self, key: Any, value: Any) -> None:  # noqa: ANN401
        """Fill in voxels; those of the chunk as a whole are taken as they are."""
        if isinstance(value, NDBuffer) and value.shape == self.shape and value.dtype == self.dtype:
            self._data = value.as_ndarray_like()
            return
        if not self.as_numpy_array().flags.writeable:
            self._data = self.as_ndarray_like().copy()
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
    if isinstance(voxels, Cut) and _plain(array, place, voxels):
        _write_chunks(array, place, voxels)
    # inside of shards zarr takes no buffer but its own; what is not compressed, a store might keep as it is
    elif array.shards is not None or not array.compressors:
        array.set_basic_selection(place, np.asarray(voxels))
    else:
        ours = BufferPrototype(default_buffer_prototype().buffer, Voxels)
        array.set_basic_selection(place, np.asarray(voxels), prototype=ours)


def _plain(array: zarr.Array[Any], place: tuple[slice, ...], voxels: Cut) -> bool:
    """Whether a block is cut into the array's whole chunks, and these are whole numbers, compressed alone."""
    form, grid = array.metadata, Grid(voxels.shape, Zyx.of(array.chunks))
    ends = zip(place, array.chunks, array.shape, strict=True)
    return (
        all(a.start % chunk == 0 and (a.stop % chunk == 0 or a.stop == size) for a, chunk, size in ends)
        and {box.start: box.shape for box in map(grid.box, grid.indices())}
        == {start: piece.shape for start, piece in voxels.pieces.items()}
        and isinstance(form, ArrayV2Metadata)
        and form.compressor is not None
        and not form.filters
        and form.order == "C"
        and array.dtype.kind in WHOLE
        and array.dtype.isnative
        and not array.config.write_empty_chunks
    )


def _write_chunks(array: zarr.Array[Any], place: tuple[slice, ...], voxels: Cut) -> None:
    """Compress chunks in this thread, and hand them to the store at once: ten hops a chunk are spared."""
    form: Any = array.metadata
    fill = form.fill_value or 0
    packed = []
    for start, piece in voxels.pieces.items():
        at = tuple((part.start + a) // n for part, a, n in zip(place, start, array.chunks, strict=True))
        chunk = piece
        if piece.shape != array.chunks:  # the last ones: what lies outside the array is stored too
            chunk = np.full(array.chunks, fill, array.dtype)
            chunk[tuple(map(slice, piece.shape))] = piece
        empty = Voxels.from_numpy_array(chunk).all_equal(fill)
        data = None if empty else Buffer.from_bytes(form.compressor.encode(chunk))
        packed.append((array.store_path / form.encode_chunk_key(at), data))

    async def put(path: StorePath, data: Buffer | None) -> None:
        await (path.delete() if data is None else path.set(data))

    sync(concurrent_map(packed, put, zarr.config.get("async.concurrency")))
