"""A minimal fit in memory, for the demonstration and for tests: a small network in under a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import convert_conv3d_weight_memory_format

from inkzarr.core.errors import InputError
from inkzarr.nn.fast import single_threaded
from inkzarr.nn.unet import UNet3D, check_window

Crop = tuple[Tensor, Tensor, Tensor]

RATE = 3e-3
"""Adam's largest step; it falls linearly to nothing, so that the last steps settle."""


def fit_on_truth(  # noqa: PLR0913 - a demonstration, without a settings object
    volume: NDArray[Any],
    truth: NDArray[Any],
    *,
    labelled: NDArray[Any] | None = None,
    window: int = 32,
    steps: int = 120,
    f_maps: int = 8,
    levels: int = 3,
    batch: int = 4,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> UNet3D:
    """Fit a network to ink of known place.

    Parameters
    ----------
    volume : ndarray
        (z, y, x), uint8.
    truth : ndarray
        Same shape, bool or uint8; not 0 where there is ink.
    labelled : ndarray, optional
        Same shape; not 0 where `truth` is known and counts. Default: everywhere.
    window : int
        Side of the crops, in voxels; a multiple of 2^(levels-1).
    steps, batch : int
        How many steps, of how many crops each.
    f_maps, levels : int
        Of the network.
    seed : int
        Same seed, same network, with the same number of threads.
    progress : callable, optional
        Called after each step with the steps done, `steps`, and the step's loss.

    Returns
    -------
    UNet3D
        In evaluation mode; its input is the whole range of uint8 scaled to [0, 1].

    Raises
    ------
    InputError
        Arrays of unlike shapes, a volume that is not uint8 or smaller than the window, nothing labelled,
        or a window that the network cannot halve.
    """
    check_window((window,) * 3, levels)
    _check_arrays(volume, truth, labelled, window)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet3D(f_maps=f_maps, levels=levels).train()
    convert_conv3d_weight_memory_format(model, torch.channels_last_3d)  # twice as fast on a CPU
    weights = list(model.parameters())
    optimiser = torch.optim.Adam(weights, lr=RATE)
    crops = _crops(volume, truth, labelled, window, np.random.default_rng(seed))

    def gradients(crop: Crop) -> tuple[Tensor, ...]:
        voxels, ink, known = crop
        losses = F.binary_cross_entropy_with_logits(model(voxels), ink, reduction="none")
        loss = (losses * known).sum()
        return loss.detach(), known.sum(), *torch.autograd.grad(loss, weights)

    with single_threaded(min(batch, torch.get_num_threads())) as pool:
        for step in range(steps):
            parts = pool.map(gradients, [next(crops) for _ in range(batch)])
            loss, count, *slopes = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = slope / count
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
            optimiser.step()
            if progress is not None:
                progress(step + 1, steps, float(loss / count))
    convert_conv3d_weight_memory_format(model, torch.contiguous_format)
    return model.eval()


def _crops(
    volume: NDArray[Any],
    truth: NDArray[Any],
    labelled: NDArray[Any] | None,
    window: int,
    rng: np.random.Generator,
) -> Iterator[Crop]:
    """Random crops, flipped at random, each around a labelled voxel; every second one around ink.

    Yields
    ------
    voxels, ink, known : Tensor
        (1, 1, window, window, window), float32; `voxels` in [0, 1], the others 0 or 1.
    """
    known = np.ones(volume.shape, bool) if labelled is None else labelled != 0
    anywhere = np.flatnonzero(known)
    with_ink = np.flatnonzero(known & (truth != 0))
    for count in range(2**63):
        among = with_ink if count % 2 and with_ink.size else anywhere
        centre = np.unravel_index(among[rng.integers(among.size)], volume.shape)
        first = [
            int(np.clip(at - rng.integers(window), 0, size - window))
            for at, size in zip(centre, volume.shape, strict=True)
        ]
        box = tuple(slice(at, at + window) for at in first)
        flip = tuple(slice(None, None, int(rng.choice((-1, 1)))) for _ in range(3))
        arrays = (volume[box] / np.float32(255), truth[box] != 0, known[box])
        voxels, ink, mask = (torch.from_numpy(array[flip].astype(np.float32))[None, None] for array in arrays)
        yield voxels, ink, mask


def _check_arrays(
    volume: NDArray[Any], truth: NDArray[Any], labelled: NDArray[Any] | None, window: int
) -> None:
    shapes = {array.shape for array in (volume, truth, labelled) if array is not None}
    if len(shapes) > 1 or volume.ndim != 3 or min(volume.shape) < window:
        told = " and ".join(map(str, sorted(shapes)))
        msg = f"cannot fit on arrays of shape {told}: give equal ones in z, y, x, each side at least {window}"
        raise InputError(msg)
    if volume.dtype != np.uint8:
        msg = f"cannot fit on voxels of {volume.dtype}: convert the volume to uint8"
        raise InputError(msg)
    if labelled is not None and not labelled.any():
        msg = "cannot fit: no voxel is labelled; give labelled=None where the truth is known everywhere"
        raise InputError(msg)
