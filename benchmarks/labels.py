"""Labels, patches and split beside what they replace, in one run.

    python -m benchmarks.labels             # about ten minutes, 2 cores
    python -m benchmarks.labels --quick     # seconds, as the tests run it

labels   pixels a second: the original project's double loop in Python over arrays in memory (same footprint,
         box, on a part of the same data), our compiled kernel, and the whole stage with the Zarr written
patches  a label volume of which 94 % of the chunks are missing: a Dask scan of every block, windows one by
         one (a part of them, scaled up), and the stage
split    scipy's cdist (a part of the rows, scaled up) beside the stage
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import platform
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from scipy.spatial.distance import cdist

from inkzarr.core.buckets import Rule
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.job import Computed, Job, RunOptions
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.patches import Patches
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.votes import Ballot, PointTile
from inkzarr.labels import LabelSettings, labels
from inkzarr.patches import PatchSettings, find_windows, patches
from inkzarr.split import SplitSettings, choose
from inkzarr.testing.synthetic import SyntheticScroll

DEPTH = 4


def double_loop(points, normals, values, total, count):
    """The original project's: every pixel adds to the box around its line, one after the other."""
    shape = total.shape
    for row in range(values.shape[0]):
        for col in range(values.shape[1]):
            a = points[row, col] - DEPTH * normals[row, col]
            b = points[row, col] + DEPTH * normals[row, col]
            low = np.floor(np.minimum(a, b)).astype(int)
            high = np.maximum(np.ceil(np.maximum(a, b)).astype(int), low + 1)
            z, y, x = (slice(max(0, i), max(0, min(j, n))) for i, j, n in zip(low, high, shape, strict=True))
            total[z, y, x] += values[row, col]
            count[z, y, x] += 1


def seconds(call, repeat=1):
    """The least of some runs."""
    best = math.inf
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def kernel_rates(work, shape):
    """Pixels a second, by footprint and threads, each of which votes into arrays of its own."""
    rates, size, cores = {}, sum(one.values.size for one in work), os.cpu_count() or 1
    ballots = [Ballot(Box.whole(shape), shared=False, pixels=0) for _ in range(cores)]
    parts = [work[at::cores] for at in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        for name, box in (("box", True), ("ray", False)):
            rule = Rule(DEPTH, box, Grid(shape, shape))

            def kernel(ballot, some, rule=rule):
                for one in some:
                    ballot.cast(one, np.array([[0, one.used.shape[1]]]), 1, rule)

            list(pool.map(kernel, ballots, parts))
            alone = seconds(lambda: kernel(ballots[0], work), 3)
            together = seconds(lambda: list(pool.map(kernel, ballots, parts)), 3)
            rates |= {
                f"kernel, 1 thread, {name}": size / alone,
                f"kernel, {cores} threads, {name}": size / together,
            }
    return rates


def bench_labels(edge: int, sample: int) -> None:
    scroll = SyntheticScroll(shape=(edge, edge, edge))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        scroll.write_segments(home)
        found = scroll.segments()
        pixels = sum(one.shape[0] * one.shape[1] for one in found)
        tiles = [one.surface.tile(slice(0, 64), slice(0, None)) for one in found]
        values = [one.label_tile(slice(0, 64), slice(0, one.shape[1])) for one in found]
        part = slice(0, max(1, sample // 64))
        first, painted = tiles[-1], values[-1]
        total, count = np.zeros(scroll.shape, np.int64), np.zeros(scroll.shape, np.int64)
        arguments = [first.points[:, part], first.normals[:, part], painted[:, part], total, count]
        loop = arguments[2].size / seconds(lambda: double_loop(*arguments), 3)
        rates = {"Python double loop, in memory, box": loop}
        work = [
            PointTile(*(np.ascontiguousarray(a[:, at : at + 64]) for a in (*tile[:2], value, tile.valid)))
            for tile, value in zip(tiles, values, strict=True)
            for at in range(0, value.shape[1], 64)
        ]
        rates |= kernel_rates(work, Zyx.of(scroll.shape))
        for name in ("box", "ray"):
            settings = LabelSettings(shape=Zyx.of(scroll.shape), skip_blank=0, footprint=name)
            place = home / "paths", home / "inklabels", home / "labels.zarr", settings
            took = seconds(lambda: labels(*place, RunOptions(overwrite=True)), 3)
            rates[f"whole stage, Zarr written, {name}"] = pixels / took
    print(f"\nlabels: {len(found)} segments, {pixels} pixels, {scroll.shape}")
    for name, rate in rates.items():
        print(f"  {name:<40} {rate:>12,.0f} pixels/s  {rate / loop:>8.0f} x")


def bench_patches(edge: int, sample: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/labels.zarr"
        spec = VolumeSpec(Zyx(edge, edge, edge), np.dtype(np.uint8), path="ink")
        count = dataclasses.replace(spec, dtype=np.dtype(np.uint16), path="count")
        grid = Grid(spec.shape, spec.chunks)
        rng = np.random.default_rng(0)
        stored = rng.random(grid.counts) < 0.06
        job = Job(
            "bench", url, spec, spec.chunks, {}, workers=2, more=(count,),
            holds=lambda box: bool(stored[grid.cells(box).slices].all()),
        )  # fmt: skip

        def sheet(box):
            where = np.random.default_rng(box.start).random(box.shape) < 0.1
            return Computed((where * np.uint8(200), where.astype(np.uint16)))

        write_blocks(job, sheet, RunOptions())
        arrays = open_label_arrays(url)
        settings = PatchSettings()
        find_windows(*arrays, settings)
        ours = seconds(lambda: patches(url, f"{folder}/p.parquet"), 3)
        Path(url, ".inkzarr").rename(f"{folder}/ledger")
        bare = seconds(lambda: patches(url, f"{folder}/p.parquet"), 3)
        group = zarr.open_group(url, mode="r")
        windows = [grid.box(index).slices for index in grid.indices()]

        def one_by_one(some):
            for window in some:
                labelled = group["count"][window] > 0
                if labelled.any():
                    np.count_nonzero(labelled & (group["ink"][window] >= 128))

        step = max(1, len(windows) // sample)
        single = seconds(lambda: one_by_one(windows[::step])) * len(windows) / len(windows[::step])

        def scan():
            ink, votes = (da.from_zarr(group[name]) for name in ("ink", "count"))
            both = da.stack([votes > 0, (votes > 0) & (ink >= 128)])
            counts = both.map_blocks(
                lambda b: np.count_nonzero(b, axis=(1, 2, 3), keepdims=True),
                chunks=((1, 1), *((1,) * n for n in grid.counts)), dtype=np.int64,
            )  # fmt: skip
            with dask.config.set(scheduler="threads"):
                counts.compute()

        blocks = seconds(scan)
    print(f"\npatches: {edge}^3, {stored.sum()} of {stored.size} chunks stored")
    rows = {"windows one by one": single, "Dask scan of every block": blocks, "ours, by listed keys": bare}
    for name, took in (rows | {"ours, with the ledger": ours}).items():
        told = f"{single / took:>8.1f} x of one by one  {blocks / took:>6.1f} x of Dask"
        print(f"  {name:<40} {took:>9.2f} s  {told}")


def bench_split(train: int, valid: int, sample: int) -> None:
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, 60, train + valid))
    z = rng.integers(0, 14000, train + valid)
    corners = np.stack([z, 4000 + 60 * angle * np.cos(angle), 4000 + 60 * angle * np.sin(angle)], -1)
    held = np.zeros(train + valid, bool)
    held[np.argsort(z)[:valid]] = True
    tables = [Patches(corners[chosen].astype(np.int64)) for chosen in (~held, held)]
    choose(*(table.take(np.arange(9)) for table in tables), SplitSettings())
    some = tables[0].corners[:: max(1, train // sample)]
    slow = seconds(lambda: (cdist(some, tables[1].corners) < 512).any(1)) * train / len(some)
    print(f"\nsplit: {train} x {valid} windows, 512 voxels")
    print(f"  {'scipy cdist, by rows':<40} {slow:>9.2f} s")
    for rule in ("corner", "box"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        settings = SplitSettings(rule=rule)
        took = seconds(lambda: choose(*tables, settings), 3)
        near, gap = choose(*tables, settings)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        told = f"{slow / took:>8.0f} x  {near.sum()} dropped, gap {gap:g}, {grown / 1000:.0f} MB more"
        print(f"  {'ours, rule ' + rule:<40} {took:>9.3f} s  {told}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("labels", "patches", "split"))
    chosen = parser.parse_args(arguments)
    quick = chosen.quick
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if chosen.only in (None, "labels"):
        bench_labels(160 if quick else 640, 640 if quick else 20_000)
    if chosen.only in (None, "patches"):
        bench_patches(384 if quick else 2048, 20 if quick else 400)
    if chosen.only in (None, "split"):
        bench_split(*((2000, 200, 100) if quick else (500_000, 50_000, 2000)))


if __name__ == "__main__":
    main()
