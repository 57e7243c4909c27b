"""Info: what a volume is, told from its metadata alone; in Jupyter with a picture of its middle."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inkzarr.core.card import as_text, card
from inkzarr.core.errors import InkzarrError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.ledger import DONE
from inkzarr.core.picture import png, stretch
from inkzarr.core.progress import size
from inkzarr.core.remote import is_remote, without_secrets
from inkzarr.core.store import open_all
from inkzarr.core.volume import StoredVolume

if TYPE_CHECKING:
    from os import PathLike

THUMBNAIL_CHUNKS = 16
THUMBNAIL_BYTES = 2**29
"""Decoded bytes that a thumbnail may read, but for its first chunk."""
THUMBNAIL_PIXELS = 512
SIZED_CHUNKS = 4096
"""Chunk files whose sizes are asked for; of more, as many are taken as a sample."""


@dataclass(frozen=True)
class LevelInfo:
    """One level of an image, or one array of a label group.

    Parameters
    ----------
    path : str
        In the group; "" for a bare array.
    shape, chunks : Zyx
        In voxels.
    shards : Zyx or None
        In voxels; Zarr 3 only.
    dtype : numpy.dtype
        Of one voxel.
    codec : str
        How chunks are stored, in words.
    spacing_um : tuple of three floats, or None
        Edges of a voxel along z, y and x in micrometres, where known.
    nbytes : int
        Of all voxels, before compression.
    stored_bytes : int or None
        On a local disk; None elsewhere.
    occupied : float or None
        Part of the chunks (shards) that hold anything: by the ledger, else by the files on a local disk;
        None where neither tells.
    sampled : bool
        Whether `stored_bytes`, and `occupied` without a ledger, are estimates from a sample of the chunks.
    state : str
        Of the ledger: ``done``, ``unfinished: 12 of 64 chunks`` or ``no ledger``.
    """

    path: str
    shape: Zyx
    chunks: Zyx
    shards: Zyx | None
    dtype: np.dtype[Any]
    codec: str
    spacing_um: tuple[float, ...] | None
    nbytes: int
    stored_bytes: int | None
    occupied: float | None
    sampled: bool
    state: str

    def row(self) -> dict[str, str]:
        """What is shown of it, by column."""
        about = "~" if self.sampled else ""
        sizes = sorted(set(self.spacing_um or ()))
        shown = sizes if len(sizes) < 2 else list(self.spacing_um or ())
        return {
            "path": self.path or ".",
            "shape": _three(self.shape),
            "dtype": self.dtype.name,
            "chunks": _three(self.chunks),
            "shards": "-" if self.shards is None else _three(self.shards),
            "codec": self.codec,
            "voxel (µm)": ",".join(f"{um:g}" for um in shown) or "unknown",
            "raw": size(self.nbytes),
            "stored": "unknown" if self.stored_bytes is None else about + size(self.stored_bytes),
            "occupied": "unknown" if self.occupied is None else f"{100 * self.occupied:.3g} %",
            "ledger": self.state,
        }


@dataclass(frozen=True)
class VolumeInfo:
    """What a volume is.

    Parameters
    ----------
    url : str
        As it was asked for, without anything secret.
    zarr_format : int
        2 or 3.
    levels : tuple of LevelInfo
        Finest first; of a label group, the arrays of each level.
    lineage : dict
        What made it, where inkzarr did.
    unfinished : str
        How much is missing of a run that was not finished, and the remedy; else empty.
    """

    url: str
    zarr_format: int
    levels: tuple[LevelInfo, ...]
    lineage: dict[str, Any]
    unfinished: str
    _coarsest: StoredVolume = field(repr=False, compare=False)

    def __str__(self) -> str:
        """A text table."""
        rows = [level.row() for level in self.levels]
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        lines = [f"{self.url}  (Zarr v{self.zarr_format})", "  ".join(n.ljust(w) for n, w in widths.items())]
        lines += ["  ".join(row[name].ljust(width) for name, width in widths.items()) for row in rows]
        lines += [f"{name}: {as_text(value)}" for name, value in self.lineage.items()]
        lines += filter(None, [self.unfinished])
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        """For Jupyter: a thumbnail and the table; all text is escaped."""
        rows = [level.row() for level in self.levels]
        title = f"{self.url} (Zarr v{self.zarr_format})"
        try:
            picture, caption = thumbnail(self._coarsest), "the middle slice"
        except InkzarrError as error:
            picture, caption = b"", f"no picture: {error}"
        caption = "; ".join(filter(None, [self.unfinished, caption]))
        return card(title, self.lineage, table=rows, picture=picture, caption=caption)


def info(
    url: str | PathLike[str],
    *,
    storage_options: dict[str, Any] | None = None,
) -> VolumeInfo:
    """Say what a volume is, from its metadata and ledger alone; no voxel is read.

    Parameters
    ----------
    url : str
        An OME-Zarr group, a label group or a bare array; local path or URL.
    storage_options : dict, optional
        For fsspec.

    Returns
    -------
    VolumeInfo
        Prints as a table; in Jupyter it shows the middle slice too, for at most 16 chunks read.

    Raises
    ------
    InputError
        Nothing there, or not volumes of three axes.
    StoreError
        The store failed.

    Examples
    --------
    >>> import zarr
    >>> folder = getfixture("tmp_path")
    >>> _ = zarr.save_array(folder / "scan.zarr", np.zeros((4, 8, 8), "uint8"))
    >>> found = info(folder / "scan.zarr")
    >>> found.levels[0].shape, found.levels[0].nbytes, found.levels[0].state
    (Zyx(z=4, y=8, x=8), 256, 'no ledger')
    """
    arrays = open_all(str(url), storage_options=storage_options)
    levels = tuple(_level(stored) for stored in arrays)
    zarr_format = int(arrays[0].array.metadata.zarr_format)
    unfinished = next(filter(None, (stored.unfinished() for stored in arrays)), "")
    url = without_secrets(arrays[0].url)
    return VolumeInfo(url, zarr_format, levels, arrays[0].lineage, unfinished, arrays[-1])


def thumbnail(stored: StoredVolume) -> bytes:
    """A PNG of a volume's middle slice, or of the slice's middle where it spans more than 16 chunks.

    Parameters
    ----------
    stored : StoredVolume
        Best its coarsest level.

    Returns
    -------
    bytes
        A grey PNG of at most 512 x 512 pixels, contrast stretched.

    Raises
    ------
    StoreError
        A chunk cannot be read.
    """
    plane = stored.read(_middle(stored))[0]
    step = max(1, math.ceil(max(plane.shape) / THUMBNAIL_PIXELS))
    return png(stretch(plane), shrink=step)


def _middle(stored: StoredVolume) -> Box:
    """The part of the middle slice that a thumbnail reads, made of whole chunks.

    ::

        +---+---+---+---+---+---+      6 x 5 chunks: the 4 x 4 in their middle
        |   | # | # | # | # |   |
    """
    grid = Grid(stored.shape, stored.chunks)
    chunk = stored.chunks.volume * stored.dtype.itemsize
    most = max(1, min(THUMBNAIL_CHUNKS, THUMBNAIL_BYTES // chunk))
    _, rows, columns = grid.counts
    high = min(rows, math.isqrt(most))
    wide = min(columns, most // high)
    high = min(rows, most // wide)
    z = stored.shape.z // 2
    first = Zyx(z // stored.chunks.z, (rows - high) // 2, (columns - wide) // 2)
    start = grid.box(first).start
    stop = grid.box(Zyx(first.z, first.y + high - 1, first.x + wide - 1)).stop
    return Box(start._replace(z=z), stop._replace(z=z + 1))


def _level(stored: StoredVolume) -> LevelInfo:
    um = stored.voxel_size_um
    shards = stored.array.shards
    stored_bytes, occupied, sampled = _stored_files(stored)
    state, recorded = _ledger(stored)
    return LevelInfo(
        path=stored.level.path,
        shape=stored.shape,
        chunks=stored.chunks,
        shards=None if shards is None else Zyx(*shards),
        dtype=stored.dtype,
        codec=_codec(stored),
        spacing_um=stored.level.spacing_um or (None if um is None else (um,) * 3),
        nbytes=stored.shape.volume * stored.dtype.itemsize,
        stored_bytes=stored_bytes,
        occupied=occupied if recorded is None else recorded,
        sampled=sampled,
        state=state,
    )


def _ledger(stored: StoredVolume) -> tuple[str, float | None]:
    """How far the run is, in the chunks that it was to write; and the part of them that hold anything."""
    if stored.ledger is None or stored.ledger.manifest is None:
        return "no ledger", None
    manifest, table, cells = stored.ledger.manifest, stored.ledger.chunk_table(), stored.ledger.cells.slices
    done = table.done[cells]
    occupied = np.count_nonzero(table.nonzero[cells]) / done.size
    if manifest.state == DONE:
        return "done", occupied
    return f"unfinished: {np.count_nonzero(done)} of {done.size} chunks", occupied


def _codec(stored: StoredVolume) -> str:
    names = [*stored.array.filters, *stored.array.compressors]
    return ", ".join(_codec_name(codec) for codec in names) or "raw"


def _codec_name(codec: Any) -> str:  # noqa: ANN401 - numcodecs and zarr have no type in common
    """A codec and its settings, from its own metadata: ``blosc zstd 1``."""
    config = codec.get_config() if hasattr(codec, "get_config") else codec.to_dict()
    name = str(config.get("id") or config.get("name", "unknown")).removeprefix("numcodecs.")
    settings = config.get("configuration", config)
    shown = [str(settings[key]) for key in ("cname", "clevel", "level") if key in settings]
    return " ".join([name, *shown])


def _stored_files(stored: StoredVolume) -> tuple[int | None, float | None, bool]:
    """Bytes of the chunk files on a local disk, the part that is there, and whether these are estimates."""
    if is_remote(stored.url):
        return None, None, False
    unit = stored.array.shards or stored.array.chunks
    counts = Grid(stored.shape, Zyx(*unit)).counts
    count = counts.volume
    taken = (
        range(count) if count <= SIZED_CHUNKS else np.linspace(0, count - 1, SIZED_CHUNKS).astype(np.int64)
    )
    folder = Path(stored.url.removeprefix("file://"), stored.array.path)
    encode = stored.array.metadata.encode_chunk_key
    total = there = 0
    for at in taken:
        path = folder / encode(tuple(map(int, np.unravel_index(at, counts))))
        try:
            total += path.stat().st_size
            there += 1
        except OSError:
            continue
    return total * count // len(taken), there / len(taken), len(taken) < count


def _three(numbers: Zyx) -> str:
    return ",".join(map(str, numbers))
