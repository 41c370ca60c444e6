"""The verdict on a teacher that was trained, held against a report on the same rows."""

from __future__ import annotations

import copy

import pytest
from datasets import Dataset, Value
from samples import QUIET, raw_rows, tiny_bert
from torch import nn
from transformers import AutoTokenizer

from nlpkd import load, train_teacher
from nlpkd.evaluation.records import METRIC_NAMES, format_number
from nlpkd.pipeline.evaluate import evaluate

TEXTS = raw_rows(24)["text"]
LONG = " ".join(["good film"] * 30)


def rows(labels: list, texts: list[str] = TEXTS) -> Dataset:
    return Dataset.from_dict({"text": texts[: len(labels)], "label": labels})


@pytest.mark.parametrize(
    ("held_out", "reading"),
    [
        (rows(["a", "b"] * 12), {}),
        (rows(["a"] * 20 + ["b"] * 4), {}),
        (rows([["a"], ["a", "b"], []] * 8), {}),
        (rows([0.5, 1.25, 2.0, 3.5] * 6), {}),
        # One text of the rare class, in as many windows as the others together have.
        (rows(["a"] * 8 + ["b"], [*TEXTS[:8], LONG]), {"max_length": 12, "window_stride": 2}),
    ],
    ids=["classes", "rare-class", "several-labels", "scores", "windows"],
)
def test_a_teacher_is_judged_by_the_figure_that_a_report_on_the_same_rows_is_headed_by(
    held_out, reading, tmp_path, tokenizer
):
    backbone = tiny_bert(num_labels=1 if held_out.features["label"] == Value("float64") else 2)
    result = train_teacher(
        backbone, held_out, held_out, tokenizer=tokenizer, output_dir=tmp_path, max_steps=1, **QUIET, **reading
    )
    report = evaluate(tmp_path, data=held_out, **reading, bootstrap_samples=20, latency_runs=0)
    metric = report.task.headline
    value = format_number(report.candidates["student"].quality[metric].value)
    assert result.verdict() == f"On the held-out rows the teacher's {METRIC_NAMES[metric]} is {value}."


def test_a_teacher_is_saved_as_it_was_measured(tmp_path, tokenizer):
    side = copy.deepcopy(tokenizer)
    side.truncation_side = "left"
    held_out = rows(["ab"[label] for label in raw_rows(24)["label"]], [f"{LONG} {text}" for text in TEXTS])
    result = train_teacher(
        tiny_bert(), held_out, held_out, tokenizer=side, max_length=8, output_dir=tmp_path, max_steps=60,
        learning_rate=1e-2, per_device_train_batch_size=4, **QUIET,
    )  # fmt: skip
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for each in (saved, result.tokenizer):
        assert (each.model_max_length, each.truncation_side) == (8, "left")
    served = load(tmp_path)(held_out["text"])
    right = [each["label"] == name for each, name in zip(served, held_out["label"], strict=True)]
    assert len({each["label"] for each in served}) == 2
    assert result.metrics["eval_accuracy"] == pytest.approx(sum(right) / len(right))


def test_a_teacher_without_gold_labels_to_be_held_against_has_no_verdict(tmp_path, tokenizer):
    unlabelled = rows([-100, -100])
    labelled = rows([0, 1] * 4)
    result = train_teacher(
        tiny_bert(), labelled, unlabelled, tokenizer=tokenizer, output_dir=tmp_path, max_steps=1, **QUIET
    )
    assert "was not measured" in result.verdict()


def test_a_model_that_could_not_be_read_back_is_refused_before_the_first_step_with_or_without_a_rehearsal(
    tmp_path, tokenizer
):
    model = tiny_bert()
    model.classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    for rehearsal in (True, False):
        options = QUIET | {"rehearsal": rehearsal, "max_steps": 1}
        with pytest.raises(ValueError, match="could not be read back once it is saved: .*it has classifier.0.bias"):
            train_teacher(model, rows([0, 1] * 4), tokenizer=tokenizer, output_dir=tmp_path / "out", **options)
    assert not list(tmp_path.glob("out/*"))
