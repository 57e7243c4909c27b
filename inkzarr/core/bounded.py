"""Arrays whose chunks unpack to no more than they hold: 45 kB of zstd can be 1.5 GB.

A frame that tells its size (blosc, lz4, zstd) is refused by what it tells; streams that tell none are
unpacked to their limit and no further. Codecs that are not known to make numbers are not used at all.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numcodecs.abc
import zarr
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

SLACK = 2**16
"""Bytes beyond a chunk's own that what is unpacked may have: checksums, padding."""
WIDEST = 8
"""Times that a filter may widen a voxel."""
FRAMES = ("blosc", "lz4", "zstd")
STREAMS = ("gzip", "zlib", "bz2", "lzma")
KNOWN = {
    *FRAMES,
    *STREAMS,
    *("bytes", "endian", "transpose", "sharding_indexed"),
    *("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"),
    *("shuffle", "delta", "fixedscaleoffset", "bitround", "quantize", "astype", "packbits"),
}
"""Codecs that are used; pickle, JSON and their like make objects, not numbers, and may run code."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LZMA_MEMORY = 2**28
"""Bytes that a stream's dictionary may take."""
GZIP_WINDOW = 16 + zlib.MAX_WBITS


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, read with a limit on what a chunk may unpack to."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 3:
        metadata = replace(metadata, codecs=_bounded_codecs(metadata.codecs))
    elif metadata.compressor is not None:
        widest = WIDEST if metadata.filters else 1
        most = widest * math.prod(metadata.chunks) * array.dtype.itemsize + SLACK
        metadata = replace(metadata, compressor=_BoundedV2(metadata.compressor, most))
    old = array.async_array
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path, config=old.config))


def unknown_codecs(array: zarr.Array[Any]) -> list[str]:
    """Names of an array's codecs that are not in `KNOWN`."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 3:
        names = list(_names(metadata.codecs))
    else:
        names = [codec.codec_id for codec in (*(metadata.filters or ()), metadata.compressor) if codec]
    return [name for name in names if name not in KNOWN]


def unpack(kind: str, decode: Callable[[Any], Any], packed: Any, most: int) -> Any:  # noqa: ANN401
    """What `decode` makes of `packed`, at most so many bytes.

    Parameters
    ----------
    kind : str
        Name of the codec, as numcodecs has it.
    decode : callable
        The codec's own, for a frame that tells its size.
    packed : bytes-like
        A whole chunk.
    most : int
        Bytes.

    Returns
    -------
    bytes-like

    Raises
    ------
    ValueError
        It unpacks to more, or is damaged.

    Examples
    --------
    >>> unpack("zlib", zlib.decompress, zlib.compress(b"ink"), 3)
    b'ink'
    """
    if kind in STREAMS:
        return _unpack_stream(kind, packed, most)
    if kind not in FRAMES:
        return decode(packed)
    told = _told(kind, bytes(memoryview(packed)[:18]))
    if told is None:
        return imagecodecs.zstd_decode(bytes(packed), out=most)
    _check(told, most)
    return decode(packed)


def _names(codecs: tuple[Codec, ...]) -> Iterator[str]:
    for codec in codecs:
        yield _name(codec)
        if isinstance(codec, ShardingCodec):
            yield from _names((*codec.codecs, *codec.index_codecs))


def _name(codec: Codec) -> str:
    return str(codec.to_dict()["name"]).removeprefix("numcodecs.")


def _bounded_codecs(codecs: tuple[Codec, ...]) -> tuple[Codec, ...]:
    return tuple(map(_bounded_codec, codecs))


def _bounded_codec(codec: Codec) -> Codec:
    name = _name(codec)
    if isinstance(codec, ShardingCodec):
        inner, index = _bounded_codecs(codec.codecs), _bounded_codecs(codec.index_codecs)
        return replace(codec, codecs=inner, index_codecs=index)
    packs = isinstance(codec, BytesBytesCodec) and name in (*FRAMES, *STREAMS)
    return _BoundedV3(codec, name) if packs else codec


@dataclass(frozen=True)
class _BoundedV3(BytesBytesCodec):
    """A codec of Zarr v3, by its name, with a limit."""

    codec: Any
    name: str
    is_fixed_size = False

    def to_dict(self) -> dict[str, Any]:
        """As the codec tells itself."""
        told: dict[str, Any] = self.codec.to_dict()
        return told

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        most = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize + SLACK
        packed = chunk_bytes.to_bytes()
        if self.name in FRAMES and (told := _told(self.name, packed[:18])) is not None:
            _check(told, most)
            (unpacked,) = await self.codec.decode([(chunk_bytes, chunk_spec)])
            return unpacked  # type: ignore[no-any-return]
        found = await asyncio.to_thread(unpack, self.name, bytes, packed, most)
        return chunk_spec.prototype.buffer.from_bytes(found)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """As the codec tells it."""
        return int(self.codec.compute_encoded_size(input_byte_length, chunk_spec))


class _BoundedV2(numcodecs.abc.Codec):  # type: ignore[misc]
    """A compressor of Zarr v2 with a limit; it only reads."""

    codec_id = "bounded"

    def __init__(self, codec: Any, most: int) -> None:  # noqa: ANN401
        self.codec, self.most = codec, most

    def encode(self, buf: Any) -> Any:  # noqa: ANN401
        """Pack a chunk."""
        return self.codec.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:  # noqa: ANN401, ARG002
        """Unpack a chunk."""
        return unpack(self.codec.codec_id, self.codec.decode, buf, self.most)


def _check(size: int, most: int) -> None:
    if size > most:
        msg = f"it unpacks to {size} bytes or more, it may hold {most} at most"
        raise ValueError(msg)


def _told(kind: str, head: bytes) -> int | None:
    """How many bytes a frame says that it unpacks to; None where it does not say.

    blosc: the second number of its header; lz4: what numcodecs puts before it; zstd: RFC 8878, section 3.1.1.
    """
    if kind == "blosc":
        return int.from_bytes(head[4:8], "little")
    if kind == "lz4":
        return int.from_bytes(head[:4], "little")
    if head[:4] != ZSTD_MAGIC or len(head) < 6:
        return None
    flags, single = head[4] >> 6, bool(head[4] & 0x20)
    width = (1 if single else 0, 2, 4, 8)[flags]
    at = 5 + (not single) + (0, 1, 2, 4)[head[4] & 3]
    if not width or len(head) < at + width:
        return None
    return int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)


def _unpack_stream(kind: str, packed: Any, most: int) -> bytes:  # noqa: ANN401
    """Unpack stream after stream, as gzip and bz2 have them, until the limit."""
    make: Callable[[], Any] = {
        "gzip": lambda: zlib.decompressobj(GZIP_WINDOW),
        "zlib": zlib.decompressobj,
        "bz2": bz2.BZ2Decompressor,
        "lzma": lambda: lzma.LZMADecompressor(memlimit=LZMA_MEMORY),
    }[kind]
    parts: list[bytes] = []
    size, rest = 0, memoryview(packed).cast("B")
    try:
        while rest:
            stream = make()
            parts.append(stream.decompress(rest, most + 1 - size))
            size += len(parts[-1])
            _check(size, most)
            if not stream.eof:
                msg = "it ends early"
                raise ValueError(msg)
            rest = memoryview(stream.unused_data.lstrip(b"\0"))
    except (zlib.error, OSError, lzma.LZMAError) as error:
        msg = f"it is damaged ({error})"
        raise ValueError(msg) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)
