"""The stages that write: their inputs, made once, and the command line of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = (8, 640, 256)
"""20 chunks of 128 x 128, 4 of them air."""
WIDE = (3, 2100, 1100)
"""Of the flattened volume: 6 tiles of 1024."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Parameters
    ----------
    words : callable
        From the place of the inputs and that of the outputs (folders or URLs) to the command line.
    volume : str
        What it writes of Zarr, in the place of the outputs; empty where it does not.
    file : bool
        Whether it writes a file or a folder that is begun anew, not resumed: it is whole once it is there.
    stored : bool
        Whether it reads volumes.
    ledger : bool
        Whether it keeps a ledger, or a training's state.
    """

    words: Callable[[str, str], list[str]]
    volume: str = ""
    file: bool = False
    stored: bool = True
    ledger: bool = True


LOCAL = "INPUTS"
"""Stands for the local folder of the inputs, also where the volumes are read from elsewhere."""
MADE = f"{LOCAL}/out"
"""Of the outputs that are local files."""
LEARNED = f"{LOCAL}/learned"


def _predict(home: str, out: str) -> list[str]:
    options = ["--window", "8,64,64", "--overlap", "0.5", "--block", "128", "--device", "cpu"]
    return ["predict", f"{home}/scan.zarr", f"{LOCAL}/unet.pt", f"{out}/ink.zarr", *options]


def _labels(_home: str, out: str) -> list[str]:
    options = ["--flat", "4", "--skip-blank", "20", "--block", "128"]
    return ["labels", f"{LOCAL}/scan.zarr", f"{LOCAL}/word.png", f"{out}/labels.zarr", *options]


def _components(home: str, out: str) -> list[str]:
    options = ["--min-voxels", "1", "--threshold", "0.6"]
    return ["components", f"{home}/scan.zarr", f"{MADE}/ids.parquet", "--labels", f"{out}/ids.zarr", *options]


def _sheet(home: str, _out: str) -> list[str]:
    pages = ["--min-voxels", "1", "--threshold", "0.6", "--sheet", f"{MADE}/letters.html"]
    return ["components", f"{home}/scan.zarr", f"{MADE}/letters.parquet", *pages]


def _shards(home: str, out: str) -> list[str]:
    return ["ingest", f"{home}/scan.zarr", f"{out}/s.zarr", "--zarr-format", "3", "--shard", "256"]


def _train(home: str, _out: str) -> list[str]:
    given = [f"{home}/learned/{name}" for name in ("scan.zarr", "labels.zarr")]
    tables = [f"{LEARNED}/train.parquet", f"{MADE}/run", "--config", f"{LEARNED}/run.toml"]
    return ["train", *given, *tables, "--resume"]


def _pretrain(home: str, _out: str) -> list[str]:
    options = ["--config", f"{LEARNED}/run.toml", "--resume"]
    return ["pretrain", f"{home}/learned/scan.zarr", f"{MADE}/run", *options]


def _patches(home: str, _out: str) -> list[str]:
    return ["patches", f"{home}/learned/labels.zarr", f"{MADE}/all.parquet", "--window", "12"]


def _split(_home: str, _out: str) -> list[str]:
    tables = [f"{LEARNED}/{name}.parquet" for name in ("train", "valid")]
    return ["split", *tables, f"{MADE}/far.parquet", "--margin", "4"]


def _evaluate(home: str, _out: str) -> list[str]:
    volumes = [f"{home}/learned/{name}.zarr" for name in ("scan", "labels")]
    return ["evaluate", *volumes, "--out", f"{MADE}/scores.html"]


STAGES = {
    "ingest": Stage(
        lambda _, out: ["ingest", f"{LOCAL}/scan.tif", f"{out}/scan.zarr", "--voxel-size", "8"], "scan.zarr"
    ),
    "ingest, shards": Stage(_shards, "s.zarr"),
    "labels": Stage(_labels, "labels.zarr"),
    "pyramid": Stage(lambda _, out: ["pyramid", f"{out}/scan.zarr", "--levels", "2"], "scan.zarr"),
    "predict": Stage(_predict, "ink.zarr"),
    "components": Stage(_components, "ids.zarr"),
    "components, page": Stage(_sheet, file=True, ledger=False),
    "flatten": Stage(
        lambda home, _: ["flatten", f"{home}/wide.zarr", "flat:1", f"{MADE}/sheet.png", "--depth", "1"]
    ),
    "export": Stage(
        lambda home, _: ["export", f"{home}/scan.zarr", f"{MADE}/scan.nrrd"], file=True, ledger=False
    ),
    "export, slices": Stage(
        lambda home, _: ["export", f"{home}/scan.zarr", f"{MADE}/slices/*.png"], file=True, ledger=False
    ),
    "patches": Stage(_patches, file=True, ledger=False),
    "split": Stage(_split, file=True, stored=False, ledger=False),
    "evaluate": Stage(_evaluate, file=True, ledger=False),
    "train": Stage(_train),
    "pretrain": Stage(_pretrain),
}
CLUSTER = ("ingest", "labels", "pyramid", "predict", "components")
"""Those whose blocks run on workers."""


def make(home: Path) -> None:
    """Write all inputs."""
    import tifffile
    import torch
    import zarr
    from PIL import Image

    from inkzarr.ingest import IngestSettings, ingest
    from inkzarr.nn.checkpoint import save_checkpoint
    from inkzarr.nn.unet import UNet3D
    from tests import learned

    rng = np.random.default_rng(0)
    scan = rng.integers(1, 255, SHAPE, dtype=np.uint8)
    scan[:, :256, :128] = scan[:, 512:, 128:] = 0
    tifffile.imwrite(home / "scan.tif", scan, photometric="minisblack")
    ingest(home / "scan.tif", home / "scan.zarr", IngestSettings(voxel_size_um=8))
    wide = rng.integers(1, 255, WIDE, dtype=np.uint8)
    zarr.create_array(home / "wide.zarr", data=wide, chunks=(3, 512, 512), zarr_format=2)
    word = rng.integers(0, 2, SHAPE[1:], dtype=np.uint8) * 255
    word[100:140] = 0
    Image.fromarray(word).save(home / "word.png")
    torch.manual_seed(0)
    save_checkpoint(home / "unet.pt", UNet3D(f_maps=4, levels=2))
    (home / "learned").mkdir()
    learned.make(home / "learned")
    (home / "learned" / "run.toml").write_text(
        learned.settings(home / "learned", epochs=1, save_every=1, window=learned.WINDOW).to_toml()
    )
