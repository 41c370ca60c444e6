"""The order of the classes of one holder alone, changed with its names, changes no result by name."""

import pytest
from datasets import ClassLabel, Dataset
from samples import tiny_bert

from nlpkd import DistillationTrainer, evaluate_student
from nlpkd.objectives import CrossEntropyLoss


def named(*names: str) -> dict:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {n: k for k, n in enumerate(names)},
    }


def turned(rows: Dataset, order=(1, 0)) -> Dataset:
    """The same rows with their class ids in another order, and the names along."""
    names = rows.features["labels"].names
    ids = [order.index(label) for label in rows["labels"]]
    return rows.remove_columns("labels").add_column("labels", ids, feature=ClassLabel(names=[names[k] for k in order]))


@pytest.fixture(scope="module")
def rows(make_rows):
    return make_rows(48, names=("neg", "pos"))


@pytest.fixture
def make_trainer(settings, tokenizer):
    def make(model, rows=None, objectives=None, **arguments):
        return DistillationTrainer(
            model=model, args=settings(), objectives=objectives or [CrossEntropyLoss()], train_dataset=rows,
            processing_class=tokenizer, **arguments,
        )  # fmt: skip

    return make


def without_times(metrics: dict) -> dict:
    return {
        name: value
        for name, value in metrics.items()
        if not name.endswith(("runtime", "per_second", "time", "samples"))
    }


# Rows to measure on


def test_an_evaluation_set_is_scored_by_name_whichever_way_it_comes_in(rows, make_trainer):
    trainer = make_trainer(tiny_bert(**named("neg", "pos")), rows, eval_dataset=rows)
    expected = without_times(trainer.evaluate())
    assert without_times(trainer.evaluate(turned(rows))) == expected
    trainer.eval_dataset = turned(rows)
    assert without_times(trainer.evaluate()) == expected
    trainer.eval_dataset = {"one": turned(rows)}
    assert without_times(trainer.evaluate())["eval_one_accuracy"] == expected["eval_accuracy"]
    assert without_times(trainer.evaluate({"two": turned(rows)}))["eval_two_loss"] == expected["eval_loss"]


def test_predictions_are_scored_by_name(rows, make_trainer):
    trainer = make_trainer(tiny_bert(**named("neg", "pos")), rows)
    given, other = trainer.predict(rows), trainer.predict(turned(rows))
    assert without_times(given.metrics) == without_times(other.metrics)
    assert given.label_ids.tolist() == other.label_ids.tolist() == rows["labels"][:]


def test_a_report_is_the_same_for_rows_in_another_order(rows, tokenizer):
    student = tiny_bert(**named("neg", "pos"))
    reports = [
        evaluate_student(
            student, None, each, tokenizer, threshold_dataset=each, bootstrap_samples=10, latency_runs=0
        ).candidates["student"]
        for each in (rows, turned(rows))
    ]
    assert reports[0].quality == reports[1].quality and reports[0].breakdown == reports[1].breakdown
    assert reports[0].temperature_scaling == reports[1].temperature_scaling


def test_rows_may_lack_classes_of_the_student(tokenizer, make_trainer, rows):
    trainer = make_trainer(tiny_bert(**named("mixed", "pos", "neg")), rows)
    assert trainer.train_dataset["labels"][:] == [{0: 2, 1: 1}[label] for label in rows["labels"]]
    assert trainer.train_dataset.features["labels"].names == ["mixed", "pos", "neg"]
    assert trainer.predict(turned(rows)).label_ids.tolist() == trainer.train_dataset["labels"][:]


def test_rows_with_a_class_that_the_student_lacks_are_refused(make_trainer, make_rows, rows):
    trainer = make_trainer(tiny_bert(**named("neg", "pos")), rows)
    with pytest.raises(ValueError, match="labels of the evaluation set and of the student.*contradict"):
        trainer.evaluate(make_rows(8, names=("bad", "pos")))
