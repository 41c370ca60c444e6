"""Temperature scaling: one number, fitted on held-out rows, that mends how sure a classifier is of itself."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from nlpkd.evaluation.metrics import classification_metrics

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
    logits, rows = np.asarray(logits, dtype=np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_BOUNDS, method="bounded").x))


def temperature_scaling(
    held_out: np.ndarray, held_out_labels: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Fit a temperature on held-out rows, and say what it does to the calibration error on others.

    Args:
        held_out: logits `(rows, labels)` to fit on.
        held_out_labels: class ids `(rows,)`.
        logits: logits `(rows, labels)` to measure on.
        labels: class ids `(rows,)`.

    Returns:
        `{"temperature", "rows", "ece_before", "ece_after"}`; rows are those of the fit.
    """
    temperature = fit_temperature(held_out, held_out_labels)
    before, after = (
        classification_metrics(each, labels)["expected_calibration_error"]
        for each in (np.asarray(logits, dtype=np.float64), np.asarray(logits, dtype=np.float64) / temperature)
    )
    rows = len(held_out_labels)
    return {"temperature": temperature, "rows": rows, "ece_before": before, "ece_after": after}
