"""PNGs are told by their headers, and none passes whose pixels end early."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from inkzarr.core.errors import InputError
from inkzarr.core.png import check_stream, read_header
from inkzarr.core.ppm import read_mask
from inkzarr.readers.label_png import open_label


def png(path, shape, bits, colour, stream, *, interlaced=0):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], bits, colour, 0, 0, interlaced))]
    if colour == 3:
        chunks.append((b"PLTE", bytes(range(48))))
    packed = zlib.compress(stream)
    chunks += [(b"IDAT", packed[: len(packed) // 2]), (b"IDAT", packed[len(packed) // 2 :]), (b"IEND", b"")]
    told = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(told))
    return path


KINDS = [(0, 1), (0, 4), (0, 8), (0, 16), (2, 8), (3, 2), (3, 8), (4, 8), (6, 8)]


@pytest.mark.parametrize(("kind", "interlaced"), list(itertools.product(KINDS, (0, 1))))
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (9, 13)])
def test_every_byte_of_the_stream_is_needed(tmp_path, kind, interlaced, shape):
    """As many as Pillow unpacks: with one less it is refused here."""
    colour, bits = kind
    place = png(tmp_path / "a.png", shape, bits, colour, b"", interlaced=interlaced)
    header = read_header(place)
    assert (header.shape, header.bits, header.colour, header.interlaced) == (shape, bits, colour, interlaced)
    whole = bytes(header.stream_bytes)
    check_stream(png(place, shape, bits, colour, whole, interlaced=interlaced), header)
    with Image.open(place) as image:
        image.load()
    with pytest.raises(ValueError, match=f"end after {len(whole) - 1} of {len(whole)} bytes"):
        check_stream(png(place, shape, bits, colour, whole[:-1], interlaced=interlaced), header)


def test_the_streams_of_another_writer(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (300, 4100), "uint8")
    for mode in ("L", "1", "P", "RGB", "RGBA", "LA"):
        Image.fromarray(values).convert(mode).save(tmp_path / "a.png")
        check_stream(tmp_path / "a.png", read_header(tmp_path / "a.png"))


def test_missing_rows_are_not_read_as_blank(tmp_path):
    """The stream is well formed and Pillow is content: half the label would be called no ink."""
    shape, rows = (40, 50), b"".join(b"\0" + bytes([200] * 50) for _ in range(40))
    path = png(tmp_path / "a_inklabels.png", shape, 8, 0, rows[: 20 * 51])
    with Image.open(path) as image:
        assert not np.asarray(image)[20:].any()
    for read in (lambda: open_label(path).read(shape), lambda: open_label(path).nonzero(shape)):
        with pytest.raises(InputError, match=r"pixels end after 1020 of 2040 bytes\): save it again"):
            read()
    with pytest.raises(InputError, match="pixels end after"):
        read_mask(path, shape)
    png(path, shape, 8, 0, rows)
    assert (open_label(path).read(shape) == 200).all()


def test_a_damaged_stream(tmp_path):
    path = png(
        tmp_path / "a.png", (9, 9), 8, 0, b"".join(bytes([0, *range(row, row + 9)]) for row in range(9))
    )
    data = path.read_bytes()
    for bad in (data[:50], data[:-40], data[:43] + b"\xff\xff" + data[45:]):
        path.write_bytes(bad)
        with pytest.raises(InputError, match="cannot be read as PNG"):
            open_label(path).read((9, 9))


def test_a_mask_is_where_it_is_not_zero(tmp_path):
    deep = np.uint16([[0, 1, 100, 128], [300, 65535, 0, 2]])
    grey = np.uint8([[0, 1, 2, 255]])
    clear = np.dstack([grey, grey, grey, np.uint8([[255, 255, 0, 1]])])
    kinds = {
        "deep": (deep, deep > 0),
        "grey": (grey, grey > 0),
        "clear": (clear, [[False, True, False, True]]),
    }
    for name, (image, expected) in kinds.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        mask = open_label(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(mask.nonzero(mask.shape), expected, err_msg=name)


def test_no_png(tmp_path):
    for content in (b"", b"GIF89a" * 20, io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(40)).getvalue()):
        (tmp_path / "a.png").write_bytes(content)
        assert read_header(tmp_path / "a.png") is None
