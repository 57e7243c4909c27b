"""The rolled sheet, known exactly: voxel to sheet and back, without a table or a search."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx

Floats = NDArray[np.float64]

HARMONICS = (2, 3, 7)
AMPLITUDES = (0.04, 0.015, 0.005)
WANDER = 0.015
AIR_AROUND = 4


@dataclass(frozen=True)
class Spiral:
    r"""A sheet wound around the z axis: an Archimedean spiral, squeezed and wandering.

    A slice, the axis marked ``+`` and the sheet's coordinates written along it::

              .--------.
            .'  .---.   '.        depth   voxels from the sheet, outwards; < 0 towards the axis
            |  /  .  \   |        column  voxels of arc length, 0 at the inner end
            |  | ( + |   |        row     the voxel's z
            '.  '---'   .'
              '--------'  outer end

    In the frame of the axis ``r = rho * (1 + e(phi, z))`` and ``rho = inner + pitch * theta / 2 pi``,
    where ``theta`` is ``phi`` plus whole turns. The squeeze ``e`` (a few percent) is the same for all
    windings at one angle, so that they never touch and both directions have a closed form.
    Depth and column are measured in ``rho``: off the true lengths by at most ``e`` and the slope of ``e``.

    Parameters
    ----------
    shape : Zyx
        The volume, in voxels.
    pitch : float
        From one winding to the next, in voxels.
    seed : int
        Of squeeze and wandering.

    Raises
    ------
    InputError
        The volume is too narrow for one winding.

    Examples
    --------
    >>> spiral = Spiral(Zyx(64, 256, 256), pitch=24.0, seed=0)
    >>> points, _ = spiral.points(np.array([[10.0]]), np.array([[500.0]]))
    >>> depth, column = spiral.sheet(*(points[..., axis] for axis in range(3)))
    >>> round(abs(depth.item()), 6), round(column.item(), 6)
    (0.0, 500.0)
    """

    shape: Zyx
    pitch: float
    seed: int

    def __post_init__(self) -> None:
        if self.turns < 1:
            outer = (self.inner + self.pitch) * (1 + sum(AMPLITUDES)) + self.pitch / 2 + AIR_AROUND
            least = math.ceil(2 * outer / (1 - WANDER)) + 1
            msg = (
                f"shape {tuple(self.shape)} is too narrow for one winding of pitch {self.pitch:g}: "
                f"use at least {least} voxels along y and x, or a smaller pitch"
            )
            raise InputError(msg)

    @property
    def inner(self) -> float:
        """Radius at the inner end, in voxels."""
        return 0.75 * self.pitch

    @property
    def outer(self) -> float:
        """Radius at the outer end, in voxels; squeezed and wandering it stays in the volume."""
        half = min(self.shape.y, self.shape.x) / 2
        return (half * (1 - WANDER) - self.pitch / 2 - AIR_AROUND) / (1 + sum(AMPLITUDES))

    @property
    def turns(self) -> float:
        """How many windings."""
        return (self.outer - self.inner) / self.pitch

    @property
    def length(self) -> int:
        """Arc length of the whole sheet, in voxels: how many columns it has."""
        return int(self.column_at(self.turns)) + 1

    def column_at(self, turn: float) -> float:
        """The column where winding number `turn`, counted from the inner end, is complete."""
        return float(self._arc(np.asarray(self.inner + self.pitch * turn)) - self._start)

    def sheet(self, z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats]:
        """Where voxels lie on the sheet.

        Parameters
        ----------
        z, y, x : numpy.ndarray of float64
            Places in voxels; shapes that broadcast.

        Returns
        -------
        depth, column : numpy.ndarray of float64
            In voxels, of the nearest winding; depth is within half a pitch but around the whole roll and
            in its core.
        """
        away_y, away_x = y - self._centre(z)[0], x - self._centre(z)[1]
        angle = np.arctan2(away_y, away_x)
        radius = np.hypot(away_y, away_x) / (1 + self._squeeze(angle, z))
        part = angle / (2 * np.pi)
        winding = np.rint((radius - self.inner) / self.pitch - part)
        winding = np.clip(winding, np.ceil(-part), np.floor(self.turns - part))
        on_sheet = self.inner + self.pitch * (winding + part)
        return radius - on_sheet, self._arc(on_sheet) - self._start

    def points(self, row: Floats, column: Floats) -> tuple[Floats, Floats]:
        """Where places of the sheet lie in the volume: the inverse of `sheet` at depth 0.

        Parameters
        ----------
        row, column : numpy.ndarray of float64
            In voxels; shapes that broadcast.

        Returns
        -------
        points, normals : numpy.ndarray of float64, (..., 3)
            z, y, x in voxels; unit vectors that point outwards, from the written side to the back.
        """
        row, column = np.broadcast_arrays(np.asarray(row, np.float64), np.asarray(column, np.float64))
        rho = self._radius(column + self._start)
        turned = (rho - self.inner) / self._b
        squeeze, (by_angle, by_z) = self._squeeze(turned, row), self._squeeze_slope(turned, row)
        (centre_y, centre_x), (slope_y, slope_x) = self._centre(row), self._centre_slope(row)
        sin, cos, radius = np.sin(turned), np.cos(turned), rho * (1 + squeeze)
        points = np.stack([row, centre_y + radius * sin, centre_x + radius * cos], axis=-1)
        growth = self._b * (1 + squeeze) + rho * by_angle
        along_y, along_x = growth * sin + radius * cos, growth * cos - radius * sin
        down_y, down_x = slope_y + rho * by_z * sin, slope_x + rho * by_z * cos
        normals = np.stack([along_x * down_y - along_y * down_x, -along_x, along_y], axis=-1)
        return points, normals / np.linalg.norm(normals, axis=-1, keepdims=True)

    @property
    def _b(self) -> float:
        return self.pitch / (2 * np.pi)

    @cached_property
    def _start(self) -> float:
        return float(self._arc(np.asarray(self.inner)))

    def _arc(self, rho: Floats) -> Floats:
        """Arc length of the unsqueezed spiral from its (virtual) origin to radius `rho`, in voxels."""
        steep = rho / self._b
        arc: Floats = 0.5 * (rho * np.sqrt(1 + steep * steep) + self._b * np.arcsinh(steep))
        return arc

    def _radius(self, arc: Floats) -> Floats:
        """Radius by arc length: the inverse of `_arc`, by Newton's method."""
        rho = np.sqrt(2 * self._b * np.maximum(arc, 0))
        for _ in range(6):
            rho = rho - (self._arc(rho) - arc) / np.sqrt(1 + (rho / self._b) ** 2)
        return rho

    @cached_property
    def _phases(self) -> Floats:
        return np.random.default_rng([self.seed, 1]).uniform(0, 2 * np.pi, (2, len(HARMONICS)))

    def _waves(self, angle: Floats, z: Floats) -> Iterator[tuple[int, float, float, Floats]]:
        """Harmonic, amplitude, radians a voxel of z, and the phase at each place."""
        pace = np.pi / (2 * self.outer)
        for harmonic, amplitude, phase in zip(HARMONICS, AMPLITUDES, self._phases[0], strict=True):
            drift = pace if harmonic % 2 else -pace
            yield harmonic, amplitude, drift, harmonic * angle + (drift * z + phase)

    def _squeeze(self, angle: Floats, z: Floats) -> Floats:
        """``e(phi, z)``."""
        total = np.zeros(np.broadcast_shapes(np.shape(angle), np.shape(z)))
        for _, amplitude, _, where in self._waves(angle, z):
            total += amplitude * np.cos(where)
        return total

    def _squeeze_slope(self, angle: Floats, z: Floats) -> tuple[Floats, Floats]:
        """The slopes of ``e`` by angle (per radian) and by z (per voxel)."""
        by_angle, by_z = (np.zeros(np.broadcast_shapes(np.shape(angle), np.shape(z))) for _ in range(2))
        for harmonic, amplitude, drift, where in self._waves(angle, z):
            slope = -amplitude * np.sin(where)
            by_angle += harmonic * slope
            by_z += drift * slope
        return by_angle, by_z

    @property
    def _wander(self) -> tuple[float, float]:
        """How far the axis wanders, in voxels, and how fast, in radians a voxel."""
        return WANDER * min(self.shape.y, self.shape.x) / 2, np.pi / (3 * self.outer)

    def _centre(self, z: Floats) -> tuple[Floats, Floats]:
        reach, pace = self._wander
        phase = self._phases[1]
        middle_y, middle_x = (self.shape.y - 1) / 2, (self.shape.x - 1) / 2
        return middle_y + reach * np.sin(pace * z + phase[0]), middle_x + reach * np.sin(pace * z + phase[1])

    def _centre_slope(self, z: Floats) -> tuple[Floats, Floats]:
        reach, pace = self._wander
        phase = self._phases[1]
        return reach * pace * np.cos(pace * z + phase[0]), reach * pace * np.cos(pace * z + phase[1])
