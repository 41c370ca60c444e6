"""One commit to a repository of the Hub, a model's or a Space's: made, checked, sent, tried again, explained."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from nlpkd.utils.disk.full_disk import NO_SPACE
from nlpkd.utils.hub_requests import NOT_THE_HUB, HubTimeoutError, HubUnreachableError, limit_hub_requests
from nlpkd.utils.secrets import without_tokens

logger = logging.getLogger(__name__)


_BACKOFF_S = (1.0, 2.0)

_IGNORE_FILE = ".gitignore"


@dataclass(frozen=True)
class Target:
    """Where on the Hub a folder is sent, and how.

    Attributes:
        repo_id: `name` or `owner/name`; made when missing.
        private: whether a new repository is private; None takes the account's default.
        token: a token with write access; None takes the one of `hf auth login`.
        revision: the branch, made when missing; None is the main one.
        commit_message: the commit's title.
        create_pr: open a pull request in place of a commit to the branch.
        space: whether it is a Space and no model.

    Raises:
        ValueError: if no push can be meant by them.
    """

    repo_id: str
    private: bool | None = None
    token: str | None = None
    revision: str | None = None
    commit_message: str = "Upload student distilled with nlpkd"
    create_pr: bool = False
    space: bool = False

    def __post_init__(self) -> None:
        validate_repo_id(self.repo_id)
        if self.create_pr and self.revision is not None:
            raise ValueError(
                f"create_pr opens a pull request against the main branch; leave out revision={self.revision!r}"
            )
        if not self.commit_message.strip():
            raise ValueError("commit_message is empty, and a commit has a title: give one, or leave it out")

    @cached_property
    def api(self) -> HfApi:
        """The client that sends."""
        limit_hub_requests()
        return HfApi(token=self.token)

    @property
    def kind(self) -> str:
        """What huggingface_hub calls the repository's type."""
        return "space" if self.space else "model"


@dataclass(frozen=True)
class There:
    """A commit of a repository, to which another one is added.

    Attributes:
        target: the repository.
        commit: the commit's id.
        names: of its files.
    """

    target: Target
    commit: str
    names: Sequence[str]

    def text_of(self, name: str) -> str:
        """Read one of its files, a small one."""
        path = self.target.api.hf_hub_download(
            self.target.repo_id, name, repo_type=self.target.kind, revision=self.commit
        )
        return Path(path).read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Changes:
    """What a commit does beside adding files.

    Attributes:
        deleted: files of the repository that go.
        kept: files that stay as they are in the repository, though the folder has others of their names.
    """

    deleted: Sequence[str] = ()
    kept: Sequence[str] = ()


def add_nothing_else(there: There, names: Sequence[str]) -> Changes:
    """Leave all other files of a repository alone."""
    return Changes()


def make_repository(target: Target) -> Target:
    """Make a repository, and its branch, where they are missing.

    Args:
        target: the repository.

    Returns:
        The same with its owner's name.

    Raises:
        ValueError: if it is to be private, and exists and is public.
    """
    api, sdk = target.api, "gradio" if target.space else None
    make = partial(api.create_repo, target.repo_id, repo_type=target.kind, space_sdk=sdk, private=target.private)
    named = replace(target, repo_id=_with_retries(lambda: make(exist_ok=True)).repo_id)
    if named.private:
        # An existing repository is left as it is by `create_repo`.
        _refuse_public(named)
    revision = named.revision
    if revision is not None and not revision.startswith("refs/pr/"):
        make_branch = partial(api.create_branch, named.repo_id, branch=revision, repo_type=named.kind)
        _with_retries(lambda: make_branch(exist_ok=True))
    return named


def send_folder(
    target: Target, folder: Path, changes: Callable[[There, Sequence[str]], Changes] = add_nothing_else
) -> str:
    """Send the files of a folder in one commit; where nothing changes there is none.

    Args:
        target: a repository that is there.
        folder: the files.
        changes: what the commit does beside, by what is there and the names of the folder's files.

    Returns:
        The address of the commit, or of the pull request.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def commit() -> Any:
        # Looked at anew in each try: the one before may have arrived.
        there = _look(target)
        found = changes(there, names)
        if found.deleted:
            logger.warning(
                "%s has files that are not in the folder: %s; they are deleted with this commit",
                target.repo_id,
                ", ".join(found.deleted),
            )
        added = [CommitOperationAdd(name, folder / name) for name in names if name not in found.kept]
        return _commit(target, [*added, *map(CommitOperationDelete, found.deleted)], there.commit)

    # A lost answer would open a second pull request, while a second commit of the same files is none.
    made = _with_retries(commit, tries=1 if target.create_pr else len(_BACKOFF_S) + 1)
    return made.pr_url or made.commit_url


def planned_changes(
    target: Target, names: Sequence[str], changes: Callable[[There, Sequence[str]], Changes]
) -> Changes | None:
    """Ask what `send_folder` would do beside adding files, and do nothing.

    Args:
        target: the repository.
        names: of the files that would be sent.
        changes: as `send_folder` takes it.

    Returns:
        The changes; None where the repository can't be asked.

    Raises:
        ValueError: if it is to be private, and exists and is public.
    """
    try:
        if "/" not in target.repo_id:
            target = replace(target, repo_id=f"{target.api.whoami()['name']}/{target.repo_id}")
        if target.private:
            _refuse_public(target)
        try:
            there = _look(target)
        except RevisionNotFoundError:
            if str(target.revision).startswith("refs/pr/"):
                return None
            # A new branch begins as the main one.
            there = _look(replace(target, revision=None))
        if _IGNORE_FILE in there.names:
            logger.warning(
                "%s has a %s: if it names a file that is sent, the push is refused", target.repo_id, _IGNORE_FILE
            )
        return changes(there, names)
    except RepositoryNotFoundError as error:
        # The Hub says so too of a private repository to those who give no token.
        return Changes() if error.response.status_code == 404 else None
    except (HTTPError, OSError, json.JSONDecodeError):
        return None


@contextmanager
def explained(target: Target, what: str, finish: str) -> Iterator[None]:
    """Say in plain words why something was not sent, and never a token.

    Args:
        target: the repository.
        what: was not sent.
        finish: what is left, and how to finish.

    Yields:
        Nothing.

    Raises:
        RuntimeError: what was raised meanwhile, in these words.
    """
    try:
        yield
    except (HTTPError, OSError, _NotSentError) as error:
        secret = target.token or get_token()
        reason = without_tokens(_why(error, target.repo_id, target.api))
        if secret:
            reason = reason.replace(secret, "***")
        # The chain of an error that quotes the token would print it.
        cause = None if secret and secret in str(error) else error
        raise RuntimeError(f"{what} was not pushed to {target.repo_id}: {reason}. {finish}") from cause


class _NotSentError(Exception):
    """huggingface_hub could not upload a file, for a reason that is no HTTP error."""


def _look(target: Target) -> There:
    """Ask for the last commit and its files; of a pull request's the main branch's."""
    info = target.api.repo_info(target.repo_id, repo_type=target.kind, revision=target.revision)
    names = target.api.list_repo_files(target.repo_id, repo_type=target.kind, revision=info.sha)
    return There(target, str(info.sha), names)


def _refuse_public(target: Target) -> None:
    info: Any = _with_retries(lambda: target.api.repo_info(target.repo_id, repo_type=target.kind))
    if not info.private:
        raise ValueError(
            f"private=True, but {target.repo_id} exists and is public; choose another name, or make it private on the "
            "Hub"
        )


def _commit(target: Target, operations: list[Any], parent: str) -> Any:
    """Make a commit; huggingface_hub wraps what stopped a single file, and the reason is in there."""
    where: Any = {"repo_type": target.kind, "revision": target.revision, "create_pr": target.create_pr}
    added = [each for each in operations if isinstance(each, CommitOperationAdd)]
    try:
        target.api.preupload_lfs_files(target.repo_id, added, free_memory=False, **where)
        # huggingface_hub would make the commit without them, and say nothing.
        if ignored := [each.path_in_repo for each in added if each._should_ignore]:
            raise _NotSentError(
                f"the Hub leaves out {', '.join(ignored)}, which {_IGNORE_FILE} in the repository names: take that "
                "out of it"
            )
        return target.api.create_commit(
            target.repo_id, operations, commit_message=target.commit_message, parent_commit=parent, **where
        )
    except json.JSONDecodeError:
        raise
    except (RuntimeError, ValueError) as error:
        if isinstance(error.__cause__, HTTPError):
            raise error.__cause__ from None
        raise _NotSentError(f"{error}: {error.__cause__}" if error.__cause__ else str(error)) from error


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
