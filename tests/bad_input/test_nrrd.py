"""NRRD headers that would keep a reader busy, or name what is no file."""

import time

import pytest

from inkzarr.core.errors import InputError
from inkzarr.readers import open_source


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("line skip: 1000000000000", "is cut short"),
        ("byte skip: 1000000000000000000000", "is cut short"),
        ("byte skip: -7", "is cut short"),
        ("data file: a\0b", "which is no name"),
        ("data file: " + "a" * 300, "which is no name"),
    ],
)
def test_a_header_is_refused_at_once(extra, told, tmp_path):
    head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
    (tmp_path / "a.nrrd").write_bytes(f"{head}{extra}\n\n".encode() + bytes(64))
    began = time.process_time()
    with pytest.raises(InputError, match=told):
        open_source(str(tmp_path / "a.nrrd"))
    assert time.process_time() - began < 5
