"""The loop of training and of pretraining: read it from top to bottom."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import convert_conv3d_weight_memory_format

from inkzarr.core.errors import InputError
from inkzarr.core.progress import Progress, duration
from inkzarr.nn.dataset import Order, load
from inkzarr.nn.engine import DTYPES
from inkzarr.nn.fast import prepare
from inkzarr.nn.gradients import Gradients
from inkzarr.nn.state import RunState, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from inkzarr.nn.config import Config
    from inkzarr.nn.dataset import Crops
    from inkzarr.nn.folder import RunFolder
    from inkzarr.nn.processes import Processes
    from inkzarr.nn.tasks import Task
    from inkzarr.nn.unet import UNet3D

GPU_WORKERS = (8, 4, 2, 1)
"""The most there are cores for: of as many a worker reads whole lanes of `inkzarr.nn.dataset`."""


def fit(  # noqa: PLR0913, PLR0915, C901 - one loop, to be read from top to bottom
    model: UNet3D,
    task: Task,
    crops: Crops,
    config: Config,
    processes: Processes,
    folder: RunFolder,
    *,
    state: Mapping[str, Any] | None,
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
        The loss or its gradient is no number.
    StoreError
        A chunk cannot be had.
    """
    device = processes.device
    run = RunState.begin(model, config, device)
    if state is not None:
        run.restore(state)
    gradients = Gradients(model, task, processes, run.scaler, dtype=DTYPES[config.dtype], batch=config.batch)
    order = Order(crops, config, processes=(processes.rank, processes.world), first=run.step)
    total = order.steps * config.epochs
    limit = math.inf if config.max_minutes is None else 60 * config.max_minutes
    reader = iter(load(crops, order, workers=reading(config, device), pinned=device.type == "cuda"))
    entry: dict[str, Any] = processes.of_first((folder.entries() or [{}])[-1])
    over, used = bool(entry.get("done")), run.spent / limit
    first = run.step, used
    began = time.monotonic() - run.spent
    with (
        folder,
        Progress(
            task.name,
            run.step if over else total,
            unit="step",
            before=run.step,
            silent=not processes.first,
        ) as progress,
    ):
        for note in notes if state is None else (f"resumed at step {run.step} of {total}",):
            progress.say(f"{task.name}: {note}")
        while not over:
            # the rate: up with the warm-up, down along a cosine, by steps or by time, whichever is further
            for group in run.optimiser.param_groups:
                group["lr"] = config.rate * schedule(max(run.step / total, used), config.warmup)

            # a batch
            before = time.monotonic()
            samples = next(reader)
            run.tally.waited += time.monotonic() - before
            given, wanted = task.batch(run.tally.read(samples), device)
            weights = processes.total(task.weights(wanted))

            # forward, backward, step
            if weights[0] == 0:
                run.tally.skipped += 1
            else:
                sums = processes.total(gradients(given, wanted, weights))
                run.scaler.unscale_(run.optimiser)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                # a scaler leaves a step out whose gradient overflows, and scales less
                if not (sums.isfinite().all() and (norm.isfinite() or run.scaler.is_enabled())):
                    raise InputError(_diverged(run.step, order.steps, folder))
                run.scaler.step(run.optimiser)
                run.scaler.update()
                run.optimiser.zero_grad(set_to_none=True)
                run.average.update(model)
                run.tally.learned(sums, weights)
            run.step += 1
            run.tally.seconds += time.monotonic() - before
            progress.note(_now(task, run.tally, entry))
            progress.advance(1)

            # on to the next one, unless the epoch ends here, or the time
            if limit < math.inf:
                used = processes.of_first((time.monotonic() - began) / limit)
                progress.expect(_expected(total, run.step, used, *first))
            over = run.step >= total or used >= 1
            if run.step % order.steps and not over:
                if config.save_every and run.step % config.save_every == 0:
                    run.spent = time.monotonic() - began
                    folder.save(run.saved())
                continue

            # score the average of the weights, save it, and tell
            epoch = math.ceil(run.step / order.steps)
            with run.average.in_place_of(model), gradients.autocast():
                net = prepare(model) if device.type == "cpu" else model
                score, told = task.score(net, processes)
                loss = _mean(task, run.tally)
                unscored = -loss if run.tally.weights[0] else -math.inf
                score = unscored if score is None else score
                about = {**lineage, "epoch": str(epoch), "step": str(run.step)}
                folder.checkpoint(model, task.normalisation, about, better=score > run.best)
                if processes.first:
                    folder.picture(epoch, task.picture(net, device))
                del net  # and the memory that it keeps
            run.best, run.spent = max(run.best, score), time.monotonic() - began
            entry = {"epoch": epoch, "step": run.step, "loss": loss, **told, **run.tally.told()}
            entry |= {"rate": group["lr"], "seconds": round(run.spent, 2), "done": over}
            run.tally = Tally()
            folder.log(entry)
            folder.save(run.saved())
            left = min((total - run.step) * run.spent / run.step, limit - run.spent)
            progress.say(line(task.name, entry, config.epochs, left))
            if on_epoch is not None and processes.first:
                on_epoch(entry)
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
        return min(1.0, max(part, 1e-3) / warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (part - warmup) / (1 - warmup))))


def reading(config: Config, device: torch.device) -> int:
    """How many processes read."""
    if config.workers is not None:
        return config.workers
    cores = os.cpu_count() or 1
    return next(n for n in GPU_WORKERS if n <= cores) if device.type == "cuda" else 0


def line(name: str, entry: Mapping[str, Any], epochs: int, left: float) -> str:
    """An epoch, in one line, with the seconds that are left."""
    shown = [name for name in ("loss", "valid_loss", "f05", "auc") if entry.get(name) is not None]
    parts = [f"{name} {entry[name]:.4f}" for name in shown]
    parts += [f"{entry['skipped']} steps without labels"] if entry["skipped"] else []
    parts += [duration(entry["seconds"])] + ([] if entry["done"] else [f"{duration(left)} left"])
    return f"{name}: epoch {entry['epoch']} of {epochs}: {', '.join(parts)}"


def _expected(total: int, step: int, used: float, first: int, before: float) -> int:
    """Steps in all; those from `first` on took the time from `before` to `used`, parts of the whole.

    Examples
    --------
    >>> _expected(1000, 30, 0.6, first=10, before=0.2)
    50
    """
    left = max(0.0, 1 - used)
    return min(total, step + round((step - first) * left / (used - before))) if used > before else total


def _now(task: Task, tally: Tally, entry: Mapping[str, Any]) -> str:
    """The loss of this epoch so far, and the last one's score."""
    score = entry.get("f05")
    return f"loss {_mean(task, tally):.4f}" + ("" if score is None else f", F0.5 {score:.4f}")


def _mean(task: Task, tally: Tally) -> float:
    return float(task.combine(torch.tensor(tally.sums), torch.tensor(tally.weights)))


def _diverged(step: int, steps: int, folder: RunFolder) -> str:
    kept = f"{folder.last} holds the last good epoch" if folder.last.exists() else "no epoch was finished"
    return (
        f"the loss or its gradient is not a number at step {step + 1} (epoch {step // steps + 1}): "
        f"lower rate, or check the scan for nan; {kept}"
    )
