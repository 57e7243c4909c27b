"""Viewer: slices of a volume in Jupyter, with a prediction laid over them; only what is on screen is read.

::

    finest level               coarser level
    +-----------------+        +--------+
    |     +-----+     |        | screen |     a screen has at most 512 x 512 pixels: zoomed out,
    |     |  *  |     |        |   *    |     it shows a coarser level of the pyramid
    |     +-----+     |        +--------+     * the centre: z, y, x in voxels of the finest level
    +-----------------+
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from inkzarr.core.errors import InkzarrError, InputError
from inkzarr.core.extras import require
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.picture import contrast, png, share
from inkzarr.core.store import open_levels
from inkzarr.core.volume import StoredVolume

if TYPE_CHECKING:
    from os import PathLike

    from ipywidgets import VBox

    Levels = tuple[xr.DataArray | StoredVolume, ...]

SCREEN = 512
"""Pixels of the screen along each side, at most."""
KEPT = 16
"""Screens in memory, so that contrast and opacity change without a read."""
INK_COLOUR = (255, 96, 0)


class Screen(NamedTuple):
    """What is read for one picture.

    Parameters
    ----------
    box : Box
        One slice of the level's voxels.
    grey : numpy.ndarray
        Y, X, of the volume's dtype.
    ink : numpy.ndarray or None
        Y, X, 0 to 1; None where there is no prediction at that level.
    """

    box: Box
    grey: np.ndarray
    ink: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Scene:
    """A volume and its prediction, each with its levels, finest first.

    Parameters
    ----------
    scan, ink : tuple of arrays
        The levels of the volume and of the prediction, which may have fewer, or none at all.

    Raises
    ------
    InputError
        The prediction's shape is not the volume's.
    """

    scan: Levels
    ink: Levels = ()

    def __post_init__(self) -> None:
        if self.ink and self.ink[0].shape != self.scan[0].shape:
            msg = f"prediction {self.ink[0].shape} does not fit volume {self.scan[0].shape}: give that scan's"
            raise InputError(msg)

    @property
    def first_level(self) -> int:
        """The finest level of which a whole slice is on the screen; else the coarsest."""
        fitting = (n for n, level in enumerate(self.scan) if max(level.shape[1:]) <= SCREEN)
        return next(fitting, len(self.scan) - 1)

    def box(self, level: int, centre: Zyx) -> Box:
        """The part of a level on the screen, in its voxels; `centre` in voxels of the finest level."""
        shape, finest = Zyx(*self.scan[level].shape), self.scan[0].shape
        extent = Zyx(1, min(SCREEN, shape.y), min(SCREEN, shape.x))
        axes = zip(centre, shape, finest, extent, strict=True)
        start = Zyx(*(min(max(0, c * n // full - e // 2), n - e) for c, n, full, e in axes))
        return Box(start, Zyx(*(s + e for s, e in zip(start, extent, strict=True))))

    def read(self, level: int, centre: Zyx) -> Screen:
        """Read what is on the screen, and nothing else.

        Raises
        ------
        StoreError
            A chunk cannot be had.
        """
        box, scan = self.box(level, centre), self.scan[level]
        ink = next((one for one in self.ink if one.shape == scan.shape), None)
        return Screen(box, _plane(scan, box), None if ink is None else share(_plane(ink, box)))


def paint(screen: Screen, contrast: tuple[float, float], opacity: float) -> np.ndarray:
    """The picture: grey, and ink in orange where the network sees any.

    Parameters
    ----------
    screen : Screen
        What was read.
    contrast : tuple of float
        Values of the volume that are black and white.
    opacity : float
        Of certain ink, 0 to 1.

    Returns
    -------
    numpy.ndarray
        uint8, Y, X, 3.

    Examples
    --------
    >>> box = Box.whole((1, 1, 2))
    >>> screen = Screen(box, np.array([[0, 100]]), np.array([[0.0, 1.0]]))
    >>> paint(screen, (0, 200), 0.5).tolist()
    [[[0, 0, 0], [191, 112, 64]]]
    """
    low, high = contrast
    grey = np.clip((np.nan_to_num(screen.grey.astype(np.float64)) - low) / max(high - low, 1e-12), 0, 1)
    colours = np.repeat(255 * grey[..., None], 3, axis=-1)
    if screen.ink is not None:
        weight = opacity * screen.ink[..., None]
        colours = (1 - weight) * colours + weight * np.array(INK_COLOUR)
    picture: np.ndarray = np.floor(colours + 0.5).astype(np.uint8)
    return picture


def slices(
    volume: xr.DataArray | str | PathLike[str],
    prediction: xr.DataArray | str | PathLike[str] | None = None,
    *,
    storage_options: dict[str, Any] | None = None,
) -> VBox:
    """Look through the slices of a volume in Jupyter, with a prediction over them.

    Parameters
    ----------
    volume : xarray.DataArray, path or URL
        A URL brings its pyramid: zoomed out, a coarser level is read. An array is shown at full resolution.
    prediction : xarray.DataArray, path or URL, optional
        Of the same shape: uint8, or float from 0 to 1. A lazy one is computed where it is on the screen.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    ipywidgets.VBox
        Sliders for z, y, x, zoom, contrast and opacity above the picture.

    Raises
    ------
    InputError
        ipywidgets is not installed, or the prediction does not fit the volume.
    StoreError
        A store failed; when a slider is moved it is told below the picture.
    """
    ipywidgets = require("ipywidgets", "the viewer", "jupyter")
    scene = Scene(
        _levels(volume, storage_options), () if prediction is None else _levels(prediction, storage_options)
    )
    read = lru_cache(KEPT)(scene.read)
    shape = scene.scan[0].shape
    scrub = prediction is None  # what is computed follows when the slider is let go
    place = {
        axis: ipywidgets.IntSlider(n // 2, 0, n - 1, description=axis, continuous_update=scrub)
        for axis, n in zip("zyx", shape, strict=True)
    }
    zooms = [(_zoom(level.shape, shape), n) for n, level in enumerate(scene.scan)]
    zoom = ipywidgets.Dropdown(options=zooms, value=scene.first_level, description="zoom")
    middle = read(zoom.value, Zyx(*(n // 2 for n in shape)))
    contrast = _contrast_slider(middle.grey)
    opacity = ipywidgets.FloatSlider(0.7, min=0, max=1, step=0.05, description="ink")
    opacity.disabled = prediction is None
    picture, told = ipywidgets.Image(format="png", layout={"align_self": "flex-start"}), ipywidgets.Label()

    def show(_change: object = None) -> None:
        centre = Zyx(*(place[axis].value for axis in "zyx"))
        try:
            screen = read(zoom.value, centre)
        except InkzarrError as error:
            told.value = str(error)
            return
        colours = paint(screen, contrast.value, opacity.value)
        larger = max(1, SCREEN // max(colours.shape))
        picture.value = png(colours.repeat(larger, 0).repeat(larger, 1))
        absent = ", no prediction at this zoom" if scene.ink and screen.ink is None else ""
        told.value = f"level {zoom.value}, voxels {screen.box}{absent}"

    for control in (*place.values(), zoom, contrast, opacity):
        control.observe(show, "value")
    show()
    rows = [place["z"], ipywidgets.HBox([place["y"], place["x"]]), ipywidgets.HBox([zoom, contrast, opacity])]
    return ipywidgets.VBox([*rows, picture, told])


def _levels(volume: xr.DataArray | str | PathLike[str], storage_options: dict[str, Any] | None) -> Levels:
    if isinstance(volume, xr.DataArray):
        return (volume,)
    return tuple(open_levels(os.fspath(volume), storage_options=storage_options))


def _plane(volume: xr.DataArray | StoredVolume, box: Box) -> np.ndarray:
    voxels = np.asarray(volume[box.slices])
    return voxels.reshape(voxels.shape[1:])


def _zoom(shape: tuple[int, ...], finest: tuple[int, ...]) -> str:
    return f"1:{max(finest) / max(shape):.3g}"


def _contrast_slider(grey: np.ndarray) -> Any:  # noqa: ANN401
    """From the least to the largest value there may be, set so that most of `grey` is told apart."""
    import ipywidgets

    low, high = contrast(grey) or (0.0, 1.0)
    least, most = float(min(0, low)), float(max(high, 1))
    if grey.dtype.kind in "ui":
        least, most = float(np.iinfo(grey.dtype).min), float(np.iinfo(grey.dtype).max)
    return ipywidgets.FloatRangeSlider(
        value=(low, high), min=least, max=most, step=(most - least) / 255, description="contrast"
    )
