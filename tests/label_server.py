"""A server on loopback that answers typed decisions, and misbehaves as it is told."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["LabelServer", BaseHTTPRequestHandler], bool]


def right_answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer with probabilities that follow from the text's length, in the reverse order of the options."""
    answers = {}
    for name, question in request["questions"].items():
        share = len(request["state"]) % 10 / 10
        if question["type"] == "noul":
            answers[name] = {"type": "noul", "noul": share}
            continue
        options = list(question["criteria"])
        rest = (1 - share) / (len(options) - 1)
        values = {option: share if number == 0 else rest for number, option in enumerate(options)}
        answers[name] = {"type": "choice", "probabilities": dict(reversed(values.items()))}
    return {"model": request["model"], "answers": answers}


ODD = (None, True, 1000, -1, 10**400, float("nan"), "", "word", [], [1], {}, {"a": {"b": []}})
"""What JSON may hold in place of anything."""


def odd_versions(whole: Any) -> Iterator[Any]:
    """Yield JSON with one part of it replaced by something odd, for every part; and without it."""
    yield from ODD
    keys = whole if isinstance(whole, dict) else range(len(whole)) if isinstance(whole, list) else ()
    for key in keys:
        for odd in odd_versions(whole[key]):
            changed = whole.copy()
            changed[key] = odd
            yield changed
        yield {k: v for k, v in whole.items() if k != key} if isinstance(whole, dict) else whole[:key]


class LabelServer:
    """Answer POST requests by `answer`; the first ones as `faults` says, one each.

    Attributes:
        states: the texts that were asked about, in the order of the requests, and answered.
        times: when each request came, in seconds.
        open: while it is cleared, requests wait for their answers.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Any] = right_answer, faults: tuple[Fault, ...] = ()):
        self.answer, self.faults, self.states, self.times = answer, list(faults), [], []
        self.busy = self.most_busy = 0
        self.delay_s = 0.0
        self.open = threading.Event()
        self.open.set()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # One packet an answer: a second one would wait for the first to be acknowledged.

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer.lock:
                    outer.times.append(time.monotonic())
                    outer.busy += 1
                    outer.most_busy = max(outer.most_busy, outer.busy)
                    fault = outer.faults.pop(0) if outer.faults else None
                try:
                    time.sleep(outer.delay_s)
                    outer.open.wait(60)
                    if fault is None or not fault(outer, self):
                        request = json.loads(body)
                        with outer.lock:
                            outer.states.append(request.get("state"))
                        outer.send(self, 200, json.dumps(outer.answer(request)).encode())
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with outer.lock:
                        outer.busy -= 1

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    def __enter__(self) -> LabelServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def label_at(url: str, question: dict[str, Any], folder: str, concurrency: int) -> None:
    """Label `texts.parquet` of a folder in a process of its own."""
    from nlpkd import label
    from nlpkd.teachers import DecisionTeacher

    # A shell starts what runs in the background without it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    teacher = DecisionTeacher("m", question, base_url=url, concurrency=concurrency)
    label(teacher, "texts.parquet", output="labels.parquet")


def too_many(seconds: str = "1") -> Fault:
    """429 with Retry-After."""
    return lambda server, handler: server.send(handler, 429, b"busy", Retry_After=seconds) or True


def broken(server: LabelServer, handler: BaseHTTPRequestHandler) -> bool:
    """500."""
    server.send(handler, 500, b"oops")
    return True


def dropped(server: LabelServer, handler: BaseHTTPRequestHandler) -> bool:
    """The connection is closed without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(2)
    return True


def cut_short(server: LabelServer, handler: BaseHTTPRequestHandler) -> bool:
    """Half of the JSON."""
    server.send(handler, 200, b'{"model": "m", "answers": {"label')
    return True


def less_than_promised(server: LabelServer, handler: BaseHTTPRequestHandler) -> bool:
    """Fewer bytes than Content-Length says."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"model"')
    handler.close_connection = True
    return True
