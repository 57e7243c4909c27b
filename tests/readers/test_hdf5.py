"""HDF5 datasets in any axis order, and files that reach outside themselves."""

import pickle
import tempfile
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.readers import open_source

VOXELS = np.random.default_rng(1).integers(0, 65536, (6, 20, 30), "uint16")


def write(path: Path, name="raw", voxels=VOXELS, **kwargs):
    with h5py.File(path, "a") as file:
        return file.create_dataset(name, data=voxels, **kwargs).name


STORAGE = [
    {},
    {"chunks": (2, 7, 9), "compression": "gzip"},
    {"chunks": (3, 20, 30), **hdf5plugin.Blosc(cname="zstd")},
    {"chunks": (1, 20, 30), **hdf5plugin.LZ4()},
]


@given(
    axes=st.permutations("zyx").map("".join),
    dtype=st.sampled_from(["uint8", "<u2", ">u2"]),
    storage=st.sampled_from(STORAGE),
    data=st.data(),
)
def test_any_axes(axes, dtype, storage, data):
    voxels = VOXELS.astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "v.h5", "a/b/raw", voxels, **storage)
        source = open_source(f"{folder}/v.h5::a/b/raw", axes=axes)
        seen = voxels.transpose([axes.index(axis) for axis in "zyx"])
        assert source.shape == seen.shape
        assert source.dtype == np.dtype(dtype).newbyteorder("=")
        starts = [data.draw(st.integers(0, n - 1)) for n in seen.shape]
        stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, seen.shape, strict=True)]
        box = Box(Zyx(*starts), Zyx(*stops))
        np.testing.assert_array_equal(source.read(box), seen[box.slices])
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again.read(box), seen[box.slices])


def test_the_only_volume_needs_no_name(tmp_path):
    write(tmp_path / "v.hdf5", "deep/raw")
    write(tmp_path / "v.hdf5", "table", np.zeros((3, 4), "uint8"))
    source = open_source(str(tmp_path / "v.hdf5"))
    assert source.name == "v.hdf5::deep/raw"
    assert source.identity["dataset"] == "deep/raw"
    write(tmp_path / "v.hdf5", "other")
    with pytest.raises(InputError, match=r"v.hdf5 names no dataset: give one of ::deep/raw, ::other"):
        open_source(str(tmp_path / "v.hdf5"))
    with pytest.raises(InputError, match=r"has no dataset 'nothing': give one of"):
        open_source(f"{tmp_path}/v.hdf5::nothing")
    with pytest.raises(InputError, match=r"::table has 2 axes: a volume has three"):
        open_source(f"{tmp_path}/v.hdf5::table")
    with pytest.raises(InputError, match=r"::deep has no voxels, it is a group"):
        open_source(f"{tmp_path}/v.hdf5::deep")


def test_block_is_a_chunk_seen_as_zyx(tmp_path):
    write(tmp_path / "v.h5", chunks=(2, 7, 9))
    assert open_source(str(tmp_path / "v.h5")).block == (2, 7, 9)
    assert open_source(str(tmp_path / "v.h5"), axes="yxz").block == (9, 2, 7)


def test_element_size(tmp_path):
    write(tmp_path / "v.h5")
    with h5py.File(tmp_path / "v.h5", "a") as file:
        file["raw"].attrs["element_size_um"] = [7.91, 7.91, 7.91]
    assert open_source(str(tmp_path / "v.h5")).voxel_size_um == pytest.approx(7.91)


def test_links_inside_are_followed(tmp_path):
    write(tmp_path / "v.h5", "a/raw")
    with h5py.File(tmp_path / "v.h5", "a") as file:
        file["short"] = h5py.SoftLink("/a")
        file["a/same"] = h5py.SoftLink("raw")
        file["circle"] = h5py.SoftLink("/circle")
        file["nowhere"] = h5py.SoftLink("/b")
    source = open_source(f"{tmp_path}/v.h5::short/same")
    assert source.name == "v.h5::a/raw"
    np.testing.assert_array_equal(source.read(Box.whole(VOXELS.shape)), VOXELS)
    with pytest.raises(InputError, match="leads in a circle"):
        open_source(f"{tmp_path}/v.h5::circle")
    with pytest.raises(InputError, match="has no dataset 'nowhere'"):
        open_source(f"{tmp_path}/v.h5::nowhere")


def test_nothing_outside_is_followed(tmp_path):
    write(tmp_path / "other.h5", "raw")
    (tmp_path / "secret").write_bytes(bytes(24))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["external"] = h5py.ExternalLink("other.h5", "/raw")
        file["far"] = h5py.ExternalLink("other.h5", "/")
        file["soft"] = h5py.SoftLink("/far/raw")
        file.create_dataset("stored", (2, 3, 4), "uint8", external=[(str(tmp_path / "secret"), 0, 24)])
        layout = h5py.VirtualLayout((6, 20, 30), "uint16")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "raw", (6, 20, 30))
        file.create_virtual_dataset("virtual", layout)
    for name in ("external", "far/raw", "soft"):
        with pytest.raises(InputError, match="leads to another file"):
            open_source(f"{tmp_path}/v.h5::{name}")
    for name in ("stored", "virtual"):
        with pytest.raises(InputError, match="keeps its voxels in other files"):
            open_source(f"{tmp_path}/v.h5::{name}")


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", "floating point"), ("int16", "signed"), ("uint32", "not 8 or 16")]
)
def test_dtypes_that_are_no_scan(tmp_path, dtype, kind):
    write(tmp_path / "v.h5", voxels=VOXELS.astype(dtype))
    with pytest.raises(InputError, match=rf"v.h5::raw holds {dtype} voxels \({kind}.*rescale"):
        open_source(str(tmp_path / "v.h5"))


def test_damage(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"x.h5 is no readable HDF5 file"):
        open_source(str(tmp_path / "x.h5"))
    write(tmp_path / "v.h5", chunks=(6, 20, 30), compression="gzip")
    with h5py.File(tmp_path / "v.h5") as file:
        place = file["raw"].id.get_chunk_info(0)
    with (tmp_path / "v.h5").open("r+b") as file:
        file.seek(place.byte_offset + 100)
        file.write(b"\x55" * 1000)
    source = open_source(str(tmp_path / "v.h5"))
    with pytest.raises(InputError, match=r"v.h5::raw cannot be read at 0:6,0:20,0:30"):
        source.read(Box.whole(source.shape))


def test_real_patch(real_data):
    with h5py.File(real_data / "sample_patch.h5") as file:
        voxels = file["raw"][:]
    source = open_source(f"{real_data}/sample_patch.h5::raw")
    np.testing.assert_array_equal(source.read(Box.whole(voxels.shape)), voxels)
    with pytest.raises(InputError, match="int64 voxels"):
        open_source(f"{real_data}/sample_patch.h5::label")
