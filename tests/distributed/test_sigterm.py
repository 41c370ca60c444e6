"""SIGTERM to a launcher: all its processes stop after the same step, whose checkpoint is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from transformers import TrainerState

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from conftest import raw_rows, tiny_bert, WORDS
from transformers import BertTokenizer
from nlpkd import DistillationConfig, DistillationTrainer, load_text_classification
from nlpkd.objectives import ForwardKLLoss
tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
rows = load_text_classification(raw_rows(160, 3), tokenizer=tokenizer)["train"]
args = DistillationConfig(
    output_dir="out", bf16=False, report_to="none", disable_tqdm=True, teacher_check="off", cache_teacher="off",
    per_device_train_batch_size=8, max_steps=int(sys.argv[1]), save_steps=5, save_total_limit=2,
)
trainer = DistillationTrainer(
    tiny_bert(), tiny_bert(layers=4, seed=1), args, [ForwardKLLoss()], rows, processing_class=tokenizer
)
trainer.train(resume_from_checkpoint=sys.argv[2] if len(sys.argv) > 2 else None)
"""


def start(folder: Path, log: Path, *arguments: str) -> subprocess.Popen:
    (folder / "run.py").write_text(RUN)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run.py"]
    with log.open("w") as stream:
        return subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )


def test_sigterm_to_torchrun_stops_both_processes_after_one_step_that_is_saved(tmp_path):
    log = tmp_path / "log"
    process = start(tmp_path, log, "100000")
    try:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "out").glob("checkpoint-*/checksums.json")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) != 0
    finally:
        process.kill()
    steps = [int(path.name.split("-")[1]) for path in (tmp_path / "out").glob("checkpoint-*")]
    last = max(steps)
    assert log.read_text().count(f"SIGTERM: stopped after step {last}, whose checkpoint is in out") == 1
    sealed = json.loads((tmp_path / "out" / f"checkpoint-{last}" / "checksums.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= sealed.keys()
    resumed = start(tmp_path, log, str(last + 5), f"out/checkpoint-{last}")
    resumed.wait(300)
    state = TrainerState.load_from_json(str(tmp_path / "out" / f"checkpoint-{last + 5}" / "trainer_state.json"))
    assert state.global_step == last + 5, log.read_text()
