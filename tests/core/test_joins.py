"""Components in blocks against scipy on the whole array: the same partition, the same sums, whatever the blocks."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from inkzarr.core.candidates import covariance, rank
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.joins import BlockRuns, Joiner
from inkzarr.core.runs import COLUMNS, FIRST, HIGH, LOW, MAX, MOMENT, PLACE, SUM, VOXELS, empty_rows, weigh

LEAST = 128
EVERYWHERE = np.ones((3, 3, 3))
PRODUCTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def some(shape, share, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(LEAST, 256, shape)
    return np.where(rng.random(shape) < share, values, rng.integers(0, LEAST, shape)).astype(np.uint8)


def in_blocks(voxels, cell, min_voxels=1, settle_at=1 << 20, *, leave_out_empty=False):
    """Rows, labels and the number of small components, by blocks of `cell`."""
    grid = Grid(Zyx(*voxels.shape), Zyx(*cell))
    joiner = Joiner(min_voxels, remember=True, settle_at=settle_at)
    blocks = {}
    for index in grid.indices():
        part = np.ascontiguousarray(voxels[grid.box(index).slices])
        if leave_out_empty and part.max() < LEAST:
            continue
        blocks[index] = BlockRuns.of(part, grid.box(index), grid.shape, LEAST, min_voxels)
        joiner.add(index, blocks[index].found(part, grid.shape))
    rows, ids = joiner.close()
    labels = np.zeros(voxels.shape, np.uint32)
    for index, numbers in ids.items():
        labels[grid.box(index).slices] = blocks[index].painted(numbers)
    return rows, labels, joiner.small


def by_scipy(voxels, min_voxels=1):
    """The same, with scipy and plain loops."""
    labels, _ = ndimage.label(voxels >= LEAST, EVERYWHERE)
    rows, numbered, small = [], np.zeros(voxels.shape, np.uint32), 0
    for number in np.unique(labels[labels > 0]):
        mine = labels == number
        if mine.sum() < min_voxels:
            small += 1
            continue
        place = np.argwhere(mine)
        row = np.zeros(COLUMNS, np.int64)
        row[VOXELS], row[FIRST] = len(place), np.flatnonzero(mine)[0]
        row[LOW:HIGH], row[HIGH : HIGH + 3] = place.min(0), place.max(0) + 1
        row[MAX], row[SUM] = voxels[mine].max(), voxels[mine].sum()
        row[PLACE : PLACE + 3] = place.sum(0)
        row[MOMENT:] = [(place[:, i] * place[:, j]).sum() for i, j in PRODUCTS]
        rows.append(row)
    rows = np.array(sorted(rows, key=lambda row: row[FIRST])).reshape(-1, COLUMNS)
    for number, row in enumerate(rows, start=1):
        numbered[labels == labels.ravel()[row[FIRST]]] = number
    return rows, numbered, small


edges = st.integers(1, 17)


@given(
    shape=st.tuples(edges, edges, edges),
    cell=st.tuples(*[st.integers(1, 9)] * 3),
    share=st.sampled_from([0.02, 0.08, 0.1, 0.15, 0.4, 0.9, 1.0]),
    min_voxels=st.sampled_from([1, 2, 7, 50]),
    settle_at=st.sampled_from([0, 3, 1 << 20]),
    empty=st.booleans(),
    seed=st.integers(0, 99),
)
def test_components_are_those_of_the_whole_array(shape, cell, share, min_voxels, settle_at, empty, seed):
    voxels = some(shape, share, seed)
    found = in_blocks(voxels, cell, min_voxels, settle_at, leave_out_empty=empty)
    for ours, theirs in zip(found, by_scipy(voxels, min_voxels), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_chain_through_every_face_edge_and_corner_is_one():
    """Two voxels a pair, that touch across the middle of 2 x 2 x 2 blocks in each of the 13 directions."""
    for step in itertools.product((-1, 0, 1), repeat=3):
        voxels = np.zeros((8, 8, 8), np.uint8)
        near = np.where(np.array(step) == 0, 1, np.where(np.array(step) > 0, 3, 4))
        voxels[tuple(near)] = voxels[tuple(near + step)] = 255
        rows, _, _ = in_blocks(voxels, (4, 4, 4))
        assert len(rows) == 1


def test_what_is_held_does_not_grow_with_the_volume():
    """Specks on every seam: they are forgotten as soon as no block to come can touch them."""
    voxels = np.zeros((256, 16, 16), np.uint8)
    voxels[7::8, 7, 7] = voxels[8::8, 7, 7] = voxels[::3, 2, 2] = 255
    grid, joiner, held = Grid(Zyx(256, 16, 16), Zyx(8, 8, 8)), Joiner(5, settle_at=16), []
    for index in grid.indices():
        part = np.ascontiguousarray(voxels[grid.box(index).slices])
        joiner.add(index, BlockRuns.of(part, grid.box(index), grid.shape, LEAST, 5).found(part, grid.shape))
        held.append((joiner._held, sum(map(len, joiner._high))))
    assert max(rows for rows, _ in held) <= 24
    assert max(planes for _, planes in held) <= 12
    assert len(joiner.close()[0]) == 0
    assert joiner.small == ndimage.label(voxels, EVERYWHERE)[1]


def shape_of(voxels, um=10.0):
    rows, _, _ = in_blocks(voxels, voxels.shape)
    return rank(rows, um, {})


def test_a_solid_box_has_its_own_sides():
    voxels = np.zeros((30, 30, 40), np.uint8)
    voxels[3:7, 5:15, 10:30] = 204
    table = shape_of(voxels)
    sides = [table[name][0] for name in ("length_um", "width_um", "thickness_um", "flatness", "strokes")]
    np.testing.assert_allclose(sides, [200, 100, 40, 0.6, 0.5])
    assert (table["mean"][0], table["max"][0]) == (0.8, 0.8)
    assert table.box(0) == Box.parse("3:7,5:15,10:30", Zyx(*voxels.shape))
    assert [table[axis][0] for axis in "zyx"] == [4.5, 9.5, 19.5]


@given(seed=st.integers(0, 99), share=st.sampled_from([0.03, 0.1, 0.5]))
def test_second_moments_are_numpys(seed, share):
    voxels = some((9, 12, 11), share, seed)
    rows, labels, _ = in_blocks(voxels, (4, 5, 6))
    for number, found in enumerate(covariance(rows), start=1):
        place = np.argwhere(labels == number)
        np.testing.assert_allclose(found, np.cov(place.T, ddof=0).reshape(3, 3) + np.eye(3) / 12, atol=1e-12)


@pytest.mark.parametrize("far", [10**5, 10**9])
def test_second_moments_are_exact_where_their_sums_wrap(far):
    """At 10^9 the sum of squares of 600 voxels is far beyond 2^63."""
    voxels = some((10, 12, 11), 1.0, 0)
    block = BlockRuns.of(voxels, Box.whole(voxels.shape), Zyx(*voxels.shape), LEAST, 1)
    near, away = empty_rows(1), empty_rows(1)
    weigh(voxels, block.runs, block.ids, (0, 0, 0), voxels.shape, near)
    weigh(voxels, block.runs, block.ids, (far, far, far), voxels.shape, away)
    np.testing.assert_array_equal(covariance(near), covariance(away))


def test_a_component_too_large_for_64_bits_has_no_shape():
    row = np.zeros((1, COLUMNS), np.int64)
    row[0, VOXELS], row[0, HIGH : HIGH + 3], row[0, SUM] = 9 * 10**11, (14376, 7888, 8096), 9 * 10**11
    table = rank(row, 7.91, {})
    assert np.isnan(table["length_um"][0])
    assert table["score"][0] == 0


def test_letters_rank_before_blobs_specks_and_sheets():
    from inkzarr.testing.letters import page

    voxels = np.zeros((24, 420, 900), np.uint8)
    letter = page(("A",), 120)
    rows, columns = np.nonzero(letter[:200, :200])
    voxels[4:12, rows + 20, columns + 20] = 220
    z, y, x = np.ogrid[:24, :420, :900]
    voxels[((z - 12) ** 2 + (y - 300) ** 2 + (x - 100) ** 2) < 100] = 220  # a blob
    voxels[2, 300, 300:304] = 255  # a speck
    voxels[15:20, 20:400, 400:880] = 220  # a patch of papyrus
    table = rank(in_blocks(voxels, (24, 128, 128), 4)[0], 20.0, {})
    assert len(table) >= 4
    assert table.box(0).start.y < 200
    assert table.box(0).stop.x < 400
    assert table["score"][0] > 2 * table["score"][1] or table.box(1).stop.x < 400
