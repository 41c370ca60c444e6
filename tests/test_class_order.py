"""The order of the classes of one holder alone, changed with its names, changes no result by name."""

import copy
import math

import pytest
import torch
from datasets import ClassLabel, Dataset
from samples import raw_rows, tiny_bert
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd import (
    DistillationTrainer,
    cache_teacher_outputs,
    evaluate_student,
    load_text_classification,
    make_student,
)
from nlpkd.data.text_classification import load_rows_for_model
from nlpkd.models.structure import permute_head
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss


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


@pytest.mark.parametrize("labels", [("neg", "pos"), ("Pos", "neg"), (0, 2), (2, 2)])
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
