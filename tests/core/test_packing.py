"""How chunks are compressed."""

import numpy as np
import pytest
import zarr
from numcodecs import Blosc

from inkzarr.core.geometry import Zyx
from inkzarr.core.packing import PACKED_AT_ONCE
from inkzarr.core.remote import open_store
from inkzarr.core.schema import VolumeSpec
from inkzarr.core.store import create_volume


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_both_formats_pack_alike_and_plain_zarr_reads_it(tmp_path, zarr_format, dtype):
    spec = VolumeSpec(Zyx(64, 128, 200), np.dtype(dtype), zarr_format=zarr_format)
    voxels = np.random.default_rng(0).integers(0, 9, spec.shape).astype(dtype)
    create_volume(open_store(f"{tmp_path}/a.zarr", read_only=False), spec, "a")[:] = voxels
    stored = zarr.open_array(f"{tmp_path}/a.zarr/{spec.path}", mode="r")
    np.testing.assert_array_equal(stored[:], voxels)
    codec = stored.compressors[0]
    split = np.dtype(dtype).itemsize > 1
    if zarr_format == 2:
        assert codec.get_config() == {
            "id": "blosc",
            "cname": "zstd",
            "clevel": 1,
            "shuffle": Blosc.SHUFFLE if split else Blosc.NOSHUFFLE,
            "blocksize": PACKED_AT_ONCE,
        }
    else:
        told = codec.to_dict()["configuration"]
        assert told["shuffle"] == ("shuffle" if split else "noshuffle")
        assert (told["typesize"], told["blocksize"]) == (np.dtype(dtype).itemsize, PACKED_AT_ONCE)
    chunk = tmp_path / "a.zarr" / spec.path / ("0/0/0" if zarr_format == 2 else "c/0/0/0")
    head = chunk.read_bytes()[:16]
    assert head[3] == np.dtype(dtype).itemsize, "blosc's typesize"
    assert int.from_bytes(head[8:12], "little") == min(PACKED_AT_ONCE, 64 * 128 * 128 * head[3])
