"""Long texts as windows: which tokens, whose labels, and averages over a text, against loops over single windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from samples import QUIET, WORDS, tiny_bert

from nlpkd import DistillationTrainer, distill, evaluate_student, load_text_classification, make_student, train_teacher
from nlpkd.data.columns import DOCUMENT
from nlpkd.data.windows import average_windows, one_row_a_document, whole_texts
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss

NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}


def documents(rows, seed=0):
    """Texts of 1 to 40 words, most of them longer than a window."""
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, 41))) for _ in range(rows)]
    labels = ["pos" if text.split().count("good") >= text.split().count("bad") else "neg" for text in texts]
    return Dataset.from_dict({"text": texts, "label": labels})


@pytest.fixture(scope="module")
def cut(tokenizer):
    return load_text_classification(documents(60), tokenizer=tokenizer, max_length=12, window_stride=3)["train"]


def test_windows_cover_every_token_and_share_the_stride(cut, tokenizer):
    raw, seen = documents(60), 0
    for number, row in enumerate(raw):
        own = [window for window in cut if window[DOCUMENT] == number]
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        joined = own[0]["input_ids"][1:-1]
        for before, window in zip(own, own[1:], strict=False):
            inner = window["input_ids"][1:-1]
            assert inner[:3] == before["input_ids"][1:-1][-3:]
            joined = joined + inner[3:]
        assert joined == ids
        assert all(len(window["input_ids"]) == window["length"] <= 12 for window in own)
        assert {window["labels"] for window in own} == {["neg", "pos"].index(row["label"])}
        seen += len(own)
    assert seen == len(cut) > 60


def test_averages_are_those_of_a_loop():
    logits, owners = np.random.default_rng(0).normal(size=(6, 2)), [0, 0, 3, 3, 3, 7]
    expected = [logits[:2].mean(0), logits[2:5].mean(0), logits[5]]
    assert np.allclose(average_windows(logits, owners), expected)
    assert one_row_a_document([5, 5, 6, 6, 6, 7], owners).tolist() == [5, 6, 7]


def test_of_windows_each_text_is_taken_once_and_as_a_whole(cut):
    raw = documents(60)
    assert whole_texts(cut)["text"][:] == [row["text"] for row in raw]
    assert whole_texts(Dataset.from_list(raw))["text"][:] == [row["text"] for row in raw]


def test_trainer_and_report_measure_texts_by_their_average(cut, tokenizer, settings):
    teacher, student = tiny_bert(3, seed=1, **NAMES), tiny_bert(seed=2, **NAMES)
    rows = {}
    for window in cut:
        rows.setdefault(window[DOCUMENT], []).append(window)
    with torch.no_grad():
        logits = [
            torch.cat([student.eval()(torch.tensor([each["input_ids"]])).logits for each in windows]).mean(0)
            for windows in rows.values()
        ]
    gold = [windows[0]["labels"] for windows in rows.values()]
    expected = np.mean([int(row.argmax()) == label for row, label in zip(logits, gold, strict=True)])
    trainer = DistillationTrainer(
        student, teacher, settings(), [ForwardKLLoss()], cut, cut, processing_class=tokenizer
    )
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(expected)
    assert len(trainer.predict(cut).predictions) == len(cut)
    report = evaluate_student(student, teacher, cut, tokenizer, latency_runs=0, bootstrap_samples=10)
    assert report.candidates["student"].quality["accuracy"].value == pytest.approx(expected)
    assert report.task.rows == 60


def test_a_run_on_windows_reports_on_texts(tokenizer, tmp_path):
    quick = {**QUIET, "save_strategy": "no"}
    quick |= {"max_length": 12, "window_stride": 2, "learning_rate": 2e-3, "teacher_check": "off"}
    splits = DatasetDict(train=documents(120), validation=documents(50, 1))
    teacher = train_teacher(tiny_bert(3, **NAMES), splits, tokenizer=tokenizer, output_dir=tmp_path / "t", **quick)
    result = distill(teacher.output_dir, "layers:1", splits, output_dir=tmp_path / "s", baseline=True, **quick)
    assert result.report.task.rows == result.report.run.data.evaluated_rows == 50
    assert result.report.run.data.train_rows == 120
    card = (tmp_path / "s/README.md").read_text()
    assert "longer than 12 tokens" in card and "into windows that share 2" in card


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"window_stride": 10}, "window_stride must be from 0 to 9"),
        ({"window_stride": -1}, "window_stride must be a whole number of at least 0"),
        ({"window_stride": 2, "text_pair_column": "other"}, "for single texts and one tokenizer"),
    ],
)
def test_windows_that_can_t_be_cut_are_refused(asked, message, tokenizer):
    rows = documents(60).map(lambda row: {"other": row["text"]})
    with pytest.raises(ValueError, match=message):
        load_text_classification(rows, tokenizer=tokenizer, max_length=12, text_column="text", **asked)


def test_without_a_stride_texts_are_truncated(tokenizer, settings):
    data = load_text_classification(documents(20), tokenizer=tokenizer, max_length=12)
    assert len(data["train"]) == 20 and data.truncated["train"] > 0 and DOCUMENT not in data["train"].column_names
    student = make_student(tiny_bert(3, **NAMES), 1)
    DistillationTrainer(student, None, settings(), [CrossEntropyLoss()], data["train"], processing_class=tokenizer)
