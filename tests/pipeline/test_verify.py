"""`nlpkd verify`: honest students pass, and a figure that is wrong is named, from a folder and from a Hub."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import onnx
import pytest
import yaml
from commands import Command, finish
from datasets import Dataset
from hub_server import HubServer, hub_environment
from huggingface_hub import ModelCard
from samples import QUIET, raw_rows, tiny_bert, tiny_report

from nlpkd import EvaluationReport
from nlpkd.evaluation.origin import ModelRecord
from nlpkd.evaluation.records import Comparison, Interval, SeedSpread
from nlpkd.hub.model_card import build_model_card
from nlpkd.pipeline.distill import distill
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.pipeline.export import export_student
from nlpkd.pipeline.verify import card_claims, verify

QUICK = {"latency_runs": 0, "bootstrap_samples": 50}


def write_rows(path: Path, rows: int) -> None:
    lines = [{"text": row["text"], "label": ("neg", "pos")[row["label"]]} for row in raw_rows(rows, seed=5)]
    path.write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "test.jsonl", 60)
    write_rows(folder / "train.jsonl", 8)
    return folder


@pytest.fixture(scope="module")
def honest(tmp_path_factory, tokenizer, rows) -> Path:
    """A student with the report and the card of a real measurement."""
    folder = tmp_path_factory.mktemp("honest")
    model = tiny_bert(initializer_range=0.5, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = str(rows / "test.jsonl")
    evaluate(folder, data, max_length=32, bootstrap_samples=200, latency_runs=2, output_dir=folder)
    build_model_card(EvaluationReport.load(folder), model_name="alice/tiny").save(folder / "README.md")
    return folder


@pytest.fixture
def student(honest, tmp_path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "student"))


def claim(folder: Path, **changes) -> None:
    """Change what a folder's report claims of its student."""
    report = EvaluationReport.load(folder)
    quality = report.candidates["student"].quality | changes.pop("quality", {})
    changed = dataclasses.replace(report.candidates["student"], quality=quality, **changes)
    dataclasses.replace(report, candidates={"student": changed}).save(folder)


def forget_hash(folder: Path) -> None:
    """Make a report one that does not tell its rows from others, as older ones are."""
    report = EvaluationReport.load(folder)
    data = dataclasses.replace(report.run.data, evaluated_sha256=None)
    dataclasses.replace(report, run=dataclasses.replace(report.run, data=data)).save(folder)


def wrong(folder: Path, data: Path) -> list[str]:
    found = verify(folder, str(data), **QUICK)
    names = [each.figure for each in found.claims if each.holds is False]
    assert found.holds == (not names)
    assert all(name in found.to_markdown().splitlines()[-1] for name in names)
    return names


def test_an_honest_student_passes_and_its_latency_is_shown_alone(honest, rows):
    found = verify(honest, str(rows / "test.jsonl"), latency_runs=2, bootstrap_samples=50)
    assert found.holds
    judged = {each.figure: each.holds for each in found.claims}
    assert judged["accuracy"] and judged["ECE"] and judged["parameters"] and judged["MB"] and judged["card: accuracy"]
    assert judged["ms, batch 1, 32 tokens, p50"] is None
    assert f"All {sum(each is not None for each in judged.values())} judged claims hold." in found.to_markdown()


@pytest.mark.parametrize("reading", [{"max_length": 8}, {"max_length": 8, "window_stride": 2}], ids=["cut", "windows"])
def test_a_distilled_student_passes_however_its_texts_were_read(tmp_path, tokenizer, reading):
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    texts = [f"{'bad ' * (number % 7 * 3)}{'good ' * (number % 5 * 3)}film" for number in range(60)]
    rows = Dataset.from_dict({"text": texts, "label": [["neg", "pos"]["good" in text] for text in texts]})
    rows.to_json(tmp_path / "rows.jsonl")
    teacher, data = tiny_bert(2, initializer_range=0.5, **names), str(tmp_path / "rows.jsonl")
    settings = QUIET | QUICK | {"max_steps": 1, "save_strategy": "no", "teacher_check": "off", "objectives": "hinton"}
    folder = tmp_path / "student"
    made = distill(teacher, "layers:1", data, data, tokenizer=tokenizer, teacher_tokenizer=tokenizer,
                   output_dir=folder, **settings, **reading).report  # fmt: skip
    again = evaluate(folder, data, **QUICK, **reading)
    assert made.run.data.evaluated_sha256 == again.run.data.evaluated_sha256 is not None
    for name, value in {"max_length": 8, "window_stride": None, "pairs": False, **reading}.items():
        assert getattr(made.run.data, name) == getattr(again.run.data, name) == value
    found = verify(folder, data, **QUICK)
    assert found.holds, found.to_markdown()


@pytest.mark.parametrize("order", [("neg", "pos"), ("pos", "neg")])
def test_the_rows_are_known_again_whatever_order_student_and_rows_have_their_classes_in(tmp_path, tokenizer, order):
    names = {"id2label": dict(enumerate(order)), "label2id": {name: number for number, name in enumerate(order)}}
    tiny_bert(1, initializer_range=0.5, **names).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    write_rows(tmp_path / "rows.jsonl", 40)
    teacher = tiny_bert(1, initializer_range=0.5, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    settings = QUIET | QUICK | {"max_steps": 1, "save_strategy": "no", "teacher_check": "off", "objectives": "hinton"}
    folder = tmp_path / "student"
    distill(teacher, tmp_path / "start", raw_rows(40, seed=5), raw_rows(40, seed=5), tokenizer=tokenizer,
            teacher_tokenizer=tokenizer, output_dir=folder, **settings)  # fmt: skip
    found = verify(folder, str(tmp_path / "rows.jsonl"), **QUICK)
    assert found.holds and next(each.holds for each in found.claims if each.figure == "rows"), found.to_markdown()


def test_each_wrong_figure_is_named(student, rows):
    accuracy = EvaluationReport.load(student).candidates["student"].quality["accuracy"]
    better = Interval(accuracy.value + 0.05, accuracy.low, accuracy.high + 0.05)
    claim(student, quality={"accuracy": better}, parameters=12, size_mb=0.9)
    assert wrong(student, rows / "test.jsonl") == ["accuracy", "parameters", "MB"]


def test_a_card_that_says_more_than_its_report_is_found(student, rows):
    card = (student / "README.md").read_text()
    accuracy = EvaluationReport.load(student).candidates["student"].quality["accuracy"].value
    assert str(accuracy) in card
    (student / "README.md").write_text(card.replace(str(accuracy), str(accuracy + 0.1)))
    assert wrong(student, rows / "test.jsonl") == ["card: accuracy"]


def test_a_leaderboard_s_figure_that_says_more_is_found_and_one_of_another_metric_is_not_judged(student, rows):
    accuracy = EvaluationReport.load(student).candidates["student"].quality["accuracy"].value
    (student / ".eval_results").mkdir()
    about = {"dataset": {"id": "alice/reviews", "task_id": "test"}}
    entries = [about | {"value": accuracy, "notes": "accuracy"}, about | {"value": 7, "notes": "tools"}]
    (student / ".eval_results/reviews.yaml").write_text(yaml.safe_dump(entries))
    assert wrong(student, rows / "test.jsonl") == []
    entries[0]["value"] = accuracy + 0.1
    (student / ".eval_results/reviews.yaml").write_text(yaml.safe_dump(entries))
    assert wrong(student, rows / "test.jsonl") == [".eval_results/reviews.yaml"]
    (student / ".eval_results/reviews.yaml").write_text("- a")
    with pytest.raises(ValueError, match="its figures can't be checked"):
        verify(student, str(rows / "test.jsonl"), **QUICK)


def test_other_weights_are_found(student, rows):
    tiny_bert(layers=1, initializer_range=0.5, seed=9, id2label={0: "neg", 1: "pos"}).save_pretrained(student)
    assert {"parameters", "ECE"} <= set(wrong(student, rows / "test.jsonl"))


def test_other_rows_are_judged_by_the_claimed_interval(student, tmp_path):
    write_rows(tmp_path / "fewer.jsonl", 40)
    found = verify(student, str(tmp_path / "fewer.jsonl"), **QUICK)
    accuracy = next(each for each in found.claims if each.figure == "accuracy")
    assert accuracy.holds and "40 rows for 60" in accuracy.why
    claim(student, quality={"accuracy": Interval(0.99, 0.98, 1.0)})
    assert "accuracy" in wrong(student, tmp_path / "fewer.jsonl")


def test_as_many_other_rows_are_told_from_the_report_s_and_judged_by_intervals(student, tmp_path):
    lines = (tmp_path / "rows.jsonl", tmp_path / "flipped.jsonl")
    write_rows(lines[0], 60)
    flipped = {"neg": "pos", "pos": "neg"}
    entries = [json.loads(line) for line in lines[0].read_text().splitlines()]
    lines[1].write_text("\n".join(json.dumps(each | {"label": flipped[each["label"]]}) for each in entries))
    same, other = (verify(student, str(path), **QUICK) for path in lines)
    rows, accuracy = ({each.figure: each for each in found.claims} for found in (same, other))
    assert same.holds and rows["rows"].holds and rows["rows"].why == "SHA-256 of texts and labels"
    assert "same rows, to" in rows["accuracy"].why
    other_rows = accuracy["rows"]
    assert other_rows.holds is None and other_rows.why == "other rows than the report's (SHA-256)"
    assert "other rows: both intervals" in accuracy["accuracy"].why or accuracy["accuracy"].holds is False
    assert "same" not in accuracy["accuracy"].why and accuracy["labels"].holds is None
    # The rows are the report's, and not as many as it says.
    report = EvaluationReport.load(student)
    dataclasses.replace(report, task=dataclasses.replace(report.task, rows=2)).save(student)
    claim(student, quality={"accuracy": Interval(0.99, 0.98, 1.0)})
    assert wrong(student, lines[0]) == ["accuracy", "rows"] or wrong(student, lines[0]) == ["rows", "accuracy"]


def test_a_report_without_gold_labels_is_verified_by_the_agreement_beside_its_teacher(student, tmp_path):
    entries = [{"text": row["text"], "label": -100} for row in raw_rows(40, seed=5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, entries)))
    data, teacher = str(tmp_path / "rows.jsonl"), tmp_path / "teacher"
    shutil.copytree(student, teacher, ignore=shutil.ignore_patterns("report*"))
    tiny_bert(seed=4, initializer_range=0.5, id2label={0: "neg", 1: "pos"}).save_pretrained(teacher)
    (student / "README.md").unlink()
    evaluate(student, data, teacher=teacher, max_length=32, output_dir=student, **QUICK)
    found = verify(student, data, teacher=teacher, **QUICK)
    judged = {each.figure: each.holds for each in found.claims}
    assert found.holds and judged["agreement with the teacher"] and judged["rows"]
    assert found.quality == ("agreement with the teacher",)
    report = EvaluationReport.load(student)
    less = dataclasses.replace(report.candidates["student"], agreement=Interval(0.1, 0.0, 0.2))
    dataclasses.replace(report, candidates=report.candidates | {"student": less}).save(student)
    found = verify(student, data, teacher=teacher, **QUICK)
    assert [each.figure for each in found.claims if each.holds is False] == ["agreement with the teacher"]


def test_what_is_not_measured_again_is_named_and_not_judged(student, rows):
    report = EvaluationReport.load(student)
    claimed = report.candidates["student"]
    nothing = Interval(math.nan, math.nan, math.nan)
    told = dataclasses.replace(
        claimed, agreement=Interval(0.9, 0.8, 1.0), quality=claimed.quality | {"accuracy": nothing}, memory_mb=12.0
    )
    paired = Comparison({"accuracy": Interval(0.1, 0.0, 0.2)}, 0.5, 3, 1, retention=0.97)
    seeds = {"student": {"accuracy": SeedSpread([0.5, 0.6], 0.55, 0.07)}}
    dataclasses.replace(
        report,
        candidates={"student": told, "teacher": claimed, "baseline": claimed},
        comparisons={"student_vs_baseline": paired},
        seeds=seeds,
        run=dataclasses.replace(report.run, teacher=ModelRecord("./runs/teacher")),
    ).save(student)
    found = verify(student, str(rows / "test.jsonl"), **QUICK)
    claims = {each.figure: each for each in found.claims}
    for figure in (
        "accuracy", "agreement with the teacher", "FLOPs", "memory, MB", "ms, batch 1, 32 tokens, p50",
        "teacher: accuracy", "teacher: parameters", "baseline: accuracy", "baseline: MB", "baseline: FLOPs",
        "student vs baseline: accuracy difference", "student vs baseline: mcnemar p", "student vs baseline: retention",
        "student vs baseline: student only correct",
        "student: accuracy, mean ± sd of 2 seeds",
    ):  # fmt: skip
        assert claims[figure].holds is None, claims[figure]
    assert claims["accuracy"].why == "no number was claimed"
    assert "the teacher, ./runs/teacher, is not on the Hub" in claims["teacher: accuracy"].why
    assert claims["student: accuracy, mean ± sd of 2 seeds"].claimed == "0.550 ± 0.070"
    assert found.holds and claims["ECE"].holds


@pytest.mark.parametrize("interval", [(-1.0, 1.0), (0.0, 1.0), (0.9, 0.1), (-1e9, 1e9), (0.0, 0.001)])
@pytest.mark.parametrize("given", [60, 40])
def test_an_absurd_interval_holds_nothing(student, tmp_path, interval, given):
    write_rows(tmp_path / "given.jsonl", given)
    claim(student, quality={"accuracy": Interval(0.99, *interval)})
    assert "accuracy" in wrong(student, tmp_path / "given.jsonl")


@pytest.mark.parametrize(
    ("gap", "share", "wrong_figures"),
    [
        ((0.10, 0.05, 0.15), (0.4, 0.1, 0.7), []),
        ((0.08, 0.03, 0.13), (0.4, 0.1, 0.7), ["student vs no_teacher: gap to the teacher"]),
        ((0.10, 0.05, 0.15), (0.9, 0.7, 1.1), ["student vs no_teacher: share of the gap closed"]),
        ((0.10, 0.05, 0.15), (0.4, 0.5, 0.7), ["student vs no_teacher: share of the gap closed"]),
    ],
)
def test_a_gap_that_does_not_follow_from_the_reports_own_figures_is_found(student, rows, gap, share, wrong_figures):
    report = EvaluationReport.load(student)
    own = report.candidates["student"]
    base = own.quality["accuracy"].value

    def beside(difference):
        accuracy = Interval(base + difference, base + difference - 0.1, base + difference + 0.1)
        return dataclasses.replace(own, quality={"accuracy": accuracy})

    candidates = {"student": own, "teacher": beside(0.06), "no_teacher": beside(-0.04)}
    paired = Comparison(
        {"accuracy": Interval(0.04, 0.0, 0.08)}, gap=Interval(*gap), gap_closed=Interval(*share), mcnemar_p=0.5
    )
    comparisons = {"student_vs_no_teacher": paired}
    dataclasses.replace(report, candidates=candidates, comparisons=comparisons).save(student)
    assert wrong(student, rows / "test.jsonl") == wrong_figures


def test_few_claimed_rows_are_too_few_to_tell(student, rows):
    forget_hash(student)
    report = EvaluationReport.load(student)
    dataclasses.replace(report, task=dataclasses.replace(report.task, rows=2)).save(student)
    found = {each.figure: each for each in verify(student, str(rows / "test.jsonl"), **QUICK).claims}
    assert found["accuracy"].holds is None and "too few to tell" in found["accuracy"].why
    assert found["rows"].holds is None and (found["rows"].claimed, found["rows"].measured) == ("2", "60")


def test_a_flipped_bit_of_the_weights_is_found_though_every_figure_holds(student, rows):
    path = student / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "weights" in wrong(student, rows / "test.jsonl")
    report = EvaluationReport.load(student)
    unhashed = dataclasses.replace(report.run, student=ModelRecord("./student"))
    dataclasses.replace(report, run=unhashed).save(student)
    claims = {each.figure: each for each in verify(student, str(rows / "test.jsonl"), **QUICK).claims}
    assert claims["weights"].holds is None and claims["weights"].why == "no hash was claimed"


@pytest.mark.parametrize(
    "spelling", ["Accuracy", "ACCURACY", "f1", "macro-F1", "Macro F1", "MACRO_F1", "Matthews correlation"]
)
def test_a_card_s_metric_is_judged_however_it_is_spelt(student, rows, spelling):
    card = ModelCard.load(student / "README.md")
    for result in card.data.eval_results:
        result.metric_type, result.metric_value = spelling, 0.987
    card.save(student / "README.md")
    (figure,) = {each for each in wrong(student, rows / "test.jsonl")}
    assert figure in ("card: accuracy", "card: macro F1", "card: MCC")


KINDS = [("exact_match\x1b[31m", 0.99), ("top 5 accuracy", "99 %")]


def test_a_card_s_figures_that_cannot_be_judged_are_counted(student, rows):
    card = ModelCard.load(student / "README.md")
    for result, (kind, value) in zip(card.data.eval_results, KINDS, strict=False):
        result.metric_type, result.metric_value = kind, value
    card.save(student / "README.md")
    found = verify(student, str(rows / "test.jsonl"), **QUICK)
    claims = {each.figure: each for each in found.claims}
    assert claims["card: exact_match[31m"].holds is None and claims["card: top 5 accuracy"].holds is None
    assert f"{sum(each.holds is None for each in found.claims)} further figures are not judged." in found.to_markdown()
    assert "\x1b" not in found.to_markdown()


def test_a_quality_of_nulls_is_no_quality_that_holds(student, rows):
    nothing = Interval(math.nan, math.nan, math.nan)
    claim(student, quality={"accuracy": nothing})
    found = verify(student, str(rows / "test.jsonl"), **QUICK)
    assert found.to_markdown().rstrip().endswith("accuracy among them: nothing is known of that.")
    data = json.loads((student / "report.json").read_text())
    data["candidates"]["student"] |= {"parameters": None, "flops": math.inf}
    (student / "report.json").write_text(json.dumps(data))
    claims = {each.figure: each for each in verify(student, str(rows / "test.jsonl"), **QUICK).claims}
    assert claims["parameters"].why == claims["FLOPs"].why == "no number was claimed"
    data["candidates"]["student"]["quality"] = {}
    (student / "report.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="claims no accuracy of its student"):
        verify(student, str(rows / "test.jsonl"))


def test_without_report_or_data_it_says_what_is_missing(student):
    with pytest.raises(ValueError, match=r"measured on test.jsonl, which is no data set of the Hub: give.*--data"):
        verify(student)
    (student / "report.json").unlink()
    with pytest.raises(ValueError, match=r"no report.json, so it claims nothing"):
        verify(student)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/nosuch", "there is no folder '/nosuch': pass"),
        ("~/x@v1", "there is no folder '/.*/x': pass"),
        ("a/b/c", "there is no folder 'a/b/c': pass"),
        (Path("nosuch"), "there is no folder 'nosuch': pass"),
        ("my name", "'my name' is no folder here, and no name"),
        (Path(__file__), "test_verify.py is a file: give the folder"),
    ],
)
def test_what_is_neither_folder_nor_repository_is_not_looked_for(name, told):
    with pytest.raises(ValueError, match=told):
        verify(name)


def test_a_published_student_is_verified_at_its_revision(student, rows, tmp_path):
    """Data, teacher and student come from the Hub; the first commit holds, a later one claims too much."""
    names = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    shutil.copytree(student, tmp_path / "teacher", ignore=shutil.ignore_patterns("report*", "README.md"))
    tiny_bert(initializer_range=0.5, seed=4, **names).save_pretrained(tmp_path / "teacher")
    data = str(rows / "test.jsonl")
    report = evaluate(student, data, teacher=tmp_path / "teacher", max_length=32, **QUICK)
    about = dataclasses.replace(report.run.data, name="alice/reviews", config="film", split="test")
    run = dataclasses.replace(report.run, data=about, teacher=ModelRecord("alice/teacher", "main"))
    dataclasses.replace(report, run=run).save(student)
    (student / "onnx").mkdir()
    (student / "onnx/model_int8.onnx").write_bytes(b"of another name than the report's candidates")
    files = [{"split": split, "path": f"{split}.jsonl"} for split in ("train", "test")]
    card = yaml.safe_dump({"configs": [{"config_name": "film", "data_files": files}]})
    shutil.copytree(rows, tmp_path / "data")
    (tmp_path / "data/README.md").write_text(f"---\n{card}---\n")
    with HubServer() as hub:
        hub.add_repo("alice/reviews", tmp_path / "data", "dataset")
        hub.add_repo("alice/teacher", tmp_path / "teacher")
        first = hub.add_repo("alice/tiny", student)
        claim(student, quality={"accuracy": Interval(0.99, 0.98, 1.0)})
        hub.add_repo("alice/tiny", student)
        environment = hub_environment(hub, tmp_path / "home")
        commands = {"first": f"alice/tiny@{first}", "last": "alice/tiny"}
        started = {
            name: Command("verify", model, cwd=tmp_path, environment=environment) for name, model in commands.items()
        }
        done = {name: finish(process) for name, process in started.items()}
    code, out, err = done["first"]
    assert code == 0, err
    assert f"alice/tiny at {first}" in out and "judged claims hold." in out
    held = [line for line in out.splitlines() if "| holds |" in line]
    for figure in ("agreement with the teacher", "teacher: accuracy", "student vs teacher: retention"):
        assert any(line.startswith(f"| {figure} |") for line in held), out
    assert any(path.endswith("onnx/model_int8.onnx") for _, path in hub.requests)
    code, out, err = done["last"]
    assert code == 1, err
    assert "claims do not hold: accuracy." in out


def test_a_card_whose_few_lines_stand_for_billions_of_values_is_refused(tmp_path):
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 11)]
    index = ["model-index:", "- name: s", "  results:", "  - task: {type: text-classification}",
             "    dataset: {name: d, type: d}", "    metrics: [{type: *a10, value: 0.8}]"]  # fmt: skip
    (tmp_path / "README.md").write_text("\n".join(["---", "a0: &a0 [x]", *levels, *index, "---", ""]))
    with pytest.raises(ValueError, match=r"README\.md is damaged .*stands for more than 100,000 values"):
        card_claims(tiny_report(), tiny_report(), tmp_path)


def test_an_onnx_file_is_known_by_its_bytes_and_not_by_its_figures(student, rows, tmp_path):
    data = str(rows / "test.jsonl")
    export_student(student)
    file = "onnx/model.onnx"
    evaluate(student, data, candidates={file: student / file}, max_length=32, output_dir=student, **QUICK)
    shown = {each.figure: each for each in verify(student, data, **QUICK).claims}
    assert shown[f"{file}: file"].holds and shown["weights"].holds
    # The same graph in other bytes, and no record beside it that would tell.
    graph = onnx.load(student / file)
    graph.producer_name = "somebody else"
    onnx.save(graph, student / file)
    (student / "onnx" / "export.json").unlink()
    assert wrong(student, rows / "test.jsonl") == [f"{file}: file"]
