"""The order of the classes of one holder alone, changed with its names, changes no result by name."""

import copy
import math

import pytest
import torch
from datasets import ClassLabel, Dataset, Value
from samples import raw_rows, tiny_bert, tiny_report
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd import (
    DistillationConfig,
    DistillationTrainer,
    cache_teacher_outputs,
    evaluate_student,
    load_text_classification,
    make_student,
)
from nlpkd.data.labels.classes import Classes, rename_classes, thresholds_of
from nlpkd.data.text_classification import load_rows_for_model
from nlpkd.evaluation.origin import RunRecord, TaskRecord
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.models.structure import permute_head
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.students.small import small_student


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
    def make(model, rows=None, objectives=None, teacher_check="off", **arguments):
        return DistillationTrainer(
            model=model, args=settings(teacher_check=teacher_check), train_dataset=rows,
            objectives=objectives or [CrossEntropyLoss()], processing_class=tokenizer, **arguments,
        )  # fmt: skip

    return make


def permuted(model, names):
    """The same model with the rows of its head, and their names, in another order."""
    old = model.config.label2id
    order = [old[name] for name in names]
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: k for k, name in enumerate(names)}
    return model


def without_times(metrics: dict) -> dict:
    return {
        name: value
        for name, value in metrics.items()
        if not name.endswith(("runtime", "per_second", "time", "samples"))
    }


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Rows to train on


@pytest.mark.parametrize("weights", [[1.0, 5.0], {"pos": 5.0, "neg": 1.0}, "balanced"])
def test_class_weights_land_on_their_own_classes(make_rows, make_trainer, weights, tokenizer):
    data = load_text_classification(raw_rows(48).select(range(30)), tokenizer=tokenizer)
    given = data.class_weights if weights == "balanced" else weights
    student = tiny_bert(**named("pos", "neg"))
    loss = CrossEntropyLoss(class_weights=given)
    trainer = make_trainer(student, data["train"], [loss])
    expected = {"neg": 1.0, "pos": 5.0}
    if isinstance(weights, list):  # a plain list is in the student's own order
        expected = {"pos": 1.0, "neg": 5.0}
    elif weights == "balanced":
        gold = raw_rows(48).select(range(30))["label"][:]
        expected = {"neg": 30 / (2 * gold.count(0)), "pos": 30 / (2 * gold.count(1))}
    found = dict(zip(student.config.id2label.values(), trainer.objectives[0].class_weights.tolist(), strict=True))
    assert found == pytest.approx(expected)


def test_objectives_that_are_used_again_follow_the_next_student(rows, make_trainer):
    loss = CrossEntropyLoss(class_weights={"pos": 5.0, "neg": 1.0})
    assert make_trainer(tiny_bert(**named("pos", "neg")), rows, [loss]).objectives[0].class_weights.tolist() == [5, 1]
    assert make_trainer(tiny_bert(**named("neg", "pos")), rows, [loss]).objectives[0].class_weights.tolist() == [1, 5]


def test_class_weights_of_other_names_are_refused(rows, make_trainer):
    with pytest.raises(ValueError, match=r"class_weights are of \['good', 'neg'\].*\['neg', 'pos'\]"):
        make_trainer(tiny_bert(**named("neg", "pos")), rows, [CrossEntropyLoss(class_weights={"good": 1, "neg": 2})])


def test_soft_labels_move_with_gold_labels(tokenizer, make_trainer):
    raw = raw_rows(24)
    soft = [{"neg": 0.9 - 0.03 * k, "pos": 0.1 + 0.03 * k} for k in range(24)]
    runs = []
    for names in (("neg", "pos"), ("pos", "neg")):
        ids = [names.index(raw.features["label"].names[label]) for label in raw["label"]]
        given = raw.remove_columns("label").add_column("label", ids, feature=ClassLabel(names=list(names)))
        given = given.add_column("votes", [[row[name] for name in names] for row in soft])
        data = load_text_classification(given, tokenizer=tokenizer, soft_label_column="votes")
        trainer = make_trainer(tiny_bert(**named("neg", "pos")), data["train"], [CrossEntropyLoss(), ForwardKLLoss()])
        runs.append((losses(trainer), trainer.train_dataset["teacher_logits"][:]))
    assert runs[0] == runs[1]
    assert runs[0][1][0][0] == pytest.approx(math.log(0.9))


def test_a_teachers_outputs_on_disk_move_with_gold_labels(rows, make_trainer, tokenizer, tmp_path):
    student = tiny_bert(seed=1, **named("neg", "pos"))
    runs = []
    for names in (("neg", "pos"), ("pos", "neg")):
        teacher = permuted(tiny_bert(seed=2, **named("neg", "pos")), names)
        kept = cache_teacher_outputs(teacher, rows, tokenizer, cache_dir=tmp_path / names[0], bf16=False)
        runs.append(losses(make_trainer(copy.deepcopy(student), kept, [ForwardKLLoss()])))
    assert runs[0] == runs[1] and runs[0][0] > 0


def test_columns_of_several_labels_carry_their_names(tokenizer, make_trainer):
    texts, order = raw_rows(24)["text"], ["toxic", "rude", "hate"]
    tags = [[name for k, name in enumerate(order) if (row >> k) & 1] for row in range(24)]
    data = [
        load_text_classification(
            Dataset.from_dict({"text": texts, "labels": tags}), tokenizer=tokenizer, label_names=names
        )["train"]
        for names in (order, sorted(order))
    ]
    assert data[0]["labels"][:] != data[1]["labels"][:]
    student = tiny_bert(problem_type="multi_label_classification", **named(*order))
    trainers = [make_trainer(copy.deepcopy(student), rows) for rows in data]
    assert [losses(trainer) for trainer in trainers][0] == losses(make_trainer(copy.deepcopy(student), data[1]))
    assert trainers[0].evaluate(data[0])["eval_f1_macro"] == trainers[0].evaluate(data[1])["eval_f1_macro"]
    nameless = tiny_bert(problem_type="multi_label_classification", num_labels=3)
    assert make_trainer(nameless, data[1]).model.config.id2label == dict(enumerate(sorted(order)))


# Heads


def test_a_fine_tuned_student_keeps_its_answers_under_the_datas_order(tmp_path):
    names = ("neutral", "entailment", "contradiction")
    tiny_bert(seed=3, **named(*names)).save_pretrained(tmp_path)
    ids = torch.tensor([[2, 5, 9, 3], [2, 8, 7, 3]])
    own = make_student(checkpoint=tmp_path).eval()
    other = make_student(checkpoint=tmp_path, id2label=dict(enumerate(sorted(names)))).eval()
    with torch.no_grad():
        given, turned = own(ids).logits, other(ids).logits
    assert torch.equal(given[:, [names.index(name) for name in sorted(names)]], turned)


class SaysTheOtherClass(BertForSequenceClassification):
    """A teacher without names that is always right, and has the two classes the other way round."""

    def forward(self, input_ids, attention_mask=None, **rest):
        good = ((input_ids >= 5) & (input_ids < 8)).any(dim=1).float() * 2 - 1
        return SequenceClassifierOutput(logits=torch.stack([3 * good, -3 * good], dim=1))


@pytest.mark.parametrize("several", [False, True])
def test_a_copied_head_follows_the_order_that_gold_labels_settle(rows, make_trainer, several):
    teacher = SaysTheOtherClass(tiny_bert().config)
    student = tiny_bert(num_labels=2)
    student.load_state_dict(teacher.state_dict())
    before = student.classifier.weight.detach().clone()
    others = [teacher, SaysTheOtherClass(tiny_bert().config)] if several else teacher
    make_trainer(student, rows, [ForwardKLLoss()], teacher_model=others, teacher_check="error")
    assert torch.equal(student.classifier.weight, before[[1, 0]])
    # Once is enough: a further trainer finds another head than the teacher's.
    make_trainer(student, rows, [ForwardKLLoss()], teacher_model=others, teacher_check="error")
    assert torch.equal(student.classifier.weight, before[[1, 0]])


def test_a_head_of_its_own_stays_as_it_is(rows, make_trainer):
    student = tiny_bert(seed=5)
    before = student.classifier.weight.detach().clone()
    make_trainer(
        student, rows, [ForwardKLLoss()], teacher_model=SaysTheOtherClass(tiny_bert().config), teacher_check="error"
    )
    assert torch.equal(student.classifier.weight, before)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "gpt2"])
def test_the_head_of_any_family_is_found(family):
    sizes = {
        "num_labels": 3, "vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
        "sep_token_id": 2, "hidden_size": 16, "dim": 16, "n_embd": 16, "embedding_size": 16, "intermediate_size": 32,
        "hidden_dim": 32, **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer"), 1),
        **dict.fromkeys(("num_attention_heads", "n_heads", "n_head"), 2),
    }  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **sizes)).eval()
    ids = torch.tensor([[5, 6, 7], [8, 9, 4]])
    with torch.no_grad():
        before = model(ids).logits
        permute_head(model, [2, 0, 1])
        assert torch.equal(model(ids).logits, before[:, [2, 0, 1]])


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
    student, half = tiny_bert(**named("neg", "pos")), len(rows) // 2
    reports = [
        evaluate_student(
            student, None, each.select(range(half)), tokenizer, threshold_dataset=each.select(range(half, len(rows))),
            bootstrap_samples=10, latency_runs=0,
        ).candidates["student"]
        for each in (rows, turned(rows))
    ]  # fmt: skip
    assert reports[0].quality == reports[1].quality and reports[0].breakdown == reports[1].breakdown
    assert reports[0].temperature_scaling == reports[1].temperature_scaling


def test_rows_may_lack_classes_of_the_student(tokenizer, make_trainer, rows):
    trainer = make_trainer(tiny_bert(**named("mixed", "pos", "neg")), rows)
    assert trainer.train_dataset["labels"][:] == [{0: 2, 1: 1}[label] for label in rows["labels"]]
    assert trainer.train_dataset.features["labels"].names == ["mixed", "pos", "neg"]
    assert trainer.predict(turned(rows)).label_ids.tolist() == trainer.train_dataset["labels"][:]


@pytest.mark.parametrize("labels", [("neg", "pos"), ("Pos", "neg"), (0, 2), ("neg", "neg")])
def test_a_file_to_measure_on_may_lack_classes(tokenizer, labels):
    config = tiny_bert(**named("pos", "mixed", "neg")).config
    data = [{"text": text, "label": labels[row % 2]} for row, text in enumerate(raw_rows(8)["text"])]
    rows, _, loaded = load_rows_for_model(data, config, tokenizer=tokenizer)
    ids = {"neg": 2, "pos": 0, "Pos": 0, 0: 0, 2: 2}
    assert rows["labels"][:] == [ids[row["label"]] for row in data]
    assert loaded.num_labels == 3


def test_training_rows_may_lack_classes_of_a_named_teacher(tokenizer):
    data = [{"text": text, "label": ("warm", "cold")[row % 2]} for row, text in enumerate(raw_rows(8)["text"])]
    loaded = load_text_classification(data, tokenizer=tokenizer, label_names=["warm", "mild", "cold"])
    assert list(loaded.id2label.values()) == ["warm", "mild", "cold"] and loaded["train"]["labels"][:2] == [0, 2]
    with pytest.raises(ValueError, match="nothing to classify"):
        load_text_classification(data[::2], tokenizer=tokenizer, label_names=["warm", "mild", "cold"])
    # Names that are not the teacher's are the data's own.
    other = load_text_classification(data, tokenizer=tokenizer, label_names=["hot", "mild", "cold"])
    assert list(other.id2label.values()) == ["cold", "warm"]


def test_rows_with_a_class_that_the_student_lacks_are_refused(make_trainer, make_rows, rows):
    trainer = make_trainer(tiny_bert(**named("neg", "pos")), rows)
    with pytest.raises(ValueError, match="labels of the evaluation set and of the student.*contradict"):
        trainer.evaluate(make_rows(8, names=("bad", "pos")))


# Names that are numbers, tasks, and heads whose labels have no names


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("0", "1"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("2", "0", "1"), ("0", "1", "2"), [2, 0, 1]),
        (("3", "1", "2"), ("1", "2", "3"), [2, 0, 1]),
        (("LABEL_0", "LABEL_1"), ("0", "1"), None),
        (("LABEL_0", "LABEL_1"), ("1", "2"), None),
        (("neg", "pos"), ("1", "0"), None),
    ],
)
def test_names_that_are_numbers_are_followed_where_both_sides_have_the_same(own, other, expected):
    assert Classes.of(own).positions_in(Classes.of(other)) == expected


def test_rows_whose_names_are_the_student_s_numbers_in_another_order_are_renumbered(make_rows, make_trainer):
    trainer = make_trainer(tiny_bert(), make_rows(24, names=("1", "0")))
    assert trainer.model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert trainer.train_dataset["labels"][:] == [1 - label for label in make_rows(24)["labels"]]


@pytest.mark.parametrize("student_task", ["single_label_classification", None])
@pytest.mark.parametrize("task", ["multi_label_classification", "regression", "another"])
def test_classes_of_another_task_are_refused(task, student_task, rows, make_trainer):
    teacher = tiny_bert(problem_type=task, **named("neg", "pos"))
    student = tiny_bert(seed=1, problem_type=student_task, **named("neg", "pos"))
    with pytest.raises(ValueError, match=f"of the teacher and of the student: different tasks: {task} .* single_l"):
        make_trainer(student, rows, [ForwardKLLoss()], teacher_model=teacher)


@pytest.fixture(scope="module")
def taught(make_rows, tokenizer, tmp_path_factory) -> BertForSequenceClassification:
    """A student that gets such rows right, of whose labels nobody says the names."""
    args = DistillationConfig(
        output_dir=str(tmp_path_factory.mktemp("taught")), bf16=False, report_to="none", save_strategy="no",
        disable_tqdm=True, rehearsal=False, max_steps=150, learning_rate=4e-3, per_device_train_batch_size=8,
    )  # fmt: skip
    rows = make_rows(160, seed=1).cast_column("labels", Value("int64"))
    trainer = DistillationTrainer(
        tiny_bert(layers=1, seed=3), args=args, objectives=[CrossEntropyLoss()], train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return trainer.model


def test_a_trained_head_without_names_is_put_in_the_order_of_rows_that_have_names(
    taught, make_rows, make_trainer, settings, tokenizer, tmp_path, caplog
):
    taught.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    for names in (("neg", "pos"), ("pos", "neg")):
        trainer = make_trainer(
            copy.deepcopy(taught), turned(make_rows(80, seed=2), (0, 1) if names[0] == "neg" else (1, 0))
        )
        assert trainer.model.config.id2label == dict(enumerate(names))
        assert trainer.evaluate(make_rows(80, seed=2))["eval_accuracy"] > 0.9
    # By its path too, and one that was just drawn has no order yet.
    caplog.clear()
    drawn = tiny_bert(seed=5)
    before = drawn.classifier.weight.detach().clone()
    trainer = make_trainer(drawn, make_rows(80, seed=2))
    assert torch.equal(trainer.model.classifier.weight, before) and "label names say nothing" not in caplog.text
    job = prepare_job(
        settings(), tiny_bert(layers=1, **named("pos", "neg")), str(tmp_path / "student"),
        [{"text": row["text"], "label": ("neg", "pos")[row["label"]]} for row in raw_rows(80, 2)],
        raw_rows(20, 3), teacher_tokenizer=tokenizer, objectives="hinton",
    )  # fmt: skip
    trainer = job.trainer(job.make_untrained_student(42), settings(), job.stages[0])
    assert trainer.model.config.id2label == {0: "pos", 1: "neg"}
    assert trainer.evaluate()["eval_accuracy"] > 0.9


def test_a_model_whose_names_say_another_order_than_gold_labels_is_told(taught, make_rows, tokenizer, caplog):
    model = copy.deepcopy(taught)
    model.config.id2label = {0: "pos", 1: "neg"}
    quick = {"bootstrap_samples": 2, "latency_runs": 0}
    report = evaluate_student(model, None, make_rows(60, seed=2), tokenizer, **quick)
    assert report.candidates["student"].quality["accuracy"].value < 0.1
    assert "The student has classes in each other's places on 60 gold labels ('pos', 'neg')" in caplog.text
    caplog.clear()
    evaluate_student(tiny_bert(seed=8), None, make_rows(20, seed=2), tokenizer, **quick)
    assert "each other's places" not in caplog.text


def test_an_order_that_a_training_settled_follows_the_student_s_names(tmp_path, tokenizer, make_rows):
    teacher = tiny_bert(seed=2, initializer_range=0.5)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    found = []
    for number, names in enumerate((("neg", "pos"), ("pos", "neg"))):
        folder = tmp_path / f"student-{number}"
        permuted(tiny_bert(seed=1, initializer_range=0.5, **named("neg", "pos")), names).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task, measured = TaskRecord(labels=["neg", "pos"], rows=20), tiny_report().candidates["student"]
        about = {"teacher": {"name": str(tmp_path / "teacher"), "label_order": [1, 0]}}
        EvaluationReport(task, RunRecord.from_dict(about), {"student": measured}, {}).save(folder)
        report = evaluate(
            folder, raw_rows(40), teacher=tmp_path / "teacher", latency_runs=0, bootstrap_samples=2
        )  # fmt: skip
        found.append((report.candidates["teacher"].quality["accuracy"], report.candidates["student"].agreement))
    assert found[0] == found[1]


def test_a_head_that_is_drawn_gives_a_class_the_same_weights_in_every_order(tmp_path):
    tiny_bert(seed=3).bert.save_pretrained(tmp_path)
    orders = [("neg", "pos", "mixed"), ("mixed", "neg", "pos")]
    heads = [make_student(checkpoint=tmp_path, id2label=dict(enumerate(order))).classifier.weight for order in orders]
    assert torch.equal(heads[0], heads[1][[orders[1].index(name) for name in orders[0]]])
    small = [
        small_student("textcnn", id2label=dict(enumerate(order)), vocab_size=30, pad_token_id=0) for order in orders
    ]
    heads = [each.classifier.weight for each in small]
    assert torch.equal(heads[0], heads[1][[orders[1].index(name) for name in orders[0]]])


def test_thresholds_are_read_by_name_and_by_place():
    config = tiny_bert(
        problem_type="multi_label_classification", thresholds={"b": 0.2, "a": 0.1}, **named("a", "b")
    ).config
    assert thresholds_of(config) == [0.1, 0.2]
    config.thresholds = [0.3, 0.4]
    assert thresholds_of(config) == [0.3, 0.4] and thresholds_of(tiny_bert().config) is None
    rename_classes(config, Classes.of(("x", "y")))
    assert config.thresholds == {"x": 0.3, "y": 0.4}
    config.thresholds = {"x": 0.3, "z": 0.4}
    with pytest.raises(ValueError, match=r"thresholds are .*'z'.*the labels are \['x', 'y'\]: give one a label"):
        thresholds_of(config)
    for wrong in (0.5, "xy", ["0.1", "0.2"], [-1, 2], [None, 0.5], [float("nan"), 0.5]):
        config.thresholds = wrong
        with pytest.raises(ValueError, match="thresholds are .*give one a label, from 0 to 1"):
            thresholds_of(config)


def test_class_weights_by_name_of_a_student_without_names_are_refused(rows, make_trainer):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = tiny_bert()

        def forward(self, input_ids, attention_mask):
            return self.inside(input_ids=input_ids, attention_mask=attention_mask).logits

    with pytest.raises(ValueError, match="the student's config names no classes: give a list"):
        make_trainer(Plain(), rows, [CrossEntropyLoss(class_weights={"neg": 1.0, "pos": 2.0})])


def test_a_list_of_class_weights_of_a_job_is_in_the_order_of_the_rows(settings, tokenizer):
    rows = {"train": raw_rows(24), "validation": raw_rows(12, 1)}
    teacher = tiny_bert(**named("pos", "neg"))
    job = prepare_job(settings(), teacher, "layers:1", **rows, teacher_tokenizer=tokenizer, class_weights=[1.0, 5.0])
    trainer = job.trainer(job.make_untrained_student(1), settings(), job.stages[0])
    weights = next(each.class_weights for each in trainer.objectives if each.name == "cross_entropy")
    assert dict(zip(trainer.model.config.id2label.values(), weights.tolist(), strict=True)) == {"neg": 1, "pos": 5}
    with pytest.raises(ValueError, match="got 3 class weights for 2 labels"):
        prepare_job(settings(), teacher, "layers:1", **rows, teacher_tokenizer=tokenizer, class_weights=[1, 2, 3])
