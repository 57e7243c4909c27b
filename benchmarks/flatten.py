"""Flatten beside what it replaces, in one run.

    python -m benchmarks.flatten             # a minute, 2 cores
    python -m benchmarks.flatten --quick     # seconds, as the tests run it

Pixels a second along the normals of one winding of the synthetic scroll, at depth 16, maximum: a loop in
Python over pixels in memory (a part of them), `scipy.ndimage.map_coordinates` on the box of each tile, read
from the Zarr (on as many threads as we have); our kernel, and our stage with the picture written. The floor
is the volume and the surface read once, and the picture compressed, with nothing computed between.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import zarr
from PIL import Image
from scipy.ndimage import map_coordinates

from benchmarks.report import is_quick, machine
from benchmarks.timing import in_turn
from inkzarr.core.chunk_cache import ChunkCache
from inkzarr.core.job import RunOptions
from inkzarr.core.store import open_stored
from inkzarr.core.strips import sample_strip, to_bytes
from inkzarr.core.surface import open_surface, write_ppm
from inkzarr.flatten import FlattenSettings, flatten
from inkzarr.testing.synthetic import SyntheticScroll

DEPTH = 16
STEPS = np.arange(-DEPTH, DEPTH + 1)
TILE = 128
LOOP, SCIPY = "Python loop over pixels, in memory", "scipy map_coordinates, tile by tile"
KERNEL = "kernel, 1 thread, chunks in memory"
FLOOR = "floor: all read once, PNG written"


def python_loop(volume, points, normals):
    """Pixel by pixel, as the original project does it; the samples of one pixel at once."""
    last = np.array(volume.shape) - 1
    out = np.zeros(points.shape[:2], np.uint8)
    for row in range(points.shape[0]):
        for col in range(points.shape[1]):
            at = points[row, col] + STEPS[:, None] * normals[row, col]
            at = at[((at >= 0) & (at <= last)).all(1)]
            if not len(at):
                continue
            low = np.floor(at).astype(int)
            part = at - low
            value = np.zeros(len(at))
            for corner in np.ndindex(2, 2, 2):
                weight = np.where(corner, part, 1 - part).prod(1)
                value += weight * volume[tuple(np.minimum(low + corner, last).T)]
            out[row, col] = value.max() + 0.5
    return out


def scipy_tile(array, tile):
    """One tile with scipy, on the box of voxels that it needs."""
    at = tile.points + STEPS[:, None, None, None] * tile.normals
    shape = np.array(array.shape)
    low = np.clip(np.floor(at[:, tile.valid].min((0, 1))).astype(int), 0, shape - 1)
    high = np.clip(np.floor(at[:, tile.valid].max((0, 1))).astype(int) + 2, low + 1, shape)
    box = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    found = map_coordinates(box, np.moveaxis(at - low, -1, 0), np.float32, order=1, mode="constant")
    return np.floor(found.max(0) * tile.valid + 0.5).astype(np.uint8)


def bench(edge: int, height: int, sample: int) -> None:
    scroll = SyntheticScroll(shape=(height, edge, edge))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = scroll.volume().values
        zarr.create_array(folder / "v.zarr", data=volume, chunks=(128,) * 3, zarr_format=2)
        segment = scroll.segments()[-1]
        whole = segment.surface
        write_ppm(folder / "s.ppm", whole.points, whole.normals)
        surface = open_surface(folder / "s.ppm")
        pixels = surface.shape[0] * surface.shape[1]
        settings = FlattenSettings(depth=DEPTH)
        sheets, reports = {}, []
        part = surface.tile(slice(0, max(1, sample // surface.shape[1])), slice(0, None))
        array = zarr.open_array(folder / "v.zarr", mode="r")
        places = list(surface.tiles(TILE))
        stored = open_stored(folder / "v.zarr")
        cache = ChunkCache(stored, 1 << 30, 2)
        strips = [surface.tile(*place) for place in surface.tiles((64, 4096))]

        def loop():
            sheets[LOOP] = python_loop(volume, *part[:2])

        def with_scipy():
            sheets[SCIPY] = np.zeros(surface.shape, np.uint8)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                tiles = pool.map(lambda place: scipy_tile(array, surface.tile(*place)), places)
                for place, tile in zip(places, tiles, strict=True):
                    sheets[SCIPY][place] = tile

        def kernel():
            parts = [sample_strip(strip, DEPTH, "max", cache, [])[0] for strip in strips]
            sheets[KERNEL] = to_bytes(np.concatenate(parts, 1), stored.dtype, "v")[0]

        def stage(what):
            place = folder / "v.zarr", folder / "s.ppm", folder / f"a.{what}", settings
            reports.append(flatten(*place, RunOptions(overwrite=True)))

        def floor():
            array[:]
            (folder / "s.ppm").read_bytes()
            Image.fromarray(sheets[KERNEL]).save(folder / "floor.png")

        ways = {LOOP: loop, SCIPY: with_scipy, KERNEL: kernel, FLOOR: floor}
        ways |= {f"whole stage, {what.upper()} written": partial(stage, what) for what in ("png", "tif")}
        took = in_turn(ways, 3)
        rates = {name: (part.valid.size if name == LOOP else pixels) / took[name].clock for name in ways}
        pairs = ((sheets[KERNEL][: len(sheets[other])], sheets[other]) for other in (LOOP, SCIPY))
        far = [int(np.abs(ours.astype(int) - theirs).max()) for ours, theirs in pairs]
    print(f"\nflatten: {surface.shape[0]} x {surface.shape[1]} pixels of {scroll.shape}, depth {DEPTH}")
    for name, each in rates.items():
        told = f"{each / rates[LOOP]:>7.0f} x loop  {each / rates[SCIPY]:>6.1f} x scipy"
        print(f"  {name:<40} {each:>12,.0f} pixels/s  {told}  peak {took[name].peak:.2f} GB")
    print(f"  chunks: {reports[-1].needed} needed, {reports[-1].fetched} read")
    print(f"  largest difference: {far[0]} from the loop, {far[1]} from scipy (of 255)")


def main(arguments=None):
    quick = is_quick(__doc__, arguments)
    print(machine())
    bench(*((200, 64, 600) if quick else (384, 512, 10_000)))


if __name__ == "__main__":
    main()
