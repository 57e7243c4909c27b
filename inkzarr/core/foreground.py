"""The blocks of a prediction, labelled: a first pass tells their components, a second gives them ids."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.geometry import Box, Grid
from inkzarr.core.joins import BlockRuns, Found
from inkzarr.core.volume import StoredVolume


@dataclass(frozen=True)
class Source:
    """A prediction of which only those chunks are read that may hold a component.

    Parameters
    ----------
    stored : StoredVolume
        uint8.
    exceeds : numpy.ndarray of bool
        By chunk.
    """

    stored: StoredVolume
    exceeds: NDArray[np.bool_]

    def holds(self, box: Box) -> bool:
        """Whether there may be anything in a box."""
        return bool(self.exceeds[Grid(self.stored.shape, self.stored.chunks).cells(box).slices].any())

    def parts(self, box: Box) -> list[Box]:
        """What is to be read of a box: all of it, or some chunks."""
        grid = Grid(self.stored.shape, self.stored.chunks)
        if self.exceeds[grid.cells(box).slices].all():
            return [box]
        return [grid.box(index).clip(box) for index in grid.indices(box) if self.exceeds[index]]


@dataclass(frozen=True)
class LabelBlocks:
    """The block function of the second pass: reads a block again, and gives its components their ids.

    Parameters
    ----------
    stored : StoredVolume
        The prediction.
    least, min_voxels : int
        As in the first pass.
    blocks : dict
        By block, what is to be read of it; and for each of its components that counts its id, 0 for those
        that are too small.
    """

    stored: StoredVolume
    least: int
    min_voxels: int
    blocks: dict[Box, tuple[list[Box], NDArray[np.uint32]]]

    def __call__(self, box: Box) -> NDArray[np.uint32]:
        """The ids in `box`."""
        parts, ids = self.blocks[box]
        voxels = _read(self.stored, box, parts)
        return BlockRuns.of(voxels, box, self.stored.shape, self.least, self.min_voxels).painted(ids)

    def narrowed(self, box: Box) -> LabelBlocks:
        """What is needed for one block."""
        return dataclasses.replace(self, blocks={box: self.blocks[box]})


def label_block(item: tuple[Box, list[Box]], *, stored: StoredVolume, least: int, min_voxels: int) -> Found:
    """The components of one block; `item` is its box, and what of it is to be read."""
    box, parts = item
    voxels = _read(stored, box, parts)
    return BlockRuns.of(voxels, box, stored.shape, least, min_voxels).found(voxels, stored.shape)


def _read(stored: StoredVolume, box: Box, parts: list[Box]) -> NDArray[np.uint8]:
    if parts == [box]:
        return np.ascontiguousarray(stored.read(box))
    voxels = np.zeros(box.shape, np.uint8)
    for part in parts:
        voxels[part.within(box)] = stored.read(part)
    return voxels
