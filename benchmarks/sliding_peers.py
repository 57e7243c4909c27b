"""The sliding windows of MONAI and nnU-Net, as a script: it runs in an environment without inkzarr.

    python benchmarks/sliding_peers.py monai|nnunet FOLDER WINDOW FEATURES LEVELS

FOLDER holds ``voxels.npy`` (uint8) and ``weights.pt`` (a state dict of pytorch-3dunet's `UNet3D`); FEATURES 0
is a network that gives a constant. Windows overlap by half and are blended by a gaussian; the result stays in
memory. Prints JSON: seconds in all, within the network, and of the processors
outside it; windows, and peak memory beyond the imports. Without a network the whole is run twice, the second
time counted: what is set up once in a process is not the cost of a window.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch


class Constant(torch.nn.Module):
    """A network that costs nothing."""

    def __init__(self, window):
        super().__init__()
        self.register_buffer("logits", torch.zeros((1, 1, *window)), persistent=False)

    def forward(self, x):
        return self.logits.clone() if len(x) == 1 else self.logits.repeat(len(x), 1, 1, 1, 1)


def network(folder, window, features, levels):
    if not features:
        return Constant(window)
    if "skimage" not in sys.modules:
        try:
            import skimage.color  # noqa: F401
        except ImportError:  # it only draws pictures
            sys.modules["skimage"] = types.ModuleType("skimage")
            sys.modules["skimage.color"] = types.SimpleNamespace(label2rgb=None)
    from pytorch3dunet.unet3d.model import UNet3D

    options = {"f_maps": features, "num_groups": 4, "num_levels": levels, "is_segmentation": False}
    model = UNet3D(1, 1, **options).eval()
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model


class Clock(torch.nn.Module):
    """A network, and the time spent in it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seconds, self.cpu = inner, 0.0, 0.0

    def forward(self, x):
        began = time.perf_counter(), time.process_time()
        found = self.inner(x)
        self.seconds += time.perf_counter() - began[0]
        self.cpu += time.process_time() - began[1]
        return found


def monai(inputs, clock, window):
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        return sliding_window_inference(inputs[None], window, 1, clock, overlap=0.5, mode="gaussian")


def nnunet(inputs, clock, window):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network = clock
    predictor.configuration_manager = types.SimpleNamespace(patch_size=window)
    predictor.label_manager = types.SimpleNamespace(num_segmentation_heads=1)
    return torch.sigmoid(predictor.predict_sliding_window_return_logits(inputs))


def held(name, process="self"):
    return int(re.search(rf"{name}:\s*(\d+)", Path(f"/proc/{process}/status").read_text())[1]) * 1024 / 1e9


def main():
    what, folder, *numbers = sys.argv[1:]
    folder, (edge, features, levels) = Path(folder), map(int, numbers)
    window = (edge,) * 3
    run = {"monai": monai, "nnunet": nnunet}[what]
    version = importlib.metadata.version({"monai": "monai", "nnunet": "nnunetv2"}[what])
    inner = network(folder, window, features, levels)
    if what == "monai":  # it averages probabilities, as ours does, nnU-Net logits
        inner = torch.nn.Sequential(inner, torch.nn.Sigmoid())
    clock = Clock(inner)
    real, sys.stdout = sys.stdout, sys.stderr
    run(torch.zeros((1, *window)), Clock(Constant(window)), window)  # imports, and whatever is built once
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    inputs = torch.from_numpy(np.load(folder / "voxels.npy"))[None].float().div_(255)
    for _ in range(1 if features else 2):
        clock.seconds, clock.cpu, found = 0.0, 0.0, None
        began = time.perf_counter(), time.process_time()
        found = run(inputs, clock, window)
    total, cpu = time.perf_counter() - began[0], time.process_time() - began[1] - clock.cpu
    np.save(folder / f"{what}.npy", (found.squeeze().numpy() * 255 + 0.5).astype(np.uint8))
    steps = [-(-(n - edge) // (edge // 2)) + 1 for n in inputs.shape[1:]]
    told = {"total": total, "network": clock.seconds, "cpu": cpu, "windows": int(np.prod(steps))}
    sys.stdout = real
    print(json.dumps({**told, "peak_gb": held("VmHWM") - before, "version": version}))


if __name__ == "__main__":
    main()
