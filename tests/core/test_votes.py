"""Tiles are read in patches: every pixel once, with its value, segment by segment."""

import zlib
from itertools import groupby
from unittest.mock import patch as patched

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core import votes
from inkzarr.core.bricks import NARROW
from inkzarr.core.buckets import TILE, Rule, Tile
from inkzarr.core.cut import Cut
from inkzarr.core.geometry import Box, Grid, Zyx
from inkzarr.core.surface import flat_surface
from inkzarr.core.votes import BATCH, Ballot, PointTile, point_tiles
from tests.labelling import brute, curved

SHAPE = (2 * TILE + 5, 7 * TILE + 3)
PLACES = [(row, col) for row in range(0, SHAPE[0], TILE) for col in range(0, SHAPE[1], TILE)]


def packed(surface, segment, place, values, used):
    (row, col), (height, width) = place, SHAPE
    rows, cols = min(TILE, height - row), min(TILE, width - col)
    part = slice(row, row + rows), slice(col, col + cols)
    data = zlib.compress(values[part].tobytes() + np.packbits(used[part]).tobytes())
    return Tile(surface, segment, row, col, rows, cols, data)


@given(
    chosen=st.lists(st.sets(st.sampled_from(PLACES), min_size=1), min_size=1, max_size=3),
    most=st.sampled_from([1, 3, 8]),
)
def test_every_pixel_comes_once(chosen, most):
    rng, tiles, expected = np.random.default_rng(0), [], []
    for segment, places in enumerate(chosen):
        values, used = rng.integers(0, 256, SHAPE, "uint8"), rng.random(SHAPE) < 0.5
        surface = flat_surface(SHAPE, z=segment)
        tiles += [packed(surface, segment, place, values, used) for place in sorted(places)]
        there = np.zeros(SHAPE, bool)
        for row, col in places:
            there[row : row + TILE, col : col + TILE] = True
        expected.append((there, values, used))
    found = [(np.zeros(SHAPE, int), np.zeros(SHAPE, "uint8"), np.zeros(SHAPE, bool)) for _ in chosen]
    with patched.object(votes, "BATCH", most * TILE**2):
        patches = list(point_tiles(tuple(tiles)))
    for patch, segment in patches:
        z, row, col = patch.points.reshape(-1, 3).astype(int).T
        assert (z == segment).all()
        assert patch.used.size <= most * TILE**2
        seen, values, used = found[segment]
        np.add.at(seen, (row, col), 1)
        values[row, col], used[row, col] = patch.values.reshape(-1), patch.used.reshape(-1)
    for (seen, values, used), (there, all_values, all_used) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(seen, there)
        np.testing.assert_array_equal(values, all_values * there)
        np.testing.assert_array_equal(used, all_used & there)
    assert [key for key, _ in groupby(segment for _, segment in patches)] == list(range(len(chosen)))


def test_a_rectangle_is_one_patch():
    surface, blank = flat_surface(SHAPE, z=0), np.zeros(SHAPE, "uint8")
    tiles = [packed(surface, 0, place, blank, blank > 0) for place in PLACES if place[1] < 2 * TILE]
    ((patch, _),) = point_tiles(tuple(tiles))
    assert patch.points.shape == (SHAPE[0], 2 * TILE, 3)
    assert len(tiles) * TILE**2 <= BATCH


@given(
    seed=st.integers(0, 10**6),
    start=st.tuples(*3 * [st.sampled_from([0, 1, 14])]),
    shape=st.tuples(*3 * [st.integers(1, 20)]),
    depth=st.sampled_from([0.5, 3.0]),
    footprint=st.sampled_from(["ray", "box"]),
)
def test_a_block_gets_what_lies_in_it(seed, start, shape, depth, footprint):
    rng, block, whole = np.random.default_rng(seed), Zyx(128, 128, 128), Zyx(*np.add(start, shape).tolist())
    points, normals, used = curved(rng, 5, 18, shape, middle=rng.uniform(-3, np.array(whole) + 3))
    used &= np.isfinite(points).all(-1) & np.isfinite(normals).all(-1)
    values = rng.integers(0, 256, used.shape, "uint8")
    ballot = Ballot(Box(Zyx(*start), whole), NARROW, shared=False)
    rule = Rule(depth, box=footprint == "box", grid=Grid(whole, block))
    ballot.cast(PointTile(points, normals, values, used), 0, rule)
    found = [Cut.empty(Zyx(*shape), np.dtype(kind), block) for kind in ("uint8", "uint16")]
    _, _, _, votes = ballot.close(*found)
    *expected, _ = brute([(points, normals, values, used)], whole, depth=depth, footprint=footprint)
    for one, other in zip(found, expected, strict=True):
        part = other[tuple(slice(at, None) for at in start)]
        np.testing.assert_array_equal(one.pieces[0, 0, 0], part)
    assert votes == found[1].pieces[0, 0, 0].sum()
