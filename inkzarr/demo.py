"""The main job on a synthetic scroll with ink of known place, from slices to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from inkzarr.core.geometry import Box
from inkzarr.core.picture import contact_sheet
from inkzarr.core.progress import Progress
from inkzarr.core.store import open_volume
from inkzarr.ingest import IngestSettings, ingest
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.fit import fit_on_truth
from inkzarr.predict import PredictSettings, predict_volume
from inkzarr.pyramid import pyramid
from inkzarr.testing.synthetic import SyntheticScroll

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

SCROLL = SyntheticScroll(shape=(192, 256, 256), seed=0)
TEACHER = SyntheticScroll(shape=(96, 192, 192), seed=1)
"""Another scroll: the network has never seen the one it reads."""
WINDOW = 64
DEPTH = 3


def demo(folder: str | PathLike[str], scroll: SyntheticScroll = SCROLL, *, steps: int = 120) -> str:
    """Ingest a synthetic scroll, fit a small network on another one, predict, and draw what was found.

    Run again, it takes up where it stopped.

    Parameters
    ----------
    folder : path
        Receives ``slices/``, ``scan.zarr``, ``unet.pt``, ``prediction.zarr`` and ``letters.png``.
    scroll : SyntheticScroll
        What is read.
    steps : int
        Of the fit.

    Returns
    -------
    str
        The files, and what they hold.
    """
    home = Path(folder)
    slices, scan, checkpoint = home / "slices", home / "scan.zarr", home / "unet.pt"
    prediction, picture = home / "prediction.zarr", home / "letters.png"
    _write_slices(scroll, slices)
    ingest(str(slices), str(scan), IngestSettings(voxel_size_um=scroll.voxel_size_um))
    pyramid(str(scan))
    if not checkpoint.exists():
        _fit(TEACHER, checkpoint, steps)
    predict_volume(str(scan), str(checkpoint), str(prediction), PredictSettings(window=WINDOW))
    _draw(scroll, scan, prediction, picture)
    found = {
        slices: f"the scan as {scroll.shape[0]} TIFF slices of 16 bit",
        scan: "the scan as OME-Zarr, with a pyramid",
        checkpoint: "a small network, fitted on another synthetic scroll",
        prediction: "the probability of ink, 0 to 255",
        picture: "scan | prediction | truth: look at this one",
    }
    return "\n".join(f"{path}  {what}" for path, what in found.items())


def _write_slices(scroll: SyntheticScroll, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scan = scroll.block(Box.whole(scroll.shape))
    for z, plane in enumerate(scan):
        tifffile.imwrite(folder / f"{z:04}.tif", plane.astype(np.uint16) * 257, compression="lzw")


def _fit(teacher: SyntheticScroll, checkpoint: Path, steps: int) -> None:
    whole = Box.whole(teacher.shape)
    volume, truth = teacher.block(whole), teacher.truth_block(whole)
    with Progress("fit", steps, unit="step") as progress:

        def tell(_done: int, _steps: int, _loss: float) -> None:
            progress.advance(1)

        model = fit_on_truth(volume, truth, steps=steps, progress=tell)
    save_checkpoint(checkpoint, model, lineage={"stage": "demo", "source": f"synthetic, seed {teacher.seed}"})


def _draw(scroll: SyntheticScroll, scan: Path, prediction: Path, picture: Path) -> None:
    """One slice across the scroll, and the outermost winding unrolled along its true surface."""
    grey, ink = open_volume(str(scan)).values, open_volume(str(prediction)).values
    truth = scroll.truth_block(Box.whole(scroll.shape)) * np.uint8(255)
    middle = scroll.shape[0] // 2
    names = ("scan", "prediction", "truth")
    across = [volume[middle] for volume in (grey, ink, truth)]
    segment = scroll.segments()[-1]
    rows, cols = (slice(0, n) for n in segment.shape)
    tile = segment.surface.tile(rows, cols)
    layers = {"scan": (0,), "prediction": range(-DEPTH, DEPTH + 1), "ink label": ()}
    along = [_sample(grey, tile.points, tile.normals, layers["scan"])]
    along += [_sample(ink, tile.points, tile.normals, layers["prediction"]), segment.label]
    sheet = contact_sheet(
        [[np.hstack(across)], *([plane] for plane in along)],
        [
            [f"{' | '.join(names)}: the slice at z = {middle}"],
            *([f"{name}: the outermost winding, unrolled"] for name in layers),
        ],
    )
    sheet.save(picture)


def _sample(volume: np.ndarray, points: np.ndarray, normals: np.ndarray, depths: Sequence[int]) -> np.ndarray:
    """The largest of the voxels nearest to a surface at some depths; rows, columns."""
    last = np.array(volume.shape) - 1
    found = np.zeros(points.shape[:2], volume.dtype)
    for depth in depths:
        z, y, x = np.moveaxis(np.clip(np.rint(points + depth * normals).astype(int), 0, last), -1, 0)
        found = np.maximum(found, volume[z, y, x])
    return found
