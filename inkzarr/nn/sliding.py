"""Slide a network over the windows of one block, and blend what it says.

Windows are run and added in C order, layer by layer along z. Only one window's depth of sums is held:
a plane is finished, and written, when no later layer reaches it::

    layer k      [=========]            sums hold the depth of a window
    layer k+1         [=========]       the first stride planes of layer k are finished
                 |----|
                 finished: 255 * sum(weight * probability) / sum(weight)
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from inkzarr.core.blending import Blend, window_weights
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Windows, Zyx
from inkzarr.core.progress import tick

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from inkzarr.nn.engine import Engine

ONE = Zyx(1, 1, 1)


def predict_block(
    voxels: np.ndarray, block: Box, windows: Windows, engine: Engine, *, blend: Blend, air: float
) -> np.ndarray:
    """Run all windows that touch a block, and blend them.

    Parameters
    ----------
    voxels : numpy.ndarray
        Raw voxels of ``windows.reach(block)``, clipped to the volume.
    block : Box
        The voxels wanted.
    windows : Windows
        Of the whole volume.
    engine : Engine
        The network.
    blend : str
        ``gaussian`` or ``constant``.
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
    origin = windows.reach(block).start
    on_device = engine.upload(voxels)
    weights = _weights(windows.window, blend, str(engine.device))
    depth, stride = windows.window.z, windows.stride.z
    touching = windows.touching(block)
    out = torch.zeros(tuple(block.shape), dtype=torch.uint8, device=engine.device)
    with engine.lock, torch.inference_mode():
        sums = torch.zeros((2, depth, block.shape.y, block.shape.x), device=engine.device)
        for layer in range(touching.start.z, touching.stop.z):
            run: list[Box] = []
            totals: list[tuple[Box, Tensor]] = []
            for box in _layer(windows, touching, layer):
                if voxels[_held(box, origin, voxels.shape)].max() <= air:
                    tick(1)
                else:
                    run.append(box)
            for at in range(0, len(run), engine.batch):
                boxes = run[at : at + engine.batch]
                cut = [_cut(on_device, box, origin) for box in boxes]
                for box, probability in zip(boxes, engine.probabilities(cut, voxels.dtype), strict=True):
                    totals.append((box, probability.sum()))
                    _add(sums, probability, weights, box, block)
                tick(len(boxes))
            _check_finite(totals)
            finished = depth if layer + 1 == touching.stop.z else stride
            _finish(out, sums, layer * stride, finished, block)
            sums[:, : depth - finished] = sums[:, finished:].clone()
            sums[:, depth - finished :] = 0
        result = engine.download(out)
    return result()


def _layer(windows: Windows, touching: Box, layer: int) -> list[Box]:
    """The windows of one layer that touch the block, in C order."""
    start, stop = touching.start._replace(z=layer), touching.stop._replace(z=layer + 1)
    return [windows.box(index) for index in Grid(stop, ONE).indices(Box(start, stop))]


def _held(box: Box, origin: Zyx, shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """Where a window lies in voxels that begin at `origin` and may end inside it."""
    return box.shift(origin, sign=-1).clip(Box.whole(shape)).slices


def _cut(voxels: Tensor, box: Box, origin: Zyx) -> Tensor:
    """The voxels of a window, continued with zeros past the volume's end."""
    held = voxels[_held(box, origin, tuple(voxels.shape))]
    z, y, x = (n - h for n, h in zip(box.shape, held.shape, strict=True))
    return F.pad(held, (0, x, 0, y, 0, z)) if z or y or x else held


def _add(sums: Tensor, probability: Tensor, weights: Tensor, box: Box, block: Box) -> None:
    """Add a window to the sums of weighted probabilities and of weights, as deep as a window.

    Product and sum are rounded apart, so that no fused operation makes a voxel depend on where it lies.
    """
    start, stop = box.start, box.stop
    plane = Box(block.start._replace(z=start.z), block.stop._replace(z=stop.z))
    shared = box.clip(plane)
    target, source = shared.within(plane), shared.within(box)
    sums[(0, *target)] += (probability * weights)[source]
    sums[(1, *target)] += weights[source]


def _finish(out: Tensor, sums: Tensor, first: int, planes: int, block: Box) -> None:
    """Write the first `planes` of the sums, of which the first is plane `first` of the volume."""
    low, high = max(first, block.start.z), min(first + planes, block.stop.z)
    for z in range(low, high):
        weighted, weight = sums[0, z - first], sums[1, z - first]
        mean = torch.where(weight > 0, weighted / weight, 0)
        out[z - block.start.z] = (mean * 255 + 0.5).to(torch.uint8)


def _check_finite(totals: list[tuple[Box, Tensor]]) -> None:
    """Refuse windows whose probabilities do not add up to a number; asked once a layer, for a GPU's sake."""
    if totals and not torch.isfinite(torch.stack([total for _, total in totals])).all():
        window = next(box for box, total in totals if not torch.isfinite(total))
        msg = f"the network gave nan in window {window}: check its weights, and the scan there"
        raise InputError(msg)


@lru_cache(maxsize=4)
def _weights(window: Zyx, blend: Blend, device: str) -> Tensor:
    return torch.from_numpy(window_weights(window, blend)).to(device)
