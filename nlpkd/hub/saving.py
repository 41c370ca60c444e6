"""A student's folder: model, report, card."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import CONFIG_NAME, PreTrainedConfig, PreTrainedModel

from nlpkd.compression.record import RECORD_NAME
from nlpkd.data.labels.classes import Classes, thresholds_of
from nlpkd.data.splits.learned import LEARNED_NAME
from nlpkd.evaluation.benchmark import count_parameters, model_size_mb
from nlpkd.evaluation.evaluate import evaluate_student
from nlpkd.evaluation.html_report import make_page, training_curves
from nlpkd.evaluation.origin import RunRecord, TaskRecord
from nlpkd.evaluation.records import Candidate
from nlpkd.evaluation.report import JSON_NAME, MARKDOWN_NAME, PAGE_NAME, EvaluationReport
from nlpkd.hub.model_card import build_model_card, is_generated
from nlpkd.models.files.saved_config import complete_config, write_labels
from nlpkd.models.files.tokenizers import refuse_other_reading, save_tokenizer
from nlpkd.models.structure import matching_tokenizer
from nlpkd.students.readable import refuse_unreadable
from nlpkd.tasks import task_of
from nlpkd.utils.disk.files import atomic_model_update, weights_sha256, write_atomic

logger = logging.getLogger(__name__)


CARD_NAME = "README.md"


def save_student(model: Any, directory: str | Path, tokenizer: Any = None) -> Path:
    """Save a student as safetensors with its tokenizer beside it.

    Everything is written in full before the first file gets its final name, so a failure leaves what was there before.
    What nlpkd noted in the directory of other weights is removed: report, page, card, the record of a compression and
    the hashes of texts that were learnt from. An edited card stays.

    Args:
        model: The student, anything with transformers' `save_pretrained`.
        directory: Where to; made when missing.
        tokenizer: Its tokenizer.

    Returns:
        The directory.

    Raises:
        ValueError: If the model can't save itself, or could not be read back from what it saves, or the tokenizer
            gives other tokens than transformers makes of its files.
        OSError: If the disk is full.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(
            f"a {type(model).__name__} has no save_pretrained, so no checkpoint can be written; make it a "
            "transformers PreTrainedModel, or save its state_dict with safetensors yourself"
        )
    refuse_unreadable(model)
    directory = Path(directory)
    with model_update(directory) as temporary:
        config = getattr(model, "config", None)
        complete_config(config)
        model.save_pretrained(temporary)
        write_labels(config, temporary)
        if tokenizer is not None:
            save_tokenizer(matching_tokenizer(tokenizer, model), temporary)
            refuse_other_reading(tokenizer, temporary)
    return directory


def keep_student(model: Any, directory: str | Path, tokenizer: Any, sha256: Mapping[str, str] | None = None) -> None:
    """Save a student again where its folder has no weights any more, or others than it was saved with.

    Args:
        model: The student.
        directory: Where it was saved.
        tokenizer: Its tokenizer.
        sha256: Of its weights there, by `weights_sha256`; None where any will do.
    """
    found = weights_sha256(Path(directory))
    if found and sha256 in (None, found):
        return
    what = "has other weights than were saved there" if found else "has lost the weights that were saved there"
    logger.warning("%s %s: the student is saved again.", directory, what)
    save_student(model, directory, tokenizer)


@contextmanager
def model_update(folder: Path) -> Iterator[Path]:
    """Replace the files of a model as `atomic_model_update` does, and take away what was told of other weights.

    That is a report which names them, its page, the card that was made of it unless somebody edited that, the record
    of a compression, and which texts they learnt from.

    Args:
        folder: where the model goes.

    Yields:
        The folder to save it in.

    Raises:
        OSError: if no more fits on the disk.
    """
    told = [path for name in (RECORD_NAME, LEARNED_NAME) if (path := folder / name).exists()]
    before = weights_sha256(folder) if told else {}
    with atomic_model_update(folder) as temporary:
        yield temporary
    if before and weights_sha256(folder) != before:
        for path in told:
            path.unlink(missing_ok=True)
    try:
        report = EvaluationReport.load(folder)
    except (ValueError, OSError):
        return
    if report.is_of(folder):
        return
    logger.warning(
        "The report in %s was of the weights that were there before: it is removed, and so are its page and card.",
        folder,
    )
    if _is_ours(folder / CARD_NAME):
        (folder / CARD_NAME).unlink()
    # The report goes last: it tells that the others are of other weights.
    for name in (PAGE_NAME, MARKDOWN_NAME, JSON_NAME):
        (folder / name).unlink(missing_ok=True)


def forget_stale_files(folder: Path) -> None:
    """Take out of a folder's report, page and card what was measured of files that are other ones by now.

    Args:
        folder: the student's.
    """
    if not (folder / JSON_NAME).is_file():
        return
    report = EvaluationReport.load(folder)
    kept = report.without_stale(folder)
    gone = sorted(report.candidates.keys() - kept.candidates.keys())
    if not gone:
        return
    logger.warning(
        "The report in %s was of another %s: these figures are taken out. To measure the new file: nlpkd evaluate",
        folder,
        ", ".join(gone),
    )
    card, page = folder / CARD_NAME, (folder / PAGE_NAME).is_file()
    name = ModelCard.load(card).data.model_name if _is_ours(card) else None
    save_report(kept, folder, name, card=_is_ours(card), page=page)


def _is_ours(card: Path) -> bool:
    """Check whether a card is there that nobody wrote or edited."""
    return card.is_file() and is_generated(card.read_text(encoding="utf-8", errors="replace"))


def save_report(
    report: EvaluationReport,
    directory: str | Path,
    model_name: str | None = None,
    *,
    card: bool = True,
    own: bool = False,
    page: bool = True,
    logs: str | Path | None = None,
    texts: Mapping[int, str] | None = None,
) -> EvaluationReport:
    """Save a report, its page and the model card made of it; call it in the main process alone.

    In its student's folder the thresholds that its figures are of go into the config, so that the student decides by
    them.

    Args:
        report: what was measured.
        directory: the student's folder, or any other for a report without a card.
        model_name: the card's; the folder's own name if None.
        card: write README.md, unless somebody wrote or edited the one that is there.
        own: whether `directory` is the folder of the report's student; where there is to be a card, it is.
        page: write report.html, all three files of a report or none; False takes away the one of an earlier report.
        logs: the folder of the training whose curves the page shows; `directory` if None.
        texts: texts of the page's examples, by row number.

    Returns:
        The report as it is saved.

    Raises:
        ValueError: if there is to be a card, and the report is of other weights than the folder's; nothing is written.
        OSError: if the disk is full.
    """
    directory = Path(directory)
    if card:
        report.refuse_other_weights(directory)
    if (card or own) and "student" in report.run.thresholds:
        if (config := _with_thresholds(report, directory)) is not None:
            write_atomic(directory / CONFIG_NAME, config)
        report = replace(report, run=replace(report.run, thresholds_kept=True))
    text = None
    try:
        text = make_page(report, curves=training_curves(logs or directory), texts=texts) if page else None
    finally:
        # A page that can't be made costs no figures.
        report.save(directory, text)
    if not card:
        return report
    written = renewed_card(report, directory, model_name or directory.resolve().name)
    if written is not None:
        write_atomic(directory / CARD_NAME, written.encode())
    else:
        logger.warning(
            "%s is kept as it is: this version of nlpkd did not write it, or somebody edited it. Its figures may be "
            "those of an earlier run: delete it to get a new one",
            directory / CARD_NAME,
        )
    return report


def _with_thresholds(report: EvaluationReport, folder: Path) -> bytes | None:
    """Return the config of a student's folder with the thresholds that a report's figures of it are of.

    None where it has them, and where there is no config or no threshold.
    """
    chosen, path = report.run.thresholds.get("student"), folder / CONFIG_NAME
    if chosen is None or not path.is_file():
        return None
    entries = json.loads(path.read_text(encoding="utf-8"))
    config: Any = PreTrainedConfig.from_dict(entries)
    names = list(config.id2label.values())
    # Names that only count may have been those of the rows in the report.
    named = chosen if set(names) == set(chosen) else dict(zip(names, chosen.values(), strict=True))
    wanted = {name: named[name] for name in names}
    if thresholds_of(config) == list(wanted.values()):
        return None
    return (json.dumps(entries | {"thresholds": wanted}, indent=2, sort_keys=True) + "\n").encode()


def save_partial_report(
    student: PreTrainedModel,
    rows: Any,
    tokenizer: Any,
    run: Mapping[str, Any],
    directory: str | Path,
    model_name: str | None = None,
) -> bool:
    """Save what can be said of a student that could not be measured as a whole: its own quality, or what made it.

    Args:
        student: after its training.
        rows: that it was to be measured on.
        tokenizer: its tokenizer.
        run: what made the student, entries of `RunRecord`.
        directory: its folder.
        model_name: the card's; the folder's own name if None.

    Returns:
        Whether a report is in the folder. What kept one from it is logged.
    """
    entries = dict(run) | {"incomplete": True}

    def quality() -> EvaluationReport:
        return evaluate_student(student, None, rows, tokenizer, run=entries, latency_runs=0)

    def origin() -> EvaluationReport:
        classes = Classes.of_config(student.config)
        task = TaskRecord(problem_type=task_of(student.config), labels=list(classes.names) if classes else [])
        known = Candidate({}, None, count_parameters(student), model_size_mb(directory))
        return EvaluationReport(task, RunRecord.from_dict(entries), {"student": known}, {})

    directory = Path(directory)
    for measure in (quality, origin):
        try:
            report = measure()
            report.save(directory)
        except Exception as error:  # The error that led here is the one to raise.
            logger.warning("A report of the student's %s can't be saved either: %s", measure.__name__, error)
            continue
        with suppress(Exception):
            if (text := renewed_card(report, directory, model_name or directory.resolve().name)) is not None:
                write_atomic(directory / CARD_NAME, text.encode())
        return True
    return False


def renewed_card(report: EvaluationReport, directory: Path, model_name: str) -> str | None:
    """Return the card of a student's folder as its report has it now.

    Args:
        report: what was measured.
        directory: the folder, whose ONNX files the card explains.
        model_name: the student's id on the Hub, or its directory's name.

    Returns:
        The text of README.md; None where somebody wrote or edited the one that is there.

    Raises:
        ValueError: if the report is of other weights than the folder's, or of other thresholds.
    """
    report.refuse_other_weights(directory)
    if _with_thresholds(report, directory) is not None:
        raise ValueError(
            f"the report's figures are of thresholds that {directory / CONFIG_NAME} does not have: save it with "
            f"nlpkd.hub.saving.save_report, or measure the student again (`nlpkd evaluate {directory} --data DATA "
            f"--held-out DATA --output-dir {directory}`)"
        )
    path = directory / CARD_NAME
    if path.is_file() and not _is_ours(path):
        return None
    onnx = any((directory / "onnx").glob("*.onnx"))
    return build_model_card(report, model_name=model_name, onnx=onnx).content
