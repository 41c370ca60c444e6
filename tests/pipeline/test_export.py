"""An export into a student's folder leaves no figures of the file that was there before."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from samples import raw_rows, tiny_bert, tiny_report

from nlpkd import EvaluationReport
from nlpkd.evaluation.records import Candidate, Interval
from nlpkd.hub.push import files_to_push
from nlpkd.hub.saving import save_report, save_student
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.pipeline.export import RetentionError, _retention, export_student

INT8 = "onnx/model_int8.onnx"


@pytest.fixture(scope="module")
def measured(tokenizer, tmp_path_factory):
    """A student with a report of it and of its int8 file, under a name of its own, and a card."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    folder = save_student(
        tiny_bert(layers=1, initializer_range=0.5), tmp_path_factory.mktemp("out") / "student", tokenizer
    )
    export_student(folder, int8=True)
    report = evaluate(folder, raw_rows(20), candidates={"small": folder / INT8}, latency_runs=0, bootstrap_samples=10)
    save_report(report, folder, "alice/student")
    return folder


def test_a_file_in_the_place_of_one_that_was_measured_takes_its_figures_away(measured, caplog):
    before = EvaluationReport.load(measured)
    assert before.run.student.files_sha256.keys() == {"small"} and "small" in (measured / "README.md").read_text()
    export_student(measured)
    assert EvaluationReport.load(measured) == before, "the same file has the same figures"
    assert INT8 in files_to_push(measured, "alice/student")
    with caplog.at_level(logging.WARNING, logger="nlpkd"):
        export_student(measured, int8=True, portable=True, embeddings=False)
    assert "was of another small: these figures are taken out" in caplog.text
    after = EvaluationReport.load(measured)
    assert after.candidates == {"student": before.candidates["student"]}
    for name in ("report.md", "README.md"):
        assert "small" not in (measured / name).read_text()
    assert 'model="alice/student"' in (measured / "README.md").read_text()
    assert INT8 in files_to_push(measured, "alice/student")


def test_a_measured_file_that_was_replaced_by_hand_is_not_pushed(measured):
    report = evaluate(
        measured, raw_rows(20), candidates={"small": measured / INT8}, latency_runs=0, bootstrap_samples=10
    )
    save_report(report, measured)
    (measured / INT8).unlink()
    with pytest.raises(ValueError, match="has figures of small, and that file is another one"):
        files_to_push(measured, "alice/student")


def test_a_file_that_keeps_exactly_the_share_that_is_asked_for_passes_the_gate():
    def report(right):
        quality = {INT8: right / 85, "student": 50 / 85}
        candidates = {
            name: Candidate({"accuracy": Interval(value, value, value)}, None, 1000, 0.1)
            for name, value in quality.items()
        }
        return replace(tiny_report(), candidates=candidates)

    # 49 of 50 is 98 %; the quotient of both accuracies is a digit below it.
    assert _retention(report(49), 0.98)[INT8] < 0.98
    with pytest.raises(RetentionError, match=r"it keeps 0\.96, below min_retention=0\.98"):
        _retention(report(48), 0.98)


def test_files_are_compared_on_texts_and_not_on_their_windows(tokenizer, tmp_path, caplog):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    folder = save_student(tiny_bert(layers=1, initializer_range=0.5), tmp_path / "student", tokenizer)
    short, long = "a good film", " ".join(["a good film"] * 40)
    rows = [{"text": f"{long if row < 20 else short} {row}", "label": row % 2} for row in range(40)]
    with caplog.at_level(logging.INFO, logger="nlpkd"):
        result = export_student(folder, data=rows, max_length=12, window_stride=2, min_retention=0.1)
    assert [record.rows for record in result.records] == [40]
    assert "comparing it with PyTorch on 40 texts" in caplog.text and "the files on 40 rows" in caplog.text
