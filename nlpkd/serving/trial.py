"""A saved student beside its teacher on a page to type texts into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from nlpkd.data.arguments import DataArguments
from nlpkd.data.labels.classes import Classes
from nlpkd.data.sources import Source
from nlpkd.data.text_classification import load_rows_for_model
from nlpkd.evaluation.report import JSON_NAME, EvaluationReport
from nlpkd.models.loading import split_revision
from nlpkd.models.onnx_classifier import model_folder
from nlpkd.models.source import ModelSource
from nlpkd.serving.classifier import load
from nlpkd.tasks import task_of
from nlpkd.utils.packages import require


def make_trial(
    student: str | Path,
    teacher: str | Path | None = None,
    data: Source | None = None,
    *,
    trust_remote_code: bool = False,
    **keywords: Any,
) -> Any:
    """Make the page on which a student, and its teacher beside it, answer what is typed.

    Args:
        student: a folder, an ONNX file, or a Hub id (`id@revision`); see `nlpkd.load`.
        teacher: likewise.
        data: the rows that the student's report was measured on, for the texts on which both differ most.
        trust_remote_code: run the repositories' own code.
        **keywords: how the rows are read, by the fields of `nlpkd.data.arguments.DataArguments`.

    Returns:
        A `gradio.Blocks`; `launch(**nlpkd.serving.page.LOCAL)` opens it.

    Raises:
        ValueError: if a model can't be loaded, both have other classes, data is given and there is no report, or they
            are other rows.
        ImportError: without the extra `try`.
    """
    page = page_module()
    data_args, _ = DataArguments.split_of(make_trial, keywords)
    named = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    loaded = {role: load(name, trust_remote_code=trust_remote_code) for role, name in named.items()}
    for role, names in shared_names({role: each.model.config for role, each in loaded.items()}).items():
        page.name_labels(loaded[role], names)
    models = {f"{role}: {named[role]}": each for role, each in loaded.items()}
    report = _report_of(student)
    if report is None and data is not None:
        raise ValueError(f"{student} has no {JSON_NAME}, which says on which rows it differs: leave data out")
    if report is not None and teacher is not None:
        told = ModelSource.of(teacher, None, trust_remote_code).describe()
        page.settle_thresholds(loaded["teacher"], report.to_dict(), told["name"], told["revision"])
    texts = {}
    if report is not None and data is not None:
        texts = _texts(report, next(iter(models.values())), data, data_args)
    rows = [] if report is None else page.rows_that_differ(report.to_dict(), texts)
    pairs = data_args.text_pair_column is not None or bool(report and report.run.data.pairs)
    return page.make_page(models, rows, title=f"nlpkd try {student}", pairs=pairs)


def page_module() -> Any:
    """Import the page.

    Raises:
        ImportError: without the extra `try`.
    """
    require("gradio", extra="try")
    from nlpkd.serving import page

    return page


def shared_names(configs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what a page calls the labels of each model, in the order of its ids: the student's names.

    Args:
        configs: the models' by their roles, the student's among them.

    Returns:
        The names of each by its role.

    Raises:
        ValueError: if one has other classes than the student.
    """
    own = Classes.of(configs["student"].id2label, task_of(configs["student"]))
    names = {}
    for role, config in configs.items():
        try:
            order = Classes.of(config.id2label, task_of(config)).positions_in(own) or range(len(own))
        except ValueError as error:
            raise ValueError(
                f"a page compares models of the same classes, and the {role}'s are others: {error}"
            ) from error
        names[role] = [own.names[place] for place in order]
    return names


def _report_of(student: str | Path) -> EvaluationReport | None:
    """Return the report beside a student, None where there is none."""
    path = Path(student)
    folder = model_folder(path) if path.suffix == ".onnx" and path.is_file() else path
    if path.exists():
        return EvaluationReport.load_beside(folder)
    name, revision = split_revision(str(student))
    try:
        return EvaluationReport.load(hf_hub_download(name, JSON_NAME, revision=revision))
    except EntryNotFoundError:
        return None


def _texts(report: EvaluationReport, student: Any, data: Source, data_args: DataArguments) -> dict[int, str]:
    """Look up the texts on which student and teacher differ most, in the rows that the report was measured on."""
    found = report.candidates["student"].breakdown.disagreements or []
    splits = [name for name in (report.run.data.split, "test", "validation", "train") if name]
    rows, _, loaded = load_rows_for_model(
        data, student.model.config, tokenizer=student.tokenizer, data_args=data_args, splits=splits
    )
    if report.task.rows != len(rows) or any(rows[each.row]["labels"] != each.gold for each in found):
        raise ValueError(
            f"the report was measured on {report.task.rows} rows, and {loaded.name} has {len(rows)} or other labels: "
            "give the same rows, or leave data out"
        )
    return {each.row: "\n".join(str(rows[each.row][column]) for column in loaded.text_columns) for each in found}
