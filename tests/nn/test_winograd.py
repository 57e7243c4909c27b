"""Winograd's convolution beside torch's, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from inkzarr.nn import winograd
from inkzarr.nn.fast import LAST, Room

even = st.integers(1, 4).map(lambda n: 2 * n)
wide = st.integers(16, 44).map(lambda n: 2 * n)


def a_map(channels, shape, seed):
    """Values, and the scale and shift of each channel."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(1, channels, *shape, generator=source).contiguous(memory_format=LAST)
    scale, shift = torch.randn(2, 1, channels, 1, 1, 1, generator=source)
    return x, scale, shift


def expected(parts, kernel):
    """The same with torch, in float64."""
    maps = [(x * scale + shift).double() for x, scale, shift in parts]
    maps[1:] = [F.interpolate(x, scale_factor=2) for x in maps[1:]]
    return F.conv3d(torch.cat(maps, 1), kernel.double(), padding=1).relu()


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(even, even, wide), st.integers(1, 4), st.integers(0, 3), st.integers(1, 2), st.integers(0, 9)
)
def test_it_is_the_convolution(shape, inputs, small, outputs, seed):
    parts = [a_map(8 * inputs, shape, seed)]
    if small:
        parts.append(a_map(8 * small, [size // 2 for size in shape], seed + 1))
    kernel = torch.randn(16 * outputs, 8 * (inputs + small), 3, 3, 3) / 20
    assert winograd.takes(parts[0][0], kernel)
    found = winograd.convolve(parts, winograd.matrices(kernel), Room())
    wanted = expected(parts, kernel)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=2e-5)


def test_nan_is_not_clipped():
    parts = [a_map(8, (2, 2, 32), 0)]
    parts[0][0][0, 3, 1, 1, 7] = torch.nan
    found = winograd.convolve(parts, winograd.matrices(torch.ones(16, 8, 3, 3, 3)), Room())
    assert found[0, :, 1, 1, 7].isnan().all()
    assert not found[0, :, :, :, 12:].isnan().any()


def test_what_lay_in_a_room_does_not_show():
    kernel, room = torch.randn(16, 8, 3, 3, 3), Room()
    one, other = ([a_map(8, (4, 4, 40), seed)] for seed in (1, 2))
    first = winograd.convolve(one, winograd.matrices(kernel), room).clone()
    winograd.convolve(other, winograd.matrices(kernel), room)
    assert torch.equal(winograd.convolve(one, winograd.matrices(kernel), room), first)


@pytest.mark.parametrize(
    ("shape", "channels", "dtype"),
    [
        ((4, 4, 30), (8, 16), torch.float32),
        ((3, 4, 32), (8, 16), torch.float32),
        ((4, 4, 32), (4, 16), torch.float32),
        ((4, 4, 32), (8, 24), torch.float32),
        ((4, 4, 32), (8, 16), torch.bfloat16),
    ],
)
def test_other_maps_and_kernels_are_left_to_torch(shape, channels, dtype):
    inputs, outputs = channels
    assert not winograd.takes(
        torch.zeros(1, inputs, *shape), torch.zeros(outputs, inputs, 3, 3, 3, dtype=dtype)
    )
