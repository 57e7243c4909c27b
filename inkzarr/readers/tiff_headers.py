"""TIFF headers: what reading a slice needs, and what makes a stack unusable."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import tifffile

from inkzarr.core.errors import InputError
from inkzarr.readers.base import MICROMETRES, check_voxels, one_voxel_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CODED = -1
"""Stands for the offset of voxels that are not stored as they are."""
LARGEST_TILE, LARGEST_SEGMENT = 2**24, 2**30
"""Pixels that a tile may have whatever the image, and that any strip or tile may have."""
GREY = (0, 1)
"""Photometric interpretations without colour; stored values are taken as they are in both."""


class Header(NamedTuple):
    """What a page's header says.

    Parameters
    ----------
    height, width : int
        In voxels.
    dtype : str
        Name of the voxels' dtype.
    ifd : int
        Byte offset of the page's directory.
    raw : int
        Byte offset of the voxels where they are stored as they are, else `CODED`.
    big : bool
        Whether the file is big-endian.
    segment : tuple of int
        Rows and columns of a strip or tile.
    """

    height: int
    width: int
    dtype: str
    ifd: int
    raw: int
    big: bool
    segment: tuple[int, int]


def open_tiff(file: BinaryIO, path: Path) -> tifffile.TiffFile:
    """Read a file's first header.

    Raises
    ------
    InputError
        It is no TIFF.
    """
    try:
        return tifffile.TiffFile(file, name=path.name)
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> InputError:
    """What to say of a file that tifffile cannot read."""
    return InputError(f"slice {path.name!r} is no readable TIFF ({error}): copy it again")


def single_page(path: Path) -> Header:
    """The header of a slice that has a file of its own."""
    with path.open("rb", buffering=0) as file:
        tiff = open_tiff(file, path)
        try:
            header, told = page_header(tiff.pages[0], path), _planes_told(tiff)
            there = told * tiff.pages.first.nbytes <= tiff.filehandle.size
            pages = max(len(tiff.pages), told if there else 1)
        except InputError:
            raise
        except Exception as error:
            raise unreadable(path, error) from error
    if pages != 1:
        msg = f"slice {path.name!r} holds {pages} slices: a slice of a folder holds one; give the file alone"
        raise InputError(msg)
    return header


def page_header(page: Any, path: Path) -> Header:  # noqa: ANN401 - TiffPage or TiffFrame
    """Check one page and keep what reading it needs.

    Raises
    ------
    InputError
        Colours, an unusable dtype, or voxels past the file's end.
    """
    where = f"slice {path.name!r}" if page.index == 0 else f"page {page.index} of {path.name!r}"
    page = page.aspage()
    if page.samplesperpixel != 1 or page.photometric not in GREY:
        msg = f"{where} is a colour image ({page.samplesperpixel} samples a pixel): convert it to grey first"
        raise InputError(msg)
    if page.dtype is None or page.bitspersample not in (8, 16, 32, 64):
        msg = f"{where} holds voxels of {page.bitspersample} bits: convert it to uint8 or uint16 first"
        raise InputError(msg)
    dtype = check_voxels(page.dtype, where)
    if page.ndim != 2:
        msg = f"{where} is an image of {page.ndim} axes {page.shape}: a slice has two, rows and columns"
        raise InputError(msg)
    height, width = page.shape
    segment = (min(page.chunks[0], height), min(page.chunks[1], width))
    _check_segments(page, where, -(-height // page.chunks[0]) * -(-width // page.chunks[1]))
    _check_segment(page.chunks[0] * page.chunks[1], height * width, where)
    raw = int(page.dataoffsets[0]) if page.is_final and not page.is_tiled else CODED
    if raw != CODED:
        _check_extent(page.parent.filehandle.size, raw + height * width * dtype.itemsize, where)
    return Header(height, width, dtype.name, int(page.offset), raw, page.parent.byteorder == ">", segment)


def check_chain(tiff: tifffile.TiffFile, path: Path) -> None:
    """Refuse a file whose chain of pages leads past its end; the pages found would pass for all.

    Raises
    ------
    InputError
        Naming the last page found.
    """
    file, layout = tiff.filehandle, tiff.tiff
    count = len(tiff.pages)
    start = tiff.pages[count - 1].offset
    file.seek(start)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(start + layout.tagnosize + tags * layout.tagsize)
    following = file.read(layout.offsetsize)
    if following != bytes(layout.offsetsize):
        msg = f"{path.name!r} breaks off after page {count - 1}: copy it again"
        raise InputError(msg)


def series_headers(tiff: tifffile.TiffFile, path: Path) -> list[Header]:
    """Slices that lie behind one page's header, as ImageJ and tifffile write them; else none."""
    if tiff.is_imagej:
        axes = {
            name: int((tiff.imagej_metadata or {}).get(name, 1)) for name in ("channels", "slices", "frames")
        }
        if sum(count > 1 for count in axes.values()) > 1:
            told = ", ".join(f"{count} {name}" for name, count in axes.items())
            msg = f"{path.name!r} has {told}: a scan has slices alone; save one channel and frame"
            raise InputError(msg)
    planes = _planes_told(tiff)
    if (tiff.is_ome or tiff.is_shaped) and max(planes, len(tiff.pages)) > 1:
        shape = list(tiff.series[0].shape)
        while shape[-1] == 1:
            shape.pop()
        leading = shape[: -tiff.pages.first.ndim]
        if sum(n > 1 for n in leading) > 1:
            told = " x ".join(map(str, leading))
            msg = f"{path.name!r} has {told} planes: a scan has one axis of slices; save one channel and time"
            raise InputError(msg)
    if len(tiff.pages) > 1 or planes == 1:
        return []
    series = tiff.series[0]
    if series.size != planes * tiff.pages.first.size or series.dataoffset is None:
        msg = f"{path.name!r} tells of {planes} slices behind one header, not all are there: copy it again"
        raise InputError(msg)
    first = page_header(tiff.pages.first, path)
    step = first.height * first.width * np.dtype(first.dtype).itemsize
    _check_extent(tiff.filehandle.size, series.dataoffset + planes * step, repr(path.name))
    return [first._replace(raw=series.dataoffset + z * step) for z in range(planes)]


def _planes_told(tiff: tifffile.TiffFile) -> int:
    """How many slices ImageJ's or tifffile's note in the first header tells of; 1 where there is none."""
    if tiff.is_imagej:
        return int((tiff.imagej_metadata or {}).get("images", 1))
    if tiff.is_shaped:
        shape = (tiff.shaped_metadata or ({},))[0].get("shape", ())
        return int(math.prod(shape)) // max(1, int(tiff.pages.first.size))
    return 1


def check_alike(headers: Sequence[Header], files: Sequence[str]) -> None:
    """Refuse a stack of which a slice differs from the first in size or dtype.

    Raises
    ------
    InputError
        Naming both slices.
    """
    first = headers[0]
    for z, header in enumerate(headers):
        if header[:3] != first[:3]:
            where, start = (tell_slice(files[n if len(files) > 1 else 0], n, files) for n in (z, 0))
            msg = (
                f"slice {where} is {header.height} x {header.width} {header.dtype}, the first ({start}) "
                f"{first.height} x {first.width} {first.dtype}: all slices of a stack are alike"
            )
            raise InputError(msg)


def imagej_size(path: Path) -> float | None:
    """Edge of a voxel in micrometres where ImageJ wrote it, with its unit."""
    with path.open("rb", buffering=0) as file:
        tiff = open_tiff(file, path)
        told = (tiff.imagej_metadata if tiff.is_imagej else None) or {}
        unit = MICROMETRES.get(str(told.get("unit", "")).strip().lower())
        tags = tiff.pages.first.tags
        pixels = [tags.valueof(code) for code in (282, 283)]
    if unit is None or not all(pixels) or not all(numerator for numerator, _ in pixels):
        return None
    edges = [unit * denominator / numerator for numerator, denominator in pixels]
    spacing = told.get("spacing")
    return one_voxel_size([*edges, unit * float(spacing)] if spacing else edges)


def tell_slice(name: str, z: int, files: Sequence[str]) -> str:
    """A slice as messages name it: its file, or its place in the one file."""
    return repr(name) if len(files) > 1 else f"{z} of {name!r}"


def _check_segments(page: Any, where: str, expected: int) -> None:  # noqa: ANN401
    starts, counts = np.asarray(page.dataoffsets, np.uint64), np.asarray(page.databytecounts, np.uint64)
    if len(starts) != expected or len(counts) != expected or not (starts.all() and counts.all()):
        msg = f"{where} lists {np.count_nonzero(counts)} strips or tiles, it needs {expected}: copy it again"
        raise InputError(msg)
    _check_extent(page.parent.filehandle.size, int((starts + counts).max()), where)


def _check_segment(area: int, image: int, where: str) -> None:
    """Refuse strips and tiles of which one alone would fill the memory when it is decoded."""
    if area > max(LARGEST_TILE, min(image, LARGEST_SEGMENT)):
        msg = f"{where} has strips or tiles of {area} pixels, the image {image}: save it with smaller ones"
        raise InputError(msg)


def _check_extent(held: int, needed: int, where: str) -> None:
    if needed > held:
        msg = f"{where} is cut short: its voxels reach byte {needed}, it ends at {held}; copy it again"
        raise InputError(msg)
