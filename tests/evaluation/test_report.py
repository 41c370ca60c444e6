import json
import math
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from nlpkd.evaluation.origin import RunRecord, TaskRecord
from nlpkd.evaluation.records import Candidate, Comparison, Interval, Latency, SeedSpread, format_number
from nlpkd.evaluation.report import EvaluationReport, aggregate_seeds
from nlpkd.evaluation.report_text import flat
from nlpkd.utils.disk.files import digest_of


def candidate(accuracy, parameters, p50_ms, agreement=None):
    quality = {
        "accuracy": Interval(accuracy, accuracy - 0.02, accuracy + 0.02),
        "f1_macro": Interval(0.7, 0.6, 0.8),
        "f1_weighted": Interval(0.71, 0.61, 0.81),
        "matthews_correlation": Interval(0.5, 0.4, 0.6),
        "expected_calibration_error": Interval(0.05, 0.04, 0.07),
    }
    latency = [Latency(1, 32, 2, p50_ms, 2 * p50_ms), Latency(32, 32, 2, 20 * p50_ms, 30 * p50_ms)]
    return Candidate(quality, agreement, parameters, parameters * 4 / 1e6, latency, training_seconds=61.4)


@pytest.fixture
def report():
    difference = Interval(0.02, 0.005, 0.035)
    return EvaluationReport(
        task=TaskRecord(
            problem_type="single_label_classification",
            labels=["neg", "pos"],
            rows=872,
            majority_share=0.509,
        ),
        run=RunRecord.from_dict(
            {
                "command": "nlpkd distill --teacher t",
                "date": "2026-01-02",
                "seed": 7,
                "versions": {"torch": "2.13.0"},
                "machine": {"cpu": "Some CPU", "threads": 2},
                "objectives": [{"name": "ForwardKLLoss", "weight": 0.5}],
                "interval_protocol": "95 % intervals: how",
                "latency_protocol": "latency: how",
            }
        ),
        candidates={
            "teacher": candidate(0.90, 22_000_000, 8.0),
            "student": candidate(0.88, 11_000_000, 2.0, Interval(0.93, 0.91, 0.95)),
            "baseline": candidate(0.86, 11_000_000, 2.0, Interval(0.89, 0.87, 0.91)),
        },
        comparisons={
            "student_vs_baseline": Comparison({"accuracy": difference}, 0.012, 41, 24),
            "student_vs_teacher": Comparison({"accuracy": difference}, 0.2, 10, 27, retention=0.978),
        },
    )


def test_a_saved_report_loads_as_the_same_report_from_directory_and_file(report, tmp_path):
    seeded = replace(report, seeds=aggregate_seeds([report, report]))
    path = seeded.save(tmp_path / "out")
    assert path == tmp_path / "out" / "report.json"
    assert EvaluationReport.load(tmp_path / "out") == EvaluationReport.load(path) == seeded
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8") == seeded.to_markdown()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.json", "report.md"]


def test_json_has_the_documented_shape(report, tmp_path):
    data = json.loads(report.save(tmp_path).read_text())
    assert list(data) == ["schema", "task", "run", "candidates", "comparisons", "seeds"]
    assert data["schema"] == 1
    student = data["candidates"]["student"]
    assert student["quality"]["accuracy"] == {"value": 0.88, "low": 0.86, "high": 0.90}
    assert student["latency"][0] == {
        "batch": 1,
        "tokens": 32,
        "threads": 2,
        "p50_ms": 2.0,
        "p95_ms": 4.0,
        "p99_ms": None,
    }
    assert (student["parameters"], student["size_mb"], student["training_seconds"]) == (11_000_000, 44.0, 61.4)


def test_nan_and_infinity_are_null_in_json_and_not_available_in_markdown(report, tmp_path):
    quality = report.candidates["student"].quality | {"f1_macro": Interval(math.nan, -math.inf, math.inf)}
    broken = replace(report, candidates={"student": replace(report.candidates["student"], quality=quality)})
    text = broken.save(tmp_path).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["candidates"]["student"]["quality"]["f1_macro"] == {
        "value": None,
        "low": None,
        "high": None,
    }
    loaded = EvaluationReport.load(tmp_path)
    assert math.isnan(loaded.candidates["student"].quality["f1_macro"].value)
    assert "n/a [n/a, n/a]" in loaded.to_markdown()


def test_saving_again_replaces_the_old_report_and_a_failure_leaves_it_whole(report, tmp_path):
    report.save(tmp_path)
    with pytest.raises(TypeError):
        replace(report, run=RunRecord(seed=object())).save(tmp_path)
    assert EvaluationReport.load(tmp_path) == report
    changed = replace(report, run=RunRecord(seed=8))
    changed.save(tmp_path)
    assert EvaluationReport.load(tmp_path) == changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 2}', '"schema": 1, found 2'),
        ("{}", "found None"),
        ("[]", "found 'list'"),
        ('{"schema": 1, "task": {}}', "lacks.*run.*candidates.*comparisons"),
        ('{"schema": 1, "task": {}, "run": {}, "candidates": {"teacher": {}}, "comparisons": {}}', '"student"'),
        (
            '{"schema": 1, "task": {}, "run": {}, "candidates": {"student": {}}, "comparisons": {}}',
            "damaged.*agreement",
        ),
        ("{not json", "can't be read"),
    ],
)
def test_what_is_no_report_is_refused_by_name(content, message, tmp_path):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        EvaluationReport.load(tmp_path)
    assert "report.json" in str(error.value)


def test_a_missing_report_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        EvaluationReport.load(tmp_path)


def test_the_verdict_compares_with_teacher_and_baseline(report):
    verdict = report.verdict()
    assert "keeps 97.8 % of the teacher's accuracy (0.880 against 0.900)" in verdict
    assert "2.0 x fewer parameters, 4.0 x faster at batch 1" in verdict
    assert "+2.0 points (95 % interval +0.5 to +3.5, McNemar p = 0.012)" in verdict
    assert "not significant" not in verdict
    assert "# Evaluation report\n\n" + verdict in report.to_markdown()


@pytest.mark.parametrize("metric", ["pearson", "spearman", "matthews_correlation"])
def test_a_correlation_is_told_as_it_is_and_not_in_points(report, metric):
    quality = {metric: Interval(0.959, 0.9, 0.98)}
    candidates = {name: replace(each, quality=quality) for name, each in report.candidates.items()}
    paired = Comparison({metric: Interval(0.401, 0.3, 0.5)}, gap=Interval(-0.0125, -0.2, 0.1))
    told = replace(report, task=replace(report.task, headline=metric), candidates=candidates)
    verdict = replace(told, comparisons={"student_vs_no_teacher": paired}).verdict()
    assert "is +0.401 (95 % interval +0.300 to +0.500)." in verdict and "points" not in verdict
    assert "is -0.013 from what the same shape has without a teacher (95 % interval -0.200 to +0.100)." in verdict


def test_the_verdict_says_so_when_the_difference_is_not_significant_or_negative(report):
    paired = Comparison({"accuracy": Interval(-0.004, -0.02, 0.012)}, mcnemar_p=0.4)
    verdict = replace(report, comparisons={"student_vs_baseline": paired}).verdict()
    assert "-0.4 points (95 % interval -2.0 to +1.2, McNemar p = 0.4)" in verdict
    assert "not significant at the 5 % level" in verdict


@pytest.mark.parametrize(
    ("value", "low", "p", "doubted"),
    [(0.88, -0.04, 0.3, False), (0.92, -0.01, 0.3, True), (0.92, 0.01, 0.01, False)],
    ids=["less", "more by chance", "more"],
)
def test_more_than_all_of_the_teacher_s_is_called_chance_where_it_may_be(report, value, low, p, doubted):
    for metric in ("accuracy", "f1_macro"):
        tested = p if metric == "accuracy" else None
        paired = Comparison({metric: Interval(value - 0.9, low, low + 0.04)}, mcnemar_p=tested)
        figures = {"teacher": 0.9, "student": value}
        candidates = {
            name: replace(report.candidates[name], quality={metric: Interval(figure, figure, figure)})
            for name, figure in figures.items()
        }
        told = replace(report, task=replace(report.task, headline=metric), candidates=candidates)
        told = replace(told, comparisons={"student_vs_teacher": paired})
        assert ("0.900; on these rows not significantly more)" in told.verdict()) is doubted


def test_a_student_that_is_larger_and_slower_is_called_so(report):
    candidates = {"teacher": candidate(0.9, 1_000, 1.0), "student": candidate(0.9, 3_000, 1.5)}
    verdict = replace(report, candidates=candidates).verdict()
    assert "3.0 x more parameters, 1.5 x slower at batch 1" in verdict
    candidates["student"] = candidate(0.9, 0, math.nan)
    assert "n/a x fewer parameters, n/a x faster" in replace(report, candidates=candidates).verdict()


def test_a_missing_baseline_or_teacher_is_said_plainly(report):
    alone = replace(report, candidates={"student": report.candidates["student"]}, comparisons={})
    markdown = alone.to_markdown()
    assert "No undistilled baseline was evaluated" in markdown
    assert "no teacher was evaluated" in markdown
    assert "McNemar" not in markdown


def test_the_table_has_a_row_a_candidate_with_every_figure(report):
    lines = report.table().splitlines()
    assert lines[0] == (
        "| candidate | accuracy | macro F1 | MCC | ECE | agreement with the teacher | parameters | MB "
        "| batch 1, p50 / p95 ms | batch 32, p50 / p95 ms | training s |"
    )
    assert lines[3] == (
        "| student | 0.880 [0.860, 0.900] | 0.700 [0.600, 0.800] | 0.500 [0.400, 0.600] | 0.050 [0.040, 0.070] "
        "| 0.930 [0.910, 0.950] | 11,000,000 | 44.0 | 2.00 / 4.00 | 40.00 / 60.00 | 61 |"
    )
    assert len(lines) == 5
    assert lines[2].startswith("| teacher | 0.900") and "| n/a | 22,000,000 |" in lines[2]


def test_a_pipe_or_newline_in_a_name_does_not_break_the_table(report):
    candidates = {**report.candidates, "int8|pruned\nby half": report.candidates["student"]}
    assert "| int8\\|pruned by half |" in replace(report, candidates=candidates).table()


def test_names_of_a_stranger_stay_text_and_can_not_command_a_terminal(report):
    name = "\x1b]0;owned\x07<script>alert(1)</script> [x](http://y) `tick` _a_ \x9b31m"
    student = report.candidates["student"]
    hostile = replace(
        report,
        task=replace(report.task, labels=[name, "pos"]),
        run=replace(report.run, command=f"```\n{name}", settings={name: name}, latency_protocol=name),
        candidates=report.candidates
        | {name: replace(student, latency=[*student.latency, Latency(1, 64, 2, 1.0, 1.0)])},
    )
    loaded = EvaluationReport.from_dict(replace(hostile, seeds=aggregate_seeds([hostile])).to_dict())
    for markdown in (hostile.to_markdown(), loaded.to_markdown()):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", markdown)
        prose = re.sub(r"(`{3,}).*?\1", "", markdown, flags=re.DOTALL)
        assert "&lt;script&gt;" in prose and "<" not in prose
        assert not re.search(r"(?<!\\)(\]\(|`|_a_)", prose)
    assert not any("\x1b" in found for found in [*loaded.candidates, *loaded.task.labels, loaded.run.command])


def test_json_of_before_comes_back_as_it_was(report):
    data = json.loads(json.dumps(report.to_dict()))
    data["task"] |= {"note": "somebody's own"}
    data["run"] |= {
        "data": {"name": "d.csv", "config": None, "origin": ["a", "b"]},
        "teacher": {"name": "t", "revision": None},
        "thresholds": {},
        "note": {"by": "somebody"},
    }
    data["candidates"]["student"]["breakdown"] = {
        "disagreements": [],
        "per_class": 2 * [{"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "rows": 2.0}],
    }
    del data["candidates"]["student"]["latency"][0]["p99_ms"]
    data["comparisons"]["student_vs_teacher"]["retention"] = None
    loaded = EvaluationReport.from_dict(data)
    data["candidates"]["student"]["latency"][0]["p99_ms"] = None
    data["task"] |= {"headline": "accuracy"}
    assert loaded.to_dict() == data
    assert loaded.run.data.name == "d.csv" and loaded.run.data.config is None
    assert loaded.candidates["student"].breakdown.per_class[0].recall == 0.5


def test_what_made_the_figures_is_written_in_words_and_not_in_python():
    student = {
        "name": "layers:3",
        "vocabulary": {"after": 11402, "unknown": 0.00080363098046},
        "revision": None,
        "note": "",
    }
    assert flat(student) == "name layers:3, vocabulary (after 11402, unknown 0.000803631)"
    assert (
        flat({"weight": 2.0, "learning_rate": 8e-5, "map": [[1, 2]]})
        == "weight 2.0, learning_rate 8e-05, map [[1, 2]]"
    )
    assert flat(42) == "42"


def test_markdown_records_test_protocol_and_origin(report):
    markdown = report.to_markdown()
    assert "41 rows only the student has right, 24 only the baseline; p = 0.012" in markdown
    assert "10 rows only the student has right, 27 only the teacher; p = 0.2" in markdown
    assert "labels neg, pos; 872 rows evaluated, 50.9 % of them with the commonest label" in markdown
    for fact in (
        "95 % intervals: how",
        "latency: how",
        "```\nnlpkd distill --teacher t\n```",
        "- seed: 7",
        "torch 2.13.0",
        "cpu Some CPU",
        "name ForwardKLLoss, weight 0.5",
    ):
        assert fact in markdown


def test_an_empty_run_still_makes_a_report(report):
    markdown = replace(report, run=RunRecord(), task=TaskRecord()).to_markdown()
    assert "The command was not recorded." in markdown
    assert "Not recorded." in markdown


def test_seeds_are_aggregated_with_the_sample_standard_deviation(report):
    def run(accuracy):
        return replace(report, candidates={"student": candidate(accuracy, 10, 1.0, Interval(accuracy + 0.1, 0, 1))})

    seeds = aggregate_seeds([run(0.80), run(0.82), run(0.87)])
    accuracy = seeds["student"]["accuracy"]
    assert accuracy.values == [0.80, 0.82, 0.87]
    assert accuracy.mean == pytest.approx(0.83)
    assert accuracy.sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert seeds["student"]["agreement"].mean == pytest.approx(0.93)
    assert "| student | 0.830 ± 0.036 (n = 3) |" in replace(report, seeds=seeds).to_markdown()


def test_the_share_of_the_gap_closed_is_aggregated_where_every_seed_has_a_gap(report):
    def run(share):
        closed = None if share is None else Interval(share, share - 0.1, share + 0.1)
        paired = Comparison({"accuracy": Interval(0.02, 0.0, 0.04)}, gap=Interval(0.1, 0.05, 0.15), gap_closed=closed)
        return replace(report, comparisons={"student_vs_no_teacher": paired})

    seeds = aggregate_seeds([run(0.5), run(0.7)])
    assert seeds["student"]["gap_closed"].mean == pytest.approx(0.6)
    assert seeds["student"]["gap_closed"].sd == pytest.approx(0.1 * math.sqrt(2))
    assert "share of the gap closed" in replace(report, seeds=seeds).to_markdown()
    assert "gap_closed" not in aggregate_seeds([run(0.5), run(None)])["student"]


def test_one_seed_has_no_standard_deviation(report):
    seeds = aggregate_seeds([report])
    assert seeds["student"]["accuracy"] == SeedSpread([0.88], 0.88, None)
    assert "agreement" not in seeds["teacher"]
    assert "0.880 ± n/a (n = 1)" in replace(report, seeds=seeds).to_markdown()


def test_seeds_of_different_tasks_or_candidates_are_refused(report):
    with pytest.raises(ValueError, match="no report"):
        aggregate_seeds([])
    with pytest.raises(ValueError, match="report 2.*'rows': 10"):
        aggregate_seeds([report, replace(report, task=TaskRecord(rows=10))])
    with pytest.raises(ValueError, match=r"report 2.*\['student'\]"):
        aggregate_seeds([report, replace(report, candidates={"student": report.candidates["student"]})])


def test_reports_are_frozen(report):
    with pytest.raises(FrozenInstanceError):
        report.task = TaskRecord()


def test_reading_a_report_needs_the_standard_library_only():
    code = (
        "import sys, nlpkd.evaluation.report\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy', 'sklearn', 'evaluate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.12345, "0.123"), (0.0004, "0.0004"), (-0.00012345, "-0.00012"), (1.5e-7, "1.5e-07"), (0.0005, "0.001"),
        (0.0, "0.000"), (None, "n/a"), (float("nan"), "n/a"),
    ],
)  # fmt: skip
def test_a_figure_that_is_not_zero_is_not_shown_as_zero(value, told):
    # Errors of scores are of the scores' own size.
    assert format_number(value) == told
    if value:
        assert str(Interval(value, value, value)).startswith(told)


@pytest.fixture
def shipped(report, tmp_path):
    """A report of a folder's weights and of two files in it, one of them an earlier version's way."""

    def make(named):
        (tmp_path / "onnx").mkdir(exist_ok=True)
        for name in ("model.safetensors", "onnx/model.onnx", "onnx/model_int8.onnx", "onnx/model_int8.onnx.data"):
            (tmp_path / name).write_text(name)
        sha256 = {path.relative_to(tmp_path).as_posix(): digest_of(path) for path in tmp_path.rglob("*.*")}
        student = {"weights_sha256": {"model.safetensors": sha256["model.safetensors"]}}
        if named:
            of_int8 = {name: digest for name, digest in sha256.items() if "int8" in name}
            student["files_sha256"] = {"onnx/model_int8.onnx": of_int8}
        candidates = report.candidates | {
            "onnx/model_int8.onnx": replace(
                candidate(0.87, 11_000_000, 1.0), file_sha256=sha256["onnx/model_int8.onnx"]
            ),
            "another model's file": replace(candidate(0.87, 1, 1.0), file_sha256="0" * 64),
        }
        run = report.run.updated({"student": student, "thresholds": {"onnx/model_int8.onnx": {"neg": 0.5}}})
        return replace(report, candidates=candidates, run=run)

    return make


@pytest.mark.parametrize("named", [True, False], ids=["by path", "as earlier versions did"])
@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_report_is_of_the_files_that_were_measured_not_of_others_in_their_place(named, change, shipped, tmp_path):
    told = shipped(named)
    assert told.is_of(tmp_path) and told.is_of_all(tmp_path) and told.without_stale(tmp_path) is told
    told.refuse_other_weights(tmp_path)
    (tmp_path / "onnx/model.onnx").write_text("one that was not measured")
    assert told.is_of_all(tmp_path)
    file = tmp_path / "onnx/model_int8.onnx"
    file.unlink() if change == "gone" else file.write_text("another one")
    assert told.is_of(tmp_path) == (change == "gone") and not told.is_of_all(tmp_path)
    with pytest.raises(ValueError, match="has figures of onnx/model_int8.onnx, and that file is another one"):
        told.refuse_other_weights(tmp_path)
    kept = told.without_stale(tmp_path)
    assert kept.is_of_all(tmp_path) and EvaluationReport.from_dict(kept.to_dict()) == kept
    assert told.candidates.keys() - kept.candidates.keys() == {"onnx/model_int8.onnx"} and not kept.run.thresholds


def test_weights_that_lie_beside_a_file_are_part_of_it(shipped, tmp_path):
    told = shipped(True)
    (tmp_path / "onnx/model_int8.onnx.data").write_text("other weights")
    assert not told.is_of(tmp_path) and "onnx/model_int8.onnx" not in told.without_stale(tmp_path).candidates


@pytest.mark.parametrize("name", ["../../etc/passwd", "/dev/zero"])
def test_a_report_that_names_files_elsewhere_is_refused(name, report, tmp_path):
    foreign = replace(report, run=report.run.updated({"student": {"files_sha256": {"student": {name: "0"}}}}))
    with pytest.raises(ValueError, match="outside of it"):
        foreign.is_of(tmp_path)


def test_without_its_weights_a_folder_is_not_all_that_was_measured(shipped, tmp_path):
    told = shipped(True)
    (tmp_path / "model.safetensors").unlink()
    assert told.is_of(tmp_path) and not told.is_of_all(tmp_path)
    with pytest.raises(ValueError, match="measured of other weights"):
        told.refuse_other_weights(tmp_path)
