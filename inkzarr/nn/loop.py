"""The loop of training and of pretraining: read it from top to bottom."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.utils import convert_conv3d_weight_memory_format

from inkzarr.core.errors import InkzarrError, InputError
from inkzarr.core.progress import Progress, duration
from inkzarr.nn.average import Average
from inkzarr.nn.checkpoint import Normalisation, save_checkpoint
from inkzarr.nn.dataset import Order, Sample, load
from inkzarr.nn.engine import DTYPES
from inkzarr.nn.fast import prepare
from inkzarr.nn.gradients import Gradients

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image
    from torch import Tensor, nn

    from inkzarr.nn.config import Config
    from inkzarr.nn.dataset import Crops
    from inkzarr.nn.folder import RunFolder
    from inkzarr.nn.processes import Processes
    from inkzarr.nn.unet import UNet3D

GPU_WORKERS = 8


class Task(Protocol):
    """What is learned; `nn.tasks` has ink and masked voxels."""

    name: str
    normalisation: Normalisation

    def batch(self, samples: list[Sample], device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and what they should become, on the device: each (N, 1, Z, Y, X)."""

    def weights(self, wanted: Tensor) -> Tensor:
        """What the sums of the loss are divided by; all 0 where there is nothing to learn."""

    def sums(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """The terms of the loss, each as a sum."""

    def combine(self, sums: Tensor, weights: Tensor) -> Tensor:
        """The loss."""

    def score(
        self, net: Callable[[Tensor], Tensor], processes: Processes
    ) -> tuple[float | None, dict[str, Any]]:
        """How good the network is (more is better; None where nothing is held back), and what to log."""

    def picture(self, net: Callable[[Tensor], Tensor], device: torch.device) -> Image:
        """Scan, what is wanted, what is found."""


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

    def saved(self) -> dict[str, Any]:
        """As plain values, for the state."""
        return {**self.__dict__, "touched": sorted(self.touched)}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Tally:
        """Out of the state."""
        return cls(**{**saved, "touched": set(saved["touched"])})


def fit(  # noqa: PLR0913, PLR0915, C901, PLR0912 - one loop, to be read from top to bottom
    model: UNet3D,
    task: Task,
    crops: Crops,
    config: Config,
    processes: Processes,
    folder: RunFolder,
    *,
    state: Mapping[str, Any] | None,
    inputs: Mapping[str, Any],
    lineage: Mapping[str, str],
    notes: Sequence[str] = (),
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a network, and save it after every epoch.

    Parameters
    ----------
    model : UNet3D
        Its weights are changed in place.
    task : Task
        What is learned.
    crops : Crops
        The windows to learn from.
    config : Config
        The run.
    processes : Processes
        Who takes part.
    folder : RunFolder
        What is written.
    state : dict or None
        What to go on from.
    inputs : dict
        What tells the inputs from others', for the state.
    lineage : dict of str to str
        For the checkpoints.
    notes : list of str
        Said before the first step.
    on_epoch : callable, optional
        Called with each line of the log.

    Returns
    -------
    dict
        The last line of the log.

    Raises
    ------
    InputError
        The loss is no number.
    StoreError
        A chunk cannot be had.
    """
    device = processes.device
    model.to(device).train()
    convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    average = Average(model, config.ema)
    optimiser = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.rate, eps=1e-7)
    scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
    step, best, spent, tally = 0, -math.inf, 0.0, Tally()
    if state is not None:
        model.load_state_dict(state["model"])
        average.load(state["average"], state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        step, best, spent, tally = (
            state["step"],
            state["best"],
            state["spent"],
            Tally.restored(state["tally"]),
        )
    gradients = Gradients(model, task, processes, scaler, dtype=DTYPES[config.dtype], batch=config.batch)

    def save() -> None:
        if processes.first:
            parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "scaler": scaler}
            told = {name: part.state_dict() for name, part in parts.items()}
            told |= {
                "average": average.weights,
                "averaged": average.steps,
                "random": torch.get_rng_state(),
                "tally": tally.saved(),
            }
            told |= {"config": config.model_dump_json(), "inputs": json.dumps(inputs)}
            folder.save({**told, "step": step, "best": best, "spent": spent})

    order = Order(crops, config, processes=(processes.rank, processes.world), first=step)
    steps, total = order.steps, order.steps * config.epochs
    entry: dict[str, Any] = folder.entries()[-1] if state is not None and folder.entries() else {}
    over = bool(entry) and entry["done"]
    reader = iter(load(crops, order, workers=reading(config, device), pinned=device.type == "cuda"))
    began = time.monotonic() - spent
    board = folder.board() if config.tensorboard and processes.first else None
    with Progress(task.name, total, unit="step") if processes.first else nullcontext() as progress:
        if progress is not None:
            progress.advance(step)
            for note in notes if state is None else (f"resumed at step {step} of {total}",):
                progress.say(f"{task.name}: {note}")
        while step < total and not over:
            # the rate: up with the warm-up, down along a cosine, by steps or by time, whichever is further
            spent = time.monotonic() - began
            part = max(step / total, 0 if config.max_minutes is None else spent / (60 * config.max_minutes))
            part = processes.of_first(part) if config.max_minutes is not None else part
            for group in optimiser.param_groups:
                group["lr"] = config.rate * schedule(part, config.warmup)

            # a batch
            before = time.monotonic()
            samples = next(reader)
            tally.waited += time.monotonic() - before
            for sample in samples:
                if isinstance(sample, InkzarrError):
                    raise sample
                tally.decoded += sample.decoded
                tally.touched.update(sample.touched)
            given, wanted = task.batch(samples, device)
            weights = processes.total(task.weights(wanted))

            # forward, backward, step
            if weights[0] == 0:
                tally.skipped += 1
            else:
                summed = processes.total(gradients(given, wanted, weights))
                if not torch.isfinite(summed).all():
                    raise InputError(_diverged(step, steps, folder))
                scaler.unscale_(optimiser)
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad(set_to_none=True)
                average.update(model)
                tally.sums = [a + float(b) for a, b in zip(tally.sums, summed, strict=True)]
                tally.weights = [a + float(b) for a, b in zip(tally.weights, weights, strict=True)]
            step += 1
            tally.seconds += time.monotonic() - before
            if progress is not None:
                progress.note(f"loss {_mean(task, tally):.4f}")
                progress.advance(1)

            # the end of an epoch, or of the time
            spent = time.monotonic() - began
            late = config.max_minutes is not None and spent > 60 * config.max_minutes
            late = processes.of_first(late) if config.max_minutes is not None else False
            if step % steps and not late:
                if config.save_every and step % config.save_every == 0:
                    save()
                continue
            over = late or step == total
            with average.in_place_of(model), gradients.autocast():
                net = prepare(model) if device.type == "cpu" else model
                found, told = task.score(net, processes)
                epoch = math.ceil(step / steps)
                spent = time.monotonic() - began
                entry = {"epoch": epoch, "step": step, "loss": _mean(task, tally), **told}
                entry |= _about(tally, optimiser.param_groups[0]["lr"], spent) | {"done": over}
                better = (-entry["loss"] if found is None else found) > best
                best = max(best, -entry["loss"] if found is None else found)
                if processes.first:
                    about = {**lineage, "epoch": str(epoch), "step": str(step)}
                    for path in [folder.last, *([folder.best] if better else [])]:
                        save_checkpoint(path, model, normalisation=task.normalisation, lineage=about)
                    folder.picture(epoch, task.picture(net, device))
            tally = Tally()
            if processes.first:
                folder.log(entry)
                for name, value in entry.items():
                    if board is not None and isinstance(value, int | float):
                        board.add_scalar(name, value, step)
            save()
            if progress is not None:
                left = "" if over else f", {duration((total - step) * spent / step)} left"
                progress.say(line(task.name, entry, config.epochs) + left)
            if on_epoch is not None and processes.first:
                on_epoch(entry)
    if board is not None:
        board.close()
    convert_conv3d_weight_memory_format(model, torch.contiguous_format)
    return entry


def schedule(part: float, warmup: float) -> float:
    """The rate, as a part of its largest, after a `part` of the run.

    Examples
    --------
    >>> [round(schedule(part, 0.1), 3) for part in (0.05, 0.1, 0.55, 1)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if part < warmup:
        return max(part, 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (part - warmup) / (1 - warmup))))


def reading(config: Config, device: torch.device) -> int:
    """How many processes read."""
    if config.workers is not None:
        return config.workers
    return min(GPU_WORKERS, os.cpu_count() or 1) if device.type == "cuda" else 0


def line(name: str, entry: Mapping[str, Any], epochs: int) -> str:
    """An epoch, in one line."""
    parts = [
        f"{key} {entry[key]:.4f}"
        for key in ("loss", "valid_loss", "f05", "auc")
        if entry.get(key) is not None
    ]
    parts += [f"{entry['skipped']} steps without labels"] if entry["skipped"] else []
    return f"{name}: epoch {entry['epoch']} of {epochs}: {', '.join(parts)}, {duration(entry['seconds'])}"


def _mean(task: Task, tally: Tally) -> float:
    return float(task.combine(torch.tensor(tally.sums), torch.tensor(tally.weights)))


def _about(tally: Tally, rate: float, spent: float) -> dict[str, Any]:
    needed = max(1, len(tally.touched))
    return {
        "skipped": tally.skipped,
        "rate": rate,
        "decoded": tally.decoded,
        "decoded_by_needed": round(tally.decoded / needed, 3),
        "waited": round(tally.waited / max(tally.seconds, 1e-9), 4),
        "seconds": round(spent, 2),
    }


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Convolutions decay; norms and biases do not."""
    weights = list(model.parameters())
    heavy, light = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim <= 1]
    return [{"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0}]


def _diverged(step: int, steps: int, folder: RunFolder) -> str:
    kept = f"{folder.last} holds the last good epoch" if folder.last.exists() else "no epoch was finished"
    return (
        f"the loss is not a number at step {step + 1} (epoch {step // steps + 1}): "
        f"lower rate, or check the scan for nan; {kept}"
    )
