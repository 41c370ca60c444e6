"""Every way in, every holder of an order of classes: that order alone, changed with its names, changes no result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from datasets import ClassLabel, Dataset
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from samples import WORDS, sentences, tiny_bert
from torch import nn
from transformers import AutoConfig
from typer.testing import CliRunner

import nlpkd
from nlpkd import DistillationConfig, DistillationTrainer, cache_teacher_outputs, distill, evaluate_student
from nlpkd.cli import app
from nlpkd.data.text_classification import load_text_classification
from nlpkd.labelling.mislabelled import check_labels
from nlpkd.objectives import CrossEntropyLoss, ForwardKLLoss
from nlpkd.pipeline.cache import cache_for_distillation
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.pipeline.export import export_student
from nlpkd.pipeline.verify import verify

Order = tuple[str, ...]
USUAL, *OTHERS = [
    ("neg", "pos", "mixed"), ("mixed", "neg", "pos"), ("pos", "mixed", "neg"), ("mixed", "pos", "neg"),
    ("pos", "neg", "mixed"), ("neg", "mixed", "pos"),
]  # fmt: skip
QUIET = {
    "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
    "rehearsal": False, "teacher_check": "off", "per_device_train_batch_size": 8, "num_train_epochs": 1,
    "logging_steps": 1, "optim": "sgd", "learning_rate": 0.05,
}  # fmt: skip
BRIEF = {"latency_runs": 0, "bootstrap_samples": 3}
SEEDS = {"teacher": 1, "second teacher": 2, "student": 3, "baseline": 4, "candidate": 5}


class Orders(dict):
    """The order of each holder, the usual one unless it is another."""

    def __missing__(self, holder: str) -> Order:
        return USUAL


# What holds an order


def raw(rows: int, order: Order, seed: int = 0) -> Dataset:
    """Texts of good, bad, and neither."""
    texts, labels = sentences(rows, seed)
    names = ["mixed" if row % 3 == 0 else ("neg", "pos")[label] for row, label in enumerate(labels)]
    texts = [text.rsplit(" ", 1)[0] if row % 3 == 0 else text for row, text in enumerate(texts)]
    plain = Dataset.from_dict({"text": texts})
    return plain.add_column("label", [order.index(name) for name in names], feature=ClassLabel(names=list(order)))


def tags(rows: int, seed: int = 0) -> Dataset:
    """Texts with any number of labels."""
    texts, _ = sentences(rows, seed)
    return Dataset.from_dict(
        {"text": texts, "labels": [[name for k, name in enumerate(USUAL) if (row >> k) & 1] for row in range(rows)]}
    )


def model(kind: str, order: Order, **config: Any) -> Any:
    """A model whose head has its rows, and their names, in an order."""
    made = tiny_bert(
        layers=1, seed=SEEDS[kind], initializer_range=0.5, num_labels=3, id2label=dict(enumerate(order)),
        label2id={name: number for number, name in enumerate(order)}, **config,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.classifier.parameters():
            parameter.copy_(parameter[[USUAL.index(name) for name in order]])
    return made


class NoConfig(nn.Module):
    """A student without a config, whose logits are in the order of the training rows."""

    def __init__(self, inside: nn.Module):
        super().__init__()
        self.inside = inside

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.inside(input_ids=input_ids, attention_mask=attention_mask).logits


# What comes out, by name


def named_logits(logits: Any, order: Sequence[str]) -> dict[str, list[float]]:
    return {name: np.asarray(logits)[:, number].tolist() for number, name in enumerate(order)}


def named_weights(weights: Mapping[str, torch.Tensor], order: Sequence[str]) -> dict[str, Any]:
    """A student's weights, the rows of its head by name."""
    body = {
        name: tensor for name, tensor in weights.items() if not name.startswith(("classifier.", "inside.classifier."))
    }
    head = [tensor for name, tensor in weights.items() if name not in body]
    return body | {name: [part[number] for part in head] for number, name in enumerate(order)}


def of_report(report: Any) -> dict[str, Any]:
    """A report's figures, those of classes by their names."""
    names, figures = report.task.labels, {}
    for name, candidate in report.candidates.items():
        told = candidate.breakdown
        figures[name] = {
            "quality": {key: dataclasses.astuple(each) for key, each in candidate.quality.items()},
            "agreement": candidate.agreement and dataclasses.astuple(candidate.agreement),
            "temperature": candidate.temperature_scaling and dataclasses.astuple(candidate.temperature_scaling),
            "confusion": told.confusion
            and {(a, b): told.confusion[i][j] for i, a in enumerate(names) for j, b in enumerate(names)},
            "classes": told.per_class
            and {names[k]: dataclasses.astuple(each) for k, each in enumerate(told.per_class)},
        }
    return {"figures": figures, "thresholds": report.run.thresholds}


def of_training(trainer: Any, test_rows: Any) -> dict[str, Any]:
    trainer.train()
    order = trainer.classes.names
    predicted = trainer.predict(test_rows)
    measured = {"eval": trainer.evaluate(), "test": predicted.metrics}
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "metrics": [
            {name: value for name, value in each.items() if not name.endswith(("time", "per_second", "samples"))}
            for each in measured.values()
        ],
        "predictions": named_logits(predicted.predictions, order),
        "gold": [order[label] for label in predicted.label_ids] if np.ndim(predicted.label_ids) == 1 else None,
        "student": named_weights(trainer.model.state_dict(), order),
    }


def same(found: Any, expected: Any, exact: bool, place: str = "") -> None:
    """Every number is the same: to the last bit, or where the student's own order is another, to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            same(found[key], expected[key], exact, f"{place} {key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, exact, f"{place} {number}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected) if exact else torch.allclose(found, expected, atol=1e-4), place
    elif isinstance(expected, float) and not exact:
        assert found == pytest.approx(expected, abs=1e-4, nan_ok=True), place
    else:
        assert found == expected or (found != found and expected != expected), place


# The ways in


class World:
    """Models, rows and files in every order, and each way from them to results."""

    def __init__(self, folder: Path, tokenizer: Any):
        self.folder, self.tokenizer = folder, tokenizer
        self.saved, self.runs = cache(self._saved), 0
        self.rows = cache(self._rows)

    def _rows(self, count: int, order: Order, seed: int = 0) -> Dataset:
        return load_text_classification(raw(count, order, seed), tokenizer=self.tokenizer)["train"]

    def _saved(self, kind: str, order: Order, **config: Any) -> Path:
        folder = self.folder / f"{kind} {'-'.join(order)} {len(config)}"
        model(kind, order, **config).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder

    def fresh(self) -> Path:
        self.runs += 1
        return self.folder / f"run-{self.runs}"

    def trainer(self, student: Any, rows: Any, orders: Orders, objectives: Any = None, **options: Any) -> Any:
        return DistillationTrainer(
            model=student, args=DistillationConfig(output_dir=str(self.fresh()), **QUIET | {"cache_teacher": "off"}),
            objectives=objectives or [CrossEntropyLoss(), ForwardKLLoss()], train_dataset=rows,
            eval_dataset=self.rows(24, orders["evaluation rows"], 1), processing_class=self.tokenizer, **options,
        )  # fmt: skip

    def by_trainer(self, orders: Orders) -> Any:
        weights = load_text_classification(raw(30, orders["class weights"]), tokenizer=self.tokenizer).class_weights
        trainer = self.trainer(
            model("student", orders["student"]), self.rows(48, orders["training rows"]), orders,
            [CrossEntropyLoss(class_weights=weights), ForwardKLLoss()],
            teacher_model=model("teacher", orders["teacher"]),
        )  # fmt: skip
        return of_training(trainer, self.rows(24, orders["test rows"], 2))

    def by_trainer_with_rows_assigned(self, orders: Orders) -> Any:
        trainer = self.trainer(
            model("student", USUAL), self.rows(48, USUAL), orders, teacher_model=model("teacher", USUAL)
        )
        trainer.train_dataset, trainer.eval_dataset = (
            self.rows(48, orders["training rows"]),
            {"one": self.rows(24, orders["evaluation rows"], 1)},
        )
        return of_training(trainer, self.rows(24, USUAL, 2))

    def by_ensemble(self, orders: Orders) -> Any:
        teachers = [model("teacher", orders["teacher"]), model("second teacher", orders["second teacher"])]
        rows = self.rows(48, orders["training rows"])
        trainer = self.trainer(model("student", orders["student"]), rows, orders, teacher_model=teachers)
        return of_training(trainer, self.rows(24, orders["test rows"], 2))

    def by_a_student_without_config(self, orders: Orders) -> Any:
        student, teacher = NoConfig(model("student", USUAL)), model("teacher", orders["teacher"])
        trainer = self.trainer(student, self.rows(48, USUAL), orders, teacher_model=teacher)
        return of_training(trainer, self.rows(24, orders["test rows"], 2))

    def by_kept_outputs(self, orders: Orders) -> Any:
        kept = cache_teacher_outputs(
            model("teacher", orders["teacher"]), self.rows(48, orders["training rows"]), self.tokenizer,
            cache_dir=self.fresh(), bf16=False,
        )  # fmt: skip
        trainer = self.trainer(model("student", orders["student"]), kept, orders)
        return of_training(trainer, self.rows(24, orders["test rows"], 2))

    def by_outputs_kept_ahead(self, orders: Orders) -> Any:
        args = DistillationConfig(output_dir=str(self.fresh()), **QUIET)
        rows = cache_for_distillation(
            args, teacher=str(self.saved("teacher", orders["teacher"])), student=model("student", orders["student"]),
            tokenizer=self.tokenizer, train=raw(24, orders["training rows"]), validation=raw(12, USUAL, 1),
        )  # fmt: skip
        return named_logits(rows["teacher_logits"], json.loads(rows.features["teacher_logits"].feature.id))

    def by_soft_labels(self, orders: Orders) -> Any:
        data = raw(48, orders["training rows"])
        votes = [{"neg": 0.7 - row / 100, "pos": 0.2 + row / 200, "mixed": 0.1 + row / 200} for row in range(48)]
        written = [json.dumps({name: each[name] for name in orders["soft labels"]}) for each in votes]
        listed = [[each[name] for name in orders["training rows"]] for each in votes]
        splits = [
            load_text_classification(
                data.add_column("votes", column), tokenizer=self.tokenizer, soft_label_column="votes"
            )["train"]
            for column in (written, listed)
        ]
        assert splits[0]["teacher_logits"][:] == splits[1]["teacher_logits"][:]
        return of_training(self.trainer(model("student", USUAL), splits[0], orders), self.rows(24, USUAL, 2))

    def by_stream(self, orders: Orders) -> Any:
        path = self.folder / "rows.jsonl"
        names = raw(48, USUAL).features["label"]
        lines = [{"text": row["text"], "label": names.int2str(row["label"])} for row in raw(48, USUAL)]
        path.write_text("\n".join(map(json.dumps, lines)))
        data = load_text_classification(
            str(path), tokenizer=self.tokenizer, streaming=True, label_names=orders["label names"]
        )
        trainer = self.trainer(
            model("student", orders["student"]),
            data["train"],
            orders,
            teacher_model=model("teacher", orders["teacher"]),
        )
        return of_training(trainer, self.rows(24, orders["test rows"], 2))

    def by_several_labels(self, orders: Orders) -> Any:
        several = {"problem_type": "multi_label_classification"}
        rows = {
            split: load_text_classification(tags(count, seed), tokenizer=self.tokenizer, label_names=orders[split])[
                "train"
            ]
            for seed, (split, count) in enumerate(
                {"training rows": 48, "evaluation rows": 24, "test rows": 24}.items()
            )
        }
        weights = {name: 1.0 + USUAL.index(name) for name in orders["class weights"]}
        trainer = DistillationTrainer(
            model=model("student", orders["student"], **several),
            teacher_model=model("teacher", orders["teacher"], **several),
            args=DistillationConfig(output_dir=str(self.fresh()), **QUIET), processing_class=self.tokenizer,
            objectives=[CrossEntropyLoss(class_weights=weights), ForwardKLLoss()],
            train_dataset=rows["training rows"], eval_dataset=rows["evaluation rows"],
        )  # fmt: skip
        return of_training(trainer, rows["test rows"])

    def by_report(self, orders: Orders) -> Any:
        report = evaluate_student(
            model("student", orders["student"]),
            [model("teacher", orders["teacher"]), model("second teacher", orders["second teacher"])],
            self.rows(48, orders["rows"], 5), self.tokenizer, baseline=model("baseline", orders["baseline"]),
            candidates={"other": model("candidate", orders["candidate"])},
            threshold_dataset=self.rows(48, orders["held-out rows"], 6), **BRIEF,
        )  # fmt: skip
        return of_report(report)

    def by_report_of_several_labels(self, orders: Orders) -> Any:
        def classifier(kind: str) -> Any:
            cuts = dict(zip(USUAL, (0.2, 0.5, 0.8), strict=True))
            return model(
                kind, orders[kind], problem_type="multi_label_classification",
                thresholds={name: cuts[name] for name in orders[f"{kind}'s thresholds"]},
            )  # fmt: skip

        rows = {
            split: load_text_classification(tags(40, seed), tokenizer=self.tokenizer, label_names=orders[split])[
                "train"
            ]
            for seed, split in enumerate(("rows", "held-out rows"))
        }
        reports = [
            evaluate_student(
                classifier("student"), classifier("teacher"), rows["rows"], self.tokenizer,
                candidates={"other": classifier("candidate")}, threshold_dataset=held_out, **BRIEF,
            )
            for held_out in (None, rows["held-out rows"])
        ]  # fmt: skip
        return [of_report(report) for report in reports]

    def onnx(self, order: Order) -> Path:
        """An ONNX file, of a classifier that averages what it knows of each token."""
        folder = self._saved("candidate", order)
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
        table = np.random.default_rng(0).normal(size=(5 + len(WORDS), 3)).astype(np.float32)
        table = numpy_helper.from_array(table[:, [USUAL.index(name) for name in order]], "table")
        shape = ["batch", "tokens"]
        graph = helper.make_graph(
            [
                helper.make_node("Gather", ["table", "input_ids"], ["known"]),
                helper.make_node("ReduceMean", ["known", "axes"], ["logits"], keepdims=0),
            ],
            "mean", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            [table, numpy_helper.from_array(np.array([1]), "axes")],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(made, folder / "model.onnx")
        return folder / "model.onnx"

    def by_evaluate(self, orders: Orders) -> Any:
        report = evaluate(
            self.saved("student", orders["student"]), raw(48, orders["rows"], 5),
            teacher=self.saved("teacher", orders["teacher"]), baseline=self.saved("baseline", orders["baseline"]),
            candidates={"onnx": self.onnx(orders["onnx"])},
            held_out=raw(48, orders["held-out rows"], 6), **BRIEF,
        )  # fmt: skip
        return of_report(report)

    def by_export(self, orders: Orders) -> Any:
        folder = self.saved("student", orders["student"])
        result = export_student(folder, int8=True, data=raw(48, orders["rows"], 5), min_retention=0.1)
        texts = raw(20, USUAL, 7)["text"][:]
        answers = [
            [(each["label"], each["score"]) for each in nlpkd.load(folder, file=file)(texts)]
            for file in ("onnx/model.onnx", "onnx/model_int8.onnx")
        ]
        return of_report(result.report)["figures"]["student"], answers

    def by_verify(self, orders: Orders) -> Any:
        folder = self.saved("student", USUAL)
        if not (folder / "report.json").is_file():
            teacher = str(self.saved("teacher", USUAL))
            evaluate(folder, raw(48, USUAL, 5), teacher=teacher, output_dir=folder, **BRIEF)
        found = verify(
            folder, raw(48, orders["rows"], 5), teacher=str(self.saved("teacher", orders["teacher"])), **BRIEF
        )
        return [dataclasses.astuple(claim) for claim in found.claims]

    def by_cascade(self, orders: Orders) -> Any:
        student, teacher = (self.saved(kind, orders[kind]) for kind in ("student", "teacher"))
        record = nlpkd.cascade(student, teacher, raw(60, orders["rows"], 5), target_accuracy=0.05)
        both = nlpkd.load(student, fallback=teacher)
        answers = [(each["label"], each["score"], each["by"]) for each in both(raw(20, USUAL, 7)["text"][:])]
        other = ("student_ms", "teacher_ms", "teacher", "student_files", "teacher_files")
        told = dataclasses.asdict(record) | dict.fromkeys(other)
        return told, answers

    def by_decisions(self, orders: Orders) -> Any:
        cuts = {name: (0.2, 0.5, 0.8)[USUAL.index(name)] for name in orders["thresholds"]}
        student = self.saved("student", orders["student"], problem_type="multi_label_classification")
        config = AutoConfig.from_pretrained(student)
        config.thresholds = cuts
        config.save_pretrained(student)
        decided = nlpkd.load(student)(raw(20, USUAL, 7)["text"][:], decide=True)
        return [sorted((each["label"], each["score"]) for each in row) for row in decided]

    def by_check_labels(self, orders: Orders) -> Any:
        found = check_labels(raw(60, orders["rows"], 5), str(self.saved("teacher", orders["teacher"])))
        return [dataclasses.astuple(each) for each in found.found]

    def by_distill(self, orders: Orders, run: Callable[..., Path] | None = None) -> Any:
        rows = {
            "train": raw(24, orders["training rows"]),
            "validation": raw(18, orders["evaluation rows"], 1),
            "test": raw(18, orders["test rows"], 2),
        }
        folder = (run or self._distil)(rows, orders)
        order = AutoConfig.from_pretrained(folder).id2label
        names = [order[number] for number in range(3)]
        return of_report(nlpkd.EvaluationReport.load(folder)), named_weights(
            load_file(folder / "model.safetensors"), names
        )

    def _distil(self, rows: Mapping[str, Dataset], orders: Orders) -> Path:
        teacher = str(self.saved("teacher", orders["teacher"]))
        result = distill(
            teacher, "layers:1", **rows, output_dir=self.fresh(), objectives="hinton",
            class_weights="balanced", max_length=64, **QUIET,
        )  # fmt: skip
        return result.output_dir

    def by_command_line(self, orders: Orders) -> Any:
        return self.by_distill(orders, self._command)

    def _command(self, rows: Mapping[str, Dataset], orders: Orders) -> Path:
        output, files = self.fresh(), []
        for split, each in rows.items():
            path = self.folder / f"{split}-{self.runs}.parquet"
            each.to_parquet(path)
            files += [f"--{split}", str(path)]
        arguments = [
            "distill", "--teacher", str(self.saved("teacher", orders["teacher"])), "--student", "layers:1", *files,
            "--objectives", "hinton", "--output-dir", str(output), "--report-to", "none", "--save-strategy", "no",
            "--teacher-check", "off", "--no-rehearsal", "--bf16", "false", "--use-cpu", "--disable-tqdm", "true",
            "--per-device-train-batch-size", "8", "--num-train-epochs", "1", "--max-length", "64",
            "--optim", "sgd", "--learning-rate", "0.05", "--logging-steps", "1", "--class-weights", "balanced",
        ]  # fmt: skip
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 0, outcome.output + repr(outcome.exception)
        return output

    def by_training_a_teacher(self, orders: Orders) -> Any:
        backbone = self.folder / "backbone"
        if not backbone.is_dir():
            tiny_bert(layers=1, seed=9).bert.save_pretrained(backbone)
            self.tokenizer.save_pretrained(backbone)
        result = nlpkd.train_teacher(
            str(backbone), raw(48, orders["training rows"]), raw(24, orders["evaluation rows"], 1),
            output_dir=self.fresh(), class_weights="balanced", max_length=64, **QUIET,
        )  # fmt: skip
        names = list(result.model.config.id2label.values())
        metrics = {name: value for name, value in result.metrics.items() if not name.endswith(("time", "per_second"))}
        return metrics, named_weights(result.model.state_dict(), names)


WAYS = {
    "trainer": ("training rows", "evaluation rows + test rows", "class weights", "teacher", "student"),
    "trainer_with_rows_assigned": ("training rows + evaluation rows",),
    "ensemble": ("training rows", "second teacher"),
    "a_student_without_config": ("evaluation rows + test rows", "teacher"),
    "kept_outputs": ("training rows", "teacher"),
    "outputs_kept_ahead": ("training rows + teacher", "student"),
    "soft_labels": ("training rows", "soft labels"),
    "stream": ("label names", "evaluation rows + teacher"),
    "several_labels": ("training rows", "evaluation rows + class weights", "teacher", "student"),
    "report": ("rows + held-out rows", "teacher + second teacher + baseline + candidate", "student"),
    "report_of_several_labels": (
        "rows + held-out rows", "teacher + candidate", "teacher's thresholds + candidate's thresholds", "student",
        "student's thresholds",
    ),
    "evaluate": ("rows + held-out rows", "teacher + baseline + onnx", "student"),
    "export": ("rows", "student"),
    "verify": ("rows + teacher",),
    "cascade": ("rows + teacher", "student"),
    "decisions": ("thresholds", "student"),
    "check_labels": ("rows + teacher",),
    "distill": ("training rows + evaluation rows + test rows", "teacher"),
    "command_line": ("training rows + evaluation rows + test rows + teacher",),
    "training_a_teacher": ("training rows + evaluation rows",),
}  # fmt: skip
"""The holders of an order on each way in: each alone, or some at once, each in another order than the others."""

LIKE = {"command_line": "distill"}
"""What must come out as by another way."""

ALONE = [(way, holder) for way, each in WAYS.items() for holders in each for holder in holders.split(" + ")]

ITS_OWN = {
    ("training_a_teacher", "training rows"), ("distill", "teacher"),
    *((way, holder) for way, holder in ALONE if way in LIKE or holder == "student"),
}  # fmt: skip
"""Where the student's own order follows, so that its sums over classes are rounded in another order."""


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer) -> World:
    return World(tmp_path_factory.mktemp("world"), tokenizer)


@pytest.fixture(scope="module")
def usual(world):
    return cache(lambda way: getattr(world, f"by_{way}")(Orders()))


def check(way: str, orders: Orders, world: World, usual: Callable[[str], Any]) -> None:
    rounded = any((way, holder) in ITS_OWN for holder in orders)
    same(getattr(world, f"by_{way}")(orders), usual(LIKE.get(way, way)), exact=not rounded)


@pytest.mark.parametrize(
    ("way", "holders"), [(way, holders) for way, each in WAYS.items() if way != "export" for holders in each]
)
def test_orders_of_some_holders_at_once_change_nothing_by_name(way, holders, world, usual):
    check(way, Orders(zip(holders.split(" + "), OTHERS, strict=False)), world, usual)


@pytest.mark.parametrize("order", OTHERS, ids="-".join)
@pytest.mark.parametrize(("way", "holder"), ALONE)
def test_each_order_of_one_holder_alone_changes_nothing_by_name(way, holder, order, world, usual):
    check(way, Orders({holder: order}), world, usual)
