"""Sources of voxels: TIFF stacks, HDF5, NRRD and Zarr, each seen as z, y, x and read by the box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import AXES, check_axes
from inkzarr.core.remote import is_remote
from inkzarr.readers.base import Source, in_zyx

__all__ = ["ZARR_FILES", "Source", "open_source"]

READ = (
    "a folder of .tif slices, a .tif of pages, file.h5::dataset (.h5, .hdf5, .he5), .nrrd or .nhdr, "
    "or a Zarr volume (folder or URL)"
)
ZARR_FILES = (".zgroup", ".zarray", "zarr.json")
"""Files that tell a folder to be Zarr."""


def open_source(source: str, *, axes: str = AXES, storage_options: dict[str, Any] | None = None) -> Source:
    """Open a volume in any format that is read.

    Parameters
    ----------
    source : str
        A folder of TIFF slices, a TIFF of pages, ``file.h5::dataset``, an NRRD file, or a Zarr volume
        (folder or URL).
    axes : str
        The source's axes as stored, slowest first; the original project's HDF5 files are ``yxz``.
    storage_options : dict, optional
        For fsspec, where the source is a URL.

    Returns
    -------
    Source
        Seen as z, y, x; metadata is checked, voxels are not read.

    Raises
    ------
    InputError
        Nothing there, a format that is not read, a damaged file, or axes that cannot be.
    StoreError
        A remote store failed.

    Examples
    --------
    >>> import numpy, tifffile
    >>> folder = getfixture("tmp_path")
    >>> for z in range(3):
    ...     tifffile.imwrite(folder / f"{z:03}.tif", numpy.zeros((4, 5), "uint16"))
    >>> open_source(str(folder)).shape
    Zyx(z=3, y=4, x=5)
    """
    check_axes(axes)
    return in_zyx(_open(str(source), axes, storage_options), axes)


def _open(source: str, axes: str, storage_options: dict[str, Any] | None) -> Source:
    from inkzarr.readers import hdf5, nrrd, tiff, zarr

    name, _, dataset = source.removeprefix("file://").partition(hdf5.SEPARATOR)
    path = Path(name).absolute()  # workers of a cluster run elsewhere
    if "://" in source and is_remote(source):
        return zarr.open_zarr(source, axes, storage_options)
    if path.is_dir():
        if any((path / file).exists() for file in ZARR_FILES):
            return zarr.open_zarr(source, axes, storage_options)
        if tiff.tiff_names(path):
            return tiff.open_folder(path)
        msg = f"folder {source} holds neither .tif slices nor a Zarr volume: what is read is {READ}"
        raise InputError(msg)
    if not path.is_file():
        msg = f"nothing at {source}: what is read is {READ}"
        raise InputError(msg)
    suffix = path.suffix.lower()
    if suffix in tiff.SUFFIXES:
        return tiff.open_file(path)
    if suffix in hdf5.SUFFIXES:
        return hdf5.open_hdf5(path, dataset)
    if suffix in nrrd.SUFFIXES:
        return nrrd.open_nrrd(path)
    msg = f"{source} is of no kind that is read: {READ}"
    raise InputError(msg)
