r"""Augmentation: what is random is drawn where windows are read, and done on the device in one resampling.

::

    volume   . . . . . . . .         window   +-----+     each voxel q of the window is taken from
             . . /\ . . . .                   |     |     crop voxel  turn @ q + offset
             . / crop \ . .    <------        |     |
             . . \/ . . . .                   +-----+     image trilinear, label nearest

The crop that is read is the box around the turned and scaled window, so that a window holds true voxels into
its corners; what lies outside the volume is 0 and unlabelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inkzarr.core.geometry import AXES, Box, Zyx
from inkzarr.core.schema import CERTAIN_INK, UNLABELLED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inkzarr.nn.config import Augment, Numbers

QUARTER = 4
EPSILON = 1e-6
"""In voxels: a crop is not one voxel larger for a rounding error."""


@dataclass(frozen=True)
class Draw:
    """What is done to one window.

    Parameters
    ----------
    turn : numpy.ndarray
        (3, 3): from a place in the window to one in the volume, both from the centre; z, y, x, in voxels.
    factor : float
        Of all voxels.
    sigma : float
        Standard deviation of the noise, for voxels in [0, 1].
    noise : int
        Seed of the noise.
    """

    turn: NDArray[np.float64]
    factor: float = 1.0
    sigma: float = 0.0
    noise: int = 0

    def crop(self, window: Box) -> tuple[Box, NDArray[np.float64]]:
        """The box to read for a window that lies at `window`, and the matrix that leads into it.

        Returns
        -------
        Box, numpy.ndarray
            Whole voxels, not clipped to any volume; (3, 4): crop place = matrix @ (window place, 1).
        """
        half = (np.array(window.shape) - 1) / 2
        centre = np.array(window.start) + half
        spread = np.abs(self.turn) @ half
        first = np.floor(centre - spread + EPSILON).astype(int)
        last = np.ceil(centre + spread - EPSILON).astype(int)
        offset = centre - first - self.turn @ half
        box = Box(Zyx(*map(int, first)), Zyx(*map(int, last + 1)))
        return box, np.column_stack([self.turn, offset])


def draw(rng: np.random.Generator, settings: Augment, window: Numbers) -> Draw:
    """Draw what is done to a window; the same numbers are taken from `rng` whatever the settings.

    Parameters
    ----------
    rng : numpy.random.Generator
        Seeded for this window.
    settings : Augment
        What is allowed.
    window : (z, y, x)
        In voxels.
    """
    signs = np.where(rng.random(len(AXES)) < 0.5, -1.0, 1.0)
    quarters = rng.integers(QUARTER, size=len(AXES))
    angles = rng.uniform(-1, 1, len(AXES)) * math.radians(settings.rotation)
    scale = math.exp(rng.uniform(*np.log(settings.scale).tolist()))
    factor, sigma = rng.uniform(*settings.intensity), rng.uniform(0, settings.noise)
    turn = np.diag(signs) if settings.flips else np.eye(len(AXES))
    for axis, letter in enumerate(AXES):
        if settings.turns and letter in square_axes(window):
            turn = _quarter(axis, int(quarters[axis])) @ turn
    for axis, letter in enumerate(AXES):
        if letter in rotation_axes(settings, window):
            turn = _rotation(axis, angles[axis]) @ turn
    grown = scaled_axes(settings, window)
    sizes = np.array([scale if letter in grown else 1.0 for letter in AXES])
    return Draw(sizes[:, None] * turn, float(factor), float(sigma), int(rng.integers(2**62)))


def apply(
    voxels: Tensor, labels: Tensor | None, drawn: Draw, matrix: Tensor, window: Numbers
) -> list[Tensor]:
    """Make a window, and its labels, out of a crop.

    Parameters
    ----------
    voxels : Tensor
        (z, y, x) of the crop, float32, scaled to [0, 1].
    labels : Tensor or None
        Same shape, any signed integer: 0 .. 255, -1 where unlabelled.
    drawn : Draw
        Factor and noise.
    matrix : Tensor
        (3, 4), of `Draw.crop`.
    window : (z, y, x)
        In voxels.

    Returns
    -------
    list of Tensor
        Voxels, and labels in [0, 1] or -1 where there are any: float32, of the window's shape.
    """
    label = None if labels is None else labels.float()
    if not _is_identity(matrix) or voxels.shape != window:
        grid = _grid(matrix, tuple(voxels.shape), window, voxels.device)
        voxels = _sample(voxels, grid, "bilinear")
        label = None if label is None else _sample(label - UNLABELLED, grid, "nearest") + UNLABELLED
    voxels = voxels * drawn.factor
    if drawn.sigma:
        generator = torch.Generator(voxels.device).manual_seed(drawn.noise)
        voxels = voxels + drawn.sigma * torch.randn(
            voxels.shape, generator=generator, device=voxels.device, dtype=voxels.dtype
        )
    return [voxels] if label is None else [voxels, as_labels(label)]


def as_labels(stored: Tensor) -> Tensor:
    """Labels as they are learned: 0 .. 255 to [0, 1], negative to -1; float32."""
    return torch.where(stored < 0, UNLABELLED, stored.float() / CERTAIN_INK)


def square_axes(window: Numbers) -> str:
    """The axes across which a window is square, which it can be turned about.

    Examples
    --------
    >>> square_axes((16, 128, 128)), square_axes((64, 64, 64)), square_axes((1, 2, 3))
    ('z', 'zyx', '')
    """
    return "".join(
        axis for k, axis in enumerate(AXES) if window[(k + 1) % len(AXES)] == window[(k + 2) % len(AXES)]
    )


def reach(augment: Augment, window: Numbers) -> Zyx:
    """How far beyond its window, along each axis, a crop's rotation and scale can make it look, at most.

    ``split --jitter`` must be at least ``jitter`` and this together for the training crops to stay
    `margin` away from validation.

    Examples
    --------
    >>> from inkzarr.nn.config import Augment
    >>> reach(Augment(), (16, 128, 128)), reach(Augment.off(), (64, 64, 64))
    (Zyx(z=0, y=53, x=53), Zyx(z=0, y=0, x=0))
    """
    axes = rotation_axes(augment, window)
    angle = math.radians(augment.rotation)
    widen = math.cos(angle) + math.sin(angle)
    grown = scaled_axes(augment, window)
    found = []
    for axis, size in zip(AXES, window, strict=True):
        mixed = len(set(axes) - {axis})
        turned = min(widen**mixed, math.sqrt(1 + mixed)) if mixed else 1.0
        scale = augment.scale[1] if axis in grown else 1.0
        widest = max(window) if mixed else size
        found.append(max(0, math.ceil((widest * turned * scale - size) / 2 - 1e-9)))
    return Zyx(*found)


def rotation_axes(augment: Augment, window: Numbers) -> str:
    """About which axes windows are rotated."""
    if not augment.rotation:
        return ""
    return square_axes(window) if augment.rotation_axes is None else augment.rotation_axes


def scaled_axes(augment: Augment, window: Numbers) -> str:
    """Along which axes windows are scaled: those that rotations mix, or all."""
    square = square_axes(window) if augment.rotation_axes is None else augment.rotation_axes
    mixed = "".join(axis for axis in AXES if set(square) - {axis})
    return mixed or AXES


def _sample(crop: Tensor, grid: Tensor, mode: str) -> Tensor:
    found: Tensor = F.grid_sample(crop[None, None], grid, mode, "zeros", align_corners=False)[0, 0]
    return found


def _grid(matrix: Tensor, crop: tuple[int, ...], window: Numbers, device: torch.device) -> Tensor:
    """Where each voxel of the window lies in the crop, as `grid_sample` counts: x, y, z, edges at -1 and 1.

    A place p among n voxels is (2 p + 1) / n - 1 there.
    """
    inner, outer = (torch.tensor(shape, dtype=torch.float64) for shape in (crop, window))
    turn, offset = matrix[:, :3].double(), matrix[:, 3].double()
    linear = turn * outer / inner[:, None]
    constant = (turn @ (outer - 1) + 2 * offset + 1) / inner - 1
    theta = torch.column_stack([linear.flip(0, 1), constant.flip(0)])
    return F.affine_grid(theta[None].float().to(device), [1, 1, *window], align_corners=False)


def _is_identity(matrix: Tensor) -> bool:
    return torch.equal(matrix, torch.eye(3, 4, dtype=matrix.dtype))


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    """Rotate the two axes after `axis`, in cyclic order."""
    first, second = (axis + 1) % len(AXES), (axis + 2) % len(AXES)
    found = np.eye(len(AXES))
    found[first, first] = found[second, second] = math.cos(angle)
    found[first, second], found[second, first] = -math.sin(angle), math.sin(angle)
    return found


def _quarter(axis: int, count: int) -> NDArray[np.float64]:
    return np.round(_rotation(axis, count * math.pi / 2))
