"""The same network with fewer operations, for inference; the sums are the same, in another order.

**The phase trick.** A decoder doubles a small map ``s`` and convolves it, joined to the skip map. Along one
axis, with a kernel (w0, w1, w2), an output voxel sees no more than two voxels of the small map::

    small          s0        s1        s2
    doubled      s0   s0   s1   s1   s2   s2
    output       o0   o1   o2   o3   o4   o5     even: o2 = w0 s0 + (w1+w2) s1
                     [w0   w1   w2]              odd:  o3 = (w0+w1) s1 + w2 s2
                          [w0   w1   w2]

In space that makes eight phases, each a 2x2x2 convolution of the small map whose result is every second
voxel of the output: 8 taps where there were 27. Past the border both see zeros. A flat network has four, and
along z neither a second tap nor a border.

**The join.** A convolution of joined channels is the sum of two, so the joined map is never stored either.
Its GroupNorm needs the mean and variance of every channel, and a doubled map has those of the small one;
the normalisation is applied to each part before its convolution, so that the zero padding stays zero.

**Fewer products.** On a CPU large maps are convolved by `inkzarr.nn.winograd`, not by oneDNN or in phases.

**Same bits.** How torch's CPU kernels order their sums depends on the number of threads and on the batch. So
there each window runs by itself in a worker of one thread, as many windows at a time as torch has threads,
which is no slower: the logits of a window are the same bits whatever its batch and the number of threads.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inkzarr.nn import winograd
from inkzarr.nn.convolution import padding_of
from inkzarr.nn.maps import LAST, halve, moments
from inkzarr.nn.unet import SingleConv, UNet3D, check_window

NO_PADDING = (0, 0, 0)


def convolve(x: Tensor, kernel: Tensor, padding: tuple[int, int, int]) -> Tensor:
    """Convolve by oneDNN on a CPU, where torch would choose the kernel by size and threads."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, kernel, None, padding, (1,) * 3, (1,) * 3, 1)
    return F.conv3d(x, kernel, padding=padding)


@dataclass(frozen=True)
class Norm:
    """A GroupNorm that takes its statistics from outside."""

    weight: Tensor  # (C,), float64
    bias: Tensor  # (C,), float64
    groups: int
    eps: float

    @classmethod
    def of(cls, layer: nn.GroupNorm, device: torch.device) -> Norm:
        """The same normalisation as the module's."""
        weight, bias = (p.detach().to(device, torch.float64) for p in (layer.weight, layer.bias))
        return cls(weight, bias, layer.num_groups, layer.eps)

    def affine(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Turn statistics of channels, (N, C), into the scale and shift of each, (N, C, 1, 1, 1)."""
        grouped = mean.unflatten(1, (self.groups, -1))
        centre = grouped.mean(2, keepdim=True)
        spread = variance.unflatten(1, (self.groups, -1)).mean(2, keepdim=True)
        spread = spread + (grouped - centre).square().mean(2, keepdim=True)
        scale = self.weight.unflatten(0, (self.groups, -1)) * torch.rsqrt(spread + self.eps)
        shift = self.bias.unflatten(0, (self.groups, -1)) - centre * scale
        return scale.flatten(1)[..., None, None, None], shift.flatten(1)[..., None, None, None]


def apply_(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` in place."""
    return x.mul_(scale.to(x.dtype)).add_(shift.to(x.dtype))


class Room:
    """Memory for a map: the next window's lies there too, as new pages cost time."""

    def __init__(self) -> None:
        self._held = np.empty(0, np.float32)

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        """Whatever lies there, in another shape."""
        count = math.prod(shape)
        if self._held.size < count:
            self._held = np.empty(0, np.float32)
            self._held = np.empty(count, np.float32)  # of huge pages, unlike torch's
        return self._held[:count].reshape(shape)


Rooms = list[tuple[Room, Room]]
Forward = Callable[[Tensor, Rooms], Tensor]


@dataclass(frozen=True)
class Conv:
    """GroupNorm, convolution, ReLU; may overwrite the map that it is given and leave its own in a room."""

    norm: Norm
    kernel: Tensor  # (outputs, inputs, 3, 3, 3), flat (outputs, inputs, 1, 3, 3)
    tiled: winograd.Tiled | None

    @classmethod
    def of(cls, layer: SingleConv, dtype: torch.dtype, device: torch.device) -> Conv:
        """The same layer as the module's."""
        kernel = layer.conv.weight.detach().to(device, dtype, memory_format=LAST, copy=True)
        return cls(Norm.of(layer.groupnorm, device), kernel, winograd.Tiled.of(kernel, doubles=False))

    def __call__(self, x: Tensor, room: Room) -> Tensor:
        """(N, inputs, Z, Y, X) -> (N, outputs, Z, Y, X)."""
        affine = self.norm.affine(*moments(x))
        if self.tiled and self.tiled.takes(x):
            return self.tiled.convolve((x, *affine), None, room((*x.shape[2:], len(self.kernel))))
        x = apply_(x, *affine)
        return convolve(x.to(self.kernel.dtype), self.kernel, padding_of(self.kernel.shape[2:])).relu_()


@dataclass(frozen=True)
class Join:
    """The first convolution of a decoder, as `Conv`; the small map is never doubled."""

    norm: Norm  # of the joined channels, the skip map's first
    skip_kernel: Tensor  # (outputs, skip, 3, 3, 3), flat (outputs, skip, 1, 3, 3)
    phases: dict[tuple[int, ...], Tensor]  # each (outputs, small, 2, 2, 2), flat (outputs, small, 1, 2, 2)
    tiled: winograd.Tiled | None  # of the joined channels

    @classmethod
    def of(cls, layer: SingleConv, dtype: torch.dtype, device: torch.device) -> Join:
        """The same layer as the module's, of whose channels the outputs' number come from the skip map."""
        tiled = winograd.Tiled.of(layer.conv.weight.detach().to(device, dtype, copy=True), doubles=True)
        whole = layer.conv.weight.detach().double()
        skip, small = whole.tensor_split([len(whole)], dim=1)
        phases = {}
        doubled = [axis for axis in (2, 3, 4) if small.shape[axis] > 1]
        for phase in itertools.product(*((0, 1) if axis in doubled else (0,) for axis in (2, 3, 4))):
            taps = small
            for axis in doubled:
                odd = phase[axis - 2]
                w0, w1, w2 = taps.split(1, axis)
                taps = torch.cat((w0 + w1, w2) if odd else (w0, w1 + w2), axis)
            phases[phase] = taps.to(device, dtype, memory_format=LAST)
        skip = skip.to(device, dtype, memory_format=LAST)
        return cls(Norm.of(layer.groupnorm, device), skip, phases, tiled)

    def __call__(self, skip: Tensor, small: Tensor, room: Room) -> Tensor:
        """(N, skip, Z, Y, X) and (N, small, Z/2, Y/2, X/2) -> (N, outputs, Z, Y, X)."""
        parts = zip(moments(skip), moments(small), strict=True)
        scale, shift = self.norm.affine(*(torch.cat(part, 1) for part in parts))
        cut = skip.shape[1]
        if self.tiled and self.tiled.takes(skip):
            large = skip, scale[:, :cut], shift[:, :cut]
            doubled = small, scale[:, cut:], shift[:, cut:]
            return self.tiled.convolve(large, doubled, room((*skip.shape[2:], len(self.skip_kernel))))
        padding = padding_of(self.skip_kernel.shape[2:])
        out = convolve(apply_(skip, scale[:, :cut], shift[:, :cut]), self.skip_kernel, padding)
        small = apply_(small, scale[:, cut:], shift[:, cut:])
        depth, height, width = (size + width for size, width in zip(small.shape[2:], padding, strict=True))
        small, step = F.pad(small, (1, 1, 1, 1, padding[0], padding[0])), 1 + padding[0]
        for (z, y, x), kernel in self.phases.items():
            seen = small[:, :, z : z + depth, y : y + height, x : x + width].contiguous(memory_format=LAST)
            out[:, :, z::step, y::2, x::2] += convolve(seen, kernel, NO_PADDING)
        return out.relu_()


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or this machine, has no more memory: torch tells a CPU's in words alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def single_threaded(workers: int) -> ThreadPoolExecutor:
    """Start a pool of `workers` in which torch computes with one thread each."""

    def alone() -> None:
        torch.get_num_threads()  # a new thread takes the process's number when it first asks
        torch.set_num_threads(1)
        started.wait()

    threads = torch.get_num_threads()
    started = threading.Barrier(workers)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="inkzarr-net")
    list(pool.map(lambda _: alone(), range(workers)))
    torch.set_num_threads(threads)  # what threads to come will take
    return pool


class Prepared:
    """A network's forward pass on a device; see `prepare`.

    Parameters
    ----------
    forward : callable
        From windows to logits, given two rooms for each level.
    device : torch.device
        On a CPU each window is run on a thread of its own.
    model : UNet3D
        Tells how many levels there are, and which windows fit.
    """

    def __init__(self, forward: Forward, device: torch.device, model: UNet3D) -> None:
        self._forward, self._levels, self._multiples = forward, model.levels, model.multiples
        self._pool = single_threaded(torch.get_num_threads()) if device.type == "cpu" else None
        self._spare: list[Rooms] = []

    def __call__(self, windows: Tensor) -> Tensor:
        """Logits of windows."""
        check_window(windows.shape[2:], self._multiples)
        if self._pool is None:
            return self._run(windows)
        return torch.cat(list(self._pool.map(self._run, windows.split(1))))

    def _run(self, windows: Tensor) -> Tensor:
        rooms = self._spare.pop() if self._spare else [(Room(), Room()) for _ in range(self._levels)]
        try:
            return self._forward(windows, rooms)
        finally:
            self._spare.append(rooms)

    def release(self) -> None:
        """Give back the memory that is kept for windows to come."""
        self._spare.clear()


def prepare(
    model: UNet3D, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Prepared:
    """Prepare the network's weights once, for many windows.

    Parameters
    ----------
    model : UNet3D
        Copied, and left as it is.
    dtype : torch.dtype
        Of the maps and the convolutions; statistics are float32 or better.
    device : str or torch.device
        Where to compute.

    Returns
    -------
    Prepared
        A callable, from normalised windows (N, in_channels, Z, Y, X), of any device, to their logits (N,
        out_channels, Z, Y, X), float32, on `device`. It raises InputError where a window does not fit the
        network, see `inkzarr.nn.unet.check_window`.

    Examples
    --------
    >>> logits = prepare(UNet3D(f_maps=4, levels=2))
    >>> logits(torch.zeros(2, 1, 8, 8, 8)).shape
    torch.Size([2, 1, 8, 8, 8])
    """
    device = torch.device(device)
    layers = [
        (block.basic_module.SingleConv1, block.basic_module.SingleConv2)
        for block in (*model.encoders, *model.decoders)
    ]
    encoders = [tuple(Conv.of(layer, dtype, device) for layer in pair) for pair in layers[: model.levels]]
    decoders = [
        (Join.of(first, dtype, device), Conv.of(second, dtype, device))
        for first, second in layers[model.levels :]
    ]
    weights: dict[str, Tensor] = model.state_dict()
    final = weights["final_conv.weight"].to(device, dtype, memory_format=LAST, copy=True)
    bias = weights["final_conv.bias"].to(device, torch.float32, copy=True)[:, None, None, None]

    @torch.inference_mode()
    def forward(windows: Tensor, rooms: Rooms) -> Tensor:
        x = windows.to(device, torch.float32, copy=True, memory_format=LAST)
        skips: list[Tensor] = []
        for (first, second), (one, other) in zip(encoders, rooms, strict=True):
            x = second(first(halve(x, flat=model.flat) if skips else x, one), other)
            skips.append(x)
        skips.pop()
        for join, second in decoders:
            one, other = rooms[len(skips) - 1]  # of which both maps were read when they are written over
            x = second(join(skips.pop(), x, one), other)
        logits: Tensor = convolve(x, final, NO_PADDING).float() + bias
        return logits

    return Prepared(forward, device, model)
