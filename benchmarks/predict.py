"""Time outside the network: ours, Zarr to Zarr, beside MONAI's sliding window on the same array and network.

    python -m benchmarks.predict                    # 384^3 with 8 features, 256^3 with 32: about 15 minutes
    python -m benchmarks.predict --quick            # seconds, as the tests run it

Both run the same windows (128, overlap 0.5, gaussian) with the same prepared network. "network" is the time
spent inside it, counted within the run itself, so that a noisy machine does not show as overhead; "outside"
is all the rest: for ours reading, blending, writing, the ledger; for MONAI, whose input and result lie in
memory, blending alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr

from inkzarr.core.geometry import Zyx
from inkzarr.nn.checkpoint import load_checkpoint, save_checkpoint
from inkzarr.nn.engine import cached_engine
from inkzarr.nn.fast import prepare
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings, predict_volume


@dataclass
class Clock:
    """Adds up the time spent inside a function."""

    seconds: float = 0.0
    calls: int = 0

    def around(self, function):
        def timed(*arguments, **options):
            began = time.perf_counter()
            result = function(*arguments, **options)
            self.seconds += time.perf_counter() - began
            self.calls += 1
            return result

        return timed


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    total: float
    network: float
    windows: int

    @property
    def outside(self) -> float:
        return self.total - self.network

    def __str__(self) -> str:
        share = 100 * self.outside / self.total
        a_window = 1000 * self.outside / self.windows
        return (
            f"{self.name:<28} {self.total:9.1f} s {self.network:9.1f} s {self.outside:8.2f} s"
            f" {share:7.2f} % {a_window:8.1f} ms"
        )


HEAD = f"{'':<28} {'total':>11} {'network':>11} {'outside':>10} {'share':>9} {'a window':>11}"


def ours(scan: str, checkpoint: str, out: str, window: int) -> Row:
    """Zarr to Zarr, through the runner."""
    engine = cached_engine(checkpoint, None, None, "cpu", "float32")
    clock, plain = Clock(), engine.probabilities
    engine.probabilities = clock.around(plain)
    settings = PredictSettings(window=window, device="cpu")
    count = settings.windows(Zyx(*zarr.open_array(scan, mode="r").shape)).counts.volume
    began = time.perf_counter()
    predict_volume(scan, checkpoint, out, settings)
    total = time.perf_counter() - began
    engine.probabilities = plain
    return Row("inkzarr, Zarr to Zarr", total, clock.seconds, count)


def monai(voxels: np.ndarray, checkpoint: str, window: int) -> Row | None:
    """In memory; None where MONAI is not installed."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return None
    forward = prepare(load_checkpoint(checkpoint).model)
    clock = Clock()
    predictor = clock.around(lambda x: torch.sigmoid(forward(x)))
    inputs = torch.from_numpy(voxels)[None, None].float() / 255
    began = time.perf_counter()
    with torch.inference_mode():
        batch = torch.get_num_threads()
        sliding_window_inference(inputs, (window,) * 3, batch, predictor, overlap=0.5, mode="gaussian")
    total = time.perf_counter() - began
    steps = [max(1, -(-(n - window) // (window // 2)) + 1) for n in voxels.shape]
    return Row("MONAI, in memory", total, clock.seconds, int(np.prod(steps)))


def compare(size: int, features: int, levels: int, window: int) -> list[Row]:
    """Both, on the same random voxels and network."""
    with tempfile.TemporaryDirectory() as folder:
        scan, checkpoint = f"{folder}/scan.zarr", f"{folder}/unet.pt"
        voxels = np.random.default_rng(0).integers(1, 256, (size,) * 3, np.uint8)
        zarr.create_array(scan, data=voxels, chunks=(min(size, 128),) * 3, zarr_format=2)
        torch.manual_seed(0)
        save_checkpoint(Path(checkpoint), UNet3D(f_maps=features, levels=levels))
        rows = [ours(scan, checkpoint, f"{folder}/ink.zarr", window), monai(voxels, checkpoint, window)]
    return [row for row in rows if row is not None]


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--case", type=int, nargs=2, action="append", metavar=("SIZE", "FEATURES"))
    given = parser.parse_args(arguments)
    cases = [(48, 4, 2, 32)] if given.quick else [(*c, 5, 128) for c in given.case or [(384, 8), (256, 32)]]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for size, features, levels, window in cases:
        print(f"\n{size}^3 uint8, {features} features, {levels} levels, windows of {window}, overlap 0.5")
        print(HEAD)
        for row in compare(size, features, levels, window):
            print(row, flush=True)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, both together")


if __name__ == "__main__":
    main()
