"""The whole way on a synthetic scroll with ink of known place, from slices to letters it was never shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile
from PIL import Image

from inkzarr.core.geometry import Grid, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.labelled import open_labels
from inkzarr.core.picture import contact_sheet
from inkzarr.core.store import open_volume
from inkzarr.evaluate import evaluate
from inkzarr.flatten import FlattenSettings, flatten
from inkzarr.ingest import IngestSettings, ingest
from inkzarr.labels import LabelSettings, labels
from inkzarr.nn.config import Config
from inkzarr.patches import PatchSettings, patches
from inkzarr.predict import PredictSettings, predict_volume
from inkzarr.pyramid import pyramid
from inkzarr.split import SplitSettings, split
from inkzarr.testing.synthetic import SyntheticScroll
from inkzarr.train import train

if TYPE_CHECKING:
    from os import PathLike

    from inkzarr.evaluate import ScoreReport

SCROLL = SyntheticScroll(shape=(336, 224, 224), seed=0)
LEARNED, HELD = 0.62, 0.72
"""Parts of the scroll's height: below the first, labels to learn from; above the second, labels held out."""
WINDOW, JITTER, MARGIN = 32, 8, 16
READ_WINDOW = 64
SLAB = 64
UNKNOWN = 90
DEPTH = 4
CONFIG = Config(
    window=WINDOW,
    jitter=JITTER,
    batch=4,
    epochs=5,
    rate=3e-3,
    ema=0.95,
    network={"f_maps": 8, "levels": 3},
    augment={"rotation": 0, "scale": (1, 1), "noise": 0, "intensity": (0.8, 1.25)},
)


def demo(folder: str | PathLike[str], scroll: SyntheticScroll = SCROLL, *, config: Config = CONFIG) -> str:
    """Take a synthetic scroll from slices to letters; those that are read lay in no training label.

    ::

        z   0 ------- learned -------|  gap  |------- held out ------- top
            labels of all windings,  |       |  labels that score alone;
            here the network learns  |       |  here letters are read

    Run again, it takes up where it stopped.

    Parameters
    ----------
    folder : path
        Receives what every stage makes; `letters.png` is the one to look at, `report.html` the score.
    scroll : SyntheticScroll
        What is read.
    config : Config
        Of the training.

    Returns
    -------
    str
        The files, what they hold, and the score.
    """
    home = Path(folder)
    held_rows = prepare(home, scroll)[1]
    scan, run, prediction = home / "scan.zarr", home / "run", home / "prediction.zarr"
    pyramid(str(scan))

    held = {"valid_labels": str(home / "held.zarr"), "valid_patches": str(home / "held.parquet")}
    train(scan, home / "learned.zarr", home / "train.parquet", run, config.with_(**held), resume=True)
    predict_volume(str(scan), str(run / "best.pt"), str(prediction), PredictSettings(window=READ_WINDOW))

    longest = max(scroll.segments(held_rows), key=lambda segment: segment.shape[1])
    surface = home / "held" / "paths" / longest.id / f"{longest.id}.ppm"
    afresh = RunOptions(overwrite=True)
    flatten(scan, surface, home / "papyrus.png", FlattenSettings(depth=0), afresh)
    flatten(prediction, surface, home / "sheet.png", FlattenSettings(depth=DEPTH), afresh)
    label = home / "held" / "inklabels" / f"{longest.id}_inklabels.png"
    score = evaluate(home / "sheet.png", label, out=home / "report.html")

    _draw(home, held_rows, label)
    return _told(home, score)


def prepare(home: Path, scroll: SyntheticScroll, *, only: tuple[str, ...] = ()) -> tuple[slice, slice]:
    """Make what training needs: the scan, labels to learn from and labels held out, and windows of both.

    Parameters
    ----------
    home : pathlib.Path
        Receives them.
    scroll : SyntheticScroll
        What is scanned.
    only : tuple of str
        Segments to learn from; default: all.

    Returns
    -------
    tuple of slice
        Rows of the sheet to learn from, and those held out.
    """
    cuts = slice(0, int(LEARNED * scroll.shape[0])), slice(int(HELD * scroll.shape[0]), scroll.shape[0])
    scan = home / "scan.zarr"
    _write_slices(scroll, home / "slices")
    ingest(str(home / "slices"), str(scan), IngestSettings(voxel_size_um=scroll.voxel_size_um))
    for name, rows, chosen in zip(("learned", "held"), cuts, (only, ()), strict=True):
        scroll.write_segments(home / name, rows=rows)
        sources = home / name / "paths", home / name / "inklabels"
        labels(*sources, home / f"{name}.zarr", LabelSettings(like=str(scan), only=chosen))
        patches(home / f"{name}.zarr", home / f"{name}.parquet", PatchSettings(window=Zyx.of(WINDOW)))
    tables = home / "learned.parquet", home / "held.parquet", home / "train.parquet"
    split(*tables, SplitSettings(margin=MARGIN, jitter=JITTER))
    return cuts


def _write_slices(scroll: SyntheticScroll, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(Zyx.of(scroll.shape), Zyx(SLAB, *scroll.shape[1:]))
    for layer in map(grid.box, grid.indices()):
        for z, plane in enumerate(scroll.block(layer), layer.start.z):
            tifffile.imwrite(folder / f"{z:04}.tif", plane.astype(np.uint16) * 257, compression="lzw")


def _draw(home: Path, held: slice, label: Path) -> None:
    """A slice across the held-out part, and its longest winding as a sheet."""
    z = (held.start + held.stop) // 2
    scan, found = (open_volume(str(home / name))[z].values for name in ("scan.zarr", "prediction.zarr"))
    known = open_labels(str(home / "held.zarr"))[z].values
    across = np.hstack([scan, found, np.where(known < 0, UNKNOWN, known * 255).astype(np.uint8)])
    sheets = [np.asarray(Image.open(path)) for path in (home / "papyrus.png", home / "sheet.png", label)]
    captions = [
        f"z = {z}: scan | prediction | held-out label (grey: unlabelled)",
        "the longest winding, flattened: papyrus",
        "ink, as predicted by a network that saw no label of this part",
        "ink, as it is",
    ]
    rows = [[across], *([sheet] for sheet in sheets)]
    contact_sheet(rows, [[caption] for caption in captions]).save(home / "letters.png")


def _told(home: Path, score: ScoreReport) -> str:
    found = {
        "scan.zarr": "the scan as OME-Zarr, with a pyramid, out of slices/",
        "learned.zarr, held.zarr": "ink labels in 3D: to learn from, and held out",
        "train.parquet": "training windows that keep their distance to held.parquet",
        "run": "the network, its log, and samples of every epoch",
        "prediction.zarr": "the probability of ink, 0 to 255",
        "sheet.png": "the prediction along the longest winding of the held-out part",
        "report.html": f"its score: {score.scores}",
        "letters.png": "all of it in one picture: look at this one",
    }
    return "\n".join(f"{home / name}  {what}" for name, what in found.items())
