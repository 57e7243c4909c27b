"""Tables of windows that are not what they say: one clear line, and no memory for what they claim."""

import tracemalloc

import pytest

from inkzarr.core.errors import InputError
from inkzarr.core.patches import read_patches


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_that_claims_a_gigabyte_takes_none(tmp_path, version):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + (2**30).to_bytes(4, "little") + b"{'")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"a\.npy cannot be read \(its header is too long\)"):
            read_patches(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
