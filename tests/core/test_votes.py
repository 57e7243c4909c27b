"""Tiles are read in patches: every pixel once, with its value, segment by segment."""

import zlib
from itertools import groupby
from unittest.mock import patch as patched

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core import votes
from inkzarr.core.buckets import TILE, Tile
from inkzarr.core.surface import flat_surface
from inkzarr.core.votes import BATCH, point_tiles

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
