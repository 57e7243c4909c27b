"""Halving against a brute-force loop; levels through the runner, killed, resumed, listed, refused."""

import dataclasses
import itertools
import math
import sys
import warnings

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from inkzarr.core.errors import BlocksFailedError, InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.ledger import Ledger
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_stored, open_volume
from inkzarr.pyramid import halve, plan_pyramid, pyramid

STAGE = sys.modules["inkzarr.pyramid"]
SHAPES = npst.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
WHOLE = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


def write(out, voxels, *, zarr_format=2, shard=None, region=None):
    spec = VolumeSpec(
        Zyx(*voxels.shape), voxels.dtype, voxel_size_um=7.91, zarr_format=zarr_format, shard=shard
    )
    job = Job("test", str(out), spec, Zyx.of(128), {"x": 1}, region=region)
    write_blocks(job, lambda box: voxels[box.slices], RunOptions())
    return out


def brute(voxels, choose):
    out = np.zeros([-(-n // 2) for n in voxels.shape], voxels.dtype)
    for index in np.ndindex(out.shape):
        near = voxels[tuple(slice(2 * i, 2 * i + 2) for i in index)]
        out[index] = choose([v.item() for v in near.ravel()])
    return out


def half_up(values):
    return (2 * sum(values) + len(values)) // (2 * len(values))


@given(voxels=st.sampled_from(WHOLE).flatmap(lambda dtype: npst.arrays(dtype, SHAPES)))
def test_halve_of_whole_numbers_is_exact(voxels):
    np.testing.assert_array_equal(halve(voxels), brute(voxels, half_up), strict=True)
    np.testing.assert_array_equal(halve(voxels, "max"), brute(voxels, max), strict=True)


@pytest.mark.parametrize("dtype", WHOLE)
def test_halve_does_not_overflow(dtype):
    for extreme in (np.iinfo(dtype).max, np.iinfo(dtype).min):
        full = np.full((3, 2, 4), extreme, dtype)
        np.testing.assert_array_equal(halve(full), np.full((2, 1, 2), extreme, dtype), strict=True)


@given(
    voxels=st.sampled_from([16, 32]).flatmap(
        lambda width: npst.arrays(f"f{width // 8}", SHAPES, elements=st.floats(-100, 100, width=width))
    )
)
def test_halve_of_floats(voxels):
    expected = brute(voxels, lambda values: math.fsum(values) / len(values))
    np.testing.assert_allclose(halve(voxels), expected, rtol=1e-3 if voxels.dtype == np.float16 else 1e-6)
    np.testing.assert_array_equal(halve(voxels, "max"), brute(voxels, max))


def test_halve_keeps_nan():
    voxels = np.ones((2, 2, 4), "f4")
    voxels[0, 0, 0] = np.nan
    np.testing.assert_array_equal(halve(voxels), [[[np.nan, 1]]])


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize(("zarr_format", "shard"), [(2, None), (3, None), (3, 256)])
def test_levels_are_the_halved_volume(tmp_path, zarr_format, shard, reduce):
    voxels = np.random.default_rng(0).integers(0, 255, (280, 31, 130), "uint8")
    url = write(tmp_path / "scan.zarr", voxels, zarr_format=zarr_format, shard=shard)
    reports = pyramid(url, reduce=reduce)
    assert len(reports) == 2
    expected = voxels
    for level in range(3):
        stored = open_stored(str(url), level=level)
        np.testing.assert_array_equal(stored.array[:], expected, strict=True)
        assert stored.array.metadata.zarr_format == zarr_format
        assert stored.chunks == tuple(min(128, n) for n in expected.shape)
        assert (stored.array.shards is None) == (shard is None)
        assert stored.voxel_size_um == pytest.approx(7.91 * 2**level)
        assert stored.level.origin_um == pytest.approx([7.91 * (2**level - 1) / 2] * 3)
        assert stored.ledger.manifest.state == "done"
        expected = halve(expected, reduce)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_others_open_the_metadata(tmp_path, zarr_format):
    import ome_zarr_models.v04
    import ome_zarr_models.v05

    voxels = np.random.default_rng(1).integers(0, 255, (140, 20, 20), "uint8")
    url = write(tmp_path / "scan.zarr", voxels, zarr_format=zarr_format)
    pyramid(url, levels=2)
    models = ome_zarr_models.v04 if zarr_format == 2 else ome_zarr_models.v05
    image = models.Image.from_zarr(zarr.open_group(url, mode="r"))
    attributes = image.attributes if zarr_format == 2 else image.attributes.ome
    assert [dataset.path for dataset in attributes.multiscales[0].datasets] == ["0", "1", "2"]
    assert attributes.multiscales[0].type == "mean"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ome-zarr's own
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        levels = next(iter(Reader(parse_url(str(url), mode="r"))())).data
    np.testing.assert_array_equal(levels[1].compute(), halve(voxels))
    assert [level.shape for level in levels] == [(140, 20, 20), (70, 10, 10), (35, 5, 5)]


def test_default_stops_where_one_chunk_holds_a_level(tmp_path):
    small = write(tmp_path / "small.zarr", np.ones((128, 5, 5), "uint8"))
    assert pyramid(small) == []
    large = write(tmp_path / "large.zarr", np.ones((129, 5, 5), "uint8"))
    assert [open_stored(report.out, level=1).shape for report in pyramid(large)] == [(65, 3, 3)]


def test_a_failed_level_is_not_listed_and_is_taken_up_again(tmp_path, monkeypatch):
    voxels = np.random.default_rng(2).integers(1, 255, (300, 20, 20), "uint8")
    whole = write(tmp_path / "whole.zarr", voxels)
    url = write(tmp_path / "scan.zarr", voxels)
    pyramid(whole, levels=2)
    monkeypatch.setattr(STAGE, "BLOCK", 128)
    calls = itertools.count()

    def failing(voxels, reduce):
        if voxels.shape[0] < 256 and next(calls) < 3:  # the last block of level 1, in every try
            msg = "the lights went out"
            raise OSError(msg)
        return halve(voxels, reduce)

    monkeypatch.setattr(STAGE, "halve", failing)
    with pytest.raises(BlocksFailedError, match="the lights went out"):
        pyramid(url, levels=2)
    assert [level.path for level in open_stored(str(url)).levels] == ["0"]
    plan = plan_pyramid(url, levels=2)
    assert [(p.blocks, p.done) for p in plan] == [(2, 1), (1, 0)]
    reports = pyramid(url, levels=2)
    assert [(report.blocks, report.resumed) for report in reports] == [(2, 1), (1, 0)]
    for level in (1, 2):
        files = [sorted(p.relative_to(top) for p in (top / str(level)).rglob("*")) for top in (whole, url)]
        assert files[0] == files[1]
        for file in filter(lambda p: (whole / p).is_file(), files[0]):
            assert (whole / file).read_bytes() == (url / file).read_bytes()
    assert (url / ".zattrs").read_bytes() == (whole / ".zattrs").read_bytes()


def test_again_does_nothing_and_more_levels_are_added(tmp_path):
    url = write(tmp_path / "scan.zarr", np.ones((20, 20, 20), "uint8"))
    pyramid(url, levels=1)
    assert [(report.blocks, report.resumed) for report in pyramid(url, levels=3)] == [(1, 1), (1, 0), (1, 0)]
    pyramid(url, levels=1)
    assert [level.path for level in open_stored(str(url)).levels] == ["0", "1", "2", "3"]


def test_other_settings_and_other_voxels_are_refused_unless_overwritten(tmp_path):
    voxels = np.random.default_rng(3).integers(0, 255, (20, 20, 20), "uint8")
    url = write(tmp_path / "scan.zarr", voxels)
    pyramid(url, levels=2)
    with pytest.raises(InputError, match=r"reduce was 'mean', is 'max'.*--overwrite"):
        pyramid(url, levels=1, reduce="max")
    pyramid(url, levels=1, reduce="max", options=RunOptions(overwrite=True))
    np.testing.assert_array_equal(open_stored(str(url), level=1).array[:], halve(voxels, "max"))
    assert [level.path for level in open_stored(str(url)).levels] == ["0", "1"]
    assert not (url / "2").exists()
    assert not (url / ".inkzarr" / "2").exists()

    ledger = Ledger(open_stored(str(url)).array.store.with_read_only(read_only=False), "0")
    ledger.load()
    record = next(iter(ledger.records.values()))
    chunks = tuple(dataclasses.replace(chunk, crc32c=1) for chunk in record.chunks)
    ledger.add(dataclasses.replace(record, chunks=chunks))
    ledger.finish()
    with pytest.raises(InputError, match=r"other settings.*below.voxels was"):
        pyramid(url, levels=1, reduce="max")


def test_levels_of_others(tmp_path):
    url = write(tmp_path / "scan.zarr", np.full((20, 20, 20), 7, "uint8"))
    group = zarr.open_group(url, mode="r+")
    group.create_array("1", shape=(10, 10, 10), dtype="uint8")[:] = 1
    with pytest.raises(InputError, match=r"levels that inkzarr did not write \(1\).*--overwrite"):
        pyramid(url, levels=1)
    pyramid(url, levels=1, options=RunOptions(overwrite=True))
    assert open_stored(str(url), level=1).array[0, 0, 0] == 7


def test_anisotropic_levels_of_others_keep_unit_and_place(tmp_path):
    group = zarr.open_group(tmp_path / "scan.zarr", mode="w", zarr_format=2)
    group.create_array("0", shape=(6, 20, 20), dtype="uint16", chunks=(3, 7, 20))[:] = 5
    transforms = [
        {"type": "scale", "scale": [10.0, 4.0, 4.0]},
        {"type": "translation", "translation": [100.0, 0.0, 0.0]},
    ]
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    dataset = {"path": "0", "coordinateTransformations": transforms}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [dataset]}]
    group.attrs["omero"] = {"channels": []}
    zarr.consolidate_metadata(group.store, zarr_format=2)
    pyramid(tmp_path / "scan.zarr", levels=2)
    stored = open_stored(str(tmp_path / "scan.zarr"), level=2)
    assert stored.array[:].tolist() == np.full((2, 5, 5), 5).tolist()
    assert stored.level.spacing_um == pytest.approx((0.04, 0.016, 0.016))
    assert stored.level.origin_um == pytest.approx((0.115, 0.006, 0.006))
    assert stored.attributes["omero"] == {"channels": []}
    assert open_volume(str(tmp_path / "scan.zarr"), level=1).shape == (3, 10, 10)


def test_what_cannot_have_levels(tmp_path):
    zarr.save_array(tmp_path / "bare.zarr", np.zeros((4, 4, 4), "uint8"))
    with pytest.raises(InputError, match="bare array, which cannot hold levels: ingest"):
        pyramid(tmp_path / "bare.zarr")
    url = write(tmp_path / "scan.zarr", np.ones((20, 20, 20), "uint8"))
    with pytest.raises(InputError, match=r"levels 6 cannot be.*1 to 5 times"):
        pyramid(url, levels=6)
    with pytest.raises(InputError, match="levels 0 cannot be"):
        pyramid(url, levels=0)
    with pytest.raises(InputError, match="reduce 'median' is unknown: use mean or max"):
        pyramid(url, reduce="median")
    manifest = url / ".inkzarr" / "0" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"done"', '"running"'))
    with pytest.raises(InputError, match="is unfinished: run the command"):
        pyramid(url, levels=1)
    group = zarr.open_group(tmp_path / "noscale.zarr", mode="w", zarr_format=2)
    group.create_array("0", shape=(6, 6, 6), dtype="uint8")
    group.attrs["multiscales"] = [{"version": "0.4", "datasets": [{"path": "0"}]}]
    with pytest.raises(InputError, match="no level 0 with a scale"):
        pyramid(tmp_path / "noscale.zarr", levels=1)
    group.attrs["multiscales"] = [{"version": "0.4", "datasets": [{"path": "s0"}]}]
    group.create_array("s0", shape=(6, 6, 6), dtype="uint8")
    with pytest.raises(InputError, match="none at path 0"):
        pyramid(tmp_path / "noscale.zarr", levels=1)


@pytest.mark.parametrize(("dtype", "stage"), [("uint32", "test"), ("int64", "test"), ("uint8", "components")])
def test_ids_have_no_mean(tmp_path, dtype, stage):
    ids = np.zeros((6, 4, 4), dtype)
    ids[:3], ids[3:] = 2, 100
    spec = VolumeSpec(Zyx(*ids.shape), ids.dtype, lineage={"stage": stage})
    job = Job(stage, str(tmp_path / "ids.zarr"), spec, Zyx.of(128), {})
    write_blocks(job, lambda box: ids[box.slices], RunOptions())
    for call in (pyramid, plan_pyramid):
        with pytest.raises(InputError, match=rf"holds ids \({dtype}\).*use --reduce max"):
            call(job.out, levels=1)
    assert not (tmp_path / "ids.zarr/1").exists()
    pyramid(job.out, levels=1, reduce="max")
    assert set(np.unique(open_volume(job.out, level=1))) == {2, 100}


def test_nothing_is_deleted_when_overwriting_is_refused(tmp_path):
    url = write(tmp_path / "scan.zarr", np.ones((20, 20, 20), "uint8"))
    pyramid(url, levels=1)
    with pytest.raises(InputError, match="levels 9 cannot be"):
        pyramid(url, levels=9, options=RunOptions(overwrite=True))
    assert open_stored(str(url), level=1).shape == (10, 10, 10)


def test_real_micro_ct(tmp_path, real_data):
    voxels = tifffile.imread(real_data / "shell_225x128x128.tif")
    url = write(tmp_path / "shell.zarr", voxels, zarr_format=3, shard=128)
    assert len(pyramid(url)) == 1
    level = open_stored(str(url), level=1).array[:]
    assert level.shape == (113, 64, 64)
    np.testing.assert_array_equal(level, brute(voxels, half_up))
