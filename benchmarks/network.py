"""The forward pass of one batch of windows: ours beside pytorch-3dunet's own, the same weights, in turn.

    python -m benchmarks.network             # 32 and 8 features, windows of 128: four minutes
    python -m benchmarks.network --quick     # seconds, as the tests run it

On a GPU, where torch finds one, else on the CPU; on a GPU in float32, and both again in bfloat16. "Eager" is
pytorch-3dunet's module as it is, and in float32 what errors are told against. The floors are the time that
the multiplications take at the speed at which this machine multiplies large matrices of that dtype (of the
plain network, and of one whose decoders are split, as ours; with 32 features ours passes below both on a CPU,
as Winograd's method needs fewer still), and that maps take to be read and written once a convolution at the
speed at which it copies memory. Last comes what each would take for all windows of a volume of Scroll 1's
shape: those that columns of 1024 x 1024 share are run twice, and half of them may lie in air.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from contextlib import AbstractContextManager, nullcontext

import torch

from benchmarks.report import SCROLL_1, machine
from inkzarr.core.geometry import Windows, Zyx
from inkzarr.nn.engine import choose_device
from inkzarr.nn.fast import prepare
from inkzarr.nn.unet import UNet3D
from tests.peers import theirs

COLUMN = 1024
OVERLAPS = 0.5, 0.25


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


def work(model: UNet3D, window: int) -> tuple[int, int, int]:
    """What the convolutions of a window take.

    Floating-point operations of the plain network; of one whose decoders convolve the small map before it is
    doubled (8 taps in place of 27); and numbers read or written.
    """
    shell = copy.deepcopy(model).to("meta")
    joins = {id(block.basic_module.SingleConv1.conv) for block in shell.decoders}
    plain = split = numbers = 0

    def count(layer: torch.nn.Conv3d, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        nonlocal plain, split, numbers
        plain += 2 * out.numel() * layer.weight[0].numel()
        small = layer.in_channels - layer.out_channels if id(layer) in joins else 0
        split += 2 * out.numel() * (layer.weight[0].numel() - (27 - 8) * small)
        numbers += given[0].numel() + out.numel()

    for layer in shell.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.register_forward_hook(count)
    shell(torch.empty((1, 1, *(window,) * 3), device="meta"))
    return plain, split, numbers


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
    peer = theirs(f_maps=features, levels=levels).eval().to(device)
    peer.load_state_dict(model.state_dict())

    def eager(context: AbstractContextManager) -> torch.Tensor:
        with context:
            return torch.cat([peer(one) for one in batch.split(1 if on_cpu else len(batch))]).float()

    def plain() -> torch.Tensor:
        return eager(nullcontext() if exact else torch.autocast(device.type, dtype))

    ways = {"pytorch-3dunet, eager": plain, "ours": lambda: fast(batch)}
    took = {name: [] for name in ways}
    with torch.inference_mode():
        reference = eager(nullcontext()).sigmoid()
        far = {name: float((way().sigmoid() - reference).abs().max()) for name, way in ways.items()}
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                finish(device)
                took[name].append((time.perf_counter() - began) / len(batch))
    seconds = {name: statistics.median(times) for name, times in took.items()}
    whole, split, numbers = work(model, window)
    rate = matrix_rate(device, dtype)
    seconds |= {"floor, plain network": whole / rate, "floor, decoders split": split / rate}
    seconds["floor, memory"] = numbers * dtype.itemsize / copying(device)
    slowest = seconds["pytorch-3dunet, eager"]
    told = (
        f"windows of {window}, {len(batch)} at a time, {rounds} rounds, {str(dtype).removeprefix('torch.')}"
    )
    print(f"\n{features} features, {levels} levels, {told} on {device}")
    for name, each in seconds.items():
        error = f"   largest error of a probability {far[name]:.1e}" if name in far else ""
        print(f"  {name:<24} {each:8.3f} s a window  {slowest / each:6.2f} x eager{error}")
    print(f"  {whole / window**3:,.0f} operations a voxel, {split / window**3:,.0f} with decoders split")
    for_scroll_1(seconds, window)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    given = parser.parse_args(arguments)
    print(machine())
    half = [torch.bfloat16] * torch.cuda.is_available()
    for case in [(4, 2, 32)] if given.quick else [(32, 5, 128), (8, 5, 128)]:
        for dtype in (torch.float32, *half):
            compare(*case, given.rounds, dtype)


if __name__ == "__main__":
    main()
