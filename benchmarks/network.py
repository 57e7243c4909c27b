"""The forward pass of one batch of windows: ours beside pytorch-3dunet's own, the same weights, in turn.

    python -m benchmarks.network             # 32 and 8 features, windows of 128: a quarter of an hour
    python -m benchmarks.network --quick     # seconds, as the tests run it

On a GPU, where torch finds one, else on the CPU; on a GPU in float32, and both again in bfloat16. "Eager" is
pytorch-3dunet's module as it is. The floors are the time that the plain network's multiplications take at the
speed at which this machine multiplies large matrices of that dtype, and that its maps take to be read and
written once a convolution at the speed at which it copies memory; ours needs fewer of both. Last comes what
each would take for all windows of a volume of Scroll 1's shape: those that columns of 1024 x 1024 share are
run twice, and half of them may lie in air.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import types
from contextlib import nullcontext

import torch

from benchmarks.report import SCROLL_1, machine
from inkzarr.core.geometry import Windows, Zyx
from inkzarr.nn.engine import choose_device
from inkzarr.nn.fast import prepare
from inkzarr.nn.unet import UNet3D

COLUMN = 1024
OVERLAPS = 0.5, 0.25


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


def finish(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quickest(way, device: torch.device, tries: int = 5) -> float:
    """Seconds of the best try."""
    took = []
    for _ in range(tries):
        began = time.perf_counter()
        way()
        finish(device)
        took.append(time.perf_counter() - began)
    return min(took)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second."""
    edge = 2048 if device.type == "cpu" else 8192
    a = torch.rand(edge, edge, device=device, dtype=dtype)
    return 2 * edge**3 / quickest(lambda: a @ a, device)


def copying(device: torch.device) -> float:
    """Bytes a second read and written, of a copy larger than the caches; on a CPU by torch's threads."""
    source = torch.ones(2**27 if device.type == "cpu" else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / quickest(lambda: target.copy_(source), device)


def work(model: torch.nn.Module, window: int) -> tuple[int, int]:
    """Floating-point operations of a window, and numbers read or written, by the convolutions alone."""
    done = [0, 0]

    def count(layer: torch.nn.Conv3d, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        done[0] += 2 * out.numel() * layer.weight[0].numel()
        done[1] += given[0].numel() + out.numel()

    shell = copy.deepcopy(model).to("meta")
    for layer in shell.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.register_forward_hook(count)
    shell(torch.empty((1, 1, *(window,) * 3), device="meta"))
    return done[0], done[1]


def for_scroll_1(seconds: dict[str, float], window: int) -> None:
    """Print hours of all windows of the scroll, given seconds a window."""
    heads = "".join(f"{f'overlap {overlap}':>14}{'half air':>10}" for overlap in OVERLAPS)
    print(f"  {'hours for ' + str(SCROLL_1):<32}{heads}")
    for name, each in seconds.items():
        line = f"    {name:<30}"
        for overlap in OVERLAPS:
            stride = round(window * (1 - overlap))
            count = Windows(Zyx(*SCROLL_1), Zyx.of(window), Zyx.of(stride)).counts.volume
            hours = each * count * ((COLUMN + window - stride) / COLUMN) ** 2 / 3600
            line += f"{hours:>14,.1f}{hours / 2:>10,.1f}"
        print(line)


def compare(features: int, levels: int, window: int, rounds: int, dtype: torch.dtype) -> None:
    """Print one table."""
    torch.manual_seed(0)
    device = choose_device("auto")
    on_cpu, exact = device.type == "cpu", dtype is torch.float32
    model = UNet3D(f_maps=features, levels=levels).eval()
    batch = torch.rand(torch.get_num_threads() if on_cpu else 4, 1, *(window,) * 3, device=device)
    fast = prepare(model, dtype=dtype, device=device)
    theirs = eager(features, levels, model.state_dict()).to(device)

    def plain() -> torch.Tensor:
        with nullcontext() if exact else torch.autocast(device.type, dtype):
            return torch.cat([theirs(one) for one in batch.split(1 if on_cpu else len(batch))]).float()

    ways = {"pytorch-3dunet, eager": plain, "ours": lambda: fast(batch)}
    took = {name: [] for name in ways}
    found = {}
    with torch.inference_mode():
        for name, way in ways.items():  # warms up; the window that is compared
            found[name] = way().sigmoid() if rounds > 1 or window < 128 else None
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                found[name] = way().sigmoid()
                finish(device)
                took[name].append((time.perf_counter() - began) / len(batch))
    seconds = {name: statistics.median(times) for name, times in took.items()}
    flop, numbers = work(model, window)
    seconds["floor, multiplications"] = flop / matrix_rate(device, dtype)
    seconds["floor, memory"] = numbers * dtype.itemsize / copying(device)
    slowest = seconds["pytorch-3dunet, eager"]
    told = (
        f"windows of {window}, {len(batch)} at a time, {rounds} rounds, {str(dtype).removeprefix('torch.')}"
    )
    print(f"\n{features} features, {levels} levels, {told} on {device}")
    for name, each in seconds.items():
        print(f"  {name:<24} {each:8.3f} s a window  {slowest / each:6.2f} x eager")
    share = seconds["floor, multiplications"] / seconds["ours"]
    print(f"  {flop / window**3:,.0f} operations a voxel, at {share:.0%} of the rate of large matrices")
    a, b = found.values()
    print(f"  largest difference of probabilities: {float((a - b).abs().max()):.1e}")
    for_scroll_1(seconds, window)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; with 1 nothing is warmed up")
    given = parser.parse_args(arguments)
    print(machine())
    half = [torch.bfloat16] * torch.cuda.is_available()
    for case in [(4, 2, 32)] if given.quick else [(32, 5, 128), (8, 5, 128)]:
        for dtype in (torch.float32, *half):
            compare(*case, given.rounds, dtype)


if __name__ == "__main__":
    main()
