r"""Weighted sums of probabilities over a box of voxels, in whole numbers.

A probability times its weight is cut off to a whole number of units, of which a voxel's weights add up
to less than 2^31. Whole numbers give the same sum in any order, so windows may be added as blocks, workers
and devices please::

    window A      [=========]
    window B           [=========]        sum(floor(weight * probability)), weights in units
    voxel              ^                  255 * sum / sum(weight), rounded half up

Weights are not summed up: in one cell of the stride's grid their sum depends on nothing but which of the
windows around were run, so it is computed once for each such pattern; nearly everywhere all were.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from inkzarr.core.blending import Blend, window_weights
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Windows, Zyx
from inkzarr.nn.threads import on_threads

if TYPE_CHECKING:
    from torch import Tensor

PATTERNS = 64
"""Sums of weights that are kept."""
MOST_UNITS = 2**31 - 1
TOGETHER = 4
"""Windows that are added at once: neighbours share sums, which then come from memory once."""
AHEAD = 6
"""Rows of sums that memory is asked for before their turn: short, far apart, no processor foresees them."""
LINE = 16
"""Sums in a line of the processor's cache."""


def zeros(shape: tuple[int, ...], dtype: type[np.generic], device: torch.device) -> Tensor:
    """Zeros on a device; of a CPU from NumPy, which asks for huge pages: others take long to be had."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype))
    return torch.zeros(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=device)


class Sums:
    """Sums over a box of the volume.

    Parameters
    ----------
    box : Box
        The voxels; of a window that reaches beyond them the rest is left out.
    windows : Windows
        Of the whole volume.
    blend : str
        ``gaussian`` or ``constant``.
    device : torch.device
        Where the sums are.
    room : numpy.ndarray, optional
        Zeros of the box's shape, int32, to use on a CPU; zeros again once all was `finish`ed or `clear`ed.

    Attributes
    ----------
    box : Box
        The voxels.
    windows : Windows
        Of the whole volume.
    ran : set of Zyx
        The windows that were added.
    """

    def __init__(
        self,
        box: Box,
        windows: Windows,
        blend: Blend,
        device: torch.device,
        room: np.ndarray | None = None,
    ) -> None:
        self.windows = windows
        self.box, self._blend, self._device = box, blend, device
        self._grid = Grid(windows.shape, windows.stride)
        self._weights = _units(windows.window, windows.stride, blend, str(device))
        self._values = zeros(box.shape, np.int32, device) if room is None else torch.from_numpy(room)
        self.ran: set[Zyx] = set()

    def add(self, indices: list[Zyx], probabilities: list[Tensor]) -> None:
        """Add windows.

        Raises
        ------
        InputError
            A probability is nan; its window is named.
        """
        self.ran.update(indices)
        boxes = [self.windows.box(index) for index in indices]
        parts = [box.clip(self.box) for box in boxes]
        if self._device.type == "cpu":
            values = [one.contiguous().numpy() for one in probabilities]
            arrays = self._values.numpy(), self._weights.numpy()
            places = np.array(
                [
                    (part.from_start(self.box), part.from_start(box), part.shape)
                    for part, box in zip(parts, boxes, strict=True)
                ]
            )
            planes = int(places[:, 0, 0].min()), int((places[:, 0, 0] + places[:, 2, 0]).max())
            jobs = [
                (planes, *arrays, _tuple_of(values[k : k + TOGETHER]), places[k : k + TOGETHER])
                for k in range(0, len(values), TOGETHER)
            ]
            fine = all(map(all, on_threads("sums", _add, jobs)))
        else:
            for part, box, one in zip(parts, boxes, probabilities, strict=True):
                inside = part.within(box)
                self._values[part.within(self.box)] += (one[inside] * self._weights[inside]).to(torch.int32)
            fine = bool(torch.isfinite(torch.stack([one.sum() for one in probabilities])).all())
        if not fine:
            window = next(b for b, one in zip(boxes, probabilities, strict=True) if not one.isfinite().all())
            msg = f"the network gave nan in window {window}: check its weights, and the scan there"
            raise InputError(msg)

    def part(self, box: Box) -> Tensor:
        """The sums of a box that lies inside; int32, a view."""
        return self._values[box.within(self.box)]

    def clear(self, block: Box) -> None:
        """Forget the sums of all but a block at the start of the box, which was `finish`ed."""
        z, y, x = block.shape
        for rest in (self._values[z:], self._values[:z, y:], self._values[:z, :y, x:]):
            rest.zero_()

    def reset(self) -> None:
        """Forget all windows."""
        self._values.zero_()
        self.ran.clear()

    def finish(self, block: Box) -> Tensor:
        """A block that lies inside: uint8, round(255 * probability), 0 where no window was run."""
        out = zeros(block.shape, np.uint8, self._device)
        cells = [(self._grid.box(cell), self._weights_over(cell)) for cell in self._grid.indices(block)]
        parts = [(cell.clip(block), cell, weights) for cell, weights in cells]
        if self._device.type == "cpu":
            sums, result = self._values.numpy(), out.numpy()
            jobs = []
            for part, cell, weights in parts:
                places = part.shape, *map(part.from_start, (self.box, block, cell))
                plain = map(tuple, places)  # whose type Numba tells at once
                jobs.append((sums, result, weights.numpy(), *plain))
            on_threads("sums", _finish, jobs)
        else:
            for part, cell, weights in parts:
                ratio = self.part(part).to(torch.float32) / weights[part.within(cell)]
                out[part.within(block)] = ratio.mul_(255).add_(0.5).to(torch.uint8)
        return out

    def _weights_over(self, cell: Zyx) -> Tensor:
        """The sum of the weights in a cell of the stride's grid; infinite where no window was run."""
        window, stride = self.windows.window, self.windows.stride
        z, y, x = cell
        present = tuple(b for b in _back(window, stride) if (z - b[0], y - b[1], x - b[2]) in self.ran)
        return _sum_of_weights(window, stride, self._blend, str(self._device), present)


@lru_cache(maxsize=4)
def _back(window: Zyx, stride: Zyx) -> list[tuple[int, ...]]:
    """How many cells of the stride's grid before a cell the windows begin that reach into it."""
    return list(itertools.product(*(range(math.ceil(w / s)) for w, s in zip(window, stride, strict=True))))


@lru_cache(maxsize=4)
def _units(window: Zyx, stride: Zyx, blend: Blend, device: str) -> Tensor:
    """The weights of a window in units, even whole numbers: so half of one is whole too.

    A unit is the smallest power of two with which a voxel's weights add up to less than 2^31.
    """
    weights = window_weights(window, blend).astype(np.float64)
    most = _over_cell(weights, stride, _back(window, stride)).max()
    units = 2.0 ** math.floor(math.log2((MOST_UNITS - 2 * len(_back(window, stride))) / most))
    return torch.from_numpy((2 * np.rint(weights * (units / 2))).astype(np.float32)).to(device)


def _over_cell(weights: np.ndarray, stride: Zyx, present: Any) -> np.ndarray:  # noqa: ANN401
    """Sum weights over a cell, of windows that begin `present` cells before it."""
    total = np.zeros(stride, weights.dtype)
    for back in present:
        part = weights[tuple(slice(b * s, (b + 1) * s) for b, s in zip(back, stride, strict=True))]
        total[tuple(slice(0, n) for n in part.shape)] += part
    return total


@lru_cache(maxsize=PATTERNS)
def _sum_of_weights(
    window: Zyx, stride: Zyx, blend: Blend, device: str, present: tuple[tuple[int, ...], ...]
) -> Tensor:
    """Sum units over a cell, float32; infinite where there are none."""
    units = _units(window, stride, blend, "cpu").numpy().astype(np.int64)
    total = _over_cell(units, stride, present).astype(np.float32)
    total[total == 0] = np.inf
    return torch.from_numpy(total).to(device)


def _tuple_of(windows: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """`TOGETHER` of them, the last one again where there are fewer: one kind of tuple is compiled."""
    return (*windows, *windows[-1:] * (TOGETHER - len(windows)))


@intrinsic
def prefetch(context, array, place):
    """Ask memory for the line that holds an element, which is to be written; it may lie past the end."""

    def build(context, builder, signature, values):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        line = builder.bitcast(builder.gep(data, [values[1]]), byte)
        builder.call(ask, [line, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, place), build


@njit(nogil=True, cache=True)
def _ask(sums, z, y, x, width):
    """Ask for the sums of a row to come."""
    at = ((z * sums.shape[1]) + y + AHEAD) * sums.shape[2] + x
    for i in range(0, width, LINE):
        prefetch(sums, at + i)


@njit(nogil=True, cache=True)
def _add(n, count, planes, sums, weights, windows, places):
    """Add the n-th of `count` shares of some windows; whether they hold numbers alone.

    A share is planes of the sums, the same ones for all windows of a call, as no other thread may add there.
    Plane by plane, since neighbours share planes, which are then still in the processor's cache.
    """
    wrong, begin, depth = 0, planes[0], planes[1] - planes[0]
    for plane in range(begin + depth * n // count, begin + depth * (n + 1) // count):
        for k in range(len(places)):
            to, of, shape = places[k]
            z = plane - to[0]
            if z < 0 or z >= shape[0]:
                continue
            values = windows[k]
            for y in range(shape[1]):
                _ask(sums, plane, to[1] + y, to[2], shape[2])
                total = sums[plane, to[1] + y, to[2] : to[2] + shape[2]]
                value = values[of[0] + z, of[1] + y, of[2] : of[2] + shape[2]]
                weight = weights[of[0] + z, of[1] + y, of[2] : of[2] + shape[2]]
                for x in range(shape[2]):
                    wrong += not value[x] <= 1
                    total[x] += np.int32(value[x] * weight[x])
    return wrong == 0


@njit(nogil=True, cache=True, error_model="numpy")
def _finish(n, count, sums, out, weights, shape, at, to, of):
    """The n-th of `count` shares of a cell: out is 255 * sums / weights, rounded half up; sums are 0 then."""
    scale, half, (depth, height, width) = np.float32(255), np.float32(0.5), shape
    for z in range(depth * n // count, depth * (n + 1) // count):
        for y in range(height):
            _ask(sums, at[0] + z, at[1] + y, at[2], width)
            total = sums[at[0] + z, at[1] + y, at[2] : at[2] + width]
            weight = weights[of[0] + z, of[1] + y, of[2] : of[2] + width]
            result = out[to[0] + z, to[1] + y, to[2] : to[2] + width]
            for x in range(width):
                result[x] = np.uint8(np.float32(total[x]) / weight[x] * scale + half)
                total[x] = 0
    return True
