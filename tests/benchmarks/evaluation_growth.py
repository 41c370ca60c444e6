"""How loading, streaming, measuring, reports and pages grow with the rows and with the classes.

    python tests/benchmarks/evaluation_growth.py --rows 10000 100000 1000000 --classes 10 100 1000

Rows grow beside the fewest classes, and classes beside the fewest rows. Each size is a process of its own with one
thread, which takes the CPU time of each part: reading a csv file whole and tokenising it; reading it as a stream, once
to settle the classes and once for an epoch; measuring a student and a teacher of random weights, with 1,000 resamples;
saving report.json and report.md and reading the first; writing report.html. The exponent is that of the last step,
log(seconds / seconds before) / log(size / size before): that of n log n is at most 1.1 there.
"""

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [f"word{number}" for number in range(2000)]
PARTS = ("load", "stream", "measure", "report", "page")
FILES = ("report.json", "report.md", "report.html")


def main() -> None:
    """Measure every size in a process of its own, and print a table of rows and one of classes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return print(json.dumps(measured(asked.rows[0], asked.classes[0])))
    print_growth("rows", [(rows, asked.classes[0]) for rows in asked.rows], 0)
    print_growth("classes", [(asked.rows[0], classes) for classes in asked.classes], 1)


def print_growth(what: str, sizes: list[tuple[int, int]], growing: int) -> None:
    """Print what each size took, and the exponents of the last step."""
    print(f"\n| rows | classes | {' | '.join(f'{part}, s' for part in PARTS)} | peak, MB | {' | '.join(f'{file}, MB' for file in FILES)} |")  # fmt: skip  # noqa: E501
    print("|---" * (3 + len(PARTS) + len(FILES)) + "|")
    found = []
    for rows, classes in sizes:
        command = [sys.executable, __file__, "--one", "--rows", str(rows), "--classes", str(classes)]
        run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(run.stdout.decode().splitlines()[-1]))
        numbers = [*(f"{found[-1][part]:.2f}" for part in PARTS), f"{found[-1]['peak_mb']:,.0f}"]
        numbers += [f"{found[-1][file] / 1e6:.2f}" for file in FILES]
        print(f"| {rows:,} | {classes:,} | {' | '.join(numbers)} |", flush=True)
    if len(found) > 1:
        step = math.log(sizes[-1][growing] / sizes[-2][growing])
        slopes = [math.log(found[-1][part] / found[-2][part]) / step for part in (*PARTS, "peak_mb", *FILES)]
        print(f"| exponent | in {what} | {' | '.join(format(slope, '.2f') for slope in slopes)} |", flush=True)


def measured(rows: int, classes: int) -> dict[str, float]:
    """Take rows and classes through all parts; return CPU seconds, the peak of memory and the files' sizes."""
    import torch
    from datasets.utils.logging import disable_progress_bar
    from transformers import BertTokenizer

    from nlpkd import EvaluationReport, evaluate_student, load_text_classification
    from nlpkd.evaluation.html_report import make_page
    from nlpkd.models.small_models import StaticConfig, StaticForSequenceClassification

    torch.set_num_threads(1)
    disable_progress_bar()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
    names = {number: f"class {number:04d}" for number in range(classes)}
    config = StaticConfig(vocab_size=len(tokens), embedding_size=8, intermediate_size=8, id2label=names)
    student, teacher = (StaticForSequenceClassification(config) for _ in range(2))
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        generate(path, rows, classes)
        start = time.process_time()

        def took(part: str) -> None:
            """Note the CPU time since the part before."""
            nonlocal start
            seconds[part] = time.process_time() - start
            start = time.process_time()

        data = load_text_classification(path, tokenizer=tokenizer, label_column="label")
        took("load")
        stream = load_text_classification(path, tokenizer=tokenizer, label_column="label", streaming=True)["train"]
        assert sum(1 for _ in stream.batched(32)) == rows
        took("stream")
        report = evaluate_student(student, teacher, data["train"], tokenizer, latency_runs=0)
        took("measure")
        report.save(folder)
        EvaluationReport.load(folder)
        took("report")
        report.save(folder, make_page(report))
        took("page")
        sizes = {file: (Path(folder) / file).stat().st_size for file in FILES}
    return seconds | sizes | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}


def generate(path: Path, rows: int, classes: int) -> None:
    """Write rows of 4 to 20 words, each of one of the classes, all of which occur."""
    draw = random.Random(0)
    with path.open("w") as lines:
        lines.write("text,label\n")
        for number in range(rows):
            lines.write(f"{' '.join(draw.choices(WORDS, k=draw.randint(4, 20)))},class {number % classes:04d}\n")


if __name__ == "__main__":
    main()
