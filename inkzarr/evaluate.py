"""Evaluate: how well a prediction finds the ink that people painted, on a flattened sheet or in 3D.

::

    2D   sheet.png        beside  inklabels.png        every pixel that is in the mask
    3D   prediction.zarr  beside  labels.zarr          every labelled voxel in the windows, chunk by chunk

A pixel or voxel is ink where its (mean) painted value is 128 or more.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.given import unify
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.patches import DEFAULT_WINDOW, read_patches
from inkzarr.core.progress import Progress
from inkzarr.core.remote import is_remote, without_secrets
from inkzarr.core.schema import INK_THRESHOLD
from inkzarr.core.score_page import score_page
from inkzarr.core.scores import Scores, ScoreSummary
from inkzarr.core.store import open_stored
from inkzarr.core.whole import whole
from inkzarr.readers.label_png import open_label
from inkzarr.readers.sheet import SUFFIXES, read_sheet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from inkzarr.core.volume import StoredVolume

STAGE = "evaluate"
REMOTE_THREADS = 16
SHORT = 64
"""A label may lack fewer rows or columns: the step of a tifxyz grid is about 20 pixels."""
WIDEST = 1200
"""Pixels of a picture on the page."""
OUTLINE, RIGHT, FALSE, MISSED = (230, 60, 30), (250, 250, 250), (230, 120, 20), (40, 110, 220)

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Windows = tuple[NDArray[np.int64], NDArray[np.int64]] | None
"""First voxels, and one past the last; (n, 3) each."""


@dataclass(frozen=True)
class EvaluateSettings:
    """What is scored.

    Parameters
    ----------
    mask : path or None
        2D: a PNG; where it is 0 nothing is scored. Transparent pixels of the sheet never are.
    coarse : int
        2D: score squares of so many pixels as well, by the mean of the sheet and of the label: for a label
        that is not aligned to the pixel. 0: do not.
    patches : path or None
        3D: the table of windows that are scored, a voxel once even where they overlap; None: all voxels.
    window : Zyx or None
        3D: one window, in voxels, or one number, where the table does not tell; default 128.

    Raises
    ------
    InputError
        A negative or tiny square.
    """

    mask: str | PathLike[str] | None = None
    coarse: int = 0
    patches: str | PathLike[str] | None = None
    window: Zyx | None = None

    def __post_init__(self) -> None:
        unify(self, mask=os.fspath, patches=os.fspath, window=Zyx.of)
        if self.coarse < 0 or self.coarse == 1:
            msg = f"coarse {self.coarse} cannot be: give the edge of a square in pixels, 2 or more, or 0"
            raise InputError(msg)


@dataclass(frozen=True)
class ScoreReport:
    """How well it went.

    Parameters
    ----------
    prediction, label : str
        What was compared.
    scores : ScoreSummary
        Of pixels or voxels.
    coarse : ScoreSummary or None
        Of squares of pixels, where that was asked for.
    past_label : tuple of int
        Rows and columns at the end of the sheet for which the label has none; they are not scored.
    pictures : tuple of (str, numpy.ndarray)
        Captions and pictures, uint8 Y, X, 3; none in 3D.
    """

    prediction: str
    label: str
    scores: ScoreSummary
    coarse: ScoreSummary | None = None
    past_label: tuple[int, int] = (0, 0)
    pictures: tuple[tuple[str, np.ndarray], ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """The numbers, without curves (they are in `scores`, and on the page)."""
        told: dict[str, Any] = {"prediction": self.prediction, "label": self.label, **_numbers(self.scores)}
        if any(self.past_label):
            told |= {"past_label": list(self.past_label)}
        return told if self.coarse is None else told | {"coarse": _numbers(self.coarse)}

    def to_html(self) -> str:
        """One page with pictures and curves, that needs no other file."""
        parts = [("all", self.scores), *([("squares", self.coarse)] if self.coarse else [])]
        facts = {"prediction": self.prediction, "label": self.label, "in words": str(self.scores)}
        if any(self.past_label):
            facts["not scored"] = self._past()
        return score_page(f"Scores of {self.prediction}", parts, facts, self.pictures)

    def __str__(self) -> str:
        """A line an item."""
        squares = [] if self.coarse is None else [f"in squares: {self.coarse}"]
        past = [f"not scored: {self._past()}"] if any(self.past_label) else []
        return "\n".join([f"{self.prediction}: {self.scores}", *squares, *past])

    def _past(self) -> str:
        rows, columns = self.past_label
        return f"the last {rows} rows and {columns} columns of the sheet, which the label does not have"


def evaluate(
    prediction: str | PathLike[str],
    label: str | PathLike[str],
    settings: EvaluateSettings = EvaluateSettings(),
    *,
    out: str | PathLike[str] | None = None,
    storage_options: dict[str, Any] | None = None,
) -> ScoreReport:
    """Score a flattened sheet against its label, or a prediction volume against a label group.

    Parameters
    ----------
    prediction : path
        2D: ``.png`` or ``.tif``, 8-bit grey (in memory as a whole, with its label: 4 bytes a pixel).
        3D: the prediction volume, local or remote.
    label : path
        2D: the label PNG, as large as the sheet or padded by less than 256. It may also be smaller by less
        than 64 on a side, as one that ends at the last point of a tifxyz surface: what both have is
        scored, and the report tells what is not. 3D: the label group.
    settings : EvaluateSettings
        What is scored.
    out : path, optional
        An HTML page with the pictures and curves; replaced if it exists.
    storage_options : dict, optional
        For fsspec, in 3D.

    Returns
    -------
    ScoreReport
        Scores are None where they are not defined, such as without any ink.

    Raises
    ------
    InputError
        Files that cannot be used, or that do not fit each other.
    StoreError
        A chunk cannot be read.

    Examples
    --------
    >>> from PIL import Image
    >>> folder = getfixture("tmp_path")
    >>> Image.fromarray(np.array([[10, 200]], "uint8")).save(folder / "sheet.png")
    >>> Image.fromarray(np.array([[0, 255]], "uint8")).save(folder / "label.png")
    >>> evaluate(folder / "sheet.png", folder / "label.png").scores.auc
    1.0
    """
    page = None if out is None else _page_place(Path(out))
    if Path(str(prediction)).suffix.lower() in SUFFIXES:
        report = _evaluate_sheet(Path(prediction), Path(label), settings)
    else:
        report = _evaluate_volume(str(prediction), str(label), settings, storage_options)
    if page is not None:
        with whole(page) as partial:
            partial.write_text(report.to_html(), encoding="utf-8")
    return report


def _evaluate_sheet(path: Path, label_path: Path, settings: EvaluateSettings) -> ScoreReport:
    if settings.patches is not None:
        msg = f"{path} is a sheet, which has no windows: leave --patches out, or give a Zarr prediction"
        raise InputError(msg)
    values, scored = read_sheet(path)
    rows, cols = values.shape
    ink = _read(label_path, (rows, cols), (rows - SHORT + 1, cols - SHORT + 1)) >= INK_THRESHOLD
    past = rows - ink.shape[0], cols - ink.shape[1]
    both = slice(ink.shape[0]), slice(ink.shape[1])
    values, scored = values[both], None if scored is None else scored[both]
    if settings.mask is not None:
        kept: Bools = _read(Path(settings.mask), ink.shape, ink.shape) > 0
        scored = kept if scored is None else np.logical_and(scored, kept)
    scores = Scores()
    scores.add(values, ink, scored)
    summary = scores.summary()
    coarse = _score_squares(values, ink, scored, settings.coarse) if settings.coarse else None
    pictures = _draw(values, ink, scored, summary)
    return ScoreReport(path.name, label_path.name, summary, coarse, past, pictures)


def _read(path: Path, shape: tuple[int, ...], least: tuple[int, ...]) -> Bytes:
    label = open_label(path)
    label.check_size((shape[0], shape[1]), (least[0], least[1]))
    return label.read((shape[0], shape[1]))


def _score_squares(values: Bytes, ink: Bools, scored: Bools | None, edge: int) -> ScoreSummary:
    """Scores of squares: the mean of the sheet, and whether half or more is ink, of the pixels that count."""
    weight = np.ones(values.shape, np.bool_) if scored is None else scored
    share = shrink(weight, edge)
    known = share > 0
    probability, painted = (
        np.divide(shrink(array * weight, edge), share, out=np.zeros_like(share), where=known)
        for array in (values, ink)
    )
    scores = Scores()
    scores.add(np.minimum(probability / 255, 1), painted >= 0.5, known)
    return scores.summary()


def shrink(plane: np.ndarray, edge: int) -> NDArray[np.float64]:
    """Means of squares of `edge` pixels; the last ones may be smaller.

    Examples
    --------
    >>> shrink(np.array([[0, 2, 5], [4, 6, 7]], "uint8"), 2).tolist()
    [[3.0, 6.0]]
    """
    rows, cols = (np.arange(0, n, edge) for n in plane.shape)
    sums = np.stack([np.add.reduceat(plane[row : row + edge].sum(0, np.int64), cols) for row in rows])
    counts = np.outer(*(np.minimum(s + edge, n) - s for s, n in zip((rows, cols), plane.shape, strict=True)))
    means: NDArray[np.float64] = sums / counts
    return means


def _draw(
    values: Bytes, ink: Bools, scored: Bools | None, summary: ScoreSummary
) -> tuple[tuple[str, np.ndarray], ...]:
    """The sheet with the label's outline; and where it is right, says too much, or misses ink."""
    edge = max(1, -(-max(values.shape) // WIDEST))
    grey, painted = shrink(values, edge), shrink(ink, edge) >= 0.5
    overlay = np.repeat(grey[..., None], 3, -1)
    overlay[_outline(painted)] = OUTLINE
    threshold = round(255 * (0.5 if summary.best_threshold is None else summary.best_threshold))
    said = values >= threshold
    known = np.ones(values.shape, np.bool_) if scored is None else scored
    classes = ((said & ink, RIGHT), (said & ~ink, FALSE), (~said & ink, MISSED))
    errors = sum(shrink(where & known, edge)[..., None] * colour for where, colour in classes)
    told = f"one pixel is {edge} x {edge} of the sheet" if edge > 1 else "every pixel"
    return (
        (f"The sheet, with the label's outline in red; {told}.", _bytes(overlay)),
        (
            f"Ink said at {threshold / 255:.3f} or more: white where the label has it too, orange where it "
            f"has not, blue where ink is missed; {told}.",
            _bytes(np.asarray(errors)),
        ),
    )


def _outline(painted: Bools) -> Bools:
    """Pixels of the label of which a neighbour, up, down, left or right, is not."""
    around = np.pad(painted, 1, mode="edge")
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    found: Bools = painted & ~inner
    return found


def _bytes(picture: np.ndarray) -> Bytes:
    rounded: Bytes = np.floor(np.clip(picture, 0, 255) + 0.5).astype(np.uint8)
    return rounded


def _evaluate_volume(
    prediction_url: str, label_url: str, settings: EvaluateSettings, storage_options: dict[str, Any] | None
) -> ScoreReport:
    if settings.mask is not None or settings.coarse:
        msg = f"{prediction_url} is a volume: --mask and --coarse belong to a sheet, give --patches"
        raise InputError(msg)
    prediction = open_stored(prediction_url, storage_options=storage_options)
    ink, count = open_label_arrays(label_url, storage_options=storage_options)
    for volume in (prediction, ink, count):
        volume.require_finished()
    if prediction.shape != count.shape or (prediction.dtype != np.uint8 and prediction.dtype.kind != "f"):
        told = f"{tuple(prediction.shape)} {prediction.dtype}, the labels {tuple(count.shape)}"
        msg = f"{prediction.name} is {told}: give a prediction of the same scan, uint8 or float of 0 .. 1"
        raise InputError(msg)
    scores, made = Scores(), prediction.made
    clipped = ((box.clip(made), windows) for box, windows in _cells(count, settings))
    cells = [(box, windows) for box, windows in clipped if not box.empty]
    remote = is_remote(prediction.url) or is_remote(count.url)
    threads = REMOTE_THREADS if remote else os.cpu_count() or 1
    with Progress(STAGE, len(cells), unit="chunk") as progress, ThreadPoolExecutor(threads) as pool:
        pending: deque[Any] = deque()
        if made != Box.whole(prediction.shape):
            progress.say(
                f"{STAGE}: {prediction.name} is of box {made} alone, labels beyond it are not scored"
            )
        try:
            for box, windows in cells:
                pending.append(pool.submit(_score_chunk, prediction, ink, count, box, windows))
                if len(pending) > 2 * threads:
                    scores.merge(pending.popleft().result())
                    progress.advance(1)
            while pending:
                scores.merge(pending.popleft().result())
                progress.advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
    label_name = without_secrets(label_url).rstrip("/").rsplit("/", 1)[-1]
    return ScoreReport(prediction.name, label_name, scores.summary())


def _cells(count: StoredVolume, settings: EvaluateSettings) -> Iterator[tuple[Box, Windows]]:
    """The chunks of labels that windows touch, each with those windows; None: all of the chunk."""
    grid = Grid(count.shape, count.chunks)
    held = count.may_exceed(0)
    if settings.patches is None:
        yield from ((grid.box(Zyx(*map(int, at))), None) for at in np.argwhere(held))
        return
    table = read_patches(settings.patches)
    if not len(table):
        msg = f"{settings.patches} has no window: score without --patches, or give another table"
        raise InputError(msg)
    window = np.array(table.window or settings.window or Zyx.of(DEFAULT_WINDOW))
    first, last = table.corners // grid.cell, (table.corners + window - 1) // grid.cell
    if ((last < 0) | (first >= grid.counts)).any():
        shape = ",".join(map(str, count.shape))
        msg = f"{settings.patches} has windows outside {count.name} ({shape}): is it of other labels?"
        raise InputError(msg)
    first, last = np.maximum(first, 0), np.minimum(last, np.array(grid.counts) - 1)
    pairs = []
    for step in product(*(range(n + 1) for n in (last - first).max(0, initial=0))):
        at = first + step
        inside = np.flatnonzero((at <= last).all(-1))
        pairs.append(np.column_stack([np.ravel_multi_index(tuple(at[inside].T), grid.counts), inside]))
    both = np.unique(np.concatenate(pairs), axis=0)
    for rows in np.split(both, np.flatnonzero(np.diff(both[:, 0])) + 1):
        index = Zyx(*map(int, np.unravel_index(rows[0, 0], grid.counts)))
        if held[index]:
            corners = table.corners[rows[:, 1]]
            yield grid.box(index), (corners, corners + window)


def _score_chunk(
    prediction: StoredVolume, ink: StoredVolume, count: StoredVolume, box: Box, windows: Windows
) -> Scores:
    scores = Scores()
    labelled = count.read(box) > 0
    if windows is not None:
        inside = np.zeros(labelled.shape, np.bool_)
        for start, stop in zip(*windows, strict=True):
            inside[Box(Zyx.of(start.tolist()), Zyx.of(stop.tolist())).clip(box).within(box)] = True
        labelled &= inside
    if labelled.any():
        scores.add(prediction.read(box), ink.read(box) >= INK_THRESHOLD, labelled)
    return scores


def _numbers(summary: ScoreSummary) -> dict[str, Any]:
    told = summary.to_json()
    del told["curves"]
    return told


def _page_place(out: Path) -> Path:
    if out.suffix.lower() not in (".html", ".htm") or not out.parent.is_dir():
        msg = f"{out} cannot be the report: name an .html file in a folder that exists"
        raise InputError(msg)
    return out
