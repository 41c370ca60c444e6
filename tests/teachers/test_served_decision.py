"""A teacher at a real server, `transformers serve`, answers as it does here."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chat_models import save_chat_model

from nlpkd.teachers import DecisionTeacher

QUESTION = {"type": "choice", "instructions": "About what?", "criteria": {"sport": "Games", "business": None}}


def test_a_served_model_gives_the_probabilities_of_the_local_one(tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    model = str(save_chat_model(tmp_path / "chat"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--port", str(port)]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.5)
        texts = [f"The match number {number} ended." for number in range(12)]
        served = DecisionTeacher(model, QUESTION, base_url=f"http://127.0.0.1:{port}").probabilities(texts)
    finally:
        server.terminate()
        server.wait(30)
    np.testing.assert_allclose(served, DecisionTeacher(model, QUESTION).probabilities(texts), atol=1e-5)
