"""Labels, patches and split beside what they replace, in one run.

    python -m benchmarks.labels             # about six minutes, 2 cores
    python -m benchmarks.labels --quick     # seconds, as the tests run it

labels   pixels a second, for both footprints, on the same data: a double loop in Python over arrays in memory
         (on a part of it, and on new arrays each time), which computes pixel by pixel, or, as the original
         project does, all places at once before it adds pixel by pixel; our compiled kernel, cell by cell as
         the stage runs it on points in memory, and so with the stored arrays filled in, without making room
         for the votes (of several threads: their blocks' times, summed and divided, 3 to 5 % better than the
         clock); and the whole stage, checksums of the files included, with the Zarr written where nothing
         was. Beside each rate: how many times that of the first loop and the second
patches  a label volume of which 94 % of the chunks are missing: a Dask scan of every block, windows one by
         one (a part of them, scaled up), the stage, and its floor without a ledger: files read and unpacked
split    scipy's cdist (a part of the rows, scaled up) beside the stage; the floor is one query of a KD-tree
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from benchmarks.report import machine
from benchmarks.timing import once
from inkzarr.core.bricks import NARROW
from inkzarr.core.buckets import Buckets, Rule, Strip, scan_strip
from inkzarr.core.cut import Cut
from inkzarr.core.geometry import Grid, Zyx
from inkzarr.core.job import Computed, Job, RunOptions
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.packing import compressor
from inkzarr.core.patches import Patches
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.votes import Ballot, point_tiles
from inkzarr.labels import LabelSettings, labels
from inkzarr.patches import PatchSettings, find_windows, patches
from inkzarr.split import SplitSettings, choose
from inkzarr.testing.synthetic import SyntheticScroll

DEPTH = 4
ROUNDS = 5
"""A rate of labels is the median of so many runs; a loop in Python changes by half from run to run."""


def box_loop(points, normals, values, total, count):
    """Every pixel adds to the box around its line, one after the other."""
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


def box_loop_places_first(points, normals, values, total, count):
    """The same, but the boxes of all pixels are computed before."""
    a, b = points - DEPTH * normals, points + DEPTH * normals
    low = np.floor(np.minimum(a, b)).astype(int)
    high = np.clip(np.maximum(np.ceil(np.maximum(a, b)).astype(int), low + 1), 0, total.shape)
    low = np.maximum(low, 0)
    for row in range(values.shape[0]):
        for col in range(values.shape[1]):
            z, y, x = map(slice, low[row, col], high[row, col])
            total[z, y, x] += values[row, col]
            count[z, y, x] += 1


def ray_loop(points, normals, values, total, count):
    """Every pixel adds to the voxels of its line, each once, one after the other."""
    times = np.arange(-DEPTH, DEPTH + 0.25, 0.5)[:, None]
    totals, counts = total.reshape(-1), count.reshape(-1)
    for row in range(values.shape[0]):
        for col in range(values.shape[1]):
            voxels = np.floor(points[row, col] + times * normals[row, col] + 0.5).astype(int)
            inside = ((voxels >= 0) & (voxels < total.shape)).all(1)
            at = np.unique(np.ravel_multi_index(voxels[inside].T, total.shape))
            totals[at] += values[row, col]
            counts[at] += 1


def ray_loop_places_first(points, normals, values, total, count):
    """The same, but the voxels of all pixels are computed before."""
    times = np.arange(-DEPTH, DEPTH + 0.25, 0.5)[:, None]
    totals, counts = total.reshape(-1), count.reshape(-1)
    voxels = np.floor(points[..., None, :] + times * normals[..., None, :] + 0.5).astype(int)
    inside = ((voxels >= 0) & (voxels < total.shape)).all(-1)
    places = np.ravel_multi_index(np.moveaxis(voxels, -1, 0), total.shape, mode="clip")
    for row in range(values.shape[0]):
        for col in range(values.shape[1]):
            at = np.unique(places[row, col][inside[row, col]])
            totals[at] += values[row, col]
            counts[at] += 1


LOOPS = {"box": (box_loop, box_loop_places_first), "ray": (ray_loop, ray_loop_places_first)}


def runs(call, repeat):
    """Seconds of each of some runs."""
    took = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return took


def seconds(call, repeat=1):
    """The least of some runs."""
    return min(runs(call, repeat))


def loop_rates(scroll, footprint, sample):
    """Pixels a second of both loops, on the first columns of the outermost winding; they agree.

    Each time on new arrays, as a loop over a label comes to a pixel but once. Where it went before, it would
    find its voxels in the processor's cache, and their memory laid out.
    """
    one = scroll.segments()[-1]
    rows, cols = slice(0, 64), slice(0, min(one.shape[1], max(1, sample // 64)))
    tile, values = one.surface.tile(rows, cols), one.label_tile(rows, cols)
    found, rates = [], []
    for loop in LOOPS[footprint]:
        took = []
        for _ in range(ROUNDS):
            total, count = np.zeros(scroll.shape, np.int64), np.zeros(scroll.shape, np.int64)
            took += runs(partial(loop, *tile[:2], values, total, count), 1)
        rates.append(values.size / np.array(took))
        found.append((total, count))
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)
    return rates


def kernel_seconds(scroll, footprint):
    """Of each run: counting all votes, and that with the stored arrays filled in; on one thread, then all."""
    shape = Zyx.of(scroll.shape)
    settings = LabelSettings(shape=shape)
    rule = Rule(DEPTH, footprint == "box", Grid(shape, VolumeSpec(shape, np.dtype(np.uint8)).chunks))
    found = scroll.segments()
    with closing(Buckets(rule, [one.surface for one in found])) as buckets:
        for number, one in enumerate(found):
            for rows, cols in one.surface.tiles((64, 4096)):
                values = one.label_tile(rows, cols)
                used = np.ones(values.shape, bool)
                strip = Strip(number, one.surface, rows.start, cols.start, values, used)
                buckets.add(scan_strip(strip, rule))
        buckets.sort()
        blocks = Grid(shape, Zyx.of(settings.block))
        tiles = {box: tuple(buckets.tiles(box)) for box in map(blocks.box, blocks.indices())}
    work = [(box, list(point_tiles(some))) for box, some in tiles.items()]

    def kernel(block):
        box, cast = block
        ink, count = (Cut.empty(box.shape, np.dtype(kind), rule.grid.cell) for kind in ("u1", "u2"))
        ballot = Ballot(box, NARROW, len({segment for _, segment in cast}) > 1)
        began = time.perf_counter()
        for points, segment in cast:
            ballot.cast(points, segment, rule)
        ballot.settle()
        counted = time.perf_counter() - began
        ballot.close(ink, count)
        return np.array([counted, time.perf_counter() - began])

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(kernel, work))
        alone = np.array([sum(map(kernel, work)) for _ in range(ROUNDS)])
        together = np.array([sum(pool.map(kernel, work)) for _ in range(ROUNDS)]) / min(cores, len(work))
        return *alone.T, *together.T


def on_all_cores(work, given):
    """Do it for each, and hold nothing of it."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        deque(pool.map(work, given), 0)


def stage_floor(files, url):
    """Read the files once and compress the chunks of what is stored there."""
    group = zarr.open_group(url, mode="r")
    arrays = [group[name] for name in ("ink", "count")]
    boxes = Grid(Zyx.of(arrays[0].shape), Zyx.of(arrays[0].chunks))
    chunks = [one[boxes.box(index).slices] for one in arrays for index in boxes.indices()]
    full = [chunk for chunk in chunks if chunk.any()]

    def floor():
        on_all_cores(Path.read_bytes, files)
        on_all_cores(lambda chunk: compressor(chunk.dtype).encode(chunk), full)

    return runs(floor, ROUNDS)


def bench_labels(edge: int, sample: int) -> None:
    scroll, cores = SyntheticScroll(shape=(edge, edge, edge)), os.cpu_count() or 1
    found = scroll.segments()
    pixels = sum(one.shape[0] * one.shape[1] for one in found)
    print(f"\nlabels: {len(found)} segments, {pixels} pixels, {scroll.shape}; medians of {ROUNDS} runs")
    print(f"  {'':<43} {'pixels a second':<35}  of the loop  of the second")
    for footprint in LOOPS:
        loop, first = loop_rates(scroll, footprint, sample)
        alone, _, together, filled = kernel_seconds(scroll, footprint)
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            scroll.write_segments(home)
            settings = LabelSettings(shape=Zyx.of(scroll.shape), skip_blank=0, footprint=footprint)
            stores = (home / f"{number}.zarr" for number in range(ROUNDS))
            whole = runs(lambda: labels(home / "paths", home / "inklabels", next(stores), settings), ROUNDS)
            floor = stage_floor(sorted(home.glob("paths/**/*.ppm")), str(home / "0.zarr"))
        rates = {
            "Python double loop, in memory": loop,
            "the same, places computed before": first,
            "kernel, 1 thread": pixels / alone,
            f"kernel, {cores} threads": pixels / together,
            f"with arrays filled in, {cores} threads": pixels / filled,
            "whole stage, Zarr written": pixels / np.array(whole),
            "floor of the stage": pixels / np.array(floor),
        }
        for name, some in rates.items():
            rate, among = np.median(some), f"({some.min():,.0f} to {some.max():,.0f})"
            told = f"{rate / np.median(loop):>9.1f} x {rate / np.median(first):>12.1f} x"
            print(f"  {name + ', ' + footprint:<40} {rate:>11,.0f} {among:<26} {told}")


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

        files = [path for path in Path(url).glob("*/*/*/*") if path.is_file()]
        codec = compressor(count.dtype)
        floor = seconds(lambda: on_all_cores(lambda path: codec.decode(path.read_bytes()), files), 3)
        step = max(1, len(windows) // sample)
        single = seconds(lambda: one_by_one(windows[::step]), 3) * len(windows) / len(windows[::step])

        def scan():
            ink, votes = (da.from_zarr(group[name]) for name in ("ink", "count"))
            both = da.stack([votes > 0, (votes > 0) & (ink >= 128)])
            counts = both.map_blocks(
                lambda b: np.count_nonzero(b, axis=(1, 2, 3), keepdims=True),
                chunks=((1, 1), *((1,) * n for n in grid.counts)), dtype=np.int64,
            )  # fmt: skip
            with dask.config.set(scheduler="threads"):
                counts.compute()

        blocks = seconds(scan, 3)
    print(f"\npatches: {edge}^3, {stored.sum()} of {stored.size} chunks stored")
    rows = {
        "windows one by one": single,
        "Dask scan of every block": blocks,
        "ours, by listed keys": bare,
        "its floor": floor,
        "ours, with the ledger": ours,
    }
    for name, took in rows.items():
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
    tree = cKDTree(tables[1].corners)
    query = partial(tree.query, tables[0].corners, distance_upper_bound=512, workers=-1)
    print(f"  {'scipy cdist, by rows':<40} {slow:>9.2f} s")
    print(f"  {'floor: one query of a KD-tree':<40} {seconds(query, 3):>9.3f} s")
    for rule in ("corner", "box"):
        settings = SplitSettings(rule=rule)
        took = seconds(lambda: choose(*tables, settings), 3)
        near, gap = choose(*tables, settings)
        peak = once(partial(choose, *tables, settings)).peak
        told = f"{slow / took:>8.0f} x  {near.sum()} dropped, gap {gap:g}, {1000 * peak:.0f} MB more"
        print(f"  {'ours, rule ' + rule:<40} {took:>9.3f} s  {told}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("labels", "patches", "split"))
    chosen = parser.parse_args(arguments)
    quick = chosen.quick
    print(machine())
    if chosen.only in (None, "labels"):
        bench_labels(160 if quick else 640, 640 if quick else 125_000)
    if chosen.only in (None, "patches"):
        bench_patches(384 if quick else 2048, 20 if quick else 400)
    if chosen.only in (None, "split"):
        bench_split(*((2000, 200, 100) if quick else (500_000, 50_000, 2000)))


if __name__ == "__main__":
    main()
