"""The parsers that are fuzzed: each takes damaged input and either returns or refuses it in one line."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
import tracemalloc
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import tifffile
import torch
import zarr
from hypothesis import strategies as st
from PIL import Image

from inkzarr.cli.options import Bytes, OneOrThree
from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.patches import read_patches
from inkzarr.core.ppm import open_ppm, read_mask, write_ppm
from inkzarr.core.store import open_stored
from inkzarr.core.tifxyz import open_tifxyz, write_tifxyz
from inkzarr.info import info
from inkzarr.nn.checkpoint import load_checkpoint, save_checkpoint
from inkzarr.nn.config import Config, read_config
from inkzarr.nn.unet import UNet3D
from inkzarr.readers import open_source
from inkzarr.readers.label_png import open_label
from inkzarr.readers.sheet import read_sheet
from tests.fuzz.damage import ODD_NUMBERS, ODD_WORDS, VALUES, damaged, documents, headers

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES = 128 * 2**20
"""Memory that any one input may take; what is well formed takes less than 1 MB."""
MOST_SECONDS = 20.0
"""Of this thread's time."""
SMALL = Box(Zyx(0, 0, 0), Zyx(1, 1, 1))


@dataclass(frozen=True)
class Parser:
    """One of them.

    Parameters
    ----------
    inputs : strategy
        What is parsed, some of it well formed.
    parse : callable
        Of an empty folder and an input.
    refusals : tuple of exception types
        That it may raise.
    """

    inputs: st.SearchStrategy[Any]
    parse: Callable[[Path, Any], object]
    refusals: tuple[type[Exception], ...] = (InputError, StoreError)

    def check(self, given: object) -> bool:
        """Parse in bounded time and memory; whether it was taken."""
        folder = Path(tempfile.mkdtemp(prefix="fuzz"))
        began = time.thread_time()
        tracemalloc.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.parse(folder, given)
            taken = True
        except self.refusals as error:
            told = error.format_message() if isinstance(error, click.ClickException) else str(error)
            assert told.strip(), "a refusal says something"
            lines = len(told.strip().splitlines())
            assert lines == 1, f"{lines} lines: {told!r}"
            taken = False
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            shutil.rmtree(folder)
        assert peak < MOST_BYTES, f"{peak} bytes of memory"
        assert time.thread_time() - began < MOST_SECONDS
        return taken


def _valid(write: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return (Path(folder) / name).read_bytes()


def _encoded(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


POINTS = np.stack(np.meshgrid(np.arange(4.0), np.arange(5.0), np.arange(1.0)), -1).reshape(5, 4, 3)
NORMALS = np.broadcast_to([1.0, 0.0, 0.0], POINTS.shape)
VOXELS = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


def parse_ppm(folder: Path, data: bytes) -> None:
    (folder / "a.ppm").write_bytes(data)
    surface = open_ppm(folder / "a.ppm")
    surface(slice(0, 2), slice(0, 2))


PPM = {"width": "4", "height": "5", "dim": "6", "ordered": "true", "type": "double", "version": "1"}
PPM_BODY = st.sampled_from([bytes(4 * 5 * 48), bytes(4 * 5 * 48 - 1), b"", bytes(48)])
PPM_INPUTS = st.one_of(
    damaged(_valid(lambda folder: write_ppm(folder / "a.ppm", POINTS, NORMALS), "a.ppm")),
    st.tuples(headers(PPM, ": "), st.sampled_from(["<>\n", "<>", ""]), PPM_BODY).map(
        lambda parts: _encoded(parts[0]) + parts[1].encode() + parts[2]
    ),
)


def parse_tifxyz(folder: Path, given: tuple[Any, ...]) -> None:
    meta, planes, shape = given
    (folder / "meta.json").write_bytes(meta)
    for name, plane in zip(("x", "y", "z", "mask"), planes, strict=True):
        if plane is not None:
            (folder / f"{name}.tif").write_bytes(plane)
    surface = open_tifxyz(folder, shape)
    surface(slice(0, min(2, surface.shape[0])), slice(0, min(2, surface.shape[1])))


META = {"format": "tifxyz", "scale": [0.5, 0.5], "type": "seg", "uuid": "a", "bbox": [[0, 0, 0], [1, 1, 1]]}
PLANE = _valid(lambda folder: write_tifxyz(folder, POINTS), "x.tif")
PACKED = _valid(
    lambda folder: tifffile.imwrite(folder / "x.tif", POINTS[..., 0].astype("f4"), compression="zlib"),
    "x.tif",
)
BYTES_OF_JSON = st.one_of(
    documents(META).map(lambda document: json.dumps(document).encode("utf-8", "replace")),
    damaged(json.dumps(META).encode()),
    st.just(b"[" * 100_000),
)
A_PLANE = st.one_of(st.just(PLANE), st.just(PACKED), damaged(PLANE, 2), damaged(PACKED, 2))
TIFXYZ_INPUTS = st.tuples(
    st.one_of(st.just(json.dumps(META).encode()), BYTES_OF_JSON),
    st.tuples(A_PLANE, st.just(PLANE), st.just(PLANE), st.one_of(st.none(), A_PLANE)),
    st.one_of(st.none(), st.tuples(st.integers(-1, 20), st.integers(0, 2**40))),
)


def parse_zarr(folder: Path, given: tuple[Any, ...]) -> None:
    files, chunk, chunk_name = given
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / chunk_name).parent.mkdir(parents=True, exist_ok=True)
    (folder / chunk_name).write_bytes(chunk)
    for url in (folder, folder / "0"):
        stored = open_stored(str(url))
        str(info(url))
        stored.read(SMALL)


def _written(zarr_format: int) -> tuple[dict[str, Any], bytes, str]:
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [7.91] * 3}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}], "version": "0.4"}
    attributes = (
        {"multiscales": [image]} if zarr_format == 2 else {"ome": {"version": "0.5", "multiscales": [image]}}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        group = zarr.create_group(folder, zarr_format=zarr_format, attributes=attributes)
        shards = {"shards": (3, 4, 5)} if zarr_format == 3 else {}
        group.create_array("0", data=VOXELS, chunks=(3, 4, 5), **shards)
        metadata = [
            p for p in folder.rglob("*") if p.is_file() and (p.name.startswith(".z") or p.suffix == ".json")
        ]
        (chunk,) = (p for p in folder.rglob("*") if p.is_file() and p not in metadata)
        told = {str(p.relative_to(folder)): json.loads(p.read_bytes()) for p in metadata}
        return told, chunk.read_bytes(), str(chunk.relative_to(folder))


def _zarr_inputs(zarr_format: int) -> st.SearchStrategy[Any]:
    told, chunk, name = _written(zarr_format)

    def files(documents_of: dict[str, Any]) -> dict[str, bytes]:
        return {
            path: json.dumps(document).encode("utf-8", "replace") for path, document in documents_of.items()
        }

    some = st.fixed_dictionaries(
        {path: st.one_of(st.just(doc), documents(doc)) for path, doc in told.items()}
    )
    codec = st.sampled_from(
        [None, "pickle", "zlib", "gzip", "blosc", "lz4", "bz2", "lzma", "json2", "delta", "vlen-utf8"]
    )

    def with_codec(pair: tuple[dict[str, Any], str | None]) -> dict[str, Any]:
        documents_of, kind = pair
        array = documents_of.get("0/.zarray")
        if isinstance(array, dict) and kind is not None:
            array = array | {"compressor": {"id": kind}}
            return documents_of | {"0/.zarray": array}
        return documents_of

    return st.tuples(st.tuples(some, codec).map(with_codec).map(files), damaged(chunk, 2), st.just(name))


ZARR_INPUTS = st.one_of(_zarr_inputs(2), _zarr_inputs(3))


def parse_toml(folder: Path, data: bytes) -> None:
    (folder / "run.toml").write_bytes(data)
    config = read_config(folder / "run.toml")
    again = folder / "again.toml"
    again.write_text(config.to_toml())
    assert read_config(again) == config, "what is written is what was read"


RUN = Config(
    window=(16, 32, 32), network={"f_maps": 8, "levels": 3}, scans=({"volume": "a.zarr", "labels": "l"},)
)
RUN_LINES = [line for line in RUN.to_toml().splitlines() if line]
TOML_VALUES = st.one_of(
    ODD_NUMBERS.map(str),
    ODD_WORDS.map(lambda word: json.dumps(word)),
    VALUES.map(lambda value: json.dumps(value)),
    st.sampled_from(
        ["[" * 5000, "{" * 3000, "1979-05-27", "0x7fffffffffffffffffff", "9" * 5000, "inf", "nan"]
    ),
)
TOML_INPUTS = st.one_of(
    damaged(RUN.to_toml().encode()),
    st.tuples(st.sampled_from(RUN_LINES), TOML_VALUES).map(
        lambda pair: (pair[0].split(" = ")[0] + (f" = {pair[1]}" if " = " in pair[0] else "")).encode(
            "utf-8", "replace"
        )
    ),
    st.lists(st.tuples(st.sampled_from(sorted(Config.model_fields)), TOML_VALUES), max_size=3).map(
        lambda pairs: "\n".join(f"{key} = {value}" for key, value in dict(pairs).items()).encode(
            "utf-8", "replace"
        )
    ),
)


def parse_words(_folder: Path, given: tuple[str, str]) -> None:
    kind, text = given
    if kind == "box":
        box = Box.parse(text, Zyx(10, 20, 30))
        assert not box.empty
        assert Box.parse(str(box), Zyx(10, 20, 30)) == box
    elif kind == "bytes":
        assert Bytes().convert(text, None, None) >= 0
    else:
        assert min(OneOrThree().convert(text, None, None)) >= 1


BOUND = st.one_of(st.integers(-5, 40).map(str), ODD_NUMBERS.map(str), ODD_WORDS, st.just("9" * 5000))
AXIS = st.one_of(st.tuples(BOUND, BOUND).map(":".join), BOUND)
WORDS = st.one_of(
    st.lists(AXIS, max_size=4).map(",".join),
    st.tuples(ODD_NUMBERS.map(str), st.sampled_from(["", "k", "M", "GB", "TiB", "x"])).map("".join),
    st.lists(BOUND, max_size=4).map(",".join),
    st.text(max_size=20),
)
WORD_INPUTS = st.tuples(st.sampled_from(["box", "bytes", "three"]), WORDS)


def parse_nrrd(folder: Path, given: tuple[str, bytes, bytes]) -> None:
    name, header, body = given
    (folder / name).write_bytes(header + (b"" if name.endswith("nhdr") else body))
    (folder / "a.raw").write_bytes(body)
    open_source(str(folder / name)).read(SMALL)


NRRD = {
    "type": "uint8",
    "dimension": "3",
    "sizes": "5 4 3",
    "encoding": "raw",
    "endian": "little",
    "spacings": "7.91 7.91 7.91",
    "space units": '"um" "um" "um"',
}
NRRD_OPTIONS = {"data file": "a.raw", "line skip": "0", "byte skip": "0", "kinds": "domain domain domain"}
NRRD_INPUTS = st.tuples(
    st.sampled_from(["a.nrrd", "a.nhdr"]),
    st.tuples(headers(NRRD, ": "), headers(NRRD_OPTIONS, ": "), st.sampled_from(["raw", "gzip", "gz"])).map(
        lambda parts: (
            b"NRRD0004\n"
            + _encoded([line.replace("encoding: raw", f"encoding: {parts[2]}") for line in parts[0]])
            + _encoded(parts[1])
            + b"\n"
        )
    ),
    st.one_of(st.just(VOXELS.tobytes()), st.binary(max_size=70)),
)


def _png(mode: str) -> bytes:
    picture = Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10) * 3)
    if mode == "I;16":
        picture = Image.fromarray((np.arange(80, dtype=np.uint16).reshape(8, 10)) * 700)
    file = io.BytesIO()
    (picture if mode == "I;16" else picture.convert(mode)).save(file, format="PNG")
    return file.getvalue()


def parse_png(folder: Path, data: bytes) -> None:
    path = folder / "a.png"
    path.write_bytes(data)
    refused = []
    for read in (_read_label, lambda png: read_mask(png, (8, 10)), read_sheet):
        try:
            read(path)
        except InputError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _read_label(path: Path) -> None:
    label = open_label(path)
    label.check_size((8, 10), (8, 10))
    label.read((8, 10))
    label.nonzero((8, 10))


PNG_INPUTS = st.sampled_from(["L", "1", "P", "RGB", "RGBA", "LA", "I;16"]).map(_png).flatmap(damaged)


def parse_tiff(folder: Path, data: bytes) -> None:
    for name in ("0.tif", "1.tif"):
        (folder / name).write_bytes(data)
    open_source(str(folder)).read(SMALL)
    open_source(str(folder / "0.tif")).read(SMALL)


def _tiff(**settings: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, VOXELS[0], **settings)
    return file.getvalue()


TIFFS = [
    _tiff(),
    _tiff(compression="zlib"),
    _tiff(compression="lzw", rowsperstrip=1),
    _tiff(tile=(16, 16), compression="zlib"),
    _tiff(bigtiff=True),
    _tiff(imagej=True),
]
TIFF_INPUTS = st.sampled_from(TIFFS).flatmap(damaged)


def parse_checkpoint(folder: Path, data: bytes) -> None:
    (folder / "unet.pt").write_bytes(data)
    load_checkpoint(folder / "unet.pt")


def _checkpoints() -> list[bytes]:
    torch.manual_seed(0)
    model = UNet3D(f_maps=4, levels=2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return [_valid(lambda folder: save_checkpoint(folder / "a.pt", model), "a.pt"), file.getvalue()]


CHECKPOINT_INPUTS = st.sampled_from(_checkpoints()).flatmap(damaged)


def parse_table(folder: Path, given: tuple[str, bytes]) -> None:
    name, data = given
    (folder / name).write_bytes(data)
    read_patches(folder / name)


NPY = _valid(lambda folder: np.save(folder / "a.npy", np.arange(12).reshape(4, 3)), "a.npy")
TABLE_INPUTS = st.tuples(st.just("a.npy"), damaged(NPY))

PARSERS = {
    "PPM": Parser(PPM_INPUTS, parse_ppm),
    "tifxyz": Parser(TIFXYZ_INPUTS, parse_tifxyz),
    "Zarr and OME metadata": Parser(ZARR_INPUTS, parse_zarr),
    "TOML": Parser(TOML_INPUTS, parse_toml),
    "boxes, sizes, memory": Parser(WORD_INPUTS, parse_words, (InputError, click.UsageError)),
    "NRRD": Parser(NRRD_INPUTS, parse_nrrd),
    "PNG": Parser(PNG_INPUTS, parse_png),
    "TIFF": Parser(TIFF_INPUTS, parse_tiff),
    "checkpoint": Parser(CHECKPOINT_INPUTS, parse_checkpoint),
    "table of windows": Parser(TABLE_INPUTS, parse_table),
}
