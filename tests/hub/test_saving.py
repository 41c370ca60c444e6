"""What a student's folder holds beside the model: report, page and card, the card as its author left it."""

from __future__ import annotations

import copy
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from samples import QUIET, raw_rows, tiny_bert, tiny_report
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizer, pipeline

import nlpkd
from nlpkd.evaluation.records import Interval
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import build_model_card, is_generated
from nlpkd.hub.saving import renewed_card, save_report, save_student


def with_accuracy(value: float):
    student = replace(tiny_report().candidates["student"], quality={"accuracy": Interval(value, 0.0, 1.0)})
    return replace(tiny_report(), candidates={"student": student})


def test_report_page_and_card_are_saved_and_written_again_after_another_run(tmp_path: Path) -> None:
    save_report(with_accuracy(0.625), tmp_path, "alice/student")
    save_report(with_accuracy(0.875), tmp_path, "alice/other")
    assert {"report.json", "report.md", "README.md"} <= {path.name for path in tmp_path.iterdir()}
    text = (tmp_path / "README.md").read_text()
    assert "0.875" in text and "0.625" not in text and 'model="alice/other"' in text


@pytest.mark.parametrize(
    ("written", "edited"),
    [
        ("library_name: transformers", "library_name: transformers\nlicense: mit"),
        ("## Limits", "My own words.\n\n## Limits"),
        ("-->", "--> My own words."),
        ("<!-- written by nlpkd", "<!-- edited by Ann"),
    ],
)
def test_a_card_that_somebody_edited_anywhere_is_kept_and_said_so(written, edited, tmp_path, caplog) -> None:
    save_report(with_accuracy(0.625), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.count(written) == 1 and is_generated(text)
    (tmp_path / "README.md").write_text(text.replace(written, edited))
    with caplog.at_level(logging.WARNING):
        save_report(with_accuracy(0.875), tmp_path)
    assert (tmp_path / "README.md").read_text() == text.replace(written, edited)
    assert f"{tmp_path / 'README.md'} is kept as it is" in caplog.text and "delete it" in caplog.text
    assert renewed_card(with_accuracy(0.875), tmp_path, "alice/student") is None


def test_a_student_that_could_not_be_read_back_is_not_saved_over_one_that_can(tmp_path: Path) -> None:
    save_student(tiny_bert(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    student = tiny_bert()
    student.classifier = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 2))
    with pytest.raises(ValueError, match="could not be read back once it is saved: .*it has classifier.0.bias"):
        save_student(student, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_card_of_somebody_s_own_is_kept_whatever_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"M\xf6llers card")
    save_report(tiny_report(), tmp_path)
    assert (tmp_path / "README.md").read_bytes() == b"M\xf6llers card"


def test_a_card_is_known_as_generated_after_a_way_through_the_hub_and_other_line_ends(tmp_path: Path) -> None:
    card = build_model_card(tiny_report(), model_name="alice/student")
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    again.save(tmp_path / "again.md")
    assert is_generated((tmp_path / "README.md").read_text()) and is_generated((tmp_path / "again.md").read_text())
    (tmp_path / "windows.md").write_bytes(card.content.replace("\n", "\r\n").encode())
    assert is_generated((tmp_path / "windows.md").read_text())
    assert not is_generated("") and not is_generated("# My model")


def test_the_card_explains_onnx_files_that_are_there(tmp_path: Path) -> None:
    save_report(tiny_report(), tmp_path)
    assert "nlpkd.load" not in (tmp_path / "README.md").read_text()
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"graph")
    save_report(tiny_report(), tmp_path)
    assert "nlpkd.load" in (tmp_path / "README.md").read_text()


def test_a_path_that_is_no_utf_8_ends_no_run(tmp_path: Path) -> None:
    """The folder's name is in the command, in the names of models, and in the card's title."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/st\xf6dent"))
    folder.mkdir()
    report = tiny_report()
    run = report.run.updated({"command": f"nlpkd evaluate {folder.name}", "data": {"name": f"./{folder.name}.csv"}})
    candidates = report.candidates | {folder.name: report.candidates["student"]}
    save_report(replace(report, run=run, candidates=candidates), folder)
    assert r"nlpkd evaluate st\udcf6dent" in (folder / "README.md").read_text(encoding="utf-8")
    again = EvaluationReport.load(folder)
    save_report(again, folder)
    assert is_generated((folder / "README.md").read_text(encoding="utf-8"))


def test_a_report_without_a_card_has_none(tmp_path: Path) -> None:
    save_report(tiny_report(), tmp_path, card=False)
    assert not (tmp_path / "README.md").exists() and (tmp_path / "report.json").exists()


@pytest.fixture
def measured(tmp_path: Path, tokenizer) -> Path:
    """A student with a report of its weights, its page and its card."""
    folder = save_student(tiny_bert(layers=1), tmp_path / "student", tokenizer)
    report = nlpkd.evaluate(folder, raw_rows(20), latency_runs=0, bootstrap_samples=10)
    save_report(report, folder)
    (folder / "report.html").write_text("figures")
    return folder


FIGURES = {"report.json", "report.md", "report.html", "README.md"}


def saved(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def trainer_of(model, folder: Path, tokenizer, raw: Dataset) -> nlpkd.DistillationTrainer:
    rows = nlpkd.load_text_classification(raw, tokenizer=tokenizer)
    args = nlpkd.DistillationConfig(str(folder), max_steps=1, save_strategy="no", eval_strategy="no", **QUIET)
    return nlpkd.DistillationTrainer(
        model, args=args, train_dataset=rows["train"], processing_class=tokenizer,
        objectives=[nlpkd.objectives.CrossEntropyLoss()],
    )  # fmt: skip


def train_another(folder: Path, tokenizer) -> None:
    trainer = trainer_of(tiny_bert(layers=1, seed=1), folder, tokenizer, raw_rows(8))
    trainer.train()
    trainer.save_model()


@pytest.mark.parametrize(
    "save",
    [lambda folder, tokenizer: save_student(tiny_bert(layers=1, seed=1), folder, tokenizer), train_another],
    ids=["save_student", "trainer"],
)
def test_other_weights_take_away_what_was_measured_of_those_before(save, measured: Path, tokenizer, caplog) -> None:
    assert saved(measured) >= FIGURES
    (measured / "notes.md").write_text("mine")
    with caplog.at_level(logging.WARNING):
        save(measured, tokenizer)
    assert not saved(measured) & FIGURES and "was of the weights that were there before: it is removed" in caplog.text
    assert (measured / "notes.md").read_text() == "mine"


def test_the_same_weights_keep_their_report_and_other_ones_an_edited_card(measured: Path, tokenizer) -> None:
    save_student(AutoModelForSequenceClassification.from_pretrained(measured), measured, tokenizer)
    assert saved(measured) >= FIGURES
    (measured / "README.md").write_text("# My own words")
    save_student(tiny_bert(layers=1, seed=1), measured, tokenizer)
    assert saved(measured) & FIGURES == {"README.md"}
    assert (measured / "README.md").read_text() == "# My own words"


def test_the_record_of_a_compression_stays_beside_the_weights_that_it_is_of_alone(tmp_path: Path, tokenizer) -> None:
    save_student(tiny_bert(layers=1), tmp_path, tokenizer)
    record = tmp_path / "compression.json"
    record.write_text("[]")
    save_student(tiny_bert(layers=1), tmp_path, tokenizer)
    assert record.exists()
    save_student(tiny_bert(layers=1, seed=1), tmp_path, tokenizer)
    assert not record.exists()


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"schema": 7}'])
def test_a_report_of_another_tool_stays(content: str, measured: Path, tokenizer) -> None:
    (measured / "report.json").write_text(content)
    save_student(tiny_bert(layers=1, seed=1), measured, tokenizer)
    assert (measured / "report.json").read_text() == content


def test_no_card_is_written_of_a_report_of_other_weights(measured: Path) -> None:
    report, card = EvaluationReport.load(measured), (measured / "README.md").read_bytes()
    tiny_bert(layers=1, seed=1).save_pretrained(measured)
    (measured / "report.json").unlink()
    for write in (lambda: renewed_card(report, measured, "student"), lambda: save_report(report, measured)):
        with pytest.raises(ValueError, match="measured of other weights than those in"):
            write()
    assert (measured / "README.md").read_bytes() == card and not (measured / "report.json").exists()
    with pytest.raises(ValueError, match="measured of other weights than those in"):
        save_report(report, measured.with_name("nowhere"))
    assert not measured.with_name("nowhere").exists()


@pytest.mark.parametrize("limit", [65, int(1e30)])
def test_a_tokenizer_is_saved_with_the_limit_of_the_model_beside_it(limit: int, tmp_path: Path, tokenizer) -> None:
    larger = copy.deepcopy(tokenizer)
    larger.model_max_length = limit
    folder = save_student(tiny_bert(layers=1), tmp_path, larger)
    answer = pipeline("text-classification", model=str(folder), truncation=True)("good " * 99)
    assert answer == nlpkd.load(folder)("good " * 99)
    assert larger.model_max_length == limit


class Replacing(BertTokenizer):
    """Reads a word as another, which no file of it tells."""

    def _encode_plus(self, text, *given, **options):
        return super()._encode_plus(str(text).replace("film", "plot"), *given, **options)


def test_a_tokenizer_whose_files_read_otherwise_replaces_nothing(tmp_path: Path, tokenizer) -> None:
    folder = save_student(tiny_bert(layers=1), tmp_path, tokenizer)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="the Replacing that is used is read back"):
        save_student(tiny_bert(layers=1, seed=1), tmp_path, Replacing(vocab=tokenizer.get_vocab()))
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_code_of_the_card_classifies_a_text_longer_than_the_model_reads(tmp_path: Path, tokenizer) -> None:
    folder = save_student(tiny_bert(layers=1), tmp_path, tokenizer)
    card = build_model_card(tiny_report(), model_name=str(folder)).content
    code = card.split("```python\n")[1].split("```")[0]
    exec(code.replace("Write the text to classify here.", "good " * 99), {})


@pytest.mark.parametrize(
    "save",
    [save_student, lambda *given: trainer_of(*given, raw_rows(4)).save_model()],
    ids=["save_student", "trainer"],
)
@pytest.mark.parametrize("label2id", [{"neg": 1, "pos": 0}, {"neg": "0", "pos": "1"}, {"LABEL_0": 0}, {}])
def test_a_model_is_saved_with_the_inverse_of_its_names(save, label2id, tmp_path: Path, tokenizer) -> None:
    model = tiny_bert(layers=1, id2label={0: "neg", 1: "pos"})
    model.config.label2id = label2id
    save(model, tmp_path, tokenizer)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.id2label, config.label2id) == ({0: "neg", 1: "pos"}, {"neg": 0, "pos": 1})


SCORES = {"text": ["a film", "a good film"], "label": [0.5, 1.5]}


@pytest.mark.parametrize(
    "save",
    [save_student, lambda *given: trainer_of(*given, Dataset.from_dict(SCORES)).save_model()],
    ids=["save_student", "trainer"],
)
def test_a_model_of_one_output_is_saved_with_its_task(save, tmp_path: Path, tokenizer) -> None:
    save(tiny_bert(layers=1, num_labels=1), tmp_path, tokenizer)
    assert AutoConfig.from_pretrained(tmp_path).problem_type == "regression"


def test_a_report_of_which_there_is_no_page_has_no_older_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("figures of another measurement")
    save_report(tiny_report(), tmp_path, page=False)
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "report.html").write_text("figures of another measurement")
    tiny_report().save(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_can_not_be_made_costs_no_figures(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_report(tiny_report(), tmp_path, logs=7)
    assert EvaluationReport.load(tmp_path) == tiny_report()
