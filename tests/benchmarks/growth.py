"""How start-up and training time grow with the number of rows.

python tests/benchmarks/growth.py --rows 10000 100000 1000000
"""

import argparse
import tempfile
import time

import numpy as np
from datasets import Dataset
from samples import tiny_bert
from transformers import BertTokenizer, TrainerCallback
from transformers.utils import logging

from nlpkd import DistillationConfig, DistillationTrainer
from nlpkd.objectives import ForwardKLLoss, HiddenStateMSELoss

VOCABULARY = 30_000


class Clock(TrainerCallback):
    """Notes when the first step begins and the last one ends."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.first = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self.last = time.perf_counter()


def main() -> None:
    """Train one epoch of a tiny student for every number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batch_size", type=int, default=256)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(VOCABULARY - 5))]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    print("| rows | start-up, s | training, s | rows/s |\n|---|---|---|---|")
    for rows in arguments.rows:
        data = generated(rows)
        with tempfile.TemporaryDirectory() as folder:
            startup, seconds = train(data, tokenizer, folder, arguments.batch_size)
        print(f"| {rows:,} | {startup:.1f} | {seconds:.0f} | {rows / seconds:,.0f} |")


def generated(rows: int) -> Dataset:
    """Rows of 4 to 32 random tokens."""
    random = np.random.default_rng(0)
    ids = [random.integers(5, VOCABULARY, size) for size in random.integers(4, 33, rows)]
    return Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [np.ones_like(row) for row in ids], "labels": random.integers(0, 2, rows)}
    )


def train(data: Dataset, tokenizer: BertTokenizer, folder: str, batch_size: int) -> tuple[float, float]:
    """Give the seconds from the trainer's making to its first step, and from there to the last one's end."""
    teacher, student = (tiny_bert(layers, vocab_size=VOCABULARY) for layers in (2, 1))
    args = DistillationConfig(
        folder, per_device_train_batch_size=batch_size, num_train_epochs=1, teacher_check="off", save_strategy="no",
        report_to="none", disable_tqdm=True, logging_strategy="no", bf16=False,
    )  # fmt: skip
    clock, start = Clock(), time.perf_counter()
    DistillationTrainer(
        student, teacher, args, [ForwardKLLoss(), HiddenStateMSELoss()], data, processing_class=tokenizer,
        callbacks=[clock],
    ).train()  # fmt: skip
    return clock.first - start, clock.last - clock.first


if __name__ == "__main__":
    main()
