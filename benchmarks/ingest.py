"""Ingest of a folder of TIFF slices, beside what one would write without it, in one run.

    python -m benchmarks.ingest             # two minutes, 2 cores
    python -m benchmarks.ingest --quick     # seconds, as the tests run it

Slices of 16 bit, half of each air, become uint8 chunks of 128^3 (blosc zstd 1).

loop    128 slices are read with tifffile, one after the other, and written with zarr-python
dask    `dask_image.imread`, the same arithmetic, rechunked, written on threads
ours    the stage, with its ledger
opening what of it goes before: the headers of all slices are read and compared
floor   the slices are read, as many at a time as there are cores, and the chunks, cut before, are compressed
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import numpy as np
import tifffile
from dask_image.imread import imread

from benchmarks.report import is_quick, machine
from benchmarks.storage import CHUNKS, COMPRESSORS, empty, scan
from benchmarks.timing import in_turn, show
from inkzarr.core.job import RunOptions
from inkzarr.core.store import open_stored
from inkzarr.ingest import IngestSettings, ingest
from inkzarr.readers import open_source


def main(arguments=None):
    """Print the table."""
    quick = is_quick(__doc__, arguments)
    print(machine())
    edge, rounds = (256, 1) if quick else (768, 3)
    voxels = np.tile(scan(edge)[: edge // 3 // 128 * 128 or 128], (1, 2, 2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slices").mkdir()
        slices = [folder / "slices" / f"{z:04}.tif" for z in range(len(voxels))]
        for path, plane in zip(slices, voxels.astype(np.uint16) << 8, strict=True):
            tifffile.imwrite(path, plane)
        place = folder / "out.zarr"
        codec = COMPRESSORS[2]
        corners = np.ndindex(*(size // n for size, n in zip(voxels.shape, CHUNKS, strict=True)))
        cut = [voxels[tuple(slice(128 * i, 128 * i + 128) for i in at)].copy() for at in corners]

        def loop():
            out = empty(place, voxels, 2)
            for z in range(0, len(voxels), 128):
                planes = np.stack([tifffile.imread(path) for path in slices[z : z + 128]])
                out[z : z + 128] = (planes >> 8).astype(np.uint8)

        def with_dask():
            with dask.config.set(scheduler="threads"), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of what it reads with
                lazy = (imread(f"{folder}/slices/*.tif") >> 8).astype("uint8").rechunk(CHUNKS)
                dask.array.store(lazy, empty(place, voxels, 2), lock=False)

        def ours():
            shutil.rmtree(place, ignore_errors=True)
            ingest(folder / "slices", place, IngestSettings(voxel_size_um=7.91), RunOptions(json_logs=True))

        def opening():
            open_source(str(folder / "slices"))

        def floor():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                deque(pool.map(tifffile.imread, slices), 0)
                deque(pool.map(codec.encode, (chunk for chunk in cut if chunk.any())), 0)

        ways = {"loop": loop, "dask": with_dask, "ours": ours}
        for way in ways.values():
            shutil.rmtree(place, ignore_errors=True)
            way()
            np.testing.assert_array_equal(open_stored(str(place)).array[:], voxels)
        table = in_turn(ways | {"opening": opening, "floor": floor}, rounds, warm=False)
    told = f"{len(voxels)} slices of {2 * edge} x {2 * edge} in, {voxels.nbytes / 1e6:.0f} MB out"
    print(f"\ningest: {told}, medians of {rounds}")
    show(table, ("loop", "loop"), ("floor", "floor"))


if __name__ == "__main__":
    main()
