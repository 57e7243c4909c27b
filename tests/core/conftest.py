"""Small chunks, no waiting, and whole folders compared."""

import pytest

from inkzarr.core import lock, remote, runner, schema
from tests import stored


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Failures are tried again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "FIRST_WAIT_S", 0.0)
        patch.setattr(remote, "FIRST_WAIT_S", 0.001)
        patch.setattr(lock, "SETTLE_S", 0.01)
        yield


@pytest.fixture(scope="module")
def small_chunks():
    """Volumes of a few voxels with many chunks, of 8 voxels a side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "CHUNK", 8)
        yield


@pytest.fixture
def tree():
    """Reads a folder as a dict from relative path to bytes."""

    return stored.tree
