"""The pyramid beside what it replaces, in one run: medians of interleaved rounds, by the clock and by the
processors' seconds, which others' load changes less.

    python -m benchmarks.pyramid             # three minutes, 2 cores
    python -m benchmarks.pyramid --quick     # seconds, as the tests run it

plain    every level is read, and the voxels of the next one, computed before, are written: no arithmetic,
         no ledger; same chunks, codec, blocks and threads
dask     `dask.array.coarsen` with the mean, `store`, level after level, on threads; of labels the mean of
         all votes, and their sum
ours     the stage, with its ledger
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import numpy as np
import zarr

from benchmarks.report import is_quick, machine
from benchmarks.timing import in_turn, show
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.halving import halve_labels
from inkzarr.core.job import Computed, Job, RunOptions
from inkzarr.core.packing import compressor
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import COUNT, INK, VolumeSpec
from inkzarr.pyramid import BLOCK, PIECE, halve, pyramid

LABELS = "label group"
SHEETS, SHEET = 40, 9
"""Voxels from one labelled sheet to the next, and what one is thick."""


def make(url: str, edge: int, kind: str) -> None:
    """A scan half of which is air, a prediction of sparse strokes, or labels on sheets."""
    rng = np.random.default_rng(0)
    shape = BLOCK, BLOCK, 2 * BLOCK
    if kind == "scan":
        given = [rng.normal(120, 25, shape).clip(1, 255).astype("uint8")]
    elif kind == LABELS:
        votes = rng.integers(1, 20, shape).astype("uint16")
        votes[:, np.arange(BLOCK) % SHEETS >= SHEET] = 0
        given = [(rng.choice([0, 255], shape) * (votes > 0)).astype("uint8"), votes]
    else:
        given = [((rng.random(shape) < 0.02) * rng.integers(1, 256, shape)).astype("uint8")]

    def block(box: Box) -> Computed:
        at = 7 * (sum(box.start) // BLOCK)
        cut = [np.roll(one[tuple(slice(0, n) for n in box.shape)], at, axis=2) for one in given]
        return Computed(tuple(one * one.dtype.type((sum(box.start) // BLOCK) % 2) for one in cut))

    paths = (INK.name, COUNT.name) if kind == LABELS else ("0",)
    first, *more = (
        VolumeSpec(Zyx.of(edge), one.dtype, path=path) for one, path in zip(given, paths, strict=True)
    )
    write_blocks(Job(kind, url, first, Zyx.of(BLOCK), {}, workers=2, more=tuple(more)), block, RunOptions())


def arrays(url: str, kind: str, level: int) -> list[str]:
    """The URLs of what a level consists of."""
    if kind != LABELS:
        return [f"{url}/{level}"]
    return [f"{url}/{level}/{one.name}" if level else f"{url}/{one.name}" for one in (INK, COUNT)]


def halved(level: list[np.ndarray]) -> list[np.ndarray]:
    return [halve(level[0])] if len(level) == 1 else list(halve_labels(*level, "mean"))


def empty(url: str, shape: tuple[int, ...], dtype: np.dtype) -> zarr.Array:
    return zarr.create_array(
        url, shape=shape, chunks=tuple(min(128, n) for n in shape), dtype=dtype, zarr_format=2,
        compressors=compressor(dtype), chunk_key_encoding={"name": "v2", "separator": "/"}, fill_value=0,
    )  # fmt: skip


def plain(url: str, out: str, kind: str, levels: list[list[np.ndarray]]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    sources = [zarr.open_array(one, mode="r") for one in arrays(url, kind, 0)]
    for number, level in enumerate(levels, start=1):
        targets = [
            empty(one, a.shape, a.dtype) for one, a in zip(arrays(out, kind, number), level, strict=True)
        ]
        grid = Grid(Zyx(*level[0].shape), Zyx.of(BLOCK))

        def move(box, sources=sources, targets=targets, level=level):
            pieces = Grid(box.shape, Zyx.of(PIECE))
            for piece in (pieces.box(index).shift(box.start) for index in pieces.indices()):
                for source in sources:
                    source[tuple(slice(2 * s.start, 2 * s.stop) for s in piece.slices)]
            for target, voxels in zip(targets, level, strict=True):
                target[box.slices] = voxels[box.slices]

        with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            list(pool.map(move, (grid.box(index) for index in grid.indices())))
        sources = targets


def coarser(lazy: list[da.Array]) -> list[da.Array]:
    """The next level, as Dask has it."""
    by_two = {0: 2, 1: 2, 2: 2}
    if len(lazy) == 1:
        return [da.coarsen(np.mean, lazy[0], by_two, trim_excess=True).astype("uint8")]
    ink, votes = lazy[0].astype("uint32"), lazy[1].astype("uint32")
    painted, total = (da.coarsen(np.sum, one, by_two, trim_excess=True) for one in (ink * votes, votes))
    mean = (2 * painted + total) // da.maximum(2 * total, 1)
    return [mean.astype("uint8"), da.minimum(total, 65535).astype("uint16")]


def coarsen(url: str, out: str, kind: str, count: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    sources = arrays(url, kind, 0)
    for number in range(1, count + 1):
        lazy = coarser([da.from_zarr(source) for source in sources])
        sources = arrays(out, kind, number)
        targets = [empty(one, a.shape, a.dtype) for one, a in zip(sources, lazy, strict=True)]
        with dask.config.set(scheduler="threads"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rechunked = [a.rechunk(one.chunks) for a, one in zip(lazy, targets, strict=True)]
            da.store(rechunked, targets, lock=False)


def bench(edge: int, rounds: int, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url, out = f"{folder}/scan.zarr", f"{folder}/out.zarr"
        make(url, edge, kind)
        levels = [[zarr.open_array(one, mode="r")[:] for one in arrays(url, kind, 0)]]
        while max(levels[-1][0].shape) > 128:
            levels.append(halved(levels[-1]))
        above = levels[1:]
        ways = {
            "plain": lambda: plain(url, out, kind, above),
            "dask": lambda: coarsen(url, out, kind, len(above)),
            "ours": lambda: pyramid(url, options=RunOptions(overwrite=True)),
        }
        table = in_turn(ways, rounds)
        for number, level in enumerate(above, start=1):
            for one, voxels in zip(arrays(url, kind, number), level, strict=True):
                np.testing.assert_array_equal(zarr.open_array(one, mode="r")[:], voxels)
    megabytes = sum(one.nbytes for one in levels[0]) / 1e6
    print(f"\npyramid of a {kind}, {edge}^3, {megabytes:.0f} MB, {len(above)} levels, {rounds} rounds")
    show(table, ("plain", "plain"), ("dask", "dask"))


def main(arguments=None):
    quick = is_quick(__doc__, arguments)
    print(machine())
    for kind in ("scan", "prediction", LABELS):
        bench(256 if quick else 768, 1 if quick else 3, kind)


if __name__ == "__main__":
    main()
