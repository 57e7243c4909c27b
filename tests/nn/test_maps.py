"""Moments and maxima of maps are torch's own, whatever their shape, layout and precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from inkzarr.nn.maps import halve, moments
from inkzarr.nn.unet import halves

LAYOUTS = [torch.channels_last_3d, torch.contiguous_format]
sides = st.integers(1, 20)
layouts = st.sampled_from(LAYOUTS)


def maps(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    mean=st.floats(-100, 100),
    spread=st.floats(1e-3, 10),
    channels=st.sampled_from([1, 3, 8]),
    side=st.sampled_from([(3, 5, 7), (40, 32, 33), (1, 16, 16), (4, 1, 8)]),
    layout=layouts,
)
def test_moments(mean, spread, channels, side, layout):
    x = (mean + spread * maps(2, channels, *side)).contiguous(memory_format=layout)
    variance, centre = torch.var_mean(x.double(), (2, 3, 4), correction=0)
    ours = moments(x)
    torch.testing.assert_close(ours[0], centre, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], variance, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1.7, 30, 100])
def test_moments_of_what_is_everywhere_the_same(value):
    x = torch.full((1, 2, 4, 4, 512), value)
    mean, variance = moments(x)
    torch.testing.assert_close(mean, x.double().mean((2, 3, 4)), rtol=1e-9, atol=0)
    assert (variance >= 0).all()
    assert (variance < 1e-10).all()


def test_nan_shows_in_its_channel_alone():
    x = maps(1, 3, 4, 4, 4)
    x[0, 1, 2, 2, 2] = torch.nan
    for found in (*moments(x), halve(x, flat=False).sum((2, 3, 4))):
        assert found.isnan().tolist() == [[False, True, False]]


@given(channels=st.integers(1, 9), side=st.tuples(sides, sides, sides), flat=st.booleans(), layout=layouts)
def test_maxima(channels, side, flat, layout):
    z, y, x = side
    given = maps(2, channels, z if flat else 2 * z, 2 * y, 2 * x).contiguous(memory_format=layout)
    torch.testing.assert_close(
        halve(given, flat=flat), functional.max_pool3d(given, halves(flat=flat)), rtol=0, atol=0
    )


def test_half_precision():
    x = maps(1, 2, 4, 4, 4).bfloat16()
    found = halve(x, flat=False)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, functional.max_pool3d(x, 2))
    torch.testing.assert_close(moments(x)[0], x.double().mean((2, 3, 4)), rtol=1e-5, atol=1e-6)
