"""Scores from histograms: scikit-learn is the oracle."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics

from inkzarr.core.errors import InputError
from inkzarr.core.scores import LEVELS, Scores

VALUES = hnp.arrays(
    np.uint8, st.integers(1, 60), elements=st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 255]))
)


def counted(values, ink, labelled=None):
    scores = Scores()
    scores.add(values, ink, labelled)
    return scores.summary()


@given(VALUES, st.data(), st.booleans())
def test_scikit_learn_agrees(values, data, floats):
    ink = data.draw(hnp.arrays(np.bool_, values.shape))
    exact = values / 255
    if floats:
        values = data.draw(hnp.arrays(np.int64, values.shape, elements=st.integers(0, LEVELS - 1))) / (
            LEVELS - 1
        )
        exact = values
    found = counted(values, ink)
    assert (found.count, found.ink) == (ink.size, ink.sum())
    if not ink.any():
        assert found.auc is found.average_precision is found.best_f05 is found.dice_half is None
        return
    if ink.all():
        assert found.auc is None
    else:
        assert found.auc == pytest.approx(metrics.roc_auc_score(ink, exact), abs=1e-12)
    assert found.average_precision == pytest.approx(metrics.average_precision_score(ink, exact), abs=1e-12)
    f05 = {t: metrics.fbeta_score(ink, exact >= t, beta=0.5) for t in np.unique(exact)}
    assert found.best_f05 == pytest.approx(max(f05.values()), abs=1e-12)
    assert f05[min(f05, key=lambda t: abs(t - found.best_threshold))] == pytest.approx(
        found.best_f05, abs=1e-12
    )
    assert found.dice_half == pytest.approx(metrics.f1_score(ink, exact >= 0.5, zero_division=0), abs=1e-12)
    assert found.dice_best == pytest.approx(
        metrics.f1_score(ink, exact >= found.best_threshold - 1e-9), abs=1e-12
    )


@given(VALUES, st.data())
def test_curves_are_those_of_every_threshold(values, data):
    ink = data.draw(hnp.arrays(np.bool_, values.shape))
    curves = counted(values, ink).curves
    for k in (0, 1, 100, 128, 255):
        said = values >= k
        tp, fp = (said & ink).sum(), (said & ~ink).sum()
        assert curves.threshold[k] == k / 255
        assert curves.precision[k] == (pytest.approx(tp / said.sum()) if said.any() else None)
        assert curves.recall[k] == (pytest.approx(tp / ink.sum()) if ink.any() else None)
        assert curves.false_positive_rate[k] == (pytest.approx(fp / (~ink).sum()) if (~ink).any() else None)
        if ink.any():
            assert curves.f05[k] == pytest.approx(metrics.fbeta_score(ink, said, beta=0.5, zero_division=0))


@given(VALUES, st.data(), st.integers(0, 60))
def test_parts_in_any_order_give_the_same_bits(values, data, cut):
    ink, labelled = (data.draw(hnp.arrays(np.bool_, values.shape)) for _ in range(2))
    first, second = Scores(), Scores()
    first.add(values[:cut], ink[:cut], labelled[:cut])
    second.add(values[cut:], ink[cut:], labelled[cut:])
    second.merge(first)
    assert second.summary() == counted(values[labelled], ink[labelled])


def test_calibration_of_a_calibrated_model():
    rng = np.random.default_rng(0)
    values = rng.random(400_000).astype(np.float32)
    ink = rng.random(values.size) < values
    bins = counted(values, ink).calibration
    assert len(bins) == 20
    assert sum(b.count for b in bins) == values.size
    for at, b in enumerate(bins):
        assert b.probability == pytest.approx((at + 0.5) / 20, abs=2e-3)
        assert b.ink == pytest.approx(b.probability, abs=2e-2)


def test_floats_between_bins_are_near_the_exact_scores():
    rng = np.random.default_rng(1)
    ink = rng.random(2_500_000) < 0.2
    values = np.clip(rng.normal(0.4 + 0.1 * ink, 0.15), 0, 1)
    found = counted(values, ink)
    assert found.auc == pytest.approx(metrics.roc_auc_score(ink, values), abs=1e-5)
    assert found.average_precision == pytest.approx(metrics.average_precision_score(ink, values), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "ink", "told"),
    [
        ([], [], "no scores: nothing is labelled"),
        ([3, 4], [False, False], "no scores: 0 of 2 labelled are ink"),
        ([3, 4], [True, True], r"AUC not defined \(all is ink\), average precision 1.0000"),
        (
            [3, 4],
            [False, True],
            r"AUC 1.0000, average precision 1.0000, F0.5 1.0000 at 0.016, Dice 1.0000 there",
        ),
    ],
)
def test_degenerate_cases_are_told_in_words(values, ink, told):
    found = counted(np.array(values, np.uint8), np.array(ink, np.bool_))
    assert re.match(told, str(found))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["count"] == len(values)


def test_what_cannot_be_scored_is_refused():
    ink = np.zeros(2, np.bool_)
    with pytest.raises(InputError, match=r"dtype int64 cannot be scored: give uint8"):
        counted(np.zeros(2, np.int64), ink)
    for bad in (np.nan, 1.5, -0.1):
        with pytest.raises(InputError, match=r"floats lie in 0\.\.1"):
            counted(np.array([0.5, bad]), ink)
    with pytest.raises(InputError, match=r"give bool, of the probability's shape"):
        counted(np.zeros(3, np.uint8), ink)
    with pytest.raises(InputError, match=r"give bool"):
        counted(np.zeros(2, np.uint8), np.zeros(2, np.uint8))
