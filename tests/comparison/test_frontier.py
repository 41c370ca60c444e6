"""A real frontier of tiny students: one fails, a killed run goes on, and what is shipped is what is compared."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from io import StringIO

import pytest
from datasets import DatasetDict
from processes import Program
from safetensors.torch import load_file, save_file
from samples import raw_rows, tiny_bert
from typer.testing import CliRunner

import nlpkd
from nlpkd import EvaluationReport
from nlpkd.cli import app
from nlpkd.comparison.frontier import REFERENCE, plan_frontier
from nlpkd.comparison.points import Limits, pick
from nlpkd.comparison.table import FrontierReport
from nlpkd.evaluation.records import Interval, SeedSpread
from nlpkd.models.loading import load_tokenizer
from nlpkd.pipeline.dry_run import Plan

QUICK = {
    "bf16": False, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8, "logging_steps": 2,
    "max_steps": 8, "save_steps": 2, "use_cpu": True, "rehearsal": False, "teacher_check": "off",
    "bootstrap_samples": 50, "latency_runs": 5,
}  # fmt: skip
# It dies at the second checkpoint of the second student.
KILLED = """
import json, os, signal, sys
def die(event, given):
    if event == "os.rename" and "layers-1/checkpoint-4" in str(given[1]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
from nlpkd import frontier
frontier(**json.loads(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory, tokenizer) -> dict:
    """A teacher and rows, in files."""
    folder = tmp_path_factory.mktemp("job")
    tiny_bert(layers=1, initializer_range=0.5).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    rows = {"train": raw_rows(48, seed=1), "validation": raw_rows(20, seed=2)}
    for split, each in rows.items():
        each.to_parquet(folder / f"{split}.parquet")
    return {"teacher": str(folder / "teacher"), **{split: str(folder / f"{split}.parquet") for split in rows}, **QUICK}


OWN = {"static": {"learning_rate": 0.02, "vocabulary": "whole"}}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, job) -> FrontierReport:
    """Students that are shipped, one of which can't be made."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    return nlpkd.frontier(
        **job, students=["teacher", "layers:9", "static"], ship=True, min_retention=0.01,
        overrides=OWN,
        output_dir=tmp_path_factory.mktemp("shipped"),
    )  # fmt: skip


def test_a_plan_has_what_is_left_to_train_and_leaves_nothing(job, tmp_path):
    out = tmp_path / "planned"
    asked = {"students": ["teacher", "layers:9", "layers:1", "static"], "num_seeds": 2, "output_dir": out}
    plan = plan_frontier(**job, **asked)
    assert list(plan.students) == ["layers:9", "layers:1", "static"] and "9" in plan.students["layers:9"]
    layers = plan.students["layers:1"]
    assert layers.models[-1][1] == sum(weight.numel() for weight in tiny_bert(layers=1).parameters())
    assert (layers.steps, layers.trainings) == ([8], 2) and layers.training_minutes > 0
    both = [each.training_minutes + each.measuring_minutes for each in (layers, plan.students["static"])]
    assert plan.minutes == pytest.approx(sum(both)) and "layers:9 can't be made" in plan.to_text()
    assert list(plan_frontier(**job, **asked, only=["static"]).students) == ["static"]
    assert not out.exists()
    with pytest.raises(ValueError, match="frontier takes no student"):
        plan_frontier(**job, **asked, student="layers:1")


def test_a_plan_passes_over_students_and_seeds_that_are_finished(job, shipped, tmp_path):
    asked = {"students": ["teacher", "layers:9", "static"], "overrides": OWN}
    with pytest.raises(ValueError, match="no student can be made: layers:9"):
        plan_frontier(**job, **asked, ship=True, output_dir=shipped.output_dir)
    asked["students"].remove("layers:9")
    plan = plan_frontier(**job, **asked, ship=True, output_dir=shipped.output_dir)
    assert not plan.students and plan.to_text() == "There is no student to train."
    # What `frontier` has as defaults is left out here as there.
    asked = {"students": ["static"], "output_dir": tmp_path}
    nlpkd.frontier(**job, **asked)
    assert plan_frontier(**job, **asked, num_seeds=3).students["static"].trainings == 2


def test_a_plan_names_students_that_can_not_be_had_and_goes_on(job, tmp_path):
    plan = plan_frontier(**job, students=[str(tmp_path / "none"), "static"], output_dir=tmp_path, baseline_dir="b")
    assert isinstance(plan.students["static"], Plan) and "there is no folder" in plan.students[str(tmp_path / "none")]


@pytest.mark.parametrize("given", [{"epochs": 3}, {"overrides": {"static": {"epochs": 3}}}])
@pytest.mark.parametrize("function", [nlpkd.frontier, plan_frontier])
def test_a_setting_that_nobody_knows_is_refused_before_any_student_is_made(function, given, job, tmp_path):
    with pytest.raises(ValueError, match="'epochs' is neither an argument .* did you mean num_train_epochs"):
        function(**job, students=["static"], output_dir=tmp_path, **given)
    assert not (tmp_path / "students").exists()


@pytest.mark.parametrize(
    "wrong", [{"teacher": "nope/here/not"}, {"train": "nope.csv"}, {"validation": None}, {"text_column": "nope"}]
)
@pytest.mark.parametrize("function", [nlpkd.frontier, plan_frontier])
def test_what_all_students_need_is_refused_once_before_the_first_one(function, wrong, job, tmp_path, caplog):
    with pytest.raises(ValueError) as refused:
        function(**job | wrong, students=["layers:1", "static"], output_dir=tmp_path / "out")
    assert "layers:1" not in str(refused.value) and "layers:1" not in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_student_s_failure_is_one_line_of_the_log(job, tmp_path, caplog):
    with pytest.raises(ValueError, match="no student was made"):
        nlpkd.frontier(**job, students=["layers:9"], output_dir=tmp_path / "out")
    (told,) = [each for each in caplog.records if "failed, and the others go on" in each.getMessage()]
    assert told.exc_info is None and "ValueError" in told.getMessage() and "9 layers" in told.getMessage()


@pytest.mark.parametrize("function", [nlpkd.frontier, plan_frontier])
def test_a_file_where_a_frontier_would_be_is_refused_by_the_plan_too(function, job, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="out can't be a folder, since a file is there"):
        function(**job, students=["static"], output_dir=tmp_path / "out")


def test_the_command_prints_the_plan(job, tmp_path):
    files = [word for name in ("teacher", "train", "validation") for word in (f"--{name}", job[name])]
    flags = ["--students", "layers:1,static", "--output-dir", str(tmp_path / "out"), "--max-steps", "8"]
    flags += ["--max-length", "64", "--dry-run"]
    outcome = CliRunner().invoke(app, ["frontier", *files, *flags, "--use-cpu", "--bf16", "False"])
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.stdout.splitlines()
    assert (
        any(line.split()[:3] == ["student", "params", "MB"] for line in lines) and "All of it takes" in outcome.stdout
    )
    assert [line.split()[0] for line in lines if line.startswith(("layers:1", "static"))] == ["layers:1", "static"]
    assert not (tmp_path / "out").exists()


def test_a_student_that_fails_is_named_and_the_others_are_compared(shipped):
    assert [point.name for point in shipped.points] == [REFERENCE, "teacher", "static"]
    assert list(shipped.failed) == ["layers:9"] and "ValueError" in shipped.failed["layers:9"]
    text = shipped.to_markdown()
    assert "Failed: layers:9" in text and all(f"| {point.name} |" in text for point in shipped.points)
    assert all(point.text_to_label_ms >= 0.5 * point.pass_ms > 0 for point in shipped.points)


def test_what_is_compared_is_the_file_that_is_deployed(shipped, job):
    whole = load_tokenizer(job["teacher"])
    for point in shipped.points[1:]:
        folder = shipped.output_dir / "students" / point.name
        file = shipped.output_dir / point.file
        assert file == folder / "onnx/model_int8.onnx" and point.size_mb == file.stat().st_size / 1e6
        candidates = EvaluationReport.load(folder).candidates
        assert point.quality == candidates["onnx/model_int8.onnx"].quality["accuracy"]
        assert candidates["onnx/model_int8.onnx"].runtime == "onnxruntime" and "student" in candidates
        # The vocabulary is trimmed, but that of the student that was asked to keep all of it.
        assert (len(load_tokenizer(folder)) == len(whole)) == (point.name == "static")
        assert nlpkd.load(folder).model.path == file
    assert shipped.points[0].size_mb == EvaluationReport.load(folder).candidates["teacher"].size_mb
    assert EvaluationReport.load(folder).run.settings["learning_rate"] == 0.02


def test_the_shipped_teacher_is_the_teacher_with_fewer_tokens(shipped):
    folder = shipped.output_dir / "students/teacher"
    report = EvaluationReport.load(folder)
    assert not (folder / "README.md").exists()
    assert report.candidates["student"].size_mb < report.candidates["teacher"].size_mb
    assert report.candidates["student"].agreement.value > 0.8


def test_the_budget_picks_and_the_record_is_read_back(shipped):
    assert shipped.picked == pick(shipped.points, Limits(min_retention=0.01))
    assert FrontierReport.load(shipped.output_dir) == shipped
    entry = json.loads((shipped.output_dir / "frontier.json").read_text())
    assert entry["picked"] == shipped.picked.name and entry["front"] == shipped.front
    assert (shipped.output_dir / "frontier.md").read_text() == shipped.to_markdown()


def test_another_budget_trains_nothing_again(shipped, job):
    weights = shipped.output_dir / "students/static/model.safetensors"
    before = weights.stat().st_mtime_ns
    # A record with an argument that says nothing is of the same student.
    record = shipped.output_dir / "students/static/job.json"
    state = json.loads(record.read_text())
    record.write_text(json.dumps(state | {"asked": state["asked"] | {"some_argument": None}}))
    again = nlpkd.frontier(
        **job, students=["static"], ship=True, max_size_mb=1e-9, output_dir=shipped.output_dir,
        overrides=OWN,
    )  # fmt: skip
    assert again.picked is None and "Nothing is within max_size_mb=1e-09" in again.verdict()
    assert [point.quality for point in again.points] == [shipped.points[0].quality, shipped.points[2].quality]
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"static is finished, and was made otherwise: learning_rate \(0.02 "):
        nlpkd.frontier(**job, students=["static"], ship=True, output_dir=shipped.output_dir)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, job) -> tuple[FrontierReport, str, int]:
    """A run that was killed and then run again; what it said; when its first student was written before."""
    folder = tmp_path_factory.mktemp("killed")
    given = job | {"students": ["static", "layers:1"], "output_dir": str(folder / "out")}
    log = folder / "log"
    assert Program(["-c", KILLED, json.dumps(given)], folder, log, log).wait() == -9, log.read_text()
    assert not (folder / "out/frontier.json").exists()
    written = (folder / "out/students/static/model.safetensors").stat().st_mtime_ns
    said = StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("nlpkd").addHandler(handler)
    try:
        return nlpkd.frontier(**given), said.getvalue(), written
    finally:
        logging.getLogger("nlpkd").removeHandler(handler)


def test_a_killed_run_goes_on_between_students_and_within(resumed):
    report, said, written = resumed
    assert (report.output_dir / "students/static/model.safetensors").stat().st_mtime_ns == written
    assert "Resuming from" in said and "layers-1/checkpoint-2" in said
    assert [point.name for point in report.points] == [REFERENCE, "static", "layers:1"] and not report.failed
    assert [point.file for point in report.points[1:]] == ["students/static", "students/layers-1"]


def test_the_teacher_s_outputs_are_kept_once_for_all(resumed):
    report, _, _ = resumed
    caches = sorted(path.relative_to(report.output_dir) for path in report.output_dir.rglob("teacher_cache"))
    assert [str(path) for path in caches] == ["teacher_cache"]
    assert list((report.output_dir / "teacher_cache").iterdir())


def test_a_student_with_rows_of_its_own_keeps_the_teacher_s_outputs_on_them(job, tmp_path, caplog):
    nlpkd.frontier(
        **job | {"max_steps": -1}, students=["static", "bilstm"], num_train_epochs=2, output_dir=tmp_path,
        overrides={"static": {"augment": "ngrams"}, "bilstm": {"learning_rate": 1e-3}},
    )  # fmt: skip
    assert "can't be kept" not in caplog.text and "run on every batch" not in caplog.text
    caches = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("teacher_cache"))
    assert caches == ["students/static/teacher_cache", "teacher_cache"]


def test_of_a_single_epoch_too_the_teacher_s_outputs_are_kept_for_the_next_student(job, tmp_path, caplog):
    report = nlpkd.frontier(
        **job | {"max_steps": -1}, students=["layers:1", "static"], num_train_epochs=1, objectives="soft_targets",
        output_dir=tmp_path,
    )  # fmt: skip
    assert not report.failed and caplog.text.count("the teacher's outputs kept with the rows") == 2
    caches = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("teacher_cache"))
    assert caches == ["teacher_cache"] and len(list((tmp_path / "teacher_cache").glob("*.arrow"))) == 1


def test_students_of_the_best_preset_learn_from_the_text_that_suits_each(job, tmp_path, caplog):
    report = nlpkd.frontier(
        **job | {"max_steps": -1}, students=["layers:1", "bilstm"], num_train_epochs=1, objectives="best",
        output_dir=tmp_path,
    )  # fmt: skip
    assert not report.failed and caplog.text.count("the teacher's outputs kept with the rows") == 2
    made = {}
    for name in ("layers-1", "bilstm"):
        own = EvaluationReport.load(tmp_path / "students" / name).run
        assert own.settings["augment_copies"] == 10 and own.data.train_rows > 48
        made[name] = own.settings["augment"]
    assert made == {"layers-1": "constituents", "bilstm": "ngrams"}
    assert {path.name for path in tmp_path.glob("teacher_cache*")} == {f"teacher_cache-{way}" for way in made.values()}


def test_further_seeds_are_averaged_and_the_first_one_is_deployed(resumed, job):
    before, _, _ = resumed
    assert len(before.points[1].seeds) == 1
    report = nlpkd.frontier(**job, students=["static"], num_seeds=2, output_dir=before.output_dir)
    own = EvaluationReport.load(report.output_dir / "students/static")
    point, spread = report.points[1], own.seeds["student"]["accuracy"]
    assert point.seeds == spread.values and len(spread.values) == 2
    first = own.candidates["student"].quality["accuracy"]
    assert point.quality.value == pytest.approx(spread.mean)
    assert point.quality.high - point.quality.value == pytest.approx(first.high - first.value)
    assert "sd over seeds" in report.to_markdown()
    # A first seed below the mean, close to the best that there is.
    student = replace(own.candidates["student"], quality={"accuracy": Interval(0.9, 0.84, 0.98)})
    seeds = {"student": {"accuracy": SeedSpread([0.9, 1.0], 0.95, 0.07)}}
    replace(own, candidates=own.candidates | {"student": student}, seeds=seeds).save(
        report.output_dir / "students/static"
    )
    again = nlpkd.frontier(**job, students=["static"], num_seeds=2, output_dir=before.output_dir)
    assert again.points[1].quality == Interval(0.95, pytest.approx(0.89), 1.0)


def test_a_finished_student_whose_weights_or_report_are_lost_is_made_again(job, tmp_path):
    asked = job | {"students": ["static"], "output_dir": tmp_path}
    before = nlpkd.frontier(**asked)
    folder = tmp_path / "students/static"
    weights = (folder / "model.safetensors").read_bytes()

    def replace_weights():
        state = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    for lose in (replace_weights, (folder / "report.json").unlink):
        lose()
        again = nlpkd.frontier(**asked)
        assert [point.quality for point in again.points] == [point.quality for point in before.points]
        assert (folder / "model.safetensors").read_bytes() == weights and (folder / "report.json").is_file()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"students": "static"}, "students must be a list"),
        ({"students": []}, "students must be a list"),
        ({"students": [3]}, "students must be a list"),
        (
            {"students": ["static"], "teacher": tiny_bert()},
            "the teacher is named by a path.*BertForSequenceClassification",
        ),
        (
            {"students": ["static"], "teacher": "a/onnx/model.onnx"},
            "compares with the teacher in PyTorch.* its folder",
        ),
        ({"students": ["static"], "window_stride": 4}, "takes no window_stride"),
        ({"students": ["static"], "only": ["bilstm"]}, r"only names \['bilstm'\]"),
        ({"students": ["layers:1"], "only": "layers:1"}, "only must be a list of students.*got 'layers:1'"),
        ({"students": ["static"], "overrides": {"bilstm": {}}}, r"overrides names \['bilstm'\]"),
        ({"students": ["static"], "overrides": {"static": 3}}, "must be settings by name, found 3"),
        ({"students": ["layers:1", "layers-1"]}, "one folder"),
        ({"students": ["static"], "max_latency_ms": 0}, "max_latency_ms must be above 0"),
        ({"students": ["static"], "push_to_hub": True}, "takes no push_to_hub.*nlpkd push"),
        ({"students": ["layers:9"]}, "no student was made: layers:9: ValueError"),
    ],
)
def test_what_can_not_work_is_refused(wrong, message, tmp_path, job):
    with pytest.raises(ValueError, match=message):
        nlpkd.frontier(**job | wrong, output_dir=tmp_path)
    assert not (tmp_path / "frontier.json").exists()


@pytest.mark.parametrize(
    "name",
    ["teacher", "validation", "test", "validation_split", "dataset_config", "text_column", "label_column", "ship"]
    + ["label_names", "problem_type", "trust_remote_code", "num_seeds", "output_dir"],
)
@pytest.mark.parametrize("function", [nlpkd.frontier, plan_frontier])
def test_a_student_has_no_rows_to_be_measured_on_and_no_teacher_of_its_own(function, name, job, tmp_path):
    with pytest.raises(ValueError, match=f"overrides of 'static' have {name}, and all students are measured on the"):
        function(**job, students=["static"], overrides={"static": {name: job["train"]}}, output_dir=tmp_path)


@pytest.mark.parametrize("name", ["window_stride", "student", "resume_from_checkpoint", "push_to_hub", "args"])
def test_a_single_student_takes_no_setting_that_a_frontier_does_not_take(name, job, tmp_path):
    with pytest.raises(ValueError, match=f"frontier takes no {name}: "):
        nlpkd.frontier(**job, students=["static"], overrides={"static": {name: 4}}, output_dir=tmp_path)


def test_what_held_out_rows_are_drawn_from_is_the_same_for_all(job, tmp_path):
    drawn = job | {"validation": None, "validation_split": 0.2}
    with pytest.raises(ValueError, match="overrides of 'static' have train, "):
        nlpkd.frontier(**drawn, students=["static"], overrides={"static": {"train": 7}}, output_dir=tmp_path)


@pytest.mark.parametrize("function", [nlpkd.frontier, plan_frontier])
def test_no_seeds_are_refused(function, job, tmp_path):
    with pytest.raises(ValueError, match="num_seeds must be a whole number of at least 1, got num_seeds=0"):
        function(**job, students=["static"], num_seeds=0, output_dir=tmp_path)


def test_students_that_were_measured_on_different_rows_are_not_compared(job, tmp_path):
    more = DatasetDict({"train": raw_rows(48, seed=1), "test": raw_rows(9, seed=3)})
    more.save_to_disk(tmp_path / "more")
    with pytest.raises(
        ValueError, match=r"different rows \(static on 20 of validation, SHA-256 .*, bilstm on 9 of test, SHA-256"
    ):
        nlpkd.frontier(
            **job, students=["static", "bilstm"], output_dir=tmp_path / "out",
            overrides={"bilstm": {"train": DatasetDict.load_from_disk(tmp_path / "more")}},
        )  # fmt: skip
