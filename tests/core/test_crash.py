"""Runs cut off before any change of the store: taken up, they end with the same bytes."""

import shutil

import pytest

from inkzarr.core import runner
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.remote import CarefulStore
from inkzarr.core.runner import write_blocks
from tests.core.blocks import job, voxels

pytestmark = pytest.mark.usefixtures("small_chunks")

QUIET = RunOptions(workers=2)


class Crash(BaseException):
    """The process is dead: nothing it does after this reaches the disk."""


@pytest.fixture
def power(monkeypatch):
    """Cuts the power before the n-th change of the store; every deletion of a file counts for itself."""

    class Power:
        left = 10**9

        def spend(self):
            self.left -= 1
            if self.left < 0:
                raise Crash

    supply = Power()

    def cut(name):
        original = getattr(CarefulStore, name)

        async def limited(self, *arguments):
            supply.spend()
            return await original(self, *arguments)

        monkeypatch.setattr(CarefulStore, name, limited)

    async def delete_dir(self, prefix):
        root = self._store.root / prefix
        for path in sorted(root.rglob("*"), reverse=True):
            supply.spend()
            path.rmdir() if path.is_dir() else path.unlink()

    cut("set")
    cut("delete")
    monkeypatch.setattr(CarefulStore, "delete_dir", delete_dir)
    monkeypatch.setattr(runner, "FLUSH_EVERY_S", 0.0)
    return supply


SMALL = Zyx(8, 12, 16)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_killed_at_any_change_of_the_store(tmp_path, tree, power, zarr_format):
    def todo(out):
        return job(out, SMALL, zarr_format=zarr_format)

    one = RunOptions(workers=1)
    write_blocks(todo(tmp_path / "whole" / "out.zarr"), voxels, one)
    whole = tree(tmp_path / "whole" / "out.zarr")
    crashes = 0
    while True:
        out = tmp_path / str(crashes) / "out.zarr"
        power.left = crashes
        try:
            write_blocks(todo(out), voxels, one)
            break
        except Crash:
            power.left = 10**9
        write_blocks(todo(out), voxels, one)
        assert tree(out) == whole, f"crashed before change {crashes}"
        crashes += 1
    assert crashes > 15


def test_killed_while_overwriting_is_never_taken_for_done(tmp_path, tree, power):
    """The same settings again: what a killed deletion left must not pass as this run's own work."""
    first = tmp_path / "first" / "out.zarr"
    write_blocks(job(first, SMALL), voxels, QUIET)
    whole = tree(first)
    crashes = 0
    while True:
        out = tmp_path / str(crashes) / "out.zarr"
        shutil.copytree(first, out)
        power.left = crashes
        try:
            write_blocks(job(out, SMALL), voxels, RunOptions(workers=1, overwrite=True))
            break
        except Crash:
            power.left = 10**9
        try:
            write_blocks(job(out, SMALL), voxels, RunOptions(workers=1))
        except InputError:
            write_blocks(job(out, SMALL), voxels, RunOptions(workers=1, overwrite=True))
        assert tree(out) == whole, f"crashed before change {crashes}"
        crashes += 1
    assert crashes > 25
