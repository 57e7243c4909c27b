"""What a training run is told: one TOML file, read by `train` and `pretrain` alike.

Tables of the file are the fields of `Config` that are sections; everything has a default::

    epochs = 20
    window = [16, 128, 128]

    [network]
    f_maps = 8
    levels = 4

    [augment]
    noise = 0.05

    [[scans]]                      # more scans, beside the one of the command line
    volume = "scroll2.zarr"
    labels = "labels2.zarr"
    patches = "train2.parquet"
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import AXES, Zyx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

Numbers = tuple[int, int, int]
Span = tuple[float, float]
UNKNOWN = "extra_forbidden"
TAKEN_FREELY = ("workers", "save_every", "tensorboard")
"""Keys that change no weight, so that a run may be resumed with others."""


class Section(BaseModel):
    """A frozen table of the file; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Network(Section):
    """The UNet3D that is trained.

    Parameters
    ----------
    f_maps : int
        Feature maps of the first level, doubled at each further one. Default 32, the published networks'.
    levels : int
        Default 5; 4 for windows 8 deep, 3 and few maps for a CPU.
    groups : int
        Of each GroupNorm. Default 4.
    flat : bool
        Kernels of 1x3x3, and z not halved. Default false; true learns soonest from a surface volume, whose
        planes lie along the sheet, in windows one voxel deep.
    """

    f_maps: int = Field(default=32, ge=1, le=4096)
    levels: int = Field(default=5, ge=2, le=12)
    groups: int = Field(default=4, ge=1)
    flat: bool = False


class Augment(Section):
    """Random changes of a training window; all but noise and intensity are one resampling.

    Parameters
    ----------
    flips : bool
        Along each axis, each with probability 1/2. Default true.
    turns : bool
        By 0, 90, 180 or 270 degrees in each plane in which the window is square. Default true.
    rotation : float
        About each of `rotation_axes` by up to so many degrees, either way. Default 30; 0 turns it off.
    rotation_axes : str or None
        Some of ``zyx``. Default: each axis across which the window is square (z alone for 16, 128, 128).
    scale : (float, float)
        Size of the crop that becomes the window, drawn evenly in its logarithm, along the axes that
        rotations mix (all axes where none do). Default 0.75 to 1.33; [1, 1] turns it off.
    intensity : (float, float)
        Factor of all voxels, drawn evenly. Default 0.4 to 2; [1, 1] turns it off.
    noise : float
        Standard deviation of Gaussian noise, drawn evenly from 0 to this, on voxels in [0, 1]. Default 0.02.
    """

    flips: bool = True
    turns: bool = True
    rotation: float = Field(default=30.0, ge=0, le=45)
    rotation_axes: str | None = None
    scale: Span = (0.75, 1.33)
    intensity: Span = (0.4, 2.0)
    noise: float = Field(default=0.02, ge=0)

    @field_validator("scale", "intensity")
    @classmethod
    def _rising(cls, span: Span) -> Span:
        if not 0 < span[0] <= span[1]:
            msg = f"{list(span)} is no span: give 0 < least <= most"
            raise ValueError(msg)
        return span

    @field_validator("rotation_axes")
    @classmethod
    def _axes(cls, axes: str | None) -> str | None:
        if axes is not None and (set(axes) - set(AXES) or len(set(axes)) != len(axes)):
            msg = f"{axes!r} are no axes: give some of {AXES}, once each"
            raise ValueError(msg)
        return axes

    @classmethod
    def off(cls) -> Self:
        """Windows as they are."""
        return cls(flips=False, turns=False, rotation=0, scale=(1, 1), intensity=(1, 1), noise=0)


class Loss(Section):
    """What is made small: binary cross-entropy on labelled voxels, and what is added to it.

    Parameters
    ----------
    dice : float
        Weight of soft Dice (one minus it, a window at a time). Default 0: none.
    smoothing : float
        Labels are drawn towards 1/2 by so much: ``label * (1 - s) + s / 2``. Default 0.
    ink_weight : float
        How many times a voxel of ink counts. Default 1; more where ink is rare.
    unlabelled : str
        ``ignore`` (default), or ``no ink``, which punishes a network for what nobody labelled: for the
        comparison in the docs alone.
    """

    dice: float = Field(default=0.0, ge=0)
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    ink_weight: float = Field(default=1.0, gt=0)
    unlabelled: Literal["ignore", "no ink"] = "ignore"


class Scan(Section):
    """One more scan to learn from.

    Parameters
    ----------
    volume : str
        Path or URL.
    labels, patches : str or None
        Its label group, and its table of windows; `pretrain` takes neither.
    """

    volume: str
    labels: str | None = None
    patches: str | None = None


class Config(Section):
    """A run.

    Parameters
    ----------
    window : int, (z, y, x) or None
        Of the crops, in voxels, each a multiple of 2^(levels-1) (of a flat network y and x). Default: the
        patch table's, else 128.
    jitter : int
        A crop lies up to so many voxels from its window along each axis, and inside the volume where the
        window does. Default 16. See `reach` for what ``split --jitter`` must be.
    min_labelled : int
        Labelled voxels that a crop needs, or its shift is drawn again. Default 1. In `pretrain` these are
        voxels that are not 0, and at least a tenth of the window.
    batch : int
        Windows in a step, on each process. Default 2.
    epochs : int
        Default 10.
    windows_per_epoch : int or None
        Default: each window of the tables once.
    valid_windows : int or None
        Of the validation table, evenly spaced; default all.
    valid_labels, valid_patches : str or None
        What is scored after each epoch, on the first scan. Default: no score; labels default to the
        scan's own.
    init : str or None
        A checkpoint to start from. Default: random weights.
    seed : int
        Of weights, order, crops and augmentation. Default 0.
    rate : float
        AdamW's largest step, after the warm-up. Default 1e-3.
    warmup : float
        Part of the run in which the rate grows from 0; it falls along a cosine after. Default 0.05.
    weight_decay : float
        Of convolution weights. Default 0.01.
    clip : float
        Largest norm of a step's gradient. Default 10, the original project's.
    ema : float
        How slowly the average of weights moves that is scored and saved; 0 is no average. Default 0.99.
    dtype : str
        ``float32`` (default), ``bfloat16`` or ``float16`` (with a loss scaler), by autocast.
    device : str
        ``auto`` (default), ``cpu`` or ``cuda``.
    max_minutes : float or None
        End cleanly after so long; the rate then falls by time where that is further than the steps, so
        that such a run is not repeated exactly. Default: no limit.
    workers : int or None
        Processes that read. Default: none on a CPU, where reading is cheap beside the network; up to 8
        on a GPU.
    cache_mb : int
        Decoded chunks that are held, by all workers together. Default 2048. It also says how far apart
        windows may be that follow each other, so another one gives another order.
    save_every : int or None
        Steps after which the state is saved inside an epoch. Default: at the end of epochs alone.
    tensorboard : bool
        Also log there, in OUT/tensorboard. Default false; needs ``inkzarr[tensorboard]``.
    network : Network or None
        Default: that of `init`, else as `Network`.
    augment : Augment
        See there.
    loss : Loss
        See there.
    scans : tuple of Scan
        More scans.

    Examples
    --------
    >>> Config(window=64, network={"f_maps": 8, "levels": 3}).network.f_maps
    8
    """

    window: Numbers | None = None
    jitter: int = Field(default=16, ge=0)
    min_labelled: int = Field(default=1, ge=1)
    batch: int = Field(default=2, ge=1)
    epochs: int = Field(default=10, ge=1)
    windows_per_epoch: int | None = Field(default=None, ge=1)
    valid_windows: int | None = Field(default=None, ge=1)
    valid_labels: str | None = None
    valid_patches: str | None = None
    init: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    rate: float = Field(default=1e-3, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=10.0, gt=0)
    ema: float = Field(default=0.99, ge=0, lt=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    max_minutes: float | None = Field(default=None, gt=0)
    workers: int | None = Field(default=None, ge=0)
    cache_mb: int = Field(default=2048, ge=1)
    save_every: int | None = Field(default=None, ge=1)
    tensorboard: bool = False
    network: Network | None = None
    augment: Augment = Augment()
    loss: Loss = Loss()
    scans: tuple[Scan, ...] = ()

    def __init__(self, **given: Any) -> None:  # noqa: ANN401
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise InputError(_told(error)) from None

    @field_validator("window", mode="before")
    @classmethod
    def _window(cls, given: object) -> object:
        return (given,) * len(AXES) if isinstance(given, int) else given

    @field_validator("window")
    @classmethod
    def _window_holds_voxels(cls, window: Numbers | None) -> Numbers | None:
        if window is not None and min(window) < 1:
            msg = f"{list(window)} holds no voxel: each size is at least 1"
            raise ValueError(msg)
        return window

    @model_validator(mode="after")
    def _valid_needs_patches(self) -> Self:
        if self.valid_labels is not None and self.valid_patches is None:
            msg = "valid_labels need valid_patches, the windows to score"
            raise ValueError(msg)
        return self

    def with_(self, **given: object) -> Config:
        """The same run but for some keys, checked again; None leaves a key as it is."""
        told = {name: value for name, value in given.items() if value is not None}
        return Config(**{**self.model_dump(exclude_unset=True), **told})

    def changed(self, saved: Mapping[str, Any]) -> list[str]:
        """Keys that differ from a saved ``model_dump(mode="json")``, of those that change a weight."""
        mine, theirs = (one.model_dump(mode="json") for one in (self, Config(**saved)))
        return [name for name in sorted(mine) if name not in TAKEN_FREELY and mine[name] != theirs[name]]

    def to_toml(self) -> str:
        """The file that gives this run again."""
        return "\n".join(_toml(self.model_dump(mode="json"))) + "\n"


def read_config(path: str | PathLike[str]) -> Config:
    """Read a run from TOML.

    Raises
    ------
    InputError
        No such file, not TOML, a key that does not exist (the nearest that does is named), or a value
        that breaks a rule.
    """
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also of numbers with too many digits
        msg = f"config {path} cannot be read ({error}): give a TOML file"
        raise InputError(msg) from error
    try:
        return Config(**given)
    except InputError as error:
        msg = f"config {path}: {error}"
        raise InputError(msg) from None


def default_window(found: Zyx | None) -> Numbers:
    """The window of a run that names none: a table's, else 128."""
    return (128, 128, 128) if found is None else (found.z, found.y, found.x)


def _told(error: ValidationError) -> str:
    """The first of pydantic's findings, unknown keys before others, in one line."""
    found = error.errors()
    first = next((one for one in found if one["type"] == UNKNOWN), found[0])
    place = [part for part in first["loc"] if isinstance(part, str)]
    name = ".".join(map(str, first["loc"])) or "config"
    if first["type"] != UNKNOWN:
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        value = "" if first["type"] == "value_error" else f" is {first['input']!r:.60}"
        return f"{name}{value}: {reason[:1].lower()}{reason[1:]}"
    known = [*_section(place[:-1]).model_fields]
    near = difflib.get_close_matches(place[-1], known, 1, 0.5) or [key for key in known if place[-1] in key]
    remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"key {name} does not exist: {remedy}"


def _section(place: list[str]) -> type[BaseModel]:
    """The model that a path of keys leads to."""
    model: type[BaseModel] = Config
    for name in place:
        inner = _models(model.model_fields[name].annotation)
        model = next(inner, model)
    return model


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _toml(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines of a table: plain values first, then its tables; None is left out."""
    for name, value in values.items():
        if value is not None and not isinstance(value, dict) and not _tables(value):
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ("", f"[{prefix}{name}]", *_toml(value, f"{prefix}{name}."))
        elif _tables(value):
            for one in value:
                yield from ("", f"[[{prefix}{name}]]", *_toml(one, f"{prefix}{name}."))


def _tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
