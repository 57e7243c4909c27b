"""Pictures of slices: contrast, PNG, and contact sheets."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from inkzarr.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

LOW_PERCENT, HIGH_PERCENT = 1.0, 99.0
FAR = 1e300
"""Beyond, differences of floats overflow."""
GREY, COLOUR = 2, 3
PADDING = 8
FONT_SIZE = 13
BACKGROUND, INK = 255, 0


def stretch(plane: np.ndarray) -> np.ndarray:
    """Whole numbers or floats as grey levels, so that the 1st to the 99th percentile fill the range.

    Voxels of 0 are air or unwritten and do not count; a voxel that is not finite is black.

    Parameters
    ----------
    plane : numpy.ndarray
        Y, X.

    Returns
    -------
    numpy.ndarray
        uint8, same shape.

    Examples
    --------
    >>> stretch(np.array([[0, 100], [200, 300]], "uint16"))
    array([[  0,   0],
           [128, 255]], dtype=uint8)
    """
    found = contrast(plane)
    if found is None:
        return np.zeros(plane.shape, np.uint8)
    low, high = found
    if low == high:
        low, high = min(0.0, low), max(0.0, high)
    finite = np.isfinite(plane)
    values = np.where(finite, plane, low).astype(np.float64).clip(low, high)
    grey: np.ndarray = np.floor(255 * ((values - low) / (high - low)) + 0.5).astype(np.uint8)
    return grey


def contrast(voxels: np.ndarray) -> tuple[float, float] | None:
    """The 1st and the 99th percentile of voxels that are finite and not 0; None where there are none.

    Examples
    --------
    >>> contrast(np.array([0, 10, 10, 10], "uint8")), contrast(np.zeros(3))
    ((10.0, 10.0), None)
    """
    known = voxels[np.isfinite(voxels) & (voxels != 0)].astype(np.float64).clip(-FAR, FAR)
    if not known.size:
        return None
    low, high = np.percentile(known, [LOW_PERCENT, HIGH_PERCENT])
    return float(low), float(high)


def share(ink: np.ndarray) -> np.ndarray:
    """How sure a prediction is, 0 to 1: whole numbers run to their dtype's largest, floats to 1.

    Examples
    --------
    >>> share(np.array([0, 51, 255], "uint8")), share(np.array([-1, np.nan, 0.5]))
    (array([0. , 0.2, 1. ], dtype=float32), array([0. , 0. , 0.5], dtype=float32))
    """
    most = np.iinfo(ink.dtype).max if ink.dtype.kind in "ui" else 1
    sure: np.ndarray = np.nan_to_num(ink.astype(np.float32) / most).clip(0, 1)
    return sure


def png(plane: np.ndarray, *, shrink: int = 1) -> bytes:
    """A PNG file.

    Parameters
    ----------
    plane : numpy.ndarray
        uint8: Y, X (grey) or Y, X, 3 (red, green, blue).
    shrink : int
        Average squares of so many pixels to one.
    """
    file = io.BytesIO()
    _image(plane).reduce(shrink).save(file, format="PNG", optimize=True)
    return file.getvalue()


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[Sequence[str]]) -> Image.Image:
    """Pictures side by side, row under row, each above its caption.

    ::

        +-------+  +-------+
        |  0,0  |  |  0,1  |     every column as wide as its widest picture,
        +-------+  +-------+     every row as high as its highest
        caption    caption

    Parameters
    ----------
    rows : list of lists of numpy.ndarray
        Each Y, X or Y, X, 3; uint8 is shown as it is, anything else is stretched first.
    captions : list of lists of str
        One a picture, in ASCII (Pillow's font has no more); cut where it is wider than its column.

    Returns
    -------
    PIL.Image.Image
        Mode RGB.

    Raises
    ------
    InputError
        No picture, or not one caption a picture.
    """
    if [len(row) for row in rows] != [len(row) for row in captions] or not any(map(len, rows)):
        counts = f"{[len(row) for row in rows]} pictures and {[len(row) for row in captions]} captions"
        msg = f"{counts} make no contact sheet: give rows of pictures, and one caption each"
        raise InputError(msg)
    images = [[_image(plane if plane.dtype == np.uint8 else stretch(plane)) for plane in row] for row in rows]
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + PADDING
    columns = range(max(map(len, images)))
    widths = [max((row[i].width for row in images if i < len(row)), default=0) for i in columns]
    heights = [max((image.height for image in row), default=0) for row in images]
    whole = (sum(widths) + PADDING * (len(widths) + 1), sum(heights) + (line + PADDING) * len(rows) + PADDING)
    sheet = Image.new("RGB", whole, (BACKGROUND,) * COLOUR)
    draw = ImageDraw.Draw(sheet)
    top = PADDING
    for pictures, texts, height in zip(images, captions, heights, strict=True):
        left = PADDING
        for picture, text, width in zip(pictures, texts, widths, strict=False):
            sheet.paste(picture.convert("RGB"), (left, top))
            draw.text((left, top + height + 2), _cut(text, font, width), fill=(INK,) * COLOUR, font=font)
            left += width + PADDING
        top += height + line + PADDING
    return sheet


def _image(plane: np.ndarray) -> Image.Image:
    if plane.dtype != np.uint8 or not (
        plane.ndim == GREY or (plane.ndim == COLOUR and plane.shape[2] == COLOUR)
    ):
        msg = f"an array of {plane.shape} {plane.dtype} is no picture: give uint8, Y X or Y X 3"
        raise InputError(msg)
    return Image.fromarray(np.ascontiguousarray(plane))


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of the first line of `text` as is at most `width` pixels wide."""
    line = text.splitlines()[0] if text else ""
    while line and font.getlength(line) > width:
        line = line[:-1]
    return line
