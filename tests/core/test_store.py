"""Volumes are opened whatever wrote them, lazily, and what cannot be one is told in a line."""

import json
import pickle
from dataclasses import replace

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.storage import LocalStore

from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Computed, Job, RunOptions
from inkzarr.core.ome import read_levels
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_stored, open_volume

SHAPE = (11, 14, 9)
CODECS_V2 = {
    "raw": None,
    "gzip": numcodecs.GZip(1),
    "zstd": numcodecs.Zstd(1),
    "lz4": numcodecs.LZ4(),
    "blosc": numcodecs.Blosc("lz4", shuffle=numcodecs.Blosc.SHUFFLE),
}
CODECS_V3 = {"raw": None, "gzip": GzipCodec(), "zstd": ZstdCodec(), "blosc": BloscCodec()}


def voxels(dtype="uint8", shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def write(folder, data, *, zarr_format=2, separator="/", codec="zstd", **layout):
    names = {2: "v2", 3: "default"}
    codecs = {2: CODECS_V2, 3: CODECS_V3}[zarr_format]
    return zarr.create_array(
        folder,
        data=data,
        zarr_format=zarr_format,
        compressors=codecs[codec],
        chunk_key_encoding={"name": names[zarr_format], "separator": separator},
        **layout,
    )


def listed(paths, scales, version="0.4", unit="micrometer"):
    axes = [{"name": name, "type": "space", "unit": unit} for name in "zyx"]
    datasets = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [scale] * 3}]}
        for path, scale in zip(paths, scales, strict=True)
    ]
    image = {"axes": axes, "datasets": datasets}
    if version == "0.5":
        return {"ome": {"version": "0.5", "multiscales": [image]}}
    return {"multiscales": [{"version": "0.4", **image}]}


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize(
    ("zarr_format", "codec"), [(2, name) for name in CODECS_V2] + [(3, name) for name in CODECS_V3]
)
def test_any_codec_and_separator(tmp_path, zarr_format, codec, separator):
    data = voxels()
    write(tmp_path / "a", data, zarr_format=zarr_format, separator=separator, codec=codec, chunks=(4, 5, 6))
    scan = open_volume(tmp_path / "a")
    assert scan.dims == ("z", "y", "x")
    assert scan.data.chunksize == (4, 5, 6)
    assert (scan.to_numpy() == data).all()
    assert (scan[3, 2:9:3, -4].to_numpy() == data[3, 2:9:3, -4]).all()


@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    chunks=st.tuples(*[st.integers(1, 24)] * 3),
    zarr_format=st.sampled_from([2, 3]),
    data=st.data(),
)
def test_any_chunks(tmp_path_factory, shape, chunks, zarr_format, data):
    numbers = voxels(shape=shape)
    folder = tmp_path_factory.mktemp("any") / "a.zarr"
    write(folder, numbers, zarr_format=zarr_format, chunks=chunks)
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    stop = [data.draw(st.integers(low + 1, n)) for low, n in zip(start, shape, strict=True)]
    box = Box(Zyx(*start), Zyx(*stop))
    assert (open_stored(str(folder)).read(box) == numbers[box.slices]).all()


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<i2", "float16", "int8"])
def test_byte_order_is_the_machines(tmp_path, dtype):
    data = voxels(dtype)
    write(tmp_path / "a", data, chunks=(4, 4, 4))
    scan = open_volume(tmp_path / "a")
    assert scan.dtype.isnative
    assert scan.compute().dtype == scan.dtype == np.dtype(dtype).newbyteorder("=")
    assert (scan.to_numpy() == data).all()


def test_shards(tmp_path):
    data = voxels(shape=(20, 20, 20))
    write(tmp_path / "a", data, zarr_format=3, chunks=(4, 4, 4), shards=(8, 8, 8))
    stored = open_stored(str(tmp_path / "a"))
    assert stored.chunks == (4, 4, 4)
    assert stored.chunk_key(Zyx(0, 3, 4)) == "c/0/1/2"
    assert (open_volume(tmp_path / "a")[5:11, :, 3].to_numpy() == data[5:11, :, 3]).all()
    assert stored.may_exceed(0).all(), "what a shard holds is not told by its being there"


@pytest.mark.parametrize(("zarr_format", "version"), [(2, "0.4"), (3, "0.5")])
def test_levels_in_any_order(tmp_path, zarr_format, version):
    attributes = listed(["2", "0", "1"], [4000.0, 1000.0, 2000.0], version, unit="nanometer")
    group = zarr.create_group(tmp_path / "a", zarr_format=zarr_format, attributes=attributes)
    for path, size in (("0", 16), ("1", 8), ("2", 4)):
        group.create_array(path, shape=(size,) * 3, chunks=(4,) * 3, dtype="uint8")
    scan = open_volume(str(tmp_path / "a") + "/")
    assert scan.shape == (16, 16, 16)
    assert scan.attrs["voxel_size_um"] == 1.0
    assert open_volume(tmp_path / "a", level=2).shape == (4, 4, 4)
    assert open_volume(tmp_path / "a" / "1").shape == (8, 8, 8)
    for level in (3, -1):
        with pytest.raises(InputError, match=f"level {level} does not exist.*it has 3"):
            open_volume(tmp_path / "a", level=level)


@pytest.mark.parametrize(
    ("name", "scales", "expected"),
    [
        ("a.zarr", [1.0, 2.0], (None, None)),
        ("54keV_7.91um_a.zarr", [1.0, 2.0], (7.91, 15.82)),
        ("54keV_7.91um_a.zarr", [3.24, 6.48], (3.24, 6.48)),
    ],
)
def test_a_scale_of_one_without_a_unit_tells_no_size(tmp_path, name, scales, expected):
    attributes = listed(["1", "0"], scales[::-1])
    for axis in attributes["multiscales"][0]["axes"]:
        del axis["unit"]
    group = zarr.create_group(tmp_path / name, zarr_format=2, attributes=attributes)
    for path, size in (("0", 16), ("1", 8)):
        group.create_array(path, shape=(size,) * 3, chunks=(4,) * 3, dtype="uint8")
    for level, um in enumerate(expected):
        for scan in (open_volume(tmp_path / name, level=level), open_volume(tmp_path / name / str(level))):
            assert scan.shape == (16 >> level,) * 3
            assert scan.attrs["voxel_size_um"] == (um and pytest.approx(um))


def test_what_is_said_of_the_whole_image_comes_after_a_level_s_own():
    attributes = listed(["0", "1"], [1.0, 2.0], unit="millimeter")
    attributes["multiscales"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [3, 2, 2]},
        {"type": "translation", "translation": [0, 0, 1]},
    ]
    attributes["multiscales"][0]["datasets"][1]["coordinateTransformations"] += [
        {"type": "translation", "translation": [0.5, 0.5, 0.5]}
    ]
    fine, coarse = read_levels(attributes)
    assert (fine.spacing_um, fine.origin_um) == ((3000, 2000, 2000), (0, 0, 1000))
    assert (coarse.spacing_um, coarse.origin_um) == ((6000, 4000, 4000), (1500, 1000, 2000))


def test_opening_reads_metadata_alone(tmp_path, monkeypatch):
    """A volume of a million chunks, none of them there to be read."""
    attributes = listed(["0"], [7.91])
    group = zarr.create_group(tmp_path / "a", zarr_format=2, attributes=attributes)
    group.create_array("0", shape=(12800,) * 3, chunks=(128,) * 3, dtype="uint8")
    asked = []
    get = LocalStore.get

    async def noted(self, key, *rest):
        asked.append(key)
        return await get(self, key, *rest)

    monkeypatch.setattr(LocalStore, "get", noted)
    scan = open_volume(tmp_path / "a")
    assert scan.data.npartitions == 10**6
    assert all(
        key.rpartition("/")[2]
        in {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata", "manifest.json"}
        for key in asked
    )
    asked.clear()
    assert scan[300, 5:300, 7].sum().compute() == 0
    chunks = [key for key in asked if key != ".inkzarr/0/manifest.json"]  # which threads may ask for at once
    assert sorted(chunks) == ["0/2.0.0", "0/2.1.0", "0/2.2.0"]


def test_a_local_chunk_that_is_missing_is_empty(tmp_path):
    write(tmp_path / "a", voxels() + 1, chunks=(4, 5, 6), fill_value=7)
    (tmp_path / "a" / "0" / "0" / "0").unlink()
    assert (open_volume(tmp_path / "a")[:4, :5, :6].to_numpy() == 7).all()


@pytest.mark.parametrize("codec", CODECS_V2)
@pytest.mark.parametrize("body", [b"", b"\0", b"<html>gone</html>", None])
def test_a_local_chunk_that_is_damaged_is_named(tmp_path, codec, body):
    """Also a raw one that is cut short: `None` is the first half of what was there."""
    write(tmp_path / "a", voxels(), codec=codec, chunks=(4, 5, 6))
    chunk = tmp_path / "a" / "1" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2] if body is None else body)
    scan = open_volume(tmp_path / "a")
    assert scan[:4].sum().compute() > 0
    for damaged in (scan, scan[5, 11, :3], scan[5, 11, 2], scan[::3, ::2]):
        with pytest.raises(StoreError, match="1/2/0") as raised:
            damaged.compute()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("keep", [0, 1, 20, 200])
def test_a_shard_cut_short_is_named(tmp_path, keep):
    write(tmp_path / "a", voxels(shape=(16, 16, 16)), zarr_format=3, chunks=(4, 4, 4), shards=(8, 8, 8))
    shard = tmp_path / "a" / "c" / "1" / "0" / "1"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(StoreError, match="c/1/0/1"):
        open_volume(tmp_path / "a").compute()


def test_may_exceed_by_the_chunks_that_are_stored(tmp_path):
    data = np.zeros((8, 8, 8), "uint8")
    data[5, 1, 6] = 9
    for name, options in (("v2", {"separator": "."}), ("v3", {"zarr_format": 3})):
        write(tmp_path / name, data, chunks=(4, 4, 4), **options)
        may = open_stored(str(tmp_path / name)).may_exceed(0)
        assert np.argwhere(may).tolist() == [[1, 0, 1]]
        assert open_stored(str(tmp_path / name)).may_exceed(-1).all()


def test_may_exceed_by_the_ledger(tmp_path):
    """The largest voxels are known where blocks were written; elsewhere anything may be."""
    out = str(tmp_path / "a.zarr")
    region = Box(Zyx(0, 0, 0), Zyx(128, 128, 256))
    job = Job("t", out, VolumeSpec(Zyx(256, 128, 256), np.dtype("uint8")), Zyx.of(128), {}, region=region)
    write_blocks(job, lambda box: np.full(box.shape, 3 + box.start.x // 128, "uint8"), RunOptions())
    stored = open_stored(out)
    assert stored.may_exceed(3)[:, 0].tolist() == [[False, True], [True, True]]
    assert stored.may_exceed(0).all()
    assert isinstance(stored.identity["voxels"], int)


def test_stored_volumes_travel(tmp_path):
    data = voxels()
    write(tmp_path / "a", data, chunks=(4, 5, 6))
    stored = pickle.loads(pickle.dumps(open_stored(str(tmp_path / "a"))))
    assert (stored.read(Box.whole(SHAPE)) == data).all()


def test_what_is_no_volume(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    write(tmp_path / "flat", voxels(shape=(4, 4)))
    write(tmp_path / "five", voxels(shape=(1, 1, 4, 4, 4)))
    write(tmp_path / "bool", voxels().astype(bool))
    write(tmp_path / "words", voxels().astype("U3"), codec="raw")
    zarr.create_array(tmp_path / "none", shape=(0, 4, 4), dtype="uint8", zarr_format=2)
    zarr.create_array(tmp_path / "huge", shape=(5000,) * 3, chunks=(5000,) * 3, dtype="uint8", zarr_format=2)
    zarr.create_group(tmp_path / "group", zarr_format=2).create_array("ink", shape=(4, 4, 4), dtype="uint8")
    zarr.create_group(tmp_path / "hollow", zarr_format=2, attributes=listed(["0"], [1.0]))
    zarr.create_group(tmp_path / "odd", zarr_format=2, attributes={"multiscales": [{"datasets": [{"x": 1}]}]})
    zarr.create_group(tmp_path / "odder", zarr_format=2, attributes={"multiscales": {"a": 1}, "inkzarr": "x"})
    (tmp_path / "file").write_text("text")
    rules = {
        "nothing": "no Zarr volume",
        "empty": "no Zarr volume",
        "file": "no Zarr volume",
        "flat": "has 2 axes",
        "five": "has 5 axes",
        "bool": "whole number or a float",
        "words": "whole number or a float",
        "none": "at least one voxel",
        "huge": "are refused",
        "group": r"without multiscales.*it holds ink",
        "hollow": "names a level that is no array",
        "odd": "multiscales metadata",
        "odder": "multiscales metadata",
    }
    for name, rule in rules.items():
        with pytest.raises(InputError, match=rule) as raised:
            open_volume(tmp_path / name)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore")
def test_objects_are_refused_and_never_unpickled(tmp_path):
    folder = tmp_path / "objects"
    folder.mkdir()
    metadata = {
        "chunks": [2, 2, 2],
        "shape": [2, 2, 2],
        "compressor": None,
        "dtype": "|O",
        "fill_value": 0,
        "filters": [{"id": "pickle"}],
        "order": "C",
        "zarr_format": 2,
    }
    (folder / ".zarray").write_text(json.dumps(metadata))
    (folder / "0.0.0").write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path).encode() + b"/owned'\ntR.")
    with pytest.raises((InputError, StoreError)):
        open_volume(folder).compute()
    assert not (tmp_path / "owned").exists()


def test_metadata_that_is_damaged(tmp_path):
    write(tmp_path / "a", voxels(), chunks=(4, 5, 6))
    (tmp_path / "a" / ".zarray").write_text('{"chunks": [4')
    with pytest.raises(InputError, match=r"metadata at .* cannot be used"):
        open_volume(tmp_path / "a")


def run(out, *, state=None, more=(), zarr_format=2):
    """A group of two chunks as a stage writes it; `state` is put into its manifests."""
    spec = VolumeSpec(
        Zyx(4, 4, 140), np.dtype("uint8"), 3.5, {"stage": "test"}, zarr_format=zarr_format,
        path=more[0] if more else "0",
    )  # fmt: skip
    others = tuple(replace(spec, path=path) for path in more[1:])
    job = Job("test", str(out), spec, Zyx.of(128), {}, more=others)
    ones = np.ones(spec.shape, "uint8")
    write_blocks(
        job,
        lambda box: Computed(tuple(ones[box.slices] for _ in more)) if more else ones[box.slices],
        RunOptions(),
    )
    for manifest in out.glob(".inkzarr/*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"state": state or "done"}))
    return out


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("url", ["{}", "file://{}", "link"])
def test_an_array_that_is_named_is_guarded_as_in_its_group(tmp_path, zarr_format, url):
    whole = run(tmp_path / "a.zarr", zarr_format=zarr_format)
    (tmp_path / "link").symlink_to(whole / "0")
    url = url.format(whole / "0") if "{" in url else str(tmp_path / "link")
    stored = open_stored(url)
    assert stored.voxel_size_um == 3.5
    assert stored.level.spacing_um == (3.5,) * 3
    assert stored.lineage["stage"] == "test"
    assert stored.identity["voxels"] == open_stored(str(whole)).identity["voxels"]
    next(path for path in (whole / "0").rglob("*") if path.is_file() and path.name.isdigit()).unlink()
    for lossy in (open_stored(url), pickle.loads(pickle.dumps(open_stored(url)))):
        with pytest.raises(StoreError, match="is lost, its ledger knows of voxels in it"):
            lossy.read(Box.whole(lossy.shape))
    with pytest.raises(InputError, match="it has 1, an array; give the group that lists the levels"):
        open_stored(url, level=1)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("place", ["labels.zarr", "labels.zarr/1"])
def test_a_label_groups_array_is_guarded(tmp_path, place, zarr_format):
    (tmp_path / "labels.zarr").mkdir()
    group = run(tmp_path / place, state="writing", more=("ink", "count"), zarr_format=zarr_format)
    for name in ("ink", "count"):
        stored = open_stored(str(group / name))
        assert stored.voxel_size_um == 3.5
        with pytest.raises(InputError, match=rf"{place}/{name} is unfinished"):
            stored.require_finished()


def test_what_is_around_an_array_may_be_of_no_use(tmp_path):
    """Metadata that is damaged, or of another kind, keeps nobody from an array that can be read."""
    write(tmp_path / "a" / "0", voxels(), chunks=(4, 5, 6))
    for text in (
        "{",
        "[]",
        '{"multiscales": {"a": 1}, "inkzarr": "x"}',
        '{"multiscales": [{"datasets": [{}]}]}',
    ):
        (tmp_path / "a" / ".zgroup").write_text('{"zarr_format": 2}')
        (tmp_path / "a" / ".zattrs").write_text(text)
        stored = open_stored(str(tmp_path / "a" / "0"))
        assert stored.voxel_size_um is None
        assert stored.ledger is None
        assert (stored.read(Box.whole(SHAPE)) == voxels()).all()
