"""Augmentation against MONAI, against numpy's own flips and turns, and by what must not change."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import Affine, ScaleIntensity

from inkzarr.core.geometry import Box, Zyx
from inkzarr.nn.augment import Draw, apply, draw, reach
from inkzarr.nn.config import Augment

EXACT = Augment(rotation=0, scale=(1, 1), intensity=(1, 1), noise=0)


def whole(volume, labels, drawn, at, window):
    """A window out of a volume, as the dataset and the task make it."""
    box, matrix = drawn.crop(Box(Zyx(*at), Zyx(*(a + w for a, w in zip(at, window, strict=True)))))
    crops = []
    for array, fill in ((volume, 0), (labels, -1)):
        crop = np.full(tuple(box.shape), fill, array.dtype)
        shared = box.clip(Box.whole(array.shape))
        crop[shared.within(box)] = array[shared.slices]
        crops.append(torch.from_numpy(crop))
    return [
        part.numpy() for part in apply(crops[0].float(), crops[1], drawn, torch.from_numpy(matrix), window)
    ]


def data(shape=(24, 26, 28), seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(shape, np.float32), rng.integers(-1, 256, shape).astype(np.int16)


def as_float(labels):
    return np.where(labels < 0, -1, labels / np.float32(255)).astype(np.float32)


def test_nothing_drawn_changes_nothing():
    volume, labels = data()
    drawn = draw(np.random.default_rng(0), Augment.off(), (8, 8, 8))
    found = whole(volume, labels, drawn, (3, 4, 5), (8, 8, 8))
    np.testing.assert_array_equal(found[0], volume[3:11, 4:12, 5:13])
    np.testing.assert_array_equal(found[1], as_float(labels[3:11, 4:12, 5:13]))


@given(seed=st.integers(0, 999), window=st.sampled_from([(8, 8, 8), (4, 6, 6), (5, 7, 5), (4, 5, 6)]))
def test_flips_and_turns_are_numpys_some(seed, window):
    volume, labels = data()
    drawn = draw(np.random.default_rng(seed), EXACT, window)
    place = tuple(slice(4, 4 + w) for w in window)
    found = whole(volume, labels, drawn, (4, 4, 4), window)
    matches = 0
    for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for signs in np.ndindex(2, 2, 2):
            flip = tuple(slice(None, None, -1 if s else 1) for s in signs)
            one = volume[place].transpose(axes)[flip]
            if one.shape == window and np.allclose(one, found[0], atol=1e-4):
                np.testing.assert_array_equal(as_float(labels[place].transpose(axes)[flip]), found[1])
                matches += 1
    assert matches == 1


def assert_it_is_monais(turn, window=(16, 16, 16)):
    volume, labels = data((48, 48, 48))
    found = whole(volume, labels, Draw(turn), (16, 16, 16), window)
    for array, mode, mine in ((volume, "bilinear", found[0]), (as_float(labels), "nearest", found[1])):
        monai = Affine(
            affine=np.block([[turn, np.zeros((3, 1))], [np.zeros((1, 3)), np.eye(1)]]),
            mode=mode, padding_mode="zeros", image_only=True,
        )  # fmt: skip
        theirs = np.asarray(monai(torch.from_numpy(array)[None]))[0][16:32, 16:32, 16:32]
        assert np.isclose(mine, theirs, atol=1e-4).mean() > 0.999  # a nearest voxel may be a tie


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("scale", [1.0, 0.83, 1.27])
def test_rotation_and_scale_are_monais(axis, scale):
    angle = 0.3
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
    assert_it_is_monais(scale * turn)


@pytest.mark.parametrize("seed", range(4))
def test_all_that_is_drawn_is_one_resampling_that_monai_does_alike(seed):
    drawn = draw(np.random.default_rng(seed), Augment(), (16, 16, 16))
    assert_it_is_monais(drawn.turn)
    size = np.cbrt(abs(np.linalg.det(drawn.turn)))
    assert 0.75 <= size <= 1.33
    np.testing.assert_allclose(drawn.turn @ drawn.turn.T, size**2 * np.eye(3), atol=1e-12)


@given(seed=st.integers(0, 999))
def test_outside_the_volume_is_air_and_unlabelled_and_inside_is_not(seed):
    volume, labels = np.ones((13, 40, 40), np.float32), np.full((13, 40, 40), 7, np.int16)
    window = (16, 32, 32)
    drawn = draw(np.random.default_rng(seed), Augment(intensity=(1, 1), noise=0), window)
    voxels, label = whole(volume, labels, drawn, (0, 4, 4), window)
    assert ((label == -1) | (label == np.float32(7 / 255))).all()
    assert voxels.min() >= 0
    assert voxels.max() <= 1 + 1e-5
    assert (voxels[label == -1] < 0.5 + 1e-3).all()
    assert (voxels[label != -1] > 0.12).all()
    deep = (label[:, 16, 16] >= 0).sum()
    assert deep == 13


@given(
    seed=st.integers(0, 10**6),
    window=st.sampled_from([(16, 32, 32), (32, 32, 32), (8, 16, 24), (32, 16, 32)]),
    axes=st.sampled_from([None, "z", "zyx", ""]),
    angle=st.sampled_from([0, 10, 30, 45]),
    scale=st.sampled_from([(1, 1), (0.75, 1.33), (0.5, 0.6)]),
)
def test_crops_never_look_further_than_reach(seed, window, axes, angle, scale):
    settings = Augment(rotation=angle, rotation_axes=axes, scale=scale)
    drawn = draw(np.random.default_rng(seed), settings, window)
    box, _ = drawn.crop(Box(Zyx(0, 0, 0), Zyx(*window)))
    for low, high, size, far in zip(box.start, box.stop, window, reach(settings, window), strict=True):
        assert low >= -far - 1
        assert high <= size + far + 1


def test_intensity_and_noise():
    volume, labels = data()
    settings = Augment(flips=False, turns=False, rotation=0, scale=(1, 1), intensity=(0.4, 2.0), noise=0.1)
    drawn = [draw(np.random.default_rng(seed), settings, (8, 8, 8)) for seed in range(200)]
    factors, sigmas = np.array([d.factor for d in drawn]), np.array([d.sigma for d in drawn])
    assert 0.4 <= factors.min() < 0.5 < 1.9 < factors.max() <= 2
    assert 0 <= sigmas.min() < 0.01 < 0.09 < sigmas.max() <= 0.1
    one = Draw(np.eye(3), 1.5, 0.05, 3)
    first, again = (whole(volume, labels, one, (0, 0, 0), (24, 24, 24)) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    left = first[0] - np.asarray(ScaleIntensity(None, None, factor=0.5)(volume[:24, :24, :24]))
    assert abs(left.std() - 0.05) < 0.002
    assert abs(left.mean()) < 0.002
