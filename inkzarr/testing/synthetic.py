"""A scroll that never was: any size, any block of it at once, and ink whose place is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.testing.letters import ink_at, page
from inkzarr.testing.segments import Segment, write_segment
from inkzarr.testing.spiral import Spiral
from inkzarr.testing.texture import BLOBS, HALO, fibre_at, fibres, smooth, white

if TYPE_CHECKING:
    from pathlib import Path

Bytes = NDArray[np.uint8]
Kind = Literal["scan", "truth", "labelled"]

CELL = Zyx(128, 128, 128)
AIR, PAPYRUS = 70.0, 135.0
NOISE, FIBRE = 20.0, 8.0
FACE = 3.0
MARGIN = 8.0
TEXT = ("TEXNH KAI NOMOI", "EN TOIC XPONOIC", "KAKON ZHTEI NOYN")


@dataclass(frozen=True)
class SyntheticScroll:
    """A rolled papyrus as a CT scan shows it, with letters in ink on its inner side.

    The sheet is wound around the z axis (see `inkzarr.testing.spiral.Spiral`); across it, from the axis
    outwards::

        depth   -written/2        0        written/2        thickness - written/2
        air          | fibres along columns |  fibres along rows  |        air
                     |<----- written ------>|
                     |  ink or no ink       |  never ink
                              ^ the surface that segments follow

    Ink has the grey levels of bare papyrus: it cannot be had by thresholding. What gives it away is
    its texture, coarse where papyrus is fine. Outside of the scroll the scan is 0, as in masked scans.

    Parameters
    ----------
    shape : tuple of int
        z, y, x in voxels.
    seed : int
        Of everything that is random; not negative.
    pitch : float
        From one winding to the next, in voxels.
    thickness : float
        Of the sheet, in voxels; it must leave air between windings.
    written : float
        Depth of the written layer, in voxels; at most `thickness`.
    letter : int
        Height of a capital, in voxels.
    text : tuple of str
        The lines, repeated as often as they fit; see `inkzarr.testing.letters.page`.
    voxel_size_um : float
        Edge of a voxel in micrometres; told to readers, of no consequence here.

    Raises
    ------
    InputError
        Sizes that do not fit each other.

    Examples
    --------
    >>> scroll = SyntheticScroll(shape=(16, 160, 160))
    >>> scroll.volume().sizes
    Frozen({'z': 16, 'y': 160, 'x': 160})
    >>> scroll.block(Box.parse("0:1,80:81,140:144", Zyx(16, 160, 160))).shape
    (1, 1, 4)
    """

    shape: tuple[int, int, int] = (192, 256, 256)
    seed: int = 0
    pitch: float = 22.0
    thickness: float = 14.0
    written: float = 9.0
    letter: int = 44
    text: tuple[str, ...] = TEXT
    voxel_size_um: float = 7.91

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or len(self.shape) != len(Zyx._fields):
            msg = f"shape {tuple(self.shape)} is no volume: give z, y and x, each at least 1"
            raise InputError(msg)
        if not 2 <= self.written <= self.thickness <= (self.pitch - FACE + self.written) / 2:
            msg = (
                f"written {self.written:g}, thickness {self.thickness:g}, pitch {self.pitch:g} do not fit: "
                f"2 <= written <= thickness <= (pitch - {FACE:g} + written) / 2, in voxels"
            )
            raise InputError(msg)
        if self.letter < 6 or self.seed < 0:
            msg = f"letter {self.letter} or seed {self.seed} is too small: use at least 6 voxels and seed 0"
            raise InputError(msg)
        _ = self.spiral, self._page

    @cached_property
    def spiral(self) -> Spiral:
        """Where the sheet runs."""
        return Spiral(Zyx.of(self.shape), self.pitch, self.seed)

    @cached_property
    def _page(self) -> NDArray[np.bool_]:
        return page(self.text, self.letter)

    def volume(self, chunk: int = 128) -> xr.DataArray:
        """The scan, lazy: uint8, dims z, y, x, chunks of `chunk` voxels, attrs voxel_size_um and source."""
        return self._lazy("scan", chunk)

    def truth(self, chunk: int = 128) -> xr.DataArray:
        """Where ink is, lazy: 1 ink, 0 none; only voxels of `labelled` can be ink."""
        return self._lazy("truth", chunk)

    def labelled(self, chunk: int = 128) -> xr.DataArray:
        """The written layer, lazy: 1 where a voxel is ink or could have been, 0 elsewhere."""
        return self._lazy("labelled", chunk)

    def block(self, box: Box) -> Bytes:
        """The scan's voxels in `box`, uint8; the same bytes however a volume is cut into boxes."""
        return self._block(box, "scan")

    def truth_block(self, box: Box) -> Bytes:
        """The voxels of `truth` in `box`."""
        return self._block(box, "truth")

    def labelled_block(self, box: Box) -> Bytes:
        """The voxels of `labelled` in `box`."""
        return self._block(box, "labelled")

    def ink(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether places of the sheet, in whole voxels, carry ink."""
        return ink_at(self._page, row, column)

    def segments(self, rows: slice | None = None) -> list[Segment]:
        """The sheet cut into its windings, from the innermost: their true surfaces and ink labels.

        A last winding that is barely begun belongs to the one before.

        Parameters
        ----------
        rows : slice, optional
            Those of the sheet, in voxels from its top edge; default: all. Ids tell where they begin.
        """
        spiral = self.spiral
        whole = math.ceil(spiral.turns - 0.25) - 1
        cuts = [0, *(math.ceil(spiral.column_at(turn)) for turn in range(1, whole + 1)), spiral.length]
        first_row, last_row, _ = (rows or slice(None)).indices(self.shape[0])
        place = slice(first_row, last_row)
        # ids that differ in the last character alone are versions of one segment
        return [
            Segment(f"2026{first_row:05d}{number:04d}1", spiral, self._page, place, slice(first, last))
            for number, (first, last) in enumerate(itertools.pairwise(cuts))
        ]

    def write_segments(
        self, folder: str | Path, *, kind: Literal["ppm", "tifxyz"] = "ppm", rows: slice | None = None
    ) -> None:
        """Write all segments and their labels, in the layout that the labels stage reads.

        ::

            folder/paths/{id}/{id}.ppm, {id}_mask.png      or  folder/paths/{id}/{id}.tifxyz/
            folder/inklabels/{id}_inklabels.png

        Parameters
        ----------
        folder : str or pathlib.Path
            Made if need be.
        kind : str
            ``ppm``: a point for each pixel; ``tifxyz``: a grid point every 8 pixels.
        rows : slice, optional
            As in `segments`.

        Raises
        ------
        InputError
            Another kind.
        """
        for segment in self.segments(rows):
            write_segment(segment, folder, kind=kind)

    def _lazy(self, kind: Kind, chunk: int) -> xr.DataArray:
        name = f"scroll-{kind}-{tokenize(self.__class__.__name__, repr(self), kind, chunk)}"
        source = _Source(self, kind)
        chunks = tuple(min(chunk, size) for size in self.shape)
        array = da.from_array(
            source, chunks=chunks, name=name, asarray=False, meta=np.empty((0, 0, 0), np.uint8)
        )
        attrs = {"voxel_size_um": self.voxel_size_um, "source": f"synthetic scroll, seed {self.seed}: {kind}"}
        return xr.DataArray(array, dims=Zyx._fields, attrs=attrs, name=kind)

    def _block(self, box: Box, kind: Kind) -> Bytes:
        if box.clip(Box.whole(self.shape)) != box:
            msg = f"box {box} reaches outside the scroll's {tuple(self.shape)}: clip it first"
            raise InputError(msg)
        out = np.zeros(box.shape, np.uint8)
        grid = Grid(Zyx.of(self.shape), CELL)
        for index in grid.indices(box):
            cell = grid.box(index).clip(box)
            out[cell.within(box)] = self._cell(cell, kind)
        return out

    def _cell(self, cell: Box, kind: Kind) -> Bytes:
        z, y, x = (np.arange(a, b, dtype=np.float64) for a, b in zip(cell.start, cell.stop, strict=True))
        depth, column = self.spiral.sheet(z[:, None, None], y[:, None], x)
        inside = depth < self.thickness - self.written / 2 + MARGIN
        if not inside.any():
            return np.zeros(cell.shape, np.uint8)
        layer = abs(depth) < self.written / 2
        if kind == "labelled":
            return layer.astype(np.uint8)
        row = np.broadcast_to(z.astype(np.int64)[:, None, None], depth.shape)
        ink = layer.copy()
        ink[layer] = self.ink(row[layer], np.floor(column[layer] + 0.5).astype(np.int64))
        if kind == "truth":
            return ink.astype(np.uint8)
        grey = NOISE * self._grain(cell, ink)
        grey += self._material(z[:, None, None], depth, column)
        return np.where(inside, np.clip(np.rint(grey), 1, 255), 0).astype(np.uint8)

    def _grain(self, cell: Box, ink: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Noise of unit variance: coarse in ink, fine elsewhere."""
        start, stop = (Zyx(*(v + by for v in end)) for end, by in ((cell.start, -HALO), (cell.stop, HALO)))
        noise = white(self.seed, Box(start, stop))
        fine = noise[HALO:-HALO, HALO:-HALO, HALO:-HALO]
        return np.where(ink, smooth(noise, BLOBS), fine) if ink.any() else fine

    def _material(
        self, z: NDArray[np.float64], depth: NDArray[np.float64], column: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Mean grey level: air, or papyrus with its two layers of fibres; edges as soft as a scanner's."""
        back = self.thickness - self.written / 2
        middle, half = (back - self.written / 2) / 2, self.thickness / 2
        papyrus = np.clip((half - abs(depth - middle)) / FACE + 0.5, 0, 1)
        row, column, depth = (np.broadcast_to(v, depth.shape)[papyrus > 0] for v in (z, column, depth))
        pattern = fibres(self.seed, int(self.pitch))
        along_columns = fibre_at(pattern, row + 5 * np.sin(column / 90) + column / 16, depth)
        along_rows = fibre_at(pattern, column + 3 * np.sin(row / 70) + row / 40, depth + self.pitch / 2)
        grey = np.full(papyrus.shape, AIR, np.float32)
        share = papyrus[papyrus > 0]
        grain = FIBRE * np.where(depth < self.written / 2, along_columns, along_rows)
        grey[papyrus > 0] += share * (PAPYRUS - AIR + grain)
        return grey


@dataclass(frozen=True)
class _Source:
    """What Dask reads blocks from: an array by its shape, dtype and slices."""

    scroll: SyntheticScroll
    kind: Kind

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.scroll.shape

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __getitem__(self, place: tuple[slice | int, ...]) -> Bytes:
        slices = [part if isinstance(part, slice) else slice(part, part + 1) for part in place]
        parts = [part.indices(size) for part, size in zip(slices, self.shape, strict=True)]
        start, stop, step = zip(*parts, strict=True)
        block = self.scroll._block(Box(Zyx(*start), Zyx(*map(max, start, stop))), self.kind)
        chosen = [
            slice(None, None, s) if isinstance(p, slice) else 0 for p, s in zip(place, step, strict=True)
        ]
        return block[tuple(chosen)]
