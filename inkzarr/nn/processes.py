"""The processes of one run: one alone, or those that ``torchrun`` started."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from inkzarr.nn.engine import choose_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """One process among those of the run.

    Parameters
    ----------
    rank, world : int
        Its number, and how many there are.
    device : torch.device
        What it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it is this process that writes and speaks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes."""
        values = values.detach().clone()
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def of_first(self, value: T) -> T:
        """The first process's value, in all."""
        held = [value]
        if self.world > 1:
            distributed.broadcast_object_list(held, device=self.device)
        return held[0]

    def shared(self, model: nn.Module) -> nn.Module:
        """The network with gradients that are averaged over the processes."""
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the other processes, where ``RANK`` and ``WORLD_SIZE`` tell of any: gloo on CPUs, NCCL on GPUs.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu`` or ``cuda``; of several GPUs each process takes that of its ``LOCAL_RANK``.

    Raises
    ------
    InputError
        CUDA was asked for and there is none.
    """
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    chosen = choose_device(device)
    if world == 1:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, chosen)
    finally:
        distributed.destroy_process_group()
