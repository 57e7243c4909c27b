"""What a network is taught: ink, or what was hidden from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from inkzarr.core.errors import InkzarrError, InputError
from inkzarr.core.picture import contact_sheet
from inkzarr.core.schema import CERTAIN_INK, INK_THRESHOLD
from inkzarr.core.scores import Scores
from inkzarr.nn.augment import apply
from inkzarr.nn.checkpoint import Normalisation
from inkzarr.nn.config import Loss
from inkzarr.nn.dataset import Crops, Sample, load
from inkzarr.nn.losses import combine, loss_sums, loss_weights, masked_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from PIL.Image import Image

    from inkzarr.nn.config import Numbers
    from inkzarr.nn.processes import Processes

HIDDEN = -1.0
"""What a voxel is set to that the network must find again."""
MASKS = 4
LEAST, MOST = 1 / 2, 1 / 1.3
"""A hidden box's size, as a part of the window's, along each axis."""
UNLABELLED_GREY = 96
PIXELS = 256
PLANES = "zyx"


class Task(Protocol):
    """What is learned."""

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
class Held:
    """Windows that are kept back, to score on.

    Parameters
    ----------
    crops : Crops
        Without jitter and augmentation.
    rows : numpy.ndarray
        Which of them.
    batch : int
        Windows at once.
    workers : int
        Processes that read.
    """

    crops: Crops
    rows: NDArray[np.int64]
    batch: int
    workers: int
    _loaders: dict[int, Any] = field(default_factory=dict, repr=False)

    def batches(self, processes: Processes) -> Iterator[list[Sample]]:
        """Those of this process, in the order of the table."""
        if processes.rank not in self._loaders:
            mine = np.array_split(self.rows, processes.world)[processes.rank]
            keys = [(0, int(row)) for row in mine]
            batches = [keys[at : at + self.batch] for at in range(0, len(keys), self.batch)]
            self._loaders[processes.rank] = load(self.crops, batches, workers=self.workers)
        for samples in self._loaders[processes.rank]:
            for sample in samples:
                if isinstance(sample, InkzarrError):
                    raise sample
            yield samples


@dataclass
class InkTask:
    """Ink, on labelled voxels.

    Parameters
    ----------
    window : (z, y, x)
        In voxels.
    loss : Loss
        Its terms.
    normalisation : Normalisation
        Of voxels.
    shown : Sample
        What is drawn every epoch.
    held : Held or None
        What is scored.
    """

    window: Numbers
    loss: Loss
    normalisation: Normalisation
    shown: Sample
    held: Held | None
    name: str = "train"

    def batch(self, samples: list[Sample], device: torch.device) -> tuple[Tensor, Tensor]:
        """Windows in [0, 1], and labels in [0, 1] or -1: each (N, 1, Z, Y, X)."""
        made = [_window(sample, self.normalisation, self.window, device) for sample in samples]
        given, wanted = (torch.stack(part)[:, None] for part in zip(*made, strict=True))
        return given, wanted

    def weights(self, wanted: Tensor) -> Tensor:
        """Labelled voxels, and windows with any."""
        return loss_weights(wanted, self.loss)

    def sums(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropy and Dice."""
        return loss_sums(logits, wanted, self.loss)

    def combine(self, sums: Tensor, weights: Tensor) -> Tensor:
        """The loss."""
        return combine(sums, weights, self.loss)

    @torch.no_grad()
    def score(
        self, net: Callable[[Tensor], Tensor], processes: Processes
    ) -> tuple[float | None, dict[str, Any]]:
        """F0.5 at its best threshold, and what else is logged; without ink, less loss is better.

        Raises
        ------
        InputError
            Nothing of the windows is labelled.
        """
        if self.held is None:
            return None, {}
        plain, scores = Loss(), Scores()
        total = torch.zeros(4, dtype=torch.float64, device=processes.device)
        for samples in self.held.batches(processes):
            given, wanted = self.batch(samples, processes.device)
            logits = net(given.contiguous(memory_format=torch.channels_last_3d)).float()
            total += torch.cat([loss_sums(logits, wanted, plain).double(), loss_weights(wanted, plain)])
            known = wanted >= 0
            ink = wanted[known] * CERTAIN_INK > INK_THRESHOLD - 0.5
            scores.add(torch.sigmoid(logits[known]).cpu().numpy(), ink.cpu().numpy())
        counts = torch.from_numpy(scores.counts).to(processes.device)
        summary = Scores(processes.total(counts).cpu().numpy()).summary()
        entropy, _, voxels, _ = processes.total(total).tolist()
        if not voxels:
            msg = "no voxel of the validation windows is labelled: give valid_labels, or other valid_patches"
            raise InputError(msg)
        told = {
            "valid_loss": entropy / voxels,
            "f05": summary.best_f05,
            "threshold": summary.best_threshold,
            "auc": summary.auc,
            "average_precision": summary.average_precision,
            "dice": summary.dice_best,
        }
        return (-told["valid_loss"] if summary.best_f05 is None else summary.best_f05), told

    @torch.no_grad()
    def picture(self, net: Callable[[Tensor], Tensor], device: torch.device) -> Image:
        """Scan, label and prediction in three planes, through most of what is labelled."""
        given, wanted = self.batch([self.shown], device)
        found = torch.sigmoid(net(given).float())[0, 0].cpu().numpy()
        voxels, label = given[0, 0].cpu().numpy(), wanted[0, 0].cpu().numpy()
        painted = np.where(label < 0, UNLABELLED_GREY, np.rint(label * 255)).astype(np.uint8)
        images = {"scan": voxels, "label": painted, "prediction": np.rint(found * 255).astype(np.uint8)}
        return _planes(images, label >= 0)


@dataclass
class MaskTask:
    """Voxels that were hidden, as in ryanchesler/LSM: four random boxes of every window.

    Parameters
    ----------
    window : (z, y, x)
        In voxels.
    normalisation : Normalisation
        Of voxels.
    shown : Sample
        What is drawn every epoch.
    held : Held
        What is scored.
    """

    window: Numbers
    normalisation: Normalisation
    shown: Sample
    held: Held
    name: str = "pretrain"

    def batch(self, samples: list[Sample], device: torch.device) -> tuple[Tensor, Tensor]:
        """Windows with hidden boxes, (N, 1, Z, Y, X); and what was there, and where: (N, 2, Z, Y, X)."""
        whole = torch.stack([_window(s, self.normalisation, self.window, device)[0] for s in samples])[
            :, None
        ]
        boxes = [masks(np.random.default_rng(sample.drawn.noise), self.window) for sample in samples]
        masked = torch.from_numpy(np.stack(boxes)).to(device)[:, None]
        return torch.where(masked, HIDDEN, whole), torch.cat([whole, masked.float()], 1)

    def weights(self, wanted: Tensor) -> Tensor:
        """Hidden voxels."""
        count = wanted[:, 1].sum(dtype=torch.float64)
        return torch.stack([count, count])

    def sums(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Squared errors."""
        error = masked_error(logits[:, 0], wanted[:, 0], wanted[:, 1] > 0)
        return torch.stack([error, error.new_zeros(())])

    def combine(self, sums: Tensor, weights: Tensor) -> Tensor:
        """The mean squared error."""
        return combine(sums, weights, Loss())

    @torch.no_grad()
    def score(
        self, net: Callable[[Tensor], Tensor], processes: Processes
    ) -> tuple[float | None, dict[str, Any]]:
        """The less error the better, with the same boxes hidden each time."""
        total = torch.zeros(2, dtype=torch.float64, device=processes.device)
        for samples in self.held.batches(processes):
            given, wanted = self.batch(samples, processes.device)
            error = self.sums(net(given.contiguous(memory_format=torch.channels_last_3d)), wanted)[0]
            total += torch.stack([error.double(), self.weights(wanted)[0]])
        error, count = processes.total(total).tolist()
        return -error / max(count, 1), {"valid_loss": error / max(count, 1)}

    @torch.no_grad()
    def picture(self, net: Callable[[Tensor], Tensor], device: torch.device) -> Image:
        """Scan, what the network saw, and what it made of that."""
        given, wanted = self.batch([self.shown], device)
        whole, masked = wanted[0, 0].cpu().numpy(), wanted[0, 1].cpu().numpy() > 0
        found = np.where(masked, net(given).float()[0, 0].cpu().numpy(), whole)
        grey = [
            np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)
            for part in (whole, given[0, 0].cpu().numpy(), found)
        ]
        return _planes(dict(zip(("scan", "seen", "found"), grey, strict=True)), masked)


def masks(rng: np.random.Generator, window: Numbers) -> NDArray[np.bool_]:
    """Hide four boxes, each 1/2 to 1/1.3 of the window along each axis.

    Returns
    -------
    numpy.ndarray
        bool, of the window's shape.
    """
    hidden = np.zeros(window, bool)
    for _ in range(MASKS):
        sizes = [
            int(rng.integers(max(1, int(w * LEAST)), max(1, int(w * MOST)), endpoint=True)) for w in window
        ]
        starts = [int(rng.integers(0, w - s, endpoint=True)) for w, s in zip(window, sizes, strict=True)]
        hidden[tuple(slice(a, a + s) for a, s in zip(starts, sizes, strict=True))] = True
    return hidden


def _window(
    sample: Sample, normalisation: Normalisation, window: Numbers, device: torch.device
) -> list[Tensor]:
    """A sample's window, and its labels, on the device."""
    raw = sample.voxels.to(device, non_blocking=True)
    scaled = normalisation.scale(raw, np.dtype(str(sample.voxels.dtype).removeprefix("torch.")))
    labels = None if sample.labels is None else sample.labels.to(device, non_blocking=True)
    return apply(scaled, labels, sample.drawn, sample.matrix, window)


def _planes(images: dict[str, NDArray[Any]], marked: NDArray[np.bool_]) -> Image:
    """Three planes, each through most of what is marked; small windows enlarged."""
    rows, captions = [], []
    zoom = max(1, PIXELS // max(marked.shape))
    for axis, letter in enumerate(PLANES):
        others = tuple(k for k in range(len(PLANES)) if k != axis)
        weight = marked.sum(others)
        at = int(np.argmax(weight)) if weight.any() else marked.shape[axis] // 2
        cut = [np.take(image, at, axis) for image in images.values()]
        rows.append([plane.repeat(zoom, 0).repeat(zoom, 1) for plane in cut])
        captions.append([f"{name}, {letter} = {at}" for name in images])
    return contact_sheet(rows, captions)
