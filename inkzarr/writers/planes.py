"""Planes through a volume: a folder of slices, or the frames of a movie; a second volume may stand beside.

::

    axis z, step 2      0  .  2  .  4        +------+ +------+
                        |     |     |        | scan | | ink  |    one plane of each, side by side
                        v     v     v        +------+ +------+
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from inkzarr.core.errors import InputError
from inkzarr.core.extras import require
from inkzarr.core.geometry import AXES
from inkzarr.writers.base import Cutout, layer_bytes, read_planes
from inkzarr.writers.tiff import check_tiff, write_tiff_slice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLICES_IN_FLIGHT = 2
JPEG_QUALITY = 90
LONGEST_JPEG = 65_535
GAP, GAP_GREY = 8, 128
"""Pixels between a volume and the one beside, and their grey."""
FRAMES_A_SECOND = 25
CRF = 18
"""H.264's measure of loss, at which the eye sees none; 0 is lossless, 51 the worst."""
LARGEST_FRAME = 139_264 * 16 * 16
"""Pixels of one frame at H.264's highest level, 6.2: players need not take more."""
DIGITS = 5


@dataclass(frozen=True)
class PlaneSettings:
    """Which planes become slices or frames.

    Parameters
    ----------
    axis : str
        ``z``, ``y`` or ``x``: planes lie across it.
    step : int
        From one plane to the next, in voxels of the level.
    beside : str or None
        URL of a second volume of the same shape, such as the scan's prediction, shown to the right
        of the first; not for ``.tif`` slices.

    Raises
    ------
    InputError
        An unknown axis, or a step below 1.
    """

    axis: str = "z"
    step: int = 1
    beside: str | None = None

    def __post_init__(self) -> None:
        if len(self.axis) != 1 or self.axis not in AXES:
            msg = f"axis {self.axis!r} is unknown: planes lie across z, y or x"
            raise InputError(msg)
        if self.step < 1:
            msg = f"step {self.step} cannot be: go from plane to plane by 1 voxel or more"
            raise InputError(msg)

    @property
    def number(self) -> int:
        """Of the axis: 0, 1, 2."""
        return AXES.index(self.axis)


@dataclass(frozen=True)
class Planes:
    """The planes that are shown, of one volume or of two side by side.

    Parameters
    ----------
    cutouts : tuple of Cutout
        Of the same shape; the first on the left.
    settings : PlaneSettings
        Which planes.
    """

    cutouts: tuple[Cutout, ...]
    settings: PlaneSettings

    @property
    def count(self) -> int:
        """How many planes."""
        return -(-self.cutouts[0].box.shape[self.settings.number] // self.settings.step)

    @property
    def pixels(self) -> int:
        """Of one cut-out's plane."""
        shape = self.cutouts[0].box.shape
        return shape.volume // shape[self.settings.number]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of what is shown."""
        rows, columns = (n for i, n in enumerate(self.cutouts[0].box.shape) if i != self.settings.number)
        return rows, columns * len(self.cutouts) + GAP * (len(self.cutouts) - 1)

    @property
    def scratch_bytes(self) -> int:
        """Disk that is taken while they are read."""
        return sum(layer_bytes(cutout, self.settings.number) for cutout in self.cutouts)

    def check_grey(self, suffix: str) -> None:
        """Refuse voxels that are no grey levels.

        Raises
        ------
        InputError
            Neither uint8 nor uint16.
        """
        for cutout in self.cutouts:
            if cutout.dtype.name not in ("uint8", "uint16"):
                msg = f"dtype {cutout.dtype.name} holds no grey levels for {suffix}: export to .tif or .nrrd"
                raise InputError(msg)

    def read(self, scratch: Path, *, bits: int) -> Iterator[tuple[int, np.ndarray]]:
        """Every plane with its place along the axis: as stored with 16 `bits`, as 8-bit grey with 8."""
        each = [
            read_planes(one, scratch, axis=self.settings.number, step=self.settings.step)
            for one in self.cutouts
        ]
        for planes in zip(*each, strict=True):
            shown = [grey(plane) if bits == 8 else plane for _, plane in planes]
            yield planes[0][0], _side_by_side(shown)


def grey(plane: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 by its high byte, as ingest does it.

    Examples
    --------
    >>> grey(np.array([[255, 256, 65535]], "uint16"))
    array([[  0,   1, 255]], dtype=uint8)
    """
    return plane if plane.dtype == np.uint8 else (plane >> 8).astype(np.uint8)


def write_slices(folder: Path, planes: Planes, suffix: str, advance: Callable[[int], object]) -> None:
    """Write a folder of slices, each named by its place along the axis: ``00042.jpg``.

    ``.tif`` keeps every dtype, ``.png`` keeps uint8 and uint16, ``.jpg`` has 8 bits.

    Raises
    ------
    InputError
        The format does not have the voxels' dtype or size.
    """
    check_slices(planes, suffix)
    two = len(planes.cutouts) > 1
    spacing = planes.cutouts[0].spacing_um
    edges = None if spacing is None else [um for i, um in enumerate(spacing) if i != planes.settings.number]

    def save(place: int, plane: np.ndarray) -> None:
        path = folder / f"{place:0{DIGITS}}{suffix}"
        if suffix in TIFF_SUFFIXES:
            write_tiff_slice(path, plane, None if edges is None else (edges[0], edges[1]))
        elif suffix == ".png":
            Image.fromarray(plane).save(path, compress_level=1)
        else:
            Image.fromarray(plane).save(path, quality=JPEG_QUALITY)
        advance(planes.pixels)

    folder.mkdir()
    bits = 8 if two or suffix in JPEG_SUFFIXES else 16
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(SLICES_IN_FLIGHT) as pool:
        for place, plane in planes.read(folder.parent, bits=bits):
            pending.append(pool.submit(save, place, plane.copy()))
            if len(pending) > SLICES_IN_FLIGHT:
                pending.popleft().result()
        for saved in pending:
            saved.result()


JPEG_SUFFIXES = (".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")


def check_slices(planes: Planes, suffix: str) -> None:
    """Refuse what a slice of this format cannot hold, before anything is read."""
    if suffix in TIFF_SUFFIXES:
        if len(planes.cutouts) > 1:
            msg = f"{suffix} slices hold one volume's own voxels: put two side by side in .png, .jpg or .mp4"
            raise InputError(msg)
        check_tiff(planes.cutouts[0])
        return
    planes.check_grey(suffix)
    if suffix in JPEG_SUFFIXES and max(planes.shape) > LONGEST_JPEG:
        msg = f"a slice of {planes.shape} is too large for {suffix}: choose .png or .tif"
        raise InputError(msg)


def check_movie(planes: Planes) -> None:
    """Refuse what a movie cannot show, before anything is read."""
    planes.check_grey(".mp4")
    require("imageio_ffmpeg", "a movie", "export")
    rows, columns = planes.shape
    if rows * columns > LARGEST_FRAME:
        msg = f"frames of {rows} x {columns} are more than players show: choose a box or a coarser level"
        raise InputError(msg)


def write_movie(path: Path, planes: Planes, advance: Callable[[int], object]) -> None:
    """Write an H.264 movie, 25 frames a second, that browsers and players show.

    Raises
    ------
    InputError
        Voxels that are no grey levels, frames too large, or an encoder that fails, in its own words.
    """
    check_movie(planes)
    exe = require("imageio_ffmpeg", "a movie", "export").get_ffmpeg_exe()
    rows, columns = (n + n % 2 for n in planes.shape)  # its colours have half the resolution
    given = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{columns}x{rows}", "-r", str(FRAMES_A_SECOND)]
    # few frames looked ahead: each of a scroll takes 100 MB
    coded = ["-c:v", "libx264", "-preset", "veryfast", "-crf", str(CRF), "-pix_fmt", "yuv420p"]
    command = [
        exe,
        "-v",
        "error",
        "-y",
        *given,
        "-i",
        "-",
        *coded,
        "-movflags",
        "+faststart",
        "-f",
        "mp4",
        path,
    ]
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=words) as encoder,  # noqa: S603 - a list, no shell; names come from the caller
    ):
        try:
            with contextlib.suppress(BrokenPipeError):  # its own words say why
                _send(encoder, planes, path.parent, advance)
        except BaseException:
            encoder.kill()
            raise
        encoder.wait()
        words.seek(0)
        told = words.read()
    if encoder.returncode:
        lines = told.decode(errors="replace").split("\n")
        msg = f"ffmpeg failed on {path.name}: {' '.join(filter(None, lines))[:300]}"
        raise InputError(msg)


def _send(
    encoder: subprocess.Popen[bytes], planes: Planes, scratch: Path, advance: Callable[[int], object]
) -> None:
    odd = [(0, n % 2) for n in planes.shape]
    if encoder.stdin is not None:
        with encoder.stdin as pipe:
            for _, plane in planes.read(scratch, bits=8):
                pipe.write(np.pad(plane, odd).data)
                advance(planes.pixels)


def _side_by_side(planes: list[np.ndarray]) -> np.ndarray:
    if len(planes) == 1:
        return planes[0]
    gap = np.full((planes[0].shape[0], GAP), GAP_GREY, np.uint8)
    return np.hstack([planes[0], gap, *planes[1:]])
