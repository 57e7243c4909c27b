"""A block's voxels cut into chunks, each in one piece of memory, so that no more copies are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inkzarr.core.geometry import Grid, Zyx


@dataclass(frozen=True, eq=False)
class Cut:
    """A block, chunk by chunk.

    Parameters
    ----------
    shape : Zyx
        Of the block, which begins at a chunk's first voxel.
    dtype : numpy.dtype
        Of its voxels.
    pieces : dict of Zyx to numpy.ndarray
        Each chunk by its first voxel in the block, in C order; the last ones may be ragged.

    Examples
    --------
    >>> block = Cut.empty(Zyx(1, 3, 4), np.dtype(np.uint8), Zyx(1, 2, 2))
    >>> for number, piece in enumerate(block.pieces.values()):
    ...     piece[:] = number
    >>> np.asarray(block)
    array([[[0, 0, 1, 1],
            [0, 0, 1, 1],
            [2, 2, 3, 3]]], dtype=uint8)
    """

    shape: Zyx
    dtype: np.dtype
    pieces: dict[Zyx, np.ndarray]

    @classmethod
    def empty(cls, shape: Zyx, dtype: np.dtype, chunks: Zyx) -> Cut:
        """Chunks that are yet to be filled in."""
        grid = Grid(shape, chunks)
        boxes = map(grid.box, grid.indices())
        return cls(shape, dtype, {box.start: np.empty(box.shape, dtype) for box in boxes})

    @property
    def nbytes(self) -> int:
        """Of all voxels."""
        return self.shape.volume * self.dtype.itemsize

    def __getitem__(self, place: tuple[slice, slice, slice]) -> np.ndarray:
        """One chunk, as a whole."""
        piece = self.pieces[Zyx(*(part.start for part in place))]
        if piece.shape != tuple(part.stop - part.start for part in place):
            msg = f"{place} is no chunk of a block of {self.shape}"
            raise IndexError(msg)
        return piece

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: ANN401, FBT001 - numpy's
        """All voxels, in one array."""
        if copy is False:
            msg = "a block that is cut into chunks must be copied"
            raise ValueError(msg)
        whole = np.empty(self.shape, dtype or self.dtype)
        for start, piece in self.pieces.items():
            whole[tuple(slice(a, a + n) for a, n in zip(start, piece.shape, strict=True))] = piece
        return whole
