"""How sure a classifier is of itself, and what is fitted on held-out rows: a temperature that mends it, thresholds."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn.metrics import precision_recall_curve

from nlpkd.evaluation.metrics import (
    CALIBRATION_BINS,
    calibration_bins,
    calibration_error,
    f1_of_counts,
    row_blocks,
    softmax_confidence,
)
from nlpkd.evaluation.records import TemperatureScaling

_LOG_BOUNDS = (np.log(0.05), np.log(50.0))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature that makes held-out labels most likely.

        T = argmin over T > 0 of -1/n * sum over rows i of log softmax(z_i / T)[y_i]

    (Guo et al., 2017, "On Calibration of Modern Neural Networks", section 4.2, https://arxiv.org/abs/1706.04599).
    Dividing by T changes no decision.

    Args:
        logits: `(rows, labels)`, of rows that nothing is reported on.
        labels: class ids `(rows,)`.

    Returns:
        T, between 0.05 and 50.
    """
    labels = np.asarray(labels)

    def loss(log_temperature: float) -> float:
        total = 0.0
        for rows in row_blocks(len(labels)):
            scaled = np.asarray(logits[rows], dtype=np.float64) / np.exp(log_temperature)
            total -= np.take_along_axis(log_softmax(scaled, axis=1), labels[rows, None], axis=1).sum()
        return total / len(labels)

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_BOUNDS, method="bounded").x))


def temperature_scaling(
    held_out: np.ndarray, held_out_labels: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> TemperatureScaling:
    """Fit a temperature on held-out rows, and measure what it does to the calibration error on others.

    Args:
        held_out: logits `(rows, labels)` to fit on.
        held_out_labels: class ids `(rows,)`.
        logits: logits `(rows, labels)` to measure on.
        labels: class ids `(rows,)`.

    Returns:
        The temperature, the rows of the fit, and both errors.
    """
    temperature = fit_temperature(held_out, held_out_labels)
    correct = logits.argmax(axis=1) == labels
    before, after = (calibration_error(softmax_confidence(logits, scale), correct) for scale in (1.0, temperature))
    return TemperatureScaling(temperature, len(held_out_labels), before, after)


def best_thresholds(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """Choose each label's threshold by the F1 it gives; on held-out rows, and not those that are reported on.

    Args:
        logits: `(rows, labels)`.
        labels: zeros and ones `(rows, labels)`.

    Returns:
        A probability a label, halfway between the scores that it separates; 0.5 for a label that no row has.
    """
    chosen = []
    for scores, gold in zip(expit(np.asarray(logits, dtype=np.float64)).T, np.asarray(labels).T, strict=True):
        if not gold.any():
            chosen.append(0.5)
            continue
        precision, recall, thresholds = precision_recall_curve(gold, scores)
        best = int(np.argmax(f1_of_counts(precision * recall, precision + recall)[:-1]))
        below = scores[scores < thresholds[best]]
        lower = below.max() if len(below) else 0.0
        chosen.append(float((thresholds[best] + lower) / 2))
    return chosen


def decision_confidence(logits: np.ndarray) -> np.ndarray:
    """Return max(p, 1 - p) of each decision at 0.5, `(rows, labels)`."""
    return expit(np.abs(np.asarray(logits, dtype=np.float64)))


def gaps_by_bin(logits: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Sum each row's correctness (0 or 1) minus confidence by confidence bin, at 0.5, `(rows, bins)`."""
    by_bin = np.zeros((len(logits), CALIBRATION_BINS))
    for rows in row_blocks(len(logits)):
        confidence = decision_confidence(logits[rows])
        places = np.arange(len(confidence))[:, None], calibration_bins(confidence)
        np.add.at(by_bin[rows], places, ((logits[rows] > 0) == gold[rows]) - confidence)
    return by_bin
