"""A model card from an evaluation report: metadata the Hub reads, and prose that says only what was recorded."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from nlpkd.evaluation.origin import DataRecord, ModelRecord, RunRecord, headline_figure, headline_name
from nlpkd.evaluation.records import (
    BASELINES,
    ONNX_RUNTIME,
    Candidate,
    format_number,
    percent,
)
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.evaluation.report_text import (
    code_block,
    decision_lines,
    escape_markdown,
    flat,
    listed,
    markdown_table,
    one_line,
    seeds_cells,
)
from nlpkd.hub.public_report import public_report
from nlpkd.tasks import MULTI_LABEL, REGRESSION
from nlpkd.utils.packages import pip_install

CARD_METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "f1_macro": ("f1", "Macro F1"),
    "pearson": ("pearsonr", "Pearson correlation"),
    "spearman": ("spearmanr", "Spearman correlation"),
    "matthews_correlation": ("matthews_correlation", "Matthews correlation"),
}
"""Quality in the report -> (metric's id on the Hub, its name)."""


WIDGET_TEXTS = (
    "The parcel came on Tuesday, and everything was in it.",
    "I read the page twice and still had a question.",
)
"""What the Hub's widget offers to classify; its format knows single texts alone, so that models of pairs get none."""


_DATA_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".arrow")


# The last line of a card that nobody edited, with the SHA-256 of all that stands before it.
_MARK = "\n<!-- written by nlpkd, and again by each run and push as long as nobody edits it: {} -->\n"


def build_model_card(report: EvaluationReport, *, model_name: str, onnx: bool = False) -> ModelCard:
    """Write a student's model card from its report and nothing else.

    Args:
        report: What was measured, and what made it. A teacher or data set named like `name` or `owner/name` counts as
            one of the Hub; a local one has to be an absolute path, one that starts with `./`, or a data file.
        model_name: The student's id on the Hub, or its directory's name.
        onnx: Whether the student has ONNX files; a report that measures one says so too.

    Returns:
        The card; `card.save(path)` writes it.
    """
    report = public_report(report)
    sections = [
        _introduction(report, model_name),
        _results(report),
        _usage(report, model_name),
        _onnx_usage(report, model_name, onnx),
        _training(report.run),
        _measurement(report),
        _limits(report),
        _citations(report.run),
    ]
    body = "\n\n".join(section for section in sections if section)
    metadata = _metadata(report, model_name).to_yaml()
    card = ModelCard(f"---\n{metadata}\n---\n\n{body}\n", ignore_metadata_errors=False)
    card.text += _MARK.format(_digest(card.content))
    return card


def is_generated(text: str) -> bool:
    """Check whether a card is as `build_model_card` wrote it, metadata included.

    Args:
        text: the whole of README.md.

    Returns:
        False for a card that somebody wrote or edited.
    """
    start, _ = _MARK.split("{}")
    written, found, _ = text.rpartition(start)
    return bool(found) and text.strip() == (written + _MARK.format(_digest(written))).strip()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _metadata(report: EvaluationReport, model_name: str) -> ModelCardData:
    run = report.run
    data = hub_id(run.data.name)
    results = _eval_results(report.candidates["student"], run.data)
    optional: dict[str, Any] = {"license": run.license, "language": run.language}
    optional = {key: value for key, value in optional.items() if value}
    # What the weights come from: what somebody said, the teacher, or what it or the student began as.
    start = run.student.name if run.student.checkpoint else str(run.student.extra.get("backbone") or "")
    teachers = [name for each in _teachers(run) if (name := hub_id(each.name))]
    if base := run.base_model or (teachers if len(teachers) > 1 else "".join(teachers)) or hub_id(start):
        optional |= {"base_model": base, "base_model_relation": "finetune"}
    if not run.data.pairs:
        optional["widget"] = [{"text": text} for text in WIDGET_TEXTS]
    tags = ["text-classification", "knowledge-distillation", "nlpkd", *run.tags]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=list(dict.fromkeys(tags)),
        datasets=[data] if data else None,
        metrics=[result.metric_type for result in results] or None,
        eval_results=results or None,
        model_name=one_line(model_name),
        **optional,
    )


def evaluated_data(data: DataRecord) -> DataRecord:
    """Return what was measured on: of several files the one that held the measured split."""
    source = data.evaluated_source or data.name
    evaluated = DataRecord(name=source, title=data.title, split=data.split)
    return replace(evaluated, config=data.config, revision=data.revision) if hub_id(source) else evaluated


def _eval_results(student: Candidate, data: DataRecord) -> list[EvalResult]:
    data = evaluated_data(data)
    name = str(data.name or "unnamed data")
    like_an_id = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePosixPath(name).stem).strip("-.") or "local-data"
    named = {"dataset_config": data.config, "dataset_split": data.split, "dataset_revision": data.revision}
    source: dict[str, Any] = {key: str(value) for key, value in named.items() if value}
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Text Classification",
            dataset_type=hub_id(name) or like_an_id,
            dataset_name=one_line(data.title or _called(name)),
            metric_type=metric,
            metric_name=title,
            metric_value=student.quality[quality].value,
            **source,
        )
        for quality, (metric, title) in CARD_METRICS.items()
        if quality in student.quality and math.isfinite(student.quality[quality].value)
    ]


def _introduction(report: EvaluationReport, model_name: str) -> str:
    student, teacher = report.run.student, report.run.teacher
    labels = [escape_markdown(label) for label in report.task.labels]
    layers = f" with {student.layers} layers" if student.layers else ""
    if report.task.problem_type == REGRESSION:
        kind = f"a model{layers} that gives a text a score"
    else:
        told = f" for {len(labels)} labels ({listed(labels)})" if labels else ""
        kind = f"a text classifier{layers}{told}"
    what = f"**{escape_markdown(model_name)}** is {kind}"
    teachers = " and ".join(map(_named, _teachers(report.run)))
    source = f"the teacher{'s' if teacher.models else ''} {teachers}" if teacher.name else "a larger teacher"
    return f"# {escape_markdown(model_name)}\n\n{what}, distilled with nlpkd from {source}. {report.verdict()}"


def _results(report: EvaluationReport) -> str:
    task, data = report.task, evaluated_data(report.run.data)
    rows = f"{task.rows:,} rows" if task.rows else "An unrecorded number of rows"
    where = f" of the split {escape_markdown(data.split)}" if data.split else ""
    source = f" of {_named(data)}" if data.name else ""
    commonest = f"; {percent(task.majority_share)} of them have the commonest label" if task.majority_share else ""
    told = [f"{rows}{where}{source}{commonest}.", task.one_class_note(), "In brackets: 95 % intervals."]
    parts = ["## Results", report.table(), " ".join(filter(None, told))]
    if report.seeds:
        cells = seeds_cells(report.seeds, escape_markdown)
        parts += ["Over several seeds, mean ± sample standard deviation:", markdown_table(*cells)]
    return "\n\n".join(parts)


def _usage(report: EvaluationReport, model_name: str) -> str:
    own_kind = (report.run.student.model_type or "").startswith("nlpkd_")
    several, asked = _has_several_labels(report), _asked(report)
    code = (
        ("import nlpkd  # transformers knows this kind of model from it\n" if own_kind else "")
        + "from transformers import pipeline\n\n"
        + f'classifier = pipeline("text-classification", model={_quoted(model_name)}, truncation=True'
        + (", top_k=None)\n" if several else ")\n")
    )
    if not several:
        return f"## How to use it\n\n{code_block(f'{code}print(classifier({asked}))', 'python')}"
    cut, told = "0.5", "0.5"
    if "student" in report.run.thresholds:
        cut, told = 'classifier.model.config.thresholds[each["label"]]', "its threshold in `config.thresholds`"
    code += f'print([each for each in classifier([{asked}])[0] if each["score"] > {cut}])'
    return (
        f"## How to use it\n\nA text has the labels whose score is above {told}, be they none or all; the figures are "
        f"of those.\n\n{code_block(code, 'python')}"
    )


def _has_several_labels(report: EvaluationReport) -> bool:
    return report.task.problem_type == MULTI_LABEL


def _asked(report: EvaluationReport) -> str:
    text = '"Write the text to classify here."'
    return f'{{"text": {text}, "text_pair": "Write the second text here."}}' if report.run.data.pairs else text


def _onnx_usage(report: EvaluationReport, model_name: str, onnx: bool) -> str:
    """Explain how ONNX files are run, with what was measured of them."""
    # The teacher's file is its own.
    measured = {
        name: entry for name, entry in report.candidates.items() if entry.runtime == ONNX_RUNTIME and name != "teacher"
    }
    if not (onnx or measured):
        return ""
    stride = report.run.data.window_stride
    code = (
        f"import nlpkd  # {pip_install('export')}\n\n"
        f"classify = nlpkd.load({_quoted(model_name)}{'' if stride is None else f', window_stride={stride}'})\n"
        f"print(classify({_asked(report)}{', decide=True' if _has_several_labels(report) else ''}))"
    )
    headline = report.task.headline
    figures = [
        f"- {escape_markdown(name)}: {headline_name(headline)} {headline_figure(entry, headline) or 'n/a'}, "
        + f"{format_number(entry.size_mb, '.1f')} MB"
        + "".join(f", {each.p50_ms:.2f} ms at batch {each.batch}" for each in entry.latency[:1])
        + (f", {entry.text_to_label_ms:.2f} ms from text to label" if entry.text_to_label_ms else "")
        for name, entry in measured.items()
    ]
    parts = ["On ONNX Runtime, from the int8 file in `onnx/` where there is one:", code_block(code, "python")]
    return "\n\n".join(parts + (["\n".join(figures)] if figures else []))


def _training(run: RunRecord) -> str:
    parts = ["## How it was trained"]
    if run.data.train_rows:
        parts.append(f"On {run.data.train_rows:,} rows" + (f" of {_named(run.data)}." if run.data.name else "."))
    objectives = [_objective(entry) for entry in run.objectives]
    parts.append("Objectives:\n\n" + "\n".join(objectives) if objectives else "The objectives were not recorded.")
    settings = [f"- {escape_markdown(key)}: {escape_markdown(flat(value))}" for key, value in run.settings.items()]
    if settings:
        parts.append("Settings:\n\n" + "\n".join(settings))
    if run.command:
        parts.append("The command:\n\n" + code_block(str(run.command), "bash"))
    return "\n\n".join(parts)


def _objective(entry: Mapping[str, Any]) -> str:
    settings = flat({key: value for key, value in entry.items() if key not in ("name", "citation")})
    name = escape_markdown(entry.get("name", "unnamed"))
    return f"- {name}: {escape_markdown(settings)}" if settings else f"- {name}"


def _measurement(report: EvaluationReport) -> str:
    run = report.run
    told = (
        _reading(run.data), *decision_lines(report.candidates), run.interval_protocol, run.latency_protocol,
        *run.data.notes(),
    )  # fmt: skip
    lines = [f"- {escape_markdown(protocol)}" for protocol in told if protocol]
    origin = {"Machine": run.machine, "Versions": run.versions, "Seed": run.seed, "Date": run.date}
    lines += [
        f"- {title}: {escape_markdown(flat(value))}" for title, value in origin.items() if value not in (None, "", {})
    ]
    return "## What was measured, and how\n\n" + ("\n".join(lines) or "The protocol was not recorded.")


def _reading(data: DataRecord) -> str:
    """Tell how long texts were read, which those who serve the student may do otherwise."""
    if data.max_length is None:
        return ""
    longer = f"Texts longer than {data.max_length} tokens, special ones included, were cut"
    if data.window_stride is None:
        return longer
    return (
        f"{longer} into windows that share {data.window_stride}, and the answers for the windows averaged, as by "
        f"nlpkd.load(..., window_stride={data.window_stride}); without it the beginning of such a text is read alone"
    )


def _limits(report: EvaluationReport) -> str:
    runs = max((len(spread.values) for spread in report.seeds.get("student", {}).values()), default=1)
    split = report.run.data.split
    limits = [
        "The figures hold for text like the evaluated rows; on another domain, language or period they may not."
        " What the teacher gets wrong, its biases included, the student has learnt too.",
        "The intervals cover the choice of the evaluated rows, not that of the training seed; "
        + (
            f"{runs} seeds were trained, their spread is given above."
            if runs > 1
            else "one seed was trained, so the spread between seeds is unknown."
        ),
    ]
    if split != "test":
        named = f"the split {escape_markdown(split)}" if split else "an unnamed split"
        limits.append(
            f"They come from {named}, not from a test split: where it also served to choose settings or a"
            " checkpoint, they are optimistic."
        )
    if not BASELINES.keys() & report.candidates.keys():
        limits.append("No undistilled baseline was trained: what the distillation itself added is unknown.")
    if "teacher" not in report.candidates:
        limits.append("The teacher was not evaluated beside the student.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _citations(run: RunRecord) -> str:
    cited = dict.fromkeys(entry["citation"] for entry in run.objectives if entry.get("citation"))
    return "## Citations\n\n" + "\n".join(f"- {escape_markdown(citation)}" for citation in cited) if cited else ""


def hub_id(name: str | None) -> str | None:
    """Check whether a name can be one on the Hub.

    Args:
        name: of a model or data set.

    Returns:
        The name if it can be one on the Hub, None for a path, a file, or no name.
    """
    if not name or name.lower().endswith(_DATA_FILES):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _called(name: str) -> str:
    return one_line(hub_id(name) or PurePosixPath(name).name or name)


def _teachers(run: RunRecord) -> list[ModelRecord]:
    """Return the teacher, or each of several."""
    return [ModelRecord.from_dict(each) for each in run.teacher.models] or [run.teacher]


def _named(part: ModelRecord | DataRecord) -> str:
    called, extra = _called(str(part.name)), []
    if isinstance(part, DataRecord):
        extra = [part.config] if part.config else []
    elif part.folder:
        # A file is called as many others are.
        called, extra = part.folder, [called]
    extra += [f"revision {part.revision}"] if part.revision else []
    return escape_markdown(called) + (f" ({', '.join(map(escape_markdown, extra))})" if extra else "")


def _quoted(model_name: str) -> str:
    return json.dumps(one_line(model_name), ensure_ascii=False)
