"""Ingest: the high byte, real volumes voxel for voxel, bounded memory, and nothing written on error."""

import dataclasses
import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_stored, open_volume
from inkzarr.ingest import IngestSettings, choose_block, ingest, plan_ingest, to_uint8

KEEP = IngestSettings(dtype="keep")


def volume(shape, dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def write_stack(folder: Path, voxels, **kwargs):
    folder.mkdir()
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / f"{z:03}.tif", plane, photometric="minisblack", **kwargs)
    return folder


@given(hnp.arrays(st.sampled_from(["uint16", "uint8"]), hnp.array_shapes(min_dims=3, max_dims=3)))
def test_to_uint8_is_the_high_byte(voxels):
    expected = np.floor(voxels / 256).astype("uint8") if voxels.dtype == np.uint16 else voxels
    for seen in (voxels, voxels.transpose(2, 0, 1)):
        assert to_uint8(seen).dtype == np.uint8
    np.testing.assert_array_equal(to_uint8(voxels), expected)


@given(
    shape=st.tuples(*[st.integers(2, 200)] * 3).filter(lambda s: np.prod(s) < 200_000),
    dtype=st.sampled_from(["uint8", "uint16"]),
    keep=st.booleans(),
    axes=st.permutations("zyx").map("".join),
    shard=st.sampled_from([None, 128, 256]),
)
def test_any_volume(shape, dtype, keep, axes, shard):
    voxels = volume(shape, dtype)
    settings = IngestSettings(axes, 3.5, "keep" if keep else "uint8", 2 if shard is None else 3, shard)
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(f"{folder}/v.h5", "w") as file:
            file["raw"] = voxels
        report = ingest(f"{folder}/v.h5", f"{folder}/o.zarr", settings, RunOptions(workers=2))
        seen = voxels.transpose([axes.index(axis) for axis in "zyx"])
        expected = seen if keep else to_uint8(seen)
        out = open_volume(f"{folder}/o.zarr")
        assert out.dtype == expected.dtype
        np.testing.assert_array_equal(out.values, expected)
        assert report.nonzero == np.count_nonzero(expected)
        assert out.attrs["voxel_size_um"] == 3.5


def test_real_stack_is_the_same_voxels(real_data, tmp_path):
    folder = next((real_data / "inkid_DummyTest/DummyTest.volpkg/volumes").iterdir())
    ingest(folder, tmp_path / "o.zarr", KEEP)
    out = open_volume(str(tmp_path / "o.zarr"))
    expected = zarr.open_array(real_data / "inkid_DummyTest/zarr256", mode="r")[:]
    np.testing.assert_array_equal(out.values, expected)
    assert out.dtype == "uint16"
    assert out.attrs["voxel_size_um"] == 10.0
    assert out.attrs["lineage"]["source"] == folder.name
    assert open_stored(str(tmp_path / "o.zarr")).chunks == (128, 128, 128)


@pytest.mark.parametrize("name", ["bone_128x128x128.tif", "shell_225x128x128.tif"])
def test_real_pages(real_data, tmp_path, name):
    ingest(real_data / name, tmp_path / "o.zarr")
    np.testing.assert_array_equal(
        open_volume(str(tmp_path / "o.zarr")).values, tifffile.imread(real_data / name)
    )


def test_real_hdf5(real_data, tmp_path):
    ingest(f"{real_data}/sample_patch.h5::raw", tmp_path / "o.zarr", IngestSettings(axes="yxz"))
    with h5py.File(real_data / "sample_patch.h5") as file:
        expected = file["raw"][:].transpose(2, 0, 1) >> 8
    np.testing.assert_array_equal(open_volume(str(tmp_path / "o.zarr")).values, expected)


def test_lineage_names_no_folder_of_this_machine(tmp_path):
    ingest(
        write_stack(tmp_path / "slices", volume((3, 8, 9))),
        tmp_path / "o.zarr",
        IngestSettings(voxel_size_um=2),
    )
    lineage = open_volume(str(tmp_path / "o.zarr")).attrs["lineage"]
    assert lineage["stage"] == "ingest"
    assert lineage["source"] == "slices"
    assert lineage["settings"] == {"axes": "zyx", "dtype": "uint8", "voxel_size_um": 2}
    for path in (tmp_path / "o.zarr").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes()


def test_the_voxel_size_is_said_where_assumed(tmp_path, capsys):
    source = write_stack(tmp_path / "slices", volume((3, 8, 9)))
    ingest(source, tmp_path / "a.zarr")
    captured = capsys.readouterr()
    assert "slices does not tell its voxel size: 7.91 um is assumed; --voxel-size sets it" in captured.err
    assert not captured.out
    assert open_volume(str(tmp_path / "a.zarr")).attrs["voxel_size_um"] == 7.91
    ingest(source, tmp_path / "b.zarr", IngestSettings(voxel_size_um=7.91))
    assert "assumed" not in capsys.readouterr().err


def test_a_zarr_of_flat_voxels_tells_no_single_size(tmp_path, capsys):
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    scale = {"type": "scale", "scale": [50.0, 7.0, 7.0]}
    image = {
        "version": "0.4",
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    group = zarr.create_group(tmp_path / "flat.zarr", zarr_format=2, attributes={"multiscales": [image]})
    group.create_array("0", data=volume((3, 8, 9)), chunks=(3, 8, 9))
    ingest(str(tmp_path / "flat.zarr"), tmp_path / "out.zarr")
    assert "flat.zarr does not tell its voxel size: 7.91 um is assumed" in capsys.readouterr().err


def test_resume_and_refuse(tmp_path):
    source = write_stack(tmp_path / "slices", volume((3, 8, 9)))
    ingest(source, tmp_path / "o.zarr", KEEP)
    assert ingest(source, tmp_path / "o.zarr", KEEP).resumed == 1
    with pytest.raises(InputError, match=r"begun with other settings .*dtype was 'uint16', is 'uint8'"):
        ingest(source, tmp_path / "o.zarr")
    with pytest.raises(InputError, match=r"begun with other settings .*voxel_size_um"):
        ingest(source, tmp_path / "o.zarr", dataclasses.replace(KEEP, voxel_size_um=3))
    other = write_stack(tmp_path / "others", volume((3, 8, 9)), description="longer files")
    with pytest.raises(InputError, match=r"begun with other settings"):
        ingest(other, tmp_path / "o.zarr", KEEP)
    ingest(other, tmp_path / "o.zarr", KEEP, RunOptions(overwrite=True))


def test_plan_writes_nothing(tmp_path):
    source = write_stack(tmp_path / "slices", volume((3, 8, 9)))
    plan = plan_ingest(source, tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()
    assert set(plan.extra) == {"voxel size", "bytes in", "estimated time"}
    assert plan.extra["voxel size"] == "7.91 um is assumed"
    assert plan.extra["bytes in"] == "432 B of uint16 voxels"
    ingest(source, tmp_path / "o.zarr")
    assert plan_ingest(source, tmp_path / "o.zarr").done == 1


def missing(folder):
    (folder / "slices/001.tif").unlink()


def cut(folder):
    path = folder / "slices/002.tif"
    path.write_bytes(path.read_bytes()[:-9])


def damaged_gzip(folder):
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: gzip\n\n"
    (folder / "slices/v.nrrd").write_bytes(header + gzip.compress(bytes(64))[:-6])


@pytest.mark.parametrize(
    ("break_it", "source", "settings", "match"),
    [
        (missing, "slices", {}, "slice 1 is missing"),
        (cut, "slices", {}, "slice '002.tif' is cut short"),
        (damaged_gzip, "slices/v.nrrd", {}, "v.nrrd does not unpack"),
        (lambda _: None, "slices", {"shard": 256}, "shard 256 needs Zarr format 3"),
        (lambda _: None, "slices", {"shard": 100, "zarr_format": 3}, "shard 100 does not hold whole chunks"),
        (lambda _: None, "slices", {"voxel_size_um": -1.0}, r"voxel size -1.0 um cannot be"),
        (lambda _: None, "nothing", {}, "nothing at"),
    ],
)
def test_nothing_is_written_on_error(tmp_path, break_it, source, settings, match):
    write_stack(tmp_path / "slices", volume((3, 8, 9)))
    break_it(tmp_path)
    for function in (ingest, plan_ingest):
        with pytest.raises(InputError, match=match):
            function(tmp_path / source, tmp_path / "o.zarr", IngestSettings(**settings))
        assert not (tmp_path / "o.zarr").exists()


def test_settings_that_cannot_be():
    with pytest.raises(InputError, match="axes 'xy' cannot be"):
        IngestSettings(axes="xy")
    with pytest.raises(InputError, match="dtype 'float32' cannot be: use uint8 or keep"):
        IngestSettings(dtype="float32")


def test_a_source_never_overwrites_itself(tmp_path):
    ingest(write_stack(tmp_path / "slices", volume((3, 8, 9))), tmp_path / "o.zarr")
    for source, out in (("o.zarr", "o.zarr"), ("o.zarr/0", "o.zarr"), ("o.zarr", "o.zarr/0")):
        with pytest.raises(InputError, match="lie in each other: choose a target elsewhere"):
            ingest(tmp_path / source, tmp_path / out, KEEP, RunOptions(overwrite=True))
    ingest(tmp_path / "slices", tmp_path / "slices/inside.zarr", KEEP)
    assert open_volume(str(tmp_path / "o.zarr")).shape == (3, 8, 9)


def test_memory_given_makes_blocks_smaller(tmp_path):
    source = write_stack(tmp_path / "slices", volume((2, 300, 1100)), rowsperstrip=300, compression="lzw")
    free = plan_ingest(source, tmp_path / "o.zarr", KEEP, RunOptions(workers=2))
    tight = plan_ingest(source, tmp_path / "o.zarr", KEEP, RunOptions(workers=2, memory=6_000_000))
    assert free.job.grid.cell == (2, 384, 1152)
    assert tight.job.grid.cell.volume < free.job.grid.cell.volume
    assert tight.peak_bytes <= 6_000_000
    ingest(source, tmp_path / "o.zarr", KEEP, RunOptions(workers=2, memory=6_000_000))
    np.testing.assert_array_equal(open_volume(str(tmp_path / "o.zarr")).values, volume((2, 300, 1100)))
    with pytest.raises(InputError, match="use smaller blocks or more memory"):
        plan_ingest(source, tmp_path / "p.zarr", KEEP, RunOptions(memory=1000))


@pytest.mark.parametrize(
    ("cell", "limit", "expected"),
    [
        ((1, 1, 8096), 2**40, (128, 128, 8192)),
        ((1, 7888, 8096), 2**40, (128, 7936, 8192)),
        ((1, 7888, 8096), 2**28, (128, 256, 8192)),
        ((128, 128, 128), 2**40, (128, 128, 128)),
        ((64, 256, 128), 2**40, (128, 256, 128)),
        ((8, 25, 50), 2**40, (128, 256, 384)),
        ((1, 7888, 8096), 1, (128, 128, 128)),
    ],
)
def test_choose_block(cell, limit, expected):
    spec = VolumeSpec(Zyx(14376, 7888, 8096), np.dtype("uint8"))
    fits = lambda block: Zyx(*map(min, block, spec.shape)).volume <= limit  # noqa: E731
    assert choose_block(spec, Zyx(*cell), fits) == expected


MEASURE = """
import resource, sys
from inkzarr.core.job import RunOptions
from inkzarr.ingest import IngestSettings, ingest, plan_ingest
source, out, warm = sys.argv[1:]
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ingest(warm, out + ".warm", IngestSettings(voxel_size_um=1), RunOptions(workers=1))
before = peak()
promised = plan_ingest(source, out, options=RunOptions(workers=1)).peak_bytes
ingest(source, out, options=RunOptions(workers=1))
print(before, peak(), promised)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_volume(tmp_path):
    plane = np.arange(128 * 512, dtype="uint16").reshape(128, 512)
    measured = {}
    warm = write_stack(tmp_path / "warm", [plane[:64, :64]] * 4)
    for depth in (256, 8 * 256):
        source = write_stack(tmp_path / f"s{depth}", [plane], compression="lzw", rowsperstrip=16)
        for z in range(1, depth):
            (source / f"{z:03}.tif").hardlink_to(source / "000.tif")
        run = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / f"o{depth}"), str(warm)]
        text = subprocess.run(run, capture_output=True, check=True, text=True).stdout
        measured[depth] = [int(part) for part in text.split()]
    small, large = (peak for _, peak, _ in measured.values())
    assert large < 1.1 * small, measured
    for before, peak, promised in measured.values():
        assert peak - before < 1.25 * promised, measured


def test_only_the_first_voxel_is_read_before_the_run(tmp_path, monkeypatch):
    source = write_stack(tmp_path / "slices", volume((3, 8, 9)))
    boxes = []
    from inkzarr.readers.tiff import TiffStack

    read = TiffStack.read
    monkeypatch.setattr(TiffStack, "read", lambda self, box: boxes.append(box) or read(self, box))
    ingest(source, tmp_path / "o.zarr")
    assert boxes == [Box(Zyx(0, 0, 0), Zyx(1, 1, 1)), Box(Zyx(0, 0, 0), Zyx(3, 8, 9))]
