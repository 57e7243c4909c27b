"""TIFF stacks and pages against numpy, and every way in which a stack may be broken."""

import io
import json
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.readers import open_source


def volume(shape=(5, 37, 50), dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def write_stack(folder: Path, voxels, name="s{:03}.tif", **kwargs):
    folder.mkdir(exist_ok=True)
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / name.format(z), plane, photometric="minisblack", **kwargs)
    return folder


ENCODINGS = [
    {},
    {"rowsperstrip": 7},
    {"bigtiff": True},
    {"byteorder": ">"},
    {"compression": "lzw", "rowsperstrip": 6},
    {"compression": "lzw", "predictor": True, "rowsperstrip": 10},
    {"compression": "zlib", "byteorder": ">", "rowsperstrip": 5},
    {"tile": (16, 32)},
    {"tile": (16, 16), "compression": "lzw", "bigtiff": True},
    {"compression": "packbits"},
]


@st.composite
def boxes(draw, shape):
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
    return Box(Zyx(*starts), Zyx(*stops))


@given(data=st.data())
def test_any_box_of_any_encoding(data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(2, 40), st.integers(2, 70)))
    dtype = data.draw(st.sampled_from(["uint8", "uint16"]))
    encoding = data.draw(st.sampled_from(ENCODINGS))
    axes = data.draw(st.permutations("zyx").map("".join))
    pages = data.draw(st.booleans())
    voxels = volume(shape, dtype)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "scan.tif"
        if pages:
            tifffile.imwrite(place, voxels, photometric="minisblack", **encoding)
        else:
            place = write_stack(Path(folder) / "stack", voxels, **encoding)
        source = open_source(str(place), axes=axes)
        seen = voxels.transpose([axes.index(axis) for axis in "zyx"])
        assert source.shape == seen.shape
        assert source.dtype == dtype
        box = data.draw(boxes(seen.shape))
        read = source.read(box)
        assert read.dtype == source.dtype
        np.testing.assert_array_equal(read, seen[box.slices])


def test_numeric_order_and_any_case(tmp_path):
    voxels = volume((12, 4, 5), "uint8")
    for z in range(12):
        tifffile.imwrite(tmp_path / f"slice_{z + 5}.{'TIF' if z % 2 else 'tiff'}", voxels[z])
    (tmp_path / "notes.txt").write_text("not a slice")
    (tmp_path / "._slice_5.tif").write_bytes(b"left by another system")
    np.testing.assert_array_equal(open_source(str(tmp_path)).read(Box.whole((12, 4, 5))), voxels)


def test_only_the_strips_of_the_box_are_read(tmp_path, monkeypatch):
    write_stack(tmp_path / "s", volume((2, 64, 32)), compression="lzw", rowsperstrip=4)
    source = open_source(str(tmp_path / "s"))
    decoded = []
    from inkzarr.readers import tiff

    true_decode = tiff._decode
    monkeypatch.setattr(
        tiff, "_decode", lambda page, data, index: decoded.append(index) or true_decode(page, data, index)
    )
    source.read(Box(Zyx(1, 10, 0), Zyx(2, 13, 32)))
    assert decoded == [2, 3]
    assert source.block == (1, 4, 32)


def test_pickled_source_reads(tmp_path):
    voxels = volume()
    source = open_source(str(write_stack(tmp_path / "s", voxels, compression="lzw")))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(Box.whole(voxels.shape)), voxels)


def test_identity_is_names_and_sizes(tmp_path):
    first = open_source(str(write_stack(tmp_path / "a", volume())))
    second = open_source(str(write_stack(tmp_path / "b", volume())))
    assert first.identity == second.identity
    assert str(tmp_path) not in json.dumps(first.identity)
    assert open_source(str(write_stack(tmp_path / "c", volume(), name="t{}.tif"))).identity != first.identity


def test_imagej_series_and_voxel_size(tmp_path):
    voxels = volume((6, 9, 11), "uint16")
    metadata = {"unit": "um", "spacing": 2.0, "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "j.tif", voxels, imagej=True, resolution=(0.5, 0.5), metadata=metadata)
    source = open_source(str(tmp_path / "j.tif"))
    assert source.voxel_size_um == pytest.approx(2.0)
    np.testing.assert_array_equal(source.read(Box.whole(voxels.shape)), voxels)


def test_one_header_for_all_slices(tmp_path):
    voxels = volume((6, 9, 11), "uint16")
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(voxels, photometric="minisblack", contiguous=True, truncate=True)
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        assert len(tiff.pages) == 1
    np.testing.assert_array_equal(open_source(str(tmp_path / "s.tif")).read(Box.whole(voxels.shape)), voxels)
    whole = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "s.tif").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="cut short"):
        open_source(str(tmp_path / "s.tif"))


def test_slices_behind_one_header_are_found_or_told(tmp_path):
    voxels = volume((6, 9, 11), "uint16")
    for number, options in enumerate(({"imagej": True, "metadata": {"axes": "ZYX"}}, {})):
        folder = tmp_path / str(number)
        folder.mkdir()
        shape = voxels if options else voxels[None]
        with tifffile.TiffWriter(folder / "s.tif", imagej="imagej" in options) as writer:
            writer.write(
                shape,
                photometric="minisblack",
                contiguous=True,
                truncate=True,
                metadata=options.get("metadata", {}),
            )
        with tifffile.TiffFile(folder / "s.tif") as tiff:
            assert len(tiff.pages) == 1
        found = open_source(str(folder / "s.tif")).read(Box.whole(voxels.shape))
        np.testing.assert_array_equal(found, voxels)
        with pytest.raises(InputError, match=r"'s.tif' holds 6 slices: a slice of a folder holds one"):
            open_source(str(folder))
        whole = (folder / "s.tif").read_bytes()
        (folder / "s.tif").write_bytes(whole[:-20])
        with pytest.raises(InputError, match=r"cut short|not all are there"):
            open_source(str(folder / "s.tif"))


def test_axes_of_one_are_none(tmp_path):
    voxels = volume((5, 9, 11))
    tifffile.imwrite(tmp_path / "one.tif", voxels[:, None, :, :, None], photometric="minisblack")
    np.testing.assert_array_equal(
        open_source(str(tmp_path / "one.tif")).read(Box.whole(voxels.shape)), voxels
    )
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((5, 9, 11, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="colour image"):
        open_source(str(tmp_path / "rgb.tif"))


@pytest.mark.parametrize("options", [{"ome": True, "metadata": {"axes": "CZYX"}}, {}])
def test_pages_of_two_axes_are_refused(tmp_path, options):
    tifffile.imwrite(tmp_path / "c.tif", volume((3, 2, 8, 8)), photometric="minisblack", **options)
    with pytest.raises(InputError, match="has 3 x 2 planes: a scan has one axis of slices"):
        open_source(str(tmp_path / "c.tif"))


@pytest.mark.parametrize("name", ["bone_128x128x128.tif", "shell_225x128x128.tif"])
def test_real_pages(real_data, name):
    voxels = tifffile.imread(real_data / name)
    source = open_source(str(real_data / name))
    np.testing.assert_array_equal(source.read(Box.whole(voxels.shape)), voxels)


def test_real_lzw_stack(real_data):
    folder = next((real_data / "inkid_DummyTest/DummyTest.volpkg/volumes").iterdir())
    source = open_source(str(folder))
    assert source.voxel_size_um == 10.0
    box = Box(Zyx(50, 101, 33), Zyx(90, 222, 600))
    np.testing.assert_array_equal(
        source.read(box), zarr.open_array(real_data / "inkid_DummyTest/zarr256", mode="r")[box.slices]
    )


def broken(tmp_path, break_it, **kwargs):
    folder = write_stack(tmp_path / "s", volume(), **kwargs)
    break_it(folder)
    return str(folder)


def replace(name, plane, **kwargs):
    return lambda folder: tifffile.imwrite(folder / name, plane, **kwargs)


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda f: (f / "s002.tif").unlink(), r"slice 2 is missing between 's001.tif' and 's003.tif'"),
        (lambda f: (f / "s004.tif").rename(f / "s009.tif"), r"slices 4 to 8 are missing"),
        (lambda f: [(f / "s001.tif").unlink(), (f / "s003.tif").unlink()], r"slice 1 is missing.*, 2 in all"),
        (
            lambda f: (f / "s01.tif").write_bytes((f / "s001.tif").read_bytes()),
            r"slice 1 is there 2 times: .*'s01.tif'",
        ),
        (lambda f: (f / "s001.tiff").write_bytes((f / "s001.tif").read_bytes()), r"slice 1 is there 2 times"),
        (lambda f: (f / "other.tif").write_bytes(b""), r"'other.tif' and 's000.tif' are named differently"),
        (lambda f: (f / "s005.tif").write_bytes(b""), r"slice 's005.tif' is no readable TIFF"),
        (
            lambda f: (f / "s005.tif").write_bytes(b"II*\0" + b"\xff" * 40),
            r"slice 's005.tif' is no readable TIFF",
        ),
        (
            replace("s003.tif", volume((37, 51))),
            r"slice 's003.tif' is 37 x 51 uint16, the first \('s000.tif'\) 37 x 50",
        ),
        (replace("s003.tif", volume((37, 50), "uint8")), r"slice 's003.tif' is 37 x 50 uint8"),
        (
            replace("s003.tif", np.zeros((37, 50, 3), "u1"), photometric="rgb"),
            r"slice 's003.tif' is a colour image \(3 samples",
        ),
        (
            replace("s003.tif", np.zeros((37, 50), "f4")),
            r"slice 's003.tif' holds float32 voxels \(floating.*rescale",
        ),
        (replace("s003.tif", np.zeros((37, 50), "i2")), r"slice 's003.tif' holds int16 voxels \(signed"),
        (
            replace("s003.tif", volume((2, 37, 50)), photometric="minisblack"),
            r"slice 's003.tif' holds 2 slices",
        ),
        (
            lambda f: (f / "meta.json").write_text('{"slices": 7, "voxelsize": 7.9}'),
            r"meta.json tells 7 slices, 5 are there",
        ),
    ],
)
def test_broken_stacks(tmp_path, break_it, match):
    with pytest.raises(InputError, match=match):
        open_source(broken(tmp_path, break_it))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_slices_cut_short(tmp_path, encoding):
    folder = write_stack(tmp_path / "s", volume(), **encoding)
    slice_ = folder / "s004.tif"
    with tifffile.TiffFile(slice_) as tiff:
        end = max(a + n for a, n in zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True))
    slice_.write_bytes(slice_.read_bytes()[: end - 1])
    with pytest.raises(InputError, match=r"slice 's004.tif' (is cut short|is no readable TIFF|lists)"):
        open_source(str(folder))


def test_byte_counts_past_the_end(tmp_path):
    folder = write_stack(tmp_path / "s", volume(), compression="lzw", rowsperstrip=37)
    with tifffile.TiffFile(folder / "s001.tif") as tiff:
        place = tiff.pages[0].tags["StripByteCounts"].valueoffset
        kind = tiff.pages[0].tags["StripByteCounts"].dtype.name
    with (folder / "s001.tif").open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<H" if kind == "SHORT" else "<I", 60000))
    with pytest.raises(InputError, match=r"slice 's001.tif' is cut short: its voxels reach byte \d+"):
        open_source(str(folder))


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
def test_strip_that_does_not_decode(tmp_path, compression):
    folder = write_stack(tmp_path / "s", volume(), compression=compression)
    with tifffile.TiffFile(folder / "s002.tif") as tiff:
        start, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    with (folder / "s002.tif").open("r+b") as file:
        file.seek(start)
        file.write(b"\x55" * count)
    source = open_source(str(folder))
    with pytest.raises(InputError, match=r"slice 's002.tif' cannot be read: strip or tile 0"):
        source.read(Box.whole(source.shape))


def test_file_that_shrank_after_it_was_opened(tmp_path):
    folder = write_stack(tmp_path / "s", volume())
    source = open_source(str(folder))
    (folder / "s003.tif").write_bytes((folder / "s003.tif").read_bytes()[:600])
    with pytest.raises(InputError, match=r"slice 's003.tif' cannot be read: it ends at byte 600"):
        source.read(Box.whole(source.shape))


def test_numbers_that_cannot_order(tmp_path):
    tifffile.imwrite(tmp_path / "a1_b1.tif", volume((4, 4)))
    tifffile.imwrite(tmp_path / "a2_b2.tif", volume((4, 4)))
    with pytest.raises(InputError, match="differ in 2 numbers"):
        open_source(str(tmp_path))


def test_pages_that_differ_and_that_break_off(tmp_path):
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        for plane in (volume((8, 8)), volume((8, 9))):
            writer.write(plane, contiguous=False)
    with pytest.raises(
        InputError, match=r"slice 1 of 'p.tif' is 8 x 9 uint16, the first \(0 of 'p.tif'\) 8 x 8"
    ):
        open_source(str(tmp_path / "p.tif"))
    with tifffile.TiffWriter(tmp_path / "q.tif") as writer:
        for plane in volume((4, 8, 8)):
            writer.write(plane, contiguous=False)
    whole = (tmp_path / "q.tif").read_bytes()
    (tmp_path / "q.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"'q.tif' (breaks off after page \d|is cut short)|page \d of 'q.tif'"
    ):
        open_source(str(tmp_path / "q.tif"))


def test_imagej_with_channels_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "c.tif", volume((3, 2, 8, 8)), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(InputError, match=r"'c.tif' has 2 channels, 3 slices"):
        open_source(str(tmp_path / "c.tif"))


def test_not_a_tiff(tmp_path):
    (tmp_path / "x.tif").write_bytes(io.BytesIO(b"hello").getvalue())
    with pytest.raises(InputError, match=r"slice 'x.tif' is no readable TIFF"):
        open_source(str(tmp_path / "x.tif"))
