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

What LLVM does not find in loops, it is told: sums of rows eight elements at a time, and products of matrices
whose sums stay in registers. All is in this one file, as Numba's cache does not see a change in another one.

.. [1] A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

if TYPE_CHECKING:
    from torch import Tensor

WIDE = 8
"""Elements of one vector; a machine whose vectors are shorter takes several for it."""
ROWS, COLUMNS = 6, 2 * WIDE
"""Of a product whose sums stay in registers: 12 of the 16 that AVX2 has."""
TILES = 3 * ROWS
"""Of a row, computed at once: what they take stays in a core's cache."""
FEW = 16
"""Outputs of a layer up to which oneDNN is no slower, unless it doubles a map."""
NARROW = 32
"""Columns of a map below which oneDNN is no slower: rows hold too few tiles."""
VECTOR = ir.VectorType(ir.FloatType(), WIDE)
TO_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
NOTHING = np.empty((0, 0, 0, 0), np.float32), np.empty(0, np.float32), np.empty(0, np.float32)
Part = tuple["Tensor", "Tensor", "Tensor"]


@dataclass(frozen=True)
class Tiled:
    """A layer's kernel, as products of tiles.

    Parameters
    ----------
    kernel : Tensor
        (outputs, inputs, 3, 3, 3), float32, on a CPU.
    """

    kernel: Tensor

    @classmethod
    def of(cls, kernel: Tensor, *, doubles: bool) -> Tiled | None:
        """The same kernel; None where it is for another device or precision, or torch is as fast with it.

        Parameters
        ----------
        kernel : Tensor
            (outputs, inputs, 3, 3, 3), or of another size, which it takes none of.
        doubles : bool
            Whether the last of the inputs are those of a doubled map.
        """
        outputs, inputs = kernel.shape[:2]
        cube = kernel.shape[2:] == (3, 3, 3)
        fits = cube and kernel.device.type == "cpu" and kernel.dtype == torch.float32
        filled = outputs % COLUMNS == 0 and inputs % WIDE == 0
        return cls(kernel) if fits and filled and (doubles or outputs > FEW) else None

    @cached_property
    def matrices(self) -> np.ndarray:
        """Of the products, (64, inputs, outputs), float32; made when they are first needed."""
        taps = self.kernel.double().numpy()
        found = np.einsum("az,by,cx,oizyx->abcio", TO_KERNEL, TO_KERNEL, TO_KERNEL, taps, optimize=True)
        return np.ascontiguousarray(found.reshape(64, *found.shape[3:]), np.float32)

    def takes(self, x: Tensor) -> bool:
        """Whether a map, (N, C, Z, Y, X), is one, even, and wide enough to be worth it."""
        return len(x) == 1 and x.shape[4] >= NARROW and not any(size % 2 for size in x.shape[2:])

    def convolve(self, large: Part, small: Part | None, out: np.ndarray) -> Tensor:
        """Normalise maps, pad them with zeros, convolve, and clip below 0.

        Parameters
        ----------
        large : tuple of Tensor
            A map that it takes, its scale and its shift of each channel: (1, C, Z, Y, X) and (1, C, 1, 1, 1).
        small : tuple of Tensor or None
            A map half as large along each axis, that is taken as if it were doubled; its channels are the
            kernel's last.
        out : numpy.ndarray
            (Z, Y, X, outputs), float32: where the result is written.

        Returns
        -------
        Tensor
            (1, outputs, Z, Y, X), its channels last: a view of `out`.

        Raises
        ------
        ValueError
            The maps, the kernel and `out` do not fit each other.
        """
        given, doubled = _arrays(large), _arrays(small) if small else NOTHING
        sizes = [tuple(part[0].shape[:3]) for part in (given, doubled)]
        channels = [part[0].shape[3] for part in (given, doubled)]
        half = tuple(size // 2 for size in sizes[0])
        wanted = (*sizes[0], self.matrices.shape[2])
        if any(n % WIDE for n in channels) or sum(channels) != self.matrices.shape[1] or out.shape != wanted:
            msg = f"{channels} channels into {out.shape} do not fit {self.matrices.shape[1:]} of {wanted}"
            raise ValueError(msg)
        if small and sizes[1] != half:
            msg = f"a map of {sizes[1]} cannot be doubled to {sizes[0]}"
            raise ValueError(msg)
        _convolve(given, doubled, self.matrices, out)
        return torch.from_numpy(out).permute(3, 0, 1, 2)[None]


def _arrays(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, scale, shift = part
    voxels = x[0].permute(1, 2, 3, 0).contiguous().numpy()
    return voxels, scale.flatten().float().numpy(), shift.flatten().float().numpy()


def combining(matrix):
    """Make the compiled function that combines rows: ``combine(given, at, out, to, count)``.

    Row r of `count` elements, a multiple of eight, is written to ``out[to[r]:]``. It is the sum of the rows
    ``given[at[c]:]`` times ``matrix[r][c]``, which is 1, 0 or -1, and 1 at least once. Arrays are float32 and
    contiguous; places in them are counted in elements, whatever their shape, and not checked.
    """

    @intrinsic
    def combine(context, given, at, out, to, count):
        def build(context, builder, signature, values):
            source, target = (_data(context, builder, signature.args[n], values[n]) for n in (0, 2))
            sources, targets = (cgutils.unpack_tuple(builder, values[n]) for n in (1, 3))
            count = values[4]
            steps = cgutils.for_range_slice(builder, count.type(0), count, count.type(WIDE))
            with steps as (i, _):
                seen = [_load(builder, source, builder.add(place, i)) for place in sources]
                for factors, place in zip(matrix, targets, strict=True):
                    terms = sorted(zip(factors, seen, strict=True), key=lambda term: -term[0])
                    total = terms[0][1]
                    for factor, term in terms[1:]:
                        if factor:
                            total = (builder.fadd if factor > 0 else builder.fsub)(total, term)
                    _store(builder, total, target, builder.add(place, i))
            return context.get_dummy_value()

        return types.void(given, at, out, to, count), build

    return combine


differ = combining(((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)))
join = combining(((1, 1, 1, 0), (0, 1, -1, -1)))


@intrinsic
def multiply(context, left, right, out, places, steps, depth, more):
    """Multiply (ROWS, depth) by (depth, COLUMNS) into `out`, or add to it where there is more.

    `places` and `steps` are those of left, right and out: where each begins, and from one row to the next.
    """

    def build(context, builder, signature, values):
        left, right, out = (_data(context, builder, signature.args[n], values[n]) for n in range(3))
        starts, steps = (cgutils.unpack_tuple(builder, values[n]) for n in (3, 4))
        depth, more = values[5:]
        index = depth.type
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        fuse = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{WIDE}f32")

        def at(which, row, column):
            place = builder.add(starts[which], builder.mul(row, steps[which]))
            return builder.add(place, column)

        zero = ir.Constant(VECTOR, [0.0] * WIDE)
        rows, columns = range(ROWS), range(0, COLUMNS, WIDE)
        sums = {(r, c): cgutils.alloca_once(builder, VECTOR) for r in rows for c in columns}
        for one in sums.values():
            builder.store(zero, one)
        with builder.if_then(cgutils.is_true(builder, more)):
            for (r, c), one in sums.items():
                builder.store(_load(builder, out, at(2, index(r), index(c))), one)
        with cgutils.for_range(builder, depth) as loop:
            rights = {c: _load(builder, right, at(1, loop.index, index(c))) for c in columns}
            lefts = [_spread(builder, builder.gep(left, [at(0, index(r), loop.index)])) for r in rows]
            for (r, c), one in sums.items():
                builder.store(builder.call(fuse, [lefts[r], rights[c], builder.load(one)]), one)
        for (r, c), one in sums.items():
            _store(builder, builder.load(one), out, at(2, index(r), index(c)))
        return context.get_dummy_value()

    return types.void(left, right, out, places, steps, depth, more), build


def _data(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _vector(builder, data, place):
    return builder.bitcast(builder.gep(data, [place]), VECTOR.as_pointer())


def _load(builder, data, place):
    return builder.load(_vector(builder, data, place), align=4)


def _store(builder, value, data, place):
    builder.store(value, _vector(builder, data, place), align=4)


def _spread(builder, element):
    """A vector of one element, repeated."""
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), builder.load(element), ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDE), [0] * WIDE)
    return builder.shuffle_vector(one, one, mask)


@njit(nogil=True, cache=True)
def _convolve(large, small, kernel, out):
    """In each plane of tiles, go down strips that are TILES wide; see `Tiled.convolve`."""
    depth, height, width, outputs = out.shape
    parts, sums = (_part(large, False), _part(small, True)), _sums(outputs)
    for z in range(depth // 2):
        for x in range(0, width // 2, TILES):
            tiles = min(TILES, -(-(width // 2 - x) // ROWS) * ROWS)
            for y in range(-2, height // 2):  # the first two only load what the next ones see
                for part in parts:
                    _load_rows(part, z, y, x)
                if y >= 0:
                    _compute(parts, kernel, y, tiles, sums)
                    _write(sums[3], z, y, x, out)


@njit(nogil=True, cache=True)
def _compute(parts, kernel, y, tiles, sums):
    """A row of tiles: differences along y and x (those along z are there), products, sums along each axis."""
    along_x, along_y, along_z, found = sums
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
                if inputs < kernel.shape[1] and kz != 2 and ky != 2 and kx != 2:  # else differences are zeros
                    _product(parts[1][-1], kx, tiles, matrix[inputs:], along_x, kx * side, True)
            join(along_x, _four(0, side), along_y, (ky * side, (4 + ky) * side), count)
        for k in range(2):
            to = (4 * k + kz) * side
            join(along_y, _four(4 * k * side, side), along_z, (to, to + 8 * side), count)
    for k in range(4):
        join(along_z, _four(4 * k * side, side), found, (k * side, (4 + k) * side), count)


@njit(nogil=True, cache=True)
def _sums(outputs):
    """Products, (kx), and their sums along x, (dx, ky), y, (dy, dx, kz), and z, (dz, dy, dx): each a row."""
    side = TILES * outputs
    return _zeros(4 * side), _zeros(8 * side), _zeros(16 * side), _zeros(8 * side)


@njit(nogil=True, cache=True)
def _part(given, doubled):
    """A map with room for what is made of it: rows, then differences along z, y and x."""
    channels = given[0].shape[3]
    row = (TILES + 2) * channels if doubled else 2 * (TILES + 1) * channels
    return given, doubled, _zeros(4 * row), _zeros(16 * row), _zeros(4 * row), _zeros(4 * TILES * channels)


@njit(nogil=True, cache=True)
def _zeros(count):
    return np.zeros(count, np.float32)


@njit(nogil=True, cache=True)
def _four(start, step):
    return start, start + step, start + 2 * step, start + 3 * step


@njit(nogil=True, cache=True)
def _seen(tile, doubled):
    """Where the four voxels of a tile lie along one axis."""
    return (tile - 1, tile, tile, tile + 1) if doubled else _four(2 * tile - 1, 1)


@njit(nogil=True, cache=True)
def _load_rows(part, z, y, x):
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
def _write(found, z, y, x, out):
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
