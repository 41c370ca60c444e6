"""Runs of one folder: none takes up what another one left, and a run that goes on ends as if it had not stopped."""

from __future__ import annotations

import functools
import json
import logging
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from samples import QUIET, raw_rows, tiny_bert

from nlpkd import DistillationConfig, EvaluationReport, distill, train_teacher
from nlpkd.evaluation.benchmark import model_size_mb
from nlpkd.objectives import CrossEntropyLoss, DISTLoss, ForwardKLLoss, HiddenStateMSELoss, Stage
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.utils.disk.files import weights_sha256

ROWS = DatasetDict(train=raw_rows(24), validation=raw_rows(16, seed=3))
SETTINGS = {
    **QUIET, "teacher_check": "off", "max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 2e-3,
}  # fmt: skip
OTHER = {
    "nothing": {},
    "student": {"student": "layers:3,4"},
    "teacher": {"teacher": 7},
    "rate": {"rate": 4e-3},
    "seed": {"seed": 43},
    "baseline": {"baseline": "same_start"},
}
"""What a second run in a folder has otherwise than the first."""


class _Killed(KeyboardInterrupt):
    pass


class Fatal(ForwardKLLoss):
    """The very loss of the last stage, which ends the run before this stage's training is begun.

    It is bound once more before all trainings, where the stages are checked.
    """

    trainings = 0

    @property
    def name(self):
        return "forward_kl"

    def bind(self, *configs):
        super().bind(*configs)
        type(self).trainings -= 1
        if type(self).trainings < 0:
            raise _Killed


def train(folder: Path, tokenizer, *, teacher=1, rate=2e-3, kind=ForwardKLLoss, **options):
    """Train two seeds in two stages each."""
    stages = [Stage([HiddenStateMSELoss()], learning_rate=rate), Stage([kind()])]
    given = {"student": "layers:1,2", "num_seeds": 2, "save_strategy": "no", **SETTINGS} | options
    return distill(
        tiny_bert(layers=4, seed=teacher), given.pop("student"), ROWS, objectives=stages, output_dir=folder,
        tokenizer=tokenizer, teacher_tokenizer=tokenizer, **given,
    )  # fmt: skip


def left_in(folder: Path, seed: int = 42) -> dict[str, object]:
    """What a run leaves: the weights of its students and baselines, and what is said of all its seeds."""
    places = [folder, folder / f"seed-{seed + 1}"]
    models = [*places, *(place / "baseline" / "same_start" for place in places)]
    seeds = EvaluationReport.load(folder).seeds
    return {str(each.relative_to(folder)): weights_sha256(each) for each in models} | {"seeds": seeds}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, tokenizer):
    """What a run leaves in a folder of its own."""

    @functools.cache
    def run(other: str) -> dict[str, object]:
        folder = tmp_path_factory.mktemp("fresh")
        train(folder, tokenizer, **OTHER[other])
        return left_in(folder, OTHER[other].get("seed", 42))

    return run


@pytest.fixture(scope="module", params=["no", "steps"])
def first(request, tmp_path_factory, tokenizer):
    """The folder of a first run, with checkpoints or without, and how it saves."""
    folder = tmp_path_factory.mktemp("first")
    train(folder, tokenizer, save_strategy=request.param)
    return folder, {"save_strategy": request.param}


@pytest.mark.parametrize("other", OTHER)
def test_a_run_that_goes_on_where_another_one_was_is_refused_or_ends_as_in_a_folder_of_its_own(
    other, first, fresh, tokenizer, tmp_path
):
    earlier, saving = first
    folder = shutil.copytree(earlier, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    try:
        train(folder, tokenizer, **saving, **OTHER[other], resume_from_checkpoint=True)
    except ValueError as error:
        assert other not in ("nothing", "baseline") and saving["save_strategy"] == "steps"
        assert "is of another run; what differs: " in str(error)
        assert left_in(folder) == fresh("nothing"), "what is refused leaves all as it was"
    else:
        assert left_in(folder, OTHER[other].get("seed", 42)) == fresh(other)


@pytest.mark.parametrize("trainings", [0, 1], ids=["before the last stage", "before the second seed's last stage"])
@pytest.mark.parametrize("other", ["student", "rate"])
def test_a_run_that_was_killed_takes_nothing_of_the_one_before_it(other, trainings, first, fresh, tokenizer, tmp_path):
    earlier, saving = first
    folder = shutil.copytree(earlier, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    Fatal.trainings = 1 + trainings
    with pytest.raises(_Killed):
        train(folder, tokenizer, **saving, **OTHER[other], kind=Fatal)
    train(folder, tokenizer, **saving, **OTHER[other], resume_from_checkpoint=True)
    assert left_in(folder, OTHER[other].get("seed", 42)) == fresh(other)


class Odd(ForwardKLLoss):
    def total(self, student, teacher, batch):
        raise IndexError("column 7")


LATER = {
    "the weighting": (Stage([ForwardKLLoss()], weighting="linear"), "needs objectives on both"),
    "the rows": (Stage([DISTLoss()], per_device_train_batch_size=1), "relate the rows of a micro-batch"),
    "the layers": (Stage([HiddenStateMSELoss([(3, 4)])]), "layer pair 3:4 is out of range"),
    "the loss": (Stage([Odd()], rehearsal=True), "the rehearsal before the first step failed .*column 7"),
}


@pytest.mark.parametrize("what", LATER)
def test_what_a_later_stage_refuses_is_refused_before_the_first_one_is_trained(what, tokenizer, tmp_path):
    stage, said = LATER[what]
    with pytest.raises(ValueError, match=said):
        distill(
            tiny_bert(layers=4), "layers:2", ROWS, objectives=[Stage([ForwardKLLoss()]), stage], output_dir=tmp_path,
            tokenizer=tokenizer, teacher_tokenizer=tokenizer, save_strategy="no", **SETTINGS,
        )  # fmt: skip
    assert not list(tmp_path.rglob("*.safetensors"))


def test_checking_the_stages_draws_no_random_number_and_changes_no_objective(tokenizer, tmp_path):
    stages = [Stage([HiddenStateMSELoss()], rehearsal=True), Stage([ForwardKLLoss()], rehearsal=True)]
    args = DistillationConfig(str(tmp_path), **SETTINGS)
    job = prepare_job(
        args, tiny_bert(layers=4), "layers:2", ROWS, objectives=stages, tokenizer=tokenizer,
        teacher_tokenizer=tokenizer,
    )  # fmt: skip
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    job.check(args)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert job.stages[0].objectives[0].bound_in is None and not any(tmp_path.iterdir())


def test_a_teacher_that_starts_from_another_backbone_is_not_resumed(tokenizer, tmp_path):
    def teach(seed, **options):
        given = {"tokenizer": tokenizer, "output_dir": tmp_path, **SETTINGS, "save_strategy": "steps", "save_steps": 1}
        train_teacher(tiny_bert(seed=seed), ROWS, **given, **options)
        return weights_sha256(tmp_path)

    found = teach(1)
    with pytest.raises(ValueError, match="what differs: the student's weights at the start"):
        teach(2, resume_from_checkpoint=True)
    assert teach(1, resume_from_checkpoint=True) == found


def test_measured_texts_that_are_learned_from_are_counted_and_said(tokenizer, tmp_path, caplog):
    train, test = raw_rows(60, 1), raw_rows(20, 7)
    known = set(train["text"])
    told = {}
    for name, rows in (("mixed", test), ("new", test.filter(lambda row: row["text"] not in known))):
        job = {"teacher": tiny_bert(layers=3, seed=1), "student": tiny_bert()}
        job |= {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer}
        job |= {"train": DatasetDict(train=train, validation=rows), "objectives": "hinton", "max_steps": 1}
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="nlpkd"):
            result = distill(**job, **QUIET, output_dir=tmp_path / name, teacher_check="off", save_strategy="no")
        said = [record.getMessage() for record in caplog.records if "are training texts too" in record.getMessage()]
        report = result.report
        told[name] = (report.run.data.learned_rows, len(said), "are training texts too" in report.to_markdown())
    count = sum(text in known for text in test["text"])
    assert 0 < count < 20 and told == {"mixed": (count, 1, True), "new": (0, 0, False)}


WEIGHTS = {"neg": 0.5, "pos": 2.0}
LESSONS = {
    "one stage": [CrossEntropyLoss(0.5, class_weights=WEIGHTS, label_smoothing=0.2), ForwardKLLoss()],
    "stages": [
        Stage([HiddenStateMSELoss()], num_train_epochs=2, learning_rate=1e-3),
        Stage(
            [CrossEntropyLoss(class_weights=WEIGHTS), ForwardKLLoss()],
            label_smoothing_factor=0.1, per_device_train_batch_size=12, lr_scheduler_type="constant",
        ),
    ],
    "no gold labels": [ForwardKLLoss()],
}  # fmt: skip
OF_THE_TEACHER = (
    "lean_training",
    "weighting",
    "the teacher",
    "forward_kl",
    "hidden_state_mse",
    "cross_entropy: weight",
)


def trained_with(folder):
    """What a training was done with, but for what only a student with a teacher has, its steps and its rates."""
    record = json.loads((folder / "distillation_run.json").read_text())["result"]
    state = json.loads((folder / "trainer_state.json").read_text())
    rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    kept = {name: value for name, value in record.items() if not name.startswith(OF_THE_TEACHER)}
    return kept, state["global_step"], rates


@pytest.mark.parametrize("name", LESSONS)
def test_a_baseline_has_the_settings_steps_and_gold_objective_of_each_stage_of_its_student(name, tokenizer, tmp_path):
    distill(
        tiny_bert(layers=3, seed=1), "layers:2", ROWS, objectives=LESSONS[name], baseline="same_start",
        output_dir=tmp_path, tokenizer=tokenizer, teacher_tokenizer=tokenizer, teacher_check="off",
        num_train_epochs=1, per_device_train_batch_size=8, logging_steps=1, save_strategy="no", **QUIET,
    )  # fmt: skip
    places = [tmp_path / "stage-1", tmp_path] if name == "stages" else [tmp_path]
    for place in places:
        student, *taken = trained_with(place)
        baseline, *as_many = trained_with(tmp_path / "baseline" / "same_start" / place.relative_to(tmp_path))
        gold = {name: value for name, value in baseline.items() if name.startswith("cross_entropy")}
        assert {**baseline, **student} == baseline and {**student, **gold} == baseline and as_many == taken
        assert gold["cross_entropy: class_weights"] == (None if name == "no gold labels" else [0.5, 2.0])
    assert gold["cross_entropy: label_smoothing"] == {"one stage": 0.2, "stages": 0.1, "no gold labels": 0.0}[name]


def with_another_last_layer(teacher):
    """The student is made of the layers before it."""
    for weight in teacher.bert.encoder.layer[-1].parameters():
        weight.data = weight.data.flip(0)
    return teacher


HELD_OUT = DatasetDict(train=raw_rows(24), validation=raw_rows(16, seed=3), test=raw_rows(20, seed=4))
MEASURED_OTHERWISE = {
    "measured texts": {"train": DatasetDict(HELD_OUT | {"test": raw_rows(20, seed=5)})},
    "labels that temperatures are fitted on": {"train": DatasetDict(HELD_OUT | {"validation": raw_rows(16, seed=6)})},
    "resamples": {"bootstrap_samples": 7},
    "teacher that is measured alone": {"teacher": with_another_last_layer(tiny_bert(layers=4, seed=1))},
}


def learn(folder, tokenizer, **options):
    """Train two seeds on gold labels alone."""
    given = {"teacher": tiny_bert(layers=4, seed=1), "train": HELD_OUT, "bootstrap_samples": 5, **options}
    distill(
        given.pop("teacher"), "layers:1,2", given.pop("train"), objectives=[CrossEntropyLoss()], num_seeds=2,
        output_dir=folder, tokenizer=tokenizer, teacher_tokenizer=tokenizer, save_strategy="no",
        **SETTINGS | {"latency_runs": 0} | given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("learned")
    learn(folder, tokenizer)
    return folder


def measured(folder):
    """What is said of the second seed's models, but for what differs between two runs of the same."""
    candidates = EvaluationReport.load(folder / "seed-43").candidates
    return {name: replace(each, training_seconds=None) for name, each in candidates.items()}


@pytest.mark.parametrize("other", MEASURED_OTHERWISE)
def test_a_finished_seed_has_the_figures_of_a_run_in_a_folder_of_its_own(other, learned, tokenizer, tmp_path):
    given = MEASURED_OTHERWISE[other]
    folder = shutil.copytree(learned, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    learn(folder, tokenizer, **given, resume_from_checkpoint=True)
    learn(tmp_path / "fresh", tokenizer, **given)
    assert measured(folder) == measured(tmp_path / "fresh") != measured(learned)


def test_a_finished_seed_that_would_be_measured_alike_keeps_its_report(learned, tokenizer, tmp_path):
    folder = shutil.copytree(learned, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    written = (folder / "seed-43" / "report.json").stat().st_mtime_ns
    learn(folder, tokenizer, resume_from_checkpoint=True)
    assert (folder / "seed-43" / "report.json").stat().st_mtime_ns == written


def test_a_teacher_is_told_of_measured_texts_that_it_learned_from(tokenizer, tmp_path, caplog):
    train, held_out = raw_rows(60, 1), raw_rows(20, 7)
    count = sum(text in set(train["text"]) for text in held_out["text"])
    given = {"tokenizer": tokenizer, "output_dir": tmp_path, "save_strategy": "no", "max_steps": 1, **QUIET}
    train_teacher(tiny_bert(), train, held_out, **given)
    told = [each.getMessage() for each in caplog.records if "training texts" in each.getMessage()]
    assert 0 < count < 20 and len(told) == 1 and told[0].startswith(f"{count} of the 20 texts of the validation split")


def with_an_adapter(teacher):
    """As transformers reads the folder of an adapter: `save_pretrained` writes the adapter alone."""
    peft = pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    teacher.add_adapter(peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    return teacher.eval()


def with_packed_weights(teacher):
    """No file of safetensors holds these."""
    return torch.ao.quantization.quantize_dynamic(teacher, {torch.nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("rehearsal", [False, True])
@pytest.mark.parametrize("changed, known", [(with_an_adapter, True), (with_packed_weights, False)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_teacher_that_is_no_plain_model_teaches_and_is_measured_whether_or_not_its_size_is_known(
    changed, known, rehearsal, tokenizer, tmp_path
):
    plain = tiny_bert(seed=1)
    size = model_size_mb(plain)
    result = distill(
        changed(plain), tiny_bert(layers=1), ROWS, objectives="hinton", output_dir=tmp_path, tokenizer=tokenizer,
        teacher_tokenizer=tokenizer, **SETTINGS | {"rehearsal": rehearsal},
    )  # fmt: skip
    teacher = EvaluationReport.load(tmp_path).candidates["teacher"]
    assert teacher.quality["accuracy"] == result.report.candidates["teacher"].quality["accuracy"]
    assert teacher.size_mb > size if known else teacher.size_mb is None
    assert known or "n/a" in (tmp_path / "report.md").read_text()
