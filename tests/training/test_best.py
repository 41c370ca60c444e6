"""What the best checkpoint is chosen by: metrics that a checkpoint can hold, and evaluations that give no number."""

import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from samples import tiny_bert
from transformers import TrainerCallback

from nlpkd import DistillationTrainer
from nlpkd.objectives import CrossEntropyLoss

CHOOSING = {
    "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3,
    "load_best_model_at_end": True, "metric_for_best_model": "own", "greater_is_better": True,
}  # fmt: skip


@pytest.fixture
def trained(make_rows, settings, tokenizer, caplog):
    """Train with a metric that each evaluation gives another value; return the trainer and what was logged."""

    def trained(values, *callbacks, resume=None, **config):
        left = iter(values)
        trainer = DistillationTrainer(
            tiny_bert(1), None, settings(**CHOOSING | config), [CrossEntropyLoss()], make_rows(24), make_rows(8, 1),
            processing_class=tokenizer, compute_metrics=lambda prediction: {"own": next(left)}, callbacks=[*callbacks],
        )  # fmt: skip
        with caplog.at_level(logging.WARNING):
            trainer.train(resume_from_checkpoint=resume)
        return trainer, [message for message in caplog.messages if "best" in message]

    return trained


@pytest.mark.parametrize("value", [math.nan, np.float32("nan")])
@pytest.mark.parametrize("greater", [True, False])
def test_a_best_model_that_no_evaluation_chose_is_told(value, greater, trained):
    trainer, told = trained([value] * 3, greater_is_better=greater)
    for step, line in zip((1, 2, 3), told[:3], strict=True):
        assert f"at step {step} gives nan for metric_for_best_model='own', which is no number" in line
    assert "No best model was chosen, since no evaluation gave a number for metric_for_best_model='own'" in told[3]
    assert len(told) == 4
    assert trainer.state.best_metric is None and trainer.state.best_model_checkpoint is None
    trainer.save_state()
    assert json.loads((Path(trainer.args.output_dir) / "trainer_state.json").read_text())["best_metric"] is None


def test_an_evaluation_without_a_number_is_told_and_the_others_choose(trained):
    trainer, told = trained([math.nan, 0.7, 0.5])
    assert trainer.state.best_metric == 0.7 and Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
    assert len(told) == 1 and "at step 1 gives nan" in told[0]


def test_numbers_choose_without_a_word(trained):
    trainer, told = trained([0.1, 0.7, 0.5])
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2" and told == []


def test_a_best_evaluation_without_a_checkpoint_is_told(trained):
    trainer, told = trained([0.9, 0.5, 0.4], save_steps=2)
    assert trainer.state.best_model_checkpoint is None and len(told) == 1
    assert "the best evaluation was at step 1, of which there is no checkpoint: the model is that of" in told[0]


def test_metrics_that_no_checkpoint_can_hold_are_named_at_the_evaluation(trained):
    with pytest.raises(ValueError, match="the metric 'eval_own' is no number that a checkpoint can hold, got ndarray"):
        trained([np.ones(2)])


@pytest.mark.parametrize(
    ("written", "limit"), [("run", 1), ("run", 2), ("./run", 1), ("./run", 2), ("a//../run/", 1), ("link", 1)]
)
def test_the_best_checkpoint_stays_and_is_loaded_however_the_folder_is_written(
    written, limit, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("run")
    trainer, _ = trained([0.9, 0.5, 0.4], output_dir=written, save_total_limit=limit)
    kept = {"checkpoint-1", "checkpoint-3"} if limit == 2 else {"checkpoint-1"}
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == kept
    best = tiny_bert().from_pretrained(tmp_path / "run" / "checkpoint-1").state_dict()
    assert all(tensor.equal(best[name]) for name, tensor in trainer.model.state_dict().items())


class _Deleting(TrainerCallback):
    """Deletes the first checkpoint after the last step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            shutil.rmtree(Path(args.output_dir) / "checkpoint-1")


def test_a_training_whose_best_checkpoint_is_gone_ends_with_no_other_model(trained):
    with pytest.raises(ValueError, match="the best checkpoint .*checkpoint-1 is not there any more"):
        trained([0.9, 0.5, 0.4], _Deleting())
    _, told = trained([], resume=True)
    assert "the best evaluation was at step 1, of which there is no checkpoint: the model is that of" in told[-1]
