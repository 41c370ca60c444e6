"""The memory that a saved model takes, against what its weights alone take."""

from __future__ import annotations

import sys

import pytest
from samples import raw_rows, tiny_bert

from nlpkd.evaluation.memory import add_memory
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.models.source import ModelSource
from nlpkd.pipeline.evaluate import evaluate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux's /proc")


def test_a_larger_model_takes_as_much_more_memory_as_its_weights(tmp_path, tokenizer):
    for name, hidden in (("small", 16), ("large", 512)):
        model = tiny_bert(layers=4, hidden=hidden)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    report = evaluate(
        tmp_path / "small", raw_rows(20), candidates={"large": tmp_path / "large"}, memory=True, max_length=32,
        output_dir=tmp_path / "report", latency_runs=0,
    )  # fmt: skip
    found = EvaluationReport.load(tmp_path / "report")
    small, large = (found.candidates[name].memory_mb for name in ("student", "large"))
    weights_mb = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e6
    assert 0 < small < 30 < weights_mb and 0.8 * weights_mb < large - small < 3 * weights_mb
    assert "memory, MB" in report.to_markdown() and report.run.memory_protocol in report.to_markdown()


def test_a_model_that_can_not_be_loaded_is_named(tmp_path, tokenizer):
    tiny_bert().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    report = evaluate(tmp_path, raw_rows(20), max_length=32, latency_runs=0)
    with pytest.raises(RuntimeError, match="the memory of lost was not measured: .*nowhere"):
        add_memory(report, {"lost": ModelSource.of(str(tmp_path / "nowhere"))})
