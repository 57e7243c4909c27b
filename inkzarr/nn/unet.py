"""The 3D UNet, in one file, with the parameter names and the outputs of pytorch-3dunet's ``UNet3D``.

Two levels of it, for a window of side S and f feature maps; shapes are (batch, channels, z, y, x)::

    (N, 1, S, S, S)                                            (N, 1, S, S, S) logits
          |                                                           ^ final_conv 1x1x1
    encoders[0] ---- skip (N, f, S, S, S) -------------- cat --> decoders[-1]
          | max-pool 2                                    ^ nearest, x 2
    encoders[1] ---- (N, 2f, S/2, S/2, S/2) --------------+

Every convolution is GroupNorm -> 3x3x3 convolution without bias, zero padded -> ReLU. A flat network has
1x3x3 kernels and halves y and x alone: no kernel sees two planes, for scans that are flattened already.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inkzarr.core.errors import InputError
from inkzarr.nn.convolution import FLAT_KERNEL, KERNEL, Conv3d


def halves(*, flat: bool) -> tuple[int, int, int]:
    """By what each level divides a map along z, y, x."""
    return (1, 2, 2) if flat else (2, 2, 2)


def check_window(shape: Sequence[int], multiples: Sequence[int]) -> None:
    """Refuse a window that cannot be halved at every level.

    Parameters
    ----------
    shape : sequence of int
        The window's size along each axis, in voxels.
    multiples : sequence of int
        See `UNet3D`.

    Raises
    ------
    InputError
        A size is not a positive multiple.
    """
    fits = len(shape) == len(multiples)
    if not fits or any(size < 1 or size % n for size, n in zip(shape, multiples, strict=True)):
        up = [max(1, -(-size // n)) * n for size, n in zip(shape, multiples, strict=False)]
        each = f"{multiples[0]}" if len(set(multiples)) == 1 else ",".join(map(str, multiples))
        msg = (
            f"window {','.join(map(str, shape))} does not fit the network: each of three sizes must be a "
            f"multiple of {each}, as it is halved at every level; try {','.join(map(str, up))}"
        )
        raise InputError(msg)


class SingleConv(nn.Sequential):
    """GroupNorm, convolution, ReLU: (N, `inputs`, Z, Y, X) -> (N, `outputs`, Z, Y, X).

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    groups : int
        Of the normalisation; one group where there are fewer channels than that.
    flat : bool
        Whether the kernel is 1x3x3 in place of 3x3x3.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, *, flat: bool) -> None:
        super().__init__()
        groups = groups if inputs >= groups else 1
        if inputs % groups:
            msg = (
                f"{inputs} channels do not divide into {groups} groups, as they must; change f_maps or groups"
            )
            raise InputError(msg)
        self.groupnorm = nn.GroupNorm(groups, inputs)
        self.conv = Conv3d(inputs, outputs, FLAT_KERNEL if flat else KERNEL)
        self.ReLU = nn.ReLU(inplace=True)


class DoubleConv(nn.Sequential):
    """Two convolutions, `inputs` -> `middle` -> `outputs` channels.

    Parameters
    ----------
    inputs, middle, outputs : int
        Channels.
    groups : int
        Of the normalisations.
    flat : bool
        Of the kernels.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, groups: int, *, flat: bool) -> None:
        super().__init__()
        self.SingleConv1 = SingleConv(inputs, middle, groups, flat=flat)
        self.SingleConv2 = SingleConv(middle, outputs, groups, flat=flat)


class Encoder(nn.Module):
    """Max-pooling (not in the first), then two convolutions.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    groups : int
        Of the normalisations.
    pool : bool
        Whether to halve the map first.
    flat : bool
        Of the kernels, and whether z is not halved.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, *, pool: bool, flat: bool) -> None:
        super().__init__()
        self.pooling = nn.MaxPool3d(halves(flat=flat)) if pool else None
        # half the channels first, but never fewer than come in
        self.basic_module = DoubleConv(inputs, max(inputs, outputs // 2), outputs, groups, flat=flat)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, Z, Y, X) -> (N, outputs, Z/2, Y/2, X/2), z whole if flat; all whole without pool."""
        if self.pooling is not None:
            x = self.pooling(x)
        out: Tensor = self.basic_module(x)
        return out


class Decoder(nn.Module):
    """Double the small map, put it behind the skip map's channels, two convolutions.

    Parameters
    ----------
    small, skip : int
        Channels of the map from below and of the encoder's; the result has `skip`.
    groups : int
        Of the normalisations.
    flat : bool
        Of the kernels, and whether z is not doubled.
    """

    def __init__(self, small: int, skip: int, groups: int, *, flat: bool) -> None:
        super().__init__()
        self.basic_module = DoubleConv(skip + small, skip, skip, groups, flat=flat)
        self.factors = halves(flat=flat)

    def forward(self, skip: Tensor, small: Tensor) -> Tensor:
        """(N, skip, Z, Y, X) and (N, small, Z/2, Y/2, X/2), z whole if flat -> (N, skip, Z, Y, X)."""
        large = F.interpolate(small, scale_factor=self.factors, mode="nearest")
        out: Tensor = self.basic_module(torch.cat((skip, large), dim=1))
        return out


class UNet3D(nn.Module):
    """The network; what it returns are logits, in training and in evaluation.

    Parameters
    ----------
    in_channels, out_channels : int
        Of the window, and of the logits.
    f_maps : int or sequence of int
        Feature maps of each level; a number means ``f_maps * 2**k`` at level k.
    levels : int
        How many, the full resolution included, at least 2; ignored where `f_maps` names each.
    groups : int
        Of every GroupNorm; one group where there are fewer channels than that.
    flat : bool
        Whether kernels are 1x3x3 and z is not halved: pytorch-3dunet's ``AbstractUNet`` with
        ``conv_kernel_size=(1, 3, 3)``, ``conv_padding=(0, 1, 1)`` and ``pool_kernel_size=(1, 2, 2)``.

    Attributes
    ----------
    f_maps : tuple of int
        Feature maps of each level.
    multiples : tuple of int
        What the sizes of a window along z, y, x must be multiples of: 2^(levels-1), of a flat network's z 1.

    Raises
    ------
    InputError
        Fewer than two levels, a size below 1, or channels that do not divide into the groups.

    Examples
    --------
    >>> net = UNet3D(f_maps=4, levels=2)
    >>> net(torch.zeros(1, 1, 8, 8, 8)).shape
    torch.Size([1, 1, 8, 8, 8])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        f_maps: int | Sequence[int] = 32,
        levels: int = 5,
        groups: int = 4,
        flat: bool = False,
    ) -> None:
        super().__init__()
        maps = tuple(f_maps * 2**k for k in range(levels)) if isinstance(f_maps, int) else tuple(f_maps)
        if len(maps) < 2 or min(*maps, in_channels, out_channels, groups) < 1:
            msg = (
                f"no UNet3D of in_channels {in_channels}, out_channels {out_channels}, f_maps {maps}, groups "
                f"{groups}: it takes two levels or more, and every number is at least 1"
            )
            raise InputError(msg)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.f_maps, self.levels, self.groups, self.flat = maps, len(maps), groups, flat
        self.multiples = tuple(half ** (self.levels - 1) for half in halves(flat=flat))
        self.encoders = nn.ModuleList(
            Encoder(inputs, outputs, groups, pool=level > 0, flat=flat)
            for level, (inputs, outputs) in enumerate(zip((in_channels, *maps), maps, strict=False))
        )
        self.decoders = nn.ModuleList(
            Decoder(maps[level + 1], maps[level], groups, flat=flat)
            for level in reversed(range(len(maps) - 1))
        )
        self.final_conv = nn.Conv3d(maps[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of windows.

        Parameters
        ----------
        x : Tensor
            (N, in_channels, Z, Y, X), float, normalised; each size a multiple of `multiples`.

        Returns
        -------
        Tensor
            (N, out_channels, Z, Y, X).

        Raises
        ------
        InputError
            A window of another size.
        """
        check_window(x.shape[2:], self.multiples)
        skips: list[Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)  # (N, f_k, Z/2^k, Y/2^k, X/2^k)
            skips.append(x)
        skips.pop()
        for decoder in self.decoders:
            x = decoder(skips.pop(), x)
        logits: Tensor = self.final_conv(x)
        return logits
