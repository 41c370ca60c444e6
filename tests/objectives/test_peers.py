"""Objectives against other published packages where those have the same formula; how theirs differ is undone here.

pip install --no-deps textbrewer==0.2.1.post1 torchdistill==1.1.5 && pytest tests/objectives/test_peers.py
"""

import pytest
import torch
from references import LABELS, MASK, batch, bound, outputs

from nlpkd import objectives as o

textbrewer = pytest.importorskip("textbrewer.losses", reason="pip install --no-deps textbrewer to compare with it")
peers = pytest.importorskip("torchdistill.losses.mid_level", reason="pip install --no-deps torchdistill to compare")

STUDENT, TEACHER = outputs(0), outputs(1)
ROWS = len(LABELS)


def value(objective, rows=None) -> float:
    return bound(objective)(STUDENT, TEACHER, batch() if rows is None else rows).item()


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -(probabilities * probabilities.clamp(min=1e-20).log()).sum(dim=-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_textbrewer_soft_targets_without_its_missing_t_squared(temperature):
    """Theirs is the cross-entropy, the divergence plus the teacher's entropy, and is not multiplied by T^2."""
    theirs = textbrewer.kd_ce_loss(STUDENT.logits, TEACHER.logits, temperature)
    divergence = theirs - entropy((TEACHER.logits / temperature).softmax(dim=-1))
    assert value(o.ForwardKLLoss(temperature)) == pytest.approx(temperature**2 * divergence.item(), rel=1e-5)


def test_textbrewer_logits():
    assert value(o.LogitMSELoss()) == pytest.approx(
        textbrewer.kd_mse_loss(STUDENT.logits, TEACHER.logits).item(), rel=1e-5
    )


def test_textbrewer_hidden_states():
    pair = STUDENT.hidden_states[3], TEACHER.hidden_states[3]
    assert value(o.HiddenStateMSELoss("last")) == pytest.approx(textbrewer.hid_mse_loss(*pair, MASK).item(), rel=1e-5)
    assert value(o.HiddenStateCosineLoss("last")) == pytest.approx(textbrewer.cos_loss(*pair, MASK).item(), rel=1e-5)
    assert value(o.PatientLoss("last")) == pytest.approx(textbrewer.pkd_loss(*pair).item(), rel=1e-5)


def test_textbrewer_attention_scores():
    scores = [output.queries[2] @ output.keys[2].transpose(-1, -2) / 2**0.5 for output in (STUDENT, TEACHER)]
    theirs = textbrewer.att_mse_loss(*scores, MASK).item()
    assert value(o.AttentionMSELoss("last", on="scores")) == pytest.approx(theirs, rel=1e-5)


def test_textbrewer_attention_maps_of_texts_without_padding():
    """Their softmax runs over padding too, so that theirs and ours agree on whole rows alone."""
    rows = batch() | {"attention_mask": torch.ones_like(MASK)}
    logs = [output.attentions[2].clamp(min=1e-12).log() for output in (STUDENT, TEACHER)]
    theirs = textbrewer.att_ce_loss(*logs, rows["attention_mask"]) - entropy(TEACHER.attentions[2])
    assert value(o.AttentionKLLoss("last"), rows) == pytest.approx(theirs.item(), rel=1e-4)


def test_textbrewer_flow_of_solution():
    pairs = [[output.hidden_states[2], output.hidden_states[3]] for output in (STUDENT, TEACHER)]
    assert value(o.GramLoss("2:2,3:3")) == pytest.approx(textbrewer.fsp_loss(*pairs, MASK).item(), rel=1e-5)


def test_torchdistill_dist():
    theirs = peers.DISTLoss("", "x", "", "x", beta=1.0, gamma=2.0, tau=2.0)
    expected = theirs({"": {"x": STUDENT.logits}}, {"": {"x": TEACHER.logits}}).item()
    assert value(o.DISTLoss(2.0, beta=1.0, gamma=2.0)) == pytest.approx(expected, rel=1e-4)


def test_torchdistill_relational_distances_and_angles_without_the_zeros_in_its_means():
    pair = TEACHER.hidden_states[3][:, 0], STUDENT.hidden_states[3][:, 0]
    theirs = peers.RKDLoss("", "", 1.0, 1.0, "mean")
    distance = theirs.compute_rkd_distance_loss(*pair).item() * ROWS / (ROWS - 1)
    assert value(o.RelationalDistanceLoss()) == pytest.approx(distance, rel=1e-4)
    angle = theirs.compute_rkd_angle_loss(*pair).item() * ROWS**3 / (ROWS * (ROWS - 1) * (ROWS - 2))
    assert value(o.RelationalAngleLoss()) == pytest.approx(angle, rel=1e-4)
