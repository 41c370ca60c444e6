"""What a run shows: a table that fits the terminal, plain text elsewhere, commands that a shell takes as they are."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import shlex
import struct
import subprocess
import termios
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import typer
from huggingface_hub.utils import validate_repo_id
from hypothesis import strategies as st

from nlpkd.cli import app
from nlpkd.cli.screen import (
    after_distilling,
    hide_bars_of_weights,
    reading,
    repository_of,
    show_files,
    show_frontier,
    show_item,
    show_phases,
    show_report,
    show_table,
    show_verification,
)
from nlpkd.comparison.points import Limits, Point
from nlpkd.comparison.table import FrontierReport
from nlpkd.compression.onnx import OnnxRecord
from nlpkd.data.arguments import DataArguments
from nlpkd.evaluation.origin import TaskRecord
from nlpkd.evaluation.records import Candidate, Comparison, Interval, Latency, SeedSpread, TemperatureScaling
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.sending import Target
from nlpkd.pipeline.compress import CompressResult
from nlpkd.pipeline.export import ExportResult
from nlpkd.pipeline.train_teacher import TeacherResult
from nlpkd.pipeline.tune import TuningResult
from nlpkd.pipeline.verify import Claim, Verification
from nlpkd.serving.cascade import CascadeRecord
from nlpkd.utils.progress import duration, phase
from nlpkd.utils.provenance import as_options

LATENCIES = [Latency(batch, tokens, 2, 1234.567, 2345.678, 3456.789) for batch in (1, 32) for tokens in (16, 128)]


def candidate(accuracy: float, parameters: int = 110_000_000) -> Candidate:
    quality = {"accuracy": Interval(accuracy, accuracy - 0.02, accuracy + 0.02), "f1_macro": Interval(0.123, 0.1, 0.2)}
    agreement = Interval(0.925, 0.9, 0.95)
    return Candidate(quality, agreement, parameters, 4e-6 * parameters, LATENCIES[:1], training_seconds=12345.6)


@pytest.fixture
def report() -> EvaluationReport:
    gained = Comparison({"accuracy": Interval(0.019, 0.005, 0.033)}, mcnemar_p=0.0073)
    names = {"teacher": 0.841, "student": 0.834, "no_teacher": 0.815, "same_start": 0.827}
    return EvaluationReport(
        task=TaskRecord(problem_type="single_label_classification", labels=["neg", "pos"], rows=872),
        run=EvaluationReport.from_dict(EMPTY).run,
        candidates={name: candidate(accuracy) for name, accuracy in names.items()},
        comparisons={"student_vs_no_teacher": gained, "student_vs_same_start": gained},
    )


EMPTY = {"schema": 1, "task": {}, "run": {"incomplete": True}, "comparisons": {},
         "candidates": {"student": {"quality": {}, "agreement": None, "parameters": 1, "size_mb": 1.0}}}  # fmt: skip


def on_a_terminal(show, columns: int) -> str:
    """What a function shows on a real terminal of so many columns."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.environ.pop("COLUMNS", None)
        try:
            with open(1, "w", closefd=False) as stream, pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.stdout", stream)
                show()
        finally:
            os._exit(0)
    said = b""
    try:
        while part := os.read(terminal, 65536):
            said += part
    except OSError:  # Linux ends a terminal with EIO.
        pass
    os.close(terminal)
    os.waitpid(child, 0)
    return said.decode().replace("\r\n", "\n")


def without_styles(text: str) -> str:
    for style in ("\x1b[1m", "\x1b[2m", "\x1b[0m"):
        text = text.replace(style, "")
    assert "\x1b" not in text
    return text


def test_a_report_fits_a_terminal_of_80_columns_and_has_every_figure_whole(report):
    lines = without_styles(on_a_terminal(lambda: show_report(report), 80)).splitlines()
    assert max(map(len, lines)) <= 80
    cells = [line.split() for line in lines]
    assert ["student", "0.834", "[0.814,", "0.854]", "0.925", "110.0", "M", "440.0", "1234.57", "12346"] in cells
    assert ["same_start", "0.827", "[0.807,", "0.847]", "0.925", "110.0", "M", "440.0", "1234.57", "12346"] in cells
    assert not any("0.123" in line or "#" in line or "|" in line for line in lines), "the rest is in report.md"
    told = " ".join("\n".join(lines).split())
    assert told.count("The student keeps") == 1 and "McNemar p = 0.0073)." in told


def test_a_frontier_fits_a_terminal_of_80_columns_and_ends_with_what_is_picked(tmp_path):
    kept = Interval(0.843, 0.823, 0.862)
    teacher = Point("teacher in PyTorch", kept, 116.339, 13.2, 1090.9, 1.0, [0.843], "t")
    student = Point("tinybert-4l-312", kept, 0.301, 0.1, 10.4, 0.987, [0.84, 0.85], "students/s/onnx/model_int8.onnx")
    report = FrontierReport("accuracy", 20, [teacher, student], limits=Limits(min_retention=0.9))
    lines = without_styles(on_a_terminal(lambda: show_frontier(report), 80)).splitlines()
    assert max(map(len, lines)) <= 80
    cells = [line.split() for line in lines]
    assert ["tinybert-4l-312", "0.843", "[0.823,", "0.862]", "98.7", "%", "0.30", "10.4", "386.5", "picked"] in cells
    told = " ".join("\n".join(lines).split())
    assert "Within min_retention=0.9: tinybert-4l-312, with 98.7 % of the teacher's accuracy in 0.30 ms" in told
    assert not any("#" in line or "|" in line or "0.10" in line for line in lines), "the rest is in frontier.md"
    unknown = replace(report, metric="agreement")
    assert max(map(len, without_styles(on_a_terminal(lambda: show_frontier(unknown), 80)).splitlines())) <= 80


def test_a_verification_fits_a_terminal_and_is_markdown_elsewhere(capsys):
    why = "both intervals of 1,411 rows, to a quarter of a point: a reason of more words than a line has"
    claims = [Claim("accuracy", "0.834 [0.816, 0.853]", "0.834 [0.816, 0.853]", True, why)]
    verification = Verification("alice/student", claims)
    shown = without_styles(on_a_terminal(lambda: show_verification(verification), 80))
    assert max(map(len, shown.splitlines())) <= 80 and "All 1 judged claims hold." in shown and "|" not in shown
    show_verification(verification)
    assert capsys.readouterr().out == f"{verification.to_markdown()}\n"


def test_a_verification_leaves_out_what_is_not_judged_and_says_how_much(capsys):
    judged = [Claim("accuracy", "0.8", "0.7", False, "other rows"), Claim("parameters", "17", "17", True, "a count")]
    unjudged = [Claim(f"latency of {place}", "3.1", "4.2", None, "another machine") for place in range(3)]
    verification = Verification("alice/student", [*judged, *unjudged])
    told = "--unjudged shows the figures that are not judged, and why."
    for everything in (True, False):
        shown = without_styles(on_a_terminal(lambda: show_verification(verification, everything), 80))  # noqa: B023
        show_verification(verification, everything)
        for page in (" ".join(shown.split()), capsys.readouterr().out):
            assert "1 of 2 claims do not hold: accuracy." in page and "parameters" in page
            assert ("another machine" in page) is everything and (told in page) is not everything


RECORD = {"method": "factorize_embeddings", "parameters_before": 109_486_085, "parameters_after": 85_647_362,
          "size_mb_before": 437.96, "size_mb_after": 342.6,
          "agreement": 0.9876, "logits_difference": 0.1234}  # fmt: skip
FILES = [OnnxRecord("onnx/model.onnx", 437.9, "PyTorch", 128, 1.234e-06, 1.0, 1.0),
         OnnxRecord("onnx/model_int8.onnx", 110.4, "onnx/model.onnx", 128, 0.2345, 0.98, 0.99, 0.9876)]  # fmt: skip
TRIALS = [
    {"layers": 3, "learning_rate": 10**-k / 3, "forward_kl.temperature": 4.0, "value": 0.7 + k / 50} for k in range(9)
]
CURVE = [{"answered": 0.8123, "found": 0.98123, "low": 0.97, "threshold": 0.91234}]


@pytest.mark.parametrize(
    ("found", "row", "verdict"),
    [
        (CompressResult(None, None, [RECORD], Path()), "MB 438.0 342.6 78.2 %",
         "with the model before is 0.988, and a logit differs by 0.123 on average."),
        (ExportResult(Path(), FILES, None), "onnx/model_int8.onnx 110.4 onnx/model.onnx 128 0.23 0.980 0.988",
         "No gate ran: "),
        (TuningResult(TRIALS[8], "f1_macro", 0.86, [*TRIALS, TRIALS[0] | {"value": None}]),
         "macro F1 0.860 0.840 0.820 0.800", "Of 10 trials the best has macro F1 0.860 on the held-out rows;"),
        (TeacherResult(None, None, {"eval_accuracy": 0.8412, "eval_f1_macro": 0.75}, Path(), "f1_macro"),
         "0.841 0.750", "On the held-out rows the teacher's macro F1 is 0.750."),
        (TeacherResult(None, None, {}, Path()), "", "The teacher was not measured, since there are no held-out rows."),
        (TeacherResult(None, None, {"eval_loss": 0.5}, Path()), "", "only the teacher's loss was measured: 0.500."),
        (TeacherResult(None, None, {"eval_runtime": 1.0}, Path()), "", "since the held-out rows have no gold labels."),
        (CascadeRecord(0.9, 1.0, "agreement", 0.98, 0.95, 0.985, 0.981, 0.8, 872, "t", 1.2, 9.3, CURVE, {}),
         "81.2 % 98.12 % 97.00 % 0.9123", "The student answers 80.0 % of 872 texts itself,"),
    ],
    ids=["compress", "export", "tune", "train-teacher", "train-teacher-unmeasured", "train-teacher-loss",
         "train-teacher-unlabelled", "cascade"],
)  # fmt: skip
def test_what_a_command_found_fits_a_terminal_of_80_columns_and_ends_with_its_verdict(found, row, verdict):
    shown = without_styles(on_a_terminal(lambda: show_table(*found.cells(), found.verdict()), 80))
    assert max(map(len, shown.splitlines())) <= 80 and "{" not in shown and "|" not in shown
    assert row.split() in [line.split() for line in shown.splitlines()]
    assert verdict in " ".join(shown.split())


def test_a_narrow_terminal_and_a_long_name_lose_no_letter(report):
    name = "a-very-long-name-of-a-candidate/onnx/model_int8.onnx"
    many = replace(report, candidates=report.candidates | {name: candidate(0.5)})
    for columns in (80, 40):
        shown = without_styles(on_a_terminal(lambda: show_report(many), columns))
        assert max(map(len, shown.splitlines())) <= columns
        first = "".join(line[: line.find("  ")].strip() for line in shown.splitlines() if line[:1].strip())
        assert columns == 40 or name in first
        # It is the name that is folded, as long as there is room for the figures.
        assert columns == 40 or "0.500 [0.480, 0.520]  0.925  110.0 M  440.0  1234.57    12346" in shown


def test_what_is_asked_for_beyond_the_table_is_shown_too(report, capsys):
    timed = {name: replace(each, latency=LATENCIES, memory_mb=321.0) for name, each in report.candidates.items()}
    timed["student"] = replace(timed["student"], temperature_scaling=TemperatureScaling(1.5, 100, 0.05, 0.02))
    spreads = {
        "student": {"accuracy": SeedSpread([0.8, 0.9], 0.85, 0.0707), "gap_closed": SeedSpread([0.5], 0.5, None)}
    }
    show_report(replace(report, candidates=timed, seeds=spreads))
    said = capsys.readouterr().out
    assert "2345.68" in said and "3456.79" in said and "321" in said and "takes its ECE from 0.050 to 0.020" in said
    assert "student 0.850 ± 0.071 (n = 2), share of the gap closed 0.500 ± n/a (n = 1)." in said


def test_what_is_no_terminal_gets_plain_text_a_sentence_a_line(report, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    show_report(report)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    (verdict,) = [line for line in said.splitlines() if line.startswith("The student keeps")]
    assert verdict.endswith("is +1.9 points (95 % interval +0.5 to +3.3, McNemar p = 0.0073).")


def test_a_report_of_which_little_is_known_is_shown_too(capsys):
    show_report(EvaluationReport.from_dict(EMPTY))
    said = capsys.readouterr().out
    assert "The student was not measured." in said and "This report is incomplete" in said and "train s" not in said


def test_a_stranger_s_names_do_not_command_the_terminal(report, capsys):
    hostile = replace(report, candidates=report.candidates | {"a\x1b]0;x\x07[red]b": candidate(0.1)})
    show_report(hostile)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said and "[red]b" in said


@pytest.mark.parametrize(
    "name", ["my student", "it's", "$HOME;rm x", 'a"b', "ä ö", "-x.--y..git", "学生", "a" * 200, "plain_name-1.5"]
)
def test_the_next_commands_come_back_whole_from_a_shell(name, tmp_path, capsys):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "report.md").touch()
    # An earlier run left this one, perhaps of another student.
    (folder / "cascade.json").touch()
    os.utime(folder / "cascade.json", (1e9, 1e9))
    given = {"teacher": [f"{name}/teacher"], "validation": Path(f"{name}.csv"), "label_column": ["a b", "c"],
             "max_length": 64, "text_column": None, "trust_remote_code": True}  # fmt: skip
    show_files("The student is", folder, *after_distilling(folder, given))
    said = capsys.readouterr().out
    assert f"The student is in {folder}, with report.md (the whole report).\n" in said
    commands = said.partition("Next:\n")[2].splitlines()
    rows = ["--data", f"{name}.csv", "--label-column", "a b", "--label-column", "c", "--max-length", "64",
            "--trust-remote-code"]  # fmt: skip
    wanted = [
        ["try", str(folder), "--teacher", f"{name}/teacher", *rows],
        ["export", str(folder), "--int8", *rows],
        ["push", str(folder), "--repo-id", repository_of(folder)],
    ]
    assert Target(repository_of(folder)).repo_id == repository_of(folder)
    assert repository_of(folder).isascii() and (name != "plain_name-1.5" or repository_of(folder) == f"USER/{name}")
    for command, words in zip(commands, wanted, strict=True):
        found = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True, text=True)
        assert found.stdout.split("\0")[:-1][-len(words) :] == words == shlex.split(command)[-len(words) :]


@hypothesis.given(
    name=st.text("aZ1_-. ä学/") | st.lists(st.sampled_from([".git", "-", ".", "_", "run", " "])).map("".join)
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_the_hub_takes_the_repository_that_any_folder_is_offered(name):
    validate_repo_id(repository_of(name))


def test_a_text_beside_a_name_is_folded_under_itself_on_a_terminal_alone(capsys):
    text = " ".join(["https://huggingface.co can't be reached: check network, proxy and HF_ENDPOINT"] * 2)
    shown = on_a_terminal(lambda: show_item("--  Hub  ", text), 80).splitlines()
    assert len(shown) == 3 and max(map(len, shown)) <= 80
    assert (
        all(line.startswith(" " * 9) for line in shown[1:]) and " ".join(" ".join(shown).split()) == f"-- Hub {text}"
    )
    show_item("--  Hub  ", text)
    assert capsys.readouterr().out == f"--  Hub  {text}\n"


def test_where_the_files_are_is_wrapped_on_a_terminal_and_commands_are_not(tmp_path):
    for name in ("report.md", "report.html", "README.md"):
        (tmp_path / name).touch()
    long = ["distill", *(f"--option-{number}" for number in range(20))]
    lines = on_a_terminal(lambda: (os.chdir(tmp_path), show_files("The student is", "student-of-mine/..", long)), 80)
    told, _, commands = lines.partition("Next:")
    assert max(map(len, told.splitlines())) <= 80 and "--option-19\n" in commands


def test_held_out_rows_are_named_only_where_a_command_line_can(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").touch()
    unlabelled = {"train": "train.csv", "validation_split": 0.1, "soft_label_column": "votes"}
    for given in ({"train": "train.csv"}, unlabelled, {"validation": object()}):
        assert after_distilling("s", given)[1] == ["export", "s", "--int8"]
        assert [words[0] for words in after_distilling("s", given | {"ship": True})] == ["try", "push"]
        assert [words[0] for words in after_distilling("s", given | {"push_to_hub": True})] == ["try", "export"]
    for train in ("a/b", "train.csv"):
        drawn = ["--data", train, "--validation-split", 0.1]
        for command in after_distilling("s", {"train": train, "validation_split": 0.1})[:2]:
            assert command[-4:] == drawn
    hub = {"train": "nyu-mll/glue", "dataset_config": "sst2", "teacher": object()}
    assert after_distilling("s", hub)[0] == ["try", "s", "--data", "nyu-mll/glue", "--dataset-config", "sst2"]
    assert as_options({"a_b": 0, "c": True, "d": False, "e": ()}, "a_b", "c", "d", "e") == ["--a-b", 0, "--c"]


READ_AS: dict[str, Any] = {
    "text_column": "t", "text_pair_column": "u", "label_column": ["a", "b"], "soft_label_column": "s",
    "problem_type": "regression", "label_names": ["x", "y"], "max_length": 8, "window_stride": 2, "streaming": True,
    "validation_split": 0.2, "dataset_config": "c", "dataset_revision": "r",
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(DataArguments)])
def test_the_next_commands_read_rows_as_the_one_before_wherever_they_have_the_option(name):
    own = {"label_names", "problem_type", "soft_label_column", "streaming"}
    for rows in ({"validation": "dev.csv"}, {"test": "user/test", "train": "user/rows"}, {"data": "user/rows"}):
        of_others = "data" not in rows and name.startswith(("dataset_", "validation_"))
        for command, *words in after_distilling("s", {**rows, name: READ_AS[name]}):
            known = {each.name for each in typer.main.get_command(app).commands[command].params}
            repeated = as_options(READ_AS, name)
            if command != "push" and name in known and not of_others:
                assert words[-len(repeated) :] == repeated
            else:
                assert repeated[0] not in words
                assert command == "push" or of_others or name in own or (command, name) == ("try", "window_stride")
    assert name in reading() and name not in reading(name)


def test_a_phase_is_a_line_at_its_start_and_one_with_its_time_at_its_end(capsys):
    show_phases()
    show_phases()
    with phase("Training the student"):
        assert capsys.readouterr().err == "Training the student ...\n"
    assert capsys.readouterr().err == "Training the student: 0.0 s\n"
    with pytest.raises(ValueError, match="x"), phase("Measuring"):
        raise ValueError("x")
    assert capsys.readouterr().err == "Measuring ...\n"


def test_a_warning_is_a_line_whatever_handlers_a_library_gives_the_root_logger(capsys):
    show_phases()
    root = logging.getLogger()
    theirs = logging.StreamHandler()
    theirs.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    root.addHandler(theirs)
    try:
        logging.getLogger("nlpkd.training.trainer").warning("Training with %s.", "bf16")
        logging.getLogger("nlpkd.training.trainer").info("A detail.")
    finally:
        root.removeHandler(theirs)
    assert capsys.readouterr().err == "Training with bf16.\n"


def test_bars_of_weights_are_hidden_and_those_of_downloads_are_not():
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as of_transformers

    enabled = of_transformers.is_progress_bar_enabled()
    try:
        hide_bars_of_weights()
        assert not of_transformers.is_progress_bar_enabled() and not are_progress_bars_disabled()
    finally:
        if enabled:
            of_transformers.enable_progress_bar()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (448, "7 min 28 s"),
     (3599.7, "1 h 0 min"), (7500, "2 h 5 min")],
)  # fmt: skip
def test_times_are_told_in_the_units_that_fit(seconds, told):
    assert duration(seconds) == told
