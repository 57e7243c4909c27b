"""Losses of which unlabelled voxels take no part: no gradient ever reaches them.

A loss is handed over as a sum and a weight, so that several processes (or steps) give the same mean as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from inkzarr.nn.config import Loss

SMOOTH = 1.0
"""Added above and below in Dice, so that a window without ink has one."""


def known_labels(labels: Tensor, settings: Loss) -> tuple[Tensor, Tensor]:
    """Labels to learn from, and where they count.

    Parameters
    ----------
    labels : Tensor
        Float in [0, 1], -1 where unlabelled; any shape.
    settings : Loss
        Smoothing, and what is unlabelled.

    Returns
    -------
    Tensor, Tensor
        Smoothed labels, 0 where they do not count; bool.
    """
    known = labels >= 0
    if settings.unlabelled == "no ink":
        known = torch.ones_like(known)
    smoothed = labels.clamp(0, 1) * (1 - settings.smoothing) + settings.smoothing / 2
    return torch.where(known, smoothed, 0), known


def loss_weights(labels: Tensor, settings: Loss) -> Tensor:
    """What the terms of `loss_sums` are divided by.

    Returns
    -------
    Tensor
        (2,): voxels of which cross-entropy is taken, windows of which Dice is taken.
    """
    _, known = known_labels(labels, settings)
    return torch.stack([known.sum(), known.flatten(1).any(1).sum()]).double()


def loss_sums(logits: Tensor, labels: Tensor, settings: Loss) -> Tensor:
    """Sum the terms of the loss over a batch.

    Parameters
    ----------
    logits : Tensor
        (N, 1, Z, Y, X), any float.
    labels : Tensor
        Same shape, float in [0, 1], -1 where unlabelled.
    settings : Loss
        Which terms.

    Returns
    -------
    Tensor
        (2,) float32: cross-entropy over labelled voxels; one minus soft Dice over windows with labels.

    Examples
    --------
    >>> from inkzarr.nn.config import Loss
    >>> logits, labels = torch.zeros(1, 1, 1, 1, 2), torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 1, 2)
    >>> loss_sums(logits, labels, Loss())
    tensor([0.6931, 0.0000])
    """
    ink, known = known_labels(labels, settings)
    logits = torch.where(known, logits.float(), 0)  # also stops what is not finite where nothing is known
    factor = 1 + (settings.ink_weight - 1) * ink
    entropy = F.binary_cross_entropy_with_logits(logits, ink, reduction="none") * factor * known
    if not settings.dice:
        return torch.stack([entropy.sum(), entropy.new_zeros(())])
    found = (torch.sigmoid(logits) * known).flatten(1)
    wanted, some = ink.flatten(1), known.flatten(1).any(1)
    overlap = 2 * (found * wanted).sum(1) + SMOOTH
    dice = overlap / ((found**2).sum(1) + (wanted**2).sum(1) + SMOOTH)
    return torch.stack([entropy.sum(), ((1 - dice) * some).sum()])


def combine(sums: Tensor, weights: Tensor, settings: Loss) -> Tensor:
    """One loss out of sums and weights; the weights may be of several processes."""
    mean = sums / weights.to(sums).clamp(min=1)
    return mean[0] + settings.dice * mean[1]


def masked_error(found: Tensor, wanted: Tensor, masked: Tensor) -> Tensor:
    """Sum of squared errors over masked voxels alone.

    Parameters
    ----------
    found, wanted : Tensor
        Same shape, float.
    masked : Tensor
        Same shape, bool.
    """
    return (torch.where(masked, found.float() - wanted, 0) ** 2).sum()
