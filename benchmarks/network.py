"""The forward pass of one batch of windows: ours beside pytorch-3dunet's own, the same weights, in turn.

    python -m benchmarks.network             # 32 and 8 features, windows of 128: a quarter of an hour
    python -m benchmarks.network --quick     # seconds, as the tests run it

"Eager" is pytorch-3dunet's module as it is. The floor is the time that the multiplications of the plain
network take at the speed at which this machine multiplies large float32 matrices; ours needs fewer of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types

import torch

from benchmarks.report import machine
from inkzarr.nn.fast import prepare
from inkzarr.nn.unet import UNet3D

FLOP_A_VOXEL = 482_000
"""Of the plain network with 32 features and 5 levels; they grow with the square of the features."""


def eager(features: int, levels: int, weights: dict) -> torch.nn.Module:
    """pytorch-3dunet's module; all that it asks of scikit-image is a name that draws pictures."""
    try:
        import skimage.color  # noqa: F401
    except ImportError:
        sys.modules["skimage"] = types.ModuleType("skimage")
        sys.modules["skimage.color"] = types.SimpleNamespace(label2rgb=None)
    from pytorch3dunet.unet3d.model import UNet3D as Theirs

    options = {"f_maps": features, "num_groups": 4, "num_levels": levels, "is_segmentation": False}
    model = Theirs(1, 1, **options).eval()
    model.load_state_dict(weights)
    return model


def matrix_rate() -> float:
    """Floating-point operations a second."""
    a = torch.rand(2048, 2048)
    took = []
    for _ in range(4):
        began = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(took)


def compare(features: int, levels: int, window: int, rounds: int) -> None:
    """Print one table."""
    torch.manual_seed(0)
    model = UNet3D(f_maps=features, levels=levels).eval()
    batch = torch.rand(torch.get_num_threads(), 1, window, window, window)
    fast, theirs = prepare(model), eager(features, levels, model.state_dict())
    ways = {
        "pytorch-3dunet, eager": lambda: torch.cat([theirs(one[None]) for one in batch]),
        "ours": lambda: fast(batch),
    }
    took = {name: [] for name in ways}
    found = {}
    with torch.inference_mode():
        for name, way in ways.items():  # warms up; the window that is compared
            found[name] = way().sigmoid() if rounds > 1 or window < 128 else None
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                found[name] = way().sigmoid()
                took[name].append((time.perf_counter() - began) / len(batch))
    median = {name: statistics.median(times) for name, times in took.items()}
    slowest = median["pytorch-3dunet, eager"]
    told = f"windows of {window}, {len(batch)} at a time, {rounds} rounds"
    print(f"\n{features} features, {levels} levels, {told}")
    for name, seconds in median.items():
        print(f"  {name:<24} {seconds:8.3f} s a window  {slowest / seconds:6.2f} x eager")
    floor = FLOP_A_VOXEL * (features / 32) ** 2 * window**3 / matrix_rate()
    print(f"  {'floor, plain network':<24} {floor:8.3f} s a window  {slowest / floor:6.2f} x eager")
    a, b = found.values()
    print(f"  largest difference of probabilities: {float((a - b).abs().max()):.1e}")


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; with 1 nothing is warmed up")
    given = parser.parse_args(arguments)
    print(machine())
    for case in [(4, 2, 32)] if given.quick else [(32, 5, 128), (8, 5, 128)]:
        compare(*case, given.rounds)


if __name__ == "__main__":
    main()
