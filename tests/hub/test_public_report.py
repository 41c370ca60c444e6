"""What a report says in public: every candidate is in it, and all that belongs to one goes by one name."""

from __future__ import annotations

import json
from dataclasses import replace

from samples import tiny_report

from nlpkd.evaluation.records import SeedSpread
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import build_model_card
from nlpkd.hub.public_report import public_report

PATHS = ["/runs/a/student", "/runs/b/student", "/runs/c/student", "./student (2)", "C:\\runs\\student"]


def test_candidates_whose_paths_end_alike_stay_apart_and_keep_what_is_theirs():
    report = tiny_report()
    student = report.candidates["student"]
    further = {path: replace(student, parameters=1000 + number) for number, path in enumerate(PATHS)}
    labels = report.task.labels
    # Of some candidates alone, in another order than theirs.
    known = ["student", *PATHS[:0:-1]]
    thresholds = {name: dict.fromkeys(labels, 0.1 * number) for number, name in enumerate(known)}
    files = {name: {f"onnx/{number}.onnx": "0" * 64} for number, name in enumerate(known)}
    local = replace(
        report,
        run=replace(report.run, thresholds=thresholds, student=replace(report.run.student, files_sha256=files)),
        candidates=report.candidates | further,
        seeds={
            name: {"accuracy": SeedSpread([float(number)], float(number), None)} for number, name in enumerate(PATHS)
        },
    )
    public = public_report(local)
    assert len(public.candidates) == len(local.candidates)
    assert not any("runs" in name for name in public.candidates)
    names = dict(zip(local.candidates, public.candidates, strict=True))
    assert public.candidates == {names[name]: each for name, each in local.candidates.items()}
    assert public.seeds == {names[name]: each for name, each in local.seeds.items()}
    assert public.run.thresholds == {names[name]: each for name, each in thresholds.items()}
    assert public.run.student.files_sha256 == {names[name]: each for name, each in files.items()}
    # Once more changes nothing, and the page and the card have a row each.
    again = public_report(EvaluationReport.from_dict(json.loads(json.dumps(public.to_dict()))))
    assert again == EvaluationReport.from_dict(public.to_dict())
    card = build_model_card(local, model_name="a/b").content
    for text in (public.to_markdown(), card):
        assert all(f"{1000 + number:,}" in text for number in range(len(PATHS)))


def test_the_labels_of_thresholds_are_called_as_those_of_the_task():
    report = tiny_report()
    labels = ["/r/politics", "yes /no", "hf_" + "a" * 30]
    task = replace(report.task, labels=labels)
    run = replace(report.run, thresholds={"student": dict.fromkeys(labels, 0.5)})
    public = public_report(replace(report, task=task, run=run))
    assert list(public.run.thresholds["student"]) == public.task.labels
