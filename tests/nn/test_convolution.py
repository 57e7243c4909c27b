"""The convolution of one window of few channels, by oneDNN, against torch's own in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from inkzarr.nn.convolution import FEW, FLAT_KERNEL, KERNEL, Conv3d
from inkzarr.nn.unet import UNet3D


def slopes(x, weight, told):
    """The convolution, and the gradients of its input and weights."""
    found = F.conv3d(x, weight, padding=tuple(size // 2 for size in weight.shape[2:]))
    return [found, *torch.autograd.grad(found, (x, weight), told)]


def check(inputs, outputs, shape, *, kernel=KERNEL, layout=torch.contiguous_format):
    layer = Conv3d(inputs, outputs, kernel)
    x = torch.randn(1, inputs, *shape).contiguous(memory_format=layout).requires_grad_()
    told = torch.randn(1, outputs, *shape)
    found = layer(x)
    assert "_Convolution" in type(found.grad_fn).__name__
    mine = [found, *torch.autograd.grad(found, (x, layer.weight), told)]
    exact = slopes(
        x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_(), told.double()
    )
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one.detach(), other.detach().float(), rtol=1e-4, atol=1e-4)


@given(
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from([KERNEL, FLAT_KERNEL]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last_3d]),
)
def test_sums_and_gradients_are_those_of_torch(channels, shape, kernel, layout):
    check(*channels, shape, kernel=kernel, layout=layout)


def test_also_where_the_turned_map_is_one_that_torch_hands_to_onednn_by_itself():
    shape = (2, 60, 60)
    assert 8 * 2 * 60 <= FEW < 8 * 60 * 60
    check(8, 8, shape)


@pytest.mark.parametrize("few", [FEW, 0])
def test_no_layer_of_a_single_window_takes_the_slow_kernel(monkeypatch, few):
    monkeypatch.setattr("inkzarr.nn.convolution.FEW", few)
    net, threads = UNet3D(f_maps=4, levels=2), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            net(torch.rand(1, 1, 4, 16, 16)).mean().backward()
    finally:
        torch.set_num_threads(threads)
    # the last layer has a 1x1x1 kernel, which oneDNN does not take on one thread
    slow = sum(event.count for event in seen.key_averages() if event.key == "aten::slow_conv3d_forward")
    assert slow == (1 if few else 1 + 2 * 3)
