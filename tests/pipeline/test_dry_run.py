"""What a run would take: the steps, rows and passes that it really has."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from datasets import DatasetDict
from samples import QUIET, raw_rows, tiny_bert
from transformers import TrainerCallback

from nlpkd import DistillationConfig, distill
from nlpkd.compression import export_int8, export_onnx, to_half
from nlpkd.pipeline.dry_run import Plan, _times, plan_distillation, plan_teacher
from nlpkd.pipeline.jobs.roles import supervised_trainer
from nlpkd.pipeline.jobs.teacher import prepare_teacher
from nlpkd.training.batches.samplers import LengthGroupedBatchSampler
from nlpkd.training.speed.step_time import PROBED_STEPS, typical_first

QUICK = QUIET | {"per_device_train_batch_size": 4, "teacher_check": "off", "rehearsal": False}


@pytest.fixture(scope="module")
def rows() -> DatasetDict:
    return DatasetDict(train=raw_rows(24), validation=raw_rows(20, seed=3))


def test_minutes_are_all_steps_of_all_trainings_and_what_is_measured():
    plan = Plan(models=[], rows=100, steps=[60, 30], step_ms=[100.0, 200.0], baseline_step_ms=50.0, baselines=2,
                trainings=3, measuring_s=20.0, peak_memory_mb=1.0, disk_mb=1.0, free_disk_mb=1.0)  # fmt: skip
    assert plan.training_minutes == pytest.approx(3 * (60 * 0.1 + 30 * 0.2 + 2 * 90 * 0.05) / 60)
    assert plan.measuring_minutes == pytest.approx(1.0)
    assert "training: about 1.1 minutes" in plan.to_text() and "measuring: about 1.0 minutes" in plan.to_text()


def test_the_steps_that_are_timed_have_the_length_of_an_average_step_and_no_row_is_left_out():
    lengths = np.random.default_rng(0).lognormal(3, 0.7, size=4_037).astype(int) + 2
    batches = LengthGroupedBatchSampler(lengths, 8, accumulation_steps=2)
    order = typical_first(batches)
    assert sorted(order) == list(range(len(lengths)))
    steps = [lengths[order[at : at + 16]].max() for at in range(0, 16 * (PROBED_STEPS + 1), 16)]
    assert steps[0] == lengths.max()
    everything = np.mean([lengths[step].max() for step in batches.steps()])
    assert np.mean(steps[1:]) == pytest.approx(everything, rel=0.04)
    for few in (3, 16, 40):
        assert sorted(typical_first(LengthGroupedBatchSampler(lengths[:few], 16))) == list(range(few))


@pytest.mark.parametrize(
    "asked",
    [{}, {"save_strategy": "epoch", "eval_strategy": "epoch"}, {"save_strategy": "steps", "save_steps": 5},
     {"save_strategy": "steps", "save_steps": 0.25, "eval_strategy": "steps", "eval_steps": 0.5}],
    ids=["never", "epochs", "steps", "shares"],
)  # fmt: skip
def test_checkpoints_and_evaluations_are_counted_as_a_training_has_them(asked, rows, tokenizer, tmp_path):
    counted = {"save": 0, "evaluate": 0}

    class Counting(TrainerCallback):
        def on_save(self, *given, **options):
            counted["save"] += 1

        def on_evaluate(self, *given, **options):
            counted["evaluate"] += 1

    args = DistillationConfig(str(tmp_path), num_train_epochs=2, **QUICK | {"save_strategy": "no"} | asked)
    job = prepare_teacher(args, tiny_bert(), rows["train"], rows["validation"], tokenizer=tokenizer)
    trainer = supervised_trainer(job.make_untrained_student(1), args, job.data, tokenizer, job.stages[0].objectives)
    trainer.add_callback(Counting())
    trainer.train()
    steps = trainer.state.global_step
    found = {
        "save": _times(args.save_strategy, args.save_steps, args, steps, at_the_end=True),
        "evaluate": _times(args.eval_strategy, args.eval_steps or args.logging_steps, args, steps),
    }
    assert found == counted


def test_a_plan_trains_the_embedding_rows_of_all_text_and_measures_all_held_out_rows(
    rows, tokenizer, tmp_path, caplog
):
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    shared = {"tokenizer": tokenizer, "train": rows}
    args = DistillationConfig(str(tmp_path / "out"), **QUICK)
    plan = plan_distillation(
        args, teacher=tiny_bert(layers=4, **names), student="layers:2", teacher_tokenizer=tokenizer,
        objectives="hinton", baseline=True, backbone=None, trainings=2, **shared,
    )  # fmt: skip
    assert (plan.rows, plan.steps, plan.baselines, plan.trainings) == (24, [18], 1, 2)
    assert plan.step_ms[0] > 0 and plan.baseline_step_ms > 0 and plan.measuring_s > 0
    of_teacher = plan_teacher(replace(args, eval_strategy="epoch"), model=tiny_bert(**names), **shared)
    assert of_teacher.baselines == 0 and of_teacher.baseline_step_ms is None and of_teacher.measuring_s > 0
    unmeasured = plan_teacher(args, model=tiny_bert(**names), **shared | {"train": rows["train"]})
    assert unmeasured.measuring_s == 0
    # Nothing of the probes is told, and nothing of them stays.
    assert not [line for line in caplog.records if re.match("Training with", line.getMessage())]
    assert not (tmp_path / "out").exists()


def test_a_plan_says_the_size_of_an_onnx_file_and_of_weights_in_float32(rows, tokenizer, tmp_path):
    model = tiny_bert()
    export_onnx(model, tokenizer, tmp_path / "teacher")
    model.save_pretrained(tmp_path / "teacher")
    export_int8(tmp_path / "teacher")
    file = tmp_path / "teacher/onnx/model_int8.onnx"
    args = DistillationConfig(output_dir=tmp_path / "out", **QUICK, num_train_epochs=3)
    plan = plan_distillation(args, teacher=file, student="layers:1", train=rows)
    (_, _, teacher_mb), (_, parameters, student_mb) = plan.models
    assert teacher_mb == file.stat().st_size / 1e6 and student_mb == pytest.approx(4e-6 * parameters)
    to_half(model)[0].save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    (_, _, teacher_mb), _ = plan_distillation(
        args, teacher=[file, tmp_path / "half"], student="layers:1", train=rows
    ).models
    files = (file, tmp_path / "half/model.safetensors")
    assert teacher_mb == pytest.approx(sum(each.stat().st_size for each in files) / 1e6)


def test_a_plan_of_no_training_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="trainings .* must be at least 1, got 0"):
        plan_distillation(DistillationConfig(str(tmp_path), **QUICK), teacher=tiny_bert(), train=rows, trainings=0)


def test_a_checkpoint_that_is_not_there_is_refused_before_anything_is_timed(rows, tokenizer, tmp_path):
    args = DistillationConfig(str(tmp_path), **QUICK | {"resume_from_checkpoint": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="nowhere is no whole checkpoint: nothing is there"):
        plan_teacher(args, model=tiny_bert(), train=rows, tokenizer=tokenizer)


def test_a_plan_refuses_another_run_s_checkpoint_and_counts_what_is_done_as_the_run_does(rows, tokenizer, tmp_path):
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    out = tmp_path / "out"
    settings = QUICK | {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2}
    given = {"teacher": tiny_bert(layers=2, **names), "student": "layers:1", "train": rows, "objectives": "hinton"}
    given |= {"tokenizer": tokenizer, "teacher_tokenizer": tokenizer}

    def planned(**changed) -> Plan:
        args = DistillationConfig(str(out), **settings | {"resume_from_checkpoint": "True"} | changed)
        return plan_distillation(args, learning_rate_is_given="learning_rate" in changed, **given)

    assert planned().done == [0] and not out.exists()
    distill(**given, output_dir=out, **settings)
    finished = planned()
    assert (finished.steps, finished.done) == ([6], [6]) and finished.training_minutes == 0
    for function in (
        planned,
        lambda **changed: distill(**given, **settings | {"resume_from_checkpoint": "True"} | changed, output_dir=out),
    ):
        with pytest.raises(ValueError, match="is of another run; what differs: learning_rate"):
            function(learning_rate=0.5)
    # It was cut short behind its second step.
    (out / "trainer_state.json").unlink()
    for number in (4, 6):
        shutil.rmtree(out / f"checkpoint-{number}")
    assert planned().done == [2]


@pytest.mark.parametrize("place", ["file", "file/x"])
def test_a_file_where_the_output_would_be_is_refused_by_a_plan(place, rows, tokenizer, tmp_path):
    (tmp_path / "file").touch()
    args = DistillationConfig(str(tmp_path / place), **QUICK)
    for plan, given in ((plan_teacher, {"model": tiny_bert()}), (plan_distillation, {"teacher": tiny_bert()})):
        with pytest.raises(ValueError, match="can't be a folder, since a file is there"):
            plan(args, **given, train=rows, tokenizer=tokenizer)
