"""Export: a volume, or a box of it, as one file that Slicer, ITK, Fiji and ImageJ open.

Both formats hold the voxels raw and in order, so each chunk is read once, in any order, and its rows
are written where they belong::

    chunks  |__|__|__|__|  ──>  a block of whole chunks  ──>  rows at their places in the file

Memory is that of the two blocks in flight, at most 256 MB together (more only where one chunk is larger).
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import tifffile

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.progress import Progress, size
from inkzarr.core.store import open_stored
from inkzarr.core.volume import StoredVolume

if TYPE_CHECKING:
    from os import PathLike

BLOCKS_IN_FLIGHT = 2
"""One is read while the other is written."""
BLOCK_BYTES = 2**26
"""Voxels of one block; decoding and the byte order take as much again."""
UM_PER_MM, UM_PER_CM = 1e3, 1e4
CLASSIC_TIFF_BYTES = 2**32 - 2**25
"""Beyond, a TIFF is written as BigTIFF, whose offsets have 64 bits."""
IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
OME_DTYPES = (*IMAGEJ_DTYPES, "int8", "int16", "int32", "uint32", "float64")
NRRD_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Picture:
    """What is exported: a box of a level, and where it lies.

    Parameters
    ----------
    box : Box
        In voxels of the level.
    dtype : numpy.dtype
        In the file, little-endian.
    spacing_um : tuple of three floats, or None
        Edges of a voxel along z, y and x in micrometres; None where the volume does not say.
    origin_um : tuple of three floats
        Centre of the box's first voxel, z y x in micrometres from that of the full resolution.
    """

    box: Box
    dtype: np.dtype[Any]
    spacing_um: tuple[float, ...] | None
    origin_um: tuple[float, ...]

    @property
    def nbytes(self) -> int:
        """Of its voxels."""
        return self.box.shape.volume * self.dtype.itemsize


def export(
    volume_url: str | PathLike[str],
    out: str | PathLike[str],
    *,
    box: Box | str | None = None,
    level: int = 0,
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> Path:
    """Write a volume as one ``.nrrd`` or ``.tif`` file.

    Parameters
    ----------
    volume_url : str
        An OME-Zarr group or a bare array, local or remote.
    out : path
        A local file; the suffix says the format. It appears only once it is whole.
    box : Box or str, optional
        ``z0:z1,y0:y1,x0:x1`` in voxels of the level; default: all of it.
    level : int
        Resolution, 0 is the finest.
    overwrite : bool
        Whether an existing `out` is replaced.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    pathlib.Path
        Of `out`.

    Raises
    ------
    InputError
        An unknown suffix, a box outside the volume, an `out` that exists, a disk that is too small.
    StoreError
        A chunk cannot be read; `out` is not written then.

    Notes
    -----
    NRRD: raw, attached header, axes x y z, in left-posterior-superior space as ITK has it, so that ITK's
    physical point of voxel (x, y, z) is (x, y, z) times the spacing in mm, without a mirrored axis.
    TIFF: one page a z; an ImageJ stack with its z spacing below 4 GB, else BigTIFF with OME metadata.
    float16 becomes float32, which both formats have.

    Examples
    --------
    >>> import zarr
    >>> folder = getfixture("tmp_path")
    >>> _ = zarr.save_array(folder / "scan.zarr", np.ones((4, 8, 8), "uint8"))
    >>> export(folder / "scan.zarr", folder / "scan.tif", box="1:3,:,:").name
    'scan.tif'
    """
    out = Path(out)
    begin = _format(out)
    _refuse_occupied(out, overwrite=overwrite)
    stored = open_stored(str(volume_url), level=level, storage_options=storage_options)
    stored.require_finished()
    picture = _picture(stored, box)
    _refuse_small_disk(out, picture)
    partial = out.with_name(f".{out.name}.partial")
    try:
        offset = begin(partial, picture)
        with partial.open("r+b") as file:
            _fill(file, offset, stored, picture)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def block_shape(shape: Zyx, chunks: Zyx, itemsize: int) -> Zyx:
    """Whole chunks that are read at once: as wide, then as high, then as deep as memory allows.

    Examples
    --------
    >>> block_shape(Zyx(14376, 7888, 8096), Zyx(128, 128, 128), 1)
    Zyx(z=128, y=128, x=4096)
    """
    cell = chunks
    for axis in reversed(range(len(cell))):
        times = max(1, BLOCK_BYTES // (cell.volume * itemsize))
        needed = -(-shape[axis] // chunks[axis])
        cell = Zyx(*(c * min(times, needed) if i == axis else c for i, c in enumerate(cell)))
    return cell


def begin_nrrd(path: Path, picture: Picture) -> int:
    """Write an NRRD header and the room for its voxels.

    Returns
    -------
    int
        Where the voxels begin, in bytes.
    """
    spacing, origin = picture.spacing_um or (UM_PER_MM,) * 3, picture.origin_um
    edges = [f"{um / UM_PER_MM:.12g}" for um in reversed(spacing)]
    place = ",".join(f"{um / UM_PER_MM:.12g}" for um in reversed(origin))
    lines = [
        "NRRD0004",
        "# written by inkzarr",
        f"type: {NRRD_TYPES.get(picture.dtype.name, picture.dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in reversed(picture.box.shape))}",
        f"space directions: ({edges[0]},0,0) (0,{edges[1]},0) (0,0,{edges[2]})",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: ({place})",
    ]
    if picture.spacing_um:
        lines.append('space units: "mm" "mm" "mm"')
    header = ("\n".join(lines) + f"\nbox_zyx:={picture.box}\n\n").encode("ascii")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + picture.nbytes)
    return len(header)


def begin_tiff(path: Path, picture: Picture) -> int:
    """Write a TIFF's pages, all but their voxels, which lie one after the other.

    Returns
    -------
    int
        Where the voxels begin, in bytes.
    """
    name, big = picture.dtype.name, picture.nbytes > CLASSIC_TIFF_BYTES
    if name not in OME_DTYPES:
        msg = f"dtype {name} does not fit a TIFF that others read: export to .nrrd, which has it"
        raise InputError(msg)
    imagej = name in IMAGEJ_DTYPES and not big
    found: Any = tifffile.imwrite(
        path,
        shape=tuple(picture.box.shape),
        dtype=picture.dtype,
        byteorder="<",
        bigtiff=big,
        imagej=imagej,
        ome=not imagej,
        photometric="minisblack",
        returnoffset=True,
        **_tiff_spacing(picture.spacing_um, imagej=imagej),
    )
    return int(found[0])


def _tiff_spacing(spacing_um: tuple[float, ...] | None, *, imagej: bool) -> dict[str, Any]:
    """A voxel's size in the words of ImageJ (its unit stands in the metadata) or of OME."""
    if spacing_um is None:
        return {"metadata": {"axes": "ZYX"}}
    z, y, x = spacing_um
    if imagej:
        metadata = {"axes": "ZYX", "spacing": z, "unit": "um"}
        return {"metadata": metadata, "resolution": (1 / x, 1 / y), "resolutionunit": "NONE"}
    sizes = {f"PhysicalSize{axis}": um for axis, um in zip("ZYX", spacing_um, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}
    per_cm = (UM_PER_CM / x, UM_PER_CM / y)
    return {
        "metadata": {"axes": "ZYX", **sizes, **units},
        "resolution": per_cm,
        "resolutionunit": "CENTIMETER",
    }


FORMATS: dict[str, Callable[[Path, Picture], int]] = {
    ".nrrd": begin_nrrd,
    ".tif": begin_tiff,
    ".tiff": begin_tiff,
}
"""By suffix: what writes a header and says where the voxels begin."""


def _format(out: Path) -> Callable[[Path, Picture], int]:
    begin = FORMATS.get(out.suffix.lower())
    if begin is None:
        msg = f"{out} names no format that is written: end it in {', '.join(FORMATS)}"
        raise InputError(msg)
    return begin


def _refuse_occupied(out: Path, *, overwrite: bool) -> None:
    if out.is_dir() or (out.exists() and not overwrite):
        msg = f"{out} exists: choose another name{'' if out.is_dir() else ', or overwrite it'}"
        raise InputError(msg)
    if not out.parent.is_dir():
        msg = f"folder {out.parent} does not exist: create it, or choose another; files are written locally"
        raise InputError(msg)


def _refuse_small_disk(out: Path, picture: Picture) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < picture.nbytes:
        needs = f"{out} needs {size(picture.nbytes)}, the disk has {size(free)}"
        msg = f"{needs}: choose a smaller box or a coarser level"
        raise InputError(msg)


def _picture(stored: StoredVolume, box: Box | str | None) -> Picture:
    """What is to be exported; the box is checked."""
    inside = Box.whole(stored.shape) if box is None else Box.parse(str(box), stored.shape)
    um = stored.voxel_size_um
    spacing = stored.level.spacing_um or (None if um is None else (um,) * len(inside.start))
    dtype = np.dtype(np.float32) if stored.dtype == np.float16 else stored.dtype
    steps = spacing or (UM_PER_MM,) * len(inside.start)
    places = zip(stored.level.origin_um, inside.start, steps, strict=True)
    return Picture(inside, dtype.newbyteorder("<"), spacing, tuple(o + n * um for o, n, um in places))


def _fill(file: BinaryIO, offset: int, stored: StoredVolume, picture: Picture) -> None:
    """Read every block of the box once, and write its rows where they belong."""
    cell = block_shape(stored.shape, stored.chunks, stored.dtype.itemsize)
    grid = Grid(stored.shape, cell)
    lock = threading.Lock()
    total = picture.box.shape.volume
    with Progress("export", total, unit="voxel") as progress, ThreadPoolExecutor(BLOCKS_IN_FLIGHT) as pool:

        def move(block: Box) -> None:
            voxels = np.ascontiguousarray(stored.read(block), dtype=picture.dtype)
            if voxels.any():  # what is not written of the new file is zeros, and takes no disk
                with lock:
                    _put(file, offset, picture, block, voxels)
            progress.advance(block.shape.volume)

        blocks = (grid.box(index).clip(picture.box) for index in grid.indices(picture.box))
        moves = [pool.submit(move, block) for block in blocks]
        try:
            for moved in moves:
                moved.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _put(file: BinaryIO, offset: int, picture: Picture, block: Box, voxels: np.ndarray) -> None:
    """Write a block's voxels into the file's C order: by the plane where it is as wide as the box."""
    _, rows, columns = picture.box.shape
    first = block.shift(picture.box.start, sign=-1).start
    runs = voxels if block.shape.x == columns else voxels.reshape(-1, block.shape.x)
    height = block.shape.y
    for n, run in enumerate(runs):
        z, y = (n, 0) if runs is voxels else divmod(n, height)
        at = ((first.z + z) * rows + first.y + y) * columns + first.x
        file.seek(offset + at * picture.dtype.itemsize)
        file.write(run.data)
