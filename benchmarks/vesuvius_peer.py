"""The three passes of vesuvius (predict, blend, finalize), as a script: in an environment without inkzarr.

    python benchmarks/vesuvius_peer.py FOLDER WINDOW FEATURES LEVELS

FOLDER holds ``weights.pt`` (as for `sliding_peers`) and ``scan.zarr`` (uint8, Zarr v2, a bare array). The
passes hand on Zarr arrays in FOLDER: the logits of every window, the blended logits, the result. Their code
runs as it is installed, with two stubs: its builder of networks, which is not used here and imports timm and
torchvision, whose build on PyPI does not load beside a CPU build of torch; and nest_asyncio, for its
catalogue. The network comes as vesuvius loads a foreign ink model: voxels divided by 255, no other
normalisation, no mirroring. Windows are read by the process that runs the network, not by four others.

Prints what `sliding_peers` does, the seconds of each pass, and the GB on disk at the end. What it takes to
start, measured on a window of 16^3, is not counted: each of two passes imports torch in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import shutil
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import torch
from sliding_peers import Clock, Constant, held, network

sys.modules["vesuvius.models.build.build_network_from_config"] = types.SimpleNamespace(NetworkFromConfig=None)
sys.modules["nest_asyncio"] = types.SimpleNamespace(apply=lambda: None)
TINY = (16,) * 3


def writing():
    """Processor seconds of the threads that write windows: they run while the network does."""
    writers = [thread.ident for thread in threading.enumerate() if "ThreadPool" in thread.name]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in writers)


class OwnClock(Clock):
    """`Clock`, without what the writing threads do meanwhile."""

    def forward(self, x):
        began = writing()
        found = super().forward(x)
        self.cpu -= writing() - began
        return found


def noisy():
    """A network of one window, for starting: windows of one value are not even written."""
    constant = Constant(TINY)
    constant.logits.normal_(generator=torch.Generator().manual_seed(0))
    return constant


def passes(scan, clock, window, out):
    """Seconds of each pass, the bytes on disk, and the final array."""
    import zarr
    from vesuvius.models.run import blending, finalize_outputs, inference
    from vesuvius.models.run.external_models.load_resnet import _ScaleInputWrapper

    model = {"network": _ScaleInputWrapper(clock), "patch_size": window, "num_seg_heads": 1, "targets": {}}
    inference.try_load_external_resnet34_model = lambda **_: {**model, "normalization_scheme": "none"}
    shutil.rmtree(out, ignore_errors=True)
    blended, final = (str(out / name) for name in ("blended.zarr", "final.zarr"))
    options = {"overlap": 0.5, "do_tta": False, "device": "cpu", "num_dataloader_workers": 0}
    moments = [time.perf_counter()]
    given = {"patch_size": window, "model_type": "resnet", **options}
    if inference.Inferer("ours", str(scan), str(out), **given).infer() is None:  # it has printed why
        sys.exit("vesuvius could not predict")
    moments.append(time.perf_counter())
    blending.merge_inference_outputs(str(out), blended)
    moments.append(time.perf_counter())
    finalize_outputs.finalize_logits(blended, final)
    moments.append(time.perf_counter())
    on_disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return np.diff(moments), on_disk, zarr.open(final, "r")[0]


def spent():
    """Seconds by the clock and of the processors, those of child processes counted."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime])


def largest_child():
    """GB that a child process held at most."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def main():
    import zarr

    folder, (edge, features, levels) = Path(sys.argv[1]), map(int, sys.argv[2:])
    window, out = (edge,) * 3, folder / "vesuvius"
    zarr.save_array(str(folder / "tiny.zarr"), np.arange(16**3, dtype=np.uint8).reshape(TINY), chunks=TINY)
    steps = [-(-(n - edge) // (edge // 2)) + 1 for n in zarr.open(str(folder / "scan.zarr"), "r").shape]
    clock = OwnClock(network(folder, window, features, levels))
    real, sys.stdout = sys.stdout, sys.stderr
    for _ in range(2):  # the first time it imports
        began = spent()
        passes(folder / "tiny.zarr", OwnClock(noisy()), TINY, out)
        starting = spent() - began
    before, child = held("VmRSS"), largest_child()
    Path("/proc/self/clear_refs").write_text("5")
    began = spent()
    each, on_disk, found = passes(folder / "scan.zarr", clock, window, out)
    total, cpu = spent() - began - starting
    np.save(folder / "vesuvius.npy", found)
    shutil.rmtree(out)
    told = {"total": total, "network": clock.seconds, "cpu": cpu - clock.cpu, "windows": int(np.prod(steps))}
    told |= dict(zip(("predict", "blend", "finalize"), each, strict=True))
    peak = max(held("VmHWM") - before, largest_child() - child)
    sys.stdout = real
    version = importlib.metadata.version("vesuvius")
    print(json.dumps({**told, "peak_gb": peak, "disk_gb": on_disk / 1e9, "version": version}))


if __name__ == "__main__":
    main()
