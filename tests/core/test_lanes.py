"""Blocks of a column are computed one after the other, and written meanwhile."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from inkzarr.core import runner
from inkzarr.core.errors import BlocksFailedError, InputError
from inkzarr.core.geometry import Box, Zyx
from inkzarr.core.job import RunOptions
from inkzarr.core.runner import write_blocks
from inkzarr.core.store import open_volume
from tests.core.blocks import Fails, job, voxels

pytestmark = pytest.mark.usefixtures("small_chunks")

SHAPE, BLOCK, BLOCKS = Zyx(40, 8, 8), Zyx(8, 8, 8), 5
ALONE = RunOptions(workers=1)


class OneByOne:
    """Computes blocks; tells which it began, and whether two were computed at once."""

    def __init__(self):
        self.began = [threading.Event() for _ in range(BLOCKS)]
        self.two_at_once = False
        self._busy = threading.Lock()

    def __call__(self, box):
        if not self._busy.acquire(blocking=False):
            self.two_at_once = True
            return voxels(box)
        self.began[box.start.z // BLOCK.z].set()
        time.sleep(0.02)
        self._busy.release()
        return voxels(box)


@pytest.fixture
def column(tmp_path):
    return replace(job(tmp_path / "out.zarr", SHAPE, BLOCK), columns=SHAPE)


@pytest.fixture
def writes(monkeypatch):
    """What is called before the n-th block is written."""
    before, write = [], runner.write_voxels

    def writing(array, slices, voxels):
        for call in before:
            call(slices[0].start // BLOCK.z)
        write(array, slices, voxels)

    monkeypatch.setattr(runner, "write_voxels", writing)
    return before


@pytest.fixture
def expected():
    return voxels(Box.whole(SHAPE))


def test_the_next_block_is_computed_while_one_is_written(column, writes, expected):
    compute, seen = OneByOne(), []
    writes.append(lambda n: seen.append(n == BLOCKS - 1 or compute.began[n + 1].wait(10)))
    write_blocks(column, compute, ALONE)
    assert seen == [True] * BLOCKS
    assert not compute.two_at_once
    np.testing.assert_array_equal(open_volume(column.out).values, expected)


def test_of_one_lane_no_more_than_two_blocks_are_held(column, writes):
    compute, first, third_began = OneByOne(), threading.Event(), []

    def hold(n):
        if n == 0:
            assert compute.began[1].wait(10)
            time.sleep(0.2)
            third_began.append(compute.began[2].is_set())
            first.set()
        assert first.wait(10)

    writes.append(hold)
    write_blocks(column, compute, ALONE)
    assert third_began == [False]
    assert not compute.two_at_once


def test_a_write_that_fails_is_tried_again_and_its_block_is_not_computed_again(column, writes, expected):
    compute, failures = Fails([]), [OSError("no answer")]

    def fail(n):
        if n == 1 and failures:
            raise failures.pop()

    writes.append(fail)
    write_blocks(column, compute, ALONE)
    assert set(compute.calls.values()) == {1}
    assert not failures
    np.testing.assert_array_equal(open_volume(column.out).values, expected)


def test_a_block_that_fails_stops_no_other(column, expected):
    fails = Fails([Zyx(8, 0, 0)])
    with pytest.raises(BlocksFailedError, match="1 of 5 blocks failed, the others are written"):
        write_blocks(column, fails, ALONE)
    assert set(fails.calls) == {box.start for box in column.blocks()}
    write_blocks(column, voxels, ALONE)
    np.testing.assert_array_equal(open_volume(column.out).values, expected)


def test_bad_input_ends_the_run_and_the_next_one_goes_on(column, writes, expected):
    compute = Fails([Zyx(16, 0, 0)], error=InputError)
    writes.append(lambda n: time.sleep(0.1))
    with pytest.raises(InputError, match="told to fail at"):
        write_blocks(column, compute, ALONE)
    assert Zyx(32, 0, 0) not in compute.calls
    assert write_blocks(column, voxels, ALONE).resumed == 2
    np.testing.assert_array_equal(open_volume(column.out).values, expected)
