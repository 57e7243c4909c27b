"""Real letters as a pattern of ink on the sheet."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from inkzarr.core.errors import InputError

LATIN = str.maketrans("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX")  # noqa: RUF001
LINE = 1.5
CAPITAL = 0.69


@lru_cache(maxsize=8)
def page(text: tuple[str, ...], height: int) -> NDArray[np.bool_]:
    """Lines of text drawn as ink, with a space between lines; repeated it covers any sheet.

    Parameters
    ----------
    text : tuple of str
        One line each. Greek capitals that look Latin are drawn as Latin ones, because the font that
        comes with Pillow has no Greek.
    height : int
        Of a capital, in voxels.

    Returns
    -------
    numpy.ndarray of bool, (rows, columns)
        True where there is ink, one voxel a pixel; read-only.

    Raises
    ------
    InputError
        No text, or a letter that the font does not have.
    """
    font = ImageFont.load_default(size=height / CAPITAL)
    if not isinstance(font, ImageFont.FreeTypeFont):
        msg = "Pillow was built without FreeType and cannot draw letters: install Pillow from its wheels"
        raise InputError(msg)
    lines = [line.translate(LATIN).rstrip() for line in text]
    letters = sorted(set("".join(lines)) - {" "})
    if not letters:
        msg = f"text {text!r} has no letters to write: give at least one"
        raise InputError(msg)
    unknown = bytes(font.getmask("\uffff"))
    missing = [letter for letter in letters if bytes(font.getmask(letter)) == unknown]
    if missing:
        msg = f"letters {''.join(missing)!r} are not in Pillow's font: use letters that Latin has too"
        raise InputError(msg)
    gap, step = round(height * 0.8), round(height * LINE)
    columns = max(int(font.getlength(line)) for line in lines) + gap
    image = Image.new("L", (columns, step * len(lines)))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        base = number * step + (step + height) // 2
        draw.text((gap // 2, base), line, fill=255, font=font, anchor="ls", stroke_width=height / 28)
    ink = np.asarray(image) >= 128
    ink.flags.writeable = False
    return ink


def ink_at(ink: NDArray[np.bool_], row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether places of the sheet carry ink: `ink` repeated in both directions.

    Examples
    --------
    >>> ink_at(np.eye(2, dtype=bool), np.array([0, 3]), np.array([2, 2]))
    array([ True, False])
    """
    found: NDArray[np.bool_] = ink[row % ink.shape[0], column % ink.shape[1]]
    return found
