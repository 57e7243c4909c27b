"""What feeding a network costs beside the network: of the loader and of resampling, milliseconds a window.

``python -m benchmarks.train [--quick]``. On a CPU the loader runs in the process that trains; it is
compared with the forward pass alone, which a step takes and more. Memory is the process's peak while reading.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr

from benchmarks.report import is_quick, machine
from inkzarr.core.store import open_stored
from inkzarr.nn.augment import apply
from inkzarr.nn.chunks import ChunkCache, Labels, Voxels
from inkzarr.nn.config import Augment, Config
from inkzarr.nn.dataset import Crops, Order, Source
from inkzarr.nn.unet import UNet3D
from tests.peak import forget, held


def make(folder, edge, chunk):
    """Papyrus-like noise, and labels in sheets a tenth of the volume thick."""
    rng = np.random.default_rng(0)
    scan = rng.integers(0, 255, (edge, edge, edge), np.uint8)
    count = np.zeros(scan.shape, np.uint16)
    count[:, :: edge // 4] = count[:, 1 :: edge // 4] = 1
    for name, array in (
        ("scan", scan),
        ("labels/ink", (count * 200).astype(np.uint8)),
        ("labels/count", count),
    ):
        zarr.create_array(Path(folder, name), data=array, chunks=(chunk,) * 3, zarr_format=2)


def main(arguments=None):
    quick = is_quick(__doc__, arguments)
    edge, window, f_maps, levels, some = (96, 32, 4, 3, 8) if quick else (512, 128, 32, 5, 48)
    print(f"{machine()}; windows of {window}")
    with tempfile.TemporaryDirectory() as folder:
        make(folder, edge, edge // 4)
        stored = [open_stored(f"{folder}/{name}") for name in ("scan", "labels/ink", "labels/count")]
        places = np.stack(np.meshgrid(*[range(0, edge, window)] * 3, indexing="ij"), -1).reshape(-1, 3)
        source = Source(Voxels(stored[0]), Labels(*stored[1:], np.ones((4, 4, 4), bool)), places)
        rows = {}
        for name, augment in (("windows as they are", Augment.off()), ("all augmentation", Augment())):
            cache = 2 if quick else 512
            crops = Crops([source], (window,) * 3, 0, 16, 1, augment, ChunkCache(cache * 10**6))
            keys = iter(Order(crops, Config(batch=1, cache_mb=cache)))
            samples = [next(keys)[0] for _ in range(min(some, len(places)))]
            touched, before = set(), held("VmRSS")
            forget()
            began = time.perf_counter()
            for key in samples:
                touched |= set(crops.sample(*key).touched)
            rows[f"loader, {name}"] = (time.perf_counter() - began) / len(samples)
            grown = (held("VmHWM") - before) / 1e6
            print(
                f"  {name}: {crops.cache.decoded / len(touched):.2f} decodes a chunk needed, "
                f"cache {cache} MB, {grown:.0f} MB more at the peak"
            )
            sample = crops.sample(*samples[0])
            began = time.perf_counter()
            apply(sample.voxels.float() / 255, sample.labels, sample.drawn, sample.matrix, crops.window)
            rows[f"resampling, {name}"] = time.perf_counter() - began
    model = UNet3D(f_maps=f_maps, levels=levels)
    x = torch.rand(1, 1, window, window, window)
    with torch.inference_mode():
        began = time.perf_counter()
        model(x)
    rows[f"network, {f_maps} features, forward"] = forward = time.perf_counter() - began
    for name, took in rows.items():
        print(f"  {name:<42} {took * 1000:>10.1f} ms a window {forward / took:>8.1f} x the forward pass")


if __name__ == "__main__":
    main()
