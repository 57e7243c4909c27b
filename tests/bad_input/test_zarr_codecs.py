"""Zarr arrays that would run code, or unpack to what no memory holds."""

import bz2
import json
import lzma
import os
import pickle
import struct
import tracemalloc

import imagecodecs
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import inkzarr
from inkzarr.core.bounded import STREAMS, unpack
from inkzarr.core.errors import DiskError, InputError
from inkzarr.core.geometry import Box
from inkzarr.core.store import open_stored, open_volume
from inkzarr.ingest import IngestSettings

EDGE = 16
BOMB = 64_000_000


def write_v2(folder, *, compressor=None, filters=None, chunk=b"", dtype="|u1", **changed):
    """A bare array of one chunk, its metadata as told."""
    folder.mkdir()
    told = {"zarr_format": 2, "shape": [EDGE] * 3, "chunks": [EDGE] * 3, "dtype": dtype, "order": "C"}
    told |= {"compressor": compressor, "filters": filters, "fill_value": 0} | changed
    (folder / ".zarray").write_text(json.dumps(told))
    (folder / "0.0.0").write_bytes(chunk)
    return folder


def write_v3(folder, codecs, chunk, **changed):
    folder.mkdir()
    told = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [EDGE] * 3,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [EDGE] * 3}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
    }
    (folder / "zarr.json").write_text(json.dumps(told | changed))
    (folder / "c" / "0" / "0").mkdir(parents=True)
    (folder / "c" / "0" / "0" / "0").write_bytes(chunk)
    return folder


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("place", ["compressor", "filters", "both"])
@pytest.mark.parametrize("dtype", ["|u1", "|O"])
def test_no_pickle_is_ever_read(place, dtype, tmp_path):
    codec = {"id": "pickle", "protocol": 4}
    told = {"compressor": {"compressor": codec}, "filters": {"filters": [codec]}}
    told["both"] = {
        "filters": [{"id": "delta", "dtype": "|u1"}, codec],
        "compressor": {"id": "zlib", "level": 1},
    }
    body = pickle.dumps([Malice(tmp_path / "ran")])
    chunk = numcodecs.Zlib(1).encode(body) if place == "both" else body
    url = write_v2(tmp_path / "a.zarr", dtype=dtype, chunk=chunk, **told[place])
    with pytest.raises(InputError, match=r"cannot be used|is packed by codec 'pickle'"):
        open_volume(url).load()
    assert not (tmp_path / "ran").exists()


def test_a_pickle_in_a_group_without_levels(tmp_path):
    group = tmp_path / "group.zarr"
    group.mkdir()
    (group / ".zgroup").write_text('{"zarr_format": 2}')
    write_v2(group / "0", compressor={"id": "pickle"})
    with pytest.raises(InputError, match=r"the metadata of 0 at .*group.zarr cannot be used"):
        open_stored(str(group))


@pytest.mark.parametrize("codec", ["json2", "msgpack2", "vlen-utf8", "categorize", "base64", "pcodec"])
def test_codecs_that_make_objects_are_refused(codec, tmp_path):
    told = {"id": codec, **({"labels": ["a"], "dtype": "<U1"} if codec == "categorize" else {})}
    url = write_v2(tmp_path / "a.zarr", compressor={"id": "zlib", "level": 1}, filters=[told])
    with pytest.raises(InputError, match=f"is packed by codec '{codec}', which is not read|cannot be used"):
        open_stored(str(url))


BOMBS = {
    "zstd": lambda zeros: numcodecs.Zstd(1).encode(zeros),
    "blosc": lambda zeros: numcodecs.Blosc("zstd", 1).encode(zeros),
    "lz4": lambda zeros: numcodecs.LZ4().encode(zeros),
    "gzip": lambda zeros: numcodecs.GZip(1).encode(zeros),
    "zlib": lambda zeros: numcodecs.Zlib(1).encode(zeros),
    "bz2": lambda zeros: bz2.compress(zeros, 1),
    "lzma": lambda zeros: lzma.compress(zeros, preset=0),
}
SIZELESS = struct.pack("<I", 0xFD2FB528) + bytes([0, 0x58])
"""A zstd frame that tells no size, with a window of 2 MiB."""


def sizeless_zstd(count):
    """Blocks of 128 KiB of zeros, four bytes each."""
    block, last = (131072 << 3 | 2).to_bytes(3, "little"), (131072 << 3 | 3).to_bytes(3, "little")
    return SIZELESS + (block + b"\0") * (count - 1) + last + b"\0"


@pytest.fixture(scope="module")
def bombs():
    zeros = bytes(BOMB)
    made = {name: bytes(pack(zeros)) for name, pack in BOMBS.items()}
    return made | {"sizeless": sizeless_zstd(BOMB // 131072)}


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, "v2") for name in [*BOMBS, "sizeless"]]
    + [(name, layout) for name in ("zstd", "blosc", "gzip", "sizeless", "bz2") for layout in ("v3", "shard")],
)
def test_a_bomb_is_not_unpacked(name, layout, bombs, tmp_path):
    body, codec = bombs[name], "zstd" if name == "sizeless" else name
    if layout == "v2":
        url = write_v2(tmp_path / "a.zarr", compressor={"id": codec}, chunk=body)
    else:
        settings = {"zstd": {"level": 1, "checksum": False}, "gzip": {"level": 1}, "blosc": BLOSC}.get(
            codec, {}
        )
        packed = {"name": codec if codec in ("zstd", "gzip", "blosc") else f"numcodecs.{codec}"}
        codecs = [{"name": "bytes"}, packed | {"configuration": settings}]
        if layout == "shard":
            body += struct.pack("<QQ", 0, len(body))
            inner = {
                "chunk_shape": [EDGE] * 3,
                "codecs": codecs,
                "index_codecs": [{"name": "bytes", **LITTLE}],
            }
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
        url = write_v3(tmp_path / "a.zarr", codecs, body)

    def read():
        with pytest.raises(DiskError, match=r"does not decode"):
            open_stored(str(url)).read(Box.whole((EDGE,) * 3))

    assert peak_of(read) < len(body) * 3 + 8_000_000
    travelled = pickle.loads(pickle.dumps(open_stored(str(url))))
    with pytest.raises(DiskError, match=r"does not decode"):
        travelled[0:1, 0:1, 0:1]


LITTLE = {"configuration": {"endian": "little"}}
BLOSC = {"cname": "zstd", "clevel": 1, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0}


@given(data=st.binary(min_size=1, max_size=300), extra=st.integers(-3, 3), kind=st.sampled_from([*BOMBS]))
def test_unpacking_gives_all_or_refuses(data, extra, kind):
    packed, codec = bytes(BOMBS[kind](data)), numcodecs.get_codec({"id": kind})
    most = max(0, len(data) + extra)
    if len(data) > most:
        with pytest.raises(ValueError, match=r"it unpacks to .* at most"):
            unpack(kind, codec.decode, packed, most)
    else:
        assert bytes(unpack(kind, codec.decode, packed, most)) == data
    if kind in STREAMS:
        with pytest.raises(ValueError, match=r"it ends early|it is damaged"):
            unpack(kind, codec.decode, packed[:-1], most + 3)


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=2, max_size=4))
def test_streams_may_follow_each_other(parts):
    for kind in ("gzip", "bz2"):
        packed = b"".join(bytes(BOMBS[kind](part)) for part in parts)
        assert unpack(kind, bytes, packed, 200) == b"".join(parts)


def test_a_frame_that_tells_no_size_is_unpacked_to_its_limit():
    assert unpack("zstd", bytes, sizeless_zstd(2), 2 * 131072) == bytes(2 * 131072)
    with pytest.raises(imagecodecs.ZstdError):
        unpack("zstd", bytes, sizeless_zstd(2), 2 * 131072 - 1)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"shape": [0, 4, 4]}, "every axis needs at least one voxel"),
        ({"shape": [4, 4, 4, 4, 4], "chunks": [4] * 5}, "has 5 axes .* write one channel alone"),
        ({"chunks": [1 << 20] * 3}, "more than 4294967296 bytes each are refused"),
        ({"shape": [1 << 40] * 3, "chunks": [1] * 3}, "more than 268435456 of them are refused"),
        ({"shape": [10**400] * 3, "chunks": [1] * 3}, "refused|cannot be used"),
        ({"dtype": "|O"}, "holds dtype object|cannot be used"),
        ({"dtype": "<c8"}, "holds dtype complex64|cannot be used"),
        ({"dtype": [["a", "|u1"]]}, "holds dtype|cannot be used"),
    ],
)
def test_arrays_that_are_no_volume(changed, told, tmp_path):
    with pytest.raises(InputError, match=told) as caught:
        open_stored(str(write_v2(tmp_path / "a.zarr", **changed)))
    assert "\n" not in str(caught.value)


def test_a_shard_of_too_many_chunks_is_refused(tmp_path):
    index = {"index_codecs": [{"name": "bytes", **LITTLE}], "codecs": [{"name": "bytes"}]}
    codecs = [{"name": "sharding_indexed", "configuration": {"chunk_shape": [1] * 3, **index}}]
    grid = {"name": "regular", "configuration": {"chunk_shape": [1 << 20] * 3}}
    url = write_v3(tmp_path / "a.zarr", codecs, b"x", chunk_grid=grid)
    with pytest.raises(InputError, match=r"more than 268435456 of them are refused"):
        open_stored(str(url))


@pytest.mark.parametrize("path", ["../other", "/etc", "0/../../other", "C:\\x", "\0", "http://host/x"])
def test_a_level_lies_inside_its_group(path, tmp_path):
    zarr.create_array(tmp_path / "other", data=np.ones((4, 4, 4), np.uint8), zarr_format=2)
    datasets = [{"path": path, "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    zarr.create_group(tmp_path / "a", zarr_format=2, attributes={"multiscales": [{"datasets": datasets}]})
    with pytest.raises(InputError, match=r"leads out of it|no array") as caught:
        open_stored(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
def test_axes_in_another_order_are_never_taken_for_z_y_x(version, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 255, (3, 5, 7), np.uint8)
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "xyz"]
    scale = [{"type": "scale", "scale": [1, 1, 1]}]
    image = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]}
    attributes = image if version == 2 else {"ome": image}
    group = zarr.create_group(tmp_path / "a", zarr_format=version, attributes=attributes)
    group.create_array("0", data=voxels)
    named = (
        {"dimension_names": ["x", "y", "z"]}
        if version == 3
        else {"attributes": {"_ARRAY_DIMENSIONS": list("xyz")}}
    )
    zarr.create_array(tmp_path / "bare", data=voxels, zarr_format=version, **named)
    for url in (tmp_path / "a", tmp_path / "a" / "0", tmp_path / "bare"):
        with pytest.raises(InputError, match=r"has axes x y z, .* ingest it with --axes xyz"):
            open_volume(url)
        with pytest.raises(InputError, match=r"ingest it with --axes xyz"):
            inkzarr.ingest(str(url), str(tmp_path / "o"))
    inkzarr.ingest(str(tmp_path / "a"), str(tmp_path / "scan"), IngestSettings(axes="xyz"))
    np.testing.assert_array_equal(open_volume(tmp_path / "scan"), voxels.transpose())
