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
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import tifffile

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.readers.base import MICROMETRES, check_voxels, digest_files, one_voxel_size
from inkzarr.readers.numbering import in_order
from inkzarr.readers.raw import Plane, read_plane

if TYPE_CHECKING:
    import io
    from collections.abc import Sequence

SUFFIXES = (".tif", ".tiff")
SCAN_THREADS = 16
CODED = -1
"""Stands for the offset of voxels that are not stored as they are."""
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
        One strip or tile of the first slice, in voxels.
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
                        coded = coded or _open_tiff(file, path)
                    try:
                        self._read_slice(z, box, file, coded, out[z - box.start.z])
                    except InputError as error:
                        msg = f"slice {_tell(name, z, self.files)} cannot be read: {error}"
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
        headers = list(threads.map(_single_page, paths))
    _check_alike(headers, names)
    told = _volpkg(folder, len(paths)) or _imagej_size(paths[0])
    return _stack(paths, folder.resolve().name, headers, told)


def open_file(path: Path) -> TiffStack:
    """Open one file whose pages, or whose one ImageJ or tifffile series, are the slices.

    Raises
    ------
    InputError
        A page differs from the first, or is cut short or unreadable.
    """
    with path.open("rb", buffering=0) as file:
        tiff = _open_tiff(file, path)
        try:
            headers = _series(tiff, path) or [_header(page, path) for page in tiff.pages]
        except InputError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error
    _check_alike(headers, [path.name])
    return _stack([path], path.name, headers, _imagej_size(path))


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
        Zyx(1, *first.segment),
        {"kind": "tiff", **digest_files(paths)},
        voxel_size_um,
        np.array([header.ifd for header in headers], np.int64),
        np.array([header.raw for header in headers], np.int64),
        np.array([header.big for header in headers], bool),
    )


def _open_tiff(file: BinaryIO, path: Path) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(file, name=path.name)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"slice {path.name!r} is no readable TIFF ({error}): copy it again")


def _single_page(path: Path) -> Header:
    """The header of a slice that has a file of its own."""
    with path.open("rb", buffering=0) as file:
        tiff = _open_tiff(file, path)
        try:
            pages = len(tiff.pages)
            header = _header(tiff.pages[0], path)
        except InputError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error
    if pages != 1:
        msg = f"slice {path.name!r} holds {pages} pages: a slice of a folder holds one; give the file alone"
        raise InputError(msg)
    return header


def _header(page: Any, path: Path) -> Header:  # noqa: ANN401 - TiffPage or TiffFrame
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
    raw = int(page.dataoffsets[0]) if page.is_final and not page.is_tiled else CODED
    if raw != CODED:
        _check_extent(page.parent.filehandle.size, raw + height * width * dtype.itemsize, where)
    return Header(height, width, dtype.name, int(page.offset), raw, page.parent.byteorder == ">", segment)


def _check_segments(page: Any, where: str, expected: int) -> None:  # noqa: ANN401
    starts, counts = np.asarray(page.dataoffsets, np.uint64), np.asarray(page.databytecounts, np.uint64)
    if len(starts) != expected or len(counts) != expected or not (starts.all() and counts.all()):
        msg = f"{where} lists {np.count_nonzero(counts)} strips or tiles, it needs {expected}: copy it again"
        raise InputError(msg)
    _check_extent(page.parent.filehandle.size, int((starts + counts).max()), where)


def _check_extent(held: int, needed: int, where: str) -> None:
    if needed > held:
        msg = f"{where} is cut short: its voxels reach byte {needed}, it ends at {held}; copy it again"
        raise InputError(msg)


def _check_alike(headers: Sequence[Header], files: Sequence[str]) -> None:
    first = headers[0]
    for z, header in enumerate(headers):
        if header[:3] != first[:3]:
            where, start = (_tell(files[n if len(files) > 1 else 0], n, files) for n in (z, 0))
            msg = (
                f"slice {where} is {header.height} x {header.width} {header.dtype}, the first ({start}) "
                f"{first.height} x {first.width} {first.dtype}: all slices of a stack are alike"
            )
            raise InputError(msg)


def _tell(name: str, z: int, files: Sequence[str]) -> str:
    return repr(name) if len(files) > 1 else f"{z} of {name!r}"


def _series(tiff: tifffile.TiffFile, path: Path) -> list[Header]:
    """Slices that lie behind one page's header, as ImageJ and tifffile write them; else none."""
    if tiff.is_imagej:
        axes = {
            name: int((tiff.imagej_metadata or {}).get(name, 1)) for name in ("channels", "slices", "frames")
        }
        if sum(count > 1 for count in axes.values()) > 1:
            told = ", ".join(f"{count} {name}" for name, count in axes.items())
            msg = f"{path.name!r} has {told}: a scan has slices alone; save one channel and frame"
            raise InputError(msg)
    if len(tiff.pages) > 1 or not (tiff.is_imagej or tiff.is_shaped):
        return []
    series = tiff.series[0]
    if series.ndim != 3 or series.dataoffset is None or tiff.pages.first.samplesperpixel != 1:
        return []
    first = _header(tiff.pages.first, path)
    count, height, width = series.shape
    step = height * width * np.dtype(first.dtype).itemsize
    if (height, width) != (first.height, first.width):
        return []
    _check_extent(tiff.filehandle.size, series.dataoffset + count * step, repr(path.name))
    return [first._replace(raw=series.dataoffset + z * step) for z in range(count)]


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


def _imagej_size(path: Path) -> float | None:
    """Edge of a voxel in micrometres where ImageJ wrote it, with its unit."""
    with path.open("rb", buffering=0) as file:
        tiff = _open_tiff(file, path)
        told = (tiff.imagej_metadata if tiff.is_imagej else None) or {}
        unit = MICROMETRES.get(str(told.get("unit", "")).strip().lower())
        tags = tiff.pages.first.tags
        pixels = [tags.valueof(code) for code in (282, 283)]
    if unit is None or not all(pixels) or not all(numerator for numerator, _ in pixels):
        return None
    edges = [unit * denominator / numerator for numerator, denominator in pixels]
    spacing = told.get("spacing")
    return one_voxel_size([*edges, unit * float(spacing)] if spacing else edges)


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
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if slices != count:
        msg = f"meta.json tells {slices} slices, {count} are there: fetch the others, or remove meta.json"
        raise InputError(msg)
    return one_voxel_size([size])
