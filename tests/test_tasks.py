"""Whole runs of the other tasks: several labels a row, scores, rare classes; teacher, student, baseline and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from samples import QUIET, WORDS, sentences, tiny_bert
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import nlpkd
from nlpkd import DistillationTrainer, distill, load_text_classification, make_student, train_teacher
from nlpkd.augment import unlabelled
from nlpkd.cli import app
from nlpkd.compression.int8 import INT8_FILE
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss, LogitMSELoss
from nlpkd.objectives.presets import resolve
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.pipeline.verify import verify
from nlpkd.serving.classifier import TORCH_FILE
from nlpkd.tasks import MULTI_LABEL, REGRESSION, is_unlabelled

QUICK = {
    **QUIET, "per_device_train_batch_size": 8, "logging_steps": 1,
    "learning_rate": 2e-3, "num_train_epochs": 3, "save_strategy": "no",
}  # fmt: skip
TAGS = ("film", "plot", "good")


def texts(rows, seed):
    return sentences(rows, seed)[0]


def tagged(rows, seed=0):
    """Texts with the list of the words in TAGS that they hold."""
    found = texts(rows, seed)
    return Dataset.from_dict({"text": found, "tags": [[tag for tag in TAGS if tag in text.split()] for text in found]})


def scored(rows, seed=0):
    """Texts scored by their judgement and a little by their length."""
    found = texts(rows, seed)
    judged = [3.5 * any(word in text.split() for word in WORDS[:3]) - 0.1 * len(text.split()) for text in found]
    return Dataset.from_dict({"text": found, "score": judged})


def three(make):
    return DatasetDict(train=make(240), validation=make(60, 1), test=make(60, 2))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("backbone")
    tiny_bert(layers=2, hidden=32).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tagger(tmp_path_factory, backbone):
    """A teacher of several labels a row."""
    folder = tmp_path_factory.mktemp("tagger")
    return train_teacher(
        backbone, three(tagged), label_column="tags", output_dir=folder, **QUICK | {"num_train_epochs": 12}
    )


@pytest.fixture(scope="module")
def scorer(tmp_path_factory, backbone):
    """A teacher of scores."""
    folder = tmp_path_factory.mktemp("scorer")
    return train_teacher(
        backbone, three(scored), label_column="score", output_dir=folder, **QUICK | {"num_train_epochs": 8}
    )


def test_several_labels_a_row_from_teacher_to_report(tagger, tmp_path):
    assert tagger.model.config.problem_type == MULTI_LABEL and tagger.metrics["eval_f1_macro"] > 0.7
    result = distill(
        tagger.output_dir, "layers:1", three(tagged), label_column="tags", output_dir=tmp_path, baseline=True, **QUICK
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["task"]["problem_type"] == MULTI_LABEL and report["task"]["labels"] == sorted(TAGS)
    assert set(report["candidates"]) == {"teacher", "student", "no_teacher", "same_start"}
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.thresholds == report["run"]["thresholds"]["student"]
    rows, reader = tagged(60, 2), AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        given = [model(**reader(text, return_tensors="pt")).logits[0].sigmoid().numpy() for text in rows["text"]]
    gold = np.array([[tag in tags for tag in sorted(TAGS)] for tags in rows["tags"]])
    cut = np.array([model.config.thresholds[tag] for tag in sorted(TAGS)])
    expected = f1_score(gold, np.array(given) > cut, average="macro", zero_division=0)
    assert result.report.candidates["student"].quality["f1_macro"].value == pytest.approx(expected)
    assert "macro F1" in result.report.verdict() and "mcnemar_p" not in report["comparisons"]["student_vs_no_teacher"]
    assert "labels each on average" in (tmp_path / "report.md").read_text()
    classify = pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")
    assert {entry["label"] for entry in classify("good film")[0]} == set(TAGS)


@pytest.fixture(scope="module")
def shipped(tagger, tmp_path_factory):
    """A student of several labels beside its int8 file."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("shipped")
    return distill(
        tagger.output_dir, "layers:1", three(tagged), label_column="tags", output_dir=folder, ship=True,
        **QUICK | {"num_train_epochs": 1},
    )  # fmt: skip


def test_a_shipped_file_is_measured_as_it_is_served(shipped):
    folder, rows = Path(shipped.output_dir), tagged(60, 2)
    gold = [set(tags) for tags in rows["tags"]]
    for name, file in (("student", TORCH_FILE), (INT8_FILE, INT8_FILE)):
        found = nlpkd.load(folder, file=file)(rows["text"], decide=True, batch_size=64)
        given = [{each["label"] for each in labels} for labels in found]
        quality = shipped.report.candidates[name].quality
        assert quality["accuracy"].value == pytest.approx(np.mean([a == b for a, b in zip(given, gold, strict=True)]))


def test_a_teacher_is_judged_by_the_thresholds_that_were_chosen_for_it_and_another_one_is_not(
    shipped, tagger, tmp_path
):
    other = shutil.copytree(tagger.output_dir, tmp_path / "other")
    for teacher, judged in ((tagger.output_dir, True), (other, None)):
        found = verify(shipped.output_dir, tagged(60, 2), teacher=teacher, label_column="tags")
        claims = {each.figure: each.holds for each in found.claims}
        assert claims["macro F1"] and claims[f"{INT8_FILE}: macro F1"]
        for figure in ("teacher: macro F1", "agreement with the teacher", "student vs teacher: f1 macro difference"):
            assert claims[figure] is judged


def test_files_of_a_student_decide_by_its_thresholds_whichever_are_chosen(shipped):
    folder = Path(shipped.output_dir)
    report = evaluate(
        folder, tagged(60, 2), candidates={"int8": folder / INT8_FILE}, held_out=tagged(40, 5), label_column="tags",
        latency_runs=0, bootstrap_samples=2,
    )  # fmt: skip
    assert report.run.thresholds["int8"] == report.run.thresholds["student"]


def test_what_was_fitted_before_a_training_is_not_kept_after_it(shipped, tmp_path):
    assert "thresholds" in shipped.student.config.to_dict()
    splits = three(tagged)
    del splits["test"]
    result = distill(
        shipped.student, shipped.student, splits, label_column="tags", output_dir=tmp_path, baseline=True,
        tokenizer=AutoTokenizer.from_pretrained(shipped.output_dir), **QUICK | {"max_steps": 1},
    )  # fmt: skip
    # The teacher was a student, and has its own.
    assert result.report.run.thresholds.keys() == {"teacher"} and "thresholds" not in result.student.config.to_dict()
    assert "decide by different rules, the teacher by chosen thresholds" in result.report.verdict()
    for config in (tmp_path / "config.json", *tmp_path.glob("baseline/*/config.json")):
        assert "thresholds" not in json.loads(config.read_text())


def test_scores_from_teacher_to_report(scorer, tmp_path):
    assert scorer.model.config.problem_type == REGRESSION and scorer.metrics["eval_pearson"] > 0.8
    result = distill(
        scorer.output_dir, "layers:1", three(scored), label_column="score", output_dir=tmp_path, baseline=True,
        **QUICK | {"num_train_epochs": 8},
    )  # fmt: skip
    assert [entry["name"] for entry in result.report.run.objectives] == [
        "cross_entropy", "logit_mse", "hidden_state_mse", "attention_mse",
    ]  # fmt: skip
    quality = result.report.candidates["student"].quality
    assert quality["pearson"].value > 0.8 and quality["pearson"].low <= quality["pearson"].value
    agreement = result.report.candidates["student"].agreement
    assert agreement is not None and agreement.value > 0.8
    assert "Pearson correlation" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, -100, 1], [False, True, False]),
        ([0.5, -100.0, float("nan")], [False, True, True]),
        ([[0.0, 1.0], [-100.0, -100.0], [1.0, -100.0], [float("nan"), 0.0]], [False, True, True, True]),
        ([], []),
    ],
)
def test_a_row_is_unlabelled_by_its_marks_in_any_place_as_array_and_as_tensor(labels, expected):
    assert is_unlabelled(np.array(labels)).tolist() == is_unlabelled(torch.tensor(labels)).tolist() == expected


def test_integers_are_scores_where_the_teacher_gives_scores(scorer, tmp_path):
    stars = three(scored).map(lambda row: {"score": round(row["score"])})
    result = distill(
        scorer.output_dir, "layers:1", stars, label_column="score", objectives="hinton", output_dir=tmp_path,
        **QUICK | {"num_train_epochs": 1},
    )  # fmt: skip
    assert result.report.task.problem_type == REGRESSION


def test_unlabelled_texts_train_on_the_teacher_alone_in_every_task(tagger, scorer, tmp_path):
    for teacher, make, column in ((tagger, tagged, "tags"), (scorer, scored, "score")):
        splits = three(make)
        labelled = splits["train"].select(range(80))
        more = unlabelled(Dataset.from_dict({"text": texts(120, 9)}), labelled, label_column=column)
        splits["train"] = concatenate_datasets([labelled, more])
        result = distill(
            teacher.output_dir, "layers:1", splits, label_column=column, objectives="hinton", baseline=True,
            output_dir=tmp_path / column, **QUICK | {"num_train_epochs": 1},
        )  # fmt: skip
        assert result.report.run.data.train_rows > 80 and {"no_teacher", "same_start"} < set(result.report.candidates)


def test_a_teacher_of_noise_is_refused_in_every_task(tagger, scorer, settings, make_rows, tokenizer):
    for teacher, make, column in ((tagger, tagged, "tags"), (scorer, scored, "score")):
        noise = tiny_bert(2, 32, num_labels=teacher.model.config.num_labels, seed=3)
        noise.config.update(
            {"problem_type": teacher.model.config.problem_type, "id2label": teacher.model.config.id2label}
        )
        rows = load_text_classification(make(200), tokenizer=tokenizer, label_column=column)["train"]
        student = make_student(noise, 1)
        noise.classifier.weight.data.zero_()
        with pytest.raises(ValueError, match=r"correlate with 200 gold labels by .* no more than chance"):
            DistillationTrainer(
                student, noise, settings(teacher_check="error"), [LogitMSELoss()], rows, processing_class=tokenizer
            )


def test_generic_label_names_of_a_tagger_are_put_in_the_order_that_fits(tagger, settings, tokenizer, caplog):
    turned = tiny_bert(2, 32, num_labels=3, problem_type=MULTI_LABEL)
    turned.load_state_dict(tagger.model.state_dict())
    turned.classifier.weight.data = tagger.model.classifier.weight.data[[2, 0, 1]].clone()
    turned.classifier.bias.data = tagger.model.classifier.bias.data[[2, 0, 1]].clone()
    rows = load_text_classification(tagged(200), tokenizer=tokenizer, label_column="tags")["train"]
    student = make_student(tagger.model, 1)
    trainer = DistillationTrainer(
        student, turned, settings(teacher_check="error"), [ForwardKLLoss()], rows, processing_class=tokenizer
    )
    assert trainer.teacher_order == [1, 2, 0] and "label names say nothing" in caplog.text


def test_probabilities_of_a_tagger_are_refused(settings, tokenizer):
    rows = load_text_classification(tagged(40), tokenizer=tokenizer, label_column="tags")["train"]
    rows = rows.add_column("teacher_logits", [[0.9, 0.1, 0.8]] * 40)
    with pytest.raises(ValueError, match="all of them lie in"):
        DistillationTrainer(
            tiny_bert(num_labels=3, problem_type=MULTI_LABEL), None, settings(), [ForwardKLLoss()], rows,
            processing_class=tokenizer,
        )  # fmt: skip


@pytest.mark.parametrize(("task", "labels"), [(MULTI_LABEL, [0, 1]), (REGRESSION, [[0.5], [0.1]])])
def test_targets_of_another_task_are_refused_by_the_trainer(task, labels, settings, tokenizer):
    rows = Dataset.from_dict({"input_ids": [[2, 3], [2, 3]], "attention_mask": [[1, 1]] * 2, "labels": labels})
    student = tiny_bert(num_labels=1 if task == REGRESSION else 3, problem_type=task)
    with pytest.raises(ValueError, match=f"the task is {task}"):
        DistillationTrainer(student, None, settings(), [CrossEntropyLoss()], rows, processing_class=tokenizer)


def test_balanced_class_weights_follow_the_teachers_order_of_labels(tokenizer, tmp_path):
    teacher = tiny_bert(layers=2, id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    rows, held_out = ({"text": ["good film"] * k, "label": (["neg"] + ["pos"] * 3) * (k // 4)} for k in (16, 8))
    result = distill(
        teacher, "layers:1", Dataset.from_dict(rows), Dataset.from_dict(held_out), class_weights="balanced",
        tokenizer=tokenizer, teacher_tokenizer=tokenizer, output_dir=tmp_path,
        **QUICK | {"objectives": "hinton", "max_steps": 1, "teacher_check": "off"},
    )  # fmt: skip
    assert result.student.config.id2label == {0: "pos", 1: "neg"}
    assert result.report.run.objectives[0]["class_weights"] == pytest.approx([16 / (2 * 12), 16 / (2 * 4)])


def test_balanced_class_weights_reach_student_and_baseline(backbone, tmp_path):
    def rare(rows, seed=0):
        found, labels = sentences(rows, seed)
        kept = [k for k, label in enumerate(labels) if label == 0 or k % 8 == 0]
        return Dataset.from_dict({"text": [found[k] for k in kept], "label": [labels[k] for k in kept]})

    splits = three(rare)
    teacher = train_teacher(
        backbone, splits, output_dir=tmp_path / "teacher", class_weights="balanced", **QUICK | {"num_train_epochs": 10}
    )
    result = distill(
        teacher.output_dir, "layers:1", splits, class_weights="balanced", objectives="hinton",
        output_dir=tmp_path / "student", **QUICK,
    )  # fmt: skip
    counts = [splits["train"]["label"][:].count(label) for label in (0, 1)]
    expected = [sum(counts) / (2 * count) for count in counts]
    assert result.report.run.objectives[0]["class_weights"] == pytest.approx(expected, rel=1e-5)
    assert result.report.task.headline == "f1_macro" and "macro F1" in result.report.verdict()
    with pytest.raises(ValueError, match="class_weights='balance'"):
        distill(teacher.output_dir, "layers:1", splits, class_weights="balance", output_dir=tmp_path / "x", **QUICK)


def test_a_preset_matches_scores_where_it_would_match_soft_targets():
    names = [objective.name for objective in resolve("distilbert", REGRESSION)[0].objectives]
    assert names == ["logit_mse", "cross_entropy", "hidden_state_cosine"]
    assert resolve("distilbert", REGRESSION)[0].objectives[0].weight == 5.0


def test_the_command_line_takes_a_column_for_each_label(backbone, tmp_path):
    from typer.testing import CliRunner

    rows = tagged(80)
    rows = rows.map(lambda row: {tag: int(tag in row["tags"]) for tag in TAGS}).remove_columns("tags")
    rows.to_csv(tmp_path / "rows.csv")
    asked = ["train-teacher", "--model", str(backbone), "--train", str(tmp_path / "rows.csv")]
    asked += [word for tag in TAGS for word in ("--label-column", tag)]
    asked += [
        "--validation-split",
        "0.25",
        "--max-length",
        "64",
        "--num-train-epochs",
        "1",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    outcome = CliRunner().invoke(app, [*asked, "--set", "report_to=none", "--set", "use_cpu=true"])
    assert outcome.exit_code == 0, outcome.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == MULTI_LABEL and list(config["id2label"].values()) == list(TAGS)
