"""NRRD and NIfTI: one volume with its spacing and place, as 3D Slicer and ITK read them.

Both end in the same physical space: ITK's point of voxel (x, y, z) is (x, y, z) times the spacing in mm,
without a mirrored axis. NRRD says so directly (left-posterior-superior); NIfTI counts x and y the other way,
so its matrix has them negative.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, BinaryIO, cast

from inkzarr.core.extras import require
from inkzarr.writers.base import Cutout, fill, read_planes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NRRD_TYPES = {"float32": "float", "float64": "double"}
NIFTI1_LONGEST = 2**15 - 1
"""Voxels along an axis; beyond, a NIfTI is of version 2."""
UNKNOWN, SCANNER = 0, 1
"""What a NIfTI's matrix leads to."""
GZIP_LEVEL = 1
"""Scans hardly shrink further at higher ones, which take many times longer."""


def write_nrrd(path: Path, cutout: Cutout, advance: Callable[[int], object]) -> None:
    """Write an NRRD: raw, attached header, axes x y z."""
    _write_raw(path, nrrd_header(cutout), cutout, advance)


def write_nifti(path: Path, cutout: Cutout, advance: Callable[[int], object]) -> None:
    """Write a NIfTI of one file, ``.nii``."""
    _write_raw(path, nifti_header(cutout), cutout, advance)


def write_nifti_gz(path: Path, cutout: Cutout, advance: Callable[[int], object]) -> None:
    """Write a NIfTI as one gzip stream, plane after plane."""
    header = nifti_header(cutout)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as file:
        file.write(header)
        for _, plane in read_planes(cutout, path.parent):
            file.write(plane.data)
            advance(plane.size)


def nrrd_header(cutout: Cutout) -> bytes:
    """All of an NRRD file that comes before its voxels."""
    edges = [f"{mm:.12g}" for mm in cutout.spacing_mm]
    place = ",".join(f"{mm:.12g}" for mm in cutout.origin_mm)
    lines = [
        "NRRD0004",
        "# written by inkzarr",
        f"type: {NRRD_TYPES.get(cutout.dtype.name, cutout.dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in reversed(cutout.box.shape))}",
        f"space directions: ({edges[0]},0,0) (0,{edges[1]},0) (0,0,{edges[2]})",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: ({place})",
    ]
    if cutout.spacing_um:
        lines.append('space units: "mm" "mm" "mm"')
    return ("\n".join(lines) + f"\nbox_zyx:={cutout.box}\n\n").encode("ascii")


def nifti_header(cutout: Cutout) -> bytes:
    """All of a NIfTI file that comes before its voxels."""
    nibabel = require("nibabel", "a NIfTI", "export")
    shape = tuple(reversed(cutout.box.shape))
    kind = nibabel.Nifti1Header if max(shape) <= NIFTI1_LONGEST else nibabel.Nifti2Header
    (dx, dy, dz), (x, y, z) = cutout.spacing_mm, cutout.origin_mm
    matrix = [[-dx, 0, 0, -x], [0, -dy, 0, -y], [0, 0, dz, z], [0, 0, 0, 1]]
    header = kind(endianness="<")
    header.set_data_dtype(cutout.dtype)
    header.set_data_shape(shape)
    header.set_sform(matrix, SCANNER)
    header.set_qform(matrix, SCANNER)
    header.set_slope_inter(1, 0)
    header.set_xyzt_units("mm" if cutout.spacing_um else "unknown")
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    begun = bytes(header.binaryblock)
    return begun.ljust(header.single_vox_offset, b"\0")


def _write_raw(path: Path, header: bytes, cutout: Cutout, advance: Callable[[int], object]) -> None:
    with path.open("w+b") as file:
        file.write(header)
        file.truncate(len(header) + cutout.nbytes)
        fill(cast("BinaryIO", file), len(header), cutout, advance=advance)
