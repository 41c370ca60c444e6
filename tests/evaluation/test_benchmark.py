"""Time from text to label: the tokens are those of the measured rows, models take turns, reports show it."""

from __future__ import annotations

import time

import pytest
import torch
from datasets import Dataset
from samples import sentences, tiny_bert
from torch import nn

from nlpkd import EvaluationReport, evaluate_student
from nlpkd.compression import export_onnx
from nlpkd.data.text_classification import load_text_classification
from nlpkd.evaluation.benchmark import count_parameters, measure_text_to_label, model_size_mb
from nlpkd.evaluation.html_report import render_page
from nlpkd.hub.model_card import build_model_card
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.utils.disk.files import digest_of

TEXTS = sentences(12, seed=5)[0]


class Reading(nn.Module):
    """Keeps what it is given."""

    def __init__(self, name, calls, seconds=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.name, self.calls, self.seconds = name, calls, seconds

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        given = (input_ids, attention_mask, token_type_ids)
        self.calls.append((self.name, *(each.tolist() for each in given)))
        time.sleep(self.seconds)
        return torch.zeros(1, 2)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("fast", [True, False])
def test_a_timed_text_has_the_tokens_that_its_measured_row_has(pairs, fast, tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", fast)
    columns = {"text": TEXTS} | ({"other": TEXTS[::-1]} if pairs else {}) | {"label": [0, 1] * 6}
    data = load_text_classification(
        Dataset.from_dict(columns), tokenizer=tokenizer, max_length=9, text_column="text",
        text_pair_column="other" if pairs else None,
    )  # fmt: skip
    rows, calls = data["train"], []
    assert max(map(len, rows["input_ids"])) == 9 < max(len(tokenizer.tokenize(text)) + 2 for text in TEXTS)
    texts = list(zip(*(rows[name][:] for name in data.text_columns), strict=True))
    measure_text_to_label(
        {"model": Reading("model", calls)}, {"model": tokenizer}, texts, max_tokens={"model": 9}, runs=12
    )
    timed = calls[5 + 1 : 5 + 6] + calls[11 + 1 : 11 + 6] + calls[17 + 1 :]
    for name, place in (("input_ids", 1), ("attention_mask", 2), ("token_type_ids", 3)):
        assert [call[place] for call in timed] == [[ids] for ids in rows[name][:]], name


def test_models_take_turns_and_times_are_milliseconds(tokenizer):
    calls = []
    models = {"slow": Reading("slow", calls, 0.004), "fast": Reading("fast", calls)}
    texts = [(text,) for text in TEXTS[:3]]
    times = measure_text_to_label(
        models, dict.fromkeys(models, tokenizer), texts, max_tokens=dict.fromkeys(models, 64), runs=7
    )
    assert [call[0] for call in calls] == [name for runs in (5, 6, 3) for name in models for _ in range(runs)]
    assert 4 <= times["slow"] < 100 and 0 < times["fast"] < 4


@pytest.fixture(scope="module")
def report(make_rows, tokenizer) -> EvaluationReport:
    models = [tiny_bert(layers=1, seed=seed, initializer_range=0.5) for seed in range(3)]
    return evaluate_student(
        models[0], models[1:], make_rows(20), tokenizer, baseline=models[1], candidates={"other": models[2]},
        text_columns=["text"], bootstrap_samples=5, latency_batches=(1,), latency_runs=2,
    )  # fmt: skip


def test_every_candidate_of_a_report_has_its_time_from_text_to_label(report, tmp_path):
    times = {name: each.text_to_label_ms for name, each in report.candidates.items()}
    assert list(times) == ["teacher", "student", "baseline", "other"] and all(time > 0 for time in times.values())
    assert "from text to label" in report.run.latency_protocol
    report.save(tmp_path)
    assert EvaluationReport.load(tmp_path) == report
    for text in (report.to_markdown(), render_page(report), build_model_card(report, model_name="student").content):
        assert "text to label, p50 ms" in text and f"{times['student']:.2f}" in text
    assert "from text to label" in report.verdict()


def test_rows_without_known_texts_are_not_timed_from_text(make_rows, tokenizer):
    model = tiny_bert(layers=1)
    report = evaluate_student(model, None, make_rows(8), tokenizer, bootstrap_samples=5, latency_runs=1)
    assert report.candidates["student"].text_to_label_ms is None
    assert "text to label" not in report.to_markdown() + report.run.latency_protocol


def test_an_ensemble_costs_what_its_models_cost_each_by_its_own_kind(make_rows, tokenizer, tmp_path):
    model = tiny_bert(layers=1, initializer_range=0.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    export_onnx(model, tokenizer, tmp_path)
    file = OnnxClassifier.from_pretrained(tmp_path / "onnx" / "model.onnx")
    digest, student = digest_of(file.path), tiny_bert(layers=1, seed=1)
    for teachers, runtime, digests in (
        ([model, student], "torch", None),
        ([file, student], "onnxruntime and torch", digest),
        ([student, file], "torch and onnxruntime", digest),
        ([file, file], "onnxruntime", f"{digest} {digest}"),
    ):
        report = evaluate_student(student, teachers, make_rows(4), tokenizer, bootstrap_samples=2, latency_runs=0)
        teacher = report.candidates["teacher"]
        assert teacher.parameters == sum(map(count_parameters, teachers))
        assert teacher.size_mb == pytest.approx(sum(map(model_size_mb, teachers)))
        assert (teacher.runtime, teacher.file_sha256) == (runtime, digests)
