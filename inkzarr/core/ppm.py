"""Per-pixel maps (PPM) of Volume Cartographer: an ASCII header, then six float64 a pixel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from inkzarr.core.errors import InputError
from inkzarr.core.png import PngHeader, check_stream, read_header
from inkzarr.core.ppm_points import split_points
from inkzarr.core.whole import whole

Tile = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]

END = b"<>\n"
HEADER_BYTES = 1 << 16
VALUES = 6
MOST = 1 << 31
EXPECTED = {"dim": ("6",), "ordered": ("true",), "type": ("double",), "version": ("1", "1.0")}
UNIT_TOLERANCE = 1e-3
BAND = 1 << 18
GREY = ("1", "L", "I", "I;16")


@dataclass(frozen=True)
class Ppm:
    """A PPM file whose header and size were checked; calling it reads a tile.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    offset : int
        Where the values begin, in bytes.
    shape : tuple of int
        Rows and columns.
    masked : bool
        Whether the mask beside the file, if there is one, narrows what is valid.
    """

    path: Path
    offset: int
    shape: tuple[int, int]
    masked: bool = True

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns of the file."""
        return self.shape

    def __call__(self, rows: slice, cols: slice) -> Tile:
        """Points, normals and validity of a tile, as `inkzarr.core.surface.SurfaceTile` tells them."""
        try:
            with self.path.open("rb", buffering=0) as file:
                pages = mmap(file.fileno(), 0, access=ACCESS_READ)
            stored = np.ndarray((*self.shape, VALUES), "<f8", pages, self.offset)
        except (OSError, ValueError, TypeError) as error:
            msg = f"{self.path} can no longer be read ({error}): was it moved or cut?"
            raise InputError(msg) from error
        values = stored[rows, cols]  # of the file's pages: a copy takes as long as all else
        points, normals = np.empty((*values.shape[:2], 3)), np.empty((*values.shape[:2], 3))
        valid = np.empty(values.shape[:2], np.bool_)
        split_points(values, UNIT_TOLERANCE, points, normals, valid)
        if self.has_mask:
            mask = mask_path(self.path)
            with _decoding:  # else every thread would decode it
                valid &= _cached_mask(mask, mask.stat().st_mtime_ns, self.shape)[rows, cols]
            points[~valid] = normals[~valid] = 0
        return points, normals, valid

    def unmasked(self) -> Ppm:
        """The same without its mask, which would have to be decoded whole."""
        return replace(self, masked=False)

    def mask(self) -> NDArray[np.bool_] | None:
        """The mask, decoded whole; None where there is none."""
        return read_mask(mask_path(self.path), self.shape) if self.has_mask else None

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask that counts."""
        return self.masked and mask_path(self.path).exists()


def mask_path(path: Path) -> Path:
    """Where the mask of a PPM lies, if it has one: ``{stem}_mask.png``."""
    return path.with_name(f"{path.stem}_mask.png")


def open_ppm(path: Path) -> Ppm:
    """Read and check the header; the file's size must be what it says.

    Raises
    ------
    InputError
        A key missing or of a value that is not understood, a size that is absurd or not the file's,
        or a mask of another size.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    size = path.stat().st_size
    # the marker stands on a line of its own; one inside a comment or a value is not the end
    lines, at, closed = [], 0, False
    while not closed and (stop := head.find(b"\n", at)) >= 0:
        line, at = head[at:stop].strip(), stop + 1
        closed = line == END.strip()
        lines.append(line)
    if not closed:
        msg = f"{path} has no line '<>' that ends a PPM header: is it a PPM of Volume Cartographer?"
        raise InputError(msg)
    fields = _fields(path, lines[:-1])
    height, width = (_count(path, fields, key) for key in ("height", "width"))
    for key, allowed in EXPECTED.items():
        value = fields.get(key)
        if value not in allowed:
            told = f"{key}: {value}" if value is not None else f"no line '{key}:'"
            msg = f"{path} has {told}; a surface needs '{key}: {allowed[0]}': write six doubles a pixel"
            raise InputError(msg)
    needed = at + height * width * VALUES * 8
    if size != needed:
        what = (
            "cut short, copy it again"
            if size < needed
            else "longer than its header says, check width and height"
        )
        msg = f"{path} has {size} bytes where {height} x {width} pixels need {needed}: {what}"
        raise InputError(msg)
    if (mask := mask_path(path)).exists():
        _check_mask(mask, (height, width))
    return Ppm(path, at, (height, width))


def _fields(path: Path, lines: list[bytes]) -> dict[str, str]:
    """``key: value`` lines in any order; comments and blank lines are skipped."""
    fields: dict[str, str] = {}
    for line in lines:
        text = line.decode("ascii", "replace").strip()
        if not text or text.startswith("#"):
            continue
        key, colon, value = text.partition(":")
        if not colon:
            msg = f"{path} has the header line {text[:60]!r}: write it as 'key: value', or as a '#' comment"
            raise InputError(msg)
        fields[key.strip().lower()] = value.strip()
    return fields


def _count(path: Path, fields: dict[str, str], key: str) -> int:
    text = fields.get(key, "")
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < MOST):
        told = f"{key}: {text}" if text else f"no line '{key}:'"
        msg = f"{path} has {told}; a PPM needs a whole number from 1 to {MOST - 1} there: check the header"
        raise InputError(msg)
    return int(text)


_decoding = Lock()


@lru_cache(maxsize=1)
def _cached_mask(path: Path, changed: int, shape: tuple[int, int]) -> NDArray[np.bool_]:  # noqa: ARG001
    """The mask of the surface that is read; one written anew is decoded anew."""
    return read_mask(path, shape)


def _check_mask(path: Path, shape: tuple[int, int]) -> PngHeader:
    """Refuse a mask that is no PNG, or of another size, by its header."""
    header = read_header(path)
    if header is None:
        msg = f"mask {path} cannot be read as PNG (it has no header of one): write it again or remove it"
        raise InputError(msg)
    if header.shape != shape:
        msg = (
            f"mask {path} is {header.shape[0]} x {header.shape[1]} pixels but its surface is "
            f"{shape[0]} x {shape[1]}: resize the mask or remove it"
        )
        raise InputError(msg)
    return header


def read_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask image as bool, (rows, columns): true where the image is not 0.

    Parameters
    ----------
    path : pathlib.Path
        A PNG with one channel of 1, 8 or 16 bits, or with colours (true where any is not 0; transparency
        does not count).
    shape : tuple of int
        Rows and columns that it must have; compared before it is unpacked.

    Raises
    ------
    InputError
        No PNG, damaged, cut short, or of another size.
    """
    header = _check_mask(path, shape)
    try:
        check_stream(path, header)
        # not by Image.open: scrolls exceed its limit of 179 million pixels, and the size is checked here
        with PngImageFile(path) as image:
            pixels = np.asarray(image if image.mode in GREY else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        msg = f"mask {path} cannot be read as PNG ({error}): write it again or remove it"
        raise InputError(msg) from error
    mask: NDArray[np.bool_] = np.asarray(pixels != 0 if pixels.ndim == len(shape) else (pixels != 0).any(-1))
    mask.flags.writeable = False
    return mask


def write_ppm(
    path: str | Path,
    points: NDArray[np.floating],
    normals: NDArray[np.floating],
    *,
    valid: NDArray[np.bool_] | None = None,
) -> None:
    """Write a surface that is in memory as PPM.

    Parameters
    ----------
    path : str or pathlib.Path
        Replaced if it exists, once all is written.
    points, normals : numpy.ndarray of float, (rows, columns, 3)
        z, y, x.
    valid : numpy.ndarray of bool, (rows, columns), optional
        Where false, six zeros are written.

    Raises
    ------
    InputError
        Shapes that do not fit each other.
    """
    shape = points.shape[:2]
    if points.ndim != 3 or points.shape[2] != 3 or normals.shape != points.shape:
        told = f"points {points.shape} and normals {normals.shape}"
        msg = f"{told} are no surface: both need the shape (rows, columns, 3)"
        raise InputError(msg)
    mask = np.ones(shape, np.bool_) if valid is None else valid
    step = max(1, BAND // max(1, shape[1]))
    bands = (slice(at, at + step) for at in range(0, shape[0], step))
    write_ppm_bands(path, shape, ((points[band], normals[band], mask[band]) for band in bands))


def write_ppm_bands(
    path: str | Path,
    shape: tuple[int, int],
    bands: Iterable[tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]],
) -> None:
    """Write a surface larger than memory as PPM, a band of whole rows at a time.

    Parameters
    ----------
    path : str or pathlib.Path
        Replaced if it exists, once all is written.
    shape : tuple of int
        Rows and columns of the whole.
    bands : iterable of SurfaceTile
        From the first row to the last, each as wide as the whole.

    Raises
    ------
    InputError
        Bands that do not add up to `shape`, or the disk is full.
    """
    height, width = shape
    if not (0 < height < MOST and 0 < width < MOST):
        msg = f"a surface of {height} x {width} pixels cannot be written: both must be from 1 to {MOST - 1}"
        raise InputError(msg)
    header = f"width: {width}\nheight: {height}\ndim: 6\nordered: true\ntype: double\nversion: 1\n"
    rows = 0
    with whole(Path(path)) as partial:
        with partial.open("wb") as file:
            file.write(header.encode() + END)
            for points, normals, valid in bands:
                if not points.shape == normals.shape == (*valid.shape, 3) or valid.shape[1] != width:
                    told = f"points {points.shape}, normals {normals.shape} and valid {valid.shape}"
                    msg = f"a band of {told} does not fit {height} x {width} pixels: give whole rows"
                    raise InputError(msg)
                values = np.concatenate([points[..., ::-1], normals[..., ::-1]], axis=-1).astype("<f8")
                values[~valid] = 0
                file.write(values.tobytes())
                rows += len(values)
        if rows != height:
            msg = f"{rows} rows were given for a surface of {height} x {width} pixels: the bands must add up"
            raise InputError(msg)
