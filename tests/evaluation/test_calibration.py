"""Temperature scaling against a search by hand, and what it must leave as it was."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from nlpkd.evaluation.calibration import fit_temperature, temperature_scaling


def overconfident(rows: int, seed: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `factor` times as sure as the labels that were drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, 3)) * 1.5
    probabilities = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    labels = np.array([generator.choice(3, p=row / row.sum()) for row in probabilities])
    return factor * logits, labels


def test_the_temperature_is_the_best_of_a_fine_grid():
    logits, labels = overconfident(400, 0, 3.0)
    grid = np.exp(np.arange(np.log(0.5), np.log(8), 1e-3))
    losses = [cross_entropy(torch.from_numpy(logits / value), torch.from_numpy(labels)).item() for value in grid]
    assert fit_temperature(logits, labels) == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)


def test_a_factor_on_the_logits_is_found_and_mends_the_calibration():
    fitted = temperature_scaling(*overconfident(4000, 1, 3.0), *overconfident(4000, 2, 3.0))
    assert fitted.temperature == pytest.approx(3.0, rel=0.1) and fitted.rows == 4000
    assert fitted.ece_after < 0.05 < 0.15 < fitted.ece_before
    assert fit_temperature(*overconfident(4000, 1, 0.5)) == pytest.approx(0.5, rel=0.1)
