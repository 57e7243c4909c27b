"""Damage of every kind, in every layout, is named; a store that fails is no damage."""

import re
import shutil

import numpy as np
import pytest
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from inkzarr.core.errors import DamageError, InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.ledger import Ledger, Manifest
from inkzarr.core.ome import add_level
from inkzarr.core.records import BlockRecord
from inkzarr.core.remote import open_store
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.verify import verify

SHAPE = (260, 140, 20)
LAYOUTS = {"v2": {}, "v3": {"zarr_format": 3}, "sharded": {"zarr_format": 3, "shard": 256}}


def make_voxels():
    voxels = np.random.default_rng(0).integers(0, 9, SHAPE, "uint8")
    voxels[:128, 128:] = 0  # one chunk is not stored
    return voxels


def write(out, layout):
    """A volume of 3 x 2 x 1 chunks with a finished ledger; raw ones are not the runner's."""
    voxels = make_voxels()
    if layout != "raw":
        spec = VolumeSpec(Zyx(*SHAPE), voxels.dtype, voxel_size_um=7.91, **LAYOUTS[layout])
        job = Job("test", str(out), spec, Zyx.of(128), {})
        write_blocks(job, lambda box: voxels[box.slices], RunOptions())
        return out
    group = zarr.open_group(out, mode="w", zarr_format=2)
    chunks = (128, 128, 20)
    encoding = {"name": "v2", "separator": "/"}
    array = group.create_array(
        "0", shape=SHAPE, dtype="uint8", chunks=chunks, compressors=None, chunk_key_encoding=encoding
    )
    array[:] = voxels
    scale = {"type": "scale", "scale": [7.91] * 3}
    image = {
        "version": "0.4",
        "axes": list("zyx"),
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    group.attrs["multiscales"] = [image]
    ledger = Ledger(open_store(str(out), read_only=False), "0")
    ledger.begin(Manifest({}, SHAPE, chunks))
    ledger.add(BlockRecord.of(Box.whole(SHAPE), voxels, Zyx(*chunks)))
    ledger.finish()
    return out


def chunk_file(out, layout, z, y):
    if layout == "sharded":
        return out / "0" / "c" / str(z // 2) / "0" / "0"
    return out / "0" / ("c" if layout == "v3" else "") / str(z) / str(y) / "0"


def name(layout, z, y):
    return {
        "v2": f"0/{z}/{y}/0",
        "raw": f"0/{z}/{y}/0",
        "v3": f"0/c/{z}/{y}/0",
        "sharded": f"0/c/{z // 2}/0/0 [{z % 2},{y},0]",
    }[layout]


@pytest.fixture(params=["v2", "v3", "sharded", "raw"])
def layout(request):
    return request.param


@pytest.fixture
def volume(tmp_path, layout):
    return write(tmp_path / "scan.zarr", layout)


def test_sound_volume(volume, layout):
    report = verify(volume)
    assert report.damaged == []
    assert report.unfinished == []
    assert report.levels[0].chunks == 6
    assert report.levels[0].ledger == "done"
    assert report.levels[0].nbytes == np.prod(SHAPE)
    report.raise_for_damage()
    assert "0: 6 chunks, 728 kB read, ledger done, none damaged" in str(report)


def test_truncated(volume, layout):
    file = chunk_file(volume, layout, 2, 0)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damaged = verify(volume).damaged
    assert damaged[0].startswith(f"{name(layout, 2, 0)} ")
    assert len(damaged) == (2 if layout == "sharded" else 1)
    assert re.search("does not decode|is cut short", damaged[0])


def test_emptied(volume, layout):
    chunk_file(volume, layout, 2, 0).write_bytes(b"")
    damaged = verify(volume).damaged
    assert damaged[0] == f"{name(layout, 2, 0)} is cut short: the body holds no byte"
    assert len(damaged) == (2 if layout == "sharded" else 1)


def test_zeroed_tail(volume, layout):
    file = chunk_file(volume, layout, 0, 0)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert verify(volume).damaged[0].startswith(name(layout, 0, 0))


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7, 0.9])
def test_flipped_bit(volume, layout, at):
    file = chunk_file(volume, layout, 0, 0)
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 4
    file.write_bytes(bytes(data))
    damaged = verify(volume).damaged
    assert damaged
    assert all(
        line.startswith("0/c/0/0/0 [" if layout == "sharded" else name(layout, 0, 0)) for line in damaged
    )


def test_swapped(volume, layout):
    first, second = chunk_file(volume, layout, 0, 0), chunk_file(volume, layout, 2, 0)
    first.rename(volume / "aside")
    second.rename(first)
    (volume / "aside").rename(second)
    lines = verify(volume).damaged
    assert lines[0].startswith(name(layout, 0, 0))
    assert any(line.startswith(name(layout, 2, 0)) for line in lines)
    assert "holds other voxels than were written" in lines[0]


def test_deleted(volume, layout):
    chunk_file(volume, layout, 2, 0).unlink()
    damaged = verify(volume).damaged
    assert damaged[0] == f"{name(layout, 2, 0)} is missing"
    assert len(damaged) == (2 if layout == "sharded" else 1)


@pytest.mark.parametrize("layout", ["v2", "v3", "raw"], indirect=True)  # in a shard it has no file
def test_voxels_where_air_was_written(volume, layout):
    target = chunk_file(volume, layout, 0, 1)
    target.parent.mkdir(exist_ok=True)
    shutil.copy(chunk_file(volume, layout, 1, 0), target)
    assert verify(volume).damaged == [f"{name(layout, 0, 1)} holds voxels where only zeros were written"]


def test_report_raises_with_the_chunks(volume, layout):
    chunk_file(volume, layout, 2, 0).write_bytes(b"")
    report = verify(volume)
    with pytest.raises(
        DamageError, match=re.escape(name(layout, 2, 0)) + ".*write the volume anew"
    ) as caught:
        report.raise_for_damage()
    assert caught.value.exit_code == 6
    assert report.damaged[0] in str(report)


def test_unfinished_ledger_is_told_and_only_what_it_knows_is_compared(tmp_path):
    url = write(tmp_path / "scan.zarr", "v2")
    ledger = Ledger(open_store(str(url), read_only=False), "0")
    ledger.load()
    boxes = sorted(ledger.records)
    records = ledger.records
    (url / ".inkzarr" / "0" / "blocks.jsonl").unlink()
    ledger.begin(Manifest({}, SHAPE, (128, 128, 20)))
    ledger.add(records[boxes[0]])
    ledger.flush()
    report = verify(url)
    assert report.levels[0].ledger == "unfinished: 1 of 6 chunks"
    assert report.levels[0].chunks == 1
    assert report.unfinished == ["0"]
    assert "ledger unfinished: 1 of 6 chunks" in str(report)
    report.raise_for_damage()
    chunk_file(url, "v2", 0, 0).unlink()
    assert verify(url).damaged == ["0/0/0/0 is missing"]


def test_lost_ledger_lines_are_damage(tmp_path):
    url = write(tmp_path / "scan.zarr", "v2")
    file = url / ".inkzarr" / "0" / "blocks.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert verify(url).damaged == ["0/2/1/0 is not in the ledger, which says that the run is done"]


def test_other_metadata_than_the_ledgers_is_damage(tmp_path):
    url = write(tmp_path / "scan.zarr", "v2")
    file = url / "0" / ".zarray"
    file.write_text(file.read_text().replace("260", "250"))
    assert verify(url).damaged == [
        "0: the array's shape or chunks are not the ledger's: its metadata was changed"
    ]


def test_a_box_and_the_air_around_it(tmp_path):
    voxels = make_voxels()
    spec = VolumeSpec(Zyx(*SHAPE), voxels.dtype)
    region = Box(Zyx(0, 0, 0), Zyx(10, 140, 20))
    job = Job("test", str(tmp_path / "scan.zarr"), spec, Zyx.of(128), {}, region=region)
    write_blocks(job, lambda box: voxels[box.slices], RunOptions())
    report = verify(job.out)
    assert report.damaged == []
    assert report.levels[0].ledger == "done"
    (tmp_path / "scan.zarr/0/2/1").mkdir(parents=True)
    shutil.copy(tmp_path / "scan.zarr/0/0/0/0", tmp_path / "scan.zarr/0/2/1/0")
    assert verify(job.out).damaged == ["0/2/1/0 holds voxels where none were to be written"]


def test_all_levels_or_one(tmp_path):
    url = write(tmp_path / "scan.zarr", "v2")
    group = zarr.open_group(url, mode="r+")
    level = group.create_array("1", shape=(130, 70, 10), dtype="uint8", chunks=(130, 70, 10))
    level[:] = 3
    group.attrs.update(add_level(dict(group.attrs), "1", 2, "mean"))
    (url / "1" / "0.0.0").write_bytes(b"broken")
    report = verify(url)
    assert [check.path for check in report.levels] == ["0", "1"]
    assert report.damaged[0].startswith("1/0.0.0 is cut short")
    assert verify(url, level=0).damaged == []
    assert len(verify(url, level=1).damaged) == 1
    with pytest.raises(InputError, match="level 2 does not exist"):
        verify(url, level=2)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_without_a_ledger_what_does_not_decode_is_damage(tmp_path, zarr_format):
    voxels = np.random.default_rng(0).integers(0, 255, (9, 8, 8), "uint16")
    array = zarr.create_array(
        tmp_path / "bare.zarr", shape=(9, 8, 8), chunks=(4, 8, 8), dtype="u2", zarr_format=zarr_format
    )
    array[:4] = voxels[:4]
    array[8:] = voxels[8:]
    report = verify(tmp_path / "bare.zarr")
    assert report.damaged == []
    assert report.levels[0].chunks == 2
    assert report.levels[0].ledger == "no ledger"
    key = "2.0.0" if zarr_format == 2 else "c/2/0/0"
    file = tmp_path / "bare.zarr" / key
    file.write_bytes(file.read_bytes()[:10])
    assert verify(tmp_path / "bare.zarr").damaged[0].startswith(f"{key} does not decode")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_incompressible_blosc_chunks_cut_short(tmp_path, zarr_format):
    noise = np.random.default_rng(0).integers(0, 255, (4, 50, 50), "uint8")
    codec = Blosc("zstd") if zarr_format == 2 else BloscCodec(cname="zstd")
    array = zarr.create_array(
        tmp_path / "bare.zarr", shape=(4, 50, 50), dtype="u1", zarr_format=zarr_format, compressors=codec
    )
    array[:] = noise
    assert verify(tmp_path / "bare.zarr").damaged == []
    key = "0.0.0" if zarr_format == 2 else "c/0/0/0"
    file = tmp_path / "bare.zarr" / key
    for length in (-1, 10):
        file.write_bytes(file.read_bytes()[:length])
        assert verify(tmp_path / "bare.zarr").damaged[0].startswith(f"{key} is cut short")


def test_label_groups(tmp_path):
    group = zarr.open_group(tmp_path / "labels.zarr", mode="w", zarr_format=2)
    for array in ("ink", "count"):
        group.create_array(array, shape=(4, 8, 8), chunks=(4, 8, 8), dtype="uint8")[:] = 1
    (tmp_path / "labels.zarr" / "ink" / "0.0.0").write_bytes(b"broken")
    report = verify(tmp_path / "labels.zarr")
    assert [check.path for check in report.levels] == ["count", "ink"]
    assert report.damaged[0].startswith("ink/0.0.0 is cut short")


def test_a_store_that_fails_is_no_damage(tmp_path, monkeypatch):
    url = write(tmp_path / "scan.zarr", "v2")
    get = LocalStore.get

    async def failing(self, key, *args, **kwargs):
        if key == "0/1/0/0":
            msg = "the disk does not answer"
            raise PermissionError(msg)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", failing)
    with pytest.raises(StoreError, match=r"cannot read 0/1/0/0 .*the disk does not answer"):
        verify(url)


def test_real_scroll(tmp_path, real_data):
    shutil.copytree(real_data / "phi_rev.zarr", tmp_path / "phi.zarr")
    assert verify(tmp_path / "phi.zarr").damaged == []
    assert verify(tmp_path / "phi.zarr").levels[0].chunks == 12
    file = tmp_path / "phi.zarr" / "0.1.2"
    file.write_bytes(
        file.read_bytes()[:-1]
    )  # blosc stored it as it is, and decodes what it reads past the end
    assert verify(tmp_path / "phi.zarr").damaged[0].startswith("0.1.2 is cut short")
