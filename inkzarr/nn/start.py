"""The network that a run starts with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import AXES
from inkzarr.nn.checkpoint import Normalisation, load_checkpoint
from inkzarr.nn.config import Network
from inkzarr.nn.unet import UNet3D

if TYPE_CHECKING:
    from inkzarr.nn.config import Config

PRETRAINED = "pretrain"
"""The stage that a checkpoint's lineage names where its last layer answers another question."""


def starting_network(config: Config) -> tuple[UNet3D, Normalisation, str]:
    """Build the network of a run, or take that of `config.init`.

    Weights of a network that saw windows in another order of axes are turned, so that it sees z, y, x. The
    last layer of a pretrained one is drawn anew.

    Returns
    -------
    UNet3D, Normalisation, str
        On the CPU; how its input is scaled; and what it starts from, in words.

    Raises
    ------
    InputError
        The checkpoint cannot be read, or has another architecture than ``[network]`` asks for; or it is flat
        and saw other planes than those of y and x.
    """
    if config.init is None:
        asked = config.network or Network()
        return _seeded(config.seed, asked), Normalisation(), "random weights"
    found = load_checkpoint(config.init)
    model = found.model
    if (model.in_channels, model.out_channels) != (1, 1):
        msg = (
            f"checkpoint {config.init} takes {model.in_channels} channels and gives {model.out_channels}: "
            "one of each is needed, the scan and the logit of ink"
        )
        raise InputError(msg)
    if config.network is not None:
        _refuse_other(model, config)
    if found.axes != AXES:
        if model.flat and found.axes[0] != AXES[0]:
            msg = (
                f"checkpoint {config.init} sees flat planes across {found.axes[0]}, training across z: "
                "start from another, or from random weights"
            )
            raise InputError(msg)
        turn = [0, 1, *(2 + found.axes.index(axis) for axis in AXES)]
        turned = {
            k: v.permute(turn).contiguous() if v.ndim == len(turn) else v
            for k, v in model.state_dict().items()
        }
        model.load_state_dict(turned)
    what = f"the weights of {config.init}"
    if found.lineage.get("stage") == PRETRAINED:
        fresh = _seeded(
            config.seed, Network(f_maps=model.f_maps[0], levels=2, groups=model.groups)
        ).final_conv
        model.final_conv.load_state_dict(fresh.state_dict())
        what += ", its last layer drawn anew"
    return model, found.normalisation, what


def _seeded(seed: int, asked: Network) -> UNet3D:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _network(asked)


def _network(asked: Network) -> UNet3D:
    return UNet3D(f_maps=asked.f_maps, levels=asked.levels, groups=asked.groups, flat=asked.flat)


def _refuse_other(model: UNet3D, config: Config) -> None:
    asked = config.network or Network()
    with torch.device("meta"):
        wanted = _network(asked)
    mine, theirs = (
        f"{'flat, ' * net.flat}f_maps {list(net.f_maps)} in {net.groups} groups, "
        f"{net.in_channels} to {net.out_channels} channels"
        for net in (wanted, model)
    )
    if mine != theirs:
        msg = (
            f"checkpoint {config.init} is of another architecture, {theirs}, than [network], {mine}: "
            "change [network], or leave it out to take the checkpoint's"
        )
        raise InputError(msg)
