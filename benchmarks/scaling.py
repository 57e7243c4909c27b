"""What the runner itself costs: on a scan of Scroll 1's shape, with one worker and two, on larger volumes.

    python -m benchmarks.scaling             # about twenty minutes, 2 cores
    python -m benchmarks.scaling --quick     # a minute, as the tests run it

scroll   14376 x 7888 x 8096 voxels of which one chunk in thousands is stored, one in every layer of the first
         column among them, so that none of its blocks is left out as air; the network replaced by a constant:
         time of `--plan` for all of it, and of one column of blocks: until the first is written, a block at
         the start and at the end
workers  the same volume with one worker process of a Dask cluster and with two
memory   peak beyond the imports, of volumes of 256^3 to 1024^3 (constant network), beside MONAI and nnU-Net;
         ours makes its blocks as wide as the memory at hand allows, and is also given little
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr

from benchmarks.predict import PEERS, ROOT, run
from benchmarks.report import interpreter, machine
from benchmarks.sliding_peers import held
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.engine import Engine
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings, plan_predict, predict_volume

SCROLL_1 = (14376, 7888, 8096)
LITTLE = 400_000_000


def network(folder: Path) -> str:
    torch.manual_seed(0)
    save_checkpoint(folder / "unet.pt", UNet3D(f_maps=4, levels=2))
    return str(folder / "unet.pt")


def sparse(folder: Path, shape: tuple[int, ...], stored: int) -> str:
    """A scan of `stored` chunks at random places, and one in each layer of the first column."""
    scan = zarr.create_array(
        folder / "scan.zarr", shape=shape, chunks=(128,) * 3, dtype="uint8", zarr_format=2,
        chunk_key_encoding={"name": "v2", "separator": "/"}, fill_value=0,
    )  # fmt: skip
    scan[:128, :128, :128] = np.random.default_rng(0).integers(1, 9, (128,) * 3, np.uint8)
    chunk = (folder / "scan.zarr" / "0" / "0" / "0").read_bytes()
    counts = [-(-n // 128) for n in shape]
    layers = [(z, 0, 0) for z in range(counts[0])]
    for index in (*layers, *np.random.default_rng(0).integers(0, counts, (stored, 3))):
        place = folder.joinpath("scan.zarr", *map(str, index))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(chunk)
    return str(folder / "scan.zarr")


def constant(self: Engine, windows: list[torch.Tensor], dtype: np.dtype) -> list[torch.Tensor]:  # noqa: ARG001
    return [torch.full(tuple(windows[0].shape), 0.5)] * len(windows)


def scroll(shape: tuple[int, ...], stored: int) -> None:
    """A child of `main`: it must have done nothing else."""
    Engine.probabilities = constant
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = sparse(folder, shape, stored), network(folder), f"{name}/ink.zarr"
        began = time.perf_counter()
        plan = plan_predict(*given)
        planned = time.perf_counter() - began
        from inkzarr.core import runner

        before, written = held("VmRSS"), []
        original = runner._Task._write
        runner._Task._write = lambda *a: (original(*a), written.append(time.perf_counter()))[0]
        began = time.perf_counter()
        report = predict_volume(
            *given, PredictSettings(box=f":,:{min(1024, shape[1])},:{min(1024, shape[2])}")
        )
        total = time.perf_counter() - began
        peak = held("VmHWM") - before
    tenth = max(1, len(written) // 10)
    a_block = [
        1000 * (part[-1] - part[0]) / max(1, len(part) - 1)
        for part in (written[: tenth + 1], written[-tenth - 1 :])
    ]
    print(f"\nscroll {shape}, {stored} chunks and a column stored, no network")
    print("  " + next(line for line in str(plan).splitlines() if line.startswith("redundancy")))
    print(f"  {'plan':<28} {planned:8.2f} s")
    print(f"  {'first block written after':<28} {written[0] - began:8.2f} s")
    print(f"  a column of {report.blocks} blocks in {total:.1f} s")
    print(f"  {'a block, of the first tenth':<28} {a_block[0]:8.1f} ms, of the last {a_block[1]:.1f} ms")
    print(f"  {'peak beyond the plan':<28} {peak:8.2f} GB, blocks in flight included")


def workers(edge: int, levels: int, window: int) -> None:
    """Processes of one thread each."""
    from distributed import Client, LocalCluster

    from inkzarr.core.job import RunOptions

    print(f"\nworkers: {edge}^3, {levels} levels, 8 features, windows of {window}, one thread a worker")
    with tempfile.TemporaryDirectory() as name:
        voxels = np.random.default_rng(0).integers(1, 256, (edge,) * 3, np.uint8)
        zarr.create_array(f"{name}/scan.zarr", data=voxels, chunks=(128,) * 3, zarr_format=2)
        save_checkpoint(Path(name) / "unet.pt", UNet3D(f_maps=8, levels=levels))
        settings = PredictSettings(window=window, block=(128, 128, edge), batch=1, device="cpu")
        took = []
        for count in (1, 2):
            with (
                LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                client.run(lambda: __import__("torch").set_num_threads(1))
                options = RunOptions(scheduler=cluster.scheduler_address, overwrite=True, json_logs=True)
                began = time.perf_counter()
                predict_volume(f"{name}/scan.zarr", f"{name}/unet.pt", f"{name}/ink.zarr", settings, options)
                took.append(time.perf_counter() - began)
            print(
                f"  {count} worker{'s' * (count > 1):<2} {took[-1]:8.1f} s  {took[0] / took[-1]:5.2f} x one"
            )


def memory(edges: list[int], window: int) -> None:
    print(f"\nmemory: peak beyond the imports, GB, no network, windows of {window}")
    rows: dict[str, list[str]] = {}
    for edge in edges:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            network(folder)
            voxels = np.full((edge,) * 3, 9, np.uint8)
            np.save(folder / "voxels.npy", voxels)
            for scan, part in (("scan", voxels), ("warm", voxels[:window, :window, :window])):
                zarr.create_array(
                    folder / f"{scan}.zarr", data=part, chunks=(min(128, window),) * 3, zarr_format=2
                )
            script = str(ROOT / "benchmarks" / "sliding_peers.py")
            ours = [sys.executable, "-m", "benchmarks.sliding_ours", name, str(window), "0"]
            ways = {"inkzarr": ours, f"inkzarr, of {LITTLE / 1e9} GB": [*ours, str(LITTLE)]}
            for what, title in PEERS.items():
                ways[title] = [interpreter(), script, what, name, str(window), "0", "2"]
            for title, command in ways.items():
                told = run(command)
                shown = f"{told['peak_gb']:8.2f}" if isinstance(told, dict) else f"{'-':>8}"
                rows.setdefault(title, []).append(shown)
    print(f"  {'':<22}" + "".join(f"{edge:>6}^3" for edge in edges))
    for title, shown in rows.items():
        print(f"  {title:<22}" + "".join(shown))


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", choices=("scroll", "workers", "memory"))
    given = parser.parse_args(arguments)
    print(machine())
    sys.stdout.flush()
    if given.only in (None, "scroll"):
        shape, stored = ((1000, 300, 300), 9) if given.quick else (SCROLL_1, 100)
        code = f"from benchmarks.scaling import scroll; scroll({shape}, {stored})"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stderr=subprocess.DEVNULL)
    if given.only in (None, "workers"):
        workers(*((128, 2, 32) if given.quick else (256, 4, 64)))
    if given.only in (None, "memory"):
        memory([64, 96] if given.quick else [256, 512, 1024], 32 if given.quick else 128)


if __name__ == "__main__":
    main()
