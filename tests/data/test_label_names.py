"""Names for labels that are numbers: given by the user, and asked for where nobody gives them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from samples import QUIET, raw_rows, tiny_bert
from transformers import AutoConfig

from nlpkd import DistillationConfig, DistillationTrainer, distill, load_text_classification, train_teacher
from nlpkd.cli.options import arguments
from nlpkd.cli.training import app
from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.label_names import align_labels_to_student, ask_for_label_names, name_classes
from nlpkd.data.labels.classes import Classes
from nlpkd.data.text_classification import load_rows_for_model
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.pipeline.jobs.distillation import prepare_job

QUICK = {
    **QUIET, "save_strategy": "no", "max_steps": 1,
    "teacher_check": "off",
}  # fmt: skip
NAMES = ["negative", "positive"]


@pytest.fixture
def numbered() -> Dataset:
    """Texts whose labels are 0 and 1."""
    return Dataset.from_dict(raw_rows(16).to_dict())


def names_of(folder: Path) -> list[str]:
    return list(AutoConfig.from_pretrained(folder).id2label.values())


def asked(caplog) -> list[str]:
    return [each.getMessage() for each in caplog.records if "--label-names" in each.getMessage()]


def test_a_model_says_the_names_that_its_user_gave_and_they_are_asked_for_else(tmp_path, numbered, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        for names in (NAMES, ()):
            assert not asked(caplog)
            train_teacher(tiny_bert(), numbered, output_dir=tmp_path, tokenizer=tokenizer, label_names=names, **QUICK)
            assert names_of(tmp_path) == list(names or ["LABEL_0", "LABEL_1"])
    assert "will answer LABEL_0 or LABEL_1." in asked(caplog).pop()


def test_a_student_s_card_has_the_names(tmp_path, numbered, tokenizer, caplog):
    tokenizers = {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer}
    with caplog.at_level(logging.WARNING):
        distill(
            tiny_bert(), "layers:1", numbered, numbered, output_dir=tmp_path, label_names=NAMES, **tokenizers, **QUICK
        )
    assert names_of(tmp_path) == NAMES and not asked(caplog)
    assert "(negative, positive)" in (tmp_path / "README.md").read_text()


def test_given_names_and_a_named_teacher_meet_by_name(tmp_path, numbered, tokenizer, caplog):
    teacher = tiny_bert(id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1})
    job = prepare_job(
        DistillationConfig(output_dir=str(tmp_path), **QUICK), teacher, "layers:1", numbered, numbered,
        tokenizer=tokenizer, teacher_tokenizer=tokenizer, data_args=DataArguments(label_names=NAMES),
    )  # fmt: skip
    student = job.make_untrained_student(1)
    ask_for_label_names(student.config, job.data["train"])
    rows = align_labels_to_student(job.data["train"], student.config, "training")
    assert rows.features["labels"].names == ["positive", "negative"] and not asked(caplog)
    assert rows["labels"][:] == [1 - label for label in numbered["label"]]


@pytest.mark.parametrize(
    "labels, ids", [([0, 1], [0, 1]), (["1", "5"], [0, 1]), ([-1, 1], [0, 1]), ([False, True], 0)]
)
def test_numbers_of_any_kind_are_named_in_their_order(labels, ids, tokenizer):
    rows = [{"text": text, "label": labels[row % 2]} for row, text in enumerate(raw_rows(4)["text"])]
    loaded = load_text_classification(rows, tokenizer=tokenizer)
    if not ids:
        with pytest.raises(ValueError, match="contradict each other"):
            name_classes(loaded, NAMES)
        return
    named = name_classes(loaded, NAMES)
    assert named.id2label == dict(enumerate(NAMES)) and named["train"].features["labels"].names == NAMES
    assert named["train"]["labels"][:2] == ids


def test_soft_labels_and_streams_are_named_with_the_gold_labels(tmp_path, tokenizer):
    rows = [{"text": text, "label": row % 2, "votes": [1, 3]} for row, text in enumerate(raw_rows(4)["text"])]
    named = name_classes(load_text_classification(rows, tokenizer=tokenizer, soft_label_column="votes"), NAMES)
    assert named["train"].features[TEACHER_LOGITS].feature.id == json.dumps(NAMES)
    raw_rows(8).to_csv(tmp_path / "rows.csv")
    stream = load_text_classification(
        tmp_path / "rows.csv", tmp_path / "rows.csv", tokenizer=tokenizer, streaming=True
    )
    named = name_classes(stream, NAMES)
    assert named["train"].names == named["validation"].features["labels"].names == NAMES
    assert named["train"].head(8)["labels"][:] == stream["train"].head(8)["labels"][:]


@pytest.mark.parametrize("more", [{}, {"streaming": True}], ids=["whole", "stream"])
def test_rows_are_loaded_with_the_names_that_their_user_gives(more, tokenizer, tmp_path):
    rows = [{"text": text, "label": row % 2} for row, text in enumerate(raw_rows(4)["text"])]
    Dataset.from_list(rows).to_csv(tmp_path / "rows.csv")
    given = {"validation": tmp_path / "rows.csv", "tokenizer": tokenizer} | more
    loaded = load_text_classification(tmp_path / "rows.csv", label_names=NAMES, **given)
    assert loaded.id2label == dict(enumerate(NAMES))
    assert loaded["validation"].features["labels"].names == NAMES and loaded["validation"]["labels"] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="different numbers of labels"):
        load_text_classification(tmp_path / "rows.csv", label_names=["one"], **given)


def test_rows_with_names_keep_their_order(tokenizer):
    loaded = load_text_classification(raw_rows(4, names=("positive", "negative")), tokenizer=tokenizer)
    assert name_classes(loaded, NAMES) is loaded and name_classes(loaded, ()) is loaded


@pytest.mark.parametrize(
    "names, labels, said",
    [
        (["a", "b", "c"], [0, 1], "different numbers of labels"),
        (["a", "a"], [0, 1], "Two labels .* have the same name, 'a'"),
        (["a", "A"], [0, 1], "differ only in case"),
        (["a", ""], [0, 1], "one of the classes has no name"),
        (["a", "b"], ["good", "bad"], "contradict each other"),
        (["a", "b"], [0.5, 1.5], "a score has no classes"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, labels, said, tokenizer):
    rows = [{"text": text, "label": labels[row % 2]} for row, text in enumerate(raw_rows(4)["text"])]
    loaded = load_text_classification(rows, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=f"label_names.*are not those of the rows: .*{said}"):
        name_classes(loaded, names)


@pytest.mark.parametrize("words", [["negative, positive"], ["negative", "--label-names", "positive"]])
def test_the_command_line_takes_names_with_commas_or_one_by_one(words):
    import typer

    command = typer.main.get_command(app).commands["distill"]
    context = command.make_context("distill", ["--train", "x", "--output-dir", "y", "--label-names", *words])
    assert arguments(context)["label_names"] == NAMES


def test_a_student_whose_config_names_no_labels_at_all_is_told_so():
    config = tiny_bert().config
    config.id2label = None
    with pytest.raises(ValueError, match="id2label is None: name each label"):
        align_labels_to_student(Dataset.from_dict({"labels": [0, 1]}), config, "training")


NAMED = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}


def test_a_class_that_the_model_has_not_is_told_by_its_name(tokenizer):
    rows = raw_rows(20, seed=1, names=("neg", "pos"))
    rows = rows.remove_columns("label").add_column(
        "label", ["odd", *(NAMED["id2label"][each] for each in rows["label"][1:])]
    )
    data = load_text_classification(rows, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="labels of the training set and of the student: .*odd") as refused:
        align_labels_to_student(data["train"], tiny_bert(**NAMED).config, "training")
    assert "label 2" not in str(refused.value)


@pytest.mark.parametrize("kind", ["data set", "list"])
def test_labels_that_are_true_and_false_are_the_classes_1_and_0(kind, tmp_path, tokenizer):
    made = {}
    for cast in (int, bool):
        rows: Any = [{**tokenizer(row["text"]), "labels": cast(row["label"])} for row in raw_rows(24, seed=1)]
        rows = Dataset.from_list(rows) if kind == "data set" else rows
        trainer = DistillationTrainer(
            tiny_bert(seed=1, **NAMED), tiny_bert(seed=2, **NAMED),
            DistillationConfig(
                str(tmp_path / cast.__name__), max_steps=2, eval_strategy="epoch", teacher_check="warn", **QUIET
            ),
            objectives=[CrossEntropyLoss()], train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        made[cast] = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert made[bool] == made[int] != []


def test_a_teacher_s_logits_are_put_in_order_beside_labels_that_are_true_and_false():
    rows = Dataset.from_dict({"labels": [True, False], TEACHER_LOGITS: [[1.0, 2.0], [3.0, 4.0]]})
    rows = rows.cast_column(TEACHER_LOGITS, Classes(("pos", "neg")).vector_feature)
    found = align_labels_to_student(rows, tiny_bert(**NAMED).config, "training")
    assert found["labels"][:] == [1, 0] and found[TEACHER_LOGITS][:] == [[2.0, 1.0], [4.0, 3.0]]


def test_a_student_that_is_a_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the student is 'somewhere/student', and must be a model: load it first"):
        DistillationTrainer("somewhere/student", tiny_bert(), DistillationConfig(str(tmp_path), **QUIET))


@pytest.mark.parametrize(("labels", "told"), [([0, 1, None], "row 2 .* has label None .* no number"),
                                              ([None, 1, 0], "row 0 .* has label None"),
                                              (["a", "b", "a"], "row 0 .* has label 'a' .*no number")])  # fmt: skip
def test_a_label_that_is_no_number_is_named_with_its_row(labels, told):
    with pytest.raises(ValueError, match=told):
        align_labels_to_student(Dataset.from_dict({"labels": labels}), tiny_bert().config, "training")


def test_a_user_s_names_mean_the_same_as_these_names_in_the_column_where_a_model_is_measured(tokenizer):
    ids = Dataset.from_dict(raw_rows(12, seed=2).to_dict())
    several = {"problem_type": "multi_label_classification"}
    for names in (["neg", "pos"], ["pos", "neg"]):
        written = raw_rows(12, seed=2, names=names)
        lists = [{"text": row["text"], "label": [names[row["label"]]]} for row in ids]
        numbers = [{"text": row["text"], "label": [row["label"]]} for row in ids]
        stars = ids.map(lambda row: {"label": row["label"] + 1})
        for config, named, counted in (
            ({}, written, ids), (NAMED, written, ids), (NAMED, written, stars), (NAMED | several, lists, numbers)
        ):  # fmt: skip
            read = []
            for rows, more in ((named, ()), (counted, names)):
                asked = DataArguments(label_names=more)
                model = tiny_bert(**config).config
                found, _, _ = load_rows_for_model(rows, model, tokenizer=tokenizer, data_args=asked)
                read.append((found["labels"][:], model.id2label))
            assert read[0][0] == read[1][0]
            assert read[1][1] == (dict(enumerate(names)) if not config else NAMED["id2label"])


def test_rows_to_measure_on_may_lack_some_of_the_names_and_have_no_others(tokenizer):
    names = ["neg", "mixed", "pos"]
    model = tiny_bert(num_labels=3, id2label=dict(enumerate(names)), label2id={"neg": 0, "mixed": 1, "pos": 2}).config
    rows = raw_rows(8, names=("neg", "pos"))
    found, _, _ = load_rows_for_model(rows, model, tokenizer=tokenizer, data_args=DataArguments(label_names=names))
    assert set(found["labels"][:]) == {0, 2}
    with pytest.raises(ValueError, match="label_names .* are not those of the rows"):
        load_rows_for_model(
            rows, model, tokenizer=tokenizer, data_args=DataArguments(label_names=["cold", "hot", "mild"])
        )


def test_texts_that_nobody_labelled_are_measured_by_the_user_s_names_whatever_the_teacher_s_order(tmp_path, tokenizer):
    train = [{"text": text} for text in raw_rows(12)["text"]]
    held_out = raw_rows(12, seed=3)
    for names in (["neg", "pos"], ["pos", "neg"]):
        job = prepare_job(
            DistillationConfig(output_dir=str(tmp_path), **QUICK), tiny_bert(**NAMED), "layers:1", train,
            held_out.to_list(), tokenizer=tokenizer, teacher_tokenizer=tokenizer,
            data_args=DataArguments(label_names=names),
        )  # fmt: skip
        rows = align_labels_to_student(job.data["validation"], tiny_bert(**NAMED).config, "validation")
        assert rows["labels"][:] == [["neg", "pos"].index(names[label]) for label in held_out["label"]]
