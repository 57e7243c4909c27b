"""TIFF: a folder of slices, or one file of pages; only the strips and tiles that a box touches are decoded.

Every header is read and checked before the first voxel: a stack with a slice missing, cut short or
of another kind is refused as a whole.
"""

from __future__ import annotations

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.readers.base import digest_files, one_voxel_size
from inkzarr.readers.numbering import in_order
from inkzarr.readers.raw import Plane, read_plane
from inkzarr.readers.tiff_headers import (
    CODED,
    Header,
    check_alike,
    check_chain,
    imagej_size,
    open_tiff,
    page_header,
    series_headers,
    single_page,
    tell_slice,
    unreadable,
)

if TYPE_CHECKING:
    import io

SUFFIXES = (".tif", ".tiff")
SCAN_THREADS = 16


@dataclass(frozen=True)
class TiffStack:
    """Slices in TIFF files.

    Parameters
    ----------
    folder : Path
        Where the files lie.
    files : tuple of str
        Names: a file a slice, or one file that holds all.
    name : str
        Of the folder or file.
    shape : Zyx
        In voxels.
    dtype : numpy.dtype
        Of one voxel.
    block : Zyx
        One strip or tile of the first slice, or a row where voxels are stored as they are, in voxels.
    identity : dict
        Names and byte sizes.
    voxel_size_um : float or None
        Where ImageJ, or the ``meta.json`` of a volpkg beside the slices, tells it.
    ifds, raw, big : numpy.ndarray
        Of each slice, int64, int64 and bool: see `Header`.
    """

    folder: Path
    files: tuple[str, ...] = field(repr=False)
    name: str
    shape: Zyx
    dtype: np.dtype[Any]
    block: Zyx
    identity: dict[str, Any]
    voxel_size_um: float | None
    ifds: np.ndarray = field(repr=False)
    raw: np.ndarray = field(repr=False)
    big: np.ndarray = field(repr=False)

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, contiguous.

        Raises
        ------
        InputError
            A slice is cut short or does not decode; it is named.
        """
        out = np.empty(box.shape, self.dtype)
        slices = range(box.start.z, box.stop.z)
        for name, numbers in itertools.groupby(
            slices, key=lambda z: self.files[z if len(self.files) > 1 else 0]
        ):
            path = self.folder / name
            with path.open("rb", buffering=0) as file:
                coded = None
                for z in numbers:
                    if self.raw[z] == CODED:
                        coded = coded or open_tiff(file, path)
                    try:
                        self._read_slice(z, box, file, coded, out[z - box.start.z])
                    except InputError as error:
                        msg = f"slice {tell_slice(name, z, self.files)} cannot be read: {error}"
                        raise InputError(msg) from error
        return out

    def _read_slice(
        self, z: int, box: Box, file: io.FileIO, coded: tifffile.TiffFile | None, out: np.ndarray
    ) -> None:
        _, rows, columns = box.slices
        if coded is not None and self.raw[z] == CODED:
            _read_coded(_page(coded, int(self.ifds[z])), rows, columns, out)
            return
        stored = self.dtype.newbyteorder(">" if self.big[z] else "<")
        read_plane(file, Plane(int(self.raw[z]), self.shape.x, stored), rows, columns, out)


def open_folder(folder: Path) -> TiffStack:
    """Open a folder of slices, ordered by the number in their names.

    Parameters
    ----------
    folder : Path
        Its ``.tif`` and ``.tiff`` files are the slices; others are ignored.

    Returns
    -------
    TiffStack
        All headers are checked.

    Raises
    ------
    InputError
        A slice is missing, there twice, of another size or dtype, cut short or unreadable.
    """
    names = in_order([path.name for path in tiff_names(folder)])
    paths = [folder / name for name in names]
    with ThreadPoolExecutor(min(SCAN_THREADS, 4 * (os.cpu_count() or 1))) as threads:
        headers = list(threads.map(single_page, paths))
    check_alike(headers, names)
    told = _volpkg(folder, len(paths)) or imagej_size(paths[0])
    return _stack(paths, folder.resolve().name, headers, told)


def open_file(path: Path) -> TiffStack:
    """Open one file whose pages, or whose one ImageJ or tifffile series, are the slices.

    Raises
    ------
    InputError
        A page differs from the first, or is cut short or unreadable.
    """
    with path.open("rb", buffering=0) as file:
        tiff = open_tiff(file, path)
        try:
            check_chain(tiff, path)
            headers = series_headers(tiff, path) or [page_header(page, path) for page in tiff.pages]
        except InputError:
            raise
        except Exception as error:
            raise unreadable(path, error) from error
    check_alike(headers, [path.name])
    return _stack([path], path.name, headers, imagej_size(path))


def tiff_names(folder: Path) -> list[Path]:
    """The slices in a folder, in no order; hidden files are none."""
    return [
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]


def _stack(paths: list[Path], name: str, headers: list[Header], voxel_size_um: float | None) -> TiffStack:
    first = headers[0]
    return TiffStack(
        paths[0].parent,
        tuple(path.name for path in paths),
        name,
        Zyx(len(headers), first.height, first.width),
        np.dtype(first.dtype),
        Zyx(1, *first.segment) if first.raw == CODED else Zyx(1, 1, first.width),
        {"kind": "tiff", **digest_files(paths)},
        voxel_size_um,
        np.array([header.ifd for header in headers], np.int64),
        np.array([header.raw for header in headers], np.int64),
        np.array([header.big for header in headers], bool),
    )


def _page(tiff: tifffile.TiffFile, ifd: int) -> tifffile.TiffPage:
    """The page whose directory stands at `ifd`."""
    first = tiff.pages.first
    if first.offset == ifd:
        return first
    tiff.filehandle.seek(ifd)
    return tifffile.TiffPage(tiff, index=1)


def _read_coded(page: tifffile.TiffPage, rows: slice, columns: slice, out: np.ndarray) -> None:
    """Decode the strips or tiles that a rectangle touches, one at a time."""
    height, width = page.chunks
    across = -(-page.imagewidth // width)
    file = page.parent.filehandle
    for row in range(rows.start // height, -(-rows.stop // height)):
        for column in range(columns.start // width, -(-columns.stop // width)):
            index = row * across + column
            file.seek(page.dataoffsets[index])
            data = file.read(page.databytecounts[index])
            segment = _decode(page, data, index)
            top, left = row * height, column * width
            low, high = max(rows.start, top), min(rows.stop, top + height)
            start, stop = max(columns.start, left), min(columns.stop, left + width)
            wanted = segment[low - top : high - top, start - left : stop - left]
            place = out[low - rows.start : high - rows.start, start - columns.start : stop - columns.start]
            if wanted.shape != place.shape:
                msg = f"strip or tile {index} decodes to {segment.shape}, too small: copy it again"
                raise InputError(msg)
            place[:] = wanted


def _decode(page: tifffile.TiffPage, data: bytes, index: int) -> np.ndarray:
    """Rows and columns of one strip or tile."""
    try:
        decoded = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        return np.asarray(decoded)[0, :, :, 0]
    except Exception as error:
        msg = f"strip or tile {index} does not decode ({error}): copy it again"
        raise InputError(msg) from error


def _volpkg(folder: Path, count: int) -> float | None:
    """Edge of a voxel in micrometres, from the ``meta.json`` that a volpkg keeps beside its slices.

    Raises
    ------
    InputError
        It tells another number of slices.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        slices, size = int(meta["slices"]), float(meta["voxelsize"])
    except (OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return None
    if slices != count:
        msg = f"meta.json tells {slices} slices, {count} are there: fetch the others, or remove meta.json"
        raise InputError(msg)
    return one_voxel_size([size])
