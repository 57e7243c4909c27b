"""How well probabilities tell ink from no ink: streaming histograms, and the scores that follow from them.

Every value is counted in one of `LEVELS` bins, so that any number of voxels or pixels takes the same memory,
parts can be merged in any order, and the scores are the same bits whichever way the data was cut.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inkzarr.core.errors import InputError

LEVELS = 16 * 255 + 1
"""Bins: bin i holds the probability i / (LEVELS - 1). Every value of a uint8 volume is a bin of its own."""
STEP = (LEVELS - 1) // 255
HALF = (LEVELS - 1) // 2
CALIBRATION_BINS = 20
BETA2 = 0.25
"""F0.5 weighs precision twice as much as recall: false letters cost more than faint ones."""
BAND = 1 << 20
"""Values counted at once; it bounds the memory of a call."""

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Curves:
    """Scores over thresholds k / 255; ink is said where probability >= threshold. None: not defined.

    Parameters
    ----------
    threshold : tuple of float
        0 .. 1, ascending.
    precision, recall, false_positive_rate, f05 : tuple of float or None
        At each threshold.
    """

    threshold: tuple[float, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    false_positive_rate: tuple[float | None, ...]
    f05: tuple[float | None, ...]


@dataclass(frozen=True)
class CalibrationBin:
    """What became of the values of similar probability; a calibrated model has ``ink == probability``.

    Parameters
    ----------
    probability : float
        Their mean.
    ink : float
        The fraction of them that is ink.
    count : int
        How many there are, at least 1.
    """

    probability: float
    ink: float
    count: int


@dataclass(frozen=True)
class ScoreSummary:
    """The scores of all values that were added. None: not defined, for want of ink or of its absence.

    Parameters
    ----------
    count, ink : int
        Values, and those that are ink.
    auc : float or None
        Area under the ROC curve; equal values count half.
    average_precision : float or None
        Sum over thresholds of (gain in recall) * precision, as scikit-learn has it.
    best_f05, best_threshold : float or None
        The largest F0.5, and the lowest threshold (a value that occurs) that reaches it.
    dice_best, dice_half : float or None
        Dice (F1) at the best threshold, and at 0.5.
    curves : Curves
        Over 256 thresholds.
    calibration : tuple of CalibrationBin
        Of equal widths; those that hold nothing are left out.
    """

    count: int
    ink: int
    auc: float | None
    average_precision: float | None
    best_f05: float | None
    best_threshold: float | None
    dice_best: float | None
    dice_half: float | None
    curves: Curves
    calibration: tuple[CalibrationBin, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and None."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """One line; in words where scores are not defined."""
        if not self.count:
            return "no scores: nothing is labelled"
        share = f"{self.ink} of {self.count} labelled are ink"
        if not self.ink:
            return f"no scores: {share}"
        auc = "not defined (all is ink)" if self.auc is None else f"{self.auc:.4f}"
        return (
            f"AUC {auc}, average precision {self.average_precision:.4f}, F0.5 {self.best_f05:.4f} "
            f"at {self.best_threshold:.3f}, Dice {self.dice_best:.4f} there and {self.dice_half:.4f} at 0.5 "
            f"({share})"
        )


class Scores:
    """Counts of ink and of no ink by probability; `add` parts, `merge` others, then `summary`.

    Attributes
    ----------
    counts : numpy.ndarray of int64, (2, LEVELS)
        No ink, and ink; may be summed over processes.

    Examples
    --------
    >>> scores = Scores()
    >>> scores.add(np.array([0, 128, 255], np.uint8), np.array([False, True, True]))
    >>> scores.summary().auc
    1.0
    """

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts: Counts = np.zeros((2, LEVELS), np.int64) if counts is None else counts

    def add(self, probability: ArrayLike, ink: ArrayLike, labelled: ArrayLike | None = None) -> None:
        """Count values.

        Parameters
        ----------
        probability : array of uint8 or float
            0 .. 255, or 0 .. 1 (counted at the nearest bin, so to 1 / 8160).
        ink : array of bool
            The truth, of the same shape.
        labelled : array of bool, optional
            Which values count; default: all.

        Raises
        ------
        InputError
            Shapes that differ, another dtype, or a float outside 0 .. 1.
        """
        values, truth = np.asarray(probability), np.asarray(ink)
        known = None if labelled is None else np.asarray(labelled)
        for other in (truth, known):
            if other is not None and (other.shape != values.shape or other.dtype != np.bool_):
                told = f"{other.shape} {other.dtype} for {values.shape}"
                msg = f"ink or labelled of {told} cannot be scored: give bool, of the probability's shape"
                raise InputError(msg)
        if values.dtype != np.uint8 and values.dtype.kind != "f":
            msg = f"probability of dtype {values.dtype} cannot be scored: give uint8, or float in 0..1"
            raise InputError(msg)
        flat, truth = values.reshape(-1), truth.reshape(-1)
        known = None if known is None else known.reshape(-1)
        for start in range(0, flat.size, BAND):
            part = slice(start, start + BAND)
            if known is None:
                self._count(flat[part], truth[part])
            else:
                self._count(flat[part][known[part]], truth[part][known[part]])

    def _count(self, values: NDArray[Any], ink: NDArray[np.bool_]) -> None:
        if values.dtype == np.uint8:
            bins, counts = values, self.counts[:, ::STEP]
        else:
            wrong = ~((values >= 0) & (values <= 1))
            if wrong.any():
                msg = f"probability {values[wrong][0]} cannot be scored: floats lie in 0..1"
                raise InputError(msg)
            bins, counts = (
                np.floor(values.astype(np.float64) * (LEVELS - 1) + 0.5).astype(np.int16),
                self.counts,
            )
        size = counts.shape[1]
        positive = np.bincount(bins[ink], minlength=size)
        counts[1] += positive
        counts[0] += np.bincount(bins, minlength=size) - positive

    def merge(self, other: Scores) -> None:
        """Add all that another one has counted."""
        self.counts += other.counts

    def summary(self) -> ScoreSummary:
        """The scores of what was counted so far."""
        none, ink = self.counts
        total_none, total_ink = int(none.sum()), int(ink.sum())
        # at least so probable: index i is the threshold i / (LEVELS - 1)
        false, true = none[::-1].cumsum()[::-1], ink[::-1].cumsum()[::-1]
        occurs = np.flatnonzero(none + ink)
        f05 = _f_score(true, false, total_ink, BETA2)
        dice = _f_score(true, false, total_ink, 1.0)
        best = int(occurs[np.argmax(f05[occurs])]) if total_ink else None
        half = float(dice[HALF]) if total_ink else None
        return ScoreSummary(
            count=total_none + total_ink,
            ink=total_ink,
            auc=_auc(none, ink) if total_none and total_ink else None,
            average_precision=_average_precision(true[occurs], false[occurs]) if total_ink else None,
            best_f05=None if best is None else float(f05[best]),
            best_threshold=None if best is None else best / (LEVELS - 1),
            dice_best=None if best is None else float(dice[best]),
            dice_half=half,
            curves=_curves(true[::STEP], false[::STEP], total_ink, total_none, f05[::STEP]),
            calibration=_calibration(none, ink),
        )


def _f_score(true: Counts, false: Counts, ink: int, beta2: float) -> NDArray[np.float64]:
    """(1 + b) tp / (tp + fp + b (tp + fn)); 0 where there is neither ink nor any said to be."""
    score: NDArray[np.float64] = (1 + beta2) * true / np.maximum(true + false + beta2 * ink, beta2)
    return score


def _auc(none: Counts, ink: Counts) -> float:
    """The chance that ink is more probable than no ink; whole numbers of any size, so nothing is rounded."""
    below = itertools.accumulate(none.tolist(), initial=0)
    pairs = zip(ink.tolist(), none.tolist(), below, strict=False)
    won: int = sum(p * (2 * less + n) for p, n, less in pairs)
    return won / (2 * int(none.sum()) * int(ink.sum()))


def _average_precision(true: Counts, false: Counts) -> float:
    gain = true - np.append(true[1:], 0)
    return float((gain * (true / (true + false))).sum() / true[0])


def _curves(true: Counts, false: Counts, ink: int, none: int, f05: NDArray[np.float64]) -> Curves:
    return Curves(
        threshold=tuple((np.arange(true.size) / 255).tolist()),
        precision=_ratios(true, true + false),
        recall=_ratios(true, np.full_like(true, ink)),
        false_positive_rate=_ratios(false, np.full_like(false, none)),
        f05=tuple(f05.tolist()) if ink else (None,) * f05.size,
    )


def _ratios(parts: Counts, wholes: Counts) -> tuple[float | None, ...]:
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return tuple(part / whole if whole else None for part, whole in pairs)


def _calibration(none: Counts, ink: Counts) -> tuple[CalibrationBin, ...]:
    level = np.arange(LEVELS)
    place = np.minimum(level * CALIBRATION_BINS // (LEVELS - 1), CALIBRATION_BINS - 1)
    found = []
    for number in range(CALIBRATION_BINS):
        inside = place == number
        count, inked = int((none + ink)[inside].sum()), int(ink[inside].sum())
        if count:
            mean = float(((none + ink) * level)[inside].sum()) / (LEVELS - 1) / count
            found.append(CalibrationBin(mean, inked / count, count))
    return tuple(found)
