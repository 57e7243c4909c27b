"""Ours, Zarr to Zarr, in a process of its own; what `benchmarks/sliding_peers.py` is for the peers.

python -m benchmarks.sliding_ours FOLDER WINDOW FEATURES
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import zarr

from benchmarks.sliding_peers import held
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import RunOptions
from inkzarr.nn.engine import cached_engine
from inkzarr.predict import PredictSettings, predict_volume


def main():
    folder, (edge, features) = sys.argv[1], map(int, sys.argv[2:])
    settings = PredictSettings(window=edge, device="cpu")
    engine = cached_engine(f"{folder}/unet.pt", None, None, "cpu", "float32")
    plain, spent = engine.probabilities, [0.0, 0.0]
    constant = [torch.full((edge,) * 3, 0.5) for _ in range(engine.batch)]

    def timed(windows, dtype):
        began = time.perf_counter(), time.process_time()
        found = plain(windows, dtype) if features else constant[: len(windows)]
        spent[0] += time.perf_counter() - began[0]
        spent[1] += time.process_time() - began[1]
        return found

    engine.probabilities = timed

    def run(scan, out):
        options = RunOptions(overwrite=True, json_logs=True)
        predict_volume(f"{folder}/{scan}", f"{folder}/unet.pt", f"{folder}/{out}", settings, options)

    run("warm.zarr", "warm-ink.zarr")
    shape = zarr.open_array(f"{folder}/scan.zarr", mode="r").shape
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(1 if features else 2):
        spent[:] = 0.0, 0.0
        began = time.perf_counter(), time.process_time()
        run("scan.zarr", "ink.zarr")
    told = {"total": time.perf_counter() - began[0], "network": spent[0]}
    told["cpu"] = time.process_time() - began[1] - spent[1]
    told["windows"] = settings.windows(Zyx(*shape)).counts.volume
    print(json.dumps({**told, "peak_gb": held("VmHWM") - before, "version": "Zarr to Zarr"}))


if __name__ == "__main__":
    main()
