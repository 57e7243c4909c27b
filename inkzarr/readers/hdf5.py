"""HDF5: one dataset of three axes; nothing outside the file is ever followed.

External storage, virtual datasets and external links can name any file of this machine, so a file
that uses them is refused.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the compression filters
import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.schema import DIMS
from inkzarr.readers.base import check_voxels, digest_files, one_voxel_size

SUFFIXES = (".h5", ".hdf5", ".he5")
SEPARATOR = "::"
LINKS = 32
"""Soft links that are followed before they are taken for a circle."""
BAND = 2**21
"""Voxels that a dataset without chunks is said to hold together; it is read in runs of any length."""


@dataclass(frozen=True)
class Hdf5Source:
    """A dataset in an HDF5 file, its axes as stored.

    Parameters
    ----------
    path : Path
        The file.
    dataset : str
        Path inside the file.
    shape : Zyx
        In voxels, in stored order.
    dtype : numpy.dtype
        Of one voxel, in the machine's byte order.
    block : Zyx
        One chunk, or a row where the dataset has none, in voxels.
    voxel_size_um : float or None
        From the attribute ``element_size_um``.
    """

    path: Path
    dataset: str
    shape: Zyx
    dtype: np.dtype[Any]
    block: Zyx
    voxel_size_um: float | None

    @property
    def name(self) -> str:
        """File and dataset."""
        return f"{self.path.name}{SEPARATOR}{self.dataset}"

    @property
    def identity(self) -> dict[str, Any]:
        """Names and byte size."""
        return {"kind": "hdf5", "dataset": self.dataset, **digest_files([self.path])}

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, in stored order, contiguous.

        Raises
        ------
        InputError
            A chunk does not decode.
        """
        out = np.empty(box.shape, self.dtype)
        try:
            self._open.read_direct(out, box.slices)
        except (OSError, RuntimeError) as error:
            msg = f"{self.name} cannot be read at {box}: {error}"
            raise InputError(msg) from error
        return out

    @cached_property
    def _open(self) -> h5py.Dataset:
        with _opening:
            return h5py.File(self.path, "r")[self.dataset]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}


_opening = threading.Lock()


def open_hdf5(path: Path, dataset: str = "") -> Hdf5Source:
    """Open a dataset; without a name, the only one of three axes.

    Parameters
    ----------
    path : Path
        The file.
    dataset : str
        Path inside the file, such as ``entry/data``.

    Returns
    -------
    Hdf5Source
        Nothing but metadata was read.

    Raises
    ------
    InputError
        Not HDF5, no such dataset, not a volume, or one that reaches outside the file.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        msg = f"{path.name} is no readable HDF5 file ({error}): copy it again"
        raise InputError(msg) from error
    with file:
        inside = _resolve(file, dataset or _only_volume(file, path), path)
        found = file[inside or "/"]
        where = f"{path.name}{SEPARATOR}{inside}"
        if not isinstance(found, h5py.Dataset) or found.ndim != len(DIMS):
            kind = f"{found.ndim} axes" if isinstance(found, h5py.Dataset) else "no voxels, it is a group"
            msg = f"{where} has {kind}: a volume has three axes; {_told(file)}"
            raise InputError(msg)
        if found.external or found.is_virtual:
            msg = f"{where} keeps its voxels in other files: write it anew into one file (h5repack)"
            raise InputError(msg)
        dtype = check_voxels(found.dtype, where)
        if 0 in found.shape:
            msg = f"{where} has shape {found.shape}: every axis needs at least one voxel"
            raise InputError(msg)
        shape = Zyx(*found.shape)
        chunk = Zyx(*found.chunks) if found.chunks else Zyx(1, 1, min(shape.x, BAND))
        edges = np.ravel(np.asarray(found.attrs.get("element_size_um", ())))
        size = one_voxel_size(edges.tolist()) if edges.dtype.kind in "uif" else None
        return Hdf5Source(path, inside, shape, dtype, chunk, size)


def _only_volume(file: h5py.File, path: Path) -> str:
    volumes = _volumes(file)
    if len(volumes) != 1:
        msg = f"{path.name} names no dataset: {_told(file)}"
        raise InputError(msg)
    return volumes[0]


def _volumes(file: h5py.File) -> list[str]:
    """Datasets of three axes that lie in the file itself; links are not followed."""
    found: list[str] = []

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim == len(DIMS):
            found.append(name)

    file.visititems(visit)
    return found


def _told(file: h5py.File) -> str:
    volumes = _volumes(file)
    if not volumes:
        return "it holds no dataset of three axes"
    return f"give one of {', '.join(f'{SEPARATOR}{name}' for name in volumes)}"


def _resolve(file: h5py.File, dataset: str, path: Path) -> str:
    """The dataset's path with its soft links replaced; no other file is touched.

    Raises
    ------
    InputError
        A link leads to another file or nowhere, or there is nothing.
    """
    todo = _parts(dataset)
    done: list[str] = []
    followed = 0
    while todo:
        group = file["/".join(done) or "/"]
        part = todo.pop(0)
        name = part.encode()
        if not isinstance(group, h5py.Group) or not group.id.links.exists(name):
            msg = f"{path.name} has no dataset {dataset!r}: {_told(file)}"
            raise InputError(msg)
        kind = group.id.links.get_info(name).type
        if kind == h5py.h5l.TYPE_EXTERNAL:
            msg = f"{path.name}{SEPARATOR}{dataset} leads to another file: name that file itself"
            raise InputError(msg)
        if kind != h5py.h5l.TYPE_SOFT:
            done.append(part)
            continue
        followed += 1
        if followed > LINKS:
            msg = f"{path.name}{SEPARATOR}{dataset} leads in a circle: name the dataset itself"
            raise InputError(msg)
        target = group.id.links.get_val(name).decode()
        done = [] if target.startswith("/") else done
        todo = _parts(target) + todo
    return "/".join(done)


def _parts(inside: str) -> list[str]:
    return [part for part in inside.split("/") if part not in ("", ".")]
