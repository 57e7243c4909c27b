"""Connected components beside what they replace, in one run.

    python -m benchmarks.components               # about five minutes, 2 cores
    python -m benchmarks.components --quick       # seconds, as the tests run it
    python -m benchmarks.components --dask 512    # dask-image at full size too: five minutes more

memory   the array in memory: cc3d and scipy on the whole of it, ours in blocks of 256; seconds, and cc3d's
         time divided by them. Ours thresholds the probabilities itself and always has every sum (box,
         centroid, mean, second moments); with labels it goes over the blocks again and fills an array.
Zarr     the same from a Zarr of 128^3 chunks (blosc zstd): read and cc3d, read and cc3d with its statistics,
         and the stage, which writes the table
dask     dask_image.ndmeasure.label in 128^3 chunks, and ours on the same array
peak     of the stage's memory, above a process that has imported it, for one volume and one 8 times larger
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cc3d
import dask.array as da
import numpy as np
import zarr
from dask_image.ndmeasure import label as dask_label
from numcodecs import Blosc
from scipy import ndimage

from inkzarr.components import ComponentSettings, components
from inkzarr.core.foreground import label_block
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.joins import BlockRuns, Joiner

LEAST = 128
EVERYWHERE = np.ones((3, 3, 3))


def seconds(call, repeat=1):
    best = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def smooth(edge, share, sigma):
    """Probabilities of blobs, of which `share` is 0.5 or more."""
    noise = np.random.default_rng(0).standard_normal((edge // 2,) * 3).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, sigma)
    level = np.quantile(noise[::2, ::2, ::2], 1 - share)
    values = np.clip((noise - level) / noise.std() * 60 + LEAST, 0, 255).astype(np.uint8)
    return values.repeat(2, 0).repeat(2, 1).repeat(2, 2)


@dataclass(frozen=True)
class Memory:
    """An array that is read as a volume is."""

    array: np.ndarray

    @property
    def shape(self):
        return Zyx(*self.array.shape)

    def read(self, box: Box) -> np.ndarray:
        return self.array[box.slices]


def ours(array, min_voxels, *, block=256, labels=False):
    """Rows of all components; and the array of labels."""
    grid, memory = Grid(Zyx(*array.shape), Zyx.of(block)), Memory(array)
    joiner = Joiner(min_voxels, remember=labels)
    work = partial(label_block, stored=memory, least=LEAST, min_voxels=min_voxels)
    indices = list(grid.indices())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(work, ((grid.box(index), [grid.box(index)]) for index in indices))
        for index, one in zip(indices, found, strict=True):
            joiner.add(index, one)
        rows, ids = joiner.close()
        out = np.zeros(array.shape, np.uint32) if labels else None

        def fill(index):
            box = grid.box(index)
            voxels = np.ascontiguousarray(array[box.slices])
            out[box.slices] = BlockRuns.of(voxels, box, grid.shape, LEAST, min_voxels).painted(ids[index])

        list(pool.map(fill, ids))
    return rows, out


def bench_memory(volumes, repeat):
    for name, array in volumes.items():
        binary = array >= LEAST
        _, count = cc3d.connected_components(binary, connectivity=26, return_N=True)
        assert len(ours(array, 1)[0]) == count

        def with_statistics(array=array):
            cc3d.statistics(cc3d.connected_components(array >= LEAST, connectivity=26))

        table = {
            "cc3d": seconds(lambda: cc3d.connected_components(binary, connectivity=26), repeat),
            "cc3d, thresholding counted": seconds(
                lambda: cc3d.connected_components(array >= LEAST, connectivity=26), repeat
            ),
            "cc3d and cc3d.statistics": seconds(with_statistics),
            "scipy": seconds(lambda: ndimage.label(binary, EVERYWHERE)),
            "ours, all components and sums": seconds(lambda: ours(array, 1), repeat),
            "ours, of 1000 voxels or more": seconds(lambda: ours(array, 1000), repeat),
            "ours, all, and labels": seconds(lambda: ours(array, 1, labels=True), repeat),
        }
        print(f"\nmemory: {array.shape} {name}, {binary.mean():.1%} foreground, {count} components")
        for what, took in table.items():
            told = (
                f"{table['cc3d'] / took:>8.2f} x cc3d {table['cc3d and cc3d.statistics'] / took:>8.2f} x with"
            )
            print(f"  {what:<34} {took:>8.3f} s {told} statistics")


def stored(array, path):
    codec = Blosc("zstd", clevel=1, shuffle=Blosc.NOSHUFFLE)
    return zarr.create_array(path, data=array, chunks=(128,) * 3, zarr_format=2, compressors=codec)


def bench_zarr(volumes, repeat):
    for name, array in volumes.items():
        with tempfile.TemporaryDirectory() as folder:
            volume = stored(array, f"{folder}/ink.zarr")
            settings, options = ComponentSettings(min_voxels=100), RunOptions(json_logs=True)

            def whole(volume=volume):
                return cc3d.connected_components(volume[:] >= LEAST, connectivity=26)

            table = {
                "read": seconds(lambda: volume[:], repeat),
                "read, cc3d": seconds(whole, repeat),
                "read, cc3d, cc3d.statistics": seconds(lambda: cc3d.statistics(whole())),
                "ours, table written": seconds(
                    lambda: components(f"{folder}/ink.zarr", f"{folder}/t.parquet", settings, options), repeat
                ),
            }
        print(f"\nZarr: {array.shape} {name}")
        for what, took in table.items():
            print(f"  {what:<34} {took:>8.3f} s {table['read, cc3d'] / took:>8.2f} x read, cc3d")


def bench_dask(edge):
    array = smooth(edge, 0.3, 2)
    lazy = da.from_array(array, chunks=min(128, edge // 2))
    slow = seconds(lambda: dask_label(lazy >= LEAST, EVERYWHERE)[0].compute(scheduler="threads"))
    fast = seconds(lambda: ours(array, 1), 3)
    labels = seconds(lambda: ours(array, 1, labels=True), 3)
    print(f"\ndask: {array.shape} percolating, chunks of {lazy.chunksize}")
    print(f"  {'dask_image.ndmeasure.label':<34} {slow:>8.2f} s")
    print(f"  {'ours, all components and sums':<34} {fast:>8.3f} s {slow / fast:>8.0f} x")
    print(f"  {'ours, all, and labels':<34} {labels:>8.3f} s {slow / labels:>8.0f} x")


def bench_peak(edge):
    script = Path(__file__).parents[1] / "tests" / "peak.py"
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), "components", folder, str(edge)]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    print(
        f"\npeak: {edge}^3 and {2 * edge}^3, bytes above the process that has imported all: {printed.strip()}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--dask", type=int, default=256, help="edge of the volume for dask-image")
    parser.add_argument("--only", choices=("memory", "zarr", "dask", "peak"))
    chosen = parser.parse_args(arguments)
    edge, repeat = (64, 1) if chosen.quick else (512, 3)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    volumes = {}
    if chosen.only in (None, "memory", "zarr"):
        volumes["sparse"] = smooth(edge, 0.01, 2)
        volumes["percolating"] = smooth(edge, 0.3, 2)
    ours(smooth(32, 0.3, 1), 1, block=16, labels=True)
    if chosen.only in (None, "memory"):
        bench_memory(volumes, repeat)
    if chosen.only in (None, "zarr"):
        bench_zarr(volumes, repeat)
    if chosen.only in (None, "dask"):
        bench_dask(48 if chosen.quick else chosen.dask)
    if chosen.only in (None, "peak"):
        bench_peak(256 if chosen.quick else 512)


if __name__ == "__main__":
    main()
