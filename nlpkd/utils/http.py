"""JSON requests to a server that may be busy, slow or broken."""

from __future__ import annotations

import threading
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from nlpkd.utils.provenance import without_tokens

_BUSY = (429, 500, 502, 503, 504)

_BACKOFF_S = 0.5


class JSONClient:
    """Post JSON to one address, and try again where that may help.

    After 429 and 5xx the server's `Retry-After` is waited for. After those without it, dropped connections and answers
    that are cut short the time doubles with each try. Any other status is an error at once.

    Args:
        url: the address.
        api_key: sent as a bearer token.
        timeout_s: seconds to wait for a connection, and for each part of the answer.
        max_retries: how often a request is tried again.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0, max_retries: int = 6):
        self.url = url
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self._key = api_key
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._local = threading.local()

    def post(self, body: Any) -> Any:
        """Post a body and return the answer's JSON.

        Raises:
            ValueError: if the request is refused, or there is no whole answer after all tries; neither the key nor a
                password of the address is in it.
        """
        try:
            return self._post(body)
        except ValueError as error:
            # The error of a library, in its chain, would say the key or the password again.
            raise ValueError(self.without_secrets(str(error))) from None

    def without_secrets(self, text: str) -> str:
        """Strike the key, and what else must not be said, out of a text."""
        return without_tokens(text, self._key)

    def _post(self, body: Any) -> Any:
        for attempt in range(self.max_retries + 1):
            try:
                response = self._session().post(self.url, json=body, headers=self._headers, timeout=self.timeout_s)
                if response.ok:
                    return response.json()
                raise ValueError(f"{self.url} answers {response.status_code}: {response.text[:300]}")
            except (requests.exceptions.ChunkedEncodingError, requests.exceptions.JSONDecodeError) as error:
                # The answer was cut short while it was read, which urllib3's own retries do not cover.
                if attempt == self.max_retries:
                    raise ValueError(
                        f"{self.url} gave no whole JSON answer in {attempt + 1} tries: {error}"
                    ) from error
                time.sleep(_BACKOFF_S * 2**attempt)
            except requests.exceptions.RequestException as error:
                raise ValueError(f"{self.url} does not answer: {error}") from error
        raise AssertionError("the last try returns or raises")

    def _session(self) -> requests.Session:
        """Return the session of this thread: a session must not be shared."""
        if not hasattr(self._local, "session"):
            retry = Retry(
                total=self.max_retries,
                backoff_factor=_BACKOFF_S,
                status_forcelist=_BUSY,
                allowed_methods=None,
                respect_retry_after_header=True,
                raise_on_status=False,
            )
            session = requests.Session()
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry))
            self._local.session = session
        return self._local.session
