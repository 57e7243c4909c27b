"""Flattened sheets: 8-bit grey PNG or TIFF, with or without alpha."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from inkzarr.core.errors import InputError
from inkzarr.core.png import check_stream, read_header

SUFFIXES = (".png", ".tif", ".tiff")
GREY = ((8, 0), (8, 4))
"""Bits and colour type of a PNG in grey, without and with alpha."""
MOST = 1 << 31
"""Pixels; a sheet is read as a whole."""


def read_sheet(path: str | Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Read a sheet that `flatten` or another tool wrote.

    Returns
    -------
    numpy.ndarray of uint8, (rows, columns)
        255 times the probability of ink.
    numpy.ndarray of bool, (rows, columns), or None
        Where it is not transparent; None where it has no alpha.

    Raises
    ------
    InputError
        Missing, damaged, or not 8-bit grey.
    """
    where = Path(path)
    if not where.is_file():
        msg = f"sheet {where} does not exist: write it with inkzarr flatten"
        raise InputError(msg)
    pixels = _read_png(where) if where.suffix.lower() == ".png" else _read_tiff(where)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 2)):
        told = f"{pixels.dtype} of shape {pixels.shape}"
        msg = f"sheet {where} holds {told}: give one page of 8-bit grey, with or without alpha"
        raise InputError(msg)
    if pixels.ndim == 2:
        return pixels, None
    return np.ascontiguousarray(pixels[..., 0]), pixels[..., 1] > 0


def _read_png(path: Path) -> NDArray[Any]:
    try:
        header = read_header(path)
        if header is None or (header.bits, header.colour) not in GREY:
            msg = "it is not of 8-bit grey, with or without alpha"
            raise ValueError(msg)
        _check_count(header.shape)
        check_stream(path, header)
        # not by Image.open: scrolls exceed its limit of 179 million pixels
        with PngImageFile(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error) as error:
        msg = f"sheet {path} cannot be read as PNG ({error}): write it again"
        raise InputError(msg) from error


def _check_count(shape: tuple[int, int]) -> None:
    if shape[0] * shape[1] > MOST:
        msg = f"it has {shape[0]} x {shape[1]} pixels, more than {MOST}"
        raise ValueError(msg)


def _read_tiff(path: Path) -> NDArray[Any]:
    try:
        with tifffile.TiffFile(path) as tif:
            if len(tif.pages) != 1:
                msg = f"it has {len(tif.pages)} pages"
                raise ValueError(msg)
            page: Any = tif.pages[0]
            if page.dtype != np.uint8 or page.samplesperpixel not in (1, 2):
                msg = f"it holds {page.samplesperpixel} x {page.dtype} a pixel, not 8-bit grey"
                raise ValueError(msg)
            _check_count((page.imagelength, page.imagewidth))
            return np.asarray(page.asarray())
    # codecs raise errors of their own kinds; every one of them means that the file is damaged
    except Exception as error:
        msg = f"sheet {path} cannot be read as TIFF of one page ({error}): write it again"
        raise InputError(msg) from error
