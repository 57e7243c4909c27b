r"""Weighted sums of probabilities over a block's cross-section, rolling along z, a window's depth at a time.

Windows are added in C order, layer by layer along z. A plane is finished when no later layer reaches it; the
planes after a block's end are what it hands to the next block, which goes on where it stopped::

    layer k      [=========]            sums hold the depth of a window, plane z at z modulo that depth
    layer k+1         [=========]
                 |----|
                 finished: 255 * sum(weight * probability) / sum(weight)

Weights are not summed up: in one cell of the stride's grid their sum depends on nothing but which of the
windows around were run, so it is computed once for each such pattern; nearly everywhere all were.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit

from inkzarr.core.blending import Blend, window_weights
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Windows, Zyx

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PATTERNS = 64
"""Sums of weights that are kept."""


def zeros(shape: tuple[int, ...], dtype: type[np.generic], device: torch.device) -> Tensor:
    """Zeros on a device; of a CPU from NumPy, which asks for huge pages: others take long to be had."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype))
    return torch.zeros(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=device)


class Sums:
    """Sums over the cross-section of blocks that follow each other along z.

    Parameters
    ----------
    block : Box
        The first block.
    windows : Windows
        Of the whole volume.
    blend : str
        ``gaussian`` or ``constant``.
    device : torch.device
        Where the sums are.

    Attributes
    ----------
    windows : Windows
        Of the whole volume.
    layer : int
        The first layer of windows that was not run yet.
    plane : int
        The first plane of the volume that is not finished.
    """

    def __init__(self, block: Box, windows: Windows, blend: Blend, device: torch.device) -> None:
        self.windows, self._blend, self._device = windows, blend, device
        self._grid = Grid(windows.shape, windows.stride)
        self._section = Box(block.start._replace(z=0), block.stop)
        self._weights = _weights(windows.window, blend, str(device))
        self._values = zeros((windows.window.z, block.shape.y, block.shape.x), np.float32, device)
        self._ran: set[Zyx] = set()
        self.layer, self.plane = windows.touching(block).start.z, block.start.z

    def add(self, indices: list[Zyx], probabilities: list[Tensor]) -> None:
        """Add windows of one layer, in this order.

        Product and sum are rounded apart, so that no fused operation makes a voxel depend on where it lies.

        Raises
        ------
        InputError
            A probability is nan; its window is named.
        """
        self._ran.update(indices)
        boxes = [self.windows.box(index) for index in indices]
        parts = [box.clip(self._held) for box in boxes]
        if self._device.type == "cpu":
            values = [one.contiguous().numpy() for one in probabilities]
            arrays = self._values.numpy(), self._weights.numpy()
            places = np.array(
                [
                    (self._at(part), _starts(part.within(box)), part.shape)
                    for part, box in zip(parts, boxes, strict=True)
                ]
            )
            last, pairs = len(values) - 1, range(0, len(values), 2)
            jobs = [(*arrays, values[k], values[min(k + 1, last)], places[k : k + 2]) for k in pairs]
            fine = all(map(all, _on_threads(_add, jobs)))
        else:
            for part, box, one in zip(parts, boxes, probabilities, strict=True):
                inside = part.within(box)
                self._values[self._ring(part)] += one[inside] * self._weights[inside]
            fine = bool(torch.isfinite(torch.stack([one.sum() for one in probabilities])).all())
        if not fine:
            window = next(b for b, one in zip(boxes, probabilities, strict=True) if not one.isfinite().all())
            msg = f"the network gave nan in window {window}: check its weights, and the scan there"
            raise InputError(msg)

    def finish(self, until: int, out: Tensor, block: Box) -> None:
        """Write the planes before `until`, which no later window reaches, into `out`, which holds `block`."""
        done = self._held.clip(Box(block.start, block.stop._replace(z=until)))
        cells = [self._grid.box(cell) for cell in self._grid.indices(done)]
        parts = [cell.clip(done) for cell in cells]
        weights = [
            self._weights_over(cell)[part.within(box)]
            for cell, box, part in zip(self._grid.indices(done), cells, parts, strict=True)
        ]
        if self._device.type == "cpu":
            jobs = [
                (
                    self._values.numpy(),
                    weight.numpy(),
                    out.numpy(),
                    self._at(part),
                    _starts(part.within(block)),
                )
                for part, weight in zip(parts, weights, strict=True)
            ]
            _on_threads(_finish, jobs)
        else:
            for part, weight in zip(parts, weights, strict=True):
                ring = self._ring(part)
                out[part.within(block)] = (self._values[ring] / weight).mul_(255).add_(0.5).to(torch.uint8)
                self._values[ring] = 0
        self.plane = max(until, self.plane)
        depth, stride = self.windows.window.z, self.windows.stride.z
        self._ran = {index for index in self._ran if index.z * stride + depth > self.plane}

    @property
    def _held(self) -> Box:
        """The voxels that the sums are of."""
        start, stop = self._section.start, self._section.stop
        return Box(start._replace(z=self.plane), stop._replace(z=self.plane + len(self._values)))

    def _at(self, part: Box) -> tuple[int, int, int]:
        """Where a part of what is held begins in the sums."""
        z, y, x = part.start
        return z % len(self._values), y - self._section.start.y, x - self._section.start.x

    def _ring(self, part: Box) -> tuple[list[int], slice, slice]:
        """For indexing the sums with a part of what is held."""
        _, y, x = part.within(self._section)
        return [z % len(self._values) for z in range(part.start.z, part.stop.z)], y, x

    def _weights_over(self, cell: Zyx) -> Tensor:
        """The sum of the weights in a cell of the stride's grid; infinite where no window was run."""
        window, stride = self.windows.window, self.windows.stride
        reach = [range(math.ceil(w / s) - 1, -1, -1) for w, s in zip(window, stride, strict=True)]
        back = itertools.product(*reach)  # so that windows come in C order
        z, y, x = cell
        present = tuple(b for b in back if (z - b[0], y - b[1], x - b[2]) in self._ran)
        return _sum_of_weights(window, stride, self._blend, str(self._device), present)


@lru_cache(maxsize=4)
def _weights(window: Zyx, blend: Blend, device: str) -> Tensor:
    return torch.from_numpy(window_weights(window, blend)).to(device)


@lru_cache(maxsize=PATTERNS)
def _sum_of_weights(
    window: Zyx, stride: Zyx, blend: Blend, device: str, present: tuple[tuple[int, ...], ...]
) -> Tensor:
    """Sum the weights over a cell, of windows that begin `present` cells before it; infinite where none."""
    weights = window_weights(window, blend)
    total = np.zeros(stride, np.float32)
    for back in present:
        part = weights[tuple(slice(b * s, (b + 1) * s) for b, s in zip(back, stride, strict=True))]
        total[tuple(slice(0, n) for n in part.shape)] += part
    total[total == 0] = np.inf
    return torch.from_numpy(total).to(device)


def _starts(slices: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(one.start for one in slices)


@lru_cache(maxsize=1)
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="inkzarr-sums")


def _on_threads(kernel: Callable[..., bool], jobs: list[tuple[Any, ...]]) -> list[list[bool]]:
    """All jobs on every thread, which does its share of each, in the order of the jobs."""
    count = torch.get_num_threads()
    return list(_threads(count).map(lambda n: [kernel(n, count, *job) for job in jobs], range(count)))


@njit(nogil=True, cache=True)
def _add(n, count, sums, weights, first, second, places):
    """Add the n-th of `count` shares of one or two windows of a layer; whether they hold numbers alone.

    Plane by plane, since neighbours share planes of the sums, which are then still in the processor's cache.
    """
    wrong, depth = 0, places[0, 2, 0]
    for z in range(depth * n // count, depth * (n + 1) // count):
        for k in range(len(places)):
            to, of, shape = places[k]
            values = first if k == 0 else second
            plane = (to[0] + z) % len(sums)
            for y in range(shape[1]):
                total = sums[plane, to[1] + y, to[2] : to[2] + shape[2]]
                value = values[of[0] + z, of[1] + y, of[2] : of[2] + shape[2]]
                weight = weights[of[0] + z, of[1] + y, of[2] : of[2] + shape[2]]
                for x in range(shape[2]):
                    wrong += not value[x] <= 1
                    total[x] += value[x] * weight[x]
    return wrong == 0


@njit(nogil=True, cache=True, error_model="numpy")
def _finish(n, count, sums, weights, out, at, to):
    """The n-th of `count` shares of a cell: out is 255 * sums / weights, rounded half up; sums are 0 then."""
    scale, half, depth = np.float32(255), np.float32(0.5), weights.shape[0]
    for z in range(depth * n // count, depth * (n + 1) // count):
        plane = (at[0] + z) % len(sums)
        for y in range(weights.shape[1]):
            total = sums[plane, at[1] + y, at[2] : at[2] + weights.shape[2]]
            result = out[to[0] + z, to[1] + y, to[2] : to[2] + weights.shape[2]]
            for x in range(weights.shape[2]):
                result[x] = np.uint8(total[x] / weights[z, y, x] * scale + half)
                total[x] = 0
    return True
