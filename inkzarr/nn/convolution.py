"""A convolution that is also fast where few windows are learned from at a time on a CPU.

torch takes a kernel of its own, which unrolls the map, in place of oneDNN's where one window has few
channels: up to `FEW` of them times planes times rows. For eight channels in 12 x 128 x 128 voxels that
costs 20 times as much forward, and 9 times backward. Here oneDNN is asked for directly: by its operator, of
which the gradient of the input is one more call, and for the gradient of the weights by a map that is turned
until torch does not call it few, or is oneDNN's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

FEW = 20480
"""Windows times channels times planes times rows, up to which torch leaves oneDNN for one window."""
ONE = [1, 1, 1]
KERNEL, FLAT_KERNEL = (3, 3, 3), (1, 3, 3)
LAST_Z, BACK = (0, 1, 3, 4, 2), (0, 1, 4, 2, 3)
"""Windows are often flatter than wide: with z as the last axis there are more rows, and few maps are left."""
LAST = torch.channels_last_3d


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` of stride 1, no bias, and zeros around; the sums are the same, in another order.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    kernel : tuple of int
        Odd sizes along z, y, x.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = KERNEL) -> None:
        super().__init__(inputs, outputs, kernel, padding=padding_of(kernel), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, Z, Y, X) -> (N, outputs, Z, Y, X)."""
        if _leaves_onednn(x):
            found: Tensor = _Convolution.apply(x, self.weight)
            return found
        return super().forward(x)


def padding_of(kernel: Sequence[int]) -> tuple[int, int, int]:
    """Zeros on each side, with which a kernel of odd sizes leaves a map as large as it was."""
    z, y, x = (size // 2 for size in kernel)
    return z, y, x


class _Convolution(torch.autograd.Function):
    """By oneDNN, whatever the size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        return torch.mkldnn_convolution(x, weight, None, padding_of(weight.shape[2:]), ONE, ONE, 1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor]:  # noqa: ANN401
        (slope,), (x, weight), given = slopes, ctx.saved_tensors, None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3, 4).transpose(0, 1).contiguous(memory_format=LAST)
            padding = padding_of(turned.shape[2:])
            given = torch.mkldnn_convolution(slope, turned, None, padding, ONE, ONE, 1)
        maps = [t.permute(LAST_Z).contiguous(memory_format=LAST) for t in (slope, x)]
        if _few(maps[1]):
            maps = [t.to_mkldnn() for t in maps]
        kernel = weight.permute(LAST_Z).contiguous(memory_format=LAST)
        of_weights = (None, ONE, padding_of(kernel.shape[2:]), ONE, False, [0, 0, 0], 1, [False, True, False])
        _, found, _ = torch.ops.aten.convolution_backward(*maps, kernel, *of_weights)
        return given, found.permute(BACK)


def _few(x: Tensor) -> bool:
    """Whether torch would take its own kernel for a map."""
    return len(x) == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= FEW


def _leaves_onednn(x: Tensor) -> bool:
    """Whether it would while it learns, though oneDNN has one; else `nn.fast` is faster still."""
    plain = (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
    return _few(x) and plain and torch.backends.mkldnn.is_available()
