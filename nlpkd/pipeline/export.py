"""A saved student as ONNX files in its own folder, kept only if they are as good as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.int8 import export_int8
from nlpkd.compression.onnx import OnnxRecord, accept, export_onnx, export_record, refuse_another_model
from nlpkd.data.arguments import DataArguments
from nlpkd.data.rows import count_texts
from nlpkd.data.sources import Source
from nlpkd.data.splits.learned import LearnedTexts, count_remembered, remember_texts
from nlpkd.data.text_classification import TextClassificationData, load_rows_for_model
from nlpkd.data.windows import whole_texts
from nlpkd.evaluation.benchmark import loaded_size_mb
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.origin import headline_name, keeps, retention
from nlpkd.evaluation.records import format_number, percent
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.evaluation.report_text import Cells
from nlpkd.hub.saving import forget_stale_files
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.models.source import ModelSource
from nlpkd.utils.disk.files import staging_folder
from nlpkd.utils.disk.locks import only_run
from nlpkd.utils.field_types import check_share, plain_arguments
from nlpkd.utils.progress import phase
from nlpkd.utils.provenance import command_line, now

_COMPARED_TEXTS = 128


_OF_INT8 = {"per_channel": True, "embeddings": True, "reduce_range": False}
"""Settings of `export_int8` and their defaults."""


class RetentionError(RuntimeError):
    """An exported file keeps less of the student's quality than was asked."""


@dataclass(frozen=True)
class ExportResult:
    """ONNX files and what they keep of the student.

    Attributes:
        directory: the folder that holds them.
        records: one a file.
        report: both measured on the data, the latency of single texts included; None without data.
    """

    directory: Path
    records: list[OnnxRecord]
    report: EvaluationReport | None

    def cells(self) -> Cells:
        """Return the table of the files beside what they were made of: its header, and a row a file."""
        in_7_bits = [each.portable_agreement for each in self.records]
        portable = ["portable"] if any(each is not None for each in in_7_bits) else []
        rows = [
            [
                each.file,
                format_number(each.size_mb, ".1f"),
                each.reference,
                str(each.rows),
                format_number(each.largest_difference, ".2g"),
                format_number(each.agreement),
                *(format_number(known) for _ in portable),
            ]
            for each, known in zip(self.records, in_7_bits, strict=True)
        ]
        return ["file", "MB", "compared with", "texts", "difference", "agree", *portable], rows

    def verdict(self) -> str:
        """Return in words what the files keep of the student's quality."""
        if self.report is None:
            return "No gate ran: what the files keep of the student's quality is measured with --data alone."
        kept = [f"{record.file} keeps {percent(record.retention)}" for record in self.records]
        return f"Of the student's {headline_name(self.report.task.headline)} in PyTorch {', '.join(kept)}."


@plain_arguments
def export_student(
    student: str | Path,
    *,
    int8: bool = False,
    data: Source | None = None,
    min_retention: float = 0.98,
    calibration: Source | None = None,
    portable: bool = False,
    output_dir: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **keywords: Any,
) -> ExportResult:
    """Export a saved student to `onnx/model.onnx`, and to `onnx/model_int8.onnx`, beside it.

    With data the files must pass a gate: each file's headline metric (accuracy, macro F1 or the Pearson correlation)
    over the student's in PyTorch, on the same rows. All files are kept, with `onnx/export.json`, or none, and then
    what was there before stays.

    Args:
        student: its folder, or a Hub id (`id@revision`) with `output_dir`.
        int8: write the int8 file too.
        data: labelled rows for the gate; see `load_text_classification`. Their first 128 texts are compared logit by
            logit too; without data random tokens are.
        min_retention: the least share of the student's headline metric that each file must keep.
        calibration: labelled rows whose first 128 texts fix the int8 file's scales (static quantisation), such as the
            training data; scales follow each batch (dynamic quantisation) if None.
        portable: write the int8 file in the form for x86 CPUs without VNNI, `reduce_range` of `export_int8`.
        output_dir: where config, tokenizer and files go in place of the student's own folder.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run the repository's own code.
        **keywords: how the rows are read, by the fields of `nlpkd.data.arguments.DataArguments` (`text_column`,
            `label_column`, `max_length`, ...); and `per_channel`, `embeddings` and `reduce_range` of `export_int8`.

    Returns:
        Records and report.

    Raises:
        RetentionError: if a file keeps less than `min_retention`; none is kept.
        RuntimeError: if the model can't be exported, or a file gives other logits.
        ValueError: if an argument is unknown, `min_retention` is no share, an argument is of an int8 file that is not
            asked for, student and data do not fit, the student's own metric is not above 0, or another run or export
            is writing to the folder.
        ImportError: if a package of the extra `export` is missing.
    """
    data_args, int8_settings = DataArguments.split_of(export_student, keywords, _OF_INT8, "one of export_int8")
    check_share("min_retention", min_retention, whole=True)
    source = ModelSource.of(student, revision, trust_remote_code)
    if output_dir is None and not Path(source.name).is_dir():
        raise ValueError(f"{student} is no folder, so the files need one: give output_dir")
    of_int8 = {"calibration": calibration is not None, "portable": portable}
    of_int8 |= {name: value != _OF_INT8[name] for name, value in int8_settings.items()}
    for name, given in of_int8.items():
        if given and not int8:
            raise ValueError(f"{name} is of an int8 file: ask for one (int8=True), or leave it out")
    if portable:
        int8_settings["reduce_range"] = True
    directory = Path(output_dir or source.name)
    model, tokenizer = source.teacher(), source.tokenizer()
    if output_dir is not None and directory.resolve() != Path(source.name).resolve():
        refuse_another_model(directory, model, tokenizer)
    load = partial(load_rows_for_model, config=model.config, tokenizer=tokenizer, data_args=data_args)
    found = None if data is None else load(data)
    rows, texts, columns = (None, None, []) if found is None else _with_first_texts(found)
    if found is not None:
        count_remembered(rows, columns, found[1], {"student": source.folder})
    typical = None
    if calibration is not None:
        whole = replace(data_args, validation_split=None)
        _, typical, _ = _with_first_texts(load(calibration, data_args=whole, splits=("train", "validation", "test")))
    # Processes that export together each have a folder of their own for what is not accepted yet.
    staging = staging_folder(directory, f".exporting-{PartialState().process_index}-")
    with only_run(directory), staging as staged:
        report = None
        comparing: dict[str, Any] = {"texts": texts, "max_length": data_args.max_length}
        compared = "random tokens" if texts is None else f"{len(texts)} texts"
        with phase(f"Writing an ONNX file, and comparing it with PyTorch on {compared}"):
            records = [export_onnx(model, tokenizer, staged, **comparing)]
        if int8:
            with phase("Writing the int8 file, and comparing it with the first one"):
                records.append(export_int8(staged, calibration=typical, **comparing, **int8_settings))
        if rows is not None:
            with phase(f"Measuring the student in PyTorch and the files on {count_texts(rows):,} rows"):
                candidates = {each.file: OnnxClassifier.from_pretrained(staged, file=each.file) for each in records}
                size_mb = {"student": loaded_size_mb(source, model)}
                run = {"command": command_line(), "date": now(), "student": source.describe()}
                # Large batches would take longer to time than all else here: `nlpkd evaluate` times them.
                timed: dict[str, Any] = {"latency_batches": (1,), "text_columns": columns}
                report = evaluate_student(
                    model, None, rows, tokenizer, candidates=candidates, run=run, size_mb=size_mb, **timed
                )
            kept = _retention(report, min_retention)
            records = [replace(each, retention=kept[each.file]) for each in records]
        accept(staged, directory, records, export_record(staged)["state_sha256"])
        if PartialState().is_main_process:
            remember_texts(LearnedTexts.beside(source.folder), directory)
            forget_stale_files(directory)
    return ExportResult(directory, records, report)


def ship_student(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    rows: Dataset,
    data: TextClassificationData,
) -> dict[str, OnnxClassifier]:
    """Write the int8 file of a student into the folder that it was just saved in, to be measured beside it.

    Args:
        student: the student.
        tokenizer: its tokenizer.
        folder: its folder.
        rows: whose first texts files and student are compared on, logit by logit.
        data: what the rows are of.

    Returns:
        The file by its path in the folder, as a candidate of a report.

    Raises:
        RuntimeError: if the model can't be exported, or a file gives other logits.
    """
    comparing: dict[str, Any] = {"texts": _first_texts(rows, data.text_columns), "max_length": data.max_length}
    with phase("Writing the ONNX files, and comparing them with PyTorch"):
        export_onnx(student, tokenizer, folder, **comparing)
        record = export_int8(folder, **comparing)
    return {record.file: OnnxClassifier.from_pretrained(folder, file=record.file)}


def _with_first_texts(found: tuple[Any, str, TextClassificationData]) -> tuple[Any, list[Any], list[str]]:
    """Return the rows that were loaded, their first texts, and the columns of the texts."""
    rows, _, loaded = found
    return rows, _first_texts(rows, loaded.text_columns), loaded.text_columns


def _first_texts(rows: Dataset, columns: Sequence[str]) -> list[Any]:
    """Return the first texts of rows, or pairs of texts: what files and PyTorch are compared on."""
    texts = whole_texts(rows)
    first = texts.select(range(min(_COMPARED_TEXTS, len(texts))))
    parts = [first[column][:] for column in columns]
    return parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))


def _retention(report: EvaluationReport, least: float) -> dict[str, float | None]:
    """Compute each file's headline metric over the student's; refuse all files where one keeps too little."""
    metric = report.task.headline
    value = {name: candidate.quality[metric].value for name, candidate in report.candidates.items()}
    student = value.pop("student")
    kept = {name: retention(each, student) for name, each in value.items()}
    for name, share in kept.items():
        if share is None:
            raise ValueError(f"the student's own {metric} is {student:.4g}, so that no share of it can be asked for")
        if not keeps(share, least):
            raise RetentionError(
                f"{name} has {metric} {value[name]:.4f} and the student in PyTorch {student:.4f} on "
                f"{report.task.rows} rows: it keeps {share:.6g}, below min_retention={least:g}; no file was kept"
            )
    return kept
