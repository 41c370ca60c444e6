"""Save a student so that plain transformers loads it, and push it to the Hub without losing or leaking anything."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_NAME

from nlpkd.compression.record import RECORD_NAME
from nlpkd.evaluation.report import JSON_NAME, MARKDOWN_NAME, PAGE_NAME, EvaluationReport
from nlpkd.hub.eval_results import RESULTS_FILES, is_written_here, write_eval_results
from nlpkd.hub.model_card import is_generated
from nlpkd.hub.public_report import public_report
from nlpkd.hub.saving import CARD_NAME, renewed_card, save_report
from nlpkd.hub.sending import (
    Changes,
    Target,
    There,
    explained,
    make_repository,
    planned_changes,
    send_folder,
)
from nlpkd.models.files.onnx_weights import named_weights
from nlpkd.models.limits import EXPORT_RECORD, ONNX_FOLDER, refuse_other_than_name
from nlpkd.models.onnx_classifier import refuse_stale
from nlpkd.students.backbone import without_local_backbone
from nlpkd.utils.disk.files import explain_damage, refuse_damaged, write_atomic
from nlpkd.utils.disk.full_disk import temporary_folder
from nlpkd.utils.disk.links import copy_from_inside, inside, refuse_outside
from nlpkd.utils.disk.locks import only_writer_if_any
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.provenance import as_command

logger = logging.getLogger(__name__)


_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)


_ONNX_WEIGHTS = "*.onnx[._]data*"


PUSH_ALLOW_PATTERNS = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *_VOCABULARIES,
    "*.onnx",
    _ONNX_WEIGHTS,
    EXPORT_RECORD,
    "README.md",
    "report.json",
    "report.md",
    "report.html",
    RECORD_NAME,
]
"""What may leave a student's directory and its folder `onnx`: nothing pickled, no run's state.

Of external weights of ONNX files only those leave that a file refers to.
"""


@plain_arguments
def push_student(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = Target.commit_message,
    create_pr: bool = False,
) -> str:
    """Push a saved student to the Hub: weights, ONNX files, tokenizer, card and report, and no other file.

    The card is written when it is missing, and again for `repo_id` as long as nobody edited it. Paths of this machine
    are taken out of the report's copy, and `report.html` is written anew from it, without examples. Where the student
    was measured on a benchmark of the Hub, `.eval_results/` has its figure.

    It is one commit, after which the repository has of all that a push may send what this one sent: files of an
    earlier student are deleted, which is told. What nlpkd never writes stays there, and so does a README.md that
    somebody wrote or edited there, unless the directory has one of somebody's own too. Server errors and dropped
    connections are retried; an unchanged student makes no commit.

    Args:
        directory: Where `save_student` (or a run) left the student.
        repo_id: `name` or `owner/name`; made when missing.
        private: Whether a new repository is private; None takes the account's default.
        token: A token with write access; None takes the one of `hf auth login`.
        revision: The branch, made when missing; None is the main one.
        commit_message: The commit's title.
        create_pr: Open a pull request in place of a commit to the branch.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ValueError: If the directory is no whole student, its ONNX files were made from other weights or its report
            measured of others, an argument can't work, or a file leads out of the directory by a link.
        RuntimeError: If the push failed; it says why, that nothing is lost, and how to finish.
    """
    target = Target(repo_id, private, token, revision, commit_message, create_pr)
    directory = _existing(directory)
    finish = f"Nothing is lost, everything is in {directory}; to finish: {_command(directory, target)}"
    with only_writer_if_any(directory, wait=True):
        _check_student(directory)
        with explained(target, "the student", finish):
            if (card := _new_card(directory, repo_id)) is not None:
                write_atomic(directory / CARD_NAME, card.encode())
            with temporary_folder() as staging:
                report = _stage(directory, staging)
                target = make_repository(target)
                if report is not None:
                    write_eval_results(report, staging, target.repo_id, token)
                return send_folder(target, staging, partial(_changes, _has_own_card(directory)))


def files_to_push(directory: str | Path, repo_id: str, **target: Any) -> dict[str, int]:
    """List what `push_student` would send, and neither send nor change anything.

    Args:
        directory: Where `save_student` (or a run) left the student.
        repo_id: `name` or `owner/name`, which the card is written for.
        **target: Further arguments of `push_student`.

    Returns:
        The bytes of each file by its path in the repository.

    Raises:
        ValueError: As by `push_student`.
    """
    Target(repo_id, **target)
    directory = _existing(directory)
    _check_student(directory)
    with temporary_folder() as staging:
        report = _stage(directory, staging)
        if report is not None:
            write_eval_results(report, staging, repo_id)
        if (card := _new_card(directory, repo_id)) is not None:
            (staging / CARD_NAME).write_bytes(card.encode())
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        return {path.relative_to(staging).as_posix(): path.stat().st_size for path in files}


def files_to_delete(directory: str | Path, repo_id: str, names: Iterable[str], **target: Any) -> list[str] | None:
    """List what `push_student` would delete in the repository, and change nothing.

    Args:
        directory: Where `save_student` (or a run) left the student.
        repo_id: `name` or `owner/name`.
        names: Of the files that it would send, by `files_to_push`.
        **target: Further arguments of `push_student`.

    Returns:
        The files; None where the Hub can't be asked.

    Raises:
        ValueError: If the repository is to be private, and exists and is public.
    """
    own_card = _has_own_card(_existing(directory))
    found = planned_changes(Target(repo_id, **target), [*names], partial(_changes, own_card))
    return None if found is None else [*found.deleted]


def _command(directory: Path, target: Target) -> str:
    """Write the command that does the same push; a token is no part of it."""
    words: list[Any] = ["nlpkd", "push", directory, "--repo-id", target.repo_id]
    words += [] if target.private is None else ["--private" if target.private else "--no-private"]
    words += [] if target.revision is None else ["--revision", target.revision]
    return as_command(*words, *(["--create-pr"] if target.create_pr else []))


def _changes(own_card: bool, there: There, names: Sequence[str]) -> Changes:
    """Return what makes a repository the same as the folder, in all that a push may send.

    Args:
        own_card: whether the folder's README.md is somebody's own, which replaces one of somebody's there.
        there: the repository.
        names: of the files that are sent.
    """
    edited = CARD_NAME in there.names and not is_generated(there.text_of(CARD_NAME))
    if edited and not own_card:
        logger.warning(
            "%s of %s is kept as it is: this version of nlpkd did not write it, or somebody edited it. Its figures "
            "may be those of an earlier student: delete it there to get a new one",
            CARD_NAME,
            there.target.repo_id,
        )
    kept = [CARD_NAME] if edited and not own_card else []
    names = [*names, *kept]
    gone = [name for name in _published(there.names) if name not in names]
    results = [name for name in there.names if fnmatch(name, RESULTS_FILES) and name not in names]
    gone += [name for name in results if is_written_here(there.text_of(name))]
    return Changes(sorted(gone), kept)


def _has_own_card(directory: Path) -> bool:
    path = directory / CARD_NAME
    return path.is_file() and not is_generated(path.read_text(encoding="utf-8", errors="replace"))


def _existing(directory: str | Path) -> Path:
    refuse_other_than_name(directory, "a student")
    if not Path(directory).is_dir():
        raise ValueError(f"{directory} is no directory; give the one a student was saved in")
    return Path(directory)


def _check_student(directory: Path) -> None:
    _publishable(directory)
    index = directory / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.is_file() and not (directory / "model.safetensors").is_file():
        with explain_damage(index, "save the student again"):
            weights = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    needed = ("config.json", "tokenizer_config.json", *weights)
    missing = [name for name in needed if not inside(directory, name).is_file()]
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        missing.append("tokenizer.json")
    if missing:
        found = ", ".join(sorted(path.name for path in directory.iterdir())) or "nothing"
        raise ValueError(
            f"{directory} is no whole student: {', '.join(missing)} is missing (found: {found}); "
            "save it again with save_student(model, directory, tokenizer)"
        )
    for name in weights:
        try:
            with safe_open(directory / name, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{directory / name} is damaged ({error}); save the student again") from error
    refuse_damaged(directory)
    refuse_stale(directory, *sorted(directory.glob("onnx/*.onnx")))
    if (report := _report_in(directory)) is not None:
        report.refuse_other_weights(directory)


def _publishable(directory: Path) -> list[str]:
    """List the files of a student's folder that may be published; one that leads out of the folder is refused."""
    found = [*directory.glob("*"), *(directory / ONNX_FOLDER).glob("*")]
    names = _published(sorted(path.relative_to(directory).as_posix() for path in found if path.is_file()))
    refuse_outside(directory, names)
    weights = [each for name in names if name.endswith(".onnx") for each in named_weights(directory / name)]
    needed = {each.relative_to(directory).as_posix() for each in weights}
    if missing := sorted(needed - {*names}):
        raise ValueError(
            f"ONNX files in {directory} have weights in {', '.join(missing)}, which a push does not send: save them "
            "again with their weights beside them, as model.onnx.data for model.onnx, or as one file, or delete them"
        )
    return [name for name in names if name in needed or not fnmatch(name, _ONNX_WEIGHTS)]


def _published(names: Iterable[str]) -> list[str]:
    """Choose those of a folder's or a repository's files that a push may send."""
    # The patterns let `*` match a slash: what lies in other folders, checkpoints and baseline, is none of them.
    near = [name for name in names if PurePosixPath(name).parent.as_posix() in (".", ONNX_FOLDER)]
    return list(filter_repo_objects(near, allow_patterns=PUSH_ALLOW_PATTERNS))


def _new_card(directory: Path, repo_id: str) -> str | None:
    """Return the text of the card that the report gives, None where somebody's own card is there."""
    if (report := _report_in(directory)) is not None:
        return renewed_card(report, directory, repo_id)
    if not (directory / CARD_NAME).is_file():
        logger.warning("%s has neither README.md nor report.json: the model is pushed without a card", directory)
    return None


def _report_in(directory: Path) -> EvaluationReport | None:
    if not (directory / JSON_NAME).is_file():
        return None
    with explain_damage(directory / JSON_NAME, "evaluate again"):
        return EvaluationReport.load(directory)


def _stage(directory: Path, staging: Path) -> EvaluationReport | None:
    """Gather what may be published: report and config without paths of this machine, the page without its examples.

    Returns:
        The published report, None where there is none.
    """
    # Copies, which nobody replaces by links while they are sent.
    for name in _publishable(directory):
        (staging / name).parent.mkdir(exist_ok=True)
        copy_from_inside(directory, name, staging / name)
    config = without_local_backbone((staging / CONFIG_NAME).read_text(encoding="utf-8"))
    if config is not None:
        (staging / CONFIG_NAME).write_text(config, encoding="utf-8")
    # Without report.json there is nothing that could be published of the page and of the text.
    page, named = (staging / PAGE_NAME).is_file(), (staging / JSON_NAME).is_file()
    with explain_damage(directory / JSON_NAME, "evaluate again"):
        public = public_report(EvaluationReport.load(staging)) if named else None
        for name in (JSON_NAME, MARKDOWN_NAME, PAGE_NAME):
            (staging / name).unlink(missing_ok=True)
        if public is not None and page:
            save_report(public, staging, card=False, logs=directory)
        elif public is not None:
            public.save(staging)
    return public
