"""A run as it stands: all that a resumed one must have again to go on as if it had never stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.nn.utils import convert_conv3d_weight_memory_format

from inkzarr.core.errors import InkzarrError
from inkzarr.nn.average import Average

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from inkzarr.nn.config import Config
    from inkzarr.nn.dataset import Sample
    from inkzarr.nn.unet import UNet3D


@dataclass
class Tally:
    """What an epoch adds up to.

    Parameters
    ----------
    sums, weights : list of float
        Of the loss, of all processes.
    skipped : int
        Steps without anything to learn.
    decoded : int
        Chunks decoded by this process's readers.
    waited, seconds : float
        Seconds that the loop waited for data, and those of all steps.
    touched : set of int
        Chunks that were needed.
    """

    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    weights: list[float] = field(default_factory=lambda: [0.0, 0.0])
    skipped: int = 0
    decoded: int = 0
    waited: float = 0.0
    seconds: float = 0.0
    touched: set[int] = field(default_factory=set)

    def read(self, samples: list[Sample | InkzarrError]) -> list[Sample]:
        """Count what a batch took to read; one that could not be read raises its error."""
        for sample in samples:
            if isinstance(sample, InkzarrError):
                raise sample
            self.decoded += sample.decoded
            self.touched.update(sample.touched)
        return samples  # type: ignore[return-value]

    def learned(self, sums: Tensor, weights: Tensor) -> None:
        """Add a step's terms of the loss."""
        self.sums = [a + b for a, b in zip(self.sums, sums.tolist(), strict=True)]
        self.weights = [a + b for a, b in zip(self.weights, weights.tolist(), strict=True)]

    def told(self) -> dict[str, Any]:
        """What of it is logged, beside the loss."""
        return {
            "skipped": self.skipped,
            "decoded": self.decoded,
            "decoded_by_needed": round(self.decoded / max(1, len(self.touched)), 3),
            "waited": round(self.waited / max(self.seconds, 1e-9), 4),
        }


@dataclass
class RunState:
    """A network and what teaches it.

    Parameters
    ----------
    model : UNet3D
        On its device.
    average : Average
        Of its weights.
    optimiser : torch.optim.Optimizer
        AdamW.
    scaler : torch.amp.GradScaler
        Does nothing but for float16.
    step : int
        Steps taken.
    best : float
        The largest score of an epoch so far.
    spent : float
        Seconds, of all runs.
    tally : Tally
        Of the epoch that goes on.
    """

    model: UNet3D
    average: Average
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: float = -math.inf
    spent: float = 0.0
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def begin(cls, model: UNet3D, config: Config, device: torch.device) -> Self:
        """Put a network on its device, with AdamW, an average and a scaler."""
        model.to(device).train()
        convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
        optimiser = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.rate, eps=1e-7)
        scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        scaler.scale(
            torch.zeros((), device=device)
        )  # it begins at its first call, which threads must not share
        return cls(model, Average(model, config.ema), optimiser, scaler)

    def saved(self) -> dict[str, Any]:
        """As tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "averaged": self.average.steps,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "spent": self.spent,
            "tally": {**self.tally.__dict__, "touched": sorted(self.tally.touched)},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` told."""
        self.model.load_state_dict(saved["model"])
        self.average.load(saved["average"], saved["averaged"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step, self.best, self.spent = saved["step"], saved["best"], saved["spent"]
        self.tally = Tally(**{**saved["tally"], "touched": set(saved["tally"]["touched"])})


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Convolutions decay; norms and biases do not."""
    weights = list(model.parameters())
    heavy, light = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim <= 1]
    return [{"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0}]
