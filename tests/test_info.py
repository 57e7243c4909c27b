"""Info reads metadata alone; the thumbnail reads few chunks; all that is shown in HTML is escaped."""

import base64
import dataclasses
import io
import re
import sys

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from zarr.storage import LocalStore

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.ledger import Ledger
from inkzarr.core.ome import add_level
from inkzarr.core.picture import contact_sheet, png, stretch
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_stored
from inkzarr.core.target import open_target
from inkzarr.info import info, thumbnail

METADATA = re.compile(r"(^|/)(\.z(array|group|attrs|metadata)|zarr\.json|\.inkzarr/.*)$")


def write(out, shape=(300, 140, 140), *, lineage=None, region=None, **layout):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 255, shape, "uint8")
    spec = VolumeSpec(Zyx(*shape), voxels.dtype, voxel_size_um=7.91, lineage=lineage or {}, **layout)
    job = Job("test", str(out), spec, Zyx.of(128), {}, region=region)
    write_blocks(job, lambda box: voxels[box.slices], RunOptions())
    return job


@pytest.fixture
def reads(monkeypatch):
    """Keys that are read, whole or in part."""
    keys = []
    get = LocalStore.get

    async def counted(self, key, *args, **kwargs):
        keys.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", counted)
    return keys


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_terabyte_is_opened_from_metadata_alone(tmp_path, reads, zarr_format):
    spec = VolumeSpec(Zyx(14376, 7888, 8096), np.dtype("uint8"), zarr_format=zarr_format)
    open_target(Job("test", str(tmp_path / "scan.zarr"), spec, Zyx.of(512), {}), RunOptions())
    reads.clear()
    found = info(tmp_path / "scan.zarr")
    text = str(found)
    assert found.levels[0].nbytes == 14376 * 7888 * 8096
    assert "918 GB" in text
    assert "unfinished: 0 of 448384 chunks" in text
    assert all(METADATA.search(key) for key in reads)
    assert len(reads) < 30
    reads.clear()
    assert "<img" in found._repr_html_()
    chunks = {key for key in reads if not METADATA.search(key)}
    assert len(chunks) == 16
    assert {tuple(map(int, key.split("/")[-2:])) for key in chunks} == {
        (y, x) for y in range(29, 33) for x in range(30, 34)
    }


def test_table(tmp_path):
    job = write(tmp_path / "scan.zarr", lineage={"source": "slices/"}, zarr_format=3, shard=256)
    group = zarr.open_group(job.out, mode="r+")
    group.create_array("1", shape=(150, 70, 70), dtype="uint8", chunks=(75, 70, 70), compressors=None)
    group.attrs.update(add_level(dict(group.attrs), "1", 2, "mean"))
    found = info(job.out)
    fine, coarse = found.levels
    assert fine.shape == (300, 140, 140)
    assert fine.chunks == (128, 128, 128)
    assert fine.shards == (256, 256, 256)
    assert fine.dtype == np.uint8
    assert fine.state == "done"
    assert fine.spacing_um == (7.91,) * 3
    files = [path for path in (tmp_path / "scan.zarr" / "0").rglob("*") if path.name != "zarr.json"]
    assert fine.stored_bytes == sum(path.stat().st_size for path in files if path.is_file())
    assert not fine.sampled
    assert coarse.state == "no ledger"
    assert coarse.stored_bytes == 0
    assert found.lineage["source"] == "slices/"
    lines = str(found).splitlines()
    assert lines[0].endswith("(Zarr v3)")
    assert lines[2].split()[:6] == ["0", "300,140,140", "uint8", "128,128,128", "256,256,256", "blosc"]
    assert "raw" in lines[3]
    assert "15.82" in lines[3]
    assert lines[4] == "source: slices/"


def test_unfinished_ledger_counts_the_chunks_of_its_region(tmp_path):
    job = write(tmp_path / "scan.zarr", region=Box(Zyx(0, 0, 0), Zyx(300, 10, 10)))
    assert info(job.out).levels[0].state == "done"
    ledger = Ledger(open_stored(job.out).array.store.with_read_only(read_only=False), "0")
    ledger.load()
    record = ledger.records[min(ledger.records)]
    (tmp_path / "scan.zarr" / ".inkzarr" / "0" / "blocks.jsonl").unlink()
    ledger.begin(dataclasses.replace(ledger.manifest, state="running"))
    ledger.add(record)
    ledger.flush()
    assert info(job.out).levels[0].state == "unfinished: 1 of 3 chunks"


def test_stored_bytes_of_many_chunks_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["inkzarr.info"], "SIZED_CHUNKS", 10)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(100, 4, 4), chunks=(1, 4, 4), dtype="u1", compressors=None
    )
    array[:50] = 1
    level = info(tmp_path / "a.zarr").levels[0]
    assert level.sampled
    assert level.stored_bytes == 50 * 16
    assert "~800 B" in str(info(tmp_path / "a.zarr"))


def test_bare_arrays_and_label_groups(tmp_path):
    zarr.save_array(tmp_path / "bare.zarr", np.ones((4, 8, 8), "float32"))
    bare = info(tmp_path / "bare.zarr")
    assert bare.levels[0].path == ""
    assert "unknown" in str(bare)
    group = zarr.open_group(tmp_path / "labels.zarr", mode="w", zarr_format=2)
    group.create_array("ink", shape=(4, 8, 8), dtype="uint8", compressors=None)
    group.create_array("count", shape=(4, 8, 8), dtype="uint16")
    labels = info(tmp_path / "labels.zarr")
    assert [(level.path, level.dtype.name) for level in labels.levels] == [
        ("count", "uint16"),
        ("ink", "uint8"),
    ]
    assert "<img" in labels._repr_html_()
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    with pytest.raises(InputError, match="it holds nothing"):
        info(tmp_path / "empty.zarr")
    with pytest.raises(InputError, match=r"no Zarr volume at .*nowhere"):
        info(tmp_path / "nowhere")


def test_html_is_escaped(tmp_path):
    evil = "<script>alert('1')</script>"
    job = write(tmp_path / "<b>scan.zarr", (4, 4, 4), lineage={evil: {"deep": evil}})
    shown = info(job.out)._repr_html_()
    assert "<script" not in shown
    assert "<b>scan" not in shown
    assert "&lt;script&gt;" in shown
    assert "&lt;b&gt;scan.zarr" in shown


def test_html_says_why_there_is_no_picture(tmp_path):
    job = write(tmp_path / "scan.zarr", (4, 4, 4))
    (tmp_path / "scan.zarr" / "0" / "0" / "0" / "0").write_bytes(b"broken")
    assert "no picture: cannot read 0/0/0/0" in info(job.out)._repr_html_()


def test_thumbnail_is_small(tmp_path):
    zarr.save_array(tmp_path / "wide.zarr", np.ones((2, 8, 3000), "uint8"))
    picture = Image.open(io.BytesIO(thumbnail(open_stored(str(tmp_path / "wide.zarr")))))
    assert max(picture.size) <= 512


@given(
    plane=st.sampled_from(["uint8", "int16", "uint16", "float32", "float64"]).flatmap(
        lambda dtype: npst.arrays(dtype, (4, 5))
    )
)
def test_stretch_takes_any_plane(plane):
    grey = stretch(plane)
    assert grey.shape == plane.shape
    assert grey.dtype == np.uint8


def test_stretch_of_flat_planes():
    assert not stretch(np.zeros((2, 2))).any()
    np.testing.assert_array_equal(stretch(np.array([[0, 255]], "u1")), [[0, 255]])
    np.testing.assert_array_equal(stretch(np.full((1, 2), 7, "u1")), [[255, 255]])
    np.testing.assert_array_equal(stretch(np.array([[np.nan, 1.0, 2.0, np.inf]]))[0, [0, 3]], [0, 0])


def test_png_is_what_it_was():
    plane = np.random.default_rng(0).integers(0, 255, (5, 7), "uint8")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(plane)))), plane)
    colour = np.stack([plane] * 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(colour)))), colour)
    with pytest.raises(InputError, match="is no picture"):
        png(plane.astype("uint16"))


def test_contact_sheet():
    black, grey = np.zeros((10, 40), "uint8"), np.linspace(1, 2, 600).reshape(20, 30)
    sheet = contact_sheet([[black, grey], [grey]], [["scan", "a caption that is far too long"], ["ink"]])
    pixels = np.asarray(sheet)
    assert pixels.shape == (8 + 2 * (20 + 21 + 8), 8 + 40 + 8 + 30 + 8, 3)
    assert not pixels[8:18, 8:48].any()
    np.testing.assert_array_equal(pixels[8:28, 56:86, 0], stretch(grey))
    assert (pixels[28:49, 86:] == 255).all()
    assert (pixels[28:49, 8:48] < 128).any()
    with pytest.raises(InputError, match="one caption each"):
        contact_sheet([[black]], [[]])
    with pytest.raises(InputError, match="no contact sheet"):
        contact_sheet([], [])


def test_real_scroll(real_data):
    for url, shape in (
        (real_data / "phi_rev.zarr", (9, 650, 770)),
        (real_data / "scroll1_20231005123335_2-4_left" / "volume.zarr", (13, 2000, 1000)),
    ):
        found = info(url)
        assert found.levels[0].shape == shape
        assert found.levels[0].codec == "blosc lz4 5"
        data = re.search(r"base64,([^\"]+)", found._repr_html_())[1]
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert picture.std() > 30
