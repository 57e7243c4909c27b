"""View: volumes as layers in Neuroglancer, from a server on this machine; it works offline.

::

    volume (local, http, s3) ──> store, careful ──> 127.0.0.1 ──> Neuroglancer in the browser
                                                    only the arrays' own keys

The browser asks for the chunks that it shows, of the pyramid level that fits its zoom; they are sent as they
are stored. Each layer is told to the browser as an OME-Zarr group made up from what is known of the volume,
so that bare arrays, label groups and groups of other tools all look the same to it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import time
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.extras import require
from inkzarr.core.geometry import Grid, Zyx
from inkzarr.core.ome import read_levels
from inkzarr.core.picture import contrast
from inkzarr.core.schema import DIMS, INK
from inkzarr.core.store import open_all, open_stored
from inkzarr.core.volume import StoredVolume, warn_unfinished

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest

HOST = "127.0.0.1"
REQUESTS_AT_ONCE = 16
PIXELS_ACROSS = 350
"""On the screen that a whole volume takes at first."""
KEY = re.compile(r"\.zarray|zarr\.json|(?:c[/.])?\d+(?:[/.]\d+)*")
"""What is served of an array: its metadata and its chunks. No other key, so no way out of it."""
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
SHOWN = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32")
"""Dtypes that Neuroglancer has."""
COLOURS = ("#ff5a00", "#00c8ff", "#b4ff00", "#ff00c8")
"""Of the layers after the first, in turn."""
GREY = """#uicontrol invlerp normalized(range=[{low}, {high}])
void main() {{
  emitGrayscale(normalized());
}}
"""
OVERLAY = """#uicontrol vec3 colour color(default="{colour}")
#uicontrol float threshold slider(min=0, max=1, default=0.25)
void main() {{
  float ink = toNormalized(getDataValue());
  emitRGBA(vec4(colour, ink < threshold ? 0.0 : ink));
}}
"""


@dataclass(frozen=True)
class Layer:
    """One volume as the browser sees it.

    Parameters
    ----------
    name : str
        Shown in the browser.
    levels : tuple of StoredVolume
        Resolutions, finest first; the browser knows them as ``0``, ``1``, ...
    spacing : tuple of three floats
        Edges of a voxel of the finest level along z, y and x in micrometres; 1 where not `known`.
    known : bool
        Whether the size of a voxel is known, of this volume or of another that is shown.
    """

    name: str
    levels: tuple[StoredVolume, ...]
    spacing: tuple[float, ...]
    known: bool

    @property
    def zarr_format(self) -> int:
        """2 or 3."""
        return int(self.levels[0].array.metadata.zarr_format)

    def document(self, name: str) -> bytes | None:
        """A metadata document of the made-up group; None where it has none of that name."""
        unit = {"unit": "micrometer"} if self.known else {}
        axes = [{"name": dim, "type": "space", **unit} for dim in DIMS]
        datasets = [
            {"path": str(n), "coordinateTransformations": self._place(n)} for n in range(len(self.levels))
        ]
        image = {"name": self.name, "axes": axes, "datasets": datasets}
        documents: dict[str, dict[str, Any]] = {
            "zarr.json": {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {"ome": {"version": "0.5", "multiscales": [image]}},
            }
        }
        if self.zarr_format == 2:
            image = {"version": "0.4", **image}
            documents = {".zgroup": {"zarr_format": 2}, ".zattrs": {"multiscales": [image]}}
        return json.dumps(documents[name]).encode() if name in documents else None

    def _place(self, number: int) -> list[dict[str, Any]]:
        stored, finest = self.levels[number], self.levels[0].shape
        factors = [round(n / m) for n, m in zip(finest, stored.shape, strict=True)]
        spacing = stored.level.spacing_um or [s * f for s, f in zip(self.spacing, factors, strict=True)]
        moves = {"type": "translation", "translation": list(stored.level.origin_um)}
        return [{"type": "scale", "scale": list(spacing)}, *([moves] if any(stored.level.origin_um) else [])]

    def grey_range(self) -> tuple[float, float]:
        """Grey levels from black to white: all but the darkest and brightest of one chunk in the middle."""
        stored = self.levels[-1]
        grid = Grid(stored.shape, stored.chunks)
        voxels = stored.read(grid.box(Zyx(*(n // 2 for n in grid.counts))))
        low, high = contrast(voxels) or (0.0, 0.0)
        if low < high:
            return low, high
        whole = np.dtype(stored.dtype).kind in "ui"
        return (0.0, float(np.iinfo(stored.dtype).max)) if whole else (0.0, 1.0)


@dataclass
class Viewing:
    """A running server, until the process ends.

    Parameters
    ----------
    url : str
        Where the browser finds it; holds a secret, without which nothing is served.
    layers : tuple of Layer
        What is shown.
    served : list of str
        Every chunk that was sent: number of its layer, level, chunk.
    viewer : neuroglancer.Viewer
        Whose state can be read and changed.
    """

    url: str
    layers: tuple[Layer, ...]
    served: list[str] = field(default_factory=list)
    viewer: Any = field(default=None, repr=False)

    def wait(self) -> None:
        """Stay until interrupted."""
        while True:  # a signal that comes just before a wait without end would not end it
            time.sleep(1)


def view(
    volume_urls: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    browser: bool = True,
    storage_options: dict[str, Any] | None = None,
) -> Viewing:
    """Show volumes as layers in Neuroglancer: the first in grey, the others in colour over it.

    Parameters
    ----------
    volume_urls : path or sequence of paths
        Scan first, then predictions and labels; OME-Zarr groups, bare arrays or label groups, local or
        remote.
    browser : bool
        Whether a browser is opened.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    Viewing
        With its `url`; the server runs on this process's threads, on 127.0.0.1 alone.

    Raises
    ------
    InputError
        Nothing to show, a volume that Neuroglancer cannot read, or Neuroglancer is not installed.
    StoreError
        A store failed; a chunk that cannot be had later is an error in the browser.
    """
    if not volume_urls:
        msg = "no volume to view: give at least one, the scan first"
        raise InputError(msg)
    urls = [volume_urls] if isinstance(volume_urls, (str, PathLike)) else volume_urls
    layers = open_layers([str(url) for url in urls], storage_options=storage_options)
    viewing = _serve(layers)
    _show(viewing)
    if browser:
        webbrowser.open(viewing.url)
    return viewing


def open_layers(urls: Sequence[str], *, storage_options: dict[str, Any] | None = None) -> tuple[Layer, ...]:
    """Open the volumes; one whose voxel size is unknown has that of the first whose is known."""
    volumes: list[list[StoredVolume]] = []
    for url in urls:
        levels = open_all(url, storage_options=storage_options)
        warn_unfinished(levels)
        if ink := [stored for stored in levels if stored.level.path == INK.name]:
            listed = range(len(read_levels(ink[0].attributes)))
            levels = [open_stored(url, level=n, storage_options=storage_options) for n in listed] or ink
        for stored in levels:
            if stored.array.metadata.zarr_format == 2 and stored.array.filters:
                msg = f"{url} has filters, which Neuroglancer does not read: ingest it anew"
                raise InputError(msg)
            if stored.dtype.name not in SHOWN:
                msg = f"{url} holds {stored.dtype.name}, which Neuroglancer does not show: make it float32"
                raise InputError(msg)
        volumes.append(levels)
    sizes = [levels[0].voxel_size_um for levels in volumes]
    known = next(filter(None, sizes), None)
    layers = []
    for levels, um in zip(volumes, sizes, strict=True):
        spacing = levels[0].level.spacing_um or (um or known or 1.0,) * len(DIMS)
        layers.append(Layer(levels[0].name, tuple(levels), spacing, known is not None))
    return tuple(layers)


def read_key(stored: StoredVolume, key: str, span: ByteRequest | None) -> tuple[bytes, int] | None:
    """What is stored at a key of an array, or a part of it, and how long the whole is; None where nothing is.

    Raises
    ------
    StoreError
        The store failed.
    """
    if not KEY.fullmatch(key):
        return None
    store, path = stored.array.store, f"{stored.array.path}/{key}".lstrip("/")
    found = sync(store.get(path, default_buffer_prototype(), span))
    if found is None:
        return None
    body = found.to_bytes()
    return body, len(body) if span is None else sync(store.getsize(path))


def parse_range(header: str | None) -> ByteRequest | None:
    """The part of a body that an HTTP ``Range`` asks for; None for all of it.

    Examples
    --------
    >>> parse_range("bytes=10-19"), parse_range("bytes=-8"), parse_range(None)
    (RangeByteRequest(start=10, end=20), SuffixByteRequest(suffix=8), None)
    """
    match = RANGE.fullmatch(header or "")
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return SuffixByteRequest(int(last))
    return RangeByteRequest(int(first), int(last) + 1) if last else OffsetByteRequest(int(first))


def _serve(layers: tuple[Layer, ...]) -> Viewing:
    """Start Neuroglancer's server, and let it hand out the layers' chunks under the viewer's secret."""
    neuroglancer = require("neuroglancer", "view", "view")
    server = importlib.import_module("neuroglancer.server")
    web = importlib.import_module("tornado.web")
    server.set_server_bind_address(HOST, 0)
    viewer = neuroglancer.Viewer()
    viewing = Viewing(viewer.get_viewer_url(), layers, viewer=viewer)
    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="view")

    class Chunks(web.RequestHandler):  # type: ignore[name-defined, misc]
        """Answers with a document of a layer, or a key of one of its arrays."""

        async def get(self, number: str, rest: str) -> None:
            layer = layers[int(number)] if int(number) < len(layers) else None
            document = layer.document(rest) if layer else None
            level, _, key = rest.partition("/")
            if layer and document is None and level.isdecimal() and int(level) < len(layer.levels):
                span = parse_range(self.request.headers.get("Range"))
                loop = asyncio.get_running_loop()
                try:
                    found = await loop.run_in_executor(pool, read_key, layer.levels[int(level)], key, span)
                except StoreError as error:
                    raise web.HTTPError(502, reason="the store failed", log_message=str(error)) from error
                if found is not None:
                    document, whole = found
                    viewing.served.append(f"{number}/{rest}")
                    if span is not None:
                        first = getattr(span, "start", getattr(span, "offset", whole - len(document)))
                        self.set_status(206)
                        told = f"bytes {first}-{first + len(document) - 1}/{whole}"
                        self.set_header("Content-Range", told)
            if document is None:
                raise web.HTTPError(404)
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Cache-Control", "no-store")
            self.finish(document)

    server.global_server.app.add_handlers(r".*", [(rf"^/volumes/{viewer.token}/(\d+)/(.+)$", Chunks)])
    return viewing


def _show(viewing: Viewing) -> None:
    """Say to the browser what the layers are, where it looks, and how the voxels are coloured."""
    neuroglancer = require("neuroglancer", "view", "view")
    viewer, first = viewing.viewer, viewing.layers[0]
    root = viewing.url.rsplit("/v/", 1)[0]
    with viewer.txn() as state:
        state.dimensions = neuroglancer.CoordinateSpace(
            names=DIMS, units="um" if first.known else "", scales=first.spacing
        )
        state.display_dimensions = list(reversed(DIMS))
        state.position = [n / 2 for n in first.levels[0].shape]
        state.cross_section_scale = max(first.levels[0].shape) / PIXELS_ACROSS
        state.projection_scale = 2 * max(first.levels[0].shape)
        state.layout = "4panel"
        for number, layer in enumerate(viewing.layers):
            low, high = layer.grey_range() if number == 0 else (0.0, 1.0)
            colour = COLOURS[(number - 1) % len(COLOURS)]
            shader = OVERLAY.format(colour=colour) if number else GREY.format(low=low, high=high)
            source = f"zarr{layer.zarr_format}://{root}/volumes/{viewer.token}/{number}/"
            shown = neuroglancer.ImageLayer(source=source, shader=shader, opacity=1.0)
            taken = {one.name for one in state.layers}
            name = layer.name if layer.name not in taken else f"{layer.name} {number}"
            state.layers.append(name=name, layer=shown)
