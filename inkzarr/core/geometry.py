"""Boxes, windows and blocks on the voxel grid: z, y, x, in voxels, half open.

Every place in a volume is one of these named types; nothing here knows of arrays or files.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from inkzarr.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

AXES = "zyx"


class Zyx(NamedTuple):
    """Three whole numbers, one an axis: a voxel's place, a shape or a step.

    Parameters
    ----------
    z, y, x : int
        In voxels, or in chunks or windows where the name says so.

    Examples
    --------
    >>> Zyx(1, 2, 3) == (1, 2, 3)
    True
    """

    z: int
    y: int
    x: int

    @classmethod
    def of(cls, value: int | tuple[int, ...] | list[int]) -> Zyx:
        """One number for all three axes, or three numbers.

        Examples
        --------
        >>> Zyx.of(128)
        Zyx(z=128, y=128, x=128)
        """
        if isinstance(value, int):
            return cls(value, value, value)
        if len(value) != len(AXES):
            msg = f"{value!r} has {len(value)} numbers; give one, or three as z,y,x"
            raise InputError(msg)
        return cls(*(int(v) for v in value))

    @property
    def volume(self) -> int:
        """The product: how many voxels a box of this shape holds."""
        return self.z * self.y * self.x


@dataclass(frozen=True, order=True)
class Box:
    """A half-open box of voxels, ``start <= voxel < stop``.

    Parameters
    ----------
    start, stop : Zyx
        First voxel, and one past the last, along z, y and x.

    Examples
    --------
    >>> Box.parse("10:20,:,5:", Zyx(100, 100, 100))
    Box(start=Zyx(z=10, y=0, x=5), stop=Zyx(z=20, y=100, x=100))
    """

    start: Zyx
    stop: Zyx

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """The box of a whole volume of `shape`."""
        return cls(Zyx(0, 0, 0), Zyx.of(tuple(shape)))

    @classmethod
    def parse(cls, text: str, shape: Zyx) -> Box:
        """Read ``z0:z1,y0:y1,x0:x1``; a bound left out is the volume's own.

        Parameters
        ----------
        text : str
            As on the command line.
        shape : Zyx
            The volume's shape in voxels.

        Raises
        ------
        InputError
            Malformed, empty, or reaching outside the volume.
        """
        parts = text.split(",")
        rule = f"a box is z0:z1,y0:y1,x0:x1 inside the volume's {shape.z},{shape.y},{shape.x}"
        bounds: list[tuple[int, int]] = []
        for part, size in zip(parts, shape, strict=False):
            first, colon, last = part.partition(":")
            try:
                low = int(first) if first.strip() else 0
                high = int(last) if last.strip() else size
            except ValueError:
                low, high = 0, -1
            if not colon or not 0 <= low < high <= size:
                break
            bounds.append((low, high))
        if len(bounds) != len(AXES) or len(parts) != len(AXES):
            msg = f"box {text!r} cannot be used: {rule}"
            raise InputError(msg)
        return cls(Zyx(*(b[0] for b in bounds)), Zyx(*(b[1] for b in bounds)))

    @property
    def shape(self) -> Zyx:
        """Size along z, y and x; 0 where empty."""
        return Zyx(*(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True)))

    @property
    def empty(self) -> bool:
        """Whether the box holds no voxel."""
        return self.shape.volume == 0

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing an array of the whole volume."""
        (a, b, c), (z, y, x) = self.start, self.stop
        return slice(a, z), slice(b, y), slice(c, x)

    def within(self, outer: Box) -> tuple[slice, slice, slice]:
        """For indexing an array that holds `outer` only."""
        return self.shift(outer.start, sign=-1).slices

    def from_start(self, outer: Box) -> Zyx:
        """Where it begins in `outer`."""
        (a, b, c), (z, y, x) = self.start, outer.start
        return Zyx(a - z, b - y, c - x)

    def __contains__(self, place: Zyx) -> bool:
        """Whether a voxel (cell, window) lies inside."""
        return all(a <= i < b for a, i, b in zip(self.start, place, self.stop, strict=True))

    def indices(self) -> Iterator[Zyx]:
        """All places in the box, in C order: of a box that is counted in cells or windows, these."""
        for index in itertools.product(*map(range, self.start, self.stop)):
            yield Zyx(*index)

    def shift(self, by: Zyx, *, sign: int = 1) -> Box:
        """The same box moved by `by` (or back, with ``sign=-1``)."""
        start, stop = (
            Zyx(z + sign * by[0], y + sign * by[1], x + sign * by[2]) for z, y, x in (self.start, self.stop)
        )
        return Box(start, stop)

    def clip(self, other: Box) -> Box:
        """The part that both boxes share; empty where they do not meet."""
        start = Zyx(*map(max, self.start, other.start))
        stop = Zyx(*map(max, start, map(min, self.stop, other.stop)))
        return Box(start, stop)

    def __str__(self) -> str:
        """As the command line takes it."""
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True)
class Grid:
    """A volume cut into equal cells (chunks, shards or blocks); the last ones may be ragged.

    Parameters
    ----------
    shape : Zyx
        The volume, in voxels.
    cell : Zyx
        One cell, in voxels.

    Examples
    --------
    >>> Grid(Zyx(5, 4, 4), Zyx(4, 4, 4)).counts
    Zyx(z=2, y=1, x=1)
    """

    shape: Zyx
    cell: Zyx

    @property
    def counts(self) -> Zyx:
        """How many cells along z, y and x."""
        return Zyx(*(-(-n // c) for n, c in zip(self.shape, self.cell, strict=True)))

    def box(self, index: Zyx) -> Box:
        """The voxels of cell `index`, clipped to the volume."""
        z, y, x = (i * c for i, c in zip(index, self.cell, strict=True))
        cell, end = self.cell, self.shape
        stop = Zyx(min(z + cell.z, end.z), min(y + cell.y, end.y), min(x + cell.x, end.x))
        return Box(Zyx(z, y, x), stop)

    def indices(self, region: Box | None = None) -> Iterator[Zyx]:
        """The cells that touch `region` (default: all), in C order."""
        return self.cells(region).indices()

    def cells(self, region: Box | None = None) -> Box:
        """The box, counted in cells, of those that touch `region`."""
        region = (region or Box.whole(self.shape)).clip(Box.whole(self.shape))
        if region.empty:
            return Box(Zyx(0, 0, 0), Zyx(0, 0, 0))
        start = Zyx(*(a // c for a, c in zip(region.start, self.cell, strict=True)))
        stop = Zyx(*(-(-b // c) for b, c in zip(region.stop, self.cell, strict=True)))
        return Box(start, stop)


@dataclass(frozen=True)
class Windows:
    """The overlapping windows that a network sees; they start at every multiple of `stride`.

    The grid begins at voxel 0 of the volume, never of a block, and goes on until the end is
    covered; the last windows may reach past it::

        volume    |----------------------------|
        windows   [=======]       [=======]
                      [=======]       [=======]
                  <-s->                   [=======]   reaches past the end

    Parameters
    ----------
    shape : Zyx
        The volume, in voxels.
    window : Zyx
        One window, in voxels.
    stride : Zyx
        From one window's first voxel to the next one's, in voxels, at most `window`.

    Examples
    --------
    >>> Windows(Zyx(10, 8, 8), Zyx(8, 8, 8), Zyx(4, 4, 4)).counts
    Zyx(z=2, y=1, x=1)
    """

    shape: Zyx
    window: Zyx
    stride: Zyx

    @classmethod
    def overlapping(cls, shape: Zyx, window: Zyx, overlap: float) -> Windows:
        """Windows of which neighbours share the part `overlap` along every axis, but where they are 1 deep.

        Raises
        ------
        InputError
            The overlap is not in [0, 1), or gives a stride that is not a whole number.
        """
        if not 0 <= overlap < 1:
            msg = f"overlap {overlap} is out of range: it is a part of the window, 0 <= overlap < 1"
            raise InputError(msg)
        exact = [w * (1 - overlap) if w > 1 else 1.0 for w in window]
        stride = Zyx(*(max(1, round(s)) for s in exact))
        if any(abs(s - e) > 1e-3 for s, e in zip(stride, exact, strict=True)):
            near = sorted({1 - s / w for s, w in zip(stride, window, strict=True) if w > 1})
            msg = (
                f"overlap {overlap} moves a window of {window.z},{window.y},{window.x} by "
                f"{','.join(f'{s:g}' for s in exact)} voxels; the stride must be whole: "
                f"try overlap {' or '.join(f'{v:g}' for v in near)}"
            )
            raise InputError(msg)
        return cls(shape, window, stride)

    @cached_property
    def counts(self) -> Zyx:
        """How many windows along z, y and x."""
        return Zyx(
            *(
                max(1, math.ceil((n - w) / s) + 1) if n > w else 1
                for n, w, s in zip(self.shape, self.window, self.stride, strict=True)
            )
        )

    def box(self, index: Zyx) -> Box:
        """The voxels of window `index`; may reach past the volume's end."""
        start = Zyx(*(i * s for i, s in zip(index, self.stride, strict=True)))
        return Box(start, Zyx(*(a + w for a, w in zip(start, self.window, strict=True))))

    def touching(self, block: Box) -> Box:
        """The windows, counted in windows, that share a voxel with `block`.

        Parameters
        ----------
        block : Box
            In voxels, not empty.

        Returns
        -------
        Box
            Along each axis from the first window to one past the last.
        """
        first, last = [], []
        axes = zip(block.start, block.stop, self.window, self.stride, self.counts, strict=True)
        for low, high, window, stride, count in axes:
            first.append(max(0, (low - window) // stride + 1))
            last.append(min(count, -(-high // stride)))
        return Box(Zyx(*first), Zyx(*last))

    def reach(self, block: Box) -> Box:
        """The voxels that the windows touching `block` see: the block and its halo.

        ::

              reach  [<- halo ->[ block ]<- halo ->]
        """
        windows = self.touching(block)
        last = Zyx(*(b - 1 for b in windows.stop))
        return Box(self.box(windows.start).start, self.box(last).stop)

    def halos(self, block: Zyx) -> list[tuple[int, int]]:
        """How far `reach` goes before and past any block of a grid of `block`, at most; per axis, in voxels.

        Examples
        --------
        >>> Windows(Zyx(99, 99, 99), Zyx(8, 8, 8), Zyx(4, 2, 8)).halos(Zyx(16, 16, 16))
        [(4, 4), (6, 6), (0, 0)]
        """
        return [
            ((w - 1) // s * s, w - s) if b % s == 0 else (w - 1, w - 1)
            for b, w, s in zip(block, self.window, self.stride, strict=True)
        ]


def check_axes(axes: str) -> None:
    """Refuse what is not z, y and x in some order.

    Raises
    ------
    InputError
        Naming the six orders by example.
    """
    if sorted(axes) != sorted(AXES):
        msg = f"axes {axes!r} cannot be: name z, y and x once each, slowest first, such as zyx or yxz"
        raise InputError(msg)


def cut_axis(size: int, block: int, least: int) -> tuple[int, ...]:
    """Cut an axis into blocks, none smaller than `least` where there are several.

    Examples
    --------
    >>> cut_axis(10, 4, 1), cut_axis(10, 4, 3)
    ((4, 4, 2), (4, 6))
    """
    block = max(block, least)
    sizes = [block] * (size // block)
    rest = size - sum(sizes)
    if rest and sizes and rest < least:
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return tuple(sizes)
