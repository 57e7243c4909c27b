"""Whole predict, Zarr in and uint8 Zarr out, beside MONAI and nnU-Net in memory, and vesuvius.

    python -m benchmarks.predict                       # no network, 8 features, 32 features: an hour
    python -m benchmarks.predict --case 256 32         # one case: edge and features, 0 for no network
    python -m benchmarks.predict --quick               # seconds, as the tests run it

All run the same windows (128, overlap 0.5, gaussian) over the same voxels with the same weights, each in a
process of its own, in turn (A B C, A B C): ours with its own form of the network, the peers with
pytorch-3dunet's. "network" is the time spent inside it, its sigmoid included, counted within the run, so that
a noisy machine does not show as overhead; "outside" is all the rest, by the clock and in seconds of the
processors, which others' load changes less: for ours reading, blending, writing, the ledger; for MONAI and
nnU-Net, whose input and result lie in memory, blending alone. What makes numbers from 0 to 1 of bytes counts
as network for ours, as outside for vesuvius, and comes before for MONAI and nnU-Net; nnU-Net's sigmoid, over
the whole volume, counts as outside. MONAI and nnU-Net take one window at a time, on all cores, ours one on
each. Without a network (nor what makes numbers) all run twice in their process, and the second counts. The
floor is what must be moved: a window's probabilities and weights read, its sums read and written (32 MB), at
the speed of copying memory here. nnU-Net averages logits, in half precision, and so its result differs.

vesuvius' three passes (`benchmarks/vesuvius_peer.py`) go from Zarr to Zarr, as ours, and hand on all windows
on disk; what they take to start is not counted. They average logits, cut off fractions, and draw the
probabilities near the volume's corners to a half, as their weights there are no more than an epsilon: see it
for the differences.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import zarr

from benchmarks.network import copying
from benchmarks.report import interpreter, machine
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.unet import UNet3D

ROOT = Path(__file__).resolve().parents[1]
VESUVIUS = ROOT / "benchmarks" / "vesuvius_peer.py"
PEERS = {"monai": "MONAI, in memory", "nnunet": "nnU-Net, in memory"}
PASSES = ("predict", "blend", "finalize")
CASES = ((512, 0, 3), (256, 8, 3), (256, 32, 2))


def make(folder: Path, edge: int, features: int, levels: int, window: int) -> None:
    """A scan without air, a smaller one to warm up, and the network's weights in both forms."""
    voxels = np.random.default_rng(0).integers(1, 256, (edge,) * 3, np.uint8)
    np.save(folder / "voxels.npy", voxels)
    for name, part in (("scan", voxels), ("warm", voxels[:window, :window, :window])):
        chunks = tuple(min(n, 128) for n in part.shape)
        zarr.create_array(folder / f"{name}.zarr", data=part, chunks=chunks, zarr_format=2)
    torch.manual_seed(0)
    model = UNet3D(f_maps=features or 4, levels=levels)
    save_checkpoint(folder / "unet.pt", model)
    torch.save(model.state_dict(), folder / "weights.pt")


def run(command: list[str]) -> dict[str, float] | str:
    """What a process tells; its last line of complaint where it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["?"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(edge: int, features: int, rounds: int, levels: int = 5, window: int = 128) -> None:
    """Print a table of all, on the same voxels and weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, edge, features, levels, window)
        numbers = [str(n) for n in (window, features, levels)]
        script = str(ROOT / "benchmarks" / "sliding_peers.py")
        ways = {
            "inkzarr, Zarr to Zarr": [sys.executable, "-m", "benchmarks.sliding_ours", name, *numbers[:2]]
        }
        for what, title in PEERS.items():
            ways[title] = [interpreter(), script, what, name, *numbers]
        if features:
            ways["vesuvius, Zarr to Zarr"] = [interpreter(), str(VESUVIUS), name, *numbers]
        told: dict[str, list[dict[str, float] | str]] = {title: [] for title in ways}
        for _ in range(rounds):
            for title, command in ways.items():
                told[title].append(run(command))
        kind = f"{features} features, {levels} levels" if features else "no network (a constant)"
        print(f"\n{edge}^3 uint8, {kind}, windows of {window}, overlap 0.5, medians of {rounds}")
        show(told, against="total" if features else "outside")
        floor = 1000 * 4 * 4 * window**3 / copying(torch.device("cpu"))
        print(f"{'floor, memory alone':<26} {floor:49.1f} ms")
        if features:
            differences(folder)


def show(told: dict[str, list[dict[str, float] | str]], against: str) -> None:
    """A line a way; how many times as fast ours, the first of them, is."""
    head = f"{'':<26} {'total':>9} {'network':>9} {'outside':>9} {'share':>8} {'a window':>10} {'cpu':>10}"
    print(head + f" {'peak':>9} {'ours is':>14}")
    first = None
    for title, results in told.items():
        for failed in (one for one in results if not isinstance(one, dict)):
            print(f"{title:<26} did not run: {failed}")
        good = [one | {"outside": one["total"] - one["network"]} for one in results if isinstance(one, dict)]
        if not good and first is None:
            raise RuntimeError(results)
        if not good:
            continue
        keys = ("total", "network", "outside", "cpu", "peak_gb")
        median = {key: statistics.median(one[key] for one in good) for key in keys}
        first = first or median
        share = 100 * median["outside"] / median["total"]
        line = "".join(
            f" {median[key]:7.{digits}f} s" for key, digits in zip(keys[:3], (1, 1, 2), strict=True)
        )
        line += f" {share:6.2f} %"
        line += "".join(f" {1000 * median[key] / good[0]['windows']:7.1f} ms" for key in ("outside", "cpu"))
        line += f" {median['peak_gb']:6.2f} GB {median[against] / first[against]:8.2f} x as fast"
        print(f"{title:<26}{line}  {good[0]['version']}", flush=True)
        if "disk_gb" in good[0]:
            passes = {key: statistics.median(one[key] for one in good) for key in PASSES}
            each = ", ".join(f"{key} {seconds:.1f} s" for key, seconds in passes.items())
            print(f"{'':<26} {each}, starting included; {good[0]['disk_gb']:.2f} GB on disk")


def differences(folder: Path) -> None:
    """From ours: the largest, and the mean."""
    ours = zarr.open_array(folder / "ink.zarr" / "0", mode="r")[:].astype(int)
    for peer in (*PEERS, "vesuvius"):
        if (path := folder / f"{peer}.npy").exists():
            far = np.abs(ours - np.load(path))
            print(f"difference to {peer}: at most {far.max()} of 255, {far.mean():.2f} in the mean")


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--case", type=int, nargs=2, action="append", metavar=("EDGE", "FEATURES"))
    parser.add_argument("--rounds", type=int, help="runs of each")
    given = parser.parse_args(arguments)
    print(machine())
    if given.quick:
        compare(48, 0, 1, levels=2, window=32)
        compare(48, 4, 1, levels=2, window=32)
        return
    for edge, features, rounds in [(*case, 1) for case in given.case or ()] or CASES:
        compare(edge, features, given.rounds or rounds)


if __name__ == "__main__":
    main()
