"""A teacher at a real server, `transformers serve`, answers as it does here, through a crash of the server too."""

import os
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from chat_models import save_chat_model
from processes import Program

from nlpkd import label, read_splits
from nlpkd.teachers import DecisionTeacher

pytest.importorskip("transformers.decision", reason="transformers has decision models from 5.23 on")

QUESTION = {"type": "choice", "instructions": "About what?", "criteria": {"sport": "Games", "business": None}}
# What the console script `transformers` does.
TRANSFORMERS = "import sys; sys.argv[0] = 'transformers'; from transformers.cli.transformers import main; main()"


@contextmanager
def served(model, port, log):
    """Run the server until the end of the block, and wait until it listens."""
    words = ["-c", TRANSFORMERS, "serve", model, "--port", str(port)]
    server = Program(words, log.parent, log, log, os.environ | {"HF_HUB_OFFLINE": "1"}).process
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.is_alive() and time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield server
    finally:
        server.kill()
        server.join(30)


def test_a_server_that_is_killed_and_started_again_labels_all_rows_as_the_local_model(tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    model = str(save_chat_model(tmp_path / "chat"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rows = [{"text": f"The match number {number} ended."} for number in range(150)]
    teacher = DecisionTeacher(model, QUESTION, base_url=f"http://127.0.0.1:{port}", concurrency=2, max_retries=9)
    output, answers = tmp_path / "labels.parquet", tmp_path / "labels.parquet.answers.jsonl"
    labelling = threading.Thread(target=label, args=(teacher, rows), kwargs={"output": output})
    with served(model, port, tmp_path / "log"):
        labelling.start()
        while not answers.exists() or answers.read_bytes().count(b"\n") < 10:
            assert labelling.is_alive()
            time.sleep(0.01)
    assert answers.read_bytes().count(b"\n") < len(rows), "the server died in the middle"
    with served(model, port, tmp_path / "log"):
        labelling.join(180)
    found = read_splits(output)[0]["train"]
    probabilities = [list(each.values()) for each in found["probabilities"][:]]
    here = DecisionTeacher(model, QUESTION).answer(found["text"][:])
    np.testing.assert_allclose(probabilities, here.probabilities, atol=1e-5)
    assert found["teacher_input_tokens"][:] == here.input_tokens, "the server's count of tokens is that of the model"
