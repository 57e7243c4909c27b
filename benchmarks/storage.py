"""Chunks read and written on a local disk, beside other ways to do it, in one run.

    python -m benchmarks.storage             # six minutes, 2 cores
    python -m benchmarks.storage --quick     # seconds, as the tests run it

A scan half of which is air, in chunks of 128^3 (blosc zstd 1), whose files the machine has just held: what
is timed is decoding, copying and finding chunks empty. Medians of rounds that call all ways in turn, by the
clock and in seconds of the processors; a number above 1 is faster than zarr-python. The `zarrs` codec
pipeline is also tried below our own reading, whose store and bounded codecs it must be able to use; one that
would fall back to zarr-python's own is told as one that cannot. The floor is the compressor alone, on as
many threads as there are cores.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import zarr

from benchmarks.report import is_quick, machine
from benchmarks.timing import in_turn, show
from inkzarr.core.buffer import write_voxels
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.packing import compressor
from inkzarr.core.store import open_stored

CHUNKS = (128,) * 3
PLAIN = "zarr-python"
ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
COMPRESSORS = {zarr_format: compressor(np.dtype(np.uint8), zarr_format) for zarr_format in (2, 3)}


def scan(edge: int) -> np.ndarray:
    """Noise like a scan's; one half is air."""
    voxels = np.random.default_rng(0).normal(120, 25, (edge,) * 3).clip(1, 255).astype(np.uint8)
    voxels[:, :, edge // 2 :] = 0
    return voxels


def empty(place: Path, voxels: np.ndarray, zarr_format: int) -> zarr.Array:
    shutil.rmtree(place, ignore_errors=True)
    given = {"shape": voxels.shape, "dtype": voxels.dtype, "chunks": CHUNKS, "fill_value": 0}
    return zarr.create_array(place, zarr_format=zarr_format, compressors=COMPRESSORS[zarr_format], **given)


def opened_by_tensorstore(place: Path, zarr_format: int):
    import tensorstore

    driver = {2: "zarr", 3: "zarr3"}[zarr_format]
    return tensorstore.open({"driver": driver, "kvstore": f"file://{place}/"}, open=True).result()


def with_zarrs(way):
    def run():
        with zarr.config.set(ZARRS):
            return way()

    return run


def why_not(way, place: Path) -> str:
    """What it raises, in one line that tells no folder of this run; "" where it works."""
    try:
        way()
    except Exception as error:  # noqa: BLE001 - whatever a peer does not do is told
        told = f"{type(error).__name__}: {error}".replace(str(place), place.name)
        return " ".join(told.split())[:200]
    return ""


def ways_to_read(place: Path, voxels: np.ndarray, zarr_format: int) -> dict:
    def plain():
        return zarr.open_array(place, mode="r")[:]

    def ours():
        return open_stored(str(place)).read(Box.whole(Zyx(*voxels.shape)))

    return {
        PLAIN: plain,
        "ours": ours,
        "zarrs pipeline": with_zarrs(plain),
        "ours on zarrs": with_zarrs(ours),
        "tensorstore": lambda: opened_by_tensorstore(place, zarr_format).read().result(),
    }


def ways_to_write(place: Path, voxels: np.ndarray, zarr_format: int) -> dict:
    everything = tuple(slice(0, n) for n in voxels.shape)

    def new():
        return empty(place, voxels, zarr_format)

    def plain():
        new()[:] = voxels

    def with_tensorstore():
        new()
        opened_by_tensorstore(place, zarr_format).write(voxels).result()

    return {
        PLAIN: plain,
        "ours": lambda: write_voxels(new(), everything, voxels),
        "zarrs pipeline": with_zarrs(plain),
        "tensorstore": with_tensorstore,
    }


def floors(voxels: np.ndarray) -> dict:
    """The compressor alone, of the chunks that are not air."""
    codec, grid = COMPRESSORS[2], Grid(Zyx(*voxels.shape), Zyx(*CHUNKS))
    cut = [voxels[grid.box(index).slices].copy() for index in grid.indices()]
    full = [chunk for chunk in cut if chunk.any()]
    packed = [codec.encode(chunk) for chunk in full]

    def on_all(work, given):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            deque(pool.map(work, given), 0)

    return {"write": partial(on_all, codec.encode, full), "read": partial(on_all, codec.decode, packed)}


def main(arguments=None):
    """Print the tables."""
    quick = is_quick(__doc__, arguments)
    print(machine())
    edge, rounds = (256, 1) if quick else (768, 7)
    voxels = scan(edge)
    floor = floors(voxels)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "scan.zarr"
        for kind, (what, ways_to) in product(COMPRESSORS, (("write", ways_to_write), ("read", ways_to_read))):
            print(f"\n{what}: {voxels.shape}, half of it air, Zarr {kind}")
            ways = ways_to(place, voxels, kind)
            for title, way in list(ways.items()):
                if told := why_not(way, place):
                    print(f"  {title} cannot: {told}")
                    del ways[title]
                    continue
                found = way() if what == "read" else zarr.open_array(place, mode="r")[:]
                np.testing.assert_array_equal(found, voxels)
            ways["floor"] = floor[what]
            show(in_turn(ways, rounds), (PLAIN, PLAIN))


if __name__ == "__main__":
    main()
