"""Losses: only labelled voxels count, in value and in gradient; parts add up to the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkzarr.nn.config import Loss
from inkzarr.nn.losses import combine, loss_sums, loss_weights, masked_error

SETTINGS = [
    Loss(),
    Loss(dice=1.0),
    Loss(dice=0.5, smoothing=0.1, ink_weight=3.0),
]


def batch(seed=0, shape=(3, 1, 4, 5, 6)):
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1.0, 0.0, 0.3, 1.0], shape)
    return torch.tensor(rng.normal(0, 2, shape), dtype=torch.float32), torch.tensor(
        labels, dtype=torch.float32
    )


def whole(logits, labels, settings):
    return combine(loss_sums(logits, labels, settings), loss_weights(labels, settings), settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_gradient_reaches_an_unlabelled_voxel_whatever_is_there(settings):
    logits, labels = batch()
    logits[labels < 0] = torch.tensor([np.nan, np.inf, 1e30]).repeat(9999)[: int((labels < 0).sum())]
    logits.requires_grad_()
    loss = whole(logits, labels, settings)
    assert torch.isfinite(loss)
    loss.backward()
    assert (logits.grad[labels < 0] == 0).all()
    assert (logits.grad[labels >= 0] != 0).all()


def test_it_is_the_sum_over_labelled_voxels_one_by_one():
    logits, labels = batch()
    settings = Loss(smoothing=0.2, ink_weight=2.5)
    total, count = 0.0, 0
    for z, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if y >= 0:
            y = 0.8 * y + 0.1
            p = 1 / (1 + np.exp(-z))
            total -= (1 + 1.5 * y) * (y * np.log(p) + (1 - y) * np.log(1 - p))
            count += 1
    assert float(whole(logits, labels, settings)) == pytest.approx(total / count, rel=1e-5)


def test_dice_is_of_each_window_with_labels():
    logits, labels = batch()
    labels[1] = -1
    expected = []
    for window in (0, 2):
        known = labels[window] >= 0
        p, y = torch.sigmoid(logits[window][known]), labels[window][known]
        expected.append(1 - (2 * (p * y).sum() + 1) / ((p**2).sum() + (y**2).sum() + 1))
    found = loss_sums(logits, labels, Loss(dice=1.0))[1] / loss_weights(labels, Loss(dice=1.0))[1]
    assert float(found) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
@given(cut=st.integers(0, 3))
def test_parts_of_a_batch_add_up(settings, cut):
    logits, labels = batch()
    parts = [part for part in ((logits[:cut], labels[:cut]), (logits[cut:], labels[cut:])) if len(part[0])]
    sums = sum(loss_sums(*part, settings) for part in parts)
    weights = sum(loss_weights(labels, settings) for _, labels in parts)
    assert float(combine(sums, weights, settings)) == pytest.approx(float(whole(logits, labels, settings)))


def test_a_batch_without_labels_weighs_nothing_and_is_no_nan():
    logits, labels = batch()
    labels[:] = -1
    logits.requires_grad_()
    assert loss_weights(labels, Loss()).tolist() == [0, 0]
    loss = whole(logits, labels, Loss(dice=1.0))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_unlabelled_can_be_punished_for_comparison():
    logits, labels = batch()
    ignored, punished = Loss(), Loss(unlabelled="no ink")
    assert loss_weights(labels, punished)[0] == labels.numel()
    same = whole(logits, labels.clamp(min=0), ignored)
    assert float(whole(logits, labels, punished)) == pytest.approx(float(same))


def test_hidden_voxels_alone_are_compared():
    found = torch.tensor([1.0, 5.0], requires_grad=True)
    error = masked_error(found, torch.tensor([3.0, 0.0]), torch.tensor([True, False]))
    error.backward()
    assert error.item() == 4
    assert found.grad.tolist() == [-4, 0]
