"""NRRD and TIFF, read back by pynrrd, SimpleITK and tifffile."""

import itertools
import re
import sys

import nrrd
import numpy as np
import pytest
import tifffile
import zarr

from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.ome import add_level
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.volume import StoredVolume
from inkzarr.export import export
from inkzarr.writers import base, tiff
from inkzarr.writers.base import block_shape

STAGE = sys.modules["inkzarr.export"]
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


def bare(path, voxels, chunks=(7, 5, 6)):
    array = zarr.create_array(path, shape=voxels.shape, dtype=voxels.dtype, chunks=chunks)
    array[:] = voxels
    return path


@pytest.fixture
def voxels():
    voxels = np.random.default_rng(0).integers(1, 120, (20, 11, 13), "uint8")
    voxels[:7, :5] = 0
    return voxels


@pytest.fixture
def scan(tmp_path, voxels):
    spec = VolumeSpec(Zyx(*voxels.shape), voxels.dtype, voxel_size_um=8.0)
    job = Job("test", str(tmp_path / "scan.zarr"), spec, Zyx.of(128), {})
    write_blocks(job, lambda box: voxels[box.slices], RunOptions())
    group = zarr.open_group(job.out, mode="r+")
    group.create_array("1", shape=(10, 6, 7), dtype="uint8")[:] = 9
    group.attrs.update(add_level(dict(group.attrs), "1", 2, "mean"))
    return tmp_path / "scan.zarr"


def test_nrrd_in_pynrrd_and_itk(tmp_path, scan, voxels):
    sitk = pytest.importorskip("SimpleITK")
    out = export(scan, tmp_path / "scan.nrrd")
    data, header = nrrd.read(str(out), index_order="C")
    np.testing.assert_array_equal(data, voxels, strict=True)
    assert header["space"] == "left-posterior-superior"
    image = sitk.ReadImage(str(out))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels)
    assert image.GetSize() == (13, 11, 20)
    assert image.GetSpacing() == pytest.approx((0.008,) * 3)
    assert image.GetOrigin() == pytest.approx((0, 0, 0))
    assert image.GetDirection() == pytest.approx(np.eye(3).ravel())


@pytest.mark.parametrize("box", ["3:17,2:10,1:12", Box(Zyx(3, 2, 1), Zyx(17, 10, 12))])
def test_a_box_lies_where_it_is_in_the_volume(tmp_path, scan, voxels, box):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(export(scan, tmp_path / "box.nrrd", box=box)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels[3:17, 2:10, 1:12])
    assert image.GetOrigin() == pytest.approx((0.008, 0.016, 0.024))
    assert image.TransformPhysicalPointToIndex((0.008 * 5, 0.008 * 5, 0.008 * 5)) == (4, 3, 2)


def test_a_level_lies_on_the_finest(tmp_path, scan):
    _, header = nrrd.read(str(export(scan, tmp_path / "coarse.nrrd", level=1, box=":,:,1:")))
    np.testing.assert_allclose(header["space directions"], np.eye(3) * 0.016)
    np.testing.assert_allclose(header["space origin"], [0.004 + 0.016, 0.004, 0.004])


@pytest.mark.parametrize("dtype", [*DTYPES, "uint64", "int64", "float16", ">u2"])
def test_dtypes_of_nrrd(tmp_path, voxels, dtype):
    url = bare(tmp_path / "bare.zarr", voxels.astype(dtype))
    data, header = nrrd.read(str(export(url, tmp_path / "bare.nrrd")), index_order="C")
    np.testing.assert_array_equal(data, voxels)
    kept = np.dtype("f4") if dtype == "float16" else np.dtype(dtype).newbyteorder("<")
    assert data.dtype == kept
    assert "space units" not in header


@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
def test_dtypes_of_tiff(tmp_path, voxels, dtype):
    url = bare(tmp_path / "bare.zarr", voxels.astype(dtype))
    data = tifffile.imread(export(url, tmp_path / "bare.tif", box=":,1:,:"))
    np.testing.assert_array_equal(data, voxels[:, 1:])
    assert data.dtype == (np.dtype("f4") if dtype == "float16" else np.dtype(dtype))


def test_tiff_is_an_imagej_stack(tmp_path, scan, voxels):
    out = export(scan, tmp_path / "scan.tiff")
    with tifffile.TiffFile(out) as tif:
        assert len(tif.pages) == 20
        np.testing.assert_array_equal(tif.asarray(), voxels)
        assert tif.imagej_metadata["spacing"] == 8.0
        assert tif.imagej_metadata["unit"] == "um"
        numerator, denominator = tif.pages[0].tags["XResolution"].value
        assert numerator / denominator == pytest.approx(1 / 8.0)


def test_big_tiff_has_ome_sizes(tmp_path, scan, voxels, monkeypatch):
    monkeypatch.setattr(tiff, "CLASSIC_TIFF_BYTES", 1000)
    with tifffile.TiffFile(export(scan, tmp_path / "scan.tif")) as tif:
        assert tif.is_bigtiff
        assert tif.is_ome
        assert len(tif.pages) == 20
        np.testing.assert_array_equal(tif.asarray(), voxels)
        assert re.findall(r'PhysicalSize([XYZ])="([\d.]+)"', tif.ome_metadata) == [
            (axis, "8.0") for axis in "XYZ"
        ]


@pytest.mark.parametrize("name", ["slice.tif", "slice.nrrd"])
@pytest.mark.parametrize("box", ["4:5,:,:", ":,4:5,:", ":,:,4:5", "4:5,4:5,4:5"])
def test_single_planes(tmp_path, scan, voxels, name, box):
    out = export(scan, tmp_path / name, box=box)
    read = tifffile.imread(out) if name.endswith("tif") else nrrd.read(str(out), index_order="C")[0]
    np.testing.assert_array_equal(
        np.squeeze(read), np.squeeze(voxels[Box.parse(box, Zyx(20, 11, 13)).slices])
    )


@pytest.mark.parametrize("budget", [1, 7 * 5 * 6 * 2, 7 * 5 * 6 * 7])
@pytest.mark.parametrize("name", ["scan.tif", "scan.nrrd"])
def test_every_chunk_is_read_once_in_small_blocks(tmp_path, voxels, monkeypatch, budget, name):
    monkeypatch.setattr(base, "BLOCK_BYTES", budget)
    url = bare(tmp_path / "bare.zarr", voxels)
    read, boxes = StoredVolume.read, []
    monkeypatch.setattr(StoredVolume, "read", lambda self, box: boxes.append(box) or read(self, box))
    inside = Box.parse("1:19,:,2:", Zyx(*voxels.shape))
    out = export(url, tmp_path / name, box=inside)
    data = tifffile.imread(out) if name.endswith("tif") else nrrd.read(str(out), index_order="C")[0]
    np.testing.assert_array_equal(data, voxels[inside.slices])
    assert max(box.shape.volume for box in boxes) <= max(budget, 7 * 5 * 6)
    grid = Grid(Zyx(*voxels.shape), Zyx(7, 5, 6))
    chunks = list(itertools.chain.from_iterable(grid.indices(box) for box in boxes))
    assert len(chunks) == len(set(chunks))


@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_blocks_of_a_whole_scroll_fit_the_memory(itemsize):
    cell = block_shape(Zyx(14376, 7888, 8096), Zyx(128, 128, 128), itemsize)
    assert cell.volume * itemsize <= base.BLOCK_BYTES
    assert all(n % 128 == 0 for n in cell)
    assert block_shape(Zyx(300, 100, 100), Zyx(128, 100, 100), itemsize) == (384, 100, 100)


def test_refusals_come_before_anything_is_written(tmp_path, scan, voxels):
    with pytest.raises(InputError, match=r"scan.obj names no format.*\.nrrd, \.nii, .*\*\.tif"):
        export(scan, tmp_path / "scan.obj")
    with pytest.raises(InputError, match="names no format"):
        export(scan, tmp_path / "folder")
    (tmp_path / "there.tif").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"there.tif exists: choose another name, or overwrite"):
        export(scan, tmp_path / "there.tif")
    assert (tmp_path / "there.tif").read_bytes() == b"mine"
    np.testing.assert_array_equal(
        tifffile.imread(export(scan, tmp_path / "there.tif", overwrite=True)), voxels
    )
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist"):
        export(scan, tmp_path / "nowhere" / "scan.tif")
    with pytest.raises(InputError, match=r"box '0:30,:,:' cannot be used"):
        export(scan, tmp_path / "scan.tif", box="0:30,:,:")
    with pytest.raises(InputError, match="level 2 does not exist"):
        export(scan, tmp_path / "scan.tif", level=2)
    url = bare(tmp_path / "long.zarr", voxels.astype("int64"))
    with pytest.raises(InputError, match=r"dtype int64 does not fit a TIFF.*\.nrrd"):
        export(url, tmp_path / "scan.tif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.zarr", "scan.zarr", "there.tif"]


def test_a_full_disk_is_told_before(tmp_path, scan, monkeypatch):
    monkeypatch.setattr(STAGE.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(InputError, match=r"needs 2.86 kB, the disk has 100 B"):
        export(scan, tmp_path / "scan.tif")


def test_a_bad_chunk_leaves_no_file(tmp_path, scan):
    chunk = scan / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(StoreError, match=r"0/0/0/0 .*cut short"):
        export(scan, tmp_path / "scan.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["scan.zarr"]


def test_real_scroll(tmp_path, real_data):
    sitk = pytest.importorskip("SimpleITK")
    for url in (real_data / "phi_rev.zarr", real_data / "scroll1_20231005123335_2-4_left" / "volume.zarr"):
        voxels = zarr.open_array(url, mode="r")[:]
        export(url, tmp_path / "real.nrrd", overwrite=True)
        export(url, tmp_path / "real.tif", overwrite=True)
        np.testing.assert_array_equal(nrrd.read(str(tmp_path / "real.nrrd"), index_order="C")[0], voxels)
        itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "real.nrrd")))
        np.testing.assert_array_equal(itk, voxels)
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "real.tif"), voxels)
