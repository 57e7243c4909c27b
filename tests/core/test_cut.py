"""Blocks that are cut into chunks."""

import numpy as np
import pytest
import zarr

from inkzarr.core.buffer import write_voxels
from inkzarr.core.cut import Cut
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.records import BlockRecord

SHAPE, CHUNKS = Zyx(9, 6, 10), Zyx(4, 4, 4)


def cut(voxels, chunks=CHUNKS):
    block = Cut.empty(Zyx.of(voxels.shape), voxels.dtype, chunks)
    for start, piece in block.pieces.items():
        piece[:] = voxels[tuple(slice(a, a + n) for a, n in zip(start, piece.shape, strict=True))]
    return block


@pytest.fixture
def voxels():
    found = np.random.default_rng(0).integers(0, 300, SHAPE, np.uint16)
    found[4:8, :4, 4:8] = 0
    return found


@pytest.mark.parametrize("chunks", [CHUNKS, SHAPE, Zyx(20, 20, 20), Zyx(9, 1, 3)])
@pytest.mark.parametrize("layout", [{"zarr_format": 2}, {"zarr_format": 3}, {"compressors": None}])
def test_it_is_stored_and_measured_as_the_whole_array_is(tmp_path, tree, voxels, chunks, layout):
    for name, given in (("zarr", voxels), ("cut", cut(voxels, chunks))):
        array = zarr.create_array(
            tmp_path / name, shape=(13, 6, 10), chunks=chunks, dtype="u2", fill_value=0, **layout
        )
        array[:] = 1
        if name == "zarr":
            array[:9] = given
        else:
            write_voxels(array, (slice(0, 9), slice(0, 6), slice(0, 10)), given)
    assert tree(tmp_path / "cut") == tree(tmp_path / "zarr")
    box = Box.whole(SHAPE)
    assert BlockRecord.of(box, given, chunks) == BlockRecord.of(box, voxels, chunks)
    np.testing.assert_array_equal(given, voxels)


def test_empty_is_what_the_fill_value_says(tmp_path, tree):
    voxels = np.full(SHAPE, 7, np.uint16)
    voxels[8, 5, 9] = 0
    for name, given in (("zarr", voxels), ("cut", cut(voxels))):
        array = zarr.create_array(
            tmp_path / name, shape=SHAPE, chunks=CHUNKS, dtype="u2", fill_value=7, zarr_format=2
        )
        write_voxels(array, Box.whole(SHAPE).slices, given)
    assert tree(tmp_path / "cut") == tree(tmp_path / "zarr")
    assert array.nchunks_initialized == 1


def test_empty_chunks_are_stored_where_the_array_says_so(tmp_path, tree):
    voxels = np.zeros(SHAPE, np.uint16)
    for name, given in (("zarr", voxels), ("cut", cut(voxels))):
        array = zarr.create_array(
            tmp_path / name,
            shape=SHAPE,
            chunks=CHUNKS,
            dtype="u2",
            zarr_format=2,
            config={"write_empty_chunks": True},
        )
        write_voxels(array, Box.whole(SHAPE).slices, given)
    assert tree(tmp_path / "cut") == tree(tmp_path / "zarr")
    assert array.nchunks_initialized == 3 * 2 * 3


def test_chunks_of_another_size(tmp_path, voxels):
    array = zarr.create_array(tmp_path / "a", shape=SHAPE, chunks=(8, 8, 8), dtype="u2", zarr_format=2)
    write_voxels(array, Box.whole(SHAPE).slices, cut(voxels))
    np.testing.assert_array_equal(array[:], voxels)


def test_shards(tmp_path, voxels):
    array = zarr.create_array(tmp_path / "a", shape=SHAPE, chunks=CHUNKS, shards=(12, 8, 12), dtype="u2")
    write_voxels(array, Box.whole(SHAPE).slices, cut(voxels))
    np.testing.assert_array_equal(array[:], voxels)


def test_it_gives_whole_chunks_alone(voxels):
    block = cut(voxels)
    np.testing.assert_array_equal(block[8:9, 4:6, 8:10], voxels[8:9, 4:6, 8:10])
    with pytest.raises(IndexError, match="no chunk"):
        block[0:3, 0:4, 0:4]
    with pytest.raises(KeyError):
        block[1:4, 0:4, 0:4]
    with pytest.raises(ValueError, match="copied"):
        np.asarray(block, copy=False)
