"""Checkpoints: one ``.pt`` file that holds all it takes to run a network on a scan.

``{"format": "inkzarr-checkpoint", "version": 1, "state_dict", "architecture", "normalisation", "axes",
"lineage"}``; state dicts of pytorch-3dunet load as they are, or nested and prefixed as people save them.
Nothing in a file is ever executed: it is read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import pickle
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from inkzarr.core.card import card
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import AXES, check_axes
from inkzarr.nn.unet import UNet3D

FORMAT = "inkzarr-checkpoint"
VERSION = 1
NESTS = ("model_state_dict", "state_dict", "model")
PREFIXES = ("module.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class Normalisation:
    """How voxels are scaled before the network sees them: ``(voxel - low) / (high - low)``.

    Parameters
    ----------
    low, high : float or None
        In the volume's own units, both or neither. None: the whole range of an integer dtype, and floats
        as they are.

    Raises
    ------
    InputError
        One without the other, not finite, or not low < high.

    Examples
    --------
    >>> Normalisation().bounds(np.dtype("uint8"))
    (0.0, 255.0)
    >>> Normalisation(10, 20).scale(torch.tensor([10, 15], dtype=torch.uint8), np.dtype("uint8"))
    tensor([0.0000, 0.5000])
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            return
        if self.low is None or self.high is None or not -math.inf < self.low < self.high < math.inf:
            msg = f"cannot normalise from {self.low} to {self.high}: give finite low < high, or neither"
            raise InputError(msg)
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))

    def bounds(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        """The voxel values, of a volume of `dtype`, that become 0 and 1.

        Raises
        ------
        InputError
            The dtype is neither an integer nor a float.
        """
        if self.low is not None and self.high is not None:
            return self.low, self.high
        if dtype.kind == "f":
            return 0.0, 1.0
        if dtype.kind not in "iu":
            msg = f"voxels of dtype {dtype} cannot be scaled: convert them to integers or floats"
            raise InputError(msg)
        limits = np.iinfo(dtype)
        return float(limits.min), float(limits.max)

    def scale(self, voxels: Tensor, dtype: np.dtype[Any]) -> Tensor:
        """Scale voxels, on whatever device they are.

        Parameters
        ----------
        voxels : Tensor
            Any shape, raw.
        dtype : numpy.dtype
            Of the volume that they come from.

        Returns
        -------
        Tensor
            float32, same shape.
        """
        low, high = self.bounds(dtype)
        exact = dtype.itemsize <= 2 or dtype.kind == "f"  # in float32
        return voxels.to(torch.float32 if exact else torch.float64).sub(low).div(high - low).float()


@dataclass(frozen=True)
class Checkpoint:
    """A network ready to run, and what its file says of it.

    Parameters
    ----------
    model : UNet3D
        float32, on the CPU, in evaluation mode.
    normalisation : Normalisation
        Of its input.
    axes : str
        The order of axes of the windows that it was trained on, a permutation of ``zyx``.
    lineage : dict of str to str
        Where it comes from.
    sha256 : str
        Of the file, hexadecimal.
    """

    model: UNet3D
    normalisation: Normalisation = field(default_factory=Normalisation)
    axes: str = AXES
    lineage: dict[str, str] = field(default_factory=dict)
    sha256: str = ""

    def _repr_html_(self) -> str:
        """For Jupyter: the network's size and input, and the lineage; all text is escaped."""
        weights = sum(weight.numel() for weight in self.model.parameters())
        low, high = self.normalisation.low, self.normalisation.high
        scaled = "the dtype's whole range" if low is None else f"{low:g} to {high:g}"
        facts: dict[str, object] = {
            "maps": ", ".join(map(str, self.model.f_maps)),
            "groups": self.model.groups,
            "kernels": "flat, 1x3x3" if self.model.flat else "3x3x3",
            "input": f"{scaled}, scaled to 0 to 1; axes {self.axes}",
            "sha256": self.sha256 or "not from a file",
        }
        return card(f"UNet3D, {weights:,} weights", facts | self.lineage)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: UNet3D,
    *,
    normalisation: Normalisation | None = None,
    axes: str = AXES,
    lineage: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all; the same content gives the same bytes.

    Parameters
    ----------
    path : path
        Of the file; one of that name is replaced.
    model : UNet3D
        Left as it is.
    normalisation : Normalisation, optional
        Of its input; by default the dtype's whole range.
    axes : str
        Order of axes of the windows that it was trained on.
    lineage : mapping of str to str, optional
        Where it comes from.

    Raises
    ------
    InputError
        Weights that are not finite, or `axes` no permutation of zyx.
    """
    check_axes(axes)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    _check_finite(weights, "this model")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "state_dict": weights,
        "architecture": {
            "name": "UNet3D",
            "in_channels": model.in_channels,
            "out_channels": model.out_channels,
            "f_maps": list(model.f_maps),
            "groups": model.groups,
            "flat": model.flat,
        },
        "normalisation": asdict(normalisation or Normalisation()),
        "axes": axes,
        "lineage": {str(key): str(value) for key, value in sorted((lineage or {}).items())},
    }
    buffer = io.BytesIO()  # given a path, torch would put its name into the bytes
    torch.save(content, buffer)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("xb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        msg = f"checkpoint {str(path)!r} cannot be written: {error.strerror}; check its folder"
        raise InputError(msg) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str], *, groups: int = 4, axes: str | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or a state dict of pytorch-3dunet's ``UNet3D``.

    Parameters
    ----------
    path : path
        Of a ``.pt`` file.
    groups : int
        Of the normalisations; for state dicts only, whose shapes do not tell.
    axes : str, optional
        Order of axes of the windows that the network was trained on; by default what the file says, or
        ``zyx`` (``yxz`` for the published checkpoints of ryanchesler/3d-ink-detection).

    Returns
    -------
    Checkpoint
        Its weights as float32.

    Raises
    ------
    InputError
        A file that is missing, cut short, no checkpoint, or would run code; weights that are not finite or
        not of a UNet3D; `axes` no permutation of zyx.
    """
    name = f"checkpoint {os.fspath(path)!r}"
    content, sha256 = _read(Path(path), name)
    ours = content.get("format") == FORMAT
    about = _about(content, name) if ours else {}
    axes = axes or about.get("axes", AXES)
    check_axes(axes)
    weights = _weights(content, name)
    groups = about.get("architecture", {}).get("groups", groups)
    model = _build(weights, groups, name)
    for what, found in {"f_maps": list(model.f_maps), "flat": model.flat}.items():
        told = about.get("architecture", {}).get(what, found)
        if told != found:
            msg = f"{name} says {what} {told} but has {found}: it is damaged, get it again"
            raise InputError(msg)
    normalisation = Normalisation(**about.get("normalisation", {}))
    return Checkpoint(model, normalisation, axes, about.get("lineage", {}), sha256)


def _read(path: Path, name: str) -> tuple[dict[Any, Any], str]:
    """The file's content, a dict, and its SHA-256; nothing in it is executed."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            content = _unpickle(file, name)
    except OSError as error:
        msg = f"{name} cannot be read: {error.strerror or error}; check the path"
        raise InputError(msg) from error
    if not isinstance(content, dict):
        msg = (
            f"{name} holds a {type(content).__name__}: it must be a dict of weights; save model.state_dict()"
        )
        raise InputError(msg)
    return content, sha256


def _unpickle(file: BinaryIO, name: str) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        msg = f"{name} {_why(error)}"
        raise InputError(msg) from error


def _why(error: Exception) -> str:
    """What a failure to read means, and what to do."""
    text = str(error)
    if "multiarray" in text or "numpy" in text:
        return (
            "holds numpy values, which are not read because they could run code: where you trust it, load it "
            "with weights_only=False, keep its state_dict alone and torch.save that"
        )
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in text:
        what = text.partition("GLOBAL ")[2].split(" ")[0].strip("`.,")
        return (
            f"holds more than weights ({what}), which is not read because it could run code: where you trust "
            "it, load it with weights_only=False and torch.save its state_dict()"
        )
    if "TorchScript" in text:
        return "is a TorchScript archive: a checkpoint holds weights alone; torch.save its state_dict()"
    return "is damaged, cut short or no checkpoint: get it again, or torch.save a state_dict()"


def _about(content: dict[Any, Any], name: str) -> dict[str, Any]:
    """What a file of ours says of its network, checked."""
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        msg = f"{name} has version {version}, this inkzarr reads up to {VERSION}: update inkzarr"
        raise InputError(msg)
    architecture, normalisation = content.get("architecture"), content.get("normalisation")
    axes, lineage = content.get("axes"), content.get("lineage")
    good = (
        isinstance(version, int)
        and isinstance(architecture, dict)
        and isinstance(architecture.get("groups"), int)
        and architecture.get("name") == "UNet3D"
        and isinstance(normalisation, dict)
        and set(normalisation) == {"low", "high"}
        and all(value is None or isinstance(value, float) for value in normalisation.values())
        and isinstance(axes, str)
        and isinstance(lineage, dict)
        and all(isinstance(text, str) for text in itertools.chain.from_iterable(lineage.items()))
    )
    if not good:
        msg = f"{name} lacks or garbles a field of an {FORMAT}: it is damaged, get it again"
        raise InputError(msg)
    return {"architecture": architecture, "normalisation": normalisation, "axes": axes, "lineage": lineage}


def _weights(content: dict[Any, Any], name: str) -> dict[str, Tensor]:
    """The state dict, out of its nests and prefixes, as float32."""
    for _ in NESTS:
        nest = next((key for key in NESTS if isinstance(content.get(key), dict)), None)
        content = content if nest is None else content[nest]
    weights: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(value, Tensor):
            continue  # an epoch, a loss: nothing of the network
        short = str(key)
        while prefix := next((p for p in PREFIXES if short.startswith(p)), None):
            short = short.removeprefix(prefix)
        dense = value.layout is torch.strided and value.is_floating_point() and value.device.type == "cpu"
        if short in weights or not dense or value.numel() * value.itemsize > value.untyped_storage().nbytes():
            msg = f"{name}: weight {short} is given twice or is no plain floating-point tensor; save it anew"
            raise InputError(msg)
        weights[short] = value.float().contiguous()
    _check_finite(weights, name)
    return weights


def _build(weights: dict[str, Tensor], groups: int, name: str) -> UNet3D:
    """The network that the shapes of `weights` tell of, holding them."""

    def channels(key: str, axis: int) -> int | None:
        return weights[key].shape[axis] if key in weights and weights[key].ndim == 5 else None

    block = "encoders.{}.basic_module.SingleConv{}.conv.weight"
    levels = (channels(block.format(level, 2), 0) for level in itertools.count())
    maps = [width for width in itertools.takewhile(lambda width: width is not None, levels) if width]
    inputs, outputs = channels(block.format(0, 1), 1), channels("final_conv.weight", 0)
    try:
        with torch.device("meta"):  # takes no memory before the shapes are checked
            if inputs is None or outputs is None or len(maps) < 2:
                model = UNet3D(groups=groups)  # the published one, to tell what is missing
            else:
                flat = weights[block.format(0, 1)].shape[2] == 1
                model = UNet3D(inputs, outputs, f_maps=maps, groups=groups, flat=flat)
    except InputError as error:
        msg = f"{name} cannot be built: {error}"
        raise InputError(msg) from error
    expected = {key: value.shape for key, value in model.state_dict().items()}
    wrong = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "wrong-shaped": [
            f"{key} {tuple(weights[key].shape)} for {tuple(shape)}"
            for key, shape in expected.items()
            if key in weights and weights[key].shape != shape
        ],
    }
    if any(wrong.values()):
        told = "; ".join(f"{_shortened(names)} {kind}" for kind, names in wrong.items() if names)
        msg = f"{name} is not of a UNet3D of pytorch-3dunet (order gcr, nearest upsampling): {told}"
        raise InputError(msg)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _shortened(names: list[str], most: int = 3) -> str:
    """How many names, and the first few."""
    return f"{len(names)} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"


def _check_finite(weights: Mapping[str, Tensor], name: str) -> None:
    bad = sorted(key for key, value in weights.items() if not torch.isfinite(value).all())
    if bad:
        msg = f"{name} has weights that are not finite: {_shortened(bad)}; take one saved before it diverged"
        raise InputError(msg)
