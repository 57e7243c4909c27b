"""What blocks set aside comes back as it was, by whichever threads, and their sums add up once."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import DiskError
from inkzarr.core.geometry import Box, Windows, Zyx
from inkzarr.nn import blocks
from inkzarr.nn.aside import Column, Part, Shelf
from inkzarr.nn.sums import Sums


@pytest.fixture(params=["at a place", "by seeking", "in memory"], scope="module")
def shelves(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "by seeking":  # as on Windows
            patch.delattr("os.pwrite")
            patch.delattr("os.preadv")
        yield partial(Shelf, in_file=request.param != "in memory")


@given(st.data())
def test_a_shelf_gives_back_what_was_put_there(shelves, data):
    shelf, held = shelves(), {}
    for number in range(data.draw(st.integers(1, 12))):
        if held and data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(held)))
            place, array = held.pop(key)
            start = data.draw(st.integers(0, len(array) - 1))
            np.testing.assert_array_equal(shelf.planes(place, start, len(array)), array[start:])
            shelf.drop(place)
        shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
        array = np.random.default_rng(number).integers(0, 99, shape, np.int32)
        held[number] = shelf.put(np.moveaxis(array, 0, 2)), np.moveaxis(array, 0, 2).copy()
        array[:] = 0
    for place, array in held.values():
        np.testing.assert_array_equal(shelf.planes(place, 0, len(array)), array)


def test_no_temporary_folder_is_told(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    with pytest.raises(DiskError, match=r"no temporary file can be made .*: set TMPDIR"):
        Shelf(in_file=True)


slabs = st.tuples(st.integers(0, 18), st.integers(1, 20)).map(
    lambda ends: Box(Zyx(ends[0], 0, 0), Zyx(max(ends[0] + 1, ends[1]), 3, 3))
)


@given(st.lists(slabs, max_size=4), st.integers(1, 5))
def test_threads_that_take_up_sums_share_no_plane(parts, threads):
    windows = Windows(Zyx(20, 3, 3), Zyx(2, 2, 2), Zyx(1, 1, 1))
    sums = Sums(Box.whole(windows.shape), windows, "constant", torch.device("cpu"))
    column = Column(in_file=True)
    wanted = np.zeros(sums.box.shape, np.int32)
    for number, box in enumerate(parts):
        values = np.full(box.shape, 10**number, np.int32)
        wanted[box.slices] += values
        told = frozenset({number})
        column.leave(sums.box.start, Part(box, column.shelf.put(values), told, told))
    planes = []

    def one_by_one(name, kernel, jobs):
        for n in range(threads):
            before = sums.part(sums.box).clone()
            assert all(kernel(n, threads, *job) for job in jobs)
            planes.append({int(z) for z in (sums.part(sums.box) != before).any(2).any(1).nonzero()})
        return [[True]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "on_threads", one_by_one)
        assert blocks._take(column, sums.box, sums) == set(range(len(parts)))
    assert sum(map(len, planes)) == len(set().union(*planes))
    np.testing.assert_array_equal(sums.part(sums.box).numpy(), wanted)
