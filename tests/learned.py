"""A small scan whose ink can be learned in seconds; ``python learned.py FOLDER OUT [KILL_AT]`` trains on it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import zarr

SHAPE = (24, 48, 48)
WINDOW = (8, 16, 16)


def make(folder):
    """Write scan, labels, train.parquet, valid.parquet: noise, brighter where there is ink; half is labelled."""
    from inkzarr.core.geometry import Zyx
    from inkzarr.core.patches import Patches, write_patches

    rng = np.random.default_rng(0)
    truth = np.zeros(SHAPE, bool)
    truth[:, 8:20, 6:30] = truth[:, 30:40, 20:44] = True
    scan = (rng.integers(1, 120, SHAPE) + 90 * truth).astype(np.uint8)
    count = np.zeros(SHAPE, np.uint16)
    count[4:20, 4:44, :] = 1
    for name, array in (
        ("scan.zarr", scan),
        ("labels.zarr/ink", truth * np.uint8(255)),
        ("labels.zarr/count", count),
    ):
        zarr.create_array(folder / name, data=array, chunks=(16, 16, 16), zarr_format=2)
    zarr.open_group(folder / "labels.zarr", mode="a", zarr_format=2)
    places = np.stack(
        np.meshgrid(*(range(0, n, w) for n, w in zip(SHAPE, WINDOW, strict=True)), indexing="ij"), -1
    ).reshape(-1, 3)
    held = places[:, 2] == 32
    for name, chosen in (("train", ~held), ("valid", held)):
        write_patches(
            folder / f"{name}.parquet", Patches(places[chosen].astype(np.int64), window=Zyx.of(WINDOW))
        )
    return folder


def settings(folder, **more):
    """Two epochs of six steps."""
    from inkzarr.nn.config import Config

    given = {
        "epochs": 2,
        "batch": 3,
        "jitter": 3,
        "rate": 3e-3,
        "device": "cpu",
        "save_every": 2,
        "workers": 0,
    }
    given |= {"network": {"f_maps": 4, "levels": 3}, "valid_patches": str(folder / "valid.parquet")}
    return Config(**(given | more))


def run(folder, out, config, **more):
    """Train there."""
    from inkzarr.train import train

    return train(folder / "scan.zarr", folder / "labels.zarr", folder / "train.parquet", out, config, **more)


def die_at(step):
    """Kill this process, as if the power went, when it computes the gradients of a step."""
    from inkzarr.nn.gradients import Gradients

    honest, calls = Gradients.__call__, []

    def call(self, *given):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, *given)

    Gradients.__call__ = call


if __name__ == "__main__":
    home, target, more = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    die_at(more.pop("die_at", 0))
    run(home, target, settings(home, **more), resume=True)
