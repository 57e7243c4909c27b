"""The same sheet however it is made: tiles, workers, kills, clusters, stores; what it reads, holds, refuses."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from PIL import Image

import inkzarr
from inkzarr.cli import cli
from inkzarr.core.chunk_cache import ChunkCache
from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_stored
from inkzarr.core.surface import write_ppm, write_tifxyz
from inkzarr.flatten import FlattenSettings, flatten, plan_flatten
from tests.core.web import Web
from tests.surfaces import SHAPE, stored_volume, wavy


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A PPM of several tiles through a volume, and its sheet."""
    folder = tmp_path_factory.mktemp("scene")
    stored_volume(folder)
    points, normals, valid = wavy(300, 500, np.random.default_rng(5))
    write_ppm(folder / "s.ppm", points, normals, valid=valid)
    flatten(folder / "v.zarr", folder / "s.ppm", folder / "sheet.png")
    return folder


@pytest.mark.parametrize(
    ("block", "options"),
    [(128, RunOptions()), (256, RunOptions(workers=1)), (384, RunOptions(workers=5, memory=10**9))],
)
def test_tiles_and_workers_change_no_byte(scene, tmp_path, block, options):
    flatten(scene / "v.zarr", scene / "s.ppm", tmp_path / "a.png", FlattenSettings(block=block), options)
    assert (tmp_path / "a.png").read_bytes() == (scene / "sheet.png").read_bytes()


def test_a_small_cache_reads_more_and_changes_nothing(scene, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["inkzarr.flatten"], "CACHE_BYTES", 1)
    report = flatten(scene / "v.zarr", scene / "s.ppm", tmp_path / "a.png", FlattenSettings(block=128))
    assert report.fetched > report.needed
    assert (tmp_path / "a.png").read_bytes() == (scene / "sheet.png").read_bytes()


def test_killed_and_started_again(scene, tmp_path):
    out = tmp_path / "a.png"
    code = f"""
import sys, os, signal
from inkzarr import flatten as _
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
module = sys.modules["inkzarr.flatten"]
whole, done = module._Tiles.__call__, []
def dying(self, box):
    done.append(box)
    if len(done) == 6:
        import time; time.sleep(2.5); os.kill(os.getpid(), signal.SIGKILL)
    if len(done) == 5:
        import time; time.sleep(2.2)
    return whole(self, box)
module._Tiles.__call__ = dying
settings = module.FlattenSettings(block=128)
module.flatten({str(scene / "v.zarr")!r}, {str(scene / "s.ppm")!r}, {str(out)!r}, settings, RunOptions(workers=1))
"""
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "a.png.tiles").is_dir()
    place = scene / "v.zarr", scene / "s.ppm", out
    with pytest.raises(InputError, match=r"begun with other settings \(settings\.depth was 16, is 3\)"):
        flatten(*place, FlattenSettings(block=128, depth=3))
    report = flatten(*place, FlattenSettings(block=128))
    assert report.run.resumed > 0
    assert out.read_bytes() == (scene / "sheet.png").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.cluster
def test_a_cluster_gives_the_same_bytes(scene, tmp_path):
    import distributed

    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        options = RunOptions(scheduler=cluster.scheduler_address)
        flatten(scene / "v.zarr", scene / "s.ppm", tmp_path / "a.png", FlattenSettings(block=128), options)
        lazy = inkzarr.open_volume(scene / "v.zarr")
        flatten(lazy, scene / "s.ppm", tmp_path / "b.png", FlattenSettings(block=128), options)
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes() == (scene / "sheet.png").read_bytes()


def test_a_damaged_chunk_is_named_and_read_again(tmp_path):
    stored_volume(tmp_path)
    chunk = next((tmp_path / "v.zarr").glob("1.*.*"))
    good = chunk.read_bytes()
    chunk.write_bytes(good[:20])
    place = tmp_path / "v.zarr", "flat:20", tmp_path / "a.png"
    with pytest.raises(inkzarr.InkzarrError, match=re.escape(chunk.name)):
        flatten(*place)
    assert not (tmp_path / "a.png").exists()
    chunk.write_bytes(good)
    flatten(*place)
    assert (tmp_path / "a.png").exists()


def test_the_cache_tries_again_and_stays_small(tmp_path):
    stored_volume(tmp_path, chunks=(10, 13, 15))
    stored = open_stored(tmp_path / "v.zarr")
    one = 10 * 13 * 15
    cache = ChunkCache(stored, 4 * one, 2)
    fetched = []
    for index in [*cache.grid.indices(), *cache.grid.indices()]:
        cache.chunk(index, fetched)
    kept = [f.result() for f in cache._held.chunks.values()]
    assert sum(0 if c is None else c.nbytes for c in kept) <= 4 * one
    assert len(fetched) == 2 * 64
    hurt, whole = [], stored.read

    def failing(box):
        if not hurt:
            hurt.append(box)
            msg = "once"
            raise StoreError(msg)
        return whole(box)

    object.__setattr__(stored, "read", failing)
    fresh = ChunkCache(stored, 10**6, 1)
    with pytest.raises(StoreError, match="once"):
        fresh.chunk(Zyx(3, 3, 3), fetched)
    np.testing.assert_array_equal(
        fresh.chunk(Zyx(3, 3, 3), fetched), whole(Box(Zyx(30, 39, 45), Zyx(40, 52, 60)))
    )


def test_the_plan_is_near_and_writes_nothing(scene, tmp_path):
    plan = str(plan_flatten(scene / "v.zarr", scene / "s.ppm", tmp_path / "a.png"))
    assert re.search(r"pixels +300 x 500, about \d\d % valid", plan)
    assert re.search(r"chunks +about \d+\n", plan)
    assert not list(tmp_path.iterdir())


def test_the_air_that_a_ledger_knows_is_not_read(tmp_path):
    """A volume of eight chunks of which one holds something."""

    def block(box):
        return np.full(box.shape, 9 * (box.start == (0, 0, 0)), np.uint8)

    job = Job("test", str(tmp_path / "v.zarr"), VolumeSpec(Zyx.of(256), np.dtype("uint8")), Zyx.of(128), {})
    write_blocks(job, block, RunOptions())
    report = flatten(tmp_path / "v.zarr", "flat:127", tmp_path / "a.png")
    assert (report.needed, report.fetched) == (1, 1)
    expected = np.zeros((256, 256))
    expected[:128, :128] = 9
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), expected)


def test_over_http_each_chunk_is_asked_for_once(scene, tmp_path):
    web = Web(scene)
    try:
        place = f"{web.url}/v.zarr", scene / "s.ppm"
        report = flatten(*place, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes() == (scene / "sheet.png").read_bytes()
        assert report.fetched == report.needed
        counts = [count for key, count in web.asked.items() if re.fullmatch(r"v.zarr/\d+\.\d+\.\d+", key)]
        # three chunks are asked for once more, to tell this volume from others
        assert sum(counts) - len(counts) <= 3
        assert len(counts) >= report.needed
        web.faults["v.zarr/1.1.1"] = [403]
        with pytest.raises(StoreError, match=r"cannot read 1\.1\.1 of http://.*/v.zarr .* 403"):
            flatten(*place, tmp_path / "b.png", FlattenSettings(depth=3))
    finally:
        web.close()
    assert not (tmp_path / "b.png").exists()


def test_the_command(scene, tmp_path):
    out = tmp_path / "layers"
    given = ["flatten", str(scene / "v.zarr"), "flat:20", str(out), "--depth", "1", "--reduce", "none"]
    assert "bytes out" in CliRunner().invoke(cli, [*given, "--plan"]).output
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 0, result.output
    assert "52 x 60 pixels, 3 layers" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["00.tif", "01.tif", "02.tif"]
    (out / "letter.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"layers is a folder that holds more than layers"):
        flatten(scene / "v.zarr", "flat:20", out, FlattenSettings(reduce="none"), RunOptions(overwrite=True))
    (out / "letter.txt").unlink()
    flatten(
        scene / "v.zarr", "flat:20", out, FlattenSettings(depth=0, reduce="none"), RunOptions(overwrite=True)
    )
    assert [path.name for path in out.iterdir()] == ["00.tif"]


def test_a_whole_number_may_be_a_float(scene, tmp_path):
    settings = FlattenSettings(depth=2.0, block=128.0, reduce="none")
    assert settings == FlattenSettings(depth=2, block=128, reduce="none")
    flatten(scene / "v.zarr", "flat:20", tmp_path / "layers", settings)
    assert len(list((tmp_path / "layers").iterdir())) == 5
    with pytest.raises(InputError, match=r"depth 2.5 cannot be: give whole voxels from 0 to 256"):
        FlattenSettings(depth=2.5)


def test_bad_input_is_told_in_a_line(scene, tmp_path):
    volume, surface, out = scene / "v.zarr", scene / "s.ppm", tmp_path / "a.png"
    with pytest.raises(InputError, match=r"depth -1 cannot be: give whole voxels from 0 to 256"):
        FlattenSettings(depth=-1)
    with pytest.raises(InputError, match=r"reduce 'min' is unknown: use max, mean, none"):
        FlattenSettings(reduce="min")
    with pytest.raises(InputError, match=r"layers have no alpha"):
        FlattenSettings(reduce="none", alpha=True)
    with pytest.raises(InputError, match=r"block 100 cannot be: use a multiple of 128"):
        FlattenSettings(block=100)
    with pytest.raises(InputError, match=r"a.jpg names no format of a sheet: use .png or .tif"):
        flatten(volume, surface, tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"layers \(--reduce none\): they are written to a folder or .tif"):
        flatten(volume, surface, out, FlattenSettings(reduce="none"))
    with pytest.raises(InputError, match=r"is in no local folder that exists"):
        flatten(volume, surface, tmp_path / "no" / "a.png")
    with pytest.raises(InputError, match=r"surface 'flat:40' cannot be: give flat:Z, .* from 0 to 39"):
        flatten(volume, "flat:40", out)
    with pytest.raises(InputError, match=r"surface .*none.ppm does not exist"):
        flatten(volume, tmp_path / "none.ppm", out)
    with pytest.raises(InputError, match=r"no Zarr volume at"):
        flatten(tmp_path / "none.zarr", surface, out)
    zarr.create_array(tmp_path / "i.zarr", shape=(3, 3, 3), dtype="int32")
    with pytest.raises(InputError, match=r"holds int32: flatten uint8, uint16 or float"):
        flatten(tmp_path / "i.zarr", "flat:1", out)
    nowhere = np.full((4, 4, 3), 1e4)
    write_ppm(tmp_path / "far.ppm", nowhere, np.full_like(nowhere, 0.6))
    with pytest.raises(InputError, match=r"far.ppm lies outside v.zarr \(40,52,60\) as a whole"):
        flatten(volume, tmp_path / "far.ppm", out)
    write_tifxyz(tmp_path / "blank.tifxyz", nowhere, valid=np.zeros((4, 4), bool))
    with pytest.raises(InputError, match=r"has no valid pixel"):
        flatten(volume, tmp_path / "blank.tifxyz", out)
    assert not out.exists()
    assert not list(tmp_path.glob("*.tiles"))
    out.write_text("mine")
    with pytest.raises(InputError, match=r"a.png exists: choose another name, or --overwrite"):
        flatten(volume, surface, out)
    assert out.read_text() == "mine"
    flatten(volume, surface, out, options=RunOptions(overwrite=True))
    assert out.read_bytes() == (scene / "sheet.png").read_bytes()


@pytest.mark.parametrize("wrong", [np.nan, 1.5])
def test_refused_voxels_leave_no_tiles(tmp_path, wrong):
    voxels = np.full((8, 300, 300), 0.5, np.float32)
    voxels[4, 200, 200] = wrong
    zarr.create_array(tmp_path / "v.zarr", data=voxels, chunks=(8, 100, 100), zarr_format=2)
    settings = FlattenSettings(depth=1, block=128)
    with pytest.raises(InputError, match=r"where it is 0 \.\. 1"):
        flatten(tmp_path / "v.zarr", "flat:4", tmp_path / "n.png", settings)
    assert [path.name for path in tmp_path.iterdir()] == ["v.zarr"]


def test_a_small_volume_needs_a_small_cache(tmp_path):
    stored_volume(tmp_path)
    plan = plan_flatten(tmp_path / "v.zarr", "flat:4", tmp_path / "n.png")
    assert plan.job.shared_bytes == SHAPE.volume
