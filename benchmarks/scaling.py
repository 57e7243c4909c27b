"""What the runner itself costs: on a scan of Scroll 1's shape, with one worker and two, on larger volumes.

    python -m benchmarks.scaling             # half an hour, 2 cores
    python -m benchmarks.scaling --quick     # a minute, as the tests run it

scroll     14376 x 7888 x 8096 voxels of which one chunk in thousands is stored, one in every layer of the
           first column among them, so that blocks are computed all the way down, and the others left out as
           air; the network replaced by a constant: time of the command with `--plan`, and of it until
           it begins and until its first chunk is written; of a column what a block takes at its start and at
           its end; and the same of a volume an eighth as large
scheduler  memory of a Dask scheduler's process while two workers take up all of that shape, for two minutes
workers    the same volume with one worker process of a Dask cluster and with two, after a small one each
memory     peak beyond the imports (constant network), beside MONAI and nnU-Net up to 1024^3; and how often
           ours runs a window; the last volume is two columns wide, of which two blocks are in flight
"""

from __future__ import annotations

import argparse
import os
import re
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
from inkzarr.core import runner
from inkzarr.core.job import Plan, RunOptions
from inkzarr.nn.checkpoint import save_checkpoint
from inkzarr.nn.engine import Engine
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings, plan_predict, predict_volume

THEIR_MOST = 1024
"""Edge of the largest volume that the peers are given."""
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


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


def command(*arguments: str) -> subprocess.Popen:
    """`inkzarr predict` as one runs it, but for the network."""
    code = (
        "from benchmarks.scaling import be_constant; from inkzarr.cli import main\n"
        f"be_constant(); main({['predict', *arguments]!r})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, **SILENT)


def seconds_until(folder: Path, pattern: str, process: subprocess.Popen, began: float) -> float:
    """When something is there that a running process makes."""
    while not any(folder.glob(pattern)):
        if process.poll() is not None:
            raise RuntimeError(process.args)
        time.sleep(0.02)
    return time.perf_counter() - began


def redundancy(plan: Plan) -> str:
    return re.search(r"redundancy\s+([\d.]+)", str(plan))[1]


def scroll(shape: tuple[int, ...], stored: int) -> None:
    """A child of `main`: it must have done nothing else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = sparse(folder, shape, stored), network(folder), f"{name}/ink.zarr"
        began = time.perf_counter()
        if command(*given, "--plan").wait():
            raise RuntimeError(given)
        planned = time.perf_counter() - began
        began = time.perf_counter()
        with command(*given) as whole:
            begun = seconds_until(folder, "ink.zarr/0/.zarray", whole, began)
            first = seconds_until(folder, "ink.zarr/0/*/*/*", whole, began)
            whole.kill()
        box = f":,:{min(1024, shape[1])},:{min(1024, shape[2])}"
        be_constant()
        plan = plan_predict(*given[:2], f"{name}/column.zarr")
        before, written = held("VmRSS"), []
        original = runner._Task._write
        runner._Task._write = lambda *a: (original(*a), written.append(time.perf_counter()))[0]
        Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()
        report = predict_volume(*given[:2], f"{name}/column.zarr", PredictSettings(box=box))
        total = time.perf_counter() - began
        peak = held("VmHWM") - before
    tenth = max(1, len(written) // 10)
    a_block = [
        1000 * (part[-1] - part[0]) / max(1, len(part) - 1)
        for part in (written[: tenth + 1], written[-tenth - 1 :])
    ]
    print(f"\nscroll {shape}, {stored} chunks and a column stored, no network")
    print(f"  {'how often a window is run':<28} {redundancy(plan):>8}")
    print(f"  {'the command with --plan':<28} {planned:8.2f} s")
    print(f"  {'without it, begins after':<28} {begun:8.2f} s, its first chunk written after {first:.2f} s")
    each = 1000 * total / report.blocks
    print(f"  a column of {report.blocks} blocks in {total:.1f} s, {each:.0f} ms a block in the mean")
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

    dask, environment = [sys.executable, "-m", "dask"], os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        scan, unet = sparse(folder, shape, stored), network(folder)
        place = folder / "scheduler.json"

        def start(*words: str) -> subprocess.Popen:
            process = stack.enter_context(subprocess.Popen([*dask, *words], env=environment, **SILENT))
            stack.callback(process.kill)
            return process

        process = start(
            "scheduler", "--port", "0", "--dashboard-address", ":0", "--scheduler-file", str(place)
        )
        for _ in range(2):
            start("worker", "--scheduler-file", str(place), "--nthreads", "1", "--no-dashboard")
        client = stack.enter_context(Client(scheduler_file=str(place)))
        client.wait_for_workers(2)
        client.run(be_constant)
        told = {"connected": held("VmHWM", process.pid)}
        run = stack.enter_context(
            command(scan, unet, f"{name}/ink.zarr", "--scheduler", client.scheduler.address)
        )
        stack.callback(run.kill)
        for part in (1, 2):
            with suppress(subprocess.TimeoutExpired):
                run.wait(seconds / 2)
            if run.poll():
                raise RuntimeError(run.args)
            chunks = sum(1 for path in folder.glob("ink.zarr/0/*/*/*") if path.is_file())
            told[f"after {part * seconds / 2:.0f} s, {chunks} chunks written"] = held("VmHWM", process.pid)
    print(f"\nscheduler: {shape}, {stored} chunks and a column stored, no network, two workers")
    for when, peak in told.items():
        print(f"  peak of its process, {when:<34} {peak:6.2f} GB")


def memory(shapes: list[tuple[int, ...]], window: int) -> None:
    print(f"\nmemory: peak beyond the imports, GB, no network, windows of {window}")
    rows: dict[str, list[float | str]] = {}
    for shape in shapes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            unet = network(folder)
            voxels = np.full(shape, 9, np.uint8)
            beside = max(shape) <= THEIR_MOST
            if beside:
                np.save(folder / "voxels.npy", voxels)
            for scan, part in (("scan", voxels), ("warm", voxels[:window, :window, :window])):
                zarr.create_array(
                    folder / f"{scan}.zarr", data=part, chunks=(min(128, window),) * 3, zarr_format=2
                )
            told = run([sys.executable, "-m", "benchmarks.sliding_ours", name, str(window), "0"])
            plan = plan_predict(f"{name}/scan.zarr", unet, f"{name}/x", PredictSettings(window=window))
            rows.setdefault("inkzarr", []).append(told["peak_gb"] if isinstance(told, dict) else told)
            rows.setdefault("inkzarr, runs a window", []).append(float(redundancy(plan)))
            script = str(ROOT / "benchmarks" / "sliding_peers.py")
            for what, title in PEERS.items():
                told = run([interpreter(), script, what, name, str(window), "0", "2"]) if beside else "-"
                rows.setdefault(title, []).append(told["peak_gb"] if isinstance(told, dict) else told)
    print(f"  {'':<36}" + "".join(f"{'x'.join(map(str, shape)):>16}" for shape in shapes))
    for title, shown in rows.items():
        line = "".join(f"{one:>16.2f}" if isinstance(one, float) else f"{one:>16}" for one in shown)
        print(f"  {title:<36}{line}")


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
        for one in (shape, tuple(n // 2 for n in shape)):
            code = f"from benchmarks.scaling import scroll; scroll({one}, {stored})"
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            subprocess.run(
                [sys.executable, "-c", code], check=True, env=environment, stderr=subprocess.DEVNULL
            )
    if given.only in (None, "scheduler"):
        scheduler(shape, stored, 120)
    if given.only in (None, "workers"):
        workers(*((128, 2, 32, 1) if given.quick else (256, 4, 64, 2)))
    if given.only in (None, "memory"):
        cubes = (
            [(64,) * 3, (96,) * 3]
            if given.quick
            else [(256,) * 3, (512,) * 3, (1024,) * 3, (512, 2048, 2048)]
        )
        memory(cubes, 32 if given.quick else 128)


if __name__ == "__main__":
    main()
