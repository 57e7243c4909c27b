"""Which reader opens what, Zarr sources, and the words for what cannot be read."""

import pickle

import numpy as np
import pytest
import zarr

from inkzarr.core.errors import InputError, StoreError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.readers import open_source
from inkzarr.readers.base import Reordered, one_voxel_size
from inkzarr.readers.numbering import in_order

VOXELS = np.random.default_rng(3).integers(0, 65536, (6, 20, 30), "uint16")


class FakeSource:
    """A Source without files, stored in another order."""

    shape = Zyx(4, 5, 3)
    dtype = np.dtype("uint8")
    voxel_size_um = 7.91
    name = "fake"
    identity = {"kind": "fake"}  # noqa: RUF012
    block = Zyx(4, 1, 1)
    voxels = np.arange(60, dtype="uint8").reshape(4, 5, 3)

    def read(self, box):
        return self.voxels[box.slices]


def test_reordered():
    source = Reordered(FakeSource(), "yxz")
    assert source.shape == (3, 4, 5)
    assert source.block == (1, 4, 1)
    assert (source.name, source.dtype, source.voxel_size_um) == ("fake", np.uint8, 7.91)
    assert source.identity == {"kind": "fake", "axes": "yxz"}
    box = Box(Zyx(1, 0, 2), Zyx(3, 4, 5))
    np.testing.assert_array_equal(source.read(box), FakeSource.voxels.transpose(2, 0, 1)[box.slices])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", ["zyx", "yxz"])
def test_zarr(tmp_path, zarr_format, axes):
    array = zarr.create_array(
        tmp_path / "v", data=VOXELS.astype(">u2"), chunks=(4, 8, 16), zarr_format=zarr_format
    )
    assert array.shape == VOXELS.shape
    source = open_source(str(tmp_path / "v"), axes=axes)
    seen = VOXELS.transpose([axes.index(axis) for axis in "zyx"])
    box = Box(Zyx(1, 2, 3), Zyx(*seen.shape))
    for one in (source, pickle.loads(pickle.dumps(source))):
        read = one.read(box)
        assert read.dtype == np.dtype("uint16")
        np.testing.assert_array_equal(read, seen[box.slices])
    assert source.block == Zyx(*((4, 8, 16)[axes.index(axis)] for axis in "zyx"))
    assert source.name == "v"
    assert str(tmp_path) not in str(source.identity)


def test_zarr_with_floats_or_a_damaged_chunk(tmp_path):
    zarr.save_array(tmp_path / "f", VOXELS.astype("f4"))
    with pytest.raises(InputError, match=r"f holds float32 voxels"):
        open_source(str(tmp_path / "f"))
    zarr.create_array(tmp_path / "d", data=VOXELS, chunks=(6, 20, 30), zarr_format=2)
    (tmp_path / "d" / "0.0.0").write_bytes(b"not a chunk")
    with pytest.raises(StoreError, match=r"chunk 0.0.0 .* does not decode \(.+\): copy or make it again"):
        open_source(str(tmp_path / "d")).read(Box.whole(VOXELS.shape))


def test_a_codec_that_fails_without_a_word_is_told_by_its_error(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "d", data=VOXELS, chunks=(6, 20, 30), zarr_format=2)
    stored = open_source(str(tmp_path / "d"))

    def decode(*args):
        raise AssertionError

    monkeypatch.setattr("numcodecs.zstd.Zstd.decode", decode, raising=True)
    monkeypatch.setattr("numcodecs.blosc.Blosc.decode", decode, raising=True)
    with pytest.raises(StoreError, match=r"does not decode \(AssertionError\)"):
        stored.read(Box.whole(VOXELS.shape))


@pytest.mark.parametrize("axes", ["zy", "zyxx", "abc", "zzy", "ZYX", ""])
def test_axes_that_cannot_be(tmp_path, axes):
    with pytest.raises(InputError, match=rf"axes '{axes}' cannot be: name z, y and x once each"):
        open_source(str(tmp_path), axes=axes)


def test_what_is_not_read(tmp_path):
    with pytest.raises(InputError, match=r"nothing at .*missing: what is read is a folder of .tif slices"):
        open_source(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"nothing at .*missing.h5"):
        open_source(f"{tmp_path}/missing.h5::raw")
    with pytest.raises(InputError, match=r"holds neither .tif slices nor a Zarr volume"):
        open_source(str(tmp_path))
    (tmp_path / "v.mrc").write_bytes(b"")
    with pytest.raises(InputError, match=r"v.mrc is of no kind that is read"):
        open_source(str(tmp_path / "v.mrc"))


def test_no_number_in_names():
    with pytest.raises(InputError, match="have no number in their names"):
        in_order(["a.tif", "a.tiff"])
    assert in_order(["only.tif"]) == ["only.tif"]
    assert in_order(["v2_010.tif", "v2_9.tif"]) == ["v2_9.tif", "v2_010.tif"]


def test_one_voxel_size():
    assert one_voxel_size([2.0, 2.01, 2.0]) == 2.0
    assert one_voxel_size([]) is None
    assert one_voxel_size([0.0, 0.0, 0.0]) is None
    assert one_voxel_size([float("inf")] * 3) is None
