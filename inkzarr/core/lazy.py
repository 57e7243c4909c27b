"""A lazy array read by the box, as a volume on a store is: what is asked for is computed, and nothing else.

Dask walks through a graph's whole list of tasks for every computation, half a second in a scroll of half a
million chunks. So the tasks of a region of 8 x 8 x 8 chunks are cut out once, and kept while it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.core import flatten
from dask.utils import ensure_dict

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.schema import CHUNK, DIMS
from inkzarr.core.volume import StoredVolume

REGION = 8
"""Chunks along each axis whose tasks are cut out at once."""
REGIONS = 32
"""So many are kept."""


@dataclass(frozen=True, eq=False)
class LazyVolume:
    """A lazy array as something to be read by the box; see `inkzarr.core.volume.StoredVolume`.

    Parameters
    ----------
    array : xarray.DataArray
        Dims z, y, x; each of its chunks is computed as a whole.

    Raises
    ------
    InputError
        Other dims.
    """

    array: xr.DataArray

    def __post_init__(self) -> None:
        if self.array.dims != DIMS:
            msg = f"the lazy volume has the axes {', '.join(map(str, self.array.dims))}: it needs z, y, x"
            raise InputError(msg)
        if not isinstance(self.array.data, da.Array):
            object.__setattr__(self, "array", self.array.chunk(CHUNK))

    def __eq__(self, other: object) -> bool:
        """As Dask has it: what is computed alike has the same name; also in another process."""
        return isinstance(other, LazyVolume) and self.array.data.name == other.array.data.name

    def __hash__(self) -> int:
        """Of that name."""
        return hash(self.array.data.name)

    @property
    def url(self) -> str:
        """Of no store."""
        return ""

    def traffic(self) -> str:
        """What was fetched for it is not known."""
        return ""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the lazy {self.array.name or 'volume'}"

    @property
    def shape(self) -> Zyx:
        """In voxels."""
        return Zyx(*self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one voxel, in the machine's byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def chunks(self) -> Zyx:
        """What is computed at once, in voxels; of chunks that differ, the largest."""
        return Zyx(*map(max, self.array.data.chunks))

    @property
    def voxel_size_um(self) -> float | None:
        """Edge of a voxel in micrometres, where it is known."""
        found = self.array.attrs.get("voxel_size_um")
        return None if found is None else float(found)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its voxels from others': the name that Dask made of how they are computed."""
        layout = {"shape": list(self.shape), "dtype": self.dtype.name, "chunks": list(self.chunks)}
        return {"name": self.name, **layout, "tasks": self.array.data.name}

    def known_empty(self, index: Zyx) -> bool:  # noqa: ARG002 - the same question as to a stored volume
        """Whether chunk `index` is known to hold zeros alone: never."""
        return False

    def read(self, box: Box) -> np.ndarray:
        """Compute the voxels of `box`, which lies inside the volume, in the thread that asks."""
        grid = Grid(self.shape, Zyx(*(REGION * n for n in self.chunks)))
        cells = grid.cells(box)
        last = grid.box(Zyx(*(n - 1 for n in cells.stop)))
        region = Box(grid.box(cells.start).start, last.stop)
        part = _cut_out(self, region)
        voxels: np.ndarray = part[box.within(region)].compute(scheduler="synchronous")
        return np.asarray(voxels, dtype=self.dtype)


@lru_cache(maxsize=REGIONS)
def _cut_out(volume: LazyVolume, region: Box) -> da.Array:
    """A region of the array, with its own tasks alone."""
    lazy = volume.array.data[region.slices]
    tasks = ensure_dict(lazy.__dask_graph__().cull(set(flatten(lazy.__dask_keys__()))))
    return da.Array(tasks, lazy.name, lazy.chunks, meta=lazy._meta)


Readable = StoredVolume | LazyVolume
"""What can be read by the box."""
