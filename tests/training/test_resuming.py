"""Which checkpoint a training goes on from where its student starts from other weights."""

from __future__ import annotations

import logging

import pytest
import torch
from samples import raw_rows, tiny_bert

from nlpkd import DistillationTrainer, load_text_classification
from nlpkd.objectives import HiddenStateMSELoss


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


def _texts(make_rows, tokenizer, tmp_path, kind):
    """Rows of one kind that the trainer takes."""
    if kind == "rows":
        return make_rows(16)
    if kind == "rows without a length":
        return make_rows(16).to_iterable_dataset()
    file = str(tmp_path / "texts.jsonl")
    raw_rows(16).to_json(file)
    return load_text_classification(file, tokenizer=tokenizer, streaming=True)["train"]


@pytest.mark.parametrize("operations", [1, 10**18])
@pytest.mark.parametrize("kind", ["rows", "rows without a length", "stream of a file"])
def test_a_training_on_rows_of_any_kind_is_resumed_however_many_operations_it_took(
    kind, operations, settings, make_rows, tokenizer, tmp_path
):
    texts = _texts(make_rows, tokenizer, tmp_path, kind)
    args = settings(save_strategy="steps", save_steps=2, max_steps=4)

    class Counting(DistillationTrainer):
        def floating_point_ops(self, inputs):
            return operations

    def trainer():
        return Counting(tiny_bert(seed=1), None, args, None, texts, processing_class=tokenizer)

    whole = trainer()
    whole.train()
    assert whole.state.total_flos == 4 * operations
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.resumed_checkpoint
    for theirs, ours in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("stopped", [2, 4], ids=["unfinished", "finished"])
def test_a_run_that_is_resumed_for_another_length_has_the_learning_rates_of_that_length(
    stopped, schedule, settings, make_rows, tokenizer, tmp_path
):
    def trained(name, epochs, checkpoint=None):
        folder = str(tmp_path / name)
        args = settings(
            output_dir=folder, save_strategy="steps", save_steps=2, num_train_epochs=epochs, logging_steps=1,
            lr_scheduler_type=schedule, warmup_steps=0.2, objective_learning_rate=0.01, learning_rate=0.05,
        )  # fmt: skip
        used = []

        class Noting(DistillationTrainer):
            def training_step(self, *given, **options):
                used.append([group["lr"] for group in self.optimizer.param_groups])
                return super().training_step(*given, **options)

        models = tiny_bert(hidden=8, seed=1), tiny_bert(layers=3, seed=2)
        trainer = Noting(*models, args, [HiddenStateMSELoss()], make_rows(16), processing_class=tokenizer)
        trainer.train(checkpoint and f"{folder}/{checkpoint}")
        return used

    whole = trained("whole", 4)
    assert len(whole) == 8 and len(set(whole[1])) == 2
    trained("first", 2)
    assert trained("first", 4, f"checkpoint-{stopped}") == whole[stopped:]
    assert trained("whole", 4, f"checkpoint-{stopped}") == whole[stopped:]
