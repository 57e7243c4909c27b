"""What every source of voxels offers, and the one place where axes are put into z, y, x order."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import AXES, Box, Zyx
from inkzarr.core.schema import SCAN

if TYPE_CHECKING:
    from collections.abc import Iterable

MICROMETRES = {
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
}
"""How long the units that files name are."""
SAME_EDGE = 0.01
SAMPLE = 4096
"""Edges of a voxel that differ by no more than this part are one size."""


class Source(Protocol):
    """A volume that is read by the box, from any thread; pickled, it opens its files anew."""

    @property
    def shape(self) -> Zyx:
        """In voxels."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16, in the machine's byte order."""

    @property
    def voxel_size_um(self) -> float | None:
        """Edge of a voxel in micrometres; None where the source tells no single one."""

    @property
    def name(self) -> str:
        """What the lineage calls it: a file name, never a folder of this machine."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other sources, for the fingerprint: names and byte sizes; JSON."""

    @property
    def block(self) -> Zyx:
        """What is decoded at once (a strip, a tile, a chunk), in voxels; part of one costs all of it."""

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, which lies inside the volume.

        Returns
        -------
        numpy.ndarray
            Of the box's shape and the source's dtype; not always contiguous.

        Raises
        ------
        InputError
            What is stored there is damaged; the slice or file is named.
        """


@dataclass(frozen=True)
class Reordered:
    """A source whose axes are stored in another order, seen as z, y, x.

    Parameters
    ----------
    stored : Source
        Its `shape`, `block` and boxes are in the order of `axes`.
    axes : str
        The stored axes, slowest first, such as ``yxz``.

    Examples
    --------
    A file that holds y, x, z: its shape (200, 300, 100) is 100 slices of 200 rows and 300 columns,
    so ``Reordered(file, "yxz").shape`` is ``Zyx(z=100, y=200, x=300)``.
    """

    stored: Source
    axes: str

    @property
    def shape(self) -> Zyx:
        """In voxels."""
        return self._to_zyx(self.stored.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one voxel."""
        return self.stored.dtype

    @property
    def voxel_size_um(self) -> float | None:
        """Edge of a voxel in micrometres."""
        return self.stored.voxel_size_um

    @property
    def name(self) -> str:
        """What the lineage calls it."""
        return self.stored.name

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other sources."""
        return {**self.stored.identity, "axes": self.axes}

    @property
    def block(self) -> Zyx:
        """What is decoded at once, in voxels."""
        return self._to_zyx(self.stored.block)

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, z y x: a transposed view."""
        start, stop = (
            Zyx(*(place[AXES.index(axis)] for axis in self.axes)) for place in (box.start, box.stop)
        )
        return self.stored.read(Box(start, stop)).transpose([self.axes.index(axis) for axis in AXES])

    def _to_zyx(self, stored: Zyx) -> Zyx:
        return Zyx(*(stored[self.axes.index(axis)] for axis in AXES))


def in_zyx(source: Source, axes: str) -> Source:
    """See `source`, stored in the order `axes`, as z, y, x."""
    return source if axes == AXES else Reordered(source, axes)


def check_voxels(dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    """The dtype in the machine's byte order, where a scan may have it.

    Raises
    ------
    InputError
        Signed, floating, or wider than 16 bits.
    """
    if dtype.name not in SCAN.dtypes:
        kind = {"f": "floating point", "i": "signed"}.get(dtype.kind, "not 8 or 16 bits")
        msg = (
            f"{where} holds {dtype.name} voxels ({kind}); a scan is stored as uint8 or uint16: "
            f"rescale it to one of them first"
        )
        raise InputError(msg)
    return dtype.newbyteorder("=")


def one_voxel_size(edges_um: Iterable[float]) -> float | None:
    """The edge of a voxel in micrometres; None where the edges differ by more than 1 %, or make no sense.

    Examples
    --------
    >>> one_voxel_size([7.91, 7.91, 7.91]), one_voxel_size([7.91, 7.91, 50.0])
    (7.91, None)
    """
    edges = [float(edge) for edge in edges_um]
    if not edges or not all(math.isfinite(edge) and edge > 0 for edge in edges):
        return None
    return edges[0] if max(edges) <= min(edges) * (1 + SAME_EDGE) else None


def digest_files(paths: Iterable[Path]) -> dict[str, Any]:
    """Names, byte sizes and a sample of the bytes of many files in a few words.

    Returns
    -------
    dict
        ``files`` (how many), ``bytes`` (of all), ``first`` (its name) and ``sha256`` (of names, sizes,
        and 4096 bytes at the beginning, the middle and the end of the first, the middle and the last file).
    """
    paths = list(paths)
    lines = [(path.name, path.stat().st_size) for path in paths]
    digest = hashlib.sha256("".join(f"{name} {nbytes}\n" for name, nbytes in lines).encode())
    for path in (paths[0], paths[len(paths) // 2], paths[-1]):
        with path.open("rb") as file:
            for part in range(3):
                file.seek(part * max(0, path.stat().st_size - SAMPLE) // 2)
                digest.update(file.read(SAMPLE))
    return {
        "files": len(lines),
        "bytes": sum(nbytes for _, nbytes in lines),
        "first": lines[0][0],
        "sha256": digest.hexdigest(),
    }
