"""The contact sheet of letter candidates: one HTML page that needs nothing else, with pictures of each.

The same pictures lie beside it as PNG files, in a folder of the page's name.

::

    face on     from the volume's middle outwards, along the component's thinnest direction, z downwards
    z, y, x     maximum projections along the axes: the component black, the rest of the prediction grey
    slice       the scan's z slice through the centroid, the component outlined

A row's pictures are drawn from the box around its component alone.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy import ndimage

from inkzarr.core.candidates import covariance
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.picture import contact_sheet, png, stretch
from inkzarr.core.remote import without_secrets
from inkzarr.core.runs import VOXELS, Bytes, empty_rows, find_runs, paint, project, weigh
from inkzarr.core.whole import whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from inkzarr.core.candidates import Candidates
    from inkzarr.core.volume import StoredVolume

MOST_CANDIDATES = 100
"""The best so many are shown; the table has all."""
NO_LETTERS = "no letters found; a lower --threshold or --min-voxels may find some"
PADDING = 8
LONGEST = 384
"""Voxels along an axis of what is drawn: of a longer component, its part around the centroid."""
PICTURES = ("face on", "along z", "along y", "along x", "slice")
NUMBERS = ("length_um", "width_um", "thickness_um", "voxels", "mean", "max", "flatness", "strokes")
OUTLINE = (220, 30, 30)
PNG_NAME = re.compile(r"\d+_\d+\.png")
PNG_PIXELS = 240
"""Smaller pictures are magnified to about so many pixels in a PNG file."""
SIDEWAYS = 0.2
"""A direction whose part across the line of sight is shorter does not say what is down."""


@dataclass(frozen=True)
class Viewer:
    """Draws candidates of one prediction.

    Parameters
    ----------
    prediction : StoredVolume
        uint8.
    scan : StoredVolume or None
        Of the same shape; None shows the prediction's slice.
    least : int
        The smallest value of a component.
    """

    prediction: StoredVolume
    scan: StoredVolume | None
    least: int

    def __call__(self, place: tuple[Box, Zyx, Zyx]) -> list[bytes]:
        """PNG files in the order of `PICTURES`, of a component by its box, centroid and first voxel."""
        box, centre, first = place
        around = surroundings(box, centre, self.prediction.shape)
        voxels = np.ascontiguousarray(self.prediction.read(around))
        begins, starts, stops, component, found = find_runs(voxels, self.least)
        runs = begins, starts, stops, component
        chosen = _chosen(voxels.shape, runs, found, first, around)
        own = np.zeros(voxels.shape, np.uint8)
        paint(begins[:-1], begins[1:], runs, chosen, own.reshape(-1, around.shape.x))
        outwards = np.array(centre) - np.array(self.prediction.shape) / 2
        plane = min(max(centre.z, around.start.z), around.stop.z - 1)
        low, high = around.start._replace(z=plane), around.stop._replace(z=plane + 1)
        grey = (self.scan or self.prediction).read(Box(low, high))[0]
        own *= voxels
        flat = [_ink(voxels.max(axis), own.max(axis)) for axis in range(3)]
        pictures = [
            _face_on(voxels, runs, chosen, outwards),
            *flat,
            _outlined(grey, own[plane - around.start.z]),
        ]
        return [png(picture) for picture in pictures]


def surroundings(box: Box, centre: Zyx, shape: Zyx) -> Box:
    """What is drawn of a component: its box and a margin, at most `LONGEST` along an axis, in the volume."""
    start, stop = [], []
    for low, high, middle, size in zip(box.start, box.stop, centre, shape, strict=True):
        low, high = low - PADDING, high + PADDING
        if high - low > LONGEST:
            low, high = middle - LONGEST // 2, middle + LONGEST // 2
        start.append(max(low, 0))
        stop.append(min(high, size))
    return Box(Zyx(*start), Zyx(*stop))


def places(table: Candidates, shape: Zyx) -> Iterator[tuple[Box, Zyx, Zyx]]:
    """Box, centroid and first voxel of the best candidates, as `Viewer` takes them."""
    for row in range(min(len(table), MOST_CANDIDATES)):
        centre = Zyx(*(round(float(table[axis][row])) for axis in "zyx"))
        first = Zyx(*(int(i) for i in np.unravel_index(table.first[row], shape)))
        yield table.box(row), centre, first


def picture_folder(path: Path) -> Path:
    """Where the PNG files of a page lie.

    Raises
    ------
    InputError
        What is there holds more than such files.
    """
    folder = path.with_suffix("")
    inside = folder.iterdir() if folder.is_dir() else []
    if any(not PNG_NAME.fullmatch(file.name) for file in inside) or folder.is_file():
        msg = f"{folder} is no folder of a contact sheet's pictures, which {path.name} would write there: "
        raise InputError(msg + "choose another name")
    return folder


def write_page(
    path: Path,
    table: Candidates,
    pictures: Iterable[list[bytes]],
    prediction: StoredVolume,
    scan: StoredVolume | None = None,
) -> None:
    """Write the page and its `picture_folder`; they appear only once they are whole, and replace others.

    Parameters
    ----------
    path : pathlib.Path
        Of the page.
    table : Candidates
        All of them, the best first.
    pictures : iterable of lists of bytes
        What `Viewer` draws of each of the table's `places`; rank and id are the name of its PNG file.
    prediction, scan : StoredVolume
        What the pictures show.

    Raises
    ------
    InputError
        The disk is full, or does not let write.
    """
    folder = picture_folder(path)

    def kept(drawn: Path) -> Iterator[list[bytes]]:
        for row, each in enumerate(pictures):
            planes = [np.asarray(Image.open(io.BytesIO(data))) for data in each]
            larger = [max(1, PNG_PIXELS // max(plane.shape)) for plane in planes]
            shown = [plane.repeat(n, 0).repeat(n, 1) for plane, n in zip(planes, larger, strict=True)]
            contact_sheet([shown], [PICTURES]).save(drawn / f"{row + 1:03}_{table['id'][row]}.png")
            yield each

    with whole(folder) as drawn, whole(path) as partial:
        drawn.mkdir()
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(page(table, kept(drawn), prediction, scan))


def page(
    table: Candidates,
    pictures: Iterable[list[bytes]],
    prediction: StoredVolume,
    scan: StoredVolume | None = None,
) -> Iterable[str]:
    """The page, piece by piece: a row for each of `pictures`, which are those of the table's first rows."""
    shown = min(len(table), MOST_CANDIDATES)
    title = f"Letter candidates of {prediction.name}"
    seen = f"the scan {scan.name}" if scan else "the prediction"
    heads = "".join(f"<th>{name}</th>" for name in ("rank", "id", "score"))
    heads += "".join(f'<th class="still">{name}</th>' for name in (*PICTURES, "look closer"))
    heads += "".join(f"<th>{name.replace('_', ' ')}</th>" for name in (*"zyx", *NUMBERS))
    yield (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<style>{STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        f"<p>{'' if shown else NO_LETTERS + '. '}The best {shown} of {len(table)} by score; a click on a "
        "heading sorts. Places and boxes are "
        "z y x in voxels. Face on: along the thinnest direction, from the volume's middle outwards, z "
        "downwards. Along z, y, x: maximum projections; the candidate is black, all else grey. "
        f"Slice: {html.escape(seen)} at the centroid's z, the candidate outlined.</p>\n"
        f"<details><summary>How it was made</summary><pre>{html.escape(json.dumps(table.lineage, indent=1))}"
        f"</pre></details>\n<table><thead><tr>{heads}</tr></thead><tbody>\n"
    )
    for row, drawn in enumerate(pictures):
        yield _row(table, row, drawn, without_secrets(prediction.url))
    yield f"</tbody></table>\n<script>{SORT}</script>\n</body></html>\n"


def _row(table: Candidates, row: int, pictures: list[bytes], url: str) -> str:
    number = int(table["id"][row])
    cells = [f"<td>{row + 1}</td><td>{number}</td>", _number(table["score"][row])]
    for name, picture in zip(PICTURES, pictures, strict=True):
        data = base64.b64encode(picture).decode()
        cells.append(f'<td><img alt="{name} of {number}" src="data:image/png;base64,{data}"></td>')
    command = shlex.join(["inkzarr", "export", url, f"candidate{number}.nrrd", "--box", str(table.box(row))])
    cells.append(f"<td><code>{html.escape(command)}</code></td>")
    cells += [f"<td>{table[name][row]:.0f}</td>" for name in "zyx"]
    cells += [_number(table[name][row]) for name in NUMBERS]
    return f"<tr>{''.join(cells)}</tr>\n"


def _number(value: Any) -> str:  # noqa: ANN401
    """A cell that shows three digits, and sorts by all."""
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f'<td data-v="{np.nan_to_num(value, nan=-1)!s}">{text}</td>'


def _chosen(shape: tuple[int, ...], runs: tuple[Any, ...], found: int, first: Zyx, around: Box) -> Bytes:
    """Which component of what is drawn is the candidate: that of its first voxel, else the largest."""
    begins, starts, stops, component = runs
    inside = Box(first, Zyx(*(n + 1 for n in first))).clip(around) == Box(first, Zyx(*(n + 1 for n in first)))
    if inside:
        z, y, x = (a - b for a, b in zip(first, around.start, strict=True))
        at = z * shape[1] + y
        mine = slice(begins[at], begins[at + 1])
        number = component[mine][np.searchsorted(stops[mine], x, side="right")]
    else:
        number = int(np.argmax(np.bincount(component, stops - starts, minlength=1)))
    chosen = np.zeros(max(found, 1), np.uint8)
    chosen[number] = 1
    return chosen


def _face_on(voxels: Bytes, runs: tuple[Any, ...], chosen: Bytes, outwards: np.ndarray) -> Bytes:
    """The component along its thinnest direction, z (else y) downwards, black on white."""
    row = empty_rows(1)
    weigh(voxels, runs, chosen.astype(np.int32), (0, 0, 0), voxels.shape, row)
    if not row[0, VOXELS]:
        return np.full((1, 1), 255, np.uint8)
    thin = np.linalg.eigh(covariance(row)[0])[1][:, 0]
    thin = thin if thin[1:] @ outwards[1:] >= 0 else -thin
    z, y = np.eye(3)[:2]
    across = z - thin[0] * thin
    if np.linalg.norm(across) < SIDEWAYS:
        across = y - thin[1] * thin
    down = across / np.linalg.norm(across)
    right = np.cross(down[::-1], thin[::-1])[::-1]  # of x, y, z, right-handed
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(voxels.shape) - 1)
    ends = np.array([(corners @ way).min() for way in (down, right)])
    size = [int(np.ptp(corners @ way)) + 2 for way in (down, right)]
    picture = np.zeros(size, np.uint8)
    project(voxels, runs, chosen, tuple(down), tuple(right), tuple(ends), picture)
    picture = ndimage.grey_closing(picture, 3)  # where lines of sight fall between voxels
    seen = tuple(slice(p.min(), p.max() + 1) for p in np.nonzero(picture))
    return np.pad(255 - picture[seen], PADDING, constant_values=255)


def _ink(everything: Bytes, own: Bytes) -> Bytes:
    """A projection as ink on paper: the component black, the rest grey."""
    return 255 - np.maximum(own, everything // 3)


def _outlined(grey: np.ndarray, own: Bytes) -> Bytes:
    inside = own > 0
    picture = np.repeat(stretch(grey)[..., None], 3, axis=2)
    picture[ndimage.binary_dilation(inside) & ~inside] = OUTLINE
    return picture


STYLE = """
body { font: 14px system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff }
table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: 4px 6px; text-align: center }
th { background: #eee; position: sticky; top: 0; cursor: pointer; max-width: 5em }
th.still { cursor: default } th[data-way="1"]::after { content: " \\25B2" }
th[data-way="-1"]::after { content: " \\25BC" }
img { height: 110px; min-width: 12px; max-width: 150px; object-fit: contain; image-rendering: pixelated }
code { font-size: 11px; user-select: all; display: block; width: 15em; text-align: left;
 overflow-wrap: anywhere }
pre { white-space: pre-wrap }
"""
SORT = """
document.querySelectorAll("th:not(.still)").forEach(head => head.addEventListener("click", () => {
  const at = [...head.parentNode.children].indexOf(head), body = document.querySelector("tbody");
  const way = head.dataset.way ? -head.dataset.way : (at < 2 ? 1 : -1);
  const value = row => parseFloat(row.cells[at].dataset.v ?? row.cells[at].textContent);
  document.querySelectorAll("th").forEach(other => delete other.dataset.way);
  head.dataset.way = way;
  body.append(...[...body.rows].sort((a, b) => way * (value(a) - value(b))));
}));
"""
