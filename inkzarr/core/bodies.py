"""Bodies of requests that cannot be what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import RangeByteRequest, SuffixByteRequest

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

NO_BYTE = "the body holds no byte"
BLOSC_HEADER = 16
"""Bytes; the last four say how long the frame is."""


def check_length(length: int, byte_range: ByteRequest | None) -> None:
    """Refuse a body that cannot be what was asked for, such as a whole file in place of its part."""
    if length == 0:
        raise OSError(NO_BYTE)
    wanted = length
    if isinstance(byte_range, RangeByteRequest):
        wanted = byte_range.end - byte_range.start
    elif isinstance(byte_range, SuffixByteRequest):
        wanted = min(length, byte_range.suffix)
    if length != wanted:
        msg = f"the body holds {length} bytes, not the {wanted} asked for"
        raise OSError(msg)


def check_blosc(header: bytes, length: int) -> None:
    """Refuse a blosc frame of fewer bytes than its header says: it would be decoded past its end."""
    wanted = int.from_bytes(header[-4:], "little")
    if length < max(wanted, BLOSC_HEADER):
        msg = f"the blosc frame is cut short: {length} of {wanted} bytes"
        raise OSError(msg)
