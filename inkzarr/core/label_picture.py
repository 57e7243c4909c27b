"""A picture of a label volume over its scan, at the slices that hold most."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.labelled import open_label_arrays
from inkzarr.core.picture import contact_sheet, stretch
from inkzarr.core.remote import is_remote
from inkzarr.core.schema import INK_THRESHOLD
from inkzarr.core.store import open_stored
from inkzarr.core.volume import StoredVolume

PANELS = 4
ACROSS = 2
"""Chunks that are shown along y and x."""
INK_COLOUR, NO_INK_COLOUR = np.array([230, 60, 30]), np.array([40, 110, 220])
OPACITY = 0.55


def draw_beside(url: str, scan_url: str | None, *, storage_options: dict[str, Any] | None = None) -> str:
    """Draw a label group over its scan, as a PNG beside it; the file's name, empty for a remote group."""
    if is_remote(url):
        return ""
    scan = None if scan_url is None else open_stored(scan_url, storage_options=storage_options)
    drawn = draw_labels(*open_label_arrays(url), scan)
    if drawn is None:
        return ""
    target = Path(f"{url.removeprefix('file://').rstrip('/')}.png")
    target.write_bytes(drawn)
    return str(target)


def draw_labels(ink: StoredVolume, count: StoredVolume, scan: StoredVolume | None) -> bytes | None:
    """A PNG of the densest slices: red is ink, blue is labelled as none, grey is the scan.

    Parameters
    ----------
    ink, count : StoredVolume
        The label group's arrays, with their ledgers.
    scan : StoredVolume or None
        Of the same shape; black where there is none.

    Returns
    -------
    bytes or None
        None where nothing is known to be labelled.
    """
    if count.ledger is None:
        return None
    grid = Grid(count.shape, count.chunks)
    held = count.ledger.chunk_table().nonzero
    order = np.argsort(held, axis=None, kind="stable")[::-1][:PANELS]
    indices = [Zyx(*map(int, np.unravel_index(at, held.shape))) for at in order]
    boxes = [grid.box(index) for index in indices if held[index]]
    if not boxes:
        return None
    with ThreadPoolExecutor() as pool:
        planes, captions = zip(*pool.map(lambda box: _panel(ink, count, scan, box), boxes), strict=True)
    file = io.BytesIO()
    contact_sheet([planes], [captions]).save(file, format="PNG")
    return file.getvalue()


def _panel(
    ink: StoredVolume, count: StoredVolume, scan: StoredVolume | None, chunk: Box
) -> tuple[np.ndarray, str]:
    """The densest slice of a chunk with what is beside it, and where that is."""
    z = _densest(count, chunk)
    box = _beside(chunk, z, Grid(count.shape, count.chunks))
    under = None if scan is None else scan.read(box)[0]
    caption = f"z {z}, y {box.start.y}:{box.stop.y}, x {box.start.x}:{box.stop.x}"
    return _overlay(ink.read(box)[0], count.read(box)[0], under), caption


def _densest(count: StoredVolume, box: Box) -> int:
    """The slice of a chunk with most labelled voxels."""
    return box.start.z + int(np.count_nonzero(count.read(box), axis=(1, 2)).argmax())


def _beside(chunk: Box, z: int, grid: Grid) -> Box:
    """A slice of the chunk and of those next to it, each of which must be unpacked."""
    along = list(zip(chunk.start[1:], grid.cell[1:], grid.counts[1:], grid.shape[1:], strict=True))
    first = [max(0, min(at // cell, count - ACROSS)) * cell for at, cell, count, _ in along]
    end = [min(at + ACROSS * cell, size) for at, (_, cell, _, size) in zip(first, along, strict=True)]
    return Box(Zyx(z, *first), Zyx(z + 1, *end))


def _overlay(ink: np.ndarray, count: np.ndarray, scan: np.ndarray | None) -> np.ndarray:
    """Red, green, blue, uint8."""
    grey = np.zeros(ink.shape, np.uint8) if scan is None else stretch(scan)
    picture = np.repeat(grey[..., None], 3, axis=-1).astype(np.float64)
    for where, colour in ((ink >= INK_THRESHOLD, INK_COLOUR), (ink < INK_THRESHOLD, NO_INK_COLOUR)):
        chosen = where & (count > 0)
        picture[chosen] = (1 - OPACITY) * picture[chosen] + OPACITY * colour
    return picture.round().astype(np.uint8)
