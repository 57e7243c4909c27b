"""Export: a volume, or a box of it, in a format that others open; what OUT is called says which.

::

    scan.nrrd  scan.nii  scan.nii.gz     one volume with spacing and place, for 3D Slicer and ITK
    scan.tif                             one stack of pages, for Fiji and ImageJ
    slices/*.jpg  slices/*.png  *.tif    a folder of slices
    scan.mp4                             a movie through the volume

Each chunk is read once, and memory stays the same whatever the volume.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box
from inkzarr.core.progress import Progress, size
from inkzarr.core.store import open_stored
from inkzarr.core.target import refuse_inside
from inkzarr.core.whole import whole
from inkzarr.writers.base import Cutout, layer_bytes
from inkzarr.writers.medical import write_nifti, write_nifti_gz, write_nrrd
from inkzarr.writers.planes import Planes, PlaneSettings, check_movie, check_slices, write_movie, write_slices
from inkzarr.writers.tiff import check_tiff, write_tiff

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

STACKS: dict[str, Callable[[Path, Cutout, Callable[[int], object]], None]] = {
    ".nrrd": write_nrrd,
    ".nii": write_nifti,
    ".nii.gz": write_nifti_gz,
    ".tif": write_tiff,
    ".tiff": write_tiff,
}
"""By suffix: what writes the volume as one file."""
MOVIE = ".mp4"
SLICES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
NAMES = f"{', '.join(STACKS)}, {MOVIE}, or FOLDER/*.jpg, FOLDER/*.png, FOLDER/*.tif"


def export(  # noqa: PLR0913 - each was asked for, and most are left out
    volume_url: str | PathLike[str],
    out: str | PathLike[str],
    *,
    box: Box | str | None = None,
    level: int = 0,
    planes: PlaneSettings = PlaneSettings(),
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> Path:
    """Write a volume as one file, a folder of slices, or a movie.

    Parameters
    ----------
    volume_url : str
        An OME-Zarr group or a bare array, local or remote.
    out : path
        A local place, whose name says the format: ``scan.nrrd``, ``.nii``, ``.nii.gz``, ``.tif``, ``.mp4``;
        or ``folder/*.jpg``, ``folder/*.png``, ``folder/*.tif`` for a folder of slices. It appears only
        once it is whole.
    box : Box or str, optional
        ``z0:z1,y0:y1,x0:x1`` in voxels of the level; default: all of it.
    level : int
        Resolution, 0 is the finest.
    planes : PlaneSettings
        Of slices and movies: axis, step, and a volume beside (at the same `level` and `box`).
    overwrite : bool
        Whether an existing `out` is replaced; of a folder only one that holds nothing but such slices.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    pathlib.Path
        Of the file or folder.

    Raises
    ------
    InputError
        An unknown suffix, a box outside the volume, an `out` that exists or lies in the volume, a disk that
        is too small or refuses to be written, voxels that the format does not have, a library that is not
        installed.
    StoreError
        A chunk cannot be read; nothing is at `out` then.

    Notes
    -----
    NRRD and NIfTI lie in the same space: ITK's physical point of voxel (x, y, z) is (x, y, z) times the
    spacing in mm, without a mirrored axis, and a box lies where it is in the volume. TIFF: one page a z; an
    ImageJ stack with its z spacing below 4 GB, else BigTIFF with OME metadata. float16 becomes float32.
    Slices are named by their place along the axis. JPEG and movies have 8 bits: uint16 is
    shown by its high byte.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> folder = getfixture("tmp_path")
    >>> _ = zarr.save_array(folder / "scan.zarr", np.ones((4, 8, 8), "uint8"))
    >>> export(folder / "scan.zarr", folder / "scan.tif", box="1:3,:,:").name
    'scan.tif'
    >>> slices = export(folder / "scan.zarr", folder / "slices/*.png", box="1:3,:,:")
    >>> sorted(path.name for path in slices.iterdir())
    ['00001.png', '00002.png']
    """
    suffix, out = _format(Path(out))
    if planes != PlaneSettings() and suffix in STACKS:
        msg = f"{out} is one volume: axis, step and a volume beside are for slices and {MOVIE}"
        raise InputError(msg)
    urls = [str(volume_url), *filter(None, [planes.beside])]
    refuse_inside(str(out), urls)
    _refuse_occupied(out, suffix, overwrite=overwrite)
    cutouts = [_cut(url, box, level, storage_options) for url in urls]
    shown = Planes(tuple(cutouts), planes)
    _refuse_unfit(shown, suffix)
    _refuse_small_disk(out, suffix, shown)
    with whole(out) as partial:
        _write(partial, suffix, shown)
    return out


def _format(out: Path) -> tuple[str, Path]:
    """The format by its suffix (``*.jpg`` for a folder of slices), and the file or folder."""
    name = out.name.lower()
    if out.stem == "*" and out.suffix.lower() in SLICES and out.parent.name:
        return f"*{out.suffix.lower()}", out.parent
    found = [suffix for suffix in (*STACKS, MOVIE) if name.endswith(suffix)]
    if not found or name.startswith("*"):
        msg = f"{out} names no format that is written: end it in {NAMES}"
        raise InputError(msg)
    return max(found, key=len), out


def _write(partial: Path, suffix: str, planes: Planes) -> None:
    """Write the file or folder, in the way that its format has."""
    if suffix in STACKS:
        cutout = planes.cutouts[0]
        with Progress("export", cutout.box.shape.volume, unit="voxel") as progress:
            STACKS[suffix](partial, cutout, progress.advance)
        return
    with Progress("export", planes.count * planes.pixels, unit="voxel") as progress:
        if suffix == MOVIE:
            write_movie(partial, planes, progress.advance)
        else:
            write_slices(partial, planes, suffix.removeprefix("*"), progress.advance)


def _cut(url: str, box: Box | str | None, level: int, storage_options: dict[str, Any] | None) -> Cutout:
    stored = open_stored(url, level=level, storage_options=storage_options)
    stored.require_finished()
    return Cutout.of(stored, box)


def _refuse_unfit(planes: Planes, suffix: str) -> None:
    """Refuse volumes that the format cannot hold, or that cannot stand side by side."""
    shapes = [cutout.stored.shape for cutout in planes.cutouts]
    if shapes[0] != shapes[-1]:
        told = " and ".join(f"{one.stored.name} {tuple(one.stored.shape)}" for one in planes.cutouts)
        msg = f"{told} cannot stand side by side: give volumes of the same shape"
        raise InputError(msg)
    if suffix == MOVIE:
        check_movie(planes)
    elif suffix in (".tif", ".tiff"):
        check_tiff(planes.cutouts[0])
    elif suffix not in STACKS:
        check_slices(planes, suffix.removeprefix("*"))


def _refuse_occupied(out: Path, suffix: str, *, overwrite: bool) -> None:
    if not out.absolute().parent.is_dir():
        msg = f"folder {out.parent} does not exist: create it, or choose another; files are written locally"
        raise InputError(msg)
    if not out.exists():
        return
    slices = suffix.startswith("*")
    inside = [path.name for path in out.iterdir()] if out.is_dir() else []
    kept = [name for name in inside if not re.fullmatch(rf"\d+{re.escape(suffix[1:])}", name)]
    ours = slices == out.is_dir() and not kept
    if not (ours and (overwrite or (slices and not inside))):
        holds = f" and holds {kept[0]}" if slices and kept else ""
        msg = f"{out} exists{holds}: choose another name{', or overwrite it' if ours else ''}"
        raise InputError(msg)


def _refuse_small_disk(out: Path, suffix: str, planes: Planes) -> None:
    """Refuse where the file's raw voxels, or the layer that is laid out at a time, do not fit."""
    free = shutil.disk_usage(out.absolute().parent).free
    cutout = planes.cutouts[0]
    needed = cutout.nbytes
    if suffix == ".nii.gz":
        needed = layer_bytes(cutout)
    elif suffix not in STACKS:
        raw = planes.count * planes.pixels * cutout.dtype.itemsize if suffix.startswith("*.tif") else 0
        needed = planes.scratch_bytes + raw
    if free < needed:
        needs = f"{out} needs {size(needed)}, the disk has {size(free)}"
        msg = f"{needs}: choose a smaller box or a coarser level"
        raise InputError(msg)
