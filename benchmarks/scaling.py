"""What the runner itself costs: on a scan of Scroll 1's shape, with one worker and two, on larger volumes.

    python -m benchmarks.scaling             # half an hour, 2 cores
    python -m benchmarks.scaling --quick     # a minute, as the tests run it

scroll     14376 x 7888 x 8096 voxels of which one chunk in thousands is stored, one in every layer of the
           first column among them, so that none of its blocks is left out as air; the network replaced by a
           constant: time of `--plan` for all of it, and of one column of blocks: until the first is written,
           a block at the start and at the end
scheduler  peak of a Dask scheduler's process while two workers take up all of that shape, for two minutes
workers    the same volume with one worker process of a Dask cluster and with two, after a small one each
memory     peak beyond the imports, of volumes of 256^3 to 1536^3 (constant network), beside MONAI and nnU-Net
           to 1024^3; ours makes its blocks as wide as the memory at hand allows, up to 1024, and is also
           given little
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
import zarr

from benchmarks.predict import PEERS, ROOT, run
from benchmarks.report import SCROLL_1, interpreter, machine
from benchmarks.sliding_peers import held
from inkzarr.core.job import RunOptions
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.engine import Engine
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings, plan_predict, predict_volume

LITTLE = 400_000_000
THEIR_MOST = 1024
"""Edge of the largest volume that the peers are given: they would take 57 and 39 GB for 1536^3."""


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


def be_constant() -> None:
    Engine.probabilities = constant


def scroll(shape: tuple[int, ...], stored: int) -> None:
    """A child of `main`: it must have done nothing else."""
    be_constant()
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


def workers(edge: int, levels: int, window: int, rounds: int) -> None:
    """Processes of one thread each."""
    from distributed import Client, LocalCluster

    told = f"{rounds} rounds in turn, one thread a worker"
    print(f"\nworkers: {edge}^3, {levels} levels, 8 features, windows of {window}, {told}")
    with tempfile.TemporaryDirectory() as name:
        voxels = np.random.default_rng(0).integers(1, 256, (edge,) * 3, np.uint8)
        for scan, part in (("scan", voxels), ("warm", voxels[:window, :window, :window])):
            zarr.create_array(f"{name}/{scan}.zarr", data=part, chunks=(min(128, window),) * 3, zarr_format=2)
        save_checkpoint(Path(name) / "unet.pt", UNet3D(f_maps=8, levels=levels))
        settings = PredictSettings(window=window, block=(128, 128, edge), batch=1, device="cpu")
        took: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for count, times in took.items():
                with (
                    LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0") as cluster,
                    Client(cluster) as client,
                ):
                    client.run(lambda: __import__("torch").set_num_threads(1))
                    options = RunOptions(scheduler=cluster.scheduler_address, overwrite=True, json_logs=True)
                    for scan in ("warm", "scan"):  # what is set up once is not the cost of a block
                        given = f"{name}/{scan}.zarr", f"{name}/unet.pt", f"{name}/{scan}-ink.zarr"
                        began = time.perf_counter()
                        predict_volume(*given, settings, options)
                    times.append(time.perf_counter() - began)
    median = {count: statistics.median(times) for count, times in took.items()}
    for count, seconds in median.items():
        print(f"  {count} worker{'s' * (count > 1):<2} {seconds:8.1f} s  {median[1] / seconds:5.2f} x one")


def scheduler(shape: tuple[int, ...], stored: int, seconds: float) -> None:
    """A scheduler and two workers as one starts them for a cluster; it is given up after a while."""
    from distributed import Client

    dask = [sys.executable, "-m", "dask"]
    quiet = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        scan, unet = sparse(folder, shape, stored), network(folder)
        place = folder / "scheduler.json"

        def start(*command: str) -> subprocess.Popen:
            process = stack.enter_context(subprocess.Popen([*dask, *command], **quiet))
            stack.callback(process.kill)
            return process

        process = start(
            "scheduler", "--port", "0", "--dashboard-address", ":0", "--scheduler-file", str(place)
        )
        for _ in range(2):
            start("worker", "--scheduler-file", str(place), "--nthreads", "1", "--no-dashboard")
        client = stack.enter_context(Client(scheduler_file=str(place)))
        client.wait_for_workers(2)
        idle = held("VmHWM", process.pid)
        client.run(be_constant)
        code = (
            "from inkzarr.core.job import RunOptions; from inkzarr.predict import predict_volume\n"
            f"options = RunOptions(scheduler={client.scheduler.address!r}, json_logs=True)\n"
            f"predict_volume({scan!r}, {unet!r}, {name + '/ink.zarr'!r}, options=options)"
        )
        run = stack.enter_context(subprocess.Popen([sys.executable, "-c", code], **quiet))
        stack.callback(run.kill)
        with suppress(subprocess.TimeoutExpired):
            run.wait(seconds)
        peak = held("VmHWM", process.pid)
        written = sum(1 for path in folder.glob("ink.zarr/0/*/*/*") if path.is_file())
    print(f"\nscheduler: {shape}, {stored} chunks and a column stored, no network, two workers, {seconds} s")
    print(f"  peak of its process, connected   {idle:8.2f} GB")
    print(f"  at work, {written} chunks written {peak:8.2f} GB")


def memory(edges: list[int], window: int) -> None:
    print(f"\nmemory: peak beyond the imports, GB, no network, windows of {window}")
    rows: dict[str, list[str]] = {}
    for edge in edges:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            network(folder)
            voxels = np.full((edge,) * 3, 9, np.uint8)
            beside = edge <= THEIR_MOST
            if beside:
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
                told = run(command) if beside or title.startswith("inkzarr") else "not run"
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
    parser.add_argument("--only", choices=("scroll", "scheduler", "workers", "memory"))
    given = parser.parse_args(arguments)
    print(machine())
    sys.stdout.flush()
    shape, stored = ((1000, 300, 300), 9) if given.quick else (SCROLL_1, 100)
    if given.only in (None, "scroll"):
        code = f"from benchmarks.scaling import scroll; scroll({shape}, {stored})"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stderr=subprocess.DEVNULL)
    if given.only in (None, "scheduler"):
        scheduler(shape, stored, 120)
    if given.only in (None, "workers"):
        workers(*((128, 2, 32, 1) if given.quick else (256, 4, 64, 3)))
    if given.only in (None, "memory"):
        memory([64, 96] if given.quick else [256, 512, 1024, 1536], 32 if given.quick else 128)


if __name__ == "__main__":
    main()
