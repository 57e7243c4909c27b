"""What all surfaces have in common."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError
from inkzarr.core.surface import flat_surface, open_surface
from tests.core.surfaces import grid, plane, ppm

ALL = slice(None)


@given(rows=st.integers(1, 9), cols=st.integers(1, 9), edge=st.integers(1, 5))
def test_tiles_cover_each_pixel_once(rows, cols, edge):
    surface = flat_surface((rows, cols), z=2)
    count = np.zeros(surface.shape, int)
    for tile in surface.tiles(edge):
        count[tile] += 1
        np.testing.assert_array_equal(surface.tile(*tile).points, surface.points[tile])
    assert (count == 1).all()


def test_tile_follows_the_rules_of_slices():
    surface = flat_surface((4, 5), z=2)
    assert surface.tile(slice(-2, None), slice(3, 99)).valid.shape == (2, 2)
    assert surface.tile(slice(3, 1), ALL).points.shape == (0, 5, 3)
    with pytest.raises(InputError, match="step 2"):
        surface.tile(slice(0, 4, 2), ALL)


def test_surfaces_travel_to_workers(tmp_path):
    paths = [ppm(tmp_path / "a.ppm"), grid(tmp_path / "a", plane(3, 3))]
    for surface in (flat_surface((2, 2), z=0), *map(open_surface, paths)):
        sent = pickle.loads(pickle.dumps(surface))
        assert len(pickle.dumps(surface)) < 2000
        np.testing.assert_array_equal(sent.points, surface.points)
