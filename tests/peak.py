"""What a run adds to the memory that its imports hold, in a volume and in one eight times larger.

``python peak.py WHAT FOLDER [EDGE]`` prints both in bytes, of a process that has warmed up; WHAT is copy,
export, predict, flatten, components or percolating. Start it with `ALLOCATOR` in the environment: else memory
that was freed stays in arenas, which fill as luck has it.
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
DEEPER = (2048, 256, 512)
"""As large, of a small cross-section: what percolates is held where the blocks that are done end."""


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


def write_tiles(folder, shape, tile):
    out = zarr.create_array(folder / "ink.zarr", shape=shape, chunks=(128,) * 3, dtype="uint8", zarr_format=2)
    for index in np.ndindex(*(n // TILE for n in shape)):
        out[tuple(slice(i * TILE, (i + 1) * TILE) for i in index)] = tile


def sparse(folder, shape):
    """A prediction of which 1 % is ink, in specks and a few larger ones, that go on across tiles."""
    from scipy import ndimage

    field = np.random.default_rng(0).standard_normal((TILE,) * 3).astype(np.float32)
    field = ndimage.gaussian_filter(field, 4, mode="wrap")
    field = (field - np.quantile(field[::4, ::4, ::4], 0.99)) / field.std()
    write_tiles(folder, shape, np.clip(128 + 60 * field, 0, 255).astype("uint8"))


def percolating(folder, shape):
    """A prediction of white noise, where one component goes through everything between a million specks."""
    tile = np.where(np.random.default_rng(0).random((TILE,) * 3, np.float32) < 0.1, 200, 0)
    write_tiles(folder, shape, tile.astype("uint8"))


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


def export(folder):
    """Each way of export, in blocks that are small beside both volumes."""
    from inkzarr.export import export as write
    from inkzarr.writers import base
    from inkzarr.writers.planes import PlaneSettings

    base.BLOCK_BYTES = BLOCK**3

    def run(size, out):
        scan = folder / size / "scan.zarr"
        out.mkdir()
        write(scan, out / "scan.nrrd")
        write(scan, out / "scan.nii.gz")
        for name in ("slices/*.jpg", "scan.mp4"):
            write(scan, out / name, planes=PlaneSettings(step=4))

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


def components(folder):
    from inkzarr.components import ComponentSettings
    from inkzarr.components import components as find
    from inkzarr.core.job import RunOptions

    def run(size, out):
        settings = ComponentSettings(block=BLOCK)
        find(str(folder / size / "ink.zarr"), f"{out}.parquet", settings, RunOptions(workers=2))

    return run


def flatten(folder):
    from inkzarr.core.job import RunOptions
    from inkzarr.flatten import FlattenSettings, flatten

    options = RunOptions(workers=2, memory=2**25, overwrite=True)

    def run(size, out):
        flatten(folder / size / "scan.zarr", "flat:100", f"{out}.tif", FlattenSettings(block=BLOCK), options)

    return run


def main():
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "percolating":
        SIZES["large"] = DEEPER
    if len(sys.argv) > 3:
        SIZES.update(small=(int(sys.argv[3]),) * 3, large=(2 * int(sys.argv[3]),) * 3)
    makers = {"components": sparse, "percolating": percolating}
    child = os.fork()
    if not child:
        for size, shape in SIZES.items():
            makers.get(what, make)(folder / size, shape)
        os._exit(0)
    os.waitpid(child, 0)
    runs = {"copy": copy, "export": export, "predict": predict, "flatten": flatten}
    run = runs.get(what, components)(folder)
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
