"""A student's folder: model, report, card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState

from nlpkd.evaluation.html_report import save_page, training_curves
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import build_model_card
from nlpkd.utils.files import atomic_model_update, write_atomic


def save_student(model: Any, directory: str | Path, tokenizer: Any = None) -> Path:
    """Save a student as safetensors with its tokenizer beside it.

    Everything is written in full before the first file gets its final name, so a failure leaves what was there before.

    Args:
        model: The student, anything with transformers' `save_pretrained`.
        directory: Where to; made when missing.
        tokenizer: Its tokenizer.

    Returns:
        The directory.

    Raises:
        ValueError: If the model can't save itself.
        OSError: If the disk is full.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(
            f"a {type(model).__name__} has no save_pretrained, so no checkpoint can be written; make it a "
            "transformers PreTrainedModel, or save its state_dict with safetensors yourself"
        )
    directory = Path(directory)
    with atomic_model_update(directory) as temporary:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    return directory


def save_report(report: EvaluationReport, directory: str | Path, model_name: str | None = None) -> None:
    """Save a report, its page and the model card made of it into a student's folder; the main process does.

    Args:
        report: what was measured.
        directory: the folder.
        model_name: the card's; the folder's own name if None.
    """
    if not PartialState().is_main_process:
        return
    report.save(directory)
    save_page(report, directory, curves=training_curves(directory))
    card = build_model_card(report, model_name=model_name or Path(directory).resolve().name)
    write_atomic(Path(directory) / "README.md", str(card).encode())
