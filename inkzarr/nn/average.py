"""The moving average of a network's weights, which is steadier than any of its steps."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

LAG = 10
"""Early on the average follows faster: its decay after n steps is at most (n + 1) / (n + LAG)."""


class Average:
    """Exponential moving average of weights.

    Parameters
    ----------
    model : torch.nn.Module
        Whose weights it begins with.
    decay : float
        How much of the average stays in one step; 0 is no average.

    Attributes
    ----------
    weights : dict of str to Tensor
        The average.
    steps : int
        How many went into it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        keep = min(self.decay, (self.steps + 1) / (self.steps + LAG))
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value, 1 - keep)

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a saved average."""
        self.steps = steps
        for name, value in weights.items():
            self.weights[name].copy_(value)

    @contextlib.contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Let the network have the average for a while."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
