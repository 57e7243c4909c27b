"""PNG: what a file says before it is unpacked, whether all its pixels are there; and how one is written."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">8sI4sIIBBBBB")
CHUNK = struct.Struct(">I4s")
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of each colour type, as PNG numbers them: grey, RGB, palette, grey with alpha, RGBA."""
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Of an interlaced image: first row and column, and the steps between them."""
PIECE = 1 << 20
GREY, GREY_ALPHA = 0, 4
"""Colour types of what is written."""
UM_PER_M = 1e6


@dataclass(frozen=True)
class PngHeader:
    """The header of a PNG.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns.
    bits : int
        A channel.
    colour : int
        Colour type, see `CHANNELS`.
    interlaced : bool
        Whether the pixels come in seven passes.
    """

    shape: tuple[int, int]
    bits: int
    colour: int
    interlaced: bool

    @property
    def stream_bytes(self) -> int:
        """Of all pixels, once unpacked: each row of each pass is preceded by the number of its filter."""
        total = 0
        for row, col, down, right in PASSES if self.interlaced else ((0, 0, 1, 1),):
            rows, cols = -(-(self.shape[0] - row) // down), -(-(self.shape[1] - col) // right)
            if rows > 0 and cols > 0:
                total += rows * (1 + -(-cols * self.bits * CHANNELS[self.colour] // 8))
        return total

    @property
    def unpacked_bytes(self) -> int:
        """Memory that reading takes at its peak: the image as Pillow holds it, and its values."""
        held = self.bits // 8 if self.bits > 8 else 1
        pixel = 2 * held if self.colour == 0 else 5
        return self.shape[0] * self.shape[1] * pixel


def read_header(path: Path) -> PngHeader | None:
    """The header, and nothing else; None where the file is no PNG."""
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        return None
    signature, _, name, width, height, bits, colour, _, _, interlaced = HEADER.unpack(head)
    if signature != SIGNATURE or name != b"IHDR" or colour not in CHANNELS or 0 in (width, height, bits):
        return None
    return PngHeader((height, width), bits, colour, bool(interlaced))


def check_stream(path: Path, header: PngHeader) -> None:
    """Refuse a PNG whose pixels end early, of which Pillow makes blank rows; nothing is kept in memory.

    Raises
    ------
    ValueError
        Fewer bytes than the header's size needs, or damaged ones.
    """
    needed, found, held = header.stream_bytes, 0, path.stat().st_size
    unpacker = zlib.decompressobj()
    try:
        with path.open("rb") as file:
            file.seek(len(SIGNATURE))
            while found < needed and not unpacker.eof and (head := file.read(CHUNK.size)):
                length, name = CHUNK.unpack(head)
                end = file.tell() + length + 4
                if end > held:
                    msg = f"it tells {end} bytes and holds {held}"
                    raise ValueError(msg)
                while name == b"IDAT" and (piece := file.read(min(PIECE, end - 4 - file.tell()))):
                    while piece and found < needed:
                        found += len(unpacker.decompress(piece, PIECE))
                        piece = unpacker.unconsumed_tail
                file.seek(end)
        found += len(unpacker.flush())
    except (zlib.error, struct.error) as error:
        msg = f"its pixels are damaged: {error}"
        raise ValueError(msg) from error
    if found < needed:
        msg = f"its pixels end after {found} of {needed} bytes"
        raise ValueError(msg)


def write_png(
    path: Path,
    shape: tuple[int, int],
    bands: Iterable[NDArray[np.uint8]],
    *,
    alpha: bool = False,
    pixel_um: float | None = None,
) -> None:
    """Write a grey PNG of any size, a band of rows at a time.

    Parameters
    ----------
    path : pathlib.Path
        Replaced if it exists.
    shape : tuple of int
        Rows and columns.
    bands : iterable of numpy.ndarray of uint8, (rows, columns) or (rows, columns, 2)
        From the first row to the last; with alpha its grey and its opacity.
    alpha : bool
        Whether the bands have opacity.
    pixel_um : float, optional
        Edge of a pixel in micrometres; whole pixels a metre are what a PNG can tell.
    """
    packer = zlib.compressobj(6)
    with path.open("wb") as file:
        file.write(SIGNATURE)
        colour = GREY_ALPHA if alpha else GREY
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, colour, 0, 0, 0))
        if pixel_um is not None:
            per_metre = round(UM_PER_M / pixel_um)
            _chunk(file, b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1))
        for band in bands:
            # each row is preceded by the number of its filter: 0, none
            rows = np.pad(band.reshape(len(band), -1), ((0, 0), (1, 0)))
            _chunk(file, b"IDAT", packer.compress(rows.tobytes()))
        _chunk(file, b"IDAT", packer.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(CHUNK.pack(len(data), name) + data + struct.pack(">I", zlib.crc32(name + data)))
