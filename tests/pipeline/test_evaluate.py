"""An evaluation is refused before it measures, or its result is shown and saved, whatever comes between."""

from __future__ import annotations

import copy
import fcntl
import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from paths import ways_to
from samples import raw_rows, tiny_bert, tiny_report

from nlpkd.compression import to_half
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import build_model_card
from nlpkd.hub.saving import renewed_card, save_report, save_student
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.pipeline import evaluate as module
from nlpkd.pipeline.evaluate import evaluate
from nlpkd.pipeline.verify import verify

QUICK = {"latency_runs": 0, "bootstrap_samples": 10}


@pytest.fixture(scope="module")
def given(tokenizer, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    save_student(tiny_bert(layers=1), folder / "student", tokenizer)
    raw_rows(20).to_csv(folder / "rows.csv", index=False)
    return {"student": str(folder / "student"), "data": str(folder / "rows.csv")}


def test_the_size_of_every_candidate_is_that_of_its_files(tokenizer, tmp_path, given):
    folder = save_student(to_half(tiny_bert(layers=1))[0], tmp_path / "half", tokenizer)
    size, whole = ((Path(each) / "model.safetensors").stat().st_size / 1e6 for each in (folder, given["student"]))
    models = {"teacher": folder, "baseline": folder, "candidates": {"float32": given["student"]}}
    report = evaluate(folder, given["data"], output_dir=folder, **models, **QUICK)
    found = {name: candidate.size_mb for name, candidate in EvaluationReport.load(folder).candidates.items()}
    assert found == {"teacher": size, "student": size, "baseline": size, "float32": whole} and whole > 1.7 * size
    assert report.candidates["student"].parameters == report.candidates["float32"].parameters


@pytest.fixture
def unmeasured(monkeypatch):
    """Let a test fail that measures anything."""

    def fail(*_, **__):
        raise AssertionError("it was measured")

    monkeypatch.setattr(module, "evaluate_student", fail)


@pytest.mark.parametrize("name", ["onnx", ".lock", "baseline"])
def test_a_link_where_a_run_writes_is_refused_before_anything_is_measured(name, given, tmp_path, unmeasured):
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a link"):
        evaluate(**given, output_dir=tmp_path)


def test_a_folder_that_another_run_writes_to_is_refused_before_anything_is_measured(given, tmp_path, unmeasured):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is writing"):
            evaluate(**given, output_dir=tmp_path)


def report_of(folder: Path, **run) -> bytes:
    """Save a report in a folder as a run leaves it; its bytes."""
    report = tiny_report()
    replace(report, run=replace(report.run, **run)).save(folder)
    return (folder / "report.json").read_bytes()


def test_the_whole_report_of_a_training_is_not_replaced(given, tmp_path, unmeasured):
    before = report_of(tmp_path, objectives=[CrossEntropyLoss().config()])
    with pytest.raises(ValueError, match=r"report\.json says how the student was trained.*Choose another output_dir"):
        evaluate(**given, output_dir=tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before


@pytest.mark.parametrize("lacking", [{"objectives": [CrossEntropyLoss().config()], "incomplete": True}, {}])
def test_a_report_that_lacks_what_was_to_come_or_is_of_no_training_is_replaced(lacking, given, tmp_path):
    before = report_of(tmp_path, **lacking)
    evaluate(**given, **QUICK, output_dir=tmp_path)
    assert (tmp_path / "report.json").read_bytes() != before


def test_rows_are_not_overwritten_by_the_report(given, tmp_path, unmeasured):
    file = tmp_path / "report.json"
    raw_rows(20).to_json(file)
    before = file.read_bytes()
    for path in map(str, ways_to(file)):
        with pytest.raises(ValueError, match="data=.* would be overwritten"):
            evaluate(given["student"], path, output_dir=tmp_path)
        with pytest.raises(ValueError, match="held_out=.* would be overwritten"):
            evaluate(**given, held_out=path, output_dir=tmp_path)
    assert file.read_bytes() == before


def test_a_run_that_began_meanwhile_is_waited_for(given, tmp_path, caplog):
    lock = (tmp_path / ".lock").open("w")

    def show(report: EvaluationReport) -> None:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.3, lock.close).start()

    evaluate(**given, **QUICK, output_dir=tmp_path, show=show)
    assert "Waiting for another run" in caplog.text
    assert EvaluationReport.load(tmp_path).task.rows == 20


def test_the_report_is_shown_before_it_is_saved_and_saved_though_it_can_t_be_shown(given, tmp_path):
    def show(report: EvaluationReport) -> None:
        assert report.to_markdown().startswith("# Evaluation report") and not (tmp_path / "report.json").exists()
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        evaluate(**given, **QUICK, output_dir=tmp_path, show=show)
    assert EvaluationReport.load(tmp_path).candidates["student"].quality


def test_memory_that_can_t_be_measured_costs_no_other_figure(given, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("the memory of student was not measured")

    monkeypatch.setattr(module, "add_memory", fail)
    shown: list[EvaluationReport] = []
    with pytest.raises(RuntimeError, match="memory of student"):
        evaluate(**given, **QUICK, memory=True, output_dir=tmp_path, show=shown.append)
    assert len(shown) == 1 and Path(tmp_path / "report.json").exists()
    with pytest.raises(RuntimeError, match="memory of student"):
        evaluate(**given, **QUICK, memory=True, show=shown.append)
    assert len(shown) == 2


NAMES = ("bad", "fine", "good")


@pytest.mark.parametrize("role", ["student", "teacher", "baseline"])
def test_a_further_candidate_takes_no_role_that_has_an_argument_of_its_own(role, given, unmeasured):
    roles = {} if role == "student" else {role: given["student"]}
    with pytest.raises(ValueError, match=rf"further candidates can't be called \['{role}'\]"):
        evaluate(**given, **roles, candidates={role: "another"})


@pytest.mark.parametrize("candidates", [["another"], "another", [("another", "model")]])
def test_further_candidates_have_names(candidates, given, unmeasured):
    with pytest.raises(ValueError, match="candidates must be models by name"):
        evaluate(**given, candidates=candidates)


@pytest.mark.parametrize("examples", [-1, 21])
def test_a_number_of_examples_that_can_t_be_is_named_whatever_else_is_missing(given, unmeasured, examples):
    with pytest.raises(ValueError, match=f"examples must lie in 1..20, found {examples}"):
        evaluate(**given, examples=examples)


@pytest.fixture(scope="module")
def judged(tokenizer, tmp_path_factory):
    """Rows with the answers of a model as labels, 0 to 2, and a function that saves the model with other names.

    These are given as what it calls 0, 1 and 2, and the order in which it gives them.
    """
    folder = tmp_path_factory.mktemp("judged")
    model = tiny_bert(num_labels=3, initializer_range=0.7).eval()
    texts = list(dict.fromkeys(raw_rows(60, seed=1)["text"]))
    with torch.inference_mode():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    # Each answer is given often, whatever the random weights prefer.
    model.classifier.bias.data -= logits.mean(dim=0)
    with torch.inference_mode():
        labels = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.argmax(dim=-1).tolist()
    assert min(labels.count(number) for number in range(3)) > 4

    def saved(names, order):
        other = copy.deepcopy(model)
        for weight in other.classifier.parameters():
            weight.data = weight.data[list(order)]
        other.config.id2label = {place: names[number] for place, number in enumerate(order)}
        other.config.label2id = {names[number]: place for place, number in enumerate(order)}
        return str(save_student(other, folder / "-".join([*names, *map(str, order)]), tokenizer))

    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)], saved


COUNTED = ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    "beside",
    [
        *((NAMES, (0, 1, 2)), (COUNTED, (0, 1, 2)), (COUNTED, (2, 0, 1)), (COUNTED, (1, 0, 2))),
        *((("0", "1", "2"), (0, 1, 2)), (("0", "1", "2"), (1, 2, 0)), (("0", "1", "2"), (2, 1, 0))),
    ],
)
@pytest.mark.parametrize("own", [(NAMES, (0, 1, 2)), (COUNTED, (0, 1, 2)), (COUNTED, (2, 0, 1))])
def test_a_model_s_figures_are_the_same_whatever_student_is_measured_beside_it(judged, own, beside):
    rows, saved = judged
    model, student = saved(*own), saved(*beside)
    report = evaluate(student, rows, teacher=model, candidates={"further": model}, **QUICK)
    right = {name: each.quality["accuracy"].value for name, each in report.candidates.items()}
    assert right == {"teacher": 1.0, "student": 1.0, "further": 1.0}
    assert report.candidates["student"].agreement.value == 1.0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_model_is_matched_to_named_rows_where_the_student_only_counts(judged, order):
    rows, saved = judged
    named = [row | {"label": NAMES[row["label"]]} for row in rows]
    student = saved(("LABEL_1", "LABEL_0", "LABEL_2"), (0, 1, 2))
    report = evaluate(student, named, teacher=saved(NAMES, order), **QUICK)
    assert {name: each.quality["accuracy"].value for name, each in report.candidates.items()} == {
        "student": 1.0, "teacher": 1.0,
    }  # fmt: skip


def test_nothing_that_is_said_of_measured_rows_calls_them_training_rows(given, tmp_path, caplog, capfd):
    rows = [{"text": "the film was very good " * 30, "label": "neg"}, {"text": "bad", "label": "pos"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    evaluate(**given | {"data": str(tmp_path / "rows.jsonl")}, **QUICK | {"max_length": 8})
    said = caplog.text + capfd.readouterr().err
    assert "data: 1 of 2 rows truncated to 8 tokens" in said and "Tokenising data" in said and "rows: 2\n" in said
    assert "train" not in said.replace(str(given["student"]), "").replace("pretrained", ""), said


@pytest.mark.parametrize("names", [["train", "validation_matched", "validation_mismatched"], ["train", "dev", "eval"]])
def test_rows_of_several_splits_are_measured_as_they_are_alone(names, given, tmp_path):
    rows = {name: raw_rows(10 + place, seed=place) for place, name in enumerate(names)}
    for split in names:
        report = evaluate(given["student"], DatasetDict(rows), split=split, **QUICK)
        assert report.run.data.split == {"dev": "validation"}.get(split, split)
        alone = evaluate(given["student"], rows[split], **QUICK)
        assert report.candidates["student"].quality == alone.candidates["student"].quality
        assert report.task.rows == len(rows[split])
    hidden = rows[names[1]].map(lambda _: {"label": -1})
    splits = DatasetDict({names[0]: rows[names[0]], "test": hidden, names[2]: rows[names[2]]})
    assert evaluate(given["student"], splits, **QUICK).run.data.split == names[2]


@pytest.fixture(scope="module")
def tagged() -> dict[str, Dataset]:
    return {
        split: raw_rows(30, seed).remove_columns("label").add_column("labels", [["a"], ["b"], ["a", "b"]] * 10)
        for seed, split in enumerate(("train", "validation", "test"))
    }


@pytest.fixture
def tagger(tokenizer, tmp_path) -> Path:
    """A folder of a student of two labels, which has no thresholds."""
    names = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    student = tiny_bert(1, problem_type="multi_label_classification", initializer_range=0.5, **names)
    return save_student(student, tmp_path / "tagger", tokenizer)


@pytest.mark.parametrize("before", [None, {"a": 0.9, "b": 0.1}])
def test_a_report_in_the_student_s_own_folder_is_of_the_student_as_it_decides_from_there(before, tagged, tagger):
    config = json.loads((tagger / "config.json").read_text())
    if before is not None:
        (tagger / "config.json").write_text(json.dumps(config | {"thresholds": before}))
    report = evaluate(tagger, tagged["test"], held_out=tagged["validation"], output_dir=tagger, **QUICK)
    assert report == EvaluationReport.load(tagger)
    chosen = report.run.thresholds["student"]
    assert json.loads((tagger / "config.json").read_text()) == config | {"thresholds": chosen}
    assert report.run.thresholds_kept and chosen != before
    again = evaluate(tagger, tagged["test"], **QUICK)
    assert again.candidates["student"].quality == report.candidates["student"].quality
    assert verify(tagger, tagged["test"], **QUICK).holds
    # The card's own code.
    card = build_model_card(report, model_name=str(tagger)).content
    exec(re.search(r"```python\n(from transformers.*?)```", card, re.DOTALL)[1], {})


def test_a_report_elsewhere_leaves_the_student_as_it_is_and_says_so(tagged, tagger, tmp_path):
    before = (tagger / "config.json").read_bytes()
    elsewhere = tmp_path / "reports"
    evaluate(tagger, tagged["test"], held_out=tagged["validation"], output_dir=elsewhere, **QUICK)
    assert (tagger / "config.json").read_bytes() == before
    assert "its own config has others, or none" in (elsewhere / "report.md").read_text()


@pytest.fixture
def measured(tagged, tagger, tokenizer, tmp_path) -> tuple[Path, Path, EvaluationReport]:
    """A student whose report chose thresholds for it and its teacher, that teacher, and the report."""
    labels = {"id2label": {0: "b", 1: "a"}, "label2id": {"b": 0, "a": 1}}
    teacher = tiny_bert(2, seed=4, problem_type="multi_label_classification", initializer_range=0.5, **labels)
    folder = save_student(teacher, tmp_path / "teacher", tokenizer)
    given = {"teacher": folder, "held_out": tagged["validation"], "output_dir": tagger}
    return tagger, folder, evaluate(tagger, tagged["test"], **given, **QUICK)


def test_a_teacher_is_measured_again_by_the_thresholds_that_the_student_s_report_chose_for_it(measured, tagged):
    student, teacher, before = measured
    again = evaluate(student, tagged["test"], teacher=teacher, **QUICK)
    assert again.run.thresholds == before.run.thresholds
    assert {name: each.decides_by for name, each in again.candidates.items()} == {
        "student": "config", "teacher": "report",
    }  # fmt: skip
    for name in ("student", "teacher"):
        assert again.candidates[name].quality == before.candidates[name].quality
    assert again.candidates["student"].agreement == before.candidates["student"].agreement
    assert "different rules" not in again.verdict()
    claims = {each.figure: each.holds for each in verify(student, tagged["test"], teacher=teacher, **QUICK).claims}
    assert claims["teacher: macro F1"] and claims["agreement with the teacher"]


def test_another_teacher_does_not_decide_by_them_and_the_report_says_so(measured, tagged):
    student, teacher, _ = measured
    other = shutil.copytree(teacher, teacher.with_name("other"))
    report = evaluate(student, tagged["test"], teacher=other, **QUICK)
    assert report.candidates["teacher"].decides_by == "0.5" and "teacher" not in report.run.thresholds
    assert "the student by chosen thresholds and the teacher by 0.5" in report.verdict()
    verification = verify(student, tagged["test"], teacher=other, **QUICK)
    claims = {each.figure: each.holds for each in verification.claims}
    assert claims["teacher: macro F1"] is None and claims["agreement with the teacher"] is None
    assert verification.holds


def test_labels_that_only_count_keep_thresholds_by_their_own_names(tagged, tokenizer, tmp_path):
    student = tiny_bert(1, problem_type="multi_label_classification", initializer_range=0.5)
    folder = save_student(student, tmp_path / "counted", tokenizer)
    report = evaluate(folder, tagged["test"], held_out=tagged["validation"], output_dir=folder, **QUICK)
    assert list(report.run.thresholds["student"]) == ["a", "b"]
    found = json.loads((folder / "config.json").read_text())["thresholds"]
    assert found == dict(zip(("LABEL_0", "LABEL_1"), report.run.thresholds["student"].values(), strict=True))
    assert verify(folder, tagged["test"], **QUICK).holds


def test_a_card_is_not_made_of_figures_that_the_student_does_not_have(tagged, tagger):
    report = evaluate(tagger, tagged["test"], held_out=tagged["validation"], **QUICK)
    with pytest.raises(ValueError, match="thresholds that .*config.json does not have"):
        renewed_card(report, tagger, "tagger")
    save_report(report, tagger, page=False)
    assert renewed_card(EvaluationReport.load(tagger), tagger, "tagger")


@pytest.mark.parametrize(
    ("split", "names", "fitted"),
    [
        (None, ("train", "validation", "test"), "validation"),
        ("test", ("train", "dev", "test"), "validation"),
        ("validation", ("train", "validation", "test"), "test"),
    ],
)
def test_of_one_source_a_split_is_fitted_on_that_is_not_measured(split, names, fitted, tagged, tagger):
    both = DatasetDict(dict(zip(names, tagged.values(), strict=True)))
    report = evaluate(tagger, both, held_out=both, split=split, **QUICK)
    measured, other = (tagged[each] for each in (report.run.data.split, fitted))
    assert report.run.data.split == (split or "test") and report.run.data.held_out_split == fitted
    assert f"held out: the split {fitted} of in-memory data" in report.to_markdown()
    apart = evaluate(tagger, measured, held_out=other, **QUICK)
    assert report.run.thresholds == apart.run.thresholds


def test_a_source_without_splits_is_told_by_its_name_and_by_no_split(tagged, tagger, tmp_path):
    files = {name: str(tmp_path / f"{name} tags.jsonl") for name in ("test", "dev")}
    tagged["test"].to_json(files["test"])
    tagged["validation"].to_json(files["dev"])
    rows = [tagged[name].to_list() for name in ("test", "validation")]
    for data, held_out, called in ((*files.values(), "dev tags.jsonl"), (*rows, "in-memory data")):
        report = evaluate(tagger, data, held_out=held_out, **QUICK)
        assert report.run.data.split is None and report.run.data.held_out_split is None
        told = report.to_markdown()
        assert f"; held out: {called}\n" in told and "split train" not in told and "the split" not in told
    held_back = evaluate(tagger, files["test"], validation_split=0.5, **QUICK)
    assert held_back.run.data.split == "validation"


def test_the_same_rows_are_refused_as_held_out_ones(tagged, tagger, tmp_path):
    file = str(tmp_path / "rows.jsonl")
    tagged["test"].to_json(file)
    alone = DatasetDict(train=tagged["train"], validation=tagged["test"])
    for data, held_out in ((file, file), (file, tagged["test"]), (alone, alone), (tagged["test"], tagged["test"])):
        with pytest.raises(ValueError, match="all 30 held-out rows are measured ones"):
            evaluate(tagger, data, held_out=held_out, **QUICK)
