"""What fails at a training's end is known before its first step, by name; the training itself stays as it was."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from samples import QUIET, WORDS, raw_rows, tiny_bert, tiny_config
from torch import nn
from transformers import BertForSequenceClassification, BertTokenizer, TrainerCallback

from nlpkd import DistillationTrainer, distill, load_text_classification
from nlpkd.models.inference import unchanged
from nlpkd.objectives import ForwardKLLoss
from nlpkd.training.rehearsal import ROWS, rows_to_try

QUICK = {
    **QUIET, "rehearsal": True, "latency_runs": 1, "save_strategy": "no", "max_steps": 2, "teacher_check": "off",
    "per_device_train_batch_size": 8,
}  # fmt: skip


@pytest.fixture
def settings(settings):
    """Make the settings of a short run with its rehearsal."""
    return lambda **config: settings(**{"rehearsal": True} | config)


class Steps(TrainerCallback):
    """Counts the steps that a training takes."""

    count = 0

    def on_step_end(self, *given, **options):
        self.count += 1


def trained(tokenizer, rows, held_out, args, **options):
    """Train, and return the trainer; an error has the number of steps before it."""
    steps = Steps()
    settings = {"teacher_model": tiny_bert(seed=1), "objectives": [ForwardKLLoss()]} | options
    model = settings.pop("model", None) or tiny_bert()
    try:
        callbacks = [steps, *settings.pop("callbacks", [])]
        trainer = settings.pop("kind", DistillationTrainer)(
            model, args=args, train_dataset=rows, eval_dataset=held_out, processing_class=tokenizer,
            callbacks=callbacks, **settings,
        )  # fmt: skip
        trainer.train()
    except Exception as error:
        error.steps = steps.count
        raise
    return trainer


def long_tokenizer(tokenizer):
    return BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=10**30)


def long_rows(tokenizer, number=7, words=90):
    texts = raw_rows(12)
    rows = [{"text": row["text"], "label": row["label"]} for row in texts]
    rows[number]["text"] = " ".join(["film"] * words)
    return load_text_classification(rows, tokenizer=long_tokenizer(tokenizer))["train"]


def test_the_longest_row_and_that_of_every_tokenizer_are_tried_and_few_others(tokenizer, make_rows):
    rows = long_rows(tokenizer)
    tried = rows_to_try(rows)
    assert len(tried) == ROWS and max(map(len, tried["input_ids"])) == 92
    own = [[5] * (9 if number == 11 else 2) for number in range(12)]
    both = rows_to_try(rows.add_column("teacher_input_ids", own))
    assert len(both) == ROWS and max(map(len, both["teacher_input_ids"])) == 9
    assert rows_to_try([1, 2, 3, 4, 5, 6]) == [1, 2, 3, 4]
    assert rows_to_try(iter([1, 2])) is None
    assert len(rows_to_try(make_rows(2))) == 2


@pytest.mark.parametrize("which", ["training", "evaluation", "named"])
def test_a_text_with_more_tokens_than_positions_is_named_before_the_first_step(which, tokenizer, make_rows, settings):
    rows, long = make_rows(16), long_rows(tokenizer)
    given = {"training": (long, rows), "evaluation": (rows, long), "named": (rows, {"dev": rows, "far": long})}[which]
    split = {"named": "evaluation set far"}.get(which, which)
    said = (
        f"the student has 64 positions, and a row of the {split} set has 92 tokens: load the data with max_length=64"
    )
    with pytest.raises(ValueError, match=said) as raised:
        trained(tokenizer, *given, settings(cache_teacher="off"))
    assert raised.value.steps == 0


def test_rows_of_another_tokenizer_are_named_before_the_first_step(tokenizer, make_rows, settings):
    other = BertTokenizer(
        vocab={token: number for number, token in enumerate([*tokenizer.get_vocab()][:5] + WORDS[::-1])},
        model_max_length=64,
    )
    rows = load_text_classification(raw_rows(16), tokenizer=tokenizer, teacher_tokenizer=other)["train"]
    with pytest.raises(ValueError, match="evaluation rows.*reads the column teacher_input_ids.*teacher_tokenizer="):
        trained(tokenizer, rows, make_rows(8), settings(), teacher_processing_class=other)


def test_a_token_without_an_embedding_is_named_in_evaluation_rows_too(tokenizer, make_rows, settings):
    rows = make_rows(8)
    odd = rows.map(lambda row, number: {"input_ids": [*row["input_ids"][:-1], 500 if number == 6 else 3]}, with_indices=True)  # fmt: skip  # noqa: E501
    with pytest.raises(ValueError, match="the evaluation rows have token 500"):
        trained(tokenizer, rows, odd, settings())


def test_a_metric_that_fails_is_named_before_the_first_step(tokenizer, make_rows, settings):
    def failing(prediction):
        raise KeyError("recall@5")

    with pytest.raises(ValueError, match="the metrics of the evaluation rows.*KeyError: 'recall@5'") as raised:
        trained(tokenizer, make_rows(16), make_rows(8, 1), settings(), compute_metrics=failing)
    assert raised.value.steps == 0


def test_metrics_are_tried_on_all_labels_of_the_set(tokenizer, make_rows, settings):
    """A metric that needs a class that few rows have is no reason to refuse."""
    seen = []

    def count(prediction):
        seen.append((prediction.predictions.shape, prediction.label_ids.tolist()))
        return {"own": 1.0}

    held_out = make_rows(30, 1)
    trained(tokenizer, make_rows(16), held_out, settings(), compute_metrics=count)
    assert seen == [((30, 2), held_out["labels"][:])]


def shape_of(values):
    """What metrics may depend on beside the numbers: kinds, dtypes, and how the arrays lie in each other."""
    if isinstance(values, dict):
        return {name: shape_of(each) for name, each in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values), [shape_of(each) for each in values]
    return type(values), values.dtype, values.shape


PREPROCESSED = {
    "logits": None,
    "classes": lambda logits, labels: logits.argmax(-1),
    "half": lambda logits, labels: logits.half(),
    "tuple": lambda logits, labels: (logits.argmax(-1), logits),
    "list": lambda logits, labels: [logits.argmax(-1), logits],
    "dict": lambda logits, labels: {"right": logits.argmax(-1) == labels, "nested": (logits,)},
}


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("kind", PREPROCESSED)
def test_metrics_get_the_same_in_the_rehearsal_as_in_an_evaluation(kind, joined, tokenizer, make_rows, settings):
    seen = []

    def metrics(prediction):
        labels = prediction.label_ids if joined else np.concatenate(prediction.label_ids)
        seen.append((shape_of(prediction.predictions), shape_of(prediction.label_ids), labels.tolist()))
        return {"own": 1.0}

    args = settings(eval_strategy="epoch", eval_do_concat_batches=joined, per_device_eval_batch_size=8)
    trained(
        tokenizer, make_rows(8), make_rows(20, 1), args,
        compute_metrics=metrics, preprocess_logits_for_metrics=PREPROCESSED[kind],
    )  # fmt: skip
    rehearsed, evaluated = seen
    assert rehearsed == evaluated


class Cost(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **given):
        metrics["eval_cost"] = 1.0


class LogsCost(TrainerCallback):
    def on_log(self, args, state, control, logs, **given):
        logs["eval_cost"] = 1.0


class Evaluates(DistillationTrainer):
    def evaluate(self, *arguments, **options):
        return super().evaluate(*arguments, **options) | {"eval_cost": 1.0}


class Loops(DistillationTrainer):
    def evaluation_loop(self, *arguments, **options):
        output = super().evaluation_loop(*arguments, **options)
        output.metrics["eval_cost"] = 1.0
        return output


class OwnLabels(DistillationTrainer):
    def prediction_step(self, *arguments, **options):
        loss, logits, labels = super().prediction_step(*arguments, **options)
        return loss, logits, (labels, labels)


class OwnBatches(DistillationTrainer):
    """Batches of its own, which the rows in `eval_dataset` would not make."""

    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(self.train_dataset)


BY_COST = {
    "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
    "metric_for_best_model": "cost", "greater_is_better": False,
}  # fmt: skip


@pytest.mark.parametrize("who", [Cost(), LogsCost(), Evaluates, Loops])
def test_a_metric_that_somebody_adds_to_an_evaluation_chooses_the_best(who, tokenizer, make_rows, settings):
    given = {"kind": who} if isinstance(who, type) else {"callbacks": [who]}
    assert trained(tokenizer, make_rows(8), make_rows(8, 1), settings(**BY_COST), **given).state.best_metric == 1.0


@pytest.mark.parametrize("kind", [OwnLabels, OwnBatches])
def test_what_a_subclass_makes_of_an_evaluation_is_not_guessed(kind, tokenizer, make_rows, settings):
    def metrics(prediction):
        both = prediction.label_ids
        return {"cost": float(isinstance(both, tuple) or len(both) == 16)}

    rows = make_rows(8, 1) if kind is OwnLabels else long_rows(tokenizer)
    run = trained(tokenizer, make_rows(16), rows, settings(**BY_COST), kind=kind, compute_metrics=metrics)
    assert run.state.best_metric == 1.0


NO_NUMBERS = {
    "array": {"own": np.array([1.0, 2.0])},
    "tensor": {"own": torch.tensor([1.0, 2.0])},
    "nested": {"cost": 1.0, "own": {"each": np.array([1.0, 2.0])}},
    "set": {"cost": 1.0, "own": {1.0}},
    "best": {"cost": {"each": 1.0}},
    "best as a list": {"cost": [1.0, 2.0]},
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_metrics_that_are_no_numbers_are_named_before_the_first_step(kind, tokenizer, make_rows, settings):
    said = "the metric 'own' is no number that" if "own" in NO_NUMBERS[kind] else "'cost' must be a number"
    given = {"compute_metrics": lambda prediction: {"cost": 1.0} | NO_NUMBERS[kind]}
    with pytest.raises(ValueError, match=said) as raised:
        trained(tokenizer, make_rows(16), make_rows(8, 1), settings(**BY_COST), **given)
    assert raised.value.steps == 0


def test_metrics_that_a_checkpoint_can_hold_are_taken(tokenizer, make_rows, settings):
    numbers = {"cost": np.float32(1), "half": torch.tensor(0.5), "word": "good", "each": {"bad": np.float64(0.5)}}
    run = trained(tokenizer, make_rows(8), make_rows(8, 1), settings(**BY_COST), compute_metrics=lambda p: numbers)
    assert run.state.best_metric == 1.0
    arrays = {"cost": 1.0, "own": np.array([1.0, 2.0])}
    args = settings(eval_strategy="epoch", save_strategy="no")
    trained(tokenizer, make_rows(8), make_rows(8, 1), args, compute_metrics=lambda p: arrays)


def test_a_metric_that_prediction_loss_only_leaves_out_is_named_before_the_first_step(tokenizer, make_rows, settings):
    args = settings(prediction_loss_only=True, **BY_COST | {"metric_for_best_model": "accuracy"})
    with pytest.raises(ValueError, match="'accuracy' is no metric.*with prediction_loss_only=True") as raised:
        trained(tokenizer, make_rows(16), make_rows(8, 1), args)
    assert raised.value.steps == 0
    loss = settings(prediction_loss_only=True, **BY_COST | {"metric_for_best_model": "loss"})
    assert trained(tokenizer, make_rows(16), make_rows(8, 1), loss).state.best_metric is not None


@pytest.mark.parametrize("best, known", [("f1", False), ("agreement", True), ("eval_loss", True), ("runtime", True)])
def test_the_metric_that_chooses_the_best_checkpoint_has_to_be_one(best, known, tokenizer, make_rows, settings):
    args = settings(
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model=best,
        greater_is_better=not best.endswith(("loss", "runtime")),
    )  # fmt: skip
    if known:
        trained(tokenizer, make_rows(16), make_rows(8, 1), args)
        return
    said = "metric_for_best_model='f1' is no metric.*choose one of accuracy, agreement, .*f1_macro"
    with pytest.raises(ValueError, match=said) as raised:
        trained(tokenizer, make_rows(16), make_rows(8, 1), args)
    assert raised.value.steps == 0


def test_an_objective_that_fails_is_named_before_the_first_step(tokenizer, make_rows, settings):
    class Odd(ForwardKLLoss):
        def total(self, student, teacher, batch):
            raise IndexError("column 7")

    with pytest.raises(ValueError, match=r"the training rows\): IndexError: column"):
        trained(tokenizer, make_rows(16), None, settings(), objectives=[Odd()])


def test_a_tokenizer_that_is_read_back_as_another_is_named_before_the_first_step(tokenizer, make_rows, settings):
    class Replacing(BertTokenizer):
        def _encode_plus(self, text, *given, **options):
            return super()._encode_plus(str(text).replace("film", "plot"), *given, **options)

    own = Replacing(vocab=tokenizer.get_vocab(), model_max_length=64)
    with pytest.raises(
        ValueError, match="failed .saving student and tokenizer.: the Replacing that is used"
    ) as caught:
        trained(own, make_rows(16), None, settings())
    assert caught.value.steps == 0


def test_a_student_that_can_not_be_saved_is_named_before_the_first_step(tokenizer, make_rows, settings):
    class Unsaved(BertForSequenceClassification):
        def save_pretrained(self, *given, **settings):
            raise TypeError("no such shard")

    model = Unsaved(tiny_config())
    with pytest.raises(ValueError, match="failed .saving student and tokenizer.: TypeError"):
        trained(tokenizer, make_rows(16), None, settings(), model=model)


@pytest.mark.parametrize("kind", ["plain", "own head", "module"])
def test_of_a_student_that_can_not_be_read_back_it_is_said_before_the_first_step(
    kind, tokenizer, make_rows, settings, caplog
):
    model = tiny_bert()
    if kind == "own head":
        model.classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    if kind == "module":
        model = Wrapped(model)
    trained(tokenizer, make_rows(16), None, settings(max_steps=1), model=model)
    said = [each.message for each in caplog.records if "can't be read back by from_pretrained" in each.message]
    assert len(said) == (kind == "own head") and all("it has classifier.0.bias (16,)" in each for each in said)


class Wrapped(nn.Module):
    """A module of somebody's own, which has no config."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids, attention_mask)


def test_a_rehearsal_leaves_nothing_behind_and_changes_no_bit_of_the_training(
    tokenizer, make_rows, settings, tmp_path
):
    weights = []
    for rehearsal in (True, False):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        model = tiny_bert(hidden_dropout_prob=0.3)
        out = tmp_path / str(rehearsal)
        args = settings(rehearsal=rehearsal, output_dir=str(out), max_steps=3)
        trainer = trained(tokenizer, make_rows(16), make_rows(8, 1), args, model=model)
        weights.append([*trainer.model.state_dict().values(), torch.rand(3), torch.tensor(np.random.rand(2))])
        assert not list(out.glob(".rehearsal*"))
        assert trainer.state.log_history and "eval_loss" not in str(trainer.state.log_history)
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


class Remembers(ForwardKLLoss):
    """Keeps what it has seen in every way there is, and its value depends on it."""

    def __init__(self, weight=1.0):
        super().__init__(weight=weight)
        self.register_buffer("mean", torch.zeros(2))
        self.own = torch.nn.Parameter(torch.zeros(2))
        self.seen, self.last = [], None

    def total(self, student, teacher, batch):
        self.seen.append(len(batch["input_ids"]))
        self.mean.mul_(0.5).add_(0.5 * student.logits.detach().mean(dim=0))
        self.own.data.add_(0.1)
        past = self.mean.sum() + len(self.seen) + (0.0 if self.last is None else self.last)
        self.last = student.logits.detach().sum()
        return super().total(student, teacher, batch) + (student.logits * (past + self.own)).sum()


class RemembersItsGraph(Remembers):
    """Keeps what can't be copied, and goes by eval mode as modules do."""

    def total(self, student, teacher, batch):
        self.graph = student.logits * 1.0
        if not self.training:
            return ForwardKLLoss.total(self, student, teacher, batch)
        return super().total(student, teacher, batch)


class Passes(torch.nn.Module):
    """A student that changes with every pass."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(40, 2)
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("added", torch.ones(()))
        self.register_buffer("first", None)

    def forward(self, input_ids, attention_mask=None):
        self.passes += 1
        self.added = self.added * 1.5
        self.embedding.weight.data.mul_(0.9)
        self.first = torch.ones(()) if self.first is None else self.first + 1
        return {"logits": self.embedding(input_ids).mean(dim=1) * (self.added + self.passes + self.first)}


@pytest.mark.parametrize("objective", [Remembers, RemembersItsGraph])
@pytest.mark.parametrize("student", [tiny_bert, Passes])
def test_a_rehearsal_changes_nothing_that_student_or_objectives_remember(
    objective, student, tokenizer, make_rows, settings
):
    weights = []
    for rehearsal in (True, False):
        torch.manual_seed(3)
        args = settings(rehearsal=rehearsal, max_steps=3, learning_rate=1e-2)
        given = {"model": student(), "objectives": [objective()]}
        made = trained(tokenizer, make_rows(16), make_rows(8, 1), args, **given)
        # Once more, with what the first training left.
        made.train()
        assert all(module.training for module in made.objectives.modules())
        weights.append([*made.model.state_dict().values(), *made.objectives.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


# The whole job


def job(reader, folder: Path, **options):
    splits = DatasetDict(train=raw_rows(16), validation=raw_rows(12, 1))
    given = {
        "teacher": tiny_bert(layers=3), "student": "layers:2", "train": splits, "objectives": "hinton",
        "tokenizer": reader, "teacher_tokenizer": reader, "output_dir": folder,
    } | QUICK | options  # fmt: skip
    return distill(**given)


def test_a_job_tries_report_and_card_and_writes_nothing_when_that_fails(tokenizer, tmp_path):
    """A model that is given no tokens at all can be trained, and can't be timed on 32 of them."""
    with pytest.raises(ValueError, match="measuring student.*latency_tokens=32 is more than the 24 tokens"):
        job(tokenizer, tmp_path, teacher=tiny_bert(layers=3, max_position_embeddings=24))
    assert not (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob(".rehearsal*"))


def test_held_out_texts_of_every_split_are_tried(tokenizer, tmp_path):
    far = concatenate_datasets([raw_rows(12, 2), raw_rows(1).map(lambda row: {"text": " ".join(["film"] * 90)})])
    splits = DatasetDict(train=raw_rows(16), validation=raw_rows(12, 1), test=far)
    free = long_tokenizer(tokenizer)
    with pytest.raises(ValueError, match="measuring student, teacher and baselines"):
        job(tokenizer, tmp_path, train=splits, tokenizer=free, teacher_tokenizer=free)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_job_rehearses_once_and_quickly(tokenizer, tmp_path, caplog):
    times = []
    for rehearsal in (False, True):
        start = time.process_time()
        with caplog.at_level(logging.WARNING, logger="nlpkd"):
            report = job(tokenizer, tmp_path / str(rehearsal), rehearsal=rehearsal, seed=3).report
        times.append(time.process_time() - start)
        assert report.candidates["student"].latency
    assert times[1] - times[0] < 5
    assert "incomplete" not in report.to_dict()["run"]


def test_frozen_weights_are_not_copied_by_a_rehearsal():
    # A tensor without numbers can't be compared with a copy of it.
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta").requires_grad_(False)])
    before = model[0].weight.detach().clone()
    with unchanged(model), torch.no_grad():
        model[0].weight.add_(1.0)
    assert torch.equal(model[0].weight, before)
