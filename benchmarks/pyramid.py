"""The pyramid beside what it replaces, in one run: medians of interleaved rounds, by the clock and by the
processors' seconds, which others' load changes less.

    python -m benchmarks.pyramid             # about five minutes, 2 cores
    python -m benchmarks.pyramid --quick     # seconds, as the tests run it

plain    every level is read, and the voxels of the next one, computed before, are written: no arithmetic,
         no ledger; same chunks, codec, blocks and threads
dask     `dask.array.coarsen` with the mean, `to_zarr`, level after level, on threads
ours     the stage, with its ledger
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from numcodecs import Blosc

from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.pyramid import BLOCK, PIECE, halve, pyramid


def make(url: str, edge: int, kind: str) -> None:
    """A scan half of which is air, a prediction of sparse strokes, or labels' values on sheets."""
    rng = np.random.default_rng(0)
    noise = rng.normal(120, 25, (BLOCK, BLOCK, 2 * BLOCK)).clip(1, 255).astype("uint8")
    ink = ((rng.random(noise.shape) < 0.02) * rng.integers(1, 256, noise.shape)).astype("uint8")

    def block(box: Box) -> np.ndarray:
        at = 7 * (sum(box.start) // BLOCK)
        voxels = (noise if kind == "scan" else ink)[tuple(slice(0, n) for n in box.shape)]
        shifted = np.roll(voxels, at, axis=2)
        return shifted if (sum(box.start) // BLOCK) % 2 else np.zeros_like(shifted)

    spec = VolumeSpec(Zyx.of(edge), np.dtype("uint8"))
    write_blocks(Job(kind, url, spec, Zyx.of(BLOCK), {}, workers=2), block, RunOptions())


def empty(url: str, shape: tuple[int, ...]) -> zarr.Array:
    compressor = Blosc("zstd", clevel=1, shuffle=Blosc.NOSHUFFLE)
    return zarr.create_array(
        url, shape=shape, chunks=tuple(min(128, n) for n in shape), dtype="uint8", zarr_format=2,
        compressors=compressor, chunk_key_encoding={"name": "v2", "separator": "/"}, fill_value=0,
    )  # fmt: skip


def plain(url: str, out: str, levels: list[np.ndarray]) -> None:
    source = zarr.open_array(f"{url}/0", mode="r")
    for number, voxels in enumerate(levels):
        target = empty(f"{out}/{number}", voxels.shape)
        grid = Grid(Zyx(*voxels.shape), Zyx.of(BLOCK))

        def move(box, source=source, target=target, voxels=voxels):
            pieces = Grid(box.shape, Zyx.of(PIECE))
            for piece in (pieces.box(index).shift(box.start) for index in pieces.indices()):
                source[tuple(slice(2 * s.start, 2 * s.stop) for s in piece.slices)]
            target[box.slices] = voxels[box.slices]

        with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            list(pool.map(move, (grid.box(index) for index in grid.indices())))
        source = target


def coarsen(url: str, out: str, count: int) -> None:
    source = f"{url}/0"
    for number in range(count):
        lazy = da.coarsen(np.mean, da.from_zarr(source), {0: 2, 1: 2, 2: 2}, trim_excess=True)
        target = empty(f"{out}/{number}", lazy.shape)
        with dask.config.set(scheduler="threads"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lazy.astype("uint8").rechunk(target.chunks).to_zarr(target)
        source = f"{out}/{number}"


def bench(edge: int, rounds: int, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url, out = f"{folder}/scan.zarr", f"{folder}/out.zarr"
        make(url, edge, kind)
        levels = [zarr.open_array(f"{url}/0", mode="r")[:]]
        while max(levels[-1].shape) > 128:
            levels.append(halve(levels[-1]))
        above = levels[1:]
        ways = {
            "plain": lambda: plain(url, out, above),
            "dask": lambda: coarsen(url, out, len(above)),
            "ours": lambda: pyramid(url, options=RunOptions(overwrite=True)),
        }
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(rounds + 1):  # the first warms up
            for name, way in ways.items():
                shutil.rmtree(out, ignore_errors=True)
                began = time.perf_counter(), time.process_time()
                way()
                if turn:
                    took[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        for number, voxels in enumerate(above, start=1):
            np.testing.assert_array_equal(zarr.open_array(Path(url) / str(number), mode="r")[:], voxels)
    median = {
        name: [statistics.median(kind) for kind in zip(*times, strict=True)] for name, times in took.items()
    }
    print(f"\npyramid of a {kind}, {edge}^3, {len(above)} levels, {rounds} rounds")
    for name, both in median.items():
        print(f"  {name:<6} {edge**3 / both[0] / 1e6:>7.0f} MB/s", end="")
        for n, (clock, seconds) in enumerate(zip(("clock", "cpu"), both, strict=True)):
            told = f"{clock} {seconds:>7.2f} s, {seconds / median['plain'][n]:>5.2f} x plain"
            print(f"   {told}, {median['dask'][n] / seconds:>5.2f} x as fast as dask", end="")
        print()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(arguments).quick
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for kind in ("scan", "prediction"):
        bench(256 if quick else 768, 1 if quick else 3, kind)


if __name__ == "__main__":
    main()
