"""Winograd's convolution beside torch's, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from inkzarr.nn.fast import LAST
from inkzarr.nn.winograd import Tiled

even = st.integers(1, 4).map(lambda n: 2 * n)
wide = st.integers(16, 44).map(lambda n: 2 * n)


def a_part(channels, shape, seed):
    """Values, and the scale and shift of each channel."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(1, channels, *shape, generator=source).contiguous(memory_format=LAST)
    scale, shift = torch.randn(2, 1, channels, 1, 1, 1, generator=source)
    return x, scale, shift


def tiled(large, small, kernel):
    """Convolved into the middle of an array, of which nothing else is written."""
    shape = (*large[0].shape[2:], len(kernel))
    around = np.full((shape[0] + 2, *shape[1:]), 7, np.float32)
    layer = Tiled.of(kernel, doubles=True)
    assert layer.takes(large[0])
    found = layer.convolve(large, small, around[1:-1])
    assert (around[[0, -1]] == 7).all()
    return found


def expected(large, small, kernel):
    """The same with torch, in float64."""
    maps = [(x * scale + shift).double() for x, scale, shift in (large, small) if x is not None]
    maps[1:] = [F.interpolate(x, scale_factor=2) for x in maps[1:]]
    return F.conv3d(torch.cat(maps, 1), kernel.double(), padding=1).relu()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(even, even, wide), st.integers(1, 4), st.integers(0, 3), st.integers(1, 2), st.integers(0, 9)
)
def test_it_is_the_convolution(shape, inputs, lower, outputs, seed):
    large = a_part(8 * inputs, shape, seed)
    small = a_part(8 * lower, [size // 2 for size in shape], seed + 1) if lower else None
    kernel = torch.randn(16 * outputs, 8 * (inputs + lower), 3, 3, 3) / 20
    found, wanted = tiled(large, small, kernel), expected(large, small or (None,) * 3, kernel)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("doubled", [False, True])
def test_nan_spreads_as_far_as_with_torch_and_is_not_clipped(doubled):
    large, small = a_part(8, (4, 4, 40), 0), a_part(8, (2, 2, 20), 1)
    (small if doubled else large)[0][0, 3, 1, 1, 7] = torch.nan
    kernel = torch.ones(16, 16, 3, 3, 3)
    found, wanted = tiled(large, small, kernel), expected(large, small, kernel)
    assert torch.equal(found.isnan(), wanted.isnan())


@pytest.mark.parametrize(
    ("shape", "channels", "dtype"),
    [
        ((4, 4, 30), (8, 32), torch.float32),
        ((3, 4, 32), (8, 32), torch.float32),
        ((4, 4, 32), (4, 32), torch.float32),
        ((4, 4, 32), (8, 24), torch.float32),
        ((4, 4, 32), (8, 16), torch.float32),
        ((4, 4, 32), (8, 32), torch.bfloat16),
    ],
)
def test_other_maps_and_kernels_are_left_to_torch(shape, channels, dtype):
    inputs, outputs = channels
    layer = Tiled.of(torch.zeros(outputs, inputs, 3, 3, 3, dtype=dtype), doubles=False)
    assert layer is None or not layer.takes(torch.zeros(1, inputs, *shape))


@pytest.mark.parametrize(("channels", "small"), [(8, (2, 2, 16)), (24, (2, 2, 16)), (16, (2, 2, 18))])
def test_what_does_not_fit_is_refused(channels, small):
    layer = Tiled.of(torch.zeros(16, 32, 3, 3, 3), doubles=True)
    with pytest.raises(ValueError, match=r"do not fit|cannot be doubled"):
        layer.convolve(a_part(16, (4, 4, 32), 0), a_part(channels, small, 1), np.empty((4, 4, 32, 16), "f4"))
