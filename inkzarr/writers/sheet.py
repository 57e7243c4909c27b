"""Flattened sheets as files: PNG and TIFF of any size, written band by band."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from inkzarr.core.errors import InputError
from inkzarr.core.png import write_png
from inkzarr.core.whole import whole
from inkzarr.writers.tiff import CLASSIC_TIFF_BYTES, resolution

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Bytes = NDArray[np.uint8]

WITH_ALPHA = 3
"""Axes of a band with alpha."""
SHEET_SUFFIXES, STACK_SUFFIXES = (".png", ".tif", ".tiff"), ("", ".tif", ".tiff")
"""Of one sheet, and of its layers; a name without suffix is a folder."""

LAYER = re.compile(r"\d+\.tif")


def refuse_name(out: Path, *, layers: bool) -> None:
    """Refuse a name that says no format, and a folder that holds more than layers.

    Raises
    ------
    InputError
        Where `write_sheet` could not write, or would replace what is not its own.
    """
    if layers and out.suffix.lower() not in STACK_SUFFIXES:
        msg = f"{out} is no name for layers (--reduce none): they are written to a folder or .tif"
        raise InputError(msg)
    if not layers and out.suffix.lower() not in SHEET_SUFFIXES:
        msg = f"{out} names no format of a sheet: use .png or .tif"
        raise InputError(msg)
    # a folder is replaced as a whole, so it must be one of ours
    if out.is_dir() and (out.suffix or any(not LAYER.fullmatch(each.name) for each in out.iterdir())):
        msg = f"{out} is a folder that holds more than layers: choose another name"
        raise InputError(msg)


def write_sheet(
    out: Path, shape: tuple[int, ...], bands: Iterable[Bytes], *, pixel_um: float | None = None
) -> None:
    """Write a sheet or its layers in the format that the name says; it appears only once it is whole.

    Parameters
    ----------
    out : pathlib.Path
        ``.png`` (one page), ``.tif``, or a folder of NN.tif; replaced if it exists.
    shape : tuple of int
        Pages, rows and columns; and 2 where pixels have a grey level and an opacity.
    bands : iterable of numpy.ndarray of uint8, (pages, rows, columns[, 2])
        The same rows of all pages, from the first row to the last.
    pixel_um : float, optional
        Edge of a pixel in micrometres.

    Raises
    ------
    InputError
        The disk is full, or does not let write.
    """
    with whole(out) as partial:
        if not out.suffix:
            write_layers(partial, shape, bands, pixel_um=pixel_um)
        elif out.suffix.lower() == ".png":
            pages, alpha = (band[0] for band in bands), len(shape) > WITH_ALPHA
            write_png(partial, (shape[1], shape[2]), pages, alpha=alpha, pixel_um=pixel_um)
        else:
            write_tiff(partial, shape, bands, pixel_um=pixel_um)


def write_tiff(
    path: Path, shape: tuple[int, ...], bands: Iterable[Bytes], *, pixel_um: float | None = None
) -> None:
    """Write a TIFF of one page or of many, uncompressed, so that other tools can map it into memory.

    Parameters
    ----------
    path : pathlib.Path
        Replaced if it exists.
    shape : tuple of int
        Pages, rows and columns; and 2 where pixels have a grey level and an opacity.
    bands : iterable of numpy.ndarray of uint8, (pages, rows, columns[, 2])
        The same rows of all pages, from the first row to the last.
    pixel_um : float, optional
        Edge of a pixel in micrometres.
    """
    offset = _begin_tiff(path, shape, pixel_um)
    with path.open("r+b") as file:
        page = math.prod(shape[1:])
        _fill([(file, offset + number * page) for number in range(shape[0])], bands)


def write_layers(
    folder: Path, shape: tuple[int, ...], bands: Iterable[Bytes], *, pixel_um: float | None = None
) -> None:
    """Write each page as ``folder/NN.tif``, from 00 on; as `write_tiff`."""
    folder.mkdir()
    digits = max(2, len(str(shape[0] - 1)))
    with contextlib.ExitStack() as stack:
        places = []
        for number in range(shape[0]):
            path = folder / f"{number:0{digits}}.tif"
            offset = _begin_tiff(path, (1, *shape[1:]), pixel_um)
            places.append((stack.enter_context(path.open("r+b")), offset))
        _fill(places, bands)


def _begin_tiff(path: Path, shape: tuple[int, ...], pixel_um: float | None) -> int:
    """Write all but the pixels, which lie one after the other; where they begin, in bytes."""
    found: Any = tifffile.imwrite(
        path,
        shape=shape,
        dtype=np.uint8,
        bigtiff=math.prod(shape) > CLASSIC_TIFF_BYTES,
        photometric="minisblack",
        planarconfig="contig" if len(shape) > WITH_ALPHA else None,
        extrasamples=["unassalpha"] if len(shape) > WITH_ALPHA else None,
        metadata=None,
        returnoffset=True,
        **({} if pixel_um is None else resolution(pixel_um, pixel_um)),
    )
    return int(found[0])


def _fill(pages: Sequence[tuple[BinaryIO, int]], bands: Iterable[Bytes]) -> None:
    done = 0
    for band in bands:
        for (file, offset), part in zip(pages, band, strict=True):
            file.seek(offset + done)
            file.write(np.ascontiguousarray(part).data)
        done += band[0].size
