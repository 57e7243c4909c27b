"""NRRD: attached and detached headers, raw or gzip; x is the fastest axis, so a file is z, y, x as it lies.

Voxel sizes without a unit are millimetres, as ITK and 3D Slicer take them; but a spacing of exactly 1
without a unit is what writers put where they know none, and counts as not told.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.schema import DIMS
from inkzarr.readers.base import MICROMETRES, check_voxels, digest_files, one_voxel_size
from inkzarr.readers.packed import Packed
from inkzarr.readers.raw import Plane, read_plane

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator
    from pathlib import Path

SUFFIXES = (".nrrd", ".nhdr")
LONGEST_HEADER = 2**20
LONGEST_NAME = 255
TYPES = {
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "uint8"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "uint16"),
    **dict.fromkeys(("signed char", "int8", "int8_t"), "int8"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "int16"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "int32"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "uint32"),
    "float": "float32",
    "double": "float64",
}
RAW, GZIP = ("raw",), ("gzip", "gz")


@dataclass(frozen=True)
class NrrdSource:
    """A volume in an NRRD file.

    Parameters
    ----------
    path : Path
        Of the header.
    data : Path
        Where the voxels lie; the same file where they are attached.
    shape : Zyx
        In voxels.
    stored : numpy.dtype
        Of one voxel, in the file's byte order.
    offset : int
        Of the first voxel, in bytes.
    packed : Packed or None
        Where the voxels are compressed.
    voxel_size_um : float or None
        From spacings or space directions.
    """

    path: Path
    data: Path
    shape: Zyx
    stored: np.dtype[Any]
    offset: int
    packed: Packed | None
    voxel_size_um: float | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one voxel, in the machine's byte order."""
        return self.stored.newbyteorder("=")

    @property
    def name(self) -> str:
        """Of the header's file."""
        return self.path.name

    @property
    def identity(self) -> dict[str, Any]:
        """Names and byte sizes."""
        return {"kind": "nrrd", **digest_files(dict.fromkeys((self.path, self.data)))}

    @property
    def block(self) -> Zyx:
        """A row: runs of any length are read alone."""
        return Zyx(1, 1, self.shape.x)

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, contiguous.

        Raises
        ------
        InputError
            The compressed bytes are damaged, or the file became shorter.
        """
        out = np.empty(box.shape, self.dtype)
        if self.packed is not None:
            with self.packed.opened() as file:
                self._fill(file, 0, box, out)
        else:
            with self.data.open("rb", buffering=0) as file:
                self._fill(file, self.offset, box, out)
        return out

    def _fill(self, file: io.FileIO, offset: int, box: Box, out: np.ndarray) -> None:
        step = self.shape.y * self.shape.x * self.stored.itemsize
        _, rows, columns = box.slices
        for z in range(box.start.z, box.stop.z):
            plane = Plane(offset + z * step, self.shape.x, self.stored)
            read_plane(file, plane, rows, columns, out[z - box.start.z])


def open_nrrd(path: Path) -> NrrdSource:
    """Open an NRRD file, or a detached header whose data lies beside it.

    Parameters
    ----------
    path : Path
        ``.nrrd`` or ``.nhdr``.

    Returns
    -------
    NrrdSource
        The header is checked, and a raw file's length.

    Raises
    ------
    InputError
        Not NRRD, not a volume, an encoding or dtype that is not read, or too few bytes.
    """
    with path.open("rb") as file:
        fields = _fields(file, path)
        attached = file.tell()
    shape, stored = _layout(fields, path)
    data, start = _data_file(fields, path, attached)
    encoding = fields.get("encoding", "").lower()
    skips = [_number(fields.get(name, "0"), name, path) for name in ("line skip", "byte skip")]
    start = _skip_lines(data, start, skips[0])
    nbytes = shape.volume * stored.itemsize
    size_um = _voxel_size(fields)
    if encoding in GZIP:
        return NrrdSource(
            path, data, shape, stored, 0, Packed(data, start, max(0, skips[1]), nbytes), size_um
        )
    if encoding not in RAW:
        msg = f"{path.name} is encoded as {encoding!r}: raw and gzip are read; save it as one of them"
        raise InputError(msg)
    held = data.stat().st_size
    offset = held - nbytes if skips[1] == -1 else start + skips[1]
    if offset < start or offset + nbytes > held:
        msg = (
            f"{data.name} is cut short: {nbytes} bytes of voxels needed, {held - start} there; copy it again"
        )
        raise InputError(msg)
    return NrrdSource(path, data, shape, stored, offset, None, size_um)


def _fields(file: BinaryIO, path: Path) -> dict[str, str]:
    """The header's ``field: value`` lines, names in lower case; the file is left behind them."""
    if not re.fullmatch(rb"NRRD000\d\s*", file.readline(80)):
        msg = f"{path.name} is no NRRD file: it does not begin with NRRD000"
        raise InputError(msg)
    fields: dict[str, str] = {}
    for line in _lines(file):
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        if not colon:
            msg = f"{path.name} has a header line {line[:40]!r}: each is 'field: value'"
            raise InputError(msg)
        fields[name.strip().lower()] = value.strip()
    return fields


def _lines(file: BinaryIO) -> Iterator[str]:
    """Up to the empty line that ends a header, or the end of a detached one."""
    left = LONGEST_HEADER
    while left > 0:
        line = file.readline(left)
        left -= len(line)
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            return
        yield text


def _layout(fields: dict[str, str], path: Path) -> tuple[Zyx, np.dtype[Any]]:
    """Shape, z y x, and dtype as stored."""
    axes = _number(fields.get("dimension", "0"), "dimension", path)
    sizes = [_number(part, "sizes", path) for part in fields.get("sizes", "").split()]
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()]
    if axes != len(DIMS) or len(sizes) != len(DIMS) or min(sizes) < 1:
        msg = f"{path.name} has dimension {axes} and sizes {sizes}: a volume has three axes"
        raise InputError(msg)
    if any(kind not in ("domain", "space", "none", "???") for kind in kinds):
        msg = f"{path.name} has axes of kinds {' '.join(kinds)}: a volume's are all 'domain' or 'space'"
        raise InputError(msg)
    told = fields.get("type", "").lower()
    if told not in TYPES:
        msg = f"{path.name} holds voxels of type {told!r}: a scan is stored as uint8 or uint16"
        raise InputError(msg)
    dtype = check_voxels(np.dtype(TYPES[told]), path.name)
    endian = fields.get("endian", "").lower()
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        msg = f"{path.name} tells endian {endian!r}: voxels of two bytes need 'little' or 'big'"
        raise InputError(msg)
    x, y, z = sizes
    return Zyx(z, y, x), dtype.newbyteorder(">" if endian == "big" else "<")


def _data_file(fields: dict[str, str], path: Path, attached: int) -> tuple[Path, int]:
    """Where the voxels lie, and the byte at which they may begin."""
    told = fields.get("data file", fields.get("datafile"))
    if told is None:
        if path.suffix.lower() == ".nhdr":
            msg = f"{path.name} names no data file: a detached header does"
            raise InputError(msg)
        return path, attached
    if told.upper().startswith("LIST") or "%" in told:
        msg = f"{path.name} spreads its voxels over many files ({told!r}): save it as one"
        raise InputError(msg)
    if "\0" in told or len(told) > LONGEST_NAME:
        msg = f"{path.name} names the data file {told[:60]!r}, which is no name: put both together"
        raise InputError(msg)
    data = path.parent / told
    if not data.resolve().is_relative_to(path.parent.resolve()):
        msg = f"{path.name} names the data file {told!r}, outside its own folder: put both together"
        raise InputError(msg)
    if not data.is_file():
        msg = f"{path.name} names the data file {told!r}, which is not there: put both together"
        raise InputError(msg)
    return data, 0


def _skip_lines(data: Path, start: int, lines: int) -> int:
    with data.open("rb") as file:
        file.seek(start)
        for _ in range(lines):
            if not file.readline(LONGEST_HEADER):
                break  # past the end, which is told where the voxels are missed
        return file.tell()


def _number(text: str, name: str, path: Path) -> int:
    try:
        return int(text)
    except ValueError:
        msg = f"{path.name} has {name!r} {text!r}: a whole number stands there"
        raise InputError(msg) from None


def _voxel_size(fields: dict[str, str]) -> float | None:
    """Edge of a voxel in micrometres, where one is told for all axes."""
    units: list[str] = []
    if "space directions" in fields:
        units = _quoted(fields.get("space units", ""))
        vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
        edges = [math.hypot(*_floats(vector.replace(",", " "))) for vector in vectors]
    else:
        units = _quoted(fields.get("units", fields.get("space units", "")))
        edges = _floats(fields.get("spacings", ""))
    if len(edges) != len(DIMS) or (not units and set(edges) == {1.0}):
        return None
    lengths = [MICROMETRES.get(unit.lower()) for unit in units] or [MICROMETRES["mm"]] * len(DIMS)
    if len(lengths) != len(DIMS) or None in lengths:
        return None
    return one_voxel_size(edge * length for edge, length in zip(edges, lengths, strict=True) if length)


def _quoted(text: str) -> list[str]:
    try:
        return [unit for unit in shlex.split(text) if unit]
    except ValueError:
        return []


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split()]
    except ValueError:
        return []
