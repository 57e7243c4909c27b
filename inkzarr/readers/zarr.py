"""Another Zarr volume, local or remote, through the same careful store as everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.store import open_stored
from inkzarr.core.volume import StoredVolume
from inkzarr.readers.base import check_voxels, one_voxel_size


@dataclass(frozen=True)
class ZarrSource:
    """A Zarr array, its axes as stored.

    Parameters
    ----------
    stored : StoredVolume
        As `open_stored` gives it.
    """

    stored: StoredVolume

    @property
    def shape(self) -> Zyx:
        """In voxels, in stored order."""
        return self.stored.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one voxel."""
        return self.stored.dtype

    @property
    def voxel_size_um(self) -> float | None:
        """From the multiscale metadata, the lineage or the name; None where the edges differ."""
        edges = self.stored.level.spacing_um
        return self.stored.voxel_size_um if edges is None else one_voxel_size(edges)

    @property
    def name(self) -> str:
        """The last part of the URL, without anything secret."""
        return self.stored.name

    @property
    def identity(self) -> dict[str, Any]:
        """Name, layout and a checksum of voxels."""
        return {"kind": "zarr", **self.stored.identity}

    @property
    def block(self) -> Zyx:
        """One chunk, in voxels."""
        return Zyx(*map(min, self.stored.chunks, self.shape))

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, in stored order.

        Raises
        ------
        StoreError
            A chunk cannot be had or does not decode; it is named.
        """
        return self.stored.read(box)


def open_zarr(url: str, axes: str, storage_options: dict[str, Any] | None = None) -> ZarrSource:
    """Open a volume's full resolution, or a bare array, whose axes are stored in the order of `axes`.

    Raises
    ------
    InputError
        Nothing there, not a volume, or an unusable dtype.
    StoreError
        The store failed.
    """
    stored = open_stored(url, axes=axes, storage_options=storage_options)
    stored.require_finished()
    check_voxels(stored.dtype, stored.name)
    return ZarrSource(stored)
