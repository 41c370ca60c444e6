"""Latency and size of a teacher in PyTorch and its student in PyTorch, ONNX and int8, interleaved.

    make bench-serve
    make bench-serve BENCH="--teacher runs/teacher --student runs/student"

Without folders: the embedded backbone with a random head, which costs the same time, and three layers of it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlpkd import OnnxClassifier, load_text_classification, make_student
from nlpkd.compression import trim_vocabulary
from nlpkd.compression.int8 import INT8_FILE, export_int8
from nlpkd.compression.onnx import FP32_FILE, export_onnx
from nlpkd.data.demo import demo_backbone, load_airline_tweets
from nlpkd.evaluation.benchmark import describe_environment, measure_latency, model_size_mb


def main() -> None:
    """Export, time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="folder of a classifier")
    parser.add_argument("--student", help="folder of its student")
    parser.add_argument("--train_file", help="text whose tokens a trimmed vocabulary keeps; the tweets by default")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="where the figures go as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        models = prepare(arguments, Path(folder))
        sizes = {name: model_size_mb(model) for name, model in models.items()}
        found = {name: [] for name in models}
        for tokens in arguments.tokens:
            times = measure_latency(models, batches=arguments.batches, tokens=tokens, runs=arguments.runs)
            for name, latencies in times.items():
                found[name] += latencies
    print("| candidate | MB | batch | tokens | p50, ms | p95, ms | times the teacher's speed |\n" + "|---" * 7 + "|")
    for name, latencies in found.items():
        for ours, theirs in zip(latencies, found["teacher, PyTorch"], strict=True):
            print(
                f"| {name} | {sizes[name]:.1f} | {ours.batch} | {ours.tokens} | {ours.p50_ms:.2f} | {ours.p95_ms:.2f} "
                f"| {theirs.p50_ms / ours.p50_ms:.1f} |"
            )
    if arguments.output:
        latency = {name: [vars(each) for each in latencies] for name, latencies in found.items()}
        result = {"size_mb": sizes, "latency": latency, **describe_environment()}
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")


def prepare(arguments: argparse.Namespace, folder: Path) -> dict[str, torch.nn.Module]:
    """Load or make teacher and student, and export the student: whole, and with the vocabulary of the text."""
    where = arguments.teacher or demo_backbone()
    tokenizer = AutoTokenizer.from_pretrained(where)
    teacher = AutoModelForSequenceClassification.from_pretrained(where)
    if arguments.student:
        student = AutoModelForSequenceClassification.from_pretrained(arguments.student)
        tokenizer = AutoTokenizer.from_pretrained(arguments.student)
    else:
        student = make_student(teacher, "layers:3")
    models = {"teacher, PyTorch": teacher.eval(), "student, PyTorch": student.eval()}
    rows = load_text_classification(arguments.train_file or load_airline_tweets()["train"], tokenizer=tokenizer)
    trimmed, smaller, _ = trim_vocabulary(student, tokenizer, rows["train"][rows.text_column][:])
    for name, model, own in (("student", student, tokenizer), ("student, trimmed", trimmed, smaller)):
        place = folder / name
        export_onnx(model, own, place)
        export_int8(place)
        models[f"{name}, ONNX"] = OnnxClassifier.from_pretrained(place, file=FP32_FILE, threads=arguments.threads)
        models[f"{name}, int8"] = OnnxClassifier.from_pretrained(place, file=INT8_FILE, threads=arguments.threads)
    return models


if __name__ == "__main__":
    main()
