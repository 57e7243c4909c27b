"""Flatten a real surface through a volume as large as Scroll 1 that is made up as it is read.

    python -m benchmarks.real_flatten            # half an hour, 2 cores, 0.6 GB of disk
    python -m benchmarks.real_flatten --quick    # seconds, on a cutting, as the tests run it

The surface is tifxyz_20241113070770 at its full resolution, the volume 14376 x 7888 x 8096 voxels in chunks
of 128; it needs the folder of real data. Told are the stage's report and this process's peak of memory, its
imports included, which must stay below 1.5 GB. Tiles of the sheet are compared with scipy's
`map_coordinates`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

import dask.array as da
import numpy as np
import tifffile
import xarray as xr
from scipy.ndimage import map_coordinates

from benchmarks.report import REAL_DATA, SCROLL_1
from inkzarr.core.surface import open_surface
from inkzarr.flatten import FlattenSettings, flatten

SURFACE = "tifxyz_20241113070770"
CUTTING = slice(60, 69)
"""Rows and columns of the grid."""
TILE, TILES = 64, 40
MOST_BYTES = 1.5e9


class Made:
    """A volume of waves, made up for every place that is read."""

    shape, ndim, dtype = SCROLL_1, 3, np.dtype("uint8")

    def __getitem__(self, place):
        ranges = (np.arange(*part.indices(size)) for part, size in zip(place, SCROLL_1, strict=True))
        z, y, x = (np.rint(60 + 60 * np.sin(at / 7)).astype(np.uint8) for at in ranges)
        return z[:, None, None] + (y[:, None] ^ x)


def cut(home: Path) -> Path:
    """The middle of the surface as a surface of its own."""
    home.mkdir()
    shutil.copy(REAL_DATA / SURFACE / "meta.json", home)
    for name in ("x.tif", "y.tif", "z.tif"):
        tifffile.imwrite(home / name, tifffile.imread(REAL_DATA / SURFACE / name)[CUTTING, CUTTING])
    return home


def compare(sheet: np.ndarray, surface, depth: int) -> tuple[float, int]:
    """The largest difference from scipy in some tiles, and how many pixels they have."""
    made, rng, largest, seen = Made(), np.random.default_rng(0), 0, 0
    steps = np.arange(-depth, depth + 1)[:, None, None, None]
    for _ in range(TILES):
        row, col = (int(rng.integers(0, max(1, size - TILE))) for size in surface.shape)
        place = slice(row, row + TILE), slice(col, col + TILE)
        tile = surface.tile(*place)
        if not tile.valid.any():
            assert not sheet[place].any()
            continue
        at = tile.points + steps * tile.normals
        low = np.clip(np.floor(at[:, tile.valid].min((0, 1))).astype(int), 0, np.array(SCROLL_1) - 1)
        high = np.clip(np.ceil(at[:, tile.valid].max((0, 1))).astype(int) + 1, low + 1, SCROLL_1)
        box = made[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float64)
        found = map_coordinates(box, np.moveaxis(at - low, -1, 0), order=1, mode="constant").max(0)
        far = np.abs(np.where(tile.valid, found, 0) - sheet[place])
        largest, seen = max(largest, far.max()), seen + tile.valid.sum()
    return largest, seen


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--depth", type=int, default=16)
    chosen = parser.parse_args(arguments)
    empty = np.empty((0, 0, 0), np.uint8)
    lazy = da.from_array(Made(), chunks=128, name="made", asarray=False, meta=empty)
    volume = xr.DataArray(lazy, dims=("z", "y", "x"), attrs={"voxel_size_um": 7.91})
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folder = cut(home / "cut.tifxyz") if chosen.quick else REAL_DATA / SURFACE
        scale = json.loads((folder / "meta.json").read_text())["scale"]
        report = flatten(volume, folder, home / "sheet.tif", FlattenSettings(depth=chosen.depth))
        peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
        surface = open_surface(folder)
        far, seen = compare(tifffile.memmap(home / "sheet.tif", mode="r"), surface, chosen.depth)
    print(f"\n{SURFACE} (scale {scale}) through {SCROLL_1}, depth {chosen.depth}\n{report}")
    print(f"peak    {peak / 1e9:.2f} GB of this process")
    print(f"scipy   at most {far:.2f} of 255 away in {seen} pixels")
    assert far <= 1
    assert seen
    assert chosen.quick or peak < MOST_BYTES  # a test's process holds more than this


if __name__ == "__main__":
    main()
