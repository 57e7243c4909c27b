"""Labels against a double loop in Python, voxel for voxel."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from inkzarr.core import votes as counting
from inkzarr.core.bricks import NARROW, WIDE, Bricks, finish, settle
from inkzarr.core.buckets import Rule, Strip, scan_strip
from inkzarr.core.cut import Cut
from inkzarr.core.errors import InputError
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.labelled import open_labels
from inkzarr.core.surface import Surface, open_surface, write_tifxyz
from inkzarr.core.votes import Ballot, PointTile
from inkzarr.labels import LabelSettings, labels
from inkzarr.testing.synthetic import SyntheticScroll
from inkzarr.verify import verify
from tests.labelling import SHAPE, along, arrays, brute, curved, disagreeing, png, run, segment


@pytest.mark.parametrize("footprint", ["ray", "box"])
def test_labels_are_those_of_a_double_loop(two, footprint):
    folder, parts = two
    report = run(folder, f"{footprint}.zarr", footprint=footprint)
    ink, count, dropped = brute(parts, SHAPE, footprint=footprint)
    found = arrays(folder / f"{footprint}.zarr")
    np.testing.assert_array_equal(found[0], ink, strict=True)
    np.testing.assert_array_equal(found[1], count, strict=True)
    assert report.pixels["dropped_voxels"] == dropped > 0
    assert report.labelled == np.count_nonzero(count)
    assert report.ink == np.count_nonzero(ink >= 128)
    assert report.votes == count.sum(dtype=np.int64)
    assert report.conflicts == disagreeing(parts, SHAPE, footprint=footprint) > 0
    assert not verify(folder / f"{footprint}.zarr").damaged
    assert "disagree" in str(report)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 30),
    cols=st.integers(2, 90),
    depth=st.sampled_from([0.0, 0.5, 2.0, 4.0, 6.5]),
    footprint=st.sampled_from(["ray", "box"]),
    block=st.sampled_from([1, 128, 300]),
)
def test_any_surface(tmp_path_factory, seed, rows, cols, depth, footprint, block):
    folder, rng, shape = tmp_path_factory.mktemp("any"), np.random.default_rng(seed), Zyx(20, 145, 30)
    parts = []
    for number in range(rng.integers(1, 4)):
        points, normals, valid = curved(rng, rows, cols, shape)
        values = rng.integers(0, 256, (rows, cols), "uint8")
        parts.append(segment(folder, f"{number}0", points, normals, valid, values))
    ink, count, dropped = brute(parts, shape, depth=depth, footprint=footprint)
    settings = {"shape": shape, "depth": depth, "footprint": footprint, "block": block}
    if not any(part[3].any() for part in parts):
        with pytest.raises(InputError, match="no pixel"):
            run(folder, **settings)
        return
    if not count.any():
        with pytest.raises(InputError, match="outside the volume"):
            run(folder, **settings)
        return
    report = run(folder, **settings)
    np.testing.assert_array_equal(arrays(folder / "out.zarr"), (ink, count))
    assert report.pixels["dropped_voxels"] == dropped
    assert report.conflicts == disagreeing(parts, shape, depth=depth, footprint=footprint)
    pixels = report.pixels
    assert pixels["used"] + pixels["invalid"] + pixels["outside"] == sum(part[3].size for part in parts)


def test_extreme_places_are_outside(tmp_path):
    points = np.array([[[1e300, 5, 5], [-1e300, 5, 5], [5, 2.0**40, 5], [5, 5, -1e18], [5, 5, 5]]])
    normals = along(points, 2)
    part = segment(tmp_path, "10", points, normals, None, np.full((1, 5), 200, np.uint8))
    for footprint in ("ray", "box"):
        report = run(tmp_path, footprint=footprint, shape=Zyx(16, 16, 16))
        assert report.pixels["outside"] == 4
        np.testing.assert_array_equal(
            arrays(tmp_path / "out.zarr"), brute([part], (16, 16, 16), footprint=footprint)[:2]
        )


def test_count_saturates(tmp_path):
    points = np.broadcast_to([3.0, 4, 5], (300, 300, 3))
    normals = along(points)
    values = np.full((300, 300), 255, np.uint8)
    values[:, ::2] = 0
    segment(tmp_path, "10", points, normals, None, values)
    report = run(tmp_path, depth=0, shape=Zyx(8, 8, 8))
    ink, count = arrays(tmp_path / "out.zarr")
    assert (count[3, 4, 5], ink[3, 4, 5], report.votes) == (65535, 128, 90000)
    assert np.count_nonzero(count) == 1


@pytest.mark.parametrize("voters", [1, 2])
@pytest.mark.parametrize("layout", [NARROW, WIDE])
def test_votes_never_wrap(monkeypatch, voters, layout):
    """Where a block gets more votes than a number holds, they are settled in between, and none is lost."""
    monkeypatch.setattr(counting, "MOST_PIXELS", 10)
    rng = np.random.default_rng(voters)
    shape, size = Zyx(4, 5, 40), (3, 3)
    points, normals = np.full((*size, 3), 2.0) + rng.integers(0, 2, (*size, 3)), np.zeros((*size, 3))
    ballot, parts = Ballot(Box.whole(shape), layout, voters > 1), []
    for who in range(voters):
        for _ in range(3):
            values = rng.integers(0, 256, size, "uint8")
            tile = PointTile(points, normals, values, np.ones(size, bool))
            ballot.cast(tile, who, Rule(1, False, Grid(shape, shape)))
            parts.append((points, normals, values, tile.used))
    ink, count = (Cut.empty(shape, np.dtype(kind), Zyx(3, 4, 16)) for kind in ("u1", "u2"))
    _, _, conflicts, votes = ballot.close(ink, count)
    np.testing.assert_array_equal((ink, count), brute(parts, shape, depth=1)[:2])
    assert votes == np.sum(count)
    assert voters > 1 or not conflicts


@pytest.mark.parametrize("footprint", ["ray", "box"])
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("pixels", [1023, 1024])
@pytest.mark.parametrize("depth", [2, 16])
def test_a_voxel_with_more_votes_than_a_narrow_number_holds(footprint, segments, pixels, depth, tmp_path):
    """1023 fit; with one more the block is counted again in numbers of 64 bits."""
    shape = Zyx(40, 9, 9)
    parts, left = [], pixels
    for number in range(segments):
        own = left // (segments - number)
        left -= own
        points = np.broadcast_to([20.0, 4, 4], (1, own, 3))
        values = np.full((1, own), 255 if number == 0 else 3, np.uint8)
        parts.append(segment(tmp_path, f"{number}0", points, along(points), None, values))
    report = run(tmp_path, shape=shape, depth=depth, footprint=footprint)
    ink, count, _ = brute(parts, shape, depth=depth, footprint=footprint)
    assert count.max() == pixels
    np.testing.assert_array_equal(arrays(tmp_path / "out.zarr"), (ink, count))
    assert report.conflicts == (np.count_nonzero(count) if segments > 1 else 0)
    ballot = Ballot(Box.whole(shape), NARROW, shared=True)
    rule = Rule(depth, footprint == "box", Grid(shape, shape))
    with pytest.raises(OverflowError) if pixels > 1023 else nullcontext():
        for number, part in enumerate(parts):
            ballot.cast(PointTile(*part), number, rule)
        ballot.settle()


def test_chunks_that_begin_amid_a_brick_are_refused():
    shape = Zyx(4, 5, 40)
    ink, count = (Cut.empty(shape, np.dtype(kind), Zyx(4, 5, 6)) for kind in ("u1", "u2"))
    with pytest.raises(ValueError, match="multiples of 4"):
        Ballot(Box.whole(shape), NARROW, shared=False).close(ink, count)


@pytest.mark.parametrize("layout", [NARROW, WIDE])
def test_means_are_rounded_exactly(layout):
    """Just below, at and above what is rounded up, for every number of votes that NARROW holds."""
    votes = np.arange(1, NARROW.most + 1)[:, None]
    if layout is WIDE:
        votes = np.concatenate([votes, WIDE.most - votes])
    edges = ((2 * np.arange(1, 256) - 1) * votes + 1) // 2
    totals = np.concatenate([np.clip(edges + d, 0, 255 * votes) for d in (-1, 0, 1)], axis=1)
    numbers = np.broadcast_to(votes, totals.shape).ravel()
    size = len(numbers) // 16
    bricks = Bricks.room(size, layout.dtype)
    bricks.held[:] = 1 + np.arange(size)
    bricks.pool[16 : 16 * (size + 1)] = ((numbers << layout.shift) + totals.ravel())[: 16 * size]
    ink, count = np.zeros((size, 4, 4), np.uint8), np.zeros((size, 4, 4), np.uint16)
    finish(bricks, layout, (1, 1), (0, 0, 0), ink, count)
    wanted = (2 * totals.ravel() + numbers) // (2 * numbers)
    np.testing.assert_array_equal(ink.ravel(), wanted[: 16 * size])
    np.testing.assert_array_equal(count.ravel(), np.minimum(numbers, 65535)[: 16 * size])


def test_votes_beyond_all_counting_are_left_out():
    bricks = Bricks.room(1, WIDE.dtype)
    for votes in (WIDE.most - 1, 9):
        bricks.mine[0] = 1 + bricks.sizes[1]
        bricks.sizes[:2] += 1
        bricks.reached[0] = 0
        bricks.pool[:] = np.where(
            np.arange(len(bricks.pool)) // 16 == bricks.mine[0], votes << WIDE.shift, bricks.pool
        )
        beyond = settle(bricks, WIDE)
    assert beyond
    ink, count = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint16)
    assert finish(bricks, WIDE, (1, 1), (0, 0, 0), ink, count)[3] == 16 * (WIDE.most - 1)


@given(
    seed=st.integers(0, 10**6),
    step=st.sampled_from([0.2, 1.0, 3.0]),
    depth=st.sampled_from([0.0, 4.0, 14.5]),
    footprint=st.sampled_from(["ray", "box"]),
)
@settings(max_examples=20)
def test_parts_that_reach_further_than_a_room(tmp_path_factory, seed, step, depth, footprint):
    folder, rng, shape = tmp_path_factory.mktemp("far"), np.random.default_rng(seed), Zyx(60, 70, 80)
    points, normals, valid = curved(rng, 20, 20, shape)
    points = np.array(shape) / 2 + step * (points - np.array(shape) / 2)
    part = segment(folder, "10", points, normals, valid, rng.integers(0, 256, (20, 20), "uint8"))
    report = run(folder, shape=shape, depth=depth, footprint=footprint)
    ink, count, dropped = brute([part], shape, depth=depth, footprint=footprint)
    np.testing.assert_array_equal(arrays(folder / "out.zarr"), (ink, count))
    assert report.pixels["dropped_voxels"] == dropped


def test_what_lies_between_pixels_that_jump_is_not_entered():
    """A part of a tile that reaches through the whole volume votes into the cells at its ends alone."""
    shape = Zyx(1024, 1024, 1024)
    points = np.stack(np.broadcast_arrays(50.0, *np.mgrid[50:114, 50:114]), -1).astype(float)
    points[:, 40:] += 824
    normals, valid = along(points), np.ones(points.shape[:2], bool)
    surface = Surface((64, 64), (64, 64), "", lambda *part: (points[part], normals[part], valid[part]))
    values = np.full(points.shape[:2], 255, np.uint8)
    rule = Rule(4, box=False, grid=Grid(shape, Zyx(128, 128, 128)))
    scan = scan_strip(Strip(0, surface, 0, 0, values, values > 0), rule)
    voxels = points.reshape(-1, 1, 3) + np.arange(-4, 5)[:, None] * [1, 0, 0]
    cells = {tuple(cell) for cell in (voxels.reshape(-1, 3) // 128).astype(int).tolist()}
    assert {tuple(np.unravel_index(cell, (8, 8, 8))) for cell in scan.pairs[:, 1]} == cells
    assert len(scan.pairs) == len(cells)


def test_rounding_is_half_up(tmp_path):
    points = np.zeros((1, 2, 3)) + 2
    part = segment(tmp_path, "10", points, along(points), None, np.uint8([[0, 255]]))
    run(tmp_path, depth=0, shape=Zyx(4, 4, 4))
    assert arrays(tmp_path / "out.zarr")[0][2, 2, 2] == 128 == brute([part], (4, 4, 4), depth=0)[0].max()


def test_blank_blocks_and_masks_do_not_vote(tmp_path):
    rng = np.random.default_rng(1)
    points = np.stack(np.broadcast_arrays(8.0, *np.mgrid[:70, :100]), -1).astype(float)
    normals = along(points)
    values = np.zeros((70, 100), np.uint8)
    values[5, 5], values[40, 70], values[69, 99] = 255, 1, 9
    _, _, _, valid = segment(tmp_path, "10", points, normals, None, values)
    supervised = rng.random(values.shape) < 0.5
    png(tmp_path / "ink" / "10_supervision_mask.png", supervised.astype(np.uint8) * 255)
    masked = rng.random(values.shape) < 0.8
    png(tmp_path / "paths" / "10" / "10_mask.png", masked.astype(np.uint8) * 255)
    report = run(tmp_path, skip_blank=32, depth=1, shape=Zyx(16, 80, 110))
    painted = np.zeros(values.shape, bool)
    painted[:32, :32] = painted[32:64, 64:96] = painted[64:, 96:] = True
    used = valid & painted & supervised & masked
    expected = brute([(points, normals, values, used)], (16, 80, 110), depth=1)
    np.testing.assert_array_equal(arrays(tmp_path / "out.zarr"), expected[:2])
    pixels = report.pixels
    assert pixels["used"] == used.sum()
    assert pixels["blank"] == (~painted).sum()
    assert pixels["unsupervised"] == (painted & ~supervised).sum()
    assert pixels["invalid"] == (painted & supervised & ~masked).sum()
    told = json.loads((tmp_path / "out.zarr" / "ink" / ".zattrs").read_text())["inkzarr"]
    assert told["segments"]["10"]["pixels"] == pixels
    assert len(told["segments"]["10"]["files"]["10.ppm"]["crc32c"]) == 8


@pytest.mark.parametrize("kind", ["ppm", "tifxyz"])
def test_ink_of_the_synthetic_scroll_comes_back(tmp_path, kind):
    scroll = SyntheticScroll(shape=(96, 160, 160))
    scroll.write_segments(tmp_path, kind=kind)
    settings = LabelSettings(shape=Zyx.of(scroll.shape), skip_blank=0)
    labels(tmp_path / "paths", tmp_path / "inklabels", tmp_path / "labels.zarr", settings)
    found = open_labels(tmp_path / "labels.zarr").values
    assert found.dtype == np.float32
    assert set(np.unique(found < 0)) == {False, True}
    for one in scroll.segments():
        surface, label = one.surface, one.label > 0
        points, valid = surface.points, surface.valid
        if kind == "tifxyz":  # past the last grid point no pixel has a place
            stored = open_surface(tmp_path / "paths" / one.id / f"{one.id}.tifxyz").valid
            valid = stored[: label.shape[0], : label.shape[1]]
            label &= valid
        place = tuple(
            np.moveaxis(np.clip(np.floor(points + 0.5).astype(int), 0, np.array(found.shape) - 1), -1, 0)
        )
        ink = (found[place] >= 0.5) & valid
        union = np.count_nonzero(ink | label)
        assert not union or np.count_nonzero(ink & label) / union > 0.95


def test_flat_labels(tmp_path):
    values = np.random.default_rng(2).integers(0, 256, (30, 40), "uint8")
    zarr.save_array(tmp_path / "flat.zarr", np.zeros((13, 30, 40), np.uint8))
    label = png(tmp_path / "word.png", np.pad(values, ((0, 2), (0, 24))))
    settings = LabelSettings(flat=6, skip_blank=0)
    report = labels(tmp_path / "flat.zarr", label, tmp_path / "out.zarr", settings)
    ink, count = arrays(tmp_path / "out.zarr")
    np.testing.assert_array_equal(ink[2:11], np.broadcast_to(values, (9, 30, 40)))
    assert (count[2:11] == 1).all()
    assert not count[:2].any()
    assert not count[11:].any()
    assert list(report.segments) == ["word"]


def test_real_tifxyz_and_a_coarse_label(real_data, tmp_path):
    home = tmp_path / "paths" / "20241113070770"
    home.mkdir(parents=True)
    (home / "20241113070770.tifxyz").symlink_to(real_data / "tifxyz_20241113070770")
    values = np.zeros((16384, 16384), np.uint8)
    values[8000:8064, 8000:8064] = 255
    png(tmp_path / "ink" / "20241113070770_inklabels.png", values)
    report = run(tmp_path, shape=Zyx(14376, 7888, 8096), skip_blank=64)
    surface = open_surface(real_data / "tifxyz_20241113070770")
    tile = surface.tile(slice(8000, 8064), slice(8000, 8064))
    assert report.pixels["used"] == tile.valid.sum() > 0
    low = np.floor(tile.points.reshape(-1, 3).min(0) - 6).astype(int)
    shifted = (tile.points - low, tile.normals, values[8000:8064, 8000:8064], tile.valid)
    size = tuple(np.ceil(tile.points.reshape(-1, 3).max(0) + 6).astype(int) - low)
    ink, count, _ = brute([shifted], size)
    group = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    place = tuple(slice(int(a), int(a) + n) for a, n in zip(low, size, strict=True))
    np.testing.assert_array_equal(group["count"][place], count)
    np.testing.assert_array_equal(group["ink"][place], ink)


def test_tifxyz_by_the_double_loop(tmp_path):
    rng = np.random.default_rng(3)
    row, col = np.mgrid[:9, :12] * 8.0
    points = np.stack([20 + 5 * np.sin(row / 20), row + 3, col + 5], -1)
    valid = np.ones(row.shape, bool)
    valid[4, 5] = False
    write_tifxyz(tmp_path / "paths/10/10.tifxyz", points, scale=(1 / 8, 1 / 8), valid=valid)
    values = rng.integers(0, 256, (72, 96), "uint8")
    png(tmp_path / "ink/10_inklabels.png", values)
    run(tmp_path, shape=Zyx(40, 90, 110))
    surface = open_surface(tmp_path / "paths/10/10.tifxyz")
    part = (surface.points, surface.normals, values, surface.valid)
    np.testing.assert_array_equal(arrays(tmp_path / "out.zarr"), brute([part], (40, 90, 110))[:2])


def test_masks_of_a_coarse_tifxyz_may_end_where_labels_may(tmp_path):
    row, col = np.mgrid[:9, :12] * 8.0
    points = np.stack([np.full(row.shape, 6.0), row + 3, col + 5], -1)
    write_tifxyz(tmp_path / "paths/10/10.tifxyz", points, scale=(1 / 8, 1 / 8))
    png(tmp_path / "ink/10_inklabels.png", np.full((72, 96), 255, np.uint8))
    shapes = []
    for shape in ((64, 88), (72, 96), (327, 351)):
        png(tmp_path / "ink/10_supervision_mask.png", np.full(shape, 255, np.uint8))
        shapes.append(run(tmp_path, f"{shape[0]}.zarr", shape=Zyx(12, 90, 110)).pixels["used"])
    assert shapes == [64 * 88, 65 * 89, 65 * 89]


def test_a_ray_past_a_corner_is_outside(tmp_path):
    points = np.array([[[2.0, -3.0, 2.0], [2.0, 2.0, 2.0]]])
    normals = np.full(points.shape, (0.5**0.5, -(0.5**0.5), 0.0))
    part = segment(tmp_path, "10", points, normals, None, np.full((1, 2), 255, np.uint8))
    report = run(tmp_path, depth=4, shape=Zyx(6, 6, 6))
    assert (report.pixels["used"], report.pixels["outside"]) == (1, 1)
    assert report.pixels["dropped_voxels"] == brute([part], (6, 6, 6))[2]


def test_open_labels_of_something_else(tmp_path):
    zarr.save_array(tmp_path / "a.zarr", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match="no label group"):
        open_labels(tmp_path / "a.zarr")
