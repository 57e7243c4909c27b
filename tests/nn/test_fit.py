"""The small fit learns, says how far it is, and gives the same network for the same seed."""

import numpy as np
import pytest
import torch

from inkzarr.core.errors import InputError
from inkzarr.nn.fit import fit_on_truth

SMALL = {"window": 8, "f_maps": 4, "levels": 2, "batch": 2}


def scroll(seed=0, side=24):
    """Noise, brighter where there is ink; the upper half is labelled."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((side,) * 3, np.uint8)
    truth[:, side // 3 : side // 2, 4:-4] = 1
    volume = rng.integers(0, 120, truth.shape) + 80 * truth
    labelled = np.zeros(truth.shape, bool)
    labelled[:, : 2 * side // 3] = True
    return volume.astype(np.uint8), truth, labelled


def test_it_learns_from_what_is_labelled():
    volume, truth, labelled = scroll()
    wrong = np.where(labelled, truth, 1 - truth)
    losses = []
    model = fit_on_truth(
        volume, wrong, labelled=labelled, steps=60, progress=lambda *step: losses.append(step), **SMALL
    )
    assert [(done, steps) for done, steps, _ in losses] == [(n, 60) for n in range(1, 61)]
    assert np.mean([loss for *_, loss in losses[-10:]]) < 0.6 * losses[0][2]
    unseen, truth, _ = scroll(seed=1)
    with torch.inference_mode():
        logits = model(torch.from_numpy(unseen)[None, None] / 255)[0, 0].numpy()
    assert logits[truth == 1].mean() > logits[truth == 0].mean() + 1
    assert not model.training


def test_same_seed_same_network_and_no_other_random_state():
    volume, truth, labelled = scroll()
    state = torch.get_rng_state()
    nets = [fit_on_truth(volume, truth, labelled=labelled, steps=4, seed=n, **SMALL) for n in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    one, two, other = (torch.cat([value.flatten() for value in net.state_dict().values()]) for net in nets)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_everything_is_labelled_unless_told_and_ink_may_lack():
    volume, truth, _ = scroll()
    model = fit_on_truth(volume, np.zeros_like(truth, dtype=bool), steps=2, **SMALL)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_what_cannot_be_fitted_is_told():
    volume, truth, labelled = scroll()
    with pytest.raises(InputError, match=r"arrays of shape.*give equal ones"):
        fit_on_truth(volume, truth[1:])
    with pytest.raises(InputError, match="each side at least 32"):
        fit_on_truth(volume, truth)
    with pytest.raises(InputError, match="float32: convert the volume to uint8"):
        fit_on_truth(volume.astype(np.float32), truth, **SMALL)
    with pytest.raises(InputError, match="no voxel is labelled"):
        fit_on_truth(volume, truth, labelled=np.zeros_like(labelled), **SMALL)
    with pytest.raises(InputError, match="multiple of 4"):
        fit_on_truth(volume, truth, window=10)
