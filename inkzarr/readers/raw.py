"""Voxels that lie in a file as they are: a box's rows are read, nothing else is touched.

Plain reads instead of a memory map: mapped pages would count as this process's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inkzarr.core.errors import InputError

if TYPE_CHECKING:
    import io

WHOLE_ROWS = 4
"""Rows of which at least one in so many voxels is wanted are read whole, then cut."""


@dataclass(frozen=True)
class Plane:
    """One slice of a volume in a file.

    Parameters
    ----------
    offset : int
        Of its first voxel in the file, in bytes.
    width : int
        Voxels in a row.
    dtype : numpy.dtype
        As stored; the byte order counts.
    """

    offset: int
    width: int
    dtype: np.dtype[np.generic]


def read_plane(file: io.FileIO, plane: Plane, rows: slice, columns: slice, out: np.ndarray) -> None:
    """Read a rectangle of a plane.

    Parameters
    ----------
    file : io.FileIO
        Unbuffered, at any place.
    plane : Plane
        The slice.
    rows, columns : slice
        In voxels, with start and stop.
    out : numpy.ndarray
        Of the rectangle's shape and the volume's dtype; filled.

    Raises
    ------
    InputError
        The file ends before its last voxel.
    """
    height, wanted = out.shape
    if wanted * WHOLE_ROWS >= plane.width:
        band = out if _fills(out, plane) else np.empty((height, plane.width), plane.dtype)
        _fill(file, plane.offset + rows.start * plane.width * plane.dtype.itemsize, band)
        if band is not out:
            out[:] = band[:, columns]
        return
    part = np.empty(wanted, plane.dtype)
    for row in range(height):
        place = (rows.start + row) * plane.width + columns.start
        _fill(file, plane.offset + place * plane.dtype.itemsize, part)
        out[row] = part


def _fills(out: np.ndarray, plane: Plane) -> bool:
    """Whether the file's bytes are the array's."""
    return bool(out.flags.c_contiguous) and out.shape[1] == plane.width and out.dtype == plane.dtype


def _fill(file: io.FileIO, offset: int, array: np.ndarray) -> None:
    file.seek(offset)
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            msg = f"it ends at byte {offset + done}, {len(view) - done} bytes short: copy it again"
            raise InputError(msg)
        done += got
