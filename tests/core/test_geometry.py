"""Places in volumes, against looking at every window and every cell."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Windows, Zyx
from inkzarr.testing.strategies import boxes, shapes, windows

SHAPE = Zyx(100, 90, 80)


def every(counts):
    return [Zyx(*index) for index in itertools.product(*map(range, counts))]


@given(st.data(), shapes(1, 24))
def test_windows_that_touch_a_block_and_their_reach(data, shape):
    laid = data.draw(windows(shape, most=12))
    block = data.draw(boxes(shape))
    touching = [index for index in every(laid.counts) if not laid.box(index).clip(block).empty]
    found = laid.touching(block)
    assert touching == [Zyx(*index) for index in itertools.product(*map(range, found.start, found.stop))]
    seen = [laid.box(index) for index in touching]
    reach = laid.reach(block)
    assert reach.start == tuple(min(box.start[axis] for box in seen) for axis in range(3))
    assert reach.stop == tuple(max(box.stop[axis] for box in seen) for axis in range(3))
    assert reach.clip(block) == block


@given(st.data(), shapes(1, 24))
def test_windows_cover_the_volume_and_none_is_idle(data, shape):
    laid = data.draw(windows(shape, most=12))
    for size, window, stride, count in zip(shape, laid.window, laid.stride, laid.counts, strict=True):
        covered = np.zeros(size + window, bool)
        for index in range(count):
            assert index * stride < size
            assert index == 0 or not covered[size - 1]
            covered[index * stride : index * stride + window] = True
        assert covered[:size].all()


@given(st.data(), shapes(1, 30), shapes(1, 12))
def test_cells_tile_the_volume(data, shape, cell):
    grid = Grid(shape, cell)
    times = np.zeros(shape, int)
    for index in grid.indices():
        times[grid.box(index).slices] += 1
    assert (times == 1).all()
    assert list(grid.indices()) == every(grid.counts)
    region = data.draw(boxes(shape))
    meet = [index for index in every(grid.counts) if not grid.box(index).clip(region).empty]
    assert list(grid.indices(region)) == meet


@given(st.data(), shapes(1, 30))
def test_a_box_reads_back_what_it_prints(data, shape):
    box = data.draw(boxes(shape))
    assert Box.parse(str(box), shape) == box
    whole = np.arange(shape.volume).reshape(shape)
    outer = data.draw(boxes(shape))
    shared = box.clip(outer)
    if not shared.empty:
        assert (whole[outer.slices][shared.within(outer)] == whole[shared.slices]).all()
    assert box.shift(outer.start).shift(outer.start, sign=-1) == box


def test_grid_of_nothing():
    grid = Grid(Zyx(8, 8, 8), Zyx(4, 4, 4))
    assert list(grid.indices(Box(Zyx(3, 3, 3), Zyx(3, 5, 5)))) == []
    assert list(grid.indices(Box(Zyx(9, 0, 0), Zyx(12, 4, 4)))) == []


def test_bounds_left_out_are_the_volume():
    assert Box.parse(":,:,:", SHAPE) == Box.whole(SHAPE)
    assert Box.parse(" 1 : 2 ,3:,:4", SHAPE) == Box(Zyx(1, 3, 0), Zyx(2, 90, 4))


@pytest.mark.parametrize(
    "text",
    ["", ":", "1:2,3:4", "1:2,3:4,5:6,7:8", "5:5,:,:", "6:5,:,:", "0:101,:,:", "-1:5,:,:", "a:b,:,:"],
)
def test_boxes_that_cannot_be(text):
    with pytest.raises(InputError, match=r"cannot be used.*inside the volume's 100,90,80") as raised:
        Box.parse(text, SHAPE)
    assert repr(text) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("overlap", [-0.1, 1, 1.5, float("nan")])
def test_overlap_out_of_range(overlap):
    with pytest.raises(InputError, match="0 <= overlap < 1"):
        Windows.overlapping(SHAPE, Zyx.of(16), overlap)


def test_windows_one_voxel_deep_share_nothing_there():
    assert Windows.overlapping(SHAPE, Zyx(1, 16, 16), 0.5).stride == Zyx(1, 8, 8)
    with pytest.raises(InputError, match=r"must be whole: try overlap 0\.3125$"):
        Windows.overlapping(SHAPE, Zyx(1, 16, 16), 0.3)


def test_overlap_without_a_whole_stride():
    with pytest.raises(InputError, match=r"must be whole: try overlap 0\.3125") as raised:
        Windows.overlapping(SHAPE, Zyx.of(16), 0.3)
    assert "\n" not in str(raised.value)


@given(st.integers(1, 256), st.data())
def test_every_whole_stride_has_its_overlap(window, data):
    stride = data.draw(st.integers(1, window))
    assert Windows.overlapping(SHAPE, Zyx.of(window), 1 - stride / window).stride == Zyx.of(stride)


def test_three_numbers_or_one():
    assert Zyx.of([1, 2, 3]) == (1, 2, 3)
    with pytest.raises(InputError, match="give one, or three as z,y,x"):
        Zyx.of((1, 2))
