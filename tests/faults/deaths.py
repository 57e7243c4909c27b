"""Runs that die: started as forks of a process that has imported everything, and killed for real.

``python deaths.py kill predict|copy SEED KILLS FOLDER`` or ``python deaths.py signal FOLDER``; prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

import inkzarr.core.schema

SIDE = 40
SCAN_SEED = 3


def scan(folder):
    """A scan of 27 chunks, a corner of it air."""
    import zarr

    voxels = np.random.default_rng(SCAN_SEED).integers(1, 255, (SIDE,) * 3, dtype=np.uint8)
    voxels[:20, :20] = 0
    zarr.create_array(folder / "scan.zarr", data=voxels, chunks=(16,) * 3, zarr_format=2)


def checkpoint(folder):
    import torch

    from inkzarr.nn.checkpoint import save_checkpoint
    from inkzarr.nn.unet import UNet3D

    torch.manual_seed(0)
    save_checkpoint(folder / "unet.pt", UNet3D(f_maps=4, levels=2))


def command(folder, out):
    options = ("--window", "16", "--overlap", "0.125", "--block", "16")
    return ["predict", f"{folder}/scan.zarr", f"{folder}/unet.pt", str(out), *options]


def predict(folder, out):
    """The command line, as a user types it."""
    import torch

    from inkzarr.cli import main

    torch.set_num_threads(1)
    main(command(folder, out))


def predict_slowly(folder, out):
    """The same, a tenth of a second longer a block, so that a signal never comes too late."""
    import inkzarr.nn.blocks as module

    plain = module.predict_block

    def slow(*arguments, **options):
        time.sleep(0.1)
        return plain(*arguments, **options)

    module.predict_block = slow
    predict(folder, out)


def copy(folder, out):
    """A plain run into shards."""
    from inkzarr.core.geometry import Zyx
    from inkzarr.core.job import Job, RunOptions
    from inkzarr.core.runner import write_blocks
    from inkzarr.core.schema import VolumeSpec
    from inkzarr.core.store import open_stored

    stored = open_stored(f"{folder}/scan.zarr")

    def slowly(box):
        time.sleep(0.02)
        return stored.read(box)

    spec = VolumeSpec(Zyx.of(SIDE), np.dtype("uint8"), zarr_format=3, shard=16)
    write_blocks(Job("copy", str(out), spec, Zyx.of(16), {}, workers=2), slowly, RunOptions())


def start(run, folder, out, flush_every_s=0.0):
    """Run in a process of its own, whose messages go to a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        from inkzarr.core import runner

        runner.FLUSH_EVERY_S = flush_every_s
        log = os.open(f"{folder}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(folder, out)
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:  # noqa: BLE001 - whatever it was, the log tells
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def done(out):
    """Blocks that the ledger holds."""
    parts = list((out / ".inkzarr").rglob("blocks*.jsonl"))
    with contextlib.suppress(FileNotFoundError):
        return sum(len(path.read_bytes().splitlines()) for path in parts)
    return 0


def prepare(folder):
    """The input, made in a process of its own: this one must stay free of threads."""

    def make(folder, _out):
        scan(folder)
        checkpoint(folder)

    if finish(start(make, folder, None)):
        sys.exit((folder / "log.txt").read_text())


def wait(child, out, moments, seconds):
    """Until a random moment: early on, or near the end of one of the next blocks, however slow the machine."""
    if moments.random() < 0.4:
        time.sleep(moments.uniform(0, 0.4 * seconds))
        return
    wanted = done(out) + moments.randint(1, 8)
    while done(out) < wanted and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.05))


def kill(run, folder, seed, kills):
    """Kill a run at random moments until it is done, over and over until it was killed `kills` times."""
    whole, out = folder / "whole" / "out.zarr", folder / "out.zarr"
    began = time.monotonic()
    if finish(start(run, folder, whole)):
        sys.exit((folder / "log.txt").read_text())
    seconds = time.monotonic() - began
    wanted, moments = tree(whole), random.Random(seed)
    told = {
        "kills": 0,
        "finished": 0,
        "differing": [],
        "recorded": [],
        "stray": 0,
        "seconds": round(seconds, 2),
    }
    killed = 0
    while told["kills"] < kills or killed:
        child = start(run, folder, out)
        if told["kills"] < kills:
            wait(child, out, moments, seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = finish(child)
        if code == -signal.SIGKILL:
            told["kills"], killed = told["kills"] + 1, killed + 1
            told["stray"] += sum(1 for _ in out.rglob("*.partial"))
            told["recorded"].append(done(out))
            continue
        if code:
            sys.exit(f"exit code {code}: " + (folder / "log.txt").read_text())
        told["finished"] += 1
        found = tree(out)
        told["differing"] += sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        shutil.rmtree(out)
        killed = 0
    return told


def interrupt(name, folder):
    """Interrupt a run as Ctrl+C or a batch system does, then let it go on."""
    whole, out = folder / "whole" / "out.zarr", folder / name / "out.zarr"
    child = start(predict_slowly, folder, out, flush_every_s=1e9)
    until = time.monotonic() + 60
    while sum(1 for path in (out / "0").rglob("*") if path.is_file()) < 6 and time.monotonic() < until:
        time.sleep(0.002)
    recorded = done(out)
    os.kill(child, signal.Signals[name])
    told = {"code": finish(child), "recorded_before": recorded, "recorded": done(out), "out": str(out)}
    told["log"] = (folder / "log.txt").read_text()
    told["resumed_code"] = finish(start(predict, folder, out))
    told["same"] = tree(out) == tree(whole)
    return told


def main():
    what, *which, folder = sys.argv[1:]
    folder = Path(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
    inkzarr.core.schema.CHUNK = 16  # here, not on import: pytest imports this file for its doctests
    prepare(folder)
    if what == "kill":
        run, seed, kills = which
        told = kill({"predict": predict, "copy": copy}[run], folder, int(seed), int(kills))
    else:
        if finish(start(predict, folder, folder / "whole" / "out.zarr")):
            sys.exit((folder / "log.txt").read_text())
        told = {name: interrupt(name, folder) for name in ("SIGINT", "SIGTERM")}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
