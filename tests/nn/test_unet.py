"""The network against the one whose names and outputs it keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.core.errors import InputError
from inkzarr.nn.unet import UNet3D, check_window
from tests.peers import theirs


def largest_difference(net, oracle, shape):
    net.load_state_dict(oracle.state_dict())
    window = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return float((net(window) - oracle(window)).abs().max())


def test_published_architecture_has_the_same_names_and_outputs():
    torch.manual_seed(0)
    oracle = theirs(f_maps=32, levels=5).eval()
    net = UNet3D().eval()
    shapes = {name: tensor.shape for name, tensor in oracle.state_dict().items()}
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == shapes
    assert list(net.state_dict()) == list(shapes)
    assert largest_difference(net, oracle, (1, 1, 32, 32, 32)) < 1e-5


def test_same_seed_starts_from_the_same_weights():
    torch.manual_seed(5)
    oracle = theirs(f_maps=8, levels=3)
    torch.manual_seed(5)
    net = UNet3D(f_maps=8, levels=3)
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name


@given(
    channels=st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3)),
    f_maps=st.sampled_from([4, 8, [4, 12, 16], [8, 8]]),
    levels=st.integers(2, 3),
    groups=st.sampled_from([1, 2, 4]),
    flat=st.booleans(),
)
def test_any_architecture_agrees(channels, f_maps, levels, groups, flat):
    options = {"f_maps": f_maps, "levels": levels, "groups": groups, "flat": flat}
    try:
        net = UNet3D(*channels, **options).eval()
    except InputError:
        with pytest.raises(AssertionError, match="divisible by num_groups"):
            theirs(*channels, **options)
        return
    oracle = theirs(*channels, **options).eval()
    assert largest_difference(net, oracle, (2, channels[0], 3 if flat else 8, 4, 12)) < 1e-5


def test_training_and_evaluation_both_give_logits():
    net = UNet3D(f_maps=4, levels=2)
    with torch.no_grad():
        net.final_conv.bias.fill_(9.0)
        window = torch.rand(1, 1, 4, 4, 4)
        assert torch.equal(net.train()(window), net.eval()(window))
        assert net(window).max() > 1


@pytest.mark.parametrize(
    ("shape", "network", "remedy"),
    [
        ((30, 32, 32), {"levels": 5}, "of 16, .*try 32,32,32"),
        ((0, 2, 2), {"levels": 2}, "try 2,2,2"),
        ((4, 4), {"levels": 2}, "three sizes"),
        ((3, 16, 20), {"levels": 5, "flat": True}, "of 1,16,16, .*try 3,16,32"),
    ],
)
def test_windows_that_cannot_be_halved_are_refused(shape, network, remedy):
    with pytest.raises(InputError, match=remedy):
        check_window(shape, UNet3D(f_maps=4, **network).multiples)


def test_the_network_refuses_them_too():
    with pytest.raises(InputError, match="multiple of 4"):
        UNet3D(f_maps=4, levels=3)(torch.zeros(1, 1, 6, 8, 8))


@pytest.mark.parametrize("wrong", [{"f_maps": 0}, {"levels": 1}, {"f_maps": [8]}, {"groups": 0}])
def test_impossible_architectures_are_refused(wrong):
    with pytest.raises(InputError, match="two levels or more"):
        UNet3D(**wrong)


def test_channels_must_divide_into_groups():
    with pytest.raises(InputError, match="6 channels do not divide into 4 groups"):
        UNet3D(f_maps=6, levels=2)
