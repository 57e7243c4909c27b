"""The average of weights: what its formula says, and only for a while in the network's place."""

import numpy as np
import pytest
import torch
from torch import nn

from inkzarr.nn.average import LAG, Average


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.99])
def test_it_is_the_weighted_sum_of_all_weights_so_far(decay):
    model, values = nn.Linear(1, 1, bias=False), np.random.default_rng(0).normal(size=40)
    nn.init.constant_(model.weight, values[0])
    average = Average(model, decay)
    for value in values[1:]:
        nn.init.constant_(model.weight, value)
        average.update(model)
    keep = np.array([1 - 1, *(min(decay, (n + 1) / (n + LAG)) for n in range(1, len(values)))])
    share = [(1 - keep[i]) * keep[i + 1 :].prod() for i in range(len(values))]
    assert sum(share) == pytest.approx(1)
    assert float(average.weights["weight"]) == pytest.approx(np.dot(share, values), abs=1e-5)
    assert average.steps == len(values) - 1


def test_the_network_has_its_own_weights_again_whatever_happens():
    model = nn.Linear(2, 2)
    own = model.weight.detach().clone()
    average = Average(model, 0.5)
    average.weights["weight"].zero_()

    def score():
        with average.in_place_of(model):
            assert not model.weight.any()
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        score()
    assert torch.equal(model.weight, own)
