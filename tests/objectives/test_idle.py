"""What would do nothing in a training is refused or told before it."""

from __future__ import annotations

import logging

import pytest
from samples import QUIET, raw_rows, tiny_bert

from nlpkd import DistillationTrainer, distill
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss, Stage
from nlpkd.objectives.presets import with_class_weights


def no_loss(outputs, labels, num_items_in_batch=None):
    return outputs.logits.sum()


@pytest.mark.parametrize("weighting", ["fixed", "linear", "uncertainty"])
def test_objectives_of_which_none_has_a_weight_are_refused(weighting, settings, make_rows, tokenizer):
    def made(weights, **more):
        objectives = [CrossEntropyLoss(weights[0]), ForwardKLLoss(weight=weights[1])]
        args = settings(weighting=weighting)
        return DistillationTrainer(
            tiny_bert(1), tiny_bert(1), args, objectives, make_rows(8), processing_class=tokenizer, **more
        )

    with pytest.raises(ValueError, match=r"weight 0 \(cross_entropy, forward_kl\), so nothing would be learned"):
        made((0.0, 0.0))
    made((0.0, 1.0)), made((1.0, 0.0)), made((0.0, 0.0), compute_loss_func=no_loss)


@pytest.mark.parametrize(
    ("objectives", "smoothing", "told"),
    [
        ([ForwardKLLoss()], 0.3, True),
        ([ForwardKLLoss()], 0.0, False),
        ([CrossEntropyLoss(), ForwardKLLoss()], 0.3, False),
        ([CrossEntropyLoss(label_smoothing=0.1)], 0.3, False),
    ],
)
def test_label_smoothing_that_no_objective_follows_is_told(
    objectives, smoothing, told, settings, make_rows, tokenizer, caplog
):
    args = settings(label_smoothing_factor=smoothing)
    with caplog.at_level(logging.WARNING, "nlpkd"):
        DistillationTrainer(tiny_bert(1), tiny_bert(1), args, objectives, make_rows(8), processing_class=tokenizer)
    assert ("label_smoothing_factor=0.3 is not followed in this training" in caplog.text) == told


@pytest.mark.parametrize(
    ("stages", "baselines", "taken"),
    [
        ([[ForwardKLLoss()]], False, False),
        ([[ForwardKLLoss()]], True, True),
        ([[ForwardKLLoss()], [CrossEntropyLoss()]], False, True),
        ([[CrossEntropyLoss(class_weights=[1.0, 2.0])]], True, False),
    ],
)
@pytest.mark.parametrize("weights", [[1.0, 7.0], {"neg": 1.0, "pos": 7.0}])
def test_class_weights_that_nothing_takes_are_refused(stages, baselines, taken, weights):
    stages = [Stage(objectives) for objectives in stages]
    assert len(with_class_weights(stages, None, baselines)) == len(stages)
    if taken:
        with_class_weights(stages, weights, baselines)
    else:
        with pytest.raises(ValueError, match="class_weights=.* weigh the gold labels of a CrossEntropyLoss without"):
            with_class_weights(stages, weights, baselines)


def test_a_job_refuses_class_weights_that_its_objectives_do_not_take(tmp_path, tokenizer):
    splits = {"train": raw_rows(12), "validation": raw_rows(8, seed=1)}
    given = {"teacher_tokenizer": tokenizer, "class_weights": [1.0, 7.0], "output_dir": tmp_path / "out", **QUIET}
    with pytest.raises(ValueError, match=r"class_weights=\[1.0, 7.0\] weigh .* there is none among \['forward_kl'\]"):
        distill(tiny_bert(), "layers:1", **splits, objectives="soft_targets", **given)
