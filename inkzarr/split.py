"""Split: training windows that come too close to validation are dropped, so that no crop has seen the test.

::

    training window, with its crop's shift          validation window
    +- - -+=======+- - -+                           +=======+
    : jit |       | ter : <------- margin --------> |       |
    +- - -+=======+- - -+      box to box           +=======+
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.given import unify
from inkzarr.core.nearest import BoxTree
from inkzarr.core.patches import DEFAULT_WINDOW, Patches, read_patches, refuse_suffix, write_patches
from inkzarr.core.picture import contact_sheet
from inkzarr.core.progress import duration
from inkzarr.core.whole import whole

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

STAGE = "split"
Rule = Literal["box", "corner"]
PIXELS = 400
BACKGROUND, DROPPED, KEPT, VALID = (255, 255, 255), (205, 205, 205), (40, 90, 200), (220, 60, 40)


@dataclass(frozen=True)
class SplitSettings:
    """How far apart training and validation are kept.

    Parameters
    ----------
    margin : float
        In voxels, Euclidean.
    window : Zyx or None
        One window, in voxels, or one number; None is what the tables tell, 128 where they do not.
    jitter : int
        How far a training crop may be shifted along each axis, either way, in voxels.
    rule : str
        ``box``: from box to box. ``corner``: the original's, from corner to corner, without jitter.

    Raises
    ------
    InputError
        Negative, or an unknown rule.
    """

    margin: float = 512
    window: Zyx | None = None
    jitter: int = 0
    rule: Rule = "box"

    def __post_init__(self) -> None:
        unify(self, window=Zyx.of)
        if not 0 <= self.margin < math.inf or self.jitter < 0 or (self.window and min(self.window) < 1):
            told = f"margin {self.margin}, jitter {self.jitter} or window {self.window}"
            msg = f"{told} cannot be: use 0 or more voxels, and a window of 1 or more"
            raise InputError(msg)
        if self.rule not in get_args(Rule):
            msg = f"rule {self.rule!r} is unknown: use {' or '.join(get_args(Rule))}"
            raise InputError(msg)
        if self.rule == "corner" and self.jitter:
            msg = f"jitter {self.jitter} does not go with the rule corner: use the rule box"
            raise InputError(msg)


@dataclass(frozen=True)
class SplitReport:
    """What the split left.

    Parameters
    ----------
    out : str
        The table of training windows that are kept.
    kept, dropped, valid : int
        Windows.
    gap : float
        The smallest distance left, in voxels, as the rule measures it; infinite where none is kept.
    margin : float
        What was asked for.
    picture : str
        PNG of all windows in three projections.
    seconds : float
        In all.
    """

    out: str
    kept: int
    dropped: int
    valid: int
    gap: float
    margin: float
    picture: str
    seconds: float

    def __str__(self) -> str:
        """A line an item."""
        return (
            f"{self.out}: {self.kept} training windows kept, {self.dropped} dropped, for {self.valid} of "
            f"validation, in {duration(self.seconds)}\n"
            f"smallest gap left: {self.gap:g} voxels, {self.margin:g} asked for\n{self.picture}: the windows"
        )


def split(
    train: str | PathLike[str],
    valid: str | PathLike[str],
    out: str | PathLike[str],
    settings: SplitSettings = SplitSettings(),
) -> SplitReport:
    """Write the training windows that keep their distance to all validation windows.

    Parameters
    ----------
    train, valid : path
        Tables of windows; see `inkzarr.core.patches`.
    out : path
        Parquet, or ``.npy`` by its name; a PNG of the same stem is drawn beside it.
    settings : SplitSettings
        How far apart.

    Returns
    -------
    SplitReport
        With the smallest gap that is left.

    Raises
    ------
    InputError
        A table that cannot be read or is empty, or no window that is kept; nothing was written.
    """
    began = time.monotonic()
    refuse_suffix(out)
    _refuse_same(out, train, valid)
    trained, held = read_patches(train), read_patches(valid)
    return _write(trained, held, Path(out), settings, began)


def split_by_region(
    patches: str | PathLike[str],
    region: str | Box,
    valid_out: str | PathLike[str],
    out: str | PathLike[str],
    settings: SplitSettings = SplitSettings(),
) -> SplitReport:
    """Split one table: windows that lie wholly in a region are validation, the others train.

    Parameters
    ----------
    patches : path
        The table.
    region : str or Box
        ``z0:z1,y0:y1,x0:x1``, in voxels; a bound left out is the volume's own.
    valid_out, out : path
        Where the tables of validation and training windows are written.
    settings : SplitSettings
        How far apart.

    Returns
    -------
    SplitReport
        As `split`.

    Raises
    ------
    InputError
        As `split`; and a region that holds no window, or all of them.
    """
    began = time.monotonic()
    refuse_suffix(out)
    refuse_suffix(valid_out)
    _refuse_same(out, patches)
    _refuse_same(valid_out, patches, out)
    table = read_patches(patches)
    window = _window(table, settings)
    box = Box.parse(region, _reach(table, window)) if isinstance(region, str) else region
    inside = (table.corners >= box.start).all(1) & (table.corners + np.array(window) <= box.stop).all(1)
    if not inside.any() or inside.all():
        msg = f"region {box} holds {'all' if inside.any() else 'no'} windows of {patches}: choose another"
        raise InputError(msg)
    held, trained = table.take(inside, region=str(box)), table.take(~inside)
    near, _ = choose(trained, held, settings)
    _refuse_none(near, settings)
    write_patches(valid_out, held)
    return _write(trained, held, Path(out), settings, began)


def choose(
    train: Patches, valid: Patches, settings: SplitSettings = SplitSettings()
) -> tuple[NDArray[np.bool_], float]:
    """Which training windows come too near to validation, and the smallest gap of the others.

    Memory is that of the tables: no matrix of distances is ever made.

    Returns
    -------
    tuple of numpy.ndarray of bool, (n,), and float
        The gap in voxels; infinite where no window is left.

    Examples
    --------
    >>> train = Patches(np.array([[0, 0, 0], [0, 0, 200]]))
    >>> choose(train, Patches(np.array([[0, 0, 300]])), SplitSettings(margin=64))
    (array([False,  True]), 172.0)
    """
    if settings.rule == "corner":
        return BoxTree.of(2 * valid.corners).too_near(
            2 * train.corners, np.zeros(3, np.int64), settings.margin
        )
    mine, other = _window(train, settings), _window(valid, settings)
    centres = [2 * table.corners + np.array(size) for table, size in ((train, mine), (valid, other))]
    widths = np.array([a + b + 2 * settings.jitter for a, b in zip(mine, other, strict=True)])
    return BoxTree.of(centres[1]).too_near(centres[0], widths, settings.margin)


def draw(
    train: Patches, dropped: NDArray[np.bool_], valid: Patches, settings: SplitSettings, gap: float
) -> bytes:
    """A PNG of all windows, seen along z, y and x: blue trains, red validates, grey is dropped."""
    import io

    mine, other = np.array(_window(train, settings)), np.array(_window(valid, settings))
    stop = np.maximum((train.corners + mine).max(0), (valid.corners + other).max(0))
    start = np.minimum(train.corners.min(0), valid.corners.min(0))
    scale = float((stop - start).max()) / PIXELS
    planes, captions = [], []
    for along, name in enumerate("zyx"):
        axes = [axis for axis in range(3) if axis != along]
        shape = tuple(int(n) for n in np.ceil((stop - start)[axes] / scale).astype(int) + 1)
        plane = np.full((*shape, 3), BACKGROUND, np.uint8)
        layers = ((train.corners[dropped], mine, DROPPED), (train.corners[~dropped], mine, KEPT))
        for corners, size, colour in (*layers, (valid.corners, other, VALID)):
            plane[_covered(corners[:, axes] - start[axes], size[axes], scale, shape)] = colour
        planes.append(plane)
        captions.append(f"{'zyx'.replace(name, '')} seen along {name}, {scale:.3g} voxels a pixel")
    captions[0] += f"; smallest gap {gap:g}"
    file = io.BytesIO()
    contact_sheet([planes], [captions]).save(file, format="PNG")
    return file.getvalue()


def _covered(
    corners: NDArray[np.int64], size: NDArray[np.int64], scale: float, shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Pixels that any window covers: +1 and -1 at the corners of each, summed along both axes."""
    low = np.floor(corners / scale).astype(np.int64)
    high = np.maximum(low + 1, np.floor((corners + size) / scale).astype(np.int64))
    steps = np.zeros([n + 2 for n in shape], np.int64)
    for rows, cols, sign in ((low, low, 1), (high, low, -1), (low, high, -1), (high, high, 1)):
        np.add.at(steps, (rows[:, 0], cols[:, 1]), sign)
    covered: NDArray[np.bool_] = steps.cumsum(0).cumsum(1)[: shape[0], : shape[1]] > 0
    return covered


def _write(train: Patches, valid: Patches, out: Path, settings: SplitSettings, began: float) -> SplitReport:
    for table, name in ((train, "training"), (valid, "validation")):
        if not len(table):
            msg = f"the table of {name} windows is empty: write it with inkzarr patches"
            raise InputError(msg)
    near, gap = choose(train, valid, settings)
    _refuse_none(near, settings)
    told = {"margin": settings.margin, "jitter": settings.jitter, "rule": settings.rule, "gap": gap}
    write_patches(out, train.take(~near, split=told))
    picture = Path(f"{out}.png")
    with whole(picture) as partial:
        partial.write_bytes(draw(train, near, valid, settings, gap))
    dropped = int(np.count_nonzero(near))
    kept, seconds = len(train) - dropped, time.monotonic() - began
    return SplitReport(str(out), kept, dropped, len(valid), gap, settings.margin, str(picture), seconds)


def _window(table: Patches, settings: SplitSettings) -> Zyx:
    return settings.window or table.window or Zyx.of(DEFAULT_WINDOW)


def _reach(table: Patches, window: Zyx) -> Zyx:
    """The shape of the volume that the windows come from, or what they cover."""
    covered = (table.corners + np.array(window)).max(0) if len(table) else np.ones(3)
    told = table.lineage.get("shape") or covered
    return Zyx(*(int(max(a, b)) for a, b in zip(told, covered, strict=True)))


def _refuse_none(near: NDArray[np.bool_], settings: SplitSettings) -> None:
    if near.all():
        msg = f"no training window is {settings.margin:g} voxels from validation: use a smaller --margin"
        raise InputError(msg)


def _refuse_same(out: str | PathLike[str], *inputs: str | PathLike[str]) -> None:
    for name in inputs:
        if Path(out).resolve() == Path(name).resolve():
            msg = f"{out} is both read and written: choose another name for the result"
            raise InputError(msg)
