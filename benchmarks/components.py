"""Connected components beside what they replace, in one run.

    python -m benchmarks.components               # three minutes, 2 cores
    python -m benchmarks.components --quick       # seconds, as the tests run it

memory   the array in memory: cc3d and scipy on the whole of it, ours in blocks of 256. Ours thresholds the
         probabilities itself and always has every sum (box, centroid, mean, second moments); with labels it
         goes over the blocks again and fills an array. The floor is that comparison alone, of all at once.
Zarr     the same from a Zarr of 128^3 chunks (blosc zstd): read and cc3d, read and cc3d with its statistics,
         and the stage, which writes the table
dask     dask_image.ndmeasure.label of 256^3 in 16 chunks, once (512^3 takes it minutes), and ours in the same
peak     of the stage's memory, above a process that has imported it, for one volume and one 8 times larger

Medians of rounds that call all ways in turn, by the clock and in seconds of the processors; peak of memory
beyond what the process held before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cc3d
import dask.array as da
import numpy as np
import zarr
from dask_image.ndmeasure import label as dask_label
from scipy import ndimage

from benchmarks.report import machine
from benchmarks.timing import in_turn, show
from inkzarr.components import ComponentSettings, components
from inkzarr.core.foreground import label_block
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.joins import BlockRuns, Joiner
from inkzarr.core.packing import compressor
from tests.peak import ALLOCATOR

LEAST = 128
EVERYWHERE = np.ones((3, 3, 3))


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


def bench_memory(name, array, repeat):
    binary = array >= LEAST
    _, count = cc3d.connected_components(binary, connectivity=26, return_N=True)
    assert len(ours(array, 1)[0]) == count

    def with_statistics():
        cc3d.statistics(cc3d.connected_components(array >= LEAST, connectivity=26))

    ways = {
        "floor: all voxels compared": lambda: array >= LEAST,
        "cc3d": lambda: cc3d.connected_components(binary, connectivity=26),
        "cc3d, thresholding counted": lambda: cc3d.connected_components(array >= LEAST, connectivity=26),
        "cc3d and cc3d.statistics": with_statistics,
        "scipy": lambda: ndimage.label(binary, EVERYWHERE),
        "ours, all components and sums": lambda: ours(array, 1),
        "ours, of 1000 voxels or more": lambda: ours(array, 1000),
        "ours, all, and labels": lambda: ours(array, 1, labels=True),
    }
    print(f"\nmemory: {array.shape} {name}, {binary.mean():.1%} foreground, {count} components")
    show(in_turn(ways, repeat), ("cc3d", "cc3d"), ("cc3d and cc3d.statistics", "with statistics"))


def stored(array, path):
    return zarr.create_array(
        path, data=array, chunks=(128,) * 3, zarr_format=2, compressors=compressor(array.dtype)
    )


def bench_zarr(volumes, repeat):
    for name, array in volumes.items():
        with tempfile.TemporaryDirectory() as folder:
            volume = stored(array, f"{folder}/ink.zarr")
            place = f"{folder}/ink.zarr", f"{folder}/t.parquet"
            given = *place, ComponentSettings(min_voxels=100), RunOptions(json_logs=True)

            def whole(volume=volume):
                return cc3d.connected_components(volume[:] >= LEAST, connectivity=26)

            ways = {
                "read": lambda volume=volume: volume[:],
                "read, cc3d": whole,
                "read, cc3d, cc3d.statistics": lambda whole=whole: cc3d.statistics(whole()),
                "ours, table written": lambda given=given: components(*given),
            }
            table = in_turn(ways, repeat)
        print(f"\nZarr: {array.shape} {name}")
        show(table, ("read, cc3d", "read, cc3d"))


def bench_dask(edge, chunks):
    array = smooth(edge, 0.3, 2)
    lazy = da.from_array(array, chunks=chunks)
    theirs, binary = "dask_image.ndmeasure.label", lazy >= LEAST
    table = in_turn(
        {theirs: lambda: dask_label(binary, EVERYWHERE)[0].compute(scheduler="threads")}, 1, warm=False
    )
    ways = {
        "ours, all components and sums": lambda: ours(array, 1, block=chunks),
        "ours, all, and labels": lambda: ours(array, 1, block=chunks, labels=True),
    }
    table |= in_turn(ways, 3)
    print(f"\ndask: {array.shape} percolating, {lazy.npartitions} chunks of {lazy.chunksize}")
    show(table, (theirs, "dask-image"))


def bench_peak(edge):
    script = Path(__file__).parents[1] / "tests" / "peak.py"
    environment = os.environ | ALLOCATOR
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), "components", folder, str(edge)]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    small, large = (f"{told / 1e6:.0f} MB" for told in json.loads(printed).values())
    print(f"\npeak: {small} of {edge}^3, {large} of {2 * edge}^3, above the process that has imported all")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", choices=("memory", "zarr", "dask", "peak"))
    chosen = parser.parse_args(arguments)
    edge, repeat = (64, 1) if chosen.quick else (512, 3)
    print(machine())
    volumes = {}
    if chosen.only in (None, "memory", "zarr"):
        volumes["sparse"] = smooth(edge, 0.01, 2)
        volumes["percolating"] = smooth(edge, 0.3, 2)
    ours(smooth(32, 0.3, 1), 1, block=16, labels=True)
    if chosen.only in (None, "memory"):
        for name, array in volumes.items():
            bench_memory(name, array, repeat)
    if chosen.only in (None, "zarr"):
        bench_zarr(volumes, repeat)
    if chosen.only in (None, "dask"):
        bench_dask(*((64, 32) if chosen.quick else (256, (64, 128, 128))))
    if chosen.only in (None, "peak"):
        bench_peak(256 if chosen.quick else 512)


if __name__ == "__main__":
    main()
