"""Peak memory of distilling, beside the teacher's inference and the student's training, each in a process of its own.

python tests/benchmarks/memory.py
"""

import argparse
import resource
import subprocess
import sys
import tempfile

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from nlpkd import DistillationConfig, DistillationTrainer, cache_teacher_outputs, make_student
from nlpkd.data.demo import demo_backbone
from nlpkd.objectives import AttentionMSELoss, CrossEntropyLoss, ForwardKLLoss, HiddenStateMSELoss

PARTS = ("nothing", "teacher's inference", "student's training", "distillation")


def main() -> None:
    """Measure every part, and print how distillation compares with the sum of the other two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="run this part alone")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.part:
        with tempfile.TemporaryDirectory() as folder:
            run(arguments, folder)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        return
    peaks = {}
    print("| part | peak RSS, MB | over a process with the libraries alone, MB |\n|---|---|---|")
    for part in PARTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
        peaks[part] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        print(f"| {part} | {peaks[part]:.0f} | {peaks[part] - peaks['nothing']:.0f} |")
    nothing, teacher, student, both = peaks.values()
    ratio = (both - nothing) / (teacher + student - 2 * nothing)
    print(f"distillation / (inference + training), without the libraries: {ratio:.2f}")


def run(arguments: argparse.Namespace, folder: str) -> None:
    """Run one part: ten steps of 32 rows of equal length, random weights."""
    tokenizer = AutoTokenizer.from_pretrained(demo_backbone())
    ids = np.random.default_rng(0).integers(1000, 30_000, (320, arguments.tokens))
    rows = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * arguments.tokens] * 320, "labels": [0, 1] * 160}
    )
    if arguments.part == "nothing":
        return
    config = BertConfig(
        num_hidden_layers=arguments.layers, hidden_size=arguments.hidden, num_attention_heads=arguments.hidden // 64,
        intermediate_size=4 * arguments.hidden,
    )  # fmt: skip
    if arguments.part == "student's training":
        config.num_hidden_layers //= 2
        student, teacher, objectives = BertForSequenceClassification(config), None, [CrossEntropyLoss()]
    else:
        teacher = BertForSequenceClassification(config).eval()
        if arguments.part == "teacher's inference":
            cache_teacher_outputs(teacher, rows, tokenizer, cache_dir=folder)
            return
        student = make_student(teacher, f"layers:{arguments.layers // 2}")
        objectives = [ForwardKLLoss(), HiddenStateMSELoss(), AttentionMSELoss()]
    args = DistillationConfig(folder, max_steps=10, teacher_check="off", save_strategy="no", report_to="none")
    trainer = DistillationTrainer(student, teacher, args, objectives, rows, processing_class=tokenizer)
    trainer.train()


if __name__ == "__main__":
    main()
