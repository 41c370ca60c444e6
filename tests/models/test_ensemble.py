"""Several teachers: their average against one worked out by hand; other families, tokenizers and label orders."""

import copy
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from samples import WORDS, tiny_bert
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import (
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from nlpkd import DistillationConfig, DistillationTrainer, evaluate_student, load_text_classification
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.demo import load_airline_tweets
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.models.ensemble import TeacherEnsemble, as_one_teacher
from nlpkd.models.inference import inference_copy
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss
from nlpkd.teachers.teacher import LiveTeacher

CPU = torch.device("cpu")
NEG_POS = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
POS_NEG = {"id2label": {0: "POS", 1: "NEG"}, "label2id": {"POS": 0, "NEG": 1}}


def sharp(seed: int, **config):
    """A teacher whose probabilities are far from even, so that the two averages differ."""
    return tiny_bert(seed=seed, initializer_range=0.5, **config).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 24, (4, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0, 1])}


def own(model, batch) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def outputs(ensemble, batch) -> np.ndarray:
    return LiveTeacher(ensemble, {}, CPU).outputs(batch).logits.numpy()


# The average


def test_probabilities_are_averaged_by_weight(batch):
    first, second = sharp(1, num_labels=3), sharp(2, num_labels=3)
    found = outputs(TeacherEnsemble([first, second], weights=[3, 1]), batch)
    mean = 0.75 * softmax(own(first, batch)) + 0.25 * softmax(own(second, batch))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.log(mean), atol=1e-5)
    assert np.abs(mean - softmax(0.75 * own(first, batch) + 0.25 * own(second, batch))).max() > 0.01


def test_logits_are_averaged_by_weight(batch):
    first, second = sharp(1), sharp(2)
    found = outputs(TeacherEnsemble([first, second], weights=[1, 3], average="logits"), batch)
    np.testing.assert_allclose(found, 0.25 * own(first, batch) + 0.75 * own(second, batch), atol=1e-5)


def test_weights_are_equal_by_default_and_a_teacher_of_weight_0_says_nothing(batch):
    first, second = sharp(1), sharp(2)
    mean = (softmax(own(first, batch)) + softmax(own(second, batch))) / 2
    np.testing.assert_allclose(outputs(TeacherEnsemble([first, second]), batch), np.log(mean), atol=1e-5)
    alone = outputs(TeacherEnsemble([first, second], weights=[0.0, 2.0]), batch)
    np.testing.assert_allclose(alone, np.log(softmax(own(second, batch))), atol=1e-5)


def test_of_several_labels_the_probability_of_each_is_averaged():
    ensemble = TeacherEnsemble([nn.Identity(), nn.Identity()], weights=[3, 1])
    ensemble.task = "multi_label_classification"
    first, second = torch.tensor([[2.0, -1.0, 60.0]]), torch.tensor([[-3.0, 0.5, 60.0]])
    mean = 0.75 * first.double().sigmoid() + 0.25 * second.double().sigmoid()
    found = ensemble.mean([first, second]).double()
    torch.testing.assert_close(found.sigmoid(), mean)
    assert found[0, 2] == pytest.approx(60.0, abs=1e-3)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_values_of_a_regression_are_averaged(average):
    ensemble = TeacherEnsemble([nn.Identity(), nn.Identity()], weights=[3, 1], average=average)
    ensemble.task = "regression"
    assert ensemble.mean([torch.tensor([[2.0]]), torch.tensor([[-2.0]])]).item() == pytest.approx(1.0)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_average_of_half_precision_logits_is_float32(average):
    logits = [torch.tensor([[4.0, -4.0]], dtype=torch.bfloat16), torch.tensor([[3.0, 1.0]], dtype=torch.float16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TeacherEnsemble([nn.Identity()] * 2, average=average).mean(logits)
    expected = TeacherEnsemble([nn.Identity()] * 2, average=average).mean([each.float() for each in logits])
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_each_teacher_has_a_label_order_of_its_own(batch):
    first, second = sharp(1, num_labels=3), sharp(2, num_labels=3)
    ensemble = TeacherEnsemble([first, second])
    ensemble.reorder(1, [2, 0, 1])
    mean = (softmax(own(first, batch)) + softmax(own(second, batch))[:, [2, 0, 1]]) / 2
    np.testing.assert_allclose(outputs(ensemble, batch), np.log(mean), atol=1e-5)
    ensemble.reorder(1, [0, 1, 2])
    assert ensemble.order_1 is None and ensemble.orders == [None, [0, 1, 2]]


def test_thresholds_are_those_of_teachers_that_agree_and_else_their_weighted_mean():
    teachers = [sharp(seed, num_labels=2, problem_type="multi_label_classification") for seed in (1, 2)]
    ensemble = TeacherEnsemble(teachers, weights=[1, 3])
    assert ensemble.thresholds() is None
    teachers[0].config.thresholds = [0.1, 0.9]
    assert ensemble.thresholds() == pytest.approx([0.4, 0.6])
    teachers[1].config.thresholds = [0.3, 0.1]
    assert ensemble.thresholds() == pytest.approx([0.25, 0.3])
    ensemble.reorder(1, [1, 0])
    assert ensemble.thresholds() == pytest.approx([0.1, 0.45])
    teachers[1].config.thresholds = [0.9, 0.1]
    assert ensemble.thresholds() == [0.1, 0.9]
    assert ensemble.thresholds([[1, 0], [0, 1]]) == [0.9, 0.1]


def test_what_runs_in_place_of_the_teachers_follows_their_label_orders(batch):
    first, second = sharp(1, num_labels=3), sharp(2, num_labels=3)
    ensemble = TeacherEnsemble([first, second])
    teacher = LiveTeacher(ensemble, {}, CPU)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        ensemble.reorder(1, order)
        mean = (softmax(own(first, batch)) + softmax(own(second, batch))[:, order]) / 2
        np.testing.assert_allclose(teacher.outputs(batch).logits.numpy(), np.log(mean), atol=1e-5)
    running = inference_copy(ensemble, "cpu", first_token=True)
    assert not {id(module) for module in running.members} & {id(module) for module in ensemble.members}
    weights = dict(ensemble.named_parameters())
    assert all(tensor is weights[name] for name, tensor in running.named_parameters() if name in weights)


def test_each_teacher_reads_columns_of_its_own(batch):
    first, second = sharp(1), sharp(2)
    ensemble = TeacherEnsemble([first, second])
    ensemble.read(["", "teacher_2_"])
    assert {"input_ids", "attention_mask", "teacher_2_input_ids"} <= ensemble.columns
    flipped = {"input_ids": batch["input_ids"].flip(0), "attention_mask": batch["attention_mask"]}
    with pytest.raises(ValueError, match="teacher 2 of 2 reads teacher_2_input_ids, and the batch has .*input_ids"):
        outputs(ensemble, batch)
    found = outputs(ensemble, batch | {f"teacher_2_{name}": value for name, value in flipped.items()})
    mean = (softmax(own(first, batch)) + softmax(own(second, flipped))) / 2
    np.testing.assert_allclose(found, np.log(mean), atol=1e-5)


# Settings


def test_a_list_of_one_is_that_teacher_and_none_is_refused():
    model = sharp(1)
    assert as_one_teacher(model) is model and as_one_teacher([model]) is model and as_one_teacher(None) is None
    ensemble = as_one_teacher([model, sharp(2)])
    assert isinstance(ensemble, TeacherEnsemble) and as_one_teacher(ensemble) is ensemble
    with pytest.raises(ValueError, match="no teacher in the list"):
        as_one_teacher([])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]])
def test_weights_of_another_number_are_refused(weights):
    with pytest.raises(ValueError, match=f"there are {len(weights)} ensemble_weights for 2 teachers"):
        TeacherEnsemble([sharp(1), sharp(2)], weights)


@pytest.mark.parametrize("weights", [[1.0, -0.1], [0.0, 0.0], [1.0, float("nan")], [1.0, float("inf")], []])
def test_weights_that_make_no_mean_are_refused(weights, settings):
    with pytest.raises(ValueError, match="ensemble_weights must be >= 0 and not all 0"):
        TeacherEnsemble([sharp(1), sharp(2)], weights)
    with pytest.raises(ValueError, match="ensemble_weights must be (>= 0 and not all 0|a finite number)"):
        settings(ensemble_weights=weights)


@pytest.mark.parametrize("weights", [["a", 1.0], "12", [None, 1.0], 0.5, [[1.0], [2.0]]])
def test_weights_that_are_no_numbers_are_refused(weights):
    with pytest.raises(ValueError, match="must be >= 0 and not all 0, a number for each teacher, got"):
        TeacherEnsemble([sharp(1), sharp(2)], weights)


def test_teachers_with_other_numbers_of_labels_are_refused(make_rows, tokenizer):
    three = sharp(2, num_labels=3)
    with pytest.raises(ValueError, match="other numbers of labels: teacher 1 has 2, teacher 2 has 3. Take teachers"):
        TeacherEnsemble([sharp(1), three])
    with pytest.raises(ValueError, match="other numbers of labels: teacher 1 has 2, teacher 2 has 3, teacher 3 has 2"):
        evaluate_student(sharp(3), [sharp(1), three, sharp(4)], make_rows(8), tokenizer)


def test_another_average_is_refused(settings):
    with pytest.raises(ValueError, match="ensemble_average must be one of .*got 'votes'"):
        TeacherEnsemble([sharp(1)], average="votes")
    with pytest.raises(ValueError, match="ensemble_average must be one of .*got 'votes'"):
        settings(ensemble_average="votes")


def test_average_and_weights_of_an_ensemble_are_flags_of_a_recipe(tmp_path):
    parser = HfArgumentParser(DistillationConfig)
    flags = ["--output_dir", str(tmp_path), "--report_to", "none"]
    given = parser.parse_args_into_dataclasses(
        [*flags, "--ensemble_average", "logits", "--ensemble_weights", "2", ".5"]
    )
    assert (given[0].ensemble_average, given[0].ensemble_weights) == ("logits", [2.0, 0.5])
    absent = parser.parse_args_into_dataclasses(flags)
    assert (absent[0].ensemble_average, absent[0].ensemble_weights) == ("probabilities", None)


# Training


@pytest.fixture
def build(make_rows, settings, tokenizer):
    def build(teachers, student=None, rows=None, objectives=None, config=None, **arguments):
        return DistillationTrainer(
            model=tiny_bert(**NEG_POS) if student is None else student, teacher_model=teachers,
            args=settings(**(config or {})), objectives=objectives,
            train_dataset=make_rows(24) if rows is None else rows, processing_class=tokenizer, **arguments,
        )  # fmt: skip

    return build


def test_the_loss_is_that_of_the_averaged_teachers_in_the_students_label_order(build, make_rows):
    first, second, rows = sharp(1, **POS_NEG), sharp(2, **NEG_POS), make_rows(24)
    student = tiny_bert(**NEG_POS)
    trainer = build([first, second], student, rows, [ForwardKLLoss(temperature=2.0)], {"ensemble_weights": [1.0, 3.0]})
    batch = trainer.data_collator([rows[k] for k in range(24)])
    mean = 0.25 * softmax(own(first, batch))[:, [1, 0]] + 0.75 * softmax(own(second, batch))
    softened = softmax(np.log(mean) / 2)
    ours = softmax(own(student.eval(), batch) / 2)
    expected = 4 * (softened * (np.log(softened) - np.log(ours))).sum(axis=1).mean()
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert trainer.teacher_model.orders == [[1, 0], [0, 1]] and trainer.teacher_order is None


def test_teachers_are_in_eval_mode_frozen_unchanged_and_not_optimised(build):
    teachers = [sharp(seed, hidden_dropout_prob=0.5).train() for seed in (1, 2)]
    before = [copy.deepcopy(teacher.state_dict()) for teacher in teachers]
    trainer = build(teachers, objectives=[CrossEntropyLoss(0.5), ForwardKLLoss()])
    trainer.train()
    assert not any(module.training for teacher in teachers for module in teacher.modules())
    parameters = [parameter for teacher in teachers for parameter in teacher.parameters()]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters)
    for teacher, was in zip(teachers, before, strict=True):
        assert all(torch.equal(tensor, was[name]) for name, tensor in teacher.state_dict().items())
    optimised = {p.data_ptr() for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised and not optimised & {parameter.data_ptr() for parameter in parameters}


class Oracle(nn.Module):
    """A teacher that reads the label out of the text, with generic names; swapped, or constant."""

    def __init__(self, swapped: bool = False, constant: bool = False):
        super().__init__()
        self.config = tiny_bert().config
        self.scale = nn.Parameter(torch.tensor(-3.0 if swapped else 3.0))
        self.constant = constant

    def forward(self, input_ids, attention_mask=None):
        good = ((input_ids >= 5) & (input_ids < 8)).any(dim=1).float() * 2 - 1
        good = torch.ones_like(good) if self.constant else good
        return torch.stack([-good, good], dim=1) * self.scale


def test_teachers_without_names_are_each_given_the_order_that_fits(build, make_rows, tokenizer, caplog):
    rows = make_rows(120)
    with caplog.at_level(logging.WARNING):
        trainer = build([Oracle(), Oracle(swapped=True)], rows=rows, config={"teacher_check": "error"})
    assert trainer.teacher_model.orders == [None, [1, 0]]
    batch = trainer.data_collator([rows[k] for k in range(32)])
    logits = trainer._signals.live.outputs(batch).logits
    assert logits.argmax(dim=-1).tolist() == batch["labels"].tolist()
    report = evaluate_student(
        trainer.model, trainer.teacher_model, rows, tokenizer, latency_runs=0, bootstrap_samples=20
    )
    assert report.candidates["teacher"].quality["accuracy"].value == 1.0


def test_a_teacher_that_teaches_noise_is_refused_or_warned_of_by_number(build, make_rows, caplog):
    rows, teachers = make_rows(120), [Oracle(), Oracle(constant=True)]
    with pytest.raises(ValueError, match="^teacher 2 of 2: the teacher gets .*no better than always answering"):
        build(teachers, rows=rows, config={"teacher_check": "error"})
    with caplog.at_level(logging.WARNING):
        build(teachers, rows=rows, config={"teacher_check": "warn"})
    assert "teacher 2 of 2: the teacher gets" in caplog.text and "teacher 1" not in caplog.text


def test_what_does_not_fit_is_refused_with_the_teachers_number(build):
    with pytest.raises(ValueError, match="teacher 1 has 2, teacher 2 has 3"):
        build([sharp(1), sharp(2, num_labels=3)])
    with pytest.raises(ValueError, match="teacher 1 of 2: labels of .*contradict"):
        build([sharp(1, id2label={0: "cat", 1: "dog"}), sharp(2)])
    with pytest.raises(ValueError, match="teacher 2 of 2: .*another tokenizer.*pass teacher_processing_class"):
        build([sharp(1), sharp(2, vocab_size=50)])
    with pytest.raises(ValueError, match="there are 3 ensemble_weights for 2 teachers"):
        build([sharp(1), sharp(2)], config={"ensemble_weights": [1.0, 1.0, 1.0]})
    with pytest.raises(ValueError, match="there are 1 tokenizers for 2 teachers"):
        build([sharp(1), sharp(2)], teacher_processing_class=[None])
    with pytest.raises(ValueError, match="HiddenStateMSELoss matches .*several teachers.*use one teacher"):
        build([sharp(1), sharp(2)], objectives=[HiddenStateMSELoss()])
    student = tiny_bert()
    with pytest.raises(ValueError, match="share"):
        build([sharp(1), student], student)


def test_a_list_of_one_teacher_has_layers_to_give(build):
    trainer = build([tiny_bert(layers=4, seed=1)], objectives=[HiddenStateMSELoss()], teacher_processing_class=[None])
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


# Families and tokenizers


@pytest.fixture(scope="module")
def tweets() -> tuple[Dataset, Dataset]:
    data = load_airline_tweets()["train"].shuffle(seed=0)
    return data.select(range(64)), data.select(range(64, 96))


@pytest.fixture(scope="module")
def byte_level(tweets) -> PreTrainedTokenizerFast:
    """The tokenizer of a RoBERTa, learnt from the texts."""
    backend = ByteLevelBPETokenizer()
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(tweets[0]["text"], vocab_size=400, special_tokens=marks, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=64, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def letters(reverse: bool) -> BertTokenizer:
    """A WordPiece tokenizer of letters, in one order or the other."""
    marks, pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "abcdefghijklmnopqrstuvwxyz@#.,!?'0123456789"
    tokens = [*pieces, *(f"##{piece}" for piece in pieces), *WORDS]
    tokens = dict.fromkeys(marks + (tokens[::-1] if reverse else tokens))
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)


def families(names, student_size: int, bytes_size: int):
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}
    turned = {"id2label": dict(enumerate(names[::-1])), "label2id": {name: k for k, name in enumerate(names[::-1])}}
    torch.manual_seed(0)
    roberta = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=bytes_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
            initializer_range=0.5, **turned,
        )
    )  # fmt: skip
    distilbert = DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=student_size, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64,
            initializer_range=0.5, **ids,
        )
    )  # fmt: skip
    ids |= {"num_labels": len(names), "vocab_size": student_size}
    bert = tiny_bert(seed=3, initializer_range=0.5, **ids)
    return tiny_bert(**ids), [bert.eval(), roberta.eval(), distilbert.eval()]


def test_three_families_with_three_tokenizers_train_a_student_on_real_tweets(tweets, byte_level, settings):
    mine, other = letters(reverse=False), letters(reverse=True)
    own_tokenizers = [None, byte_level, other]
    data = load_text_classification(*tweets, tokenizer=mine, teacher_tokenizer=own_tokenizers)
    rows, held_out = data["train"], data["validation"]
    assert rows["teacher_input_ids"][:] == [
        byte_level(text, truncation=True, max_length=64)["input_ids"] for text in rows["text"]
    ]
    assert rows["teacher_2_input_ids"][:] != rows["input_ids"][:]
    student, teachers = families(list(data.id2label.values()), len(mine), len(byte_level))
    trainer = DistillationTrainer(
        model=student, teacher_model=teachers, args=settings(learning_rate=1e-3), train_dataset=rows,
        eval_dataset=held_out, processing_class=mine, teacher_processing_class=own_tokenizers,
        objectives=[ForwardKLLoss(temperature=1.0)],
    )  # fmt: skip
    assert [capture.prefix for capture in trainer.teacher_model.captures] == ["", "teacher_", "teacher_2_"]
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    mean = 0
    for teacher, tokenizer, turned in zip(teachers, [mine, byte_level, other], [False, True, False], strict=True):
        for row, text in enumerate(held_out["text"]):
            encoded = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            encoded.pop("token_type_ids", None)
            with torch.no_grad():
                found = softmax(teacher(**encoded).logits.double().numpy())
            mean = mean + np.eye(len(held_out))[:, [row]] * (found[:, ::-1] if turned else found) / 3
    batch = trainer.data_collator([held_out[k] for k in range(len(held_out))])
    found = trainer._signals.live.outputs(batch)
    np.testing.assert_allclose(found.logits.exp().numpy(), mean, atol=1e-4)
    report = evaluate_student(
        trainer.model, trainer.teacher_model, held_out, mine, teacher_tokenizer=trainer.teacher_processing_class,
        bootstrap_samples=20, latency_runs=1, latency_batches=(1,), latency_tokens=8,
    )  # fmt: skip
    right = mean.argmax(axis=1) == np.array(held_out["labels"][:])
    taught = report.candidates["teacher"]
    assert taught.quality["accuracy"].value == pytest.approx(right.mean())
    assert report.candidates["student"].agreement.value == pytest.approx(after["eval_agreement"])
    assert taught.parameters == sum(p.numel() for teacher in teachers for p in teacher.parameters())
    assert list(report.candidates) == ["teacher", "student"] and taught.latency[0].p50_ms > 0
    assert "the teacher's times are sums over its 3 models" in report.run.latency_protocol


def test_data_without_a_teachers_columns_are_refused(tweets, byte_level, settings):
    mine = letters(reverse=False)
    data = load_text_classification(tweets[1], tokenizer=mine)
    student, teachers = families(list(data.id2label.values()), len(mine), len(byte_level))
    arguments = {"model": student, "train_dataset": data["train"], "processing_class": mine, "args": settings()}
    given = [letters(reverse=True), byte_level]
    with pytest.raises(ValueError, match="teacher 1 of 2: .*no column teacher_input_ids"):
        DistillationTrainer(teacher_model=teachers[:2], teacher_processing_class=given, **arguments)
    arguments["train_dataset"] = load_text_classification(tweets[1], tokenizer=mine, teacher_tokenizer=given[0])[
        "train"
    ]
    with pytest.raises(ValueError, match="teacher 2 of 2: .*no column teacher_2_input_ids"):
        DistillationTrainer(teacher_model=teachers[:2], teacher_processing_class=given, **arguments)


# Measuring


def test_a_list_of_teachers_is_one_candidate_of_the_report(make_rows, tokenizer):
    rows, first, second = make_rows(20), sharp(1, **POS_NEG), sharp(2, **NEG_POS)
    student = tiny_bert(**NEG_POS)
    report = evaluate_student(student, [first, second], rows, tokenizer, latency_runs=0, bootstrap_samples=20)
    mean = softmax(predict_logits(first, rows, tokenizer))[:, ::-1] + softmax(predict_logits(second, rows, tokenizer))
    right = mean.argmax(axis=1) == np.array(rows["labels"][:])
    assert report.candidates["teacher"].quality["accuracy"].value == pytest.approx(right.mean())
    assert report.candidates["teacher"].size_mb > 1.5 * report.candidates["student"].size_mb
    with pytest.raises(ValueError, match="teacher_order is of one teacher"):
        evaluate_student(student, [first, second], rows, tokenizer, teacher_order=[1, 0])
    with pytest.raises(ValueError, match="teacher 1 has 2, teacher 2 has 3"):
        evaluate_student(student, [first, sharp(2, num_labels=3)], rows, tokenizer)


class Reader(nn.Module):
    """Keeps what it reads."""

    def __init__(self):
        super().__init__()
        self.read = []

    def forward(self, input_ids):
        self.read.append(input_ids)
        return torch.zeros(len(input_ids), 2)


def test_each_teachers_rows_are_padded_by_its_own_tokenizer_when_measured(make_rows, tokenizer, byte_level):
    rows, first, second = make_rows(3), Reader(), Reader()
    rows = rows.add_column("teacher_input_ids", [[7], [8, 8, 8], [9, 9]])
    arguments = {"teacher_tokenizer": [None, byte_level], "latency_runs": 0, "bootstrap_samples": 20}
    evaluate_student(tiny_bert(), [first, second], rows, tokenizer, **arguments)
    assert second.read[0].tolist() == [[8, 8, 8], [9, 9, 1], [7, 1, 1]] and byte_level.pad_token_id == 1
    assert sorted(map(len, rows["input_ids"])) == sorted((first.read[0] != 0).sum(dim=1).tolist())


def test_the_report_of_one_teacher_in_a_list_is_that_of_the_teacher(make_rows, tokenizer):
    rows, teacher, quick = make_rows(20), sharp(1), {"latency_runs": 0, "bootstrap_samples": 20}
    listed = evaluate_student(tiny_bert(), [teacher], rows, tokenizer, teacher_tokenizer=[None], **quick)
    alone = evaluate_student(tiny_bert(), teacher, rows, tokenizer, **quick)
    assert listed.candidates["teacher"] == alone.candidates["teacher"]


def test_the_trainers_collator_pads_every_teachers_columns(byte_level):
    other = letters(reverse=True)
    collate = DistillationCollator(letters(reverse=False), [None, byte_level, other, byte_level])
    batch = collate(
        [{f"{prefix}input_ids": [5] * size for prefix in ("", "teacher_", "teacher_2_")} for size in (2, 1)]
    )
    assert batch["input_ids"].tolist() == [[5, 5], [5, 0]]
    assert batch["teacher_input_ids"].tolist() == [[5, 5], [5, byte_level.pad_token_id]] == [[5, 5], [5, 1]]
    assert batch["teacher_2_input_ids"].tolist() == [[5, 5], [5, 0]]
    with pytest.raises(ValueError, match="teacher_3_input_ids but no teacher_tokenizer"):
        collate([{"input_ids": [5], "teacher_3_input_ids": [5]}])
