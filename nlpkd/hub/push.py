"""Save a student so that plain transformers loads it, and push it to the Hub without losing or leaking anything."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import CommitInfo, HfApi, RepoUrl, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_NAME

from nlpkd.compression.record import RECORD_NAME
from nlpkd.evaluation.report import JSON_NAME, MARKDOWN_NAME, PAGE_NAME, EvaluationReport
from nlpkd.hub.eval_results import write_eval_results
from nlpkd.hub.public_report import public_report
from nlpkd.hub.saving import CARD_NAME, renewed_card, save_report
from nlpkd.models.limits import refuse_other_than_name
from nlpkd.models.onnx_classifier import EXPORT_RECORD, refuse_stale
from nlpkd.students.backbone import without_local_backbone
from nlpkd.utils.files import explain_damage, refuse_damaged, write_atomic
from nlpkd.utils.full_disk import NO_SPACE, temporary_folder
from nlpkd.utils.hub_requests import NOT_THE_HUB, HubTimeoutError, HubUnreachableError, limit_hub_requests
from nlpkd.utils.links import copy_from_inside, inside, refuse_outside
from nlpkd.utils.locks import only_writer_if_any
from nlpkd.utils.provenance import as_command, without_tokens

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
    EXPORT_RECORD,
    "README.md",
    "report.json",
    "report.md",
    "report.html",
    RECORD_NAME,
]
"""What may leave a student's directory and its folder `onnx`: nothing pickled, no run's state."""


_BACKOFF_S = (1.0, 2.0)


def push_student(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload student distilled with nlpkd",
    create_pr: bool = False,
) -> str:
    """Push a saved student to the Hub: weights, ONNX files, tokenizer, card and report, and no other file.

    The card is written when it is missing, and again for `repo_id` as long as nobody edited it. Paths of this machine
    are taken out of the report's copy, and `report.html` is written anew from it, without examples. Where the student
    was measured on a benchmark of the Hub, `.eval_results/` has its figure. Server errors and dropped connections are
    retried; an unchanged student makes no commit.

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
    directory = _existing(directory)
    validate_repo_id(repo_id)
    if create_pr and revision is not None:
        raise ValueError(f"create_pr opens a pull request against the main branch; leave out revision={revision!r}")
    limit_hub_requests()
    api = HfApi(token=token)
    with only_writer_if_any(directory, wait=True):
        _check_student(directory)
        try:
            if (card := _new_card(directory, repo_id)) is not None:
                write_atomic(directory / CARD_NAME, card.encode())
            with temporary_folder() as staging:
                report = _stage(directory, staging)
                return _upload(api, staging, report, repo_id, private, revision, commit_message, create_pr)
        except (HTTPError, OSError, _NotSentError) as error:
            secret = token or get_token()
            reason = without_tokens(_why(error, repo_id, api))
            if secret:
                reason = reason.replace(secret, "***")
            # The chain of an error that quotes the token would print it.
            cause = None if secret and secret in str(error) else error
            raise RuntimeError(
                f"the student was not pushed to {repo_id}: {reason}. Nothing is lost, everything is in {directory}; "
                f"to finish: {_command(directory, repo_id, private, revision, create_pr)}"
            ) from cause


def files_to_push(directory: str | Path, repo_id: str) -> dict[str, int]:
    """List what `push_student` would send, and neither send nor change anything.

    Args:
        directory: Where `save_student` (or a run) left the student.
        repo_id: `name` or `owner/name`, which the card is written for.

    Returns:
        The bytes of each file by its path in the repository.

    Raises:
        ValueError: If the directory is no whole student, its ONNX files were made from other weights, or its report
            was measured of others.
    """
    directory = _existing(directory)
    validate_repo_id(repo_id)
    _check_student(directory)
    with temporary_folder() as staging:
        report = _stage(directory, staging)
        if report is not None:
            write_eval_results(report, staging, repo_id)
        if (card := _new_card(directory, repo_id)) is not None:
            (staging / CARD_NAME).write_bytes(card.encode())
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        return {path.relative_to(staging).as_posix(): path.stat().st_size for path in files}


def _command(directory: Path, repo_id: str, private: bool | None, revision: str | None, create_pr: bool) -> str:
    """Write the command that does the same push; a token is no part of it."""
    words: list[Any] = ["nlpkd", "push", directory, "--repo-id", repo_id]
    words += [] if private is None else ["--private" if private else "--no-private"]
    words += [] if revision is None else ["--revision", revision]
    return as_command(*words, *(["--create-pr"] if create_pr else []))


def _upload(
    api: HfApi,
    folder: Path,
    report: EvaluationReport | None,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    message: str,
    create_pr: bool,
) -> str:
    url = _with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    _check_visibility(api, url, private)
    if revision is not None and not revision.startswith("refs/pr/"):
        _with_retries(lambda: api.create_branch(url.repo_id, branch=revision, exist_ok=True))
    if report is not None:
        write_eval_results(report, folder, url.repo_id, api.token if isinstance(api.token, str) else None)
    # A lost answer would open a second pull request, while a second commit of the same files is none.
    tries = 1 if create_pr else len(_BACKOFF_S) + 1
    commit = _with_retries(
        lambda: _send(
            api,
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        ),
        tries=tries,
    )
    return commit.pr_url or commit.commit_url


class _NotSentError(Exception):
    """huggingface_hub could not upload a file, for a reason that is no HTTP error."""


def _send(api: HfApi, **upload: Any) -> CommitInfo:
    """Upload a folder; huggingface_hub wraps what stopped a single file, and the reason is in there."""
    try:
        return api.upload_folder(**upload)
    except json.JSONDecodeError:
        raise
    except (RuntimeError, ValueError) as error:
        if isinstance(error.__cause__, HTTPError):
            raise error.__cause__ from None
        raise _NotSentError(f"{error}: {error.__cause__}" if error.__cause__ else str(error)) from error


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
    # The patterns let `*` match a slash: what lies in other folders, checkpoints and baseline, is not listed.
    listed = [
        path.relative_to(directory).as_posix()
        for folder in (directory, directory / "onnx")
        for path in sorted(folder.glob("*"))
        if path.is_file()
    ]
    names = list(filter_repo_objects(listed, allow_patterns=PUSH_ALLOW_PATTERNS))
    refuse_outside(directory, names)
    return names


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


def _check_visibility(api: HfApi, url: RepoUrl, private: bool | None) -> None:
    """Refuse to publish what was meant to be private: `create_repo` leaves an existing repository as it is."""
    if private and not _with_retries(lambda: api.repo_info(url.repo_id)).private:
        raise ValueError(
            f"private=True, but {url.repo_id} exists and is public; choose another name, or make it private on the Hub"
        )


def _with_retries(call: Any, tries: int = len(_BACKOFF_S) + 1) -> Any:
    """Call until it works, again only after what a second try can mend: a server's error, or a lost connection."""
    for attempt in range(tries):
        try:
            return call()
        except json.JSONDecodeError as error:
            raise _NotSentError(NOT_THE_HUB) from error
        except (HTTPError, ConnectionError, TimeoutError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            asked_for = isinstance(error, OfflineModeIsEnabled) and not isinstance(error, HubUnreachableError)
            final = asked_for or isinstance(error, HubTimeoutError) or (status is not None and status < 500)
            if final or attempt == tries - 1:
                raise
            wait = _BACKOFF_S[attempt]
            logger.warning("the Hub failed (%s); trying again in %g s", status or type(error).__name__, wait)
            time.sleep(wait)


_REASONS = {
    401: "the Hub did not accept the token: run `hf auth login` with a valid one",
    402: "the account's storage or plan does not allow it: free some space or upgrade the plan",
    404: "{repo_id} or its revision was not found, or the token may not see it",
    409: "the repository or a change to it is in conflict with what is there already",
    412: "somebody else committed to {repo_id} meanwhile",
    413: "a file is larger than the Hub takes",
    429: "the Hub's rate limit is reached: wait some minutes",
}


def _why(error: BaseException, repo_id: str, api: HfApi) -> str:
    """Return in plain words what went wrong."""
    if isinstance(error, OfflineModeIsEnabled) and not isinstance(error, HubUnreachableError):
        return "HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, error.server_message or ""
        if status == 401 and (api.token or get_token()) is None:
            return "there is no token: run `hf auth login`, or set HF_TOKEN"
        host = urlsplit(str(error.response.url)).netloc
        if status == 403 and host != urlsplit(constants.ENDPOINT).netloc:
            plain = (
                f"{host}, which stores files for the Hub, refused one: its address was valid for some minutes only, "
                "so check this machine's clock and its proxy, and push again"
            )
        elif status == 403:
            plain = _why_forbidden(f"{said} {error}", repo_id, api)
        else:
            plain = _REASONS.get(status, f"the Hub answered with status {status}").format(repo_id=repo_id)
        return f"{plain} (the server said: {said})" if said else plain
    if isinstance(error, _NotSentError):
        return f"a file could not be uploaded ({error})"
    if isinstance(error, HubTimeoutError):
        return f"the Hub did not answer in time ({error}): try again later"
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        return f"the connection failed ({type(error).__name__}: {error})"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"{NO_SPACE[error.errno]} ({error}): free some space there"
    return f"a file could not be read or written ({error})"


def _why_forbidden(said: str, repo_id: str, api: HfApi) -> str:
    """Return the reason for a 403: kind of token, storage, somebody else's name, rights."""
    if "write token" in said:
        return "the token is read-only: make one with write access and run `hf auth login`"
    if any(word in said.lower() for word in ("storage", "quota", "limit")):
        return "the account's storage or another limit of it is reached: free some space or upgrade the plan"
    owner = repo_id.rpartition("/")[0]
    try:
        account = api.whoami()
        mine = [account["name"], *(each["name"] for each in account.get("orgs", []))]
    except (HTTPError, OSError, ValueError):
        return f"the token may not write to {repo_id}: the name belongs to somebody else, or the rights are missing"
    if owner and owner not in mine:
        return f"the name belongs to somebody else: the token is of {', '.join(mine)}, and not of {owner}"
    return f"the token's rights do not cover writing to {repo_id}: give it write access to that repository"
