"""SIGTERM to a launcher: all its processes stop soon, after the same step, whose checkpoint is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from processes import warm_python
from transformers import TrainerState

RUN = """
import sys
import time
from pathlib import Path
from samples import raw_rows, tiny_bert, WORDS
from transformers import BertTokenizer, TrainerCallback
from nlpkd import DistillationConfig, DistillationTrainer, load_text_classification
from nlpkd.objectives import ForwardKLLoss
tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
rows = load_text_classification(raw_rows(160, 3), tokenizer=tokenizer)["train"]
args = DistillationConfig(
    output_dir="out", bf16=False, report_to="none", disable_tqdm=True, teacher_check="off", cache_teacher="off",
    per_device_train_batch_size=8, max_steps=int(sys.argv[1]), save_steps=1, save_total_limit=2,
)
class Slow(TrainerCallback):
    def on_step_begin(self, *given, **more):
        time.sleep(float(sys.argv[2]))
trainer = DistillationTrainer(
    tiny_bert(), tiny_bert(layers=4, seed=1), args, [ForwardKLLoss()], rows, processing_class=tokenizer,
    callbacks=[Slow()],
)
try:
    trainer.train(resume_from_checkpoint=sys.argv[3] if len(sys.argv) > 3 else None)
except SystemExit as stopped:
    Path(f"status-{args.process_index}").write_text(str(stopped.code))
    raise
"""


# What torchrun gives its processes to end by themselves.
KILLED_AFTER = 30


def start(folder: Path, log: Path, *arguments: str) -> subprocess.Popen:
    (folder / "run.py").write_text(RUN)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHON_EXEC": warm_python()}
    command = [warm_python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run.py"]
    with log.open("w") as stream:
        return subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )


def last_step(folder: Path) -> int:
    return max(int(path.name.split("-")[1]) for path in (folder / "out").glob("checkpoint-*"))


def test_sigterm_to_torchrun_stops_both_processes_after_one_slow_step_that_is_saved(tmp_path):
    log = tmp_path / "log"
    process = start(tmp_path, log, "100000", "1.6")
    try:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "out").glob("checkpoint-*/checksums.json")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        before = last_step(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(KILLED_AFTER) != 0
    finally:
        process.kill()
    last = last_step(tmp_path)
    assert last <= before + 2, "the step in progress, and one more where that was saved and not counted yet"
    assert [path.read_text() for path in sorted(tmp_path.glob("status-*"))] == ["143", "143"]
    assert log.read_text().count(f"SIGTERM: stopped after step {last}, whose checkpoint is in out") == 1
    sealed = json.loads((tmp_path / "out" / f"checkpoint-{last}" / "checksums.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= sealed.keys()
    resumed = start(tmp_path, log, str(last + 5), "0", f"out/checkpoint-{last}")
    resumed.wait(300)
    state = TrainerState.load_from_json(str(tmp_path / "out" / f"checkpoint-{last + 5}" / "trainer_state.json"))
    assert state.global_step == last + 5, log.read_text()
