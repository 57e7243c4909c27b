"""TIFF: a stack of pages in one file, one page a z, and single slices.

A stack is ImageJ's with its z spacing below 4 GB, else a BigTIFF with OME metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tifffile

from inkzarr.core.errors import InputError
from inkzarr.writers.base import Cutout, fill

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

UM_PER_CM = 1e4
CLASSIC_TIFF_BYTES = 2**32 - 2**25
"""Beyond, a TIFF is written as BigTIFF, whose offsets have 64 bits."""
IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
OME_DTYPES = (*IMAGEJ_DTYPES, "int8", "int16", "int32", "uint32", "float64")


def check_tiff(cutout: Cutout) -> None:
    """Refuse voxels that other programs would not read.

    Raises
    ------
    InputError
        Naming the dtype.
    """
    name = cutout.dtype.name
    if name not in OME_DTYPES:
        msg = f"dtype {name} does not fit a TIFF that others read: export to .nrrd, which has it"
        raise InputError(msg)


def write_tiff(path: Path, cutout: Cutout, advance: Callable[[int], object]) -> None:
    """Write a TIFF's pages, then their voxels, which lie one after the other."""
    big = cutout.nbytes > CLASSIC_TIFF_BYTES
    imagej = cutout.dtype.name in IMAGEJ_DTYPES and not big
    found: Any = tifffile.imwrite(
        path,
        shape=tuple(cutout.box.shape),
        dtype=cutout.dtype,
        byteorder="<",
        bigtiff=big,
        imagej=imagej,
        ome=not imagej,
        photometric="minisblack",
        returnoffset=True,
        **_spacing(cutout.spacing_um, imagej=imagej),
    )
    with path.open("r+b") as file:
        fill(file, int(found[0]), cutout, advance=advance)


def write_tiff_slice(path: Path, plane: np.ndarray, spacing_um: tuple[float, float] | None) -> None:
    """Write one plane; the edges of a pixel along rows and columns in micrometres become its resolution."""
    about = {} if spacing_um is None else resolution(*spacing_um)
    tifffile.imwrite(path, plane, byteorder="<", photometric="minisblack", metadata=None, **about)


def resolution(y_um: float, x_um: float) -> dict[str, Any]:
    """What tifffile is told of a pixel's edges in micrometres.

    Examples
    --------
    >>> resolution(4, 8)
    {'resolution': (1250.0, 2500.0), 'resolutionunit': 'CENTIMETER'}
    """
    return {"resolution": (UM_PER_CM / x_um, UM_PER_CM / y_um), "resolutionunit": "CENTIMETER"}


def _spacing(spacing_um: tuple[float, ...] | None, *, imagej: bool) -> dict[str, Any]:
    """A voxel's size in the words of ImageJ (its unit stands in the metadata) or of OME."""
    if spacing_um is None:
        return {"metadata": {"axes": "ZYX"}}
    z, y, x = spacing_um
    if imagej:
        metadata = {"axes": "ZYX", "spacing": z, "unit": "um"}
        return {"metadata": metadata, "resolution": (1 / x, 1 / y), "resolutionunit": "NONE"}
    sizes = {f"PhysicalSize{axis}": um for axis, um in zip("ZYX", spacing_um, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}
    return {"metadata": {"axes": "ZYX", **sizes, **units}, **resolution(y, x)}
