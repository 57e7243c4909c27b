"""Label PNGs: the header first, the pixels once the size is known to be right; one rule a kind of pixel."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from inkzarr.core.errors import InputError
from inkzarr.core.png import PngHeader, check_stream, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEEP = 16
LARGEST_BYTE = 255
PADDING = 256
"""Labels are padded up to a multiple of this."""
BAND = 1 << 22
"""Pixels of colours that are made grey at once."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class LabelPng:
    """A label whose header was read.

    Values are told by these rules: 8 bit grey as it is; 1, 2 and 4 bit spread over 0..255; of colours
    and palettes the largest of red, green and blue, times the opacity, rounded half up; 16 bit divided
    by 257, rounded half up, and refused where it holds nothing above 255, since that is 8 bit data.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    header : PngHeader
        What it says of itself.
    """

    path: Path
    header: PngHeader

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.header.shape

    def check_size(self, surface: tuple[int, int], least: tuple[int, int]) -> None:
        """Refuse a label that is not as large as its surface, or larger by less than the padding.

        Parameters
        ----------
        surface : tuple of int
            Rows and columns of the surface.
        least : tuple of int
            Rows and columns of which none can be missing; the surface's, or those up to the last grid
            point of a coarse surface, past which no pixel has a place.

        Raises
        ------
        InputError
            Smaller, or larger by 256 or more.
        """
        if all(m <= n < s + PADDING for n, s, m in zip(self.shape, surface, least, strict=True)):
            return
        msg = (
            f"label {self.path} is {self.shape[0]} x {self.shape[1]} pixels but its surface is "
            f"{surface[0]} x {surface[1]}: it may be larger by less than {PADDING} on each side, not smaller "
            f"than {max(1, least[0])} x {max(1, least[1])}"
        )
        raise InputError(msg)

    def read(self, shape: tuple[int, int]) -> Bytes:
        """The values of the first rows and columns, uint8; check the size first.

        Raises
        ------
        InputError
            Damaged, cut short, or 16 bit that is not.
        """
        return self._decode(self._values)[: shape[0], : shape[1]]

    def nonzero(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Where a mask's first rows and columns are not 0, however small, nor transparent; as `read`."""
        return self._decode(self._nonzero)[: shape[0], : shape[1]]

    def _decode(self, made_of: Callable[[PngImageFile], NDArray[Any]]) -> NDArray[Any]:
        try:
            check_stream(self.path, self.header)
            # not by Image.open: scrolls exceed its limit of 179 million pixels, and the size is checked
            with PngImageFile(self.path) as image:
                if image.size[::-1] != self.shape:
                    msg = "its size changed"
                    raise ValueError(msg)
                image.load()
                return made_of(image)
        except (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error) as error:
            msg = f"label {self.path} cannot be read as PNG ({error}): save it again"
            raise InputError(msg) from error

    def _plain(self, image: PngImageFile) -> bool:
        return self.header.colour == 0 and "transparency" not in image.info

    def _nonzero(self, image: PngImageFile) -> NDArray[np.bool_]:
        if self._plain(image):
            return np.asarray(np.asarray(image) != 0)
        some = np.empty(self.shape, np.bool_)
        for rows, part in self._bands(image):
            some[rows] = part[..., :3].any(-1) & (part[..., 3] > 0)
        return some

    def _values(self, image: PngImageFile) -> Bytes:
        if self.header.bits == DEEP:
            return self._scaled(np.asarray(image))
        if self._plain(image):
            return np.asarray(image if image.mode == "L" else image.convert("L"))
        values = np.empty(self.shape, np.uint8)
        for rows, part in self._bands(image):
            opaque = part[..., :3].max(-1).astype(np.uint16) * part[..., 3]
            values[rows] = (2 * opaque.astype(np.uint32) + LARGEST_BYTE) // (2 * LARGEST_BYTE)
        return values

    def _bands(self, image: PngImageFile) -> Iterator[tuple[slice, Bytes]]:
        """Red, green, blue and opacity of some rows at a time."""
        step = max(1, BAND // self.shape[1])
        for top in range(0, self.shape[0], step):
            rows = slice(top, min(top + step, self.shape[0]))
            yield rows, np.asarray(image.crop((0, top, self.shape[1], rows.stop)).convert("RGBA"))

    def _scaled(self, deep: NDArray[np.integer]) -> Bytes:
        if 0 < deep.max(initial=0) <= LARGEST_BYTE:
            msg = f"label {self.path} has 16 bits a pixel but no value above 255: save it as 8 bit"
            raise InputError(msg)
        values = np.empty(deep.shape, np.uint8)
        rows = max(1, BAND // deep.shape[1])
        for top in range(0, deep.shape[0], rows):
            values[top : top + rows] = (deep[top : top + rows].astype(np.uint32) + 128) // 257
        return values


def open_label(path: str | Path) -> LabelPng:
    """Read a label's header, and nothing else.

    Raises
    ------
    InputError
        Missing, or no PNG.
    """
    where = Path(path)
    if not where.is_file():
        msg = f"label {where} does not exist: give the PNG that ink is painted on"
        raise InputError(msg)
    header = read_header(where)
    if header is None:
        msg = f"label {where} is no PNG: save the painted layer as PNG, 8 bit grey"
        raise InputError(msg)
    if header.bits == DEEP and header.colour != 0:
        msg = f"label {where} has 16 bits a colour, of which half would be lost: save it as grey"
        raise InputError(msg)
    return LabelPng(where, header)
