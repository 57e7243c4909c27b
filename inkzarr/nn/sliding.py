"""Slide a network over the windows of one block, and blend what it says.

Blocks that follow each other along z may share one `Sums`: the windows that reach from one into the next are
run by the first alone, and their part of the next block's sums is there already::

    block 1     [----------]               windows [====] are run once
    block 2                [----------]
              [====][====][====][====]
                 [====][====][====]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from inkzarr.core.geometry import Box, Grid, Windows, Zyx
from inkzarr.core.progress import tick
from inkzarr.nn.sums import Sums, zeros

if TYPE_CHECKING:
    from torch import Tensor

    from inkzarr.nn.engine import Engine

ONE = Zyx(1, 1, 1)


def seen(block: Box, windows: Windows, layer: int) -> Box:
    """The voxels of the volume that the windows touching a block see, from layer `layer` of windows on."""
    reach = windows.reach(block)
    first = windows.box(Zyx(layer, 0, 0)).start.z
    return Box(reach.start._replace(z=first), reach.stop).clip(Box.whole(windows.shape))


def predict_block(voxels: np.ndarray, block: Box, sums: Sums, engine: Engine, *, air: float) -> np.ndarray:
    """Run all windows that touch a block and were not run yet, and blend them.

    Parameters
    ----------
    voxels : numpy.ndarray
        Raw voxels of ``seen(block, sums.windows, sums.layer)``, and perhaps planes that follow.
    block : Box
        The voxels wanted.
    sums : Sums
        Begun at this block, or left by the one before along z; then left to the next one.
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
    origin = seen(block, windows, sums.layer).start
    on_device = engine.upload(voxels)
    with engine.lock, torch.inference_mode():
        out = zeros(block.shape, np.uint8, engine.device)
        touching = windows.touching(block)
        for layer in range(sums.layer, touching.stop.z):
            sums.finish(windows.box(Zyx(layer, 0, 0)).start.z, out, block)
            run = []
            for index in _layer(touching, layer):
                if _is_air(voxels[_held(windows.box(index), origin, voxels.shape)], air):
                    tick(1)
                else:
                    run.append(index)
            for at in range(0, len(run), engine.batch):
                batch = run[at : at + engine.batch]
                cut = [_cut(on_device, windows.box(index), origin) for index in batch]
                sums.add(batch, engine.probabilities(cut, voxels.dtype))
                tick(len(batch))
        engine.release()
        sums.finish(block.stop.z, out, block)
        sums.layer = touching.stop.z
        result = engine.download(out)
    return result()


def _layer(touching: Box, layer: int) -> list[Zyx]:
    """The windows of one layer that touch the block, in C order."""
    start, stop = touching.start._replace(z=layer), touching.stop._replace(z=layer + 1)
    return list(Grid(stop, ONE).indices(Box(start, stop)))


def _is_air(window: np.ndarray, air: float) -> bool:
    """Whether no voxel is more than `air`; nearly always one plane tells."""
    return bool(window[len(window) // 2].max() <= air and window.max() <= air)


def _held(box: Box, origin: Zyx, shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """Where a window lies in voxels that begin at `origin` and may end inside it."""
    return box.shift(origin, sign=-1).clip(Box.whole(shape)).slices


def _cut(voxels: Tensor, box: Box, origin: Zyx) -> Tensor:
    """The voxels of a window, continued with zeros past the volume's end."""
    held = voxels[_held(box, origin, tuple(voxels.shape))]
    z, y, x = (n - h for n, h in zip(box.shape, held.shape, strict=True))
    return F.pad(held, (0, x, 0, y, 0, z)) if z or y or x else held
