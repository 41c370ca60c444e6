"""Requests to the Hub that end: huggingface_hub's own client waits for ever on a server that says nothing.

Where no connection can be made at all it tries for half a minute, file by file. Here a second failure is taken for
what huggingface_hub knows as offline mode: files of its cache are used at once, and others are missing at once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import _http

from nlpkd.utils.processes import within

# httpx, or its successor from huggingface_hub 2 on.
_httpx: Any = import_module(HTTPError.__module__.partition(".")[0])

SILENCE_S = 60.0
"""Seconds without a byte after which a request fails."""

PATIENCE_S = 120.0
"""Seconds that a request may take in any case."""

SLOWEST_BYTES_S = 1000.0
"""Bytes a second that what is sent or read must have beyond that; a server that trickles has fewer."""

CONNECTING_S = 5.0
"""Seconds that the first connection to a server may take."""

RETRY_S = 1.0
"""Seconds after which a first connection that failed is tried once more."""

WITHOUT_CONNECTION_S = 20.0
"""Seconds for which a server that could not be connected to is asked for nothing."""

HubTimeoutError: type[Exception] = _httpx.TimeoutException
"""What a request raises that was given up."""


NOT_THE_HUB = (
    "what answered is not the Hub, perhaps this network's own page to log in: open any page in a browser, log in, and "
    "try again"
)
"""What to say where an answer is no JSON."""


class HubUnreachableError(OfflineModeIsEnabled):
    """No connection to the Hub can be made from this machine."""


class _Connections:
    """Which servers were reached in this process, and which were not, and when."""

    def __init__(self) -> None:
        self.reached: set[str] = set()
        self.failed_at_s: dict[str, float] = {}

    def refuse_without_connection(self, server: str) -> None:
        """Raise an error at once where a connection failed a moment ago."""
        if time.monotonic() - self.failed_at_s.get(server, -math.inf) < WITHOUT_CONNECTION_S:
            raise HubUnreachableError(f"no connection to {server} could be made a moment ago")


def limit_hub_requests(silence_s: float | None = None, patience_s: float | None = None) -> None:
    """Give huggingface_hub a client whose requests end, unless the caller has set a client of their own.

    Args:
        silence_s: `SILENCE_S` if None.
        patience_s: `PATIENCE_S` if None.
    """
    if "HF_HUB_DISABLE_XET" not in os.environ:
        # Its transfers are hf_xet's own, which waits for minutes on a storage that is silent; of plain ones none does.
        constants.HF_HUB_DISABLE_XET = True
    factory: Any = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    limits = (SILENCE_S if silence_s is None else silence_s, PATIENCE_S if patience_s is None else patience_s)
    ours = getattr(factory, "func", None) is _ImpatientClient
    # Setting a factory closes the client that there is, under a push in the background too.
    if factory is _http.default_client_factory or (ours and factory.args[:2] != limits):
        set_client_factory(partial(_ImpatientClient, *limits, _Connections()))


class _ImpatientClient(_httpx.Client):  # type: ignore[misc]
    """A client whose requests fail when the server is silent, and when it is too slow to ever come to an end."""

    def __init__(self, silence_s: float, patience_s: float, connections: _Connections):
        with _http.default_client_factory() as default:
            super().__init__(event_hooks=default.event_hooks, follow_redirects=True, timeout=silence_s)
        self.patience_s, self.connections = patience_s, connections

    def send(self, request: Any, **options: Any) -> Any:
        """Send a request; one that only reads is given up soon where the server was never reached."""
        known, server = self.connections, request.url.netloc.decode()
        if server in known.reached or request.method not in ("GET", "HEAD"):
            return self._send(request, **options)
        known.refuse_without_connection(server)
        limits = request.extensions.get("timeout") or {}
        connecting_s = min(limits.get("connect") or CONNECTING_S, CONNECTING_S)
        request.extensions = {**request.extensions, "timeout": {**limits, "connect": connecting_s}}
        for wait_s in (RETRY_S, None):
            try:
                response = self._send(request, **options)
                break
            except (_httpx.ConnectError, _httpx.ConnectTimeout) as error:
                if wait_s is None or isinstance(error, HubTimeoutError):
                    known.failed_at_s[server] = time.monotonic()
                    raise HubUnreachableError(f"no connection to {server} can be made: {error}") from error
                time.sleep(wait_s)
        known.reached.add(server)
        return response

    def _send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request from a thread, which is left alone when it takes too long."""
        allowed_s = self.patience_s + int(request.headers.get("Content-Length") or 0) / SLOWEST_BYTES_S
        try:
            response = within(allowed_s, partial(super().send, request, stream=stream, **options))
        except TimeoutError as error:
            raise _httpx.ReadTimeout(str(error), request=request) from error
        if stream:
            response.stream = _PacedStream(response.stream, request, self.patience_s)
        return response


class _PacedStream(_httpx.SyncByteStream):  # type: ignore[misc]
    """The body of an answer, read in parts as they come; one that trickles is given up."""

    def __init__(self, stream: Any, request: Any, patience_s: float):
        self.stream, self.request, self.patience_s = stream, request, patience_s

    def __iter__(self) -> Iterator[bytes]:
        began, read = time.monotonic(), 0
        for part in self.stream:
            read += len(part)
            spent_s = time.monotonic() - began
            if spent_s > self.patience_s + read / SLOWEST_BYTES_S:
                raise _httpx.ReadTimeout(f"{read:,} bytes in {spent_s:.0f} s are too few", request=self.request)
            yield part

    def close(self) -> None:
        """Close the connection, or leave it to the next request."""
        self.stream.close()
