"""What is stored of a chunk, and whether it is, must be what zarr itself would say."""

import numpy as np
import pytest
import zarr

from inkzarr.core.buffer import Voxels, write_voxels


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize(
    "layout", [{"zarr_format": 2}, {"zarr_format": 3}, {"zarr_format": 3, "shards": (8, 8, 8)}]
)
@pytest.mark.parametrize("fill", [0, 7])
def test_the_same_chunks_as_zarr_stores(tmp_path, tree, dtype, layout, fill):
    voxels = np.zeros((8, 12, 8), dtype)
    voxels[5, 5, 5], voxels[:4, 8:], voxels[4:, :4, :4] = 9, fill, fill
    if dtype == "f4":
        voxels[0, 0, 0], voxels[0, 0, 5], voxels[4:, 8:] = -0.0, np.nan, -0.0
    for name in ("zarr", "ours"):
        array = zarr.create_array(
            tmp_path / name, shape=voxels.shape, chunks=(4, 4, 4), dtype=dtype, fill_value=fill, **layout
        )
        if name == "zarr":
            array[:] = voxels
        else:
            write_voxels(array, (slice(0, 5), slice(None), slice(None)), voxels[:5])
            write_voxels(array, (slice(5, 8), slice(None), slice(None)), voxels[5:])
    assert tree(tmp_path / "ours") == tree(tmp_path / "zarr")
    assert len(tree(tmp_path / "ours")) < 1 + 12


def test_voxels_that_are_not_all_equal():
    voxels = np.zeros((2, 3, 4), np.uint16)
    assert Voxels(voxels).all_equal(0)
    assert not Voxels(voxels).all_equal(1)
    voxels[1, 2, 3] = 1
    assert not Voxels(voxels).all_equal(0)
    assert not Voxels(voxels).all_equal(1)
