"""Quick pictures: a slice, three planes, a prediction over its scan; only the chunks that are shown are read.

Give a volume's URL, and the pyramid level that fits the picture is chosen; give an `xarray.DataArray` (of any
part of a volume), and it is drawn as it is. Axes are in micrometres, or voxels where the size is not known.
"""

from __future__ import annotations

import importlib
import io
from dataclasses import dataclass
from functools import cache
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from inkzarr.core.errors import InputError
from inkzarr.core.extras import require
from inkzarr.core.geometry import AXES
from inkzarr.core.labelled import open_label_levels
from inkzarr.core.picture import share, stretch
from inkzarr.core.store import as_dataarray, open_levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Volume = xr.DataArray | str | PathLike[str]
"""A lazy array with dims z, y, x, or the URL of a volume."""
Options = dict[str, Any] | None

PIXELS = 1024
"""Along the longer side of a plane; a coarser level is chosen, or voxels are left out, above."""
INCHES = 7.0
INK_COLOUR = "#ff5a00"


def slice(
    volume: Volume, *, axis: str = "z", at: int | None = None, storage_options: Options = None
) -> Figure:
    """Draw one plane of a volume.

    Parameters
    ----------
    volume : xarray.DataArray or str
        Dims z, y, x; or the URL of a volume.
    axis : str
        ``z``, ``y`` or ``x``: the plane lies across it.
    at : int, optional
        Where along the axis, in voxels of the full resolution, or of the array that is given; default: the
        middle.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    matplotlib.figure.Figure
        One picture in grey, stretched from the 1st to the 99th percentile.

    Raises
    ------
    InputError
        An unknown axis, a place outside the volume, or matplotlib is not installed.

    Examples
    --------
    >>> scan = xr.DataArray(np.ones((4, 8, 8), "uint8"), dims=("z", "y", "x"))
    >>> slice(scan, axis="y").axes[0].get_xlabel()
    'x (voxels)'
    """
    plane = read_plane(volume, axis, at, storage_options)
    figure, (axes,) = _figure([plane])
    _draw(axes, plane)
    return figure


def three_planes(
    volume: Volume, *, at: tuple[int, int, int] | None = None, storage_options: Options = None
) -> Figure:
    """Draw the planes across z, y and x that meet in one voxel, and where they cut each other.

    Parameters
    ----------
    volume : xarray.DataArray or str
        As `slice` takes it.
    at : tuple of three ints, optional
        z, y, x in voxels of the full resolution; default: the middle.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    matplotlib.figure.Figure
        Three pictures side by side, each with lines where the others lie.

    Raises
    ------
    InputError
        As `slice`.
    """
    asked = zip(AXES, at or (None,) * len(AXES), strict=True)
    planes = [read_plane(volume, axis, place, storage_options) for axis, place in asked]
    places = {plane.axis: plane.place for plane in planes}
    figure, each = _figure(planes)
    for axes, plane in zip(each, planes, strict=True):
        _draw(axes, plane)
        axes.axhline(places[plane.rows], color=INK_COLOUR, linewidth=0.5)
        axes.axvline(places[plane.columns], color=INK_COLOUR, linewidth=0.5)
    return figure


def overlay(
    scan: Volume,
    prediction: Volume,
    *,
    axis: str = "z",
    at: int | None = None,
    storage_options: Options = None,
) -> Figure:
    """Draw a plane of a scan in grey, and a prediction's in colour over it: the likelier ink, the less grey.

    Parameters
    ----------
    scan, prediction : xarray.DataArray or str
        As `slice` takes them, of the same place; the prediction's whole numbers run to their dtype's largest,
        its floats to 1, and what is below 0 (unlabelled) is not shown. A label group is shown as its ink.
    axis, at, storage_options : str, int, dict, optional
        As for `slice`.

    Returns
    -------
    matplotlib.figure.Figure
        One picture.

    Raises
    ------
    InputError
        As `slice`; or the two have different shapes.
    """
    below, above = (read_plane(volume, axis, at, storage_options) for volume in (scan, prediction))
    if below.shape != above.shape:
        msg = (
            f"the prediction has {above.shape} voxels, the scan {below.shape}: give volumes of the same place"
        )
        raise InputError(msg)
    figure, (axes,) = _figure([below])
    _draw(axes, below)
    opacity = share(above.pixels)
    colour = importlib.import_module("matplotlib.colors").to_rgb(INK_COLOUR)
    shown = np.dstack([np.broadcast_to(colour, (*opacity.shape, 3)), opacity])
    axes.imshow(shown, extent=above.extent, interpolation="nearest")
    return figure


@dataclass(frozen=True)
class Plane:
    """One plane of a volume, read.

    Parameters
    ----------
    pixels : numpy.ndarray
        Rows and columns.
    axis, rows, columns : str
        The axis that the plane lies across, and those of its rows and columns.
    place : float
        Where it lies along its axis, in `unit`.
    extent : tuple of four floats
        Left, right, bottom and top edge, in `unit`; rows go down.
    unit : str
        ``µm``, or ``voxels`` where their size is not known.
    shape : tuple of three ints
        Voxels of the whole volume, z y x.
    """

    pixels: np.ndarray
    axis: str
    rows: str
    columns: str
    place: float
    extent: tuple[float, float, float, float]
    unit: str
    shape: tuple[int, ...]


def read_plane(volume: Volume, axis: str, at: int | None, storage_options: Options = None) -> Plane:
    """Read one plane, in the level that fits a picture; parameters and errors as of `slice`."""
    if len(axis) != 1 or axis not in AXES:
        msg = f"axis {axis!r} is unknown: a plane lies across z, y or x"
        raise InputError(msg)
    rows, columns = (dim for dim in AXES if dim != axis)
    levels = [volume] if isinstance(volume, xr.DataArray) else _levels(str(volume), storage_options)
    sizes = levels[0].sizes
    at = sizes[axis] // 2 if at is None else at
    if not 0 <= at < sizes[axis]:
        msg = f"place {at} along {axis} is outside the volume: 0 to {sizes[axis] - 1} are inside"
        raise InputError(msg)
    fine = [one for one in levels if max(one.sizes[rows], one.sizes[columns]) >= PIXELS]
    shown = (fine or levels[:1])[-1]
    index = at * shown.sizes[axis] // sizes[axis]
    step = -(-max(shown.sizes[rows], shown.sizes[columns]) // PIXELS)
    pixels = shown.isel({axis: index}).transpose(rows, columns).to_numpy()[::step, ::step]
    um = levels[0].attrs.get("voxel_size_um")
    size = um or 1.0
    extent = (-size / 2, (sizes[columns] - 0.5) * size, (sizes[rows] - 0.5) * size, -size / 2)
    unit = "µm" if um else "voxels"
    return Plane(pixels, axis, rows, columns, at * size, extent, unit, tuple(sizes[dim] for dim in AXES))


def _levels(url: str, storage_options: Options) -> list[xr.DataArray]:
    """All resolutions of a volume or of labels, finest first, lazily."""
    labels = open_label_levels(url, storage_options=storage_options)
    return labels or [as_dataarray(one) for one in open_levels(url, storage_options=storage_options)]


def _figure(planes: list[Plane]) -> tuple[Figure, list[Axes]]:
    """A figure that no window shows, with room for some planes side by side."""
    kind = _shown_figure()
    shapes = [(plane.extent[2] - plane.extent[3], plane.extent[1] - plane.extent[0]) for plane in planes]
    widths = [columns for _, columns in shapes]
    tallest = max(rows for rows, _ in shapes)
    scale = INCHES / max(tallest, max(widths))
    figure = kind(
        figsize=(scale * sum(widths) + 1.2 * len(planes), max(2.0, scale * tallest) + 1.4),
        layout="constrained",
    )
    each = figure.subplots(1, len(planes), squeeze=False, width_ratios=widths)
    return figure, list(each[0])


@cache
def _shown_figure() -> type[Figure]:
    """The class of our figures: unlike plain ones, Jupyter shows them where pyplot was not imported."""
    require("matplotlib.figure", "a picture", "plot")
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return ShownFigure


def _draw(axes: Axes, plane: Plane) -> None:
    axes.imshow(
        stretch(plane.pixels), cmap="gray", extent=plane.extent, vmin=0, vmax=255, interpolation="nearest"
    )
    axes.set_xlabel(f"{plane.columns} ({plane.unit})")
    axes.set_ylabel(f"{plane.rows} ({plane.unit})")
    axes.set_title(f"{plane.axis} = {plane.place:g} {plane.unit}")
