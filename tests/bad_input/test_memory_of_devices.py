"""No window, batch or network larger than the memory ends otherwise than in one clear line."""

import numpy as np
import pytest
import torch

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.nn.engine import Engine
from inkzarr.nn.fast import Room
from inkzarr.nn.gradients import Gradients
from inkzarr.nn.unet import UNet3D
from inkzarr.predict import PredictSettings


class Huge(torch.nn.Module):
    """Asks the CPU for more than any machine has."""

    def forward(self, windows):
        return windows + torch.empty(2**58)


def test_a_cpu_out_of_memory_is_told_as_a_gpu_is():
    with pytest.raises(InputError, match=r"one window of \(4, 4, 4\) does not fit the memory of cpu"):
        Engine(Huge(), batch=2, device="cpu").probabilities([torch.zeros(4, 4, 4)], np.dtype("uint8"))


def test_room_for_maps_that_cannot_be_had_is_told_too(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Room, "__call__", full)
    engine = Engine(UNet3D(f_maps=32, levels=2), batch=2, device="cpu")
    with pytest.raises(InputError, match=r"one window of \(4, 4, 32\) does not fit the memory of cpu"):
        engine.probabilities([torch.zeros(4, 4, 32)], np.dtype("uint8"))


class Short(Gradients):
    """A step that asks for too much."""

    def __init__(self, ask):
        self.ask = ask

    def _run(self, *_):
        return self.ask()


def of_a_gpu():
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("ask", [of_a_gpu, lambda: torch.empty(2**58)])
def test_a_training_step_out_of_memory_is_one_clear_line(ask):
    windows = torch.zeros(2, 1, 8, 16, 16)
    with pytest.raises(InputError, match=r"2 windows of \(8, 16, 16\) does not fit .* use a smaller batch"):
        Short(ask)(windows, windows, windows)


def test_other_errors_stay_what_they_are():
    class Broken(torch.nn.Module):
        def forward(self, windows):
            msg = "a bug"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="a bug"):
        Engine(Broken(), batch=2, device="cpu").probabilities([torch.zeros(4, 4, 4)], np.dtype("uint8"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"window": 1_000_000}, "holds from 1 to 1073741824 voxels"),
        ({"window": (1, 1, 2**31)}, "holds from 1 to 1073741824 voxels"),
        ({"air": float("nan")}, "air nan compares with no voxel"),
    ],
)
def test_settings_that_no_machine_can_run(settings, told):
    with pytest.raises(InputError, match=told):
        PredictSettings(**settings).windows(Zyx(20, 20, 20))
