"""A Hub that accepts a connection and then is silent, or sends a byte now and then, holds no command up."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import WRITE_TOKEN, HubServer, hub_environment
from huggingface_hub import get_session, hf_hub_download, set_client_factory
from huggingface_hub.utils import _http
from processes import run as run_program
from samples import tiny_bert

from nlpkd.cli import doctor
from nlpkd.hub.saving import save_student
from nlpkd.models.loading import load_classifier
from nlpkd.pipeline.verify import verify
from nlpkd.utils import hub_requests

COMMANDS = """
import json, sys, time
import nlpkd.cli.doctor, nlpkd.utils.hub_requests
from nlpkd.cli import main
nlpkd.cli.doctor._TIMEOUT_S = nlpkd.utils.hub_requests.SILENCE_S = float(sys.argv[1])
nlpkd.utils.hub_requests.PATIENCE_S = float(sys.argv[2])
for words in json.loads(sys.argv[3]):
    sys.argv, began = ["nlpkd", *words], time.monotonic()
    try:
        main()
    except SystemExit as error:
        print("ENDED", words[0], error.code, time.monotonic() - began)
"""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
STARTS = {"silent": b"", "headers that trickle": b"HTTP/1.1 200 OK\r\nX: ", "a body that trickles": HEAD}


class Dripping:
    """A server that answers each request with some bytes, and from then on with one every 0.2 s."""

    def __init__(self, start: bytes, port: int = 0):
        self.start, self.socket, self.requests, self.ended = start, socket.create_server(("127.0.0.1", port)), 0, False
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.drip, args=[connection], daemon=True).start()

    def drip(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            self.requests += 1
            try:
                connection.sendall(self.start)
                while not self.ended:
                    time.sleep(0.2)
                    if self.start:
                        connection.sendall(b"x")
            except OSError:
                pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A port that all may listen on in turn: a fork server has read the Hub's address while it imported."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what is downloaded, which a fork server has read likewise; nothing is."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(params=STARTS)
def dripping(request: pytest.FixtureRequest, port: int) -> Iterator[Dripping]:
    server = Dripping(STARTS[request.param], port)
    yield server
    server.ended = True
    # Closed alone it would go on listening: a thread waits for a connection.
    server.socket.shutdown(socket.SHUT_RDWR)
    server.socket.close()


def test_push_verify_and_doctor_end_and_say_so(dripping: Dripping, home: Path, tmp_path: Path, tokenizer) -> None:
    save_student(tiny_bert(), tmp_path / "student", tokenizer)
    words = [["push", "student", "--repo-id", "alice/tiny"], ["verify", "alice/tiny"], ["doctor"]]
    # transformers asks for one file after the other, each of which is waited for.
    words += [["evaluate", "alice/tiny", "--data", "rows.csv"]] if dripping.start == HEAD else []
    environment = hub_environment(dripping, home, WRITE_TOKEN)
    done = run_program(["-c", COMMANDS, "0.5", "1", json.dumps(words)], tmp_path, environment, timeout=120)
    ended = [line.split()[1:3] for line in done.stdout.splitlines() if line.startswith("ENDED")]
    assert ended == [[each[0], "0" if each[0] == "doctor" else "2"] for each in words], done
    assert "the Hub did not answer in time" in done.stderr and "can't be reached" in done.stdout
    assert dripping.requests >= 3


def answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture
def quick(monkeypatch):
    """A client as commands have it, that waits for nothing; afterwards huggingface_hub's own again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_requests, "RETRY_S", 0.0)
    hub_requests.limit_hub_requests(1.0, 5.0)
    yield get_session
    set_client_factory(_http.default_client_factory)


def test_a_hub_that_no_connection_reaches_is_given_up_and_one_that_was_reached_is_not(quick, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        threading.Thread(target=answer_once, args=[server], daemon=True).start()
        assert quick().get(url).status_code == 200
    # What was reached and is gone may come back: huggingface_hub tries again after such an error.
    for ask in (quick().get, quick().post):
        with pytest.raises(hub_requests._httpx.ConnectError):
            ask(url)

    with socket.create_server(("127.0.0.1", 0)) as free:
        place = free.getsockname()[1]
    url = f"http://127.0.0.1:{place}/"
    with pytest.raises(hub_requests.HubUnreachableError, match=f"no connection to 127.0.0.1:{place} can be made: "):
        quick().get(url)
    with pytest.raises(hub_requests._httpx.ConnectError):  # What changes something is asked whatever is known.
        quick().post(url, content=b"x")
    # For a moment it is not asked again, and then it is.
    with socket.create_server(("127.0.0.1", place)) as server:
        server.settimeout(0)
        with pytest.raises(hub_requests.HubUnreachableError, match="a moment ago"):
            quick().head(url)
        with pytest.raises(BlockingIOError):
            server.accept()
        monkeypatch.setattr(hub_requests, "WITHOUT_CONNECTION_S", 0.0)
        with pytest.raises(hub_requests.HubTimeoutError):
            quick().head(url)
        assert server.accept()


def test_without_a_connection_what_is_in_the_cache_is_used_at_once_and_else_the_offline_command_named(
    quick, tmp_path, monkeypatch, caplog
):
    with HubServer() as hub:
        hub.add_repo("alice/tiny", tmp_path / "nothing")
        hub.repos["model", "alice/tiny"].commit({"config.json": b"{}"}, "tiny")
        kept = hf_hub_download("alice/tiny", "config.json", cache_dir=tmp_path, endpoint=hub.url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert hf_hub_download("alice/tiny", "config.json", cache_dir=tmp_path, endpoint=nobody) == kept
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                        nobody + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    with pytest.raises(OSError, match=r"can't be had from (.|\n)*`make demo`"):
        load_classifier("alice/other")
    with pytest.raises(OSError, match="alice/other can't be downloaded: no connection to 127.0.0.1:"):
        verify("alice/other")
    assert "Retrying" not in caplog.text and doctor._asked(lambda: get_session().get(nobody)).ok is None


def test_a_storage_that_is_silent_holds_no_download_up(tmp_path: Path) -> None:
    """The Hub names a storage of hf_xet, which would wait for minutes; a plain transfer is not asked of it."""
    silent = Dripping(b"")
    with HubServer() as hub:
        hub.add_repo("alice/tiny", tmp_path / "nothing")
        hub.repos["model", "alice/tiny"].commit({"report.json": b"{}", "model.safetensors": b"x" * 9}, "tiny")
        hub.xet_storage = silent.url
        words = [["verify", "alice/tiny"]]
        environment = hub_environment(hub, tmp_path / "home", WRITE_TOKEN)
        del environment["HF_HUB_DISABLE_XET"]
        done = run_program(
            ["-c", COMMANDS, "1", "5", json.dumps(words)], tmp_path, environment, timeout=60, fresh=True
        )
    silent.ended = True
    silent.socket.close()
    assert "expected an evaluation report" in done.stderr and silent.requests == 0, done


def test_a_large_file_may_take_longer_than_a_silent_server_may(hub: HubServer, tmp_path: Path, tokenizer) -> None:
    """The time that is allowed grows with the bytes that are sent; the server here waits longer than for a request."""
    save_student(tiny_bert(), tmp_path / "student", tokenizer)
    size = (tmp_path / "student" / "model.safetensors").stat().st_size
    assert size > 4000
    hub.fail_next("put", "slow", seconds=0.8)
    environment = hub_environment(hub, tmp_path / "home", WRITE_TOKEN)
    words = [["push", "student", "--repo-id", "alice/tiny"]]
    done = run_program(["-c", COMMANDS, "1", "0.5", json.dumps(words)], tmp_path, environment, timeout=120)
    assert f"{hub.url}/alice/tiny/commit/" in done.stdout and "Retrying" not in done.stderr, done


@pytest.mark.parametrize("call", ["load('alice/none')", "read_splits('alice/none')"], ids=["model", "data"])
def test_python_gives_a_hub_that_no_connection_reaches_up_within_seconds(call, port, home, tmp_path):
    environment = dict(os.environ, HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(home))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    program = f"import time\nfrom nlpkd import *\nbegan = time.monotonic()\ntry: {call}\n"
    program += "except (OSError, ValueError) as error: print(time.monotonic() - began, error)"
    done = run_program(["-c", program], tmp_path, environment, timeout=100)
    assert done.returncode == 0 and "make demo" in done.stdout, done
    assert float(done.stdout.split()[0]) < 10
