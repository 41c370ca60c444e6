"""JSON requests to a server that may be busy, slow or broken."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import requests

from nlpkd.utils.disk.files import ODD_CONTENT
from nlpkd.utils.field_types import are_numbers, check_counts
from nlpkd.utils.processes import within
from nlpkd.utils.secrets import without_tokens

logger = logging.getLogger(__name__)

_BACKOFF_S = 0.5

LONGEST_WAIT_S = 120.0
"""Seconds before a further try at most, whatever the server asks for."""

_LONG_WAIT_S = 10.0

# What a header may hold, and no server or library writes in another way. Signs of ASCII but ", ' and \.
_KEY = re.compile(r"""[!#-&(-\[\]-~]+""")

REFUSALS = frozenset({400, 413, 422, 451})
"""Statuses that are of what was asked, and of no other request."""

# What another try may mend, as it may an answer that is cut short, which is no JSON.
_PASSING = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    TimeoutError,
)

Reply = TypeVar("Reply")


class NoReply(ValueError):
    """A server gives no answer, whatever it is asked: it is not there, busy or broken, or lets nobody in."""


class NotServing(NoReply):
    """A server serves nobody now, or not who asks, or something else answers: it is no matter of what was asked."""


class MayPass(Exception):
    """A try failed in a way that another one may mend.

    Args:
        reason: why, without secrets.
        kind: the error that it is after all tries.
        retry_after: the header of this name, if there is one.
    """

    def __init__(self, reason: str, kind: type[NoReply], retry_after: str | None = None):
        super().__init__(reason)
        self.kind, self.retry_after = kind, retry_after


def failure_of(reason: str, status: int | None, retry_after: str | None = None) -> Exception:
    """Return the error of a try that a server gave no answer to.

    Args:
        reason: why, without secrets.
        status: that the server gave it; None where it names none.
        retry_after: the header of this name, if there is one.

    Returns:
        `MayPass` where another try may mend it. Else a ValueError where what was asked is refused, and a `NoReply`
        where the server would refuse everything.
    """
    if status in REFUSALS:
        return ValueError(reason)
    # A text may break a server that answers others.
    kind = NoReply if status is None or status >= 500 else NotServing
    return MayPass(reason, kind, retry_after) if status is None or _may_pass(status) else kind(reason)


def status_in(error: Any) -> int | None:
    """Read the status of an error that an answer of status 200 holds; None where it has none."""
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None


def try_often(send: Callable[[], Reply], max_retries: int) -> Reply:
    """Send a request, and send it again where that may help.

    Args:
        send: sends it once; it raises `MayPass` where another try may mend what failed.
        max_retries: how often it is tried again.

    Returns:
        What was sent back.

    Raises:
        NoReply: if no try was answered.
    """
    for attempt in range(max_retries + 1):
        try:
            return send()
        except MayPass as failed:
            failure = failed
        if attempt < max_retries:
            wait_s = min(_asked_wait_s(failure.retry_after, _BACKOFF_S * 2**attempt), LONGEST_WAIT_S)
            if wait_s >= _LONG_WAIT_S:
                logger.warning("Waiting %.0f s, then trying again: %s", wait_s, failure)
            time.sleep(wait_s)
    raise failure.kind(f"{failure} (tries: {max_retries + 1})")


class JSONClient:
    """Post JSON to one address, and try again where that may help.

    After 408, 429 and every 5xx the server's `Retry-After` is waited for, `LONGEST_WAIT_S` at most. After those
    without it, dropped connections, answers that are cut short or no JSON, and those of status 200 that hold such an
    error, the time doubles with each try. Any other status is an error at once: so is a redirection, since what is
    posted is for this address alone.

    Proxies are those of the environment. A key goes before what a `.netrc` has for the server.

    Args:
        url: the address.
        api_key: sent as a bearer token.
        timeout_s: seconds that a try may take, the whole answer included.
        max_retries: how often a request is tried again.

    Raises:
        ValueError: if the address, the key or a number can't be one.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0, max_retries: int = 6):
        check_requests(url, timeout_s, max_retries, api_key)
        self.url = url
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self._key = api_key
        self._local = threading.local()

    def post(self, body: Any) -> Any:
        """Post a body and return the answer's JSON.

        Raises:
            ValueError: if the request is refused; neither the key nor a password of the address is in it.
            NoReply: likewise, if there is no whole answer after all tries.
        """
        try:
            return try_often(partial(self._post, body), self.max_retries)
        except ValueError as error:
            # The error of a library, in its chain, would say the key or the password again.
            kind = type(error) if isinstance(error, NoReply) else ValueError
            raise kind(self.without_secrets(str(error))) from None

    def without_secrets(self, text: str) -> str:
        """Strike the key, and what else must not be said, out of a text."""
        return without_tokens(text, self._key)

    def _post(self, body: Any) -> Any:
        try:
            return self._content(self._send(body))
        except requests.exceptions.JSONDecodeError as error:
            raise MayPass(self.without_secrets(f"{self.url} gives no whole JSON: {error}"), NotServing) from None
        except _PASSING as error:
            raise MayPass(self.without_secrets(f"{self.url} does not answer: {error}"), NoReply) from None
        except requests.exceptions.RequestException as error:
            raise NoReply(f"{self.url} can't be asked: {error}") from error

    def _send(self, body: Any) -> requests.Response:
        if not hasattr(self._local, "session"):
            # One a thread: a session must not be shared.
            self._local.session = requests.Session()
        post = partial(self._local.session.post, self.url, json=body, timeout=self.timeout_s, allow_redirects=False)
        try:
            return within(self.timeout_s, partial(post, auth=self._authorize if self._key else None))
        except TimeoutError:
            # The call that was given up still has it.
            del self._local.session
            raise
        except ODD_CONTENT as error:
            # Such as of an address that makes none.
            raise ValueError(f"{self.url} can't be asked: {error}") from error

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _content(self, response: requests.Response) -> Any:
        """Return an answer's JSON."""
        if response.is_redirect:
            raise NotServing(
                f"{self.url} answers {response.status_code} and sends on to "
                f"{response.headers['Location']}, where nothing is sent: if that is the server, give its address"
            )
        if not 200 <= response.status_code < 300:
            raise failure_of(self._told(response), response.status_code, response.headers.get("Retry-After"))
        try:
            content = response.json()
        except requests.exceptions.JSONDecodeError:
            raise
        except ODD_CONTENT as error:
            raise ValueError(f"{self.url} gives no JSON that can be read: {type(error).__name__}: {error}") from None
        if isinstance(content, dict) and content.get("error"):
            raise failure_of(self._told(response), status_in(content["error"]))
        return content

    def _told(self, response: requests.Response) -> str:
        # A key that is cut is not known.
        said = f"{self.without_secrets(response.text):.300}"
        return self.without_secrets(f"{self.url} answers {response.status_code}: {said}")


def check_requests(url: str | None, timeout_s: float, max_retries: int, api_key: str | None = None) -> None:
    """Refuse settings of requests that can't be.

    Args:
        url: of a server, if one is given.
        timeout_s: seconds that a try may take.
        max_retries: how often a request is tried again.
        api_key: of the server, if one is given.

    Raises:
        ValueError: for the first one that can't be; it is named.
    """
    if url is not None and not str(url).startswith(("http://", "https://")):
        raise ValueError(f"the address of a server starts with http:// or https://, got {without_tokens(str(url))!r}")
    if not (are_numbers(timeout_s) and timeout_s > 0):
        raise ValueError(f"timeout_s must be a number above 0, got {timeout_s!r}")
    check_counts(0, max_retries=max_retries)
    check_key(api_key)


def check_key(api_key: str | None) -> None:
    """Refuse what is no key alone; libraries would say it in their errors, and in a form that is not known here.

    Args:
        api_key: of a server, if one is given.

    Raises:
        ValueError: if it has signs that no key has; they are not shown.
    """
    if api_key is not None and not (isinstance(api_key, str) and _KEY.fullmatch(api_key or "-")):
        raise ValueError(
            "api_key must be a text, the key alone: without 'Bearer', blanks, quotes, backslashes and line ends, in "
            "signs of ASCII (what was given is not shown)"
        )


def _may_pass(status: int) -> bool:
    """Check whether a status is a server's or a proxy's that has no time now: it timed out, is busy, or broken."""
    return status in (408, 429) or status >= 500


def _asked_wait_s(header: str | None, otherwise: float) -> float:
    """Read `Retry-After`, which is seconds or a date; what is neither asks for nothing."""
    try:
        seconds = float(header or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header or "").timestamp() - time.time()
        except ODD_CONTENT:
            return otherwise
    return seconds if seconds >= 0 else otherwise
