"""What a list of keys must not leave out: it would be taken for empty."""

import os
import shutil

import numpy as np
import pytest
import zarr

from inkzarr.core.errors import DiskError
from inkzarr.core.store import open_stored


@pytest.fixture
def scan(tmp_path):
    zarr.create_array(tmp_path / "scan.zarr", data=np.ones((4, 8, 8), "uint8"), chunks=(2, 4, 4))
    return tmp_path / "scan.zarr"


def occupied(scan):
    return open_stored(str(scan)).may_exceed(0)


def test_chunks_behind_a_link_are_listed(scan, tmp_path):
    shutil.move(scan / "c" / "1", tmp_path / "elsewhere")
    (scan / "c" / "1").symlink_to(tmp_path / "elsewhere")
    assert occupied(scan).all()


def test_chunks_that_are_not_there_are_not(scan):
    shutil.rmtree(scan / "c" / "1")
    np.testing.assert_array_equal(occupied(scan)[:, 0, 0], [True, False])


def test_where_a_folder_may_not_be_looked_into_any_chunk_may_be_there(scan, monkeypatch):
    honest = os.scandir

    def refused(path):
        if str(path).endswith("/c/1"):
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path)

    monkeypatch.setattr(os, "scandir", refused)
    shutil.rmtree(scan / "c" / "0")
    assert occupied(scan).all()


def test_a_link_that_leads_nowhere_is_no_missing_chunk(scan, tmp_path):
    """A disk that is not mounted holds chunks that cannot be had."""
    shutil.rmtree(scan / "c" / "1")
    (scan / "c" / "1").symlink_to(tmp_path / "unmounted")
    assert occupied(scan).all()
    with pytest.raises(DiskError, match="leads nowhere"):
        open_stored(str(scan))[2:, :, :]
    (scan / "c" / "1").unlink()
    assert not open_stored(str(scan))[2:, :, :].any()


def test_a_link_back_to_a_folder_above_is_not_followed(scan):
    for name in ("x", "y"):
        (scan / "c" / name).symlink_to(scan)
    assert occupied(scan).all()


def test_a_link_to_itself_is_no_missing_chunk(scan):
    shutil.rmtree(scan / "c" / "1")
    (scan / "c" / "1").symlink_to("1")
    assert occupied(scan).all()
