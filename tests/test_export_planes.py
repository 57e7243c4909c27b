"""NIfTI, folders of slices and movies, read back by nibabel, SimpleITK, Pillow, tifffile and ffmpeg."""

import itertools
import re
import subprocess
import sys

import imageio_ffmpeg
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.job import Job, RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import open_stored
from inkzarr.core.volume import StoredVolume
from inkzarr.export import export
from inkzarr.readers import open_source
from inkzarr.writers import base, medical, planes
from inkzarr.writers.base import Cutout, read_planes
from inkzarr.writers.planes import PlaneSettings

STAGE = sys.modules["inkzarr.export"]
SHAPE = Zyx(20, 11, 13)


def bare(path, voxels, chunks=(7, 5, 6)):
    array = zarr.create_array(path, shape=voxels.shape, dtype=voxels.dtype, chunks=chunks)
    array[:] = voxels
    return path


@pytest.fixture
def voxels():
    voxels = np.random.default_rng(0).integers(1, 120, SHAPE, "uint8")
    voxels[:7, :5] = 0
    return voxels


@pytest.fixture
def scan(tmp_path, voxels):
    spec = VolumeSpec(SHAPE, voxels.dtype, voxel_size_um=8.0)
    job = Job("test", str(tmp_path / "scan.zarr"), spec, Zyx.of(128), {})
    write_blocks(job, lambda box: voxels[box.slices], RunOptions())
    return tmp_path / "scan.zarr"


def frames(path):
    """Every frame in grey, and what ffmpeg says of the stream."""
    exe = imageio_ffmpeg.get_ffmpeg_exe()
    told = subprocess.run([exe, "-i", path], capture_output=True, text=True, check=False).stderr
    stream = next(line for line in told.splitlines() if "Video:" in line)
    columns, rows = map(int, re.search(r", (\d+)x(\d+)", stream).groups())
    command = [exe, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, "uint8").reshape(-1, rows, columns), stream


@pytest.mark.parametrize("name", ["box.nii", "box.nii.gz", "box.nrrd"])
def test_itk_sees_a_box_at_the_same_place_in_every_format(tmp_path, scan, voxels, name):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(export(scan, tmp_path / name, box="3:17,2:10,1:12")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels[3:17, 2:10, 1:12])
    assert image.GetOrigin() == pytest.approx((0.008, 0.016, 0.024))
    assert image.GetSpacing() == pytest.approx((0.008,) * 3)
    assert image.GetDirection() == pytest.approx(np.eye(3).ravel())


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "float32", "float64", "int64", "float16", ">u2"]
)
def test_nifti_in_nibabel(tmp_path, voxels, dtype, name):
    url = bare(tmp_path / "bare.zarr", voxels.astype(dtype))
    image = nibabel.load(export(url, tmp_path / name))
    data = np.asarray(image.dataobj)
    np.testing.assert_array_equal(data.transpose(), voxels)
    assert data.dtype == (np.dtype("f4") if dtype == "float16" else np.dtype(dtype).newbyteorder("<"))
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_xyzt_units()[0] == "unknown"


def test_a_long_nifti_is_of_version_2(tmp_path, voxels, monkeypatch):
    monkeypatch.setattr(medical, "NIFTI1_LONGEST", 19)
    image = nibabel.load(export(bare(tmp_path / "bare.zarr", voxels), tmp_path / "scan.nii"))
    assert isinstance(image, nibabel.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(), voxels)


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    chunks=st.tuples(*[st.integers(1, 6)] * 3),
    axis=st.integers(0, 2),
    step=st.integers(1, 15),
    budget=st.sampled_from([1, 100, 10**6]),
    data=st.data(),
)
def test_planes_are_those_of_the_array_and_no_chunk_is_read_twice(
    tmp_path_factory, shape, chunks, axis, step, budget, data
):
    folder = tmp_path_factory.mktemp("planes")
    chunks = tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))
    voxels = np.random.default_rng(1).integers(0, 3, shape, "uint16")
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
    box = Box(Zyx(*starts), Zyx(*stops))
    stored = open_stored(bare(folder / "bare.zarr", voxels, chunks))
    read, boxes = StoredVolume.read, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BLOCK_BYTES", budget)
        patch.setattr(StoredVolume, "read", lambda self, box: boxes.append(box) or read(self, box))
        found = [(n, p.copy()) for n, p in read_planes(Cutout.of(stored, box), folder, axis=axis, step=step)]
    expected = np.moveaxis(voxels[box.slices], axis, 0)[::step]
    assert [n for n, _ in found] == list(range(box.start[axis], box.stop[axis], step))
    np.testing.assert_array_equal(np.stack([plane for _, plane in found]), expected)
    grid = Grid(Zyx(*shape), Zyx(*chunks))
    touched = list(itertools.chain.from_iterable(grid.indices(box) for box in boxes))
    assert len(touched) == len(set(touched))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_slices_without_loss(tmp_path, voxels, dtype, suffix):
    url = bare(tmp_path / "bare.zarr", voxels.astype(dtype) * (300 if dtype == "uint16" else 1))
    out = export(url, tmp_path / f"slices/*{suffix}", box="2:19,1:,:", planes=PlaneSettings(axis="y", step=3))
    assert out == tmp_path / "slices"
    assert sorted(path.name for path in out.iterdir()) == [f"{n:05}{suffix}" for n in (1, 4, 7, 10)]
    expected = zarr.open_array(url)[2:19]
    for path in out.iterdir():
        plane = np.asarray(Image.open(path))
        np.testing.assert_array_equal(plane, expected[:, int(path.stem)])
        assert plane.dtype == dtype


def test_tif_slices_keep_floats_and_their_pixel_size_and_come_back_through_ingest(tmp_path, scan, voxels):
    out = export(scan, tmp_path / "slices/*.tif")
    source = open_source(str(out))
    np.testing.assert_array_equal(source.read(Box.whole(SHAPE)), voxels)
    with tifffile.TiffFile(out / "00003.tif") as tif:
        numerator, denominator = tif.pages[0].tags["XResolution"].value
        assert 1e4 * denominator / numerator == pytest.approx(8.0)
    deep = bare(tmp_path / "deep.zarr", voxels.astype("f4") / 7)
    planes = export(deep, tmp_path / "deep/*.tif", box="4:5,:,:")
    np.testing.assert_array_equal(tifffile.imread(planes / "00004.tif"), voxels[4].astype("f4") / 7)


def smooth(shape):
    z, y, x = np.indices(shape)
    return (100 + 60 * np.sin(z / 5) * np.cos(y / 9) + 40 * np.sin(x / 11)).astype("uint8")


def test_jpeg_slices_are_near(tmp_path):
    scan = smooth((4, 64, 81))
    url = bare(tmp_path / "bare.zarr", scan.astype("uint16") << 8, (2, 64, 64))
    out = export(url, tmp_path / "Slices/*.JPG")
    assert sorted(path.name for path in out.iterdir()) == [f"{n:05}.jpg" for n in range(4)]
    for path in out.iterdir():
        error = np.asarray(Image.open(path)).astype(int) - scan[int(path.stem)]
        assert np.abs(error).max() < 8


@pytest.mark.parametrize(("axis", "step"), [("z", 1), ("y", 3), ("x", 2)])
def test_a_movie_goes_along_any_axis(tmp_path, axis, step):
    scan = smooth((24, 51, 40))
    url = bare(tmp_path / "bare.zarr", scan, (10, 20, 30))
    found, stream = frames(export(url, tmp_path / "scan.mp4", planes=PlaneSettings(axis, step)))
    expected = np.moveaxis(scan, "zyx".index(axis), 0)[::step]
    assert "h264" in stream
    assert "25 fps" in stream
    assert found.shape == (len(expected), *(n + n % 2 for n in expected.shape[1:]))
    shown = found[:, : expected.shape[1], : expected.shape[2]].astype(int)
    assert np.abs(shown - expected).mean() < 3


def test_two_volumes_side_by_side(tmp_path):
    scan = smooth((6, 40, 50))
    ink = np.zeros(scan.shape, "uint8")
    ink[:, 10:30, 20:40] = 255
    urls = [bare(tmp_path / name, volume, (4, 20, 20)) for name, volume in (("s", scan), ("i", ink))]
    both = PlaneSettings(beside=str(urls[1]))
    found, _ = frames(export(urls[0], tmp_path / "both.mp4", planes=both))
    assert found.shape == (6, 40, 50 + 8 + 50)
    assert np.abs(found[..., :50].astype(int) - scan).mean() < 4
    assert np.abs(found[..., 58:].astype(int) - ink).mean() < 4
    out = export(urls[0], tmp_path / "both/*.png", box="2:3,:,:", planes=both)
    plane = np.asarray(Image.open(out / "00002.png"))
    np.testing.assert_array_equal(plane[:, :50], scan[2])
    np.testing.assert_array_equal(plane[:, 58:], ink[2])


def test_refusals_come_before_anything_is_written(tmp_path, scan, voxels):
    deep = bare(tmp_path / "deep.zarr", voxels.astype("f4"))
    other = bare(tmp_path / "other.zarr", voxels[1:])
    with pytest.raises(InputError, match=r"axis 'w' is unknown: planes lie across z, y or x"):
        PlaneSettings(axis="w")
    with pytest.raises(InputError, match=r"step 0 cannot be"):
        PlaneSettings(step=0)
    with pytest.raises(InputError, match=r"a.nrrd is one volume: axis, step and a volume beside"):
        export(scan, tmp_path / "a.nrrd", planes=PlaneSettings(step=2))
    for name in ("a.mp4", "a/*.jpg", "a/*.png"):
        with pytest.raises(InputError, match=r"dtype float32 holds no grey levels for .*\.tif or \.nrrd"):
            export(deep, tmp_path / name)
    with pytest.raises(InputError, match=r"cannot stand side by side: give volumes of the same shape"):
        export(scan, tmp_path / "a.mp4", planes=PlaneSettings(beside=str(other)))
    with pytest.raises(InputError, match=r"\.tif slices hold one volume's own voxels"):
        export(scan, tmp_path / "a/*.tif", planes=PlaneSettings(beside=str(scan)))
    with pytest.raises(InputError, match=r"names no format"):
        export(scan, tmp_path / "*.nrrd")
    with pytest.raises(InputError, match=r"names no format"):
        export(scan, tmp_path / "a/*.gif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep.zarr", "other.zarr", "scan.zarr"]


def test_frames_that_no_player_shows_are_refused(tmp_path, scan, monkeypatch):
    monkeypatch.setattr(planes, "LARGEST_FRAME", 100)
    with pytest.raises(InputError, match=r"frames of 11 x 13 are more than players show.*coarser level"):
        export(scan, tmp_path / "scan.mp4")


def test_an_extra_that_is_not_installed_is_named(tmp_path, scan, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for name in ("scan.nii", "scan.nii.gz", "scan.mp4"):
        with pytest.raises(InputError, match=r'pip install "inkzarr\[export\]"'):
            export(scan, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.zarr"]


def test_a_folder_is_replaced_only_where_it_holds_nothing_but_slices(tmp_path, scan):
    folder = tmp_path / "slices"
    folder.mkdir()
    export(scan, folder / "*.png", box="0:9,:,:")
    with pytest.raises(InputError, match=r"slices exists: choose another name, or overwrite it"):
        export(scan, folder / "*.png")
    export(scan, folder / "*.png", box="0:3,:,:", overwrite=True)
    assert len(list(folder.iterdir())) == 3
    (folder / "thesis.odt").write_text("mine")
    with pytest.raises(InputError, match=r"slices exists and holds thesis.odt: choose another name"):
        export(scan, folder / "*.png", overwrite=True)
    (folder / "thesis.odt").unlink()
    with pytest.raises(InputError, match="exists and holds"):
        export(scan, folder / "*.jpg", overwrite=True)
    with pytest.raises(InputError, match="lie in each other"):
        export(scan, scan / "*.png", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file exists: choose another name"):
        export(scan, tmp_path / "file" / "*.png", overwrite=True)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mp4", "slices/*.png"])
def test_a_bad_chunk_leaves_nothing_and_what_was_there_stays(tmp_path, voxels, name):
    url = bare(tmp_path / "scan.zarr", voxels, (5, 11, 13))
    box = ":,:,:"
    export(url, tmp_path / name, box="0:2,:,:")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and ".zarr" not in str(p)}
    chunk = next(p for p in url.rglob("*") if p.is_file() and str(p).endswith(("c/3/0/0", "3.0.0")))
    chunk.write_bytes(b"x" * 20)
    with pytest.raises(StoreError, match=r"scan.zarr"):
        export(url, tmp_path / name, box=box, overwrite=True)
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and ".zarr" not in str(p)}
    assert after == before


def test_the_encoders_own_words_are_told(tmp_path, scan, monkeypatch):
    real = subprocess.Popen
    wrong = lambda command, **given: real([*command[:-3], "-vf", "nonsense", *command[-3:]], **given)  # noqa: E731
    monkeypatch.setattr(planes.subprocess, "Popen", wrong)
    with pytest.raises(InputError, match=r"ffmpeg failed on .*nonsense"):
        export(scan, tmp_path / "scan.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["scan.zarr"]


def test_the_command_line_writes_slices_and_a_movie(tmp_path, scan):
    from click.testing import CliRunner

    from inkzarr.cli import cli

    arguments = [
        "export",
        str(scan),
        str(tmp_path / "s/*.jpg"),
        "--axis",
        "x",
        "--step",
        "5",
        "--beside",
        str(scan),
    ]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.strip() == str(tmp_path / "s")
    assert [path.name for path in sorted((tmp_path / "s").iterdir())] == [
        "00000.jpg",
        "00005.jpg",
        "00010.jpg",
    ]


@pytest.mark.parametrize("name", ["phi_rev.zarr", "scroll1_20231005123335_2-4_left/volume.zarr"])
def test_real_scroll(tmp_path, real_data, name):
    sitk = pytest.importorskip("SimpleITK")
    url = real_data / name
    voxels = zarr.open_array(url, mode="r")[:]
    for suffix in ("nrrd", "nii", "nii.gz"):
        image = sitk.ReadImage(str(export(url, tmp_path / f"real.{suffix}")))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels)
    np.testing.assert_array_equal(nrrd.read(str(tmp_path / "real.nrrd"), index_order="C")[0], voxels)
    np.testing.assert_array_equal(tifffile.imread(export(url, tmp_path / "real.tif")), voxels)
    found, _ = frames(export(url, tmp_path / "real.mp4"))
    assert len(found) == len(voxels)
    shown = found[:, : voxels.shape[1], : voxels.shape[2]].astype(int)
    assert np.abs(shown - voxels).mean() < 4
