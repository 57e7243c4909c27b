"""How much memory a run adds to what its imports hold: ``python peak.py copy|predict FOLDER Z,Y,X``; prints bytes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import zarr

BLOCK, TILE = 128, 256


def held(name):
    """A line of this process's status, in bytes: VmRSS now, VmHWM at most since `forget`."""
    return 1024 * int(re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def forget():
    Path("/proc/self/clear_refs").write_text("5")


def make(folder, shape):
    """A scan of faint voxels that must all be read, with a bright spot in every eighth block."""
    scan = zarr.create_array(
        folder / "scan.zarr", shape=shape, chunks=(128,) * 3, dtype="uint8", zarr_format=2
    )
    tile = np.ones((TILE,) * 3, "uint8")
    tile[::2, 1::3] = 0
    tile[40, 40, 40] = 200
    for index in np.ndindex(*(n // TILE for n in shape)):
        scan[tuple(slice(i * TILE, (i + 1) * TILE) for i in index)] = tile


def copy(folder, shape):
    from inkzarr.core.geometry import Zyx
    from inkzarr.core.job import Job, RunOptions
    from inkzarr.core.runner import write_blocks
    from inkzarr.core.schema import VolumeSpec
    from inkzarr.core.store import open_stored

    stored = open_stored(str(folder / "scan.zarr"))
    job = Job(
        "copy",
        str(folder / "out.zarr"),
        VolumeSpec(Zyx.of(shape), stored.dtype),
        Zyx.of(BLOCK),
        {},
        workers=2,
    )
    return lambda: write_blocks(job, stored.read, RunOptions())


def predict(folder, shape):
    from inkzarr.nn.checkpoint import save_checkpoint
    from inkzarr.nn.unet import UNet3D
    from inkzarr.predict import PredictSettings, predict_volume

    save_checkpoint(folder / "unet.pt", UNet3D(f_maps=4, levels=2))
    settings = PredictSettings(window=64, overlap=0, block=BLOCK, air=1)
    paths = [str(folder / name) for name in ("scan.zarr", "unet.pt", "out.zarr")]
    return lambda: predict_volume(*paths, settings)


def main():
    what, folder, shape = sys.argv[1], Path(sys.argv[2]), tuple(map(int, sys.argv[3].split(",")))
    make(folder, shape)
    run = {"copy": copy, "predict": predict}[what](folder, shape)
    forget()
    before = held("VmRSS")
    run()
    print(held("VmHWM") - before)


if __name__ == "__main__":
    main()
