"""One step's gradients: on a GPU of the batch at once, on a CPU of its windows side by side.

On a CPU every part of the batch runs on one thread: threads that share one convolution wait for each other at
each of its many ends, which costs several times the work where the machine has other things to do.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inkzarr.core.errors import InputError
from inkzarr.nn.fast import out_of_memory, single_threaded

if TYPE_CHECKING:
    from inkzarr.nn.processes import Processes
    from inkzarr.nn.tasks import Task
    from inkzarr.nn.unet import UNet3D


class Gradients:
    """Fills in ``.grad`` of a network's weights.

    Parameters
    ----------
    model : UNet3D
        On its device.
    task : Task
        Tells the loss.
    processes : Processes
        Who shares the step; gradients are averaged over them.
    scaler : torch.amp.GradScaler
        Scales the loss.
    dtype : torch.dtype
        Of the maps, by autocast.
    batch : int
        Windows in a step of this process.
    """

    def __init__(
        self,
        model: UNet3D,
        task: Task,
        processes: Processes,
        scaler: torch.amp.GradScaler,
        *,
        dtype: torch.dtype,
        batch: int,
    ) -> None:
        self.task, self.processes, self.scaler, self.dtype = task, processes, scaler, dtype
        self.weights = list(model.parameters())
        self.net = processes.shared(model)
        parts = min(torch.get_num_threads(), batch)
        alone = processes.device.type == "cpu" and processes.world == 1 and parts > 1
        self.pool = single_threaded(parts) if alone else None
        self.part = -(-batch // parts)

    def autocast(self) -> AbstractContextManager[object]:
        """For forward passes."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.processes.device.type, self.dtype)

    def __call__(self, given: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        """Run forward and backward.

        Parameters
        ----------
        given, wanted : Tensor
            Of the task.
        weights : Tensor
            What the sums are divided by, of all processes.

        Returns
        -------
        Tensor
            The terms of the loss as sums, of this process.

        Raises
        ------
        InputError
            The device has not enough memory.
        """
        try:
            return self._run(given, wanted, weights)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            told = f"a step of {len(given)} windows of {tuple(given.shape[2:])}"
            msg = f"{told} does not fit the memory of {given.device}: use a smaller batch, window or network"
            raise InputError(msg) from error

    def _run(self, given: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        given = given.contiguous(memory_format=torch.channels_last_3d)
        if self.pool is None:
            loss, sums = self._loss(given, wanted, weights)
            loss.backward()
            return sums

        def one(part: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            loss, sums = self._loss(*part, weights)
            return sums, *torch.autograd.grad(loss, self.weights)

        parts = self.pool.map(one, zip(given.split(self.part), wanted.split(self.part), strict=True))
        sums, *slopes = (torch.stack(found).sum(0) for found in zip(*parts, strict=True))
        for weight, slope in zip(self.weights, slopes, strict=True):
            weight.grad = slope
        return sums

    def _loss(self, given: Tensor, wanted: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self.net(given)
        sums = self.task.sums(logits, wanted)
        loss = self.task.combine(sums * self.processes.world, weights)
        scaled: Tensor = self.scaler.scale(loss)
        return scaled, sums.detach()
