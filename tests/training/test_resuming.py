"""Which checkpoint a training goes on from where its student starts from other weights."""

from __future__ import annotations

import logging

import pytest
from samples import tiny_bert

from nlpkd import DistillationTrainer


@pytest.fixture
def run(settings, make_rows, tokenizer, tmp_path):
    """Make a trainer of a student with weights of its own."""

    def make(seed, same_start):
        args = settings(output_dir=str(tmp_path / "run"), save_strategy="steps", save_steps=1)
        trainer = DistillationTrainer(
            tiny_bert(seed=seed), None, args, None, make_rows(16), processing_class=tokenizer
        )
        trainer.same_start = same_start
        return trainer

    make(1, True).train()
    return make


def test_where_the_start_counts_another_one_is_another_run(run, tmp_path):
    with pytest.raises(ValueError, match="is of another run; what differs: the student's weights at the start"):
        run(2, True).train(resume_from_checkpoint=True)
    again, anew = run(1, True), run(2, True)
    again.train(resume_from_checkpoint="auto")
    assert again.resumed_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    anew.train(resume_from_checkpoint="auto")
    assert anew.resumed_checkpoint is None
    assert len(list((tmp_path / "run" / "earlier-1").glob("checkpoint-*"))) == 2


@pytest.mark.parametrize("same_start", [True, False])
def test_a_checkpoint_takes_the_place_of_the_start_where_it_is_named_or_the_start_does_not_count(
    run, same_start, tmp_path, caplog
):
    asked = str(tmp_path / "run" / "checkpoint-1") if same_start else True
    with caplog.at_level(logging.WARNING):
        run(2, same_start).train(resume_from_checkpoint=asked)
    assert "The student starts from other weights, which are not used" in caplog.text
