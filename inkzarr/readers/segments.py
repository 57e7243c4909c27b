"""Segments on disk: a tree of surfaces and a folder of labels, matched by id.

::

    PATHS/{id}/{id}.ppm (+ {id}_mask.png)     INK/{id}_inklabels.png
    PATHS/{id}/{id}.tifxyz/                   INK/{id}_supervision_mask.png   (if there is one)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inkzarr.core.errors import InputError
from inkzarr.core.ppm import mask_path
from inkzarr.core.surface import Surface, flat_surface, open_surface
from inkzarr.readers.label_png import LabelPng, open_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inkzarr.readers.checksums import FileSums

LABEL, SUPERVISION = "_inklabels.png", "_supervision_mask.png"
SHOWN = 5


@dataclass(frozen=True)
class Segment:
    """A surface and what is painted on it.

    Parameters
    ----------
    id : str
        Its name.
    surface : Surface
        Where its pixels lie.
    label : LabelPng
        Nonzero is ink, 255 is certain.
    supervision : LabelPng or None
        Where it is not 0 the label counts; None: everywhere.
    files : tuple of pathlib.Path
        All that it is read from.
    instead_of : tuple of str
        Other versions of it that are left out: older ones, and those without a label.
    """

    id: str
    surface: Surface
    label: LabelPng
    supervision: LabelPng | None
    files: tuple[Path, ...]
    instead_of: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that the surface, the label and its supervision mask all have."""
        pngs = [self.label, *([self.supervision] if self.supervision else [])]
        rows, cols = map(min, self.surface.shape, *(png.shape for png in pngs))
        return rows, cols

    def told(self, sums: FileSums) -> dict[str, dict[str, Any]]:
        """Bytes and crc32c of every file, by name."""
        found = {path.name: sums[str(path.absolute())] for path in self.files}
        return {name: {"bytes": one.bytes, "crc32c": one.crc32c} for name, one in found.items()}

    def provenance(self, sums: FileSums, pixels: dict[str, int]) -> dict[str, Any]:
        """Its files, what became of its pixels, and the versions that it stands for; JSON."""
        left = {"instead_of": list(self.instead_of)} if self.instead_of else {}
        return {"files": self.told(sums), "pixels": pixels, **left}

    @property
    def unpacked_bytes(self) -> int:
        """Memory that its label and masks take at their peak, beside tiles of its surface."""
        pngs = [self.label.header, *([self.supervision.header] if self.supervision else [])]
        mask = 3 * self.surface.shape[0] * self.surface.shape[1] if self.surface.masked else 0
        return sum(png.unpacked_bytes for png in pngs) + mask


def files_of(segments: Iterable[Segment]) -> list[Path]:
    """All that segments are read from."""
    return [path for segment in segments for path in segment.files]


def find_segments(
    paths: str | Path,
    ink: str | Path,
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    all_versions: bool = False,
) -> list[Segment]:
    """All segments of a scroll, by id; headers and sizes are checked, no pixel is read.

    Parameters
    ----------
    paths : path
        The tree of surfaces, or one surface: a ``.ppm`` file or a tifxyz folder.
    ink : path
        The folder of labels, or the label of the one surface.
    only, exclude : sequence of str
        Ids to take, and to leave out; ``*`` and ``?`` stand for anything.
    all_versions : bool
        Of ids that differ in the last character only, keep all; else the newest that has a label counts.

    Raises
    ------
    InputError
        Nothing found, an id that is not there, a surface without a label, or files that do not fit.
    """
    tree, folder = Path(paths), Path(ink)
    for place in (tree, folder):
        if not place.exists():
            msg = f"{place} does not exist: give the segments' folder, then the labels' folder"
            raise InputError(msg)
    if tree.is_file() or (tree / "meta.json").exists():
        surfaces = {tree.stem: tree}
    else:
        within = ((child.name, _surface_in(child)) for child in sorted(tree.iterdir()) if child.is_dir())
        surfaces = {name: surface for name, surface in within if surface is not None}
    if not surfaces:
        msg = f"{tree} holds no segment: a segment is {{id}}/{{id}}.ppm or {{id}}/{{id}}.tifxyz"
        raise InputError(msg)
    chosen = _choose(list(surfaces), only, exclude, tree)
    labels = {name: folder if folder.is_file() else folder / f"{name}{LABEL}" for name in chosen}
    if folder.is_file() and len(chosen) > 1:
        msg = f"{folder} is one label, {tree} holds {len(chosen)} segments: give a folder, or --only ID"
        raise InputError(msg)
    versions: dict[str, tuple[str, ...]] = dict.fromkeys(chosen, ())
    if not all_versions:
        versions = _newest(chosen, {name for name, path in labels.items() if path.exists()})
    missing = [name for name in versions if not labels[name].is_file()]
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        msg = f"no label for {shown} in {folder}: add {missing[0]}{LABEL}, or leave out with --exclude"
        raise InputError(msg)
    found = (_open(name, surfaces[name], labels[name]) for name in versions)
    return [replace(segment, instead_of=versions[segment.id]) for segment in found]


def flat_segment(ink: str | Path, plane: tuple[int, int], z: float) -> Segment:
    """The label of a flattened segment, at height `z` of its surface volume.

    Parameters
    ----------
    ink : path
        The label.
    plane : tuple of int
        Rows and columns of the surface volume.
    z : float
        In voxels.

    Raises
    ------
    InputError
        No label, or of another size.
    """
    label = open_label(ink)
    label.check_size(plane, plane)
    name = label.path.stem.removesuffix(LABEL.removesuffix(".png"))
    mask = label.path.with_name(f"{name}{SUPERVISION}")
    supervision = _supervision(mask, plane, plane)
    files = (label.path, *((mask,) if supervision else ()))
    return Segment(name, flat_surface(plane, z), label, supervision, files)


def _surface_in(folder: Path) -> Path | None:
    for name in (f"{folder.name}.ppm", f"{folder.name}.tifxyz"):
        if (folder / name).exists():
            return folder / name
    return None


def _choose(names: list[str], only: Sequence[str], exclude: Sequence[str], tree: Path) -> list[str]:
    for pattern in (*only, *exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            msg = f"segment {pattern} is not in {tree}: it holds {', '.join(names[:SHOWN])}"
            raise InputError(msg)
    taken = [n for n in names if not only or any(fnmatchcase(n, pattern) for pattern in only)]
    taken = [n for n in taken if not any(fnmatchcase(n, pattern) for pattern in exclude)]
    if not taken:
        msg = f"--only and --exclude leave no segment of {tree}: name fewer"
        raise InputError(msg)
    return taken


def _newest(names: Iterable[str], labelled: set[str]) -> dict[str, tuple[str, ...]]:
    """Of ids that differ in the last character the last with a label, else the last; and the others."""
    groups = [list(versions) for _, versions in groupby(sorted(names), key=lambda name: name[:-1])]
    newest = [([v for v in versions if v in labelled] or versions)[-1] for versions in groups]
    return {
        name: tuple(v for v in versions if v != name) for name, versions in zip(newest, groups, strict=True)
    }


def _open(name: str, path: Path, label_path: Path) -> Segment:
    surface, label = open_surface(path), open_label(label_path)
    # past the last grid point of a coarse surface no pixel has a place: a label may end there, or just before
    axes = zip(surface.shape, surface.stored_shape, strict=True)
    rows, cols = (n if n == stored else -(-(stored - 1) * n // stored) for n, stored in axes)
    label.check_size(surface.shape, (rows, cols))
    mask = label_path.with_name(f"{name}{SUPERVISION}")
    supervision = _supervision(mask, surface.shape, (rows, cols))
    files = (*surface_files(path), label_path, *((mask,) if supervision else ()))
    return Segment(name, surface, label, supervision, files)


def _supervision(path: Path, surface: tuple[int, int], least: tuple[int, int]) -> LabelPng | None:
    if not path.exists():
        return None
    mask = open_label(path)
    mask.check_size(surface, least)
    return mask


def surface_files(path: Path) -> list[Path]:
    """All that a surface is read from: the planes of a tifxyz folder, or a PPM and its mask."""
    if path.is_dir():
        return [part for part in sorted(path.iterdir()) if part.suffix in (".tif", ".json")]
    return [path, *filter(Path.exists, [mask_path(path)])]
