"""Temperatures and thresholds are fitted on labelled rows that are not measured, or the report says that none were."""

import pytest
from datasets import concatenate_datasets
from samples import Uncalled, tiny_bert

from nlpkd.data.splits.fitted import apart_from
from nlpkd.evaluation.evaluate import evaluate_student

QUICK = {"bootstrap_samples": 10, "latency_runs": 0}
TASKS = ["single_label_classification", "multi_label_classification", "regression"]


def model(task: str):
    student = tiny_bert(1, num_labels=1 if task == "regression" else 3, initializer_range=0.5)
    student.config.problem_type = task
    return student


def labelled(rows, task: str, mark: int = 0):
    """Label rows for a task, the last `mark` of them as nobody's."""
    kinds = {
        TASKS[0]: lambda row: row % 3,
        TASKS[1]: lambda row: [float(row % 2), 1.0, 0.0],
        TASKS[2]: lambda row: row / 9,
    }
    unknown = [-100.0] * 3 if task == TASKS[1] else float("nan") if task == TASKS[2] else -100
    labels = [kinds[task](row) if row < len(rows) - mark else unknown for row in range(len(rows))]
    return rows.remove_columns("labels").add_column("labels", labels)


def fitted(report):
    student = report.candidates["student"]
    return student.temperature_scaling, report.run.thresholds, report.run.held_out_protocol


@pytest.mark.parametrize("task", TASKS[:2])
def test_what_is_fitted_depends_on_no_measured_row(task, make_rows, tokenizer, caplog):
    measured = labelled(make_rows(20), task)
    others = apart_from(labelled(make_rows(20, 1), task), measured)
    student, count = model(task), len(others)
    alone = evaluate_student(student, None, measured, tokenizer, threshold_dataset=others, **QUICK)
    assert "nothing is fitted" not in caplog.text
    assert f"{count} held-out rows, none of which is measured" in alone.to_markdown()
    mixed = concatenate_datasets([measured.select(range(7)), others])
    beside = evaluate_student(student, None, measured, tokenizer, threshold_dataset=mixed, **QUICK)
    assert fitted(beside)[:2] == fitted(alone)[:2] != (None, {})
    assert f"7 of {count + 7} held-out rows are measured ones" in caplog.text
    assert "7 more are measured ones, and were left out" in beside.to_markdown()


@pytest.mark.parametrize(
    ("task", "wrong"), [*((task, "measured") for task in TASKS), *((task, "held out") for task in TASKS[:2])]
)
def test_labels_that_nothing_can_be_measured_or_fitted_by_are_refused_before_a_model_is_run(
    task, wrong, make_rows, tokenizer
):
    student = Uncalled(model(task).config)
    marks = [int(wrong == each) for each in ("measured", "held out")]
    measured, held_out = labelled(make_rows(9), task, marks[0]), labelled(make_rows(9, 1), task, marks[1])
    with pytest.raises(ValueError, match="held-out rows: labels must" if wrong == "held out" else "^labels must"):
        evaluate_student(student, student, measured, tokenizer, threshold_dataset=held_out, **QUICK)


@pytest.mark.parametrize("task", TASKS[:2])
def test_held_out_rows_that_are_all_measured_ones_are_refused_before_a_model_is_run(task, make_rows, tokenizer):
    rows = labelled(make_rows(9), task)
    student = Uncalled(model(task).config)
    with pytest.raises(ValueError, match="all 4 held-out rows are measured ones"):
        evaluate_student(student, None, rows, tokenizer, threshold_dataset=rows.select(range(4)), **QUICK)


@pytest.mark.parametrize(
    ("task", "mark", "told"),
    [("regression", 0, "a regression has"), (TASKS[0], 9, "no measured row has a gold label")],
)
def test_held_out_rows_that_nothing_is_fitted_on_are_told_of(task, mark, told, make_rows, tokenizer, caplog):
    student, held_out = model(task), labelled(make_rows(9, 1), task)
    rows = labelled(make_rows(9), task, mark)
    report = evaluate_student(student, model(task), rows, tokenizer, threshold_dataset=held_out, **QUICK)
    assert f"Nothing is fitted on the held-out rows: {told}" in caplog.text
    assert fitted(report) == (None, {}, None)


def test_a_report_says_whose_thresholds_the_figures_are_of(make_rows, tokenizer):
    rows, others = labelled(make_rows(20), TASKS[1]), labelled(make_rows(20, 1), TASKS[1])
    student = model(TASKS[1])
    found = evaluate_student(student, None, rows, tokenizer, **QUICK)
    assert not found.run.thresholds and found.run.thresholds_kept is None
    student.config.thresholds = [0.25, 0.5, 0.75]
    found = evaluate_student(student, None, rows, tokenizer, **QUICK)
    assert list(found.run.thresholds["student"].values()) == [0.25, 0.5, 0.75] and found.run.thresholds_kept
    found = evaluate_student(student, None, rows, tokenizer, threshold_dataset=others, **QUICK)
    assert found.run.thresholds_kept is False and "its own config has others" in found.to_markdown()
