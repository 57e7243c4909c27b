"""What a run adds to the memory that its imports hold, in a volume and in one eight times larger.

``python peak.py copy|predict FOLDER`` prints both in bytes, of a process that has warmed up. Start it with
`ALLOCATOR` in the environment: else memory that was freed stays in arenas, which fill as luck has it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import zarr

BLOCK, TILE = 128, 256
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
SIZES = {"small": (256, 256, 512), "large": (512, 512, 1024)}


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


def copy(folder):
    from inkzarr.core.geometry import Zyx
    from inkzarr.core.job import Job, RunOptions
    from inkzarr.core.runner import write_blocks
    from inkzarr.core.schema import VolumeSpec
    from inkzarr.core.store import open_stored

    def run(size, out):
        stored = open_stored(str(folder / size / "scan.zarr"))
        job = Job("copy", str(out), VolumeSpec(stored.shape, stored.dtype), Zyx.of(BLOCK), {}, workers=2)
        write_blocks(job, stored.read, RunOptions())

    return run


def predict(folder):
    from inkzarr.nn.checkpoint import save_checkpoint
    from inkzarr.nn.unet import UNet3D
    from inkzarr.predict import PredictSettings, predict_volume

    save_checkpoint(folder / "unet.pt", UNet3D(f_maps=4, levels=2))
    settings = PredictSettings(window=64, overlap=0, block=BLOCK, air=1)

    def run(size, out):
        predict_volume(str(folder / size / "scan.zarr"), str(folder / "unet.pt"), str(out), settings)

    return run


def main():
    what, folder = sys.argv[1], Path(sys.argv[2])
    child = os.fork()
    if not child:
        for size, shape in SIZES.items():
            make(folder / size, shape)
        os._exit(0)
    os.waitpid(child, 0)
    run = {"copy": copy, "predict": predict}[what](folder)
    before = held("VmRSS")
    for warming in range(3):
        run("small", folder / f"warm{warming}")
    added = {}
    for size in SIZES:
        forget()
        run(size, folder / f"{size}-out")
        added[size] = held("VmHWM") - before
    print(json.dumps(added))


if __name__ == "__main__":
    main()
