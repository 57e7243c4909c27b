"""A 3x3x3 convolution with 64 products where there were 216, on a CPU; the same sums in another order.

Winograd's F(2, 3): two outputs of a kernel (g0, g1, g2), which see the voxels d0 to d3, take four products in
place of six [1]_::

    voxels               d0       d1          d2       d3
    differences        d0-d2    d1+d2       d2-d1    d1-d3
    kernel               g0  (g0+g1+g2)/2 (g0-g1+g2)/2  g2
    products             m0       m1          m2       m3

    outputs            m0+m1+m2   and   m1-m2-m3

Along three axes that makes a tile of 2x2x2 outputs, which sees 4x4x4 voxels. Each of its 64 products is one
of matrices: the tiles of a row by the inputs, times the inputs by the outputs. In a doubled map d1 and d2 are
the same voxel of the small map: one difference in four is zero, so 27 products are left of 64.

.. [1] A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numba import njit

from inkzarr.nn.vectors import COLUMNS, ROWS, WIDE, combining, multiply

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Shape = tuple[int, ...]
TO_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
differ = combining(((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)))
join = combining(((1, 1, 1, 0), (0, 1, -1, -1)))
TILES = 3 * ROWS
"""In a row at a time: so many stay in a core's cache."""
NARROW = 32
"""Maps of fewer columns have too few tiles in a row."""


def takes(x: Tensor, kernel: Tensor) -> bool:
    """Whether this is for such a map and kernel: on a CPU, in float32, even and wide, of full vectors."""
    plain = x.device.type == "cpu" and kernel.dtype == torch.float32
    even = x.shape[4] >= NARROW and not any(size % 2 for size in x.shape[2:])
    return plain and even and not kernel.shape[0] % COLUMNS and not kernel.shape[1] % WIDE


def matrices(kernel: Tensor) -> np.ndarray:
    """Turn a kernel, (outputs, inputs, 3, 3, 3), into the matrices of its products, (64, inputs, outputs)."""
    taps = kernel.detach().double().numpy()
    found = np.einsum("az,by,cx,oizyx->abcio", TO_KERNEL, TO_KERNEL, TO_KERNEL, taps, optimize=True)
    return np.ascontiguousarray(found.reshape(64, *found.shape[3:]), np.float32)


def convolve(
    parts: list[tuple[Tensor, Tensor, Tensor]], products: np.ndarray, room: Callable[[Shape], np.ndarray]
) -> Tensor:
    """Normalise maps, pad them with zeros, convolve, and clip below 0.

    Parameters
    ----------
    parts : list of tuple of Tensor
        A map, its scale and its shift of each channel: (1, C, Z, Y, X) and (1, C, 1, 1, 1). A second map is
        half as large along each axis, and taken as if it were doubled; its channels come after the first's.
    products : numpy.ndarray
        What `matrices` made of the kernel.
    room : callable
        Gives a float32 array of a shape, in which the result lies.

    Returns
    -------
    Tensor
        (1, outputs, Z, Y, X), float32, its channels last.
    """
    size = parts[0][0].shape[2:]
    given = [_arrays(*part) for part in parts]
    if len(given) == 1:
        given.append((np.empty((0, 0, 0, 0), np.float32), *[np.empty(0, np.float32)] * 2))
    out = room((*size, products.shape[2]))
    _convolve(*given, products, out)
    return torch.from_numpy(out).permute(3, 0, 1, 2)[None]


def _arrays(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    voxels = x[0].permute(1, 2, 3, 0).contiguous().numpy()
    return voxels, scale.flatten().float().numpy(), shift.flatten().float().numpy()


@njit(nogil=True, cache=True)
def _convolve(large, small, kernel, out):
    """Compute a row of up to TILES tiles after the other; see `convolve`."""
    depth, height, width, outputs = out.shape
    parts, rows = (_part(large, False), _part(small, True)), _rows(outputs)
    for z in range(depth // 2):
        for x in range(0, width // 2, TILES):
            tiles = min(TILES, -(-(width // 2 - x) // ROWS) * ROWS)
            for y in range(-2, height // 2):  # the first two fill the rings
                for part in parts:
                    _enter(part, z, y, x)
                if y >= 0:
                    _compute(parts, kernel, y, tiles, rows)
                    _leave(rows[3], z, y, x, out)


@njit(nogil=True, cache=True)
def _compute(parts, kernel, y, tiles, rows):
    """A row of tiles: differences along y and x (those along z are there), products, sums along each axis."""
    along_x, along_y, along_z, found = rows
    inputs, outputs = parts[0][0][0].shape[3], kernel.shape[2]
    side, count = TILES * outputs, tiles * outputs
    for kz in range(4):
        for part in parts:
            _differ_along_y(part, kz, y)
        for ky in range(4):
            for part in parts:
                _differ_along_x(part, ky, tiles)
            for kx in range(4):
                matrix = kernel[(kz * 4 + ky) * 4 + kx]
                _product(parts[0][-1], kx, tiles, matrix[:inputs], along_x, kx * side, False)
                if kz != 2 and ky != 2 and kx != 2:  # else a doubled map's differences are zeros
                    _product(parts[1][-1], kx, tiles, matrix[inputs:], along_x, kx * side, True)
            join(along_x, _four(0, side), along_y, (ky * side, (4 + ky) * side), count)
        for k in range(2):
            to = (4 * k + kz) * side
            join(along_y, _four(4 * k * side, side), along_z, (to, to + 8 * side), count)
    for k in range(4):
        join(along_z, _four(4 * k * side, side), found, (k * side, (4 + k) * side), count)


@njit(nogil=True, cache=True)
def _rows(outputs):
    """Room for the four products along x, and for their sums along x, y and z."""
    side = TILES * outputs
    return _room(4 * side), _room(8 * side), _room(16 * side), _room(8 * side)


@njit(nogil=True, cache=True)
def _part(given, doubled):
    """A map with room for what is made of it: rows, then differences along z, y and x."""
    channels = given[0].shape[3]
    row = (TILES + 2) * channels if doubled else 2 * (TILES + 1) * channels
    return given, doubled, _room(4 * row), _room(16 * row), _room(4 * row), _room(4 * TILES * channels)


@njit(nogil=True, cache=True)
def _room(count):
    return np.zeros(count, np.float32)


@njit(nogil=True, cache=True)
def _four(start, step):
    return start, start + step, start + 2 * step, start + 3 * step


@njit(nogil=True, cache=True)
def _seen(tile, doubled):
    """Where the four voxels of a tile lie along one axis."""
    return (tile - 1, tile, tile, tile + 1) if doubled else _four(2 * tile - 1, 1)


@njit(nogil=True, cache=True)
def _enter(part, z, y, x):
    """Take the rows that a tile sees and the one before did not; keep their differences along z in a ring."""
    given, doubled, rows, ring, _, _ = part
    row = len(rows) // 4
    for at in range(_seen(y - 1, doubled)[3] + 1, _seen(y, doubled)[3] + 1):
        for k, plane in enumerate(_seen(z, doubled)):
            _take(given, plane, at, _seen(x, doubled)[0], 1 if doubled else 2, rows[k * row : (k + 1) * row])
        differ(rows, _four(0, row), ring, _four(at % 4 * row, 4 * row), row)


@njit(nogil=True, cache=True)
def _take(given, z, y, start, halves, row):
    """A row of voxels from `start` on, normalised; zeros where there are none.

    In two halves every second voxel goes to the second one.
    """
    maps, scale, shift = given
    depth, height, width, channels = maps.shape
    row[:] = 0
    if channels and 0 <= z < depth and 0 <= y < height:
        line = row.reshape(halves, -1, channels)
        for i in range(max(0, -start), min(len(row) // channels, width - start)):
            for c in range(channels):
                line[i % halves, i // halves, c] = maps[z, y, start + i, c] * scale[c] + shift[c]


@njit(nogil=True, cache=True)
def _differ_along_y(part, kz, y):
    _, doubled, _, ring, lines, _ = part
    row = len(lines) // 4
    a, b, c, d = _seen(y, doubled)
    first = 4 * kz
    at = (first + a % 4) * row, (first + b % 4) * row, (first + c % 4) * row, (first + d % 4) * row
    differ(ring, at, lines, _four(0, row), row)


@njit(nogil=True, cache=True)
def _differ_along_x(part, ky, tiles):
    given, doubled, _, _, lines, left = part
    row, channels, at = len(lines) // 4, given[0].shape[3], ky * (len(lines) // 4)
    if doubled:
        places = (at, at + channels, at + channels, at + 2 * channels)
    else:
        places = (at, at + row // 2, at + channels, at + row // 2 + channels)
    differ(lines, places, left, _four(0, TILES * channels), tiles * channels)


@njit(nogil=True, cache=True)
def _product(left, kx, tiles, matrix, out, to, more):
    """Tiles times channels, by channels times outputs."""
    channels, outputs = matrix.shape
    steps = channels, outputs, outputs
    for tile in range(0, tiles, ROWS):
        at, there = (kx * TILES + tile) * channels, to + tile * outputs
        for column in range(0, outputs, COLUMNS):
            multiply(left, matrix, out, (at, column, there + column), steps, channels, more)


@njit(nogil=True, cache=True)
def _leave(found, z, y, x, out):
    """Put the outputs of a row of tiles, clipped, in their places."""
    _, _, width, outputs = out.shape
    tiles = found.reshape(2, 2, 2, TILES, outputs)
    for dz in range(2):
        for dy in range(2):
            for i in range(min(2 * TILES, width - 2 * x)):
                for c in range(outputs):
                    voxel = tiles[dz, dy, i % 2, i // 2, c]
                    if voxel < 0:  # a nan is not
                        voxel = np.float32(0)
                    out[2 * z + dz, 2 * y + dy, 2 * x + i, c] = voxel
