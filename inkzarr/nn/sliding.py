"""Slide a network over the windows of one block, and blend what it says.

A window that touches several blocks is run by one of them, which may add it for the others too::

    block 1     [----------]               windows [====] are run once
    block 2                [----------]
              [====][====][====][====]
                 [====][====][====]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from inkzarr.core.progress import tick
from inkzarr.nn.sums import TOGETHER

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from inkzarr.core.geometry import Box, Zyx
    from inkzarr.nn.engine import Engine
    from inkzarr.nn.sums import Sums


class Seen(NamedTuple):
    """What windows see, as far as it lies in the volume.

    Parameters
    ----------
    box : Box
        Which part of the volume.
    voxels : numpy.ndarray
        Its raw voxels.
    """

    box: Box
    voxels: np.ndarray


def predict_block(
    block: Box, todo: list[Zyx], seen: Seen, sums: Sums, engine: Engine, *, air: float
) -> np.ndarray:
    """Run windows that touch a block, and blend them with those that were added before.

    Parameters
    ----------
    block : Box
        The voxels wanted.
    todo : list of Zyx
        The windows, in C order.
    seen : Seen
        What they see, and perhaps more.
    sums : Sums
        Of a box that holds the block; perhaps with other windows in it.
    engine : Engine
        The network.
    air : float
        A window whose voxels are all at most this is not run and takes no part.

    Returns
    -------
    numpy.ndarray
        uint8 of the block's shape, round(255 * probability); 0 where no window was run.

    Raises
    ------
    InputError
        The network gave a nan; its window is named.
    """
    windows = sums.windows
    box, voxels = seen
    on_device = engine.upload(voxels)
    with engine.lock, torch.inference_mode():
        run = [index for index in todo if not _is_air(voxels[_held(windows.box(index), box)], air)]
        tick(len(todo) - len(run))
        done: list[Zyx] = []
        found: list[Tensor] = []
        while run:
            batch, run = run[: engine.batch], run[engine.batch :]
            cut = [_cut(on_device, windows.box(index), box) for index in batch]
            done, found = done + batch, found + engine.probabilities(cut, voxels.dtype)
            if len(done) >= TOGETHER or not run:
                sums.add(done, found)
                done, found = [], []
            tick(len(batch))
        engine.release()
        result = engine.download(sums.finish(block))
    return result()


def _is_air(window: np.ndarray, air: float) -> bool:
    """Whether no voxel is more than `air`; nearly always one plane tells."""
    return bool(window[len(window) // 2].max() <= air and window.max() <= air)


def _held(box: Box, seen: Box) -> tuple[slice, slice, slice]:
    """Where a window lies in the voxels of `seen`; it may reach past the volume's end."""
    return box.clip(seen).within(seen)


def _cut(voxels: Tensor, box: Box, seen: Box) -> Tensor:
    """The voxels of a window, continued with zeros past the volume's end."""
    held = voxels[_held(box, seen)]
    z, y, x = (n - h for n, h in zip(box.shape, held.shape, strict=True))
    return F.pad(held, (0, x, 0, y, 0, z)) if z or y or x else held
