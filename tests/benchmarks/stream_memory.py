"""Peak memory and time of an epoch on generated files of more and more rows, read as a stream.

    python tests/benchmarks/stream_memory.py --rows 100000 1000000

Each size is a process of its own, in which a tiny student learns one epoch from the file; the process's peak resident
memory is printed beside what it had before the file was opened.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [f"word{number}" for number in range(2000)]


def generate(path: Path, rows: int) -> None:
    """Write rows of 3 to 40 words with one of two labels."""
    draw = random.Random(0)
    with path.open("w") as lines:
        for _ in range(rows):
            text = " ".join(draw.choices(WORDS, k=draw.randint(3, 40)))
            lines.write(json.dumps({"text": text, "label": draw.choice(("neg", "pos"))}) + "\n")


def peak_mb() -> float:
    """Give the most resident memory so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def train(path: Path) -> None:
    """Train one epoch on the stream, and print what it took."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    from nlpkd import DistillationConfig, DistillationTrainer, load_text_classification
    from nlpkd.objectives import CrossEntropyLoss

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    student = BertForSequenceClassification(BertConfig(vocab_size=len(tokens), **shape))
    before, started = peak_mb(), time.perf_counter()
    data = load_text_classification(path, tokenizer=tokenizer, streaming=True)
    args = DistillationConfig(
        output_dir=str(path.parent / "out"), num_train_epochs=1, per_device_train_batch_size=256, bf16=False,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=10_000,
    )  # fmt: skip
    DistillationTrainer(student, None, args, [CrossEntropyLoss()], data["train"], processing_class=tokenizer).train()
    seconds = time.perf_counter() - started
    print(json.dumps({"rows": len(data["train"]), "before_mb": before, "peak_mb": peak_mb(), "seconds": seconds}))


def main() -> None:
    """Generate and train size by size, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train is not None:
        return train(asked.train)
    print("| rows | file, MB | memory before, MB | peak, MB | seconds |\n|---|---|---|---|---|")
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            generate(path, rows)
            run = subprocess.run([sys.executable, __file__, "--train", str(path)], stdout=subprocess.PIPE, check=True)
            found = json.loads(run.stdout.decode().splitlines()[-1])
            sizes = [path.stat().st_size / 1e6, found["before_mb"], found["peak_mb"], found["seconds"]]
            print(f"| {rows:,} | {' | '.join(format(size, '.0f') for size in sizes)} |", flush=True)


if __name__ == "__main__":
    main()
