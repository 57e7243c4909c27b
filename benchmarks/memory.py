"""Peak memory on a volume and on one 8 times larger: each run in a process of its own.

    python -m benchmarks.memory            # ingest of a TIFF stack, and predict: a minute
    python -m benchmarks.memory --quick

The base is the process with everything imported and nothing done; memory that was freed does not stay in
arenas, which fill as luck has it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch

from benchmarks.report import ROOT
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D
from tests.peak import ALLOCATOR

RUN = """
import sys
from pathlib import Path
from benchmarks.sliding_peers import held
from inkzarr.core.job import RunOptions
from inkzarr.ingest import ingest
from inkzarr.predict import PredictSettings, predict_volume
Path("/proc/self/clear_refs").write_text("5")
base = 1000 * held("VmRSS")
stage, folder, depth = sys.argv[1:]
options = RunOptions(workers=2, json_logs=True)
if stage == "ingest":
    ingest(f"{folder}/slices{depth}", f"{folder}/scan{depth}.zarr", options=options)
elif stage == "predict":
    scan, unet, ink = (f"{folder}/{name}" for name in (f"scan{depth}.zarr", "unet.pt", f"ink{depth}.zarr"))
    predict_volume(scan, unet, ink, PredictSettings(window=32, overlap=0.0, block=128), options)
print(base, 1000 * held("VmHWM"))
"""


def measure(stage: str, folder: Path, depth: int) -> tuple[float, float]:
    """Base and peak of one run, in MB."""
    command = [sys.executable, "-c", RUN, stage, str(folder), str(depth)]
    environment = os.environ | ALLOCATOR | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    base, peak = map(float, printed.split())
    return base, peak


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    side, depth = (64, 64) if parser.parse_args(arguments).quick else (512, 256)
    rng = np.random.default_rng(0)
    print(f"{'':<10} {'voxels':>16} {'base':>9} {'peak':>9} {'growth of what is above the base':>36}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save_checkpoint(folder / "unet.pt", UNet3D(f_maps=4, levels=2))
        for planes in (depth, 8 * depth):
            (folder / f"slices{planes}").mkdir()
            for z in range(planes):
                voxels = rng.integers(1, 255, (side, side), np.uint16)
                tifffile.imwrite(folder / f"slices{planes}" / f"{z:05}.tif", voxels, compression="lzw")
        for stage in ("ingest", "predict"):
            (base, small), (_, large) = (measure(stage, folder, planes) for planes in (depth, 8 * depth))
            for planes, peak in ((depth, small), (8 * depth, large)):
                growth = "" if peak == small else f"{100 * (large - small) / (small - base):+.1f} %"
                print(
                    f"{stage:<10} {f'{planes}x{side}x{side}':>16} {base:6.0f} MB {peak:6.0f} MB {growth:>36}"
                )


if __name__ == "__main__":
    main()
