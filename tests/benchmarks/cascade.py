"""How much of the traffic a student answers itself, beside jevstiller, from the same recorded answers of a teacher.

    python tests/benchmarks/cascade.py record answers.json --teacher teacher --data texts.csv
    python tests/benchmarks/cascade.py nlpkd answers.json --teacher teacher --backbone MINILM
    OTHER_VENV/bin/python tests/benchmarks/cascade.py jevstiller answers.json --backbone MINILM

The texts are some that the teacher did not learn from. The last command runs in an environment with
`pip install "jevstiller[torch]"`. Both models start from the folder MINILM: jevstiller's encoder stays frozen.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

TARGET, TOKENS = 0.98, 48


def main() -> None:
    """Record answers, or learn from them and print what is answered on the test texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["record", "nlpkd", "jevstiller"])
    parser.add_argument("answers", type=Path, help="the recorded answers, JSON")
    parser.add_argument("--teacher", help="folder of the teacher")
    parser.add_argument("--backbone", help="folder of the pre-trained encoder")
    parser.add_argument("--data", help="texts to record answers for")
    parser.add_argument("--rows", type=int, default=7500, help="of which a third is tested on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learnt", type=float, default=0.8, help="share of the pool that nlpkd's student learns from")
    arguments = parser.parse_args()
    {"record": record, "nlpkd": run_nlpkd, "jevstiller": run_jevstiller}[arguments.part](arguments)


def record(arguments: argparse.Namespace) -> None:
    """Ask the teacher for its probabilities."""
    import nlpkd
    from nlpkd.data.sources import read_splits

    rows = read_splits(arguments.data)[0]["train"].shuffle(seed=0)
    rows = rows.select(range(min(arguments.rows, len(rows))))
    texts = rows["text" if "text" in rows.column_names else "sentence"][:]
    found = nlpkd.load(arguments.teacher)(texts, top_k=None, batch_size=32, truncation=True, max_length=TOKENS)
    answers = [{each["label"]: each["score"] for each in row} for row in found]
    test = len(texts) // 3
    written = {"test": [texts[:test], answers[:test]], "pool": [texts[test:], answers[test:]]}
    arguments.answers.write_text(json.dumps(written))


def read(path: Path) -> tuple[list[str], dict[str, tuple[list[str], list[dict[str, float]], list[str]]]]:
    """Return the labels, and of both parts texts, probabilities and decisions."""
    parts = {name: (*part, [max(each, key=each.get) for each in part[1]]) for name, part in _json(path).items()}
    return sorted(parts["pool"][1][0]), parts


def run_nlpkd(arguments: argparse.Namespace) -> None:
    """Distil three layers of the backbone on a share of the pool, and choose the threshold on the rest."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import nlpkd
    from nlpkd.serving.cascade import confidence, scores
    from nlpkd.serving.threshold import choose_threshold

    labels, parts = read(arguments.answers)
    texts, probabilities, decisions = parts["pool"]
    teacher = AutoModelForSequenceClassification.from_pretrained(arguments.teacher)
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    pool = Dataset.from_dict(
        {"text": texts, "label": decisions, "probs": [json.dumps(each) for each in probabilities]}
    )
    for seed in arguments.seeds:
        order = np.random.default_rng(seed).permutation(len(pool))
        learnt, held = (pool.select(part) for part in np.split(order, [int(arguments.learnt * len(pool))]))
        student = nlpkd.make_student(teacher, "layers:3", start="pretrained", backbone=arguments.backbone, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            student.save_pretrained(f"{folder}/start")
            tokenizer.save_pretrained(f"{folder}/start")
            nlpkd.distill(
                student=f"{folder}/start", train=learnt, validation=held.remove_columns("probs"), objectives="hinton",
                soft_label_column="probs", max_length=TOKENS, num_train_epochs=arguments.epochs, learning_rate=2e-4,
                seed=seed, output_dir=f"{folder}/student", save_strategy="no", report_to="none", disable_tqdm=True,
            )  # fmt: skip
            classify = nlpkd.load(f"{folder}/student")
            found = {}
            for name, (asked, told) in {
                "held": (held["text"][:], held["label"][:]),
                "test": parts["test"][::2],
            }.items():
                named, logits = scores(classify, asked, batch_size=32)
                agree = np.array([named[row.argmax()] for row in logits]) == np.array(told)
                found[name] = confidence(logits, 1.0), agree
        for contract, otherwise in (("all requests", np.ones(len(held), bool)), ("those answered", None)):
            curve = choose_threshold(*found["held"], otherwise, TARGET)
            sure, agree = found["test"][0] >= (curve[-1]["threshold"] if curve else np.inf), found["test"][1]
            show(contract, seed, sure, agree)


def run_jevstiller(arguments: argparse.Namespace) -> None:
    """Train a head on the frozen encoder, with and without the headroom that it leaves by default."""
    import jevstiller

    labels, parts = read(arguments.answers)
    texts, probabilities, decisions = parts["pool"]
    encoder = jevstiller.load_encoder(f"torch:{arguments.backbone}", device="cpu", max_length=TOKENS)
    answers = {
        text: jevstiller.TeacherOutput(
            label=label, probs=each, confidence=max(each.values()), input_tokens=0, cost_usd=0.0, latency_ms=0.0
        )
        for text, each, label in zip(texts, probabilities, decisions, strict=True)
    }
    task = jevstiller.Task("benchmark", "classify", labels, target_agreement=TARGET)
    for headroom in (0.15, 0.0):
        for seed in arguments.seeds:
            config = jevstiller.Config(training="manual", seed=seed, fit_headroom=headroom, min_calib_samples=100)
            with tempfile.TemporaryDirectory() as folder:
                replayed = jevstiller.ReplayTeacher(answers)
                system = jevstiller.Jevstiller(task, replayed, folder, encoder=encoder, config=config)
                for at in range(0, len(texts), 500):
                    system.classify_batch(texts[at : at + 500])
                report = system.train_now()
                asked, _, told = parts["test"]
                found = system.evaluate(asked, told, version=report.version)
                show(f"headroom {headroom}", seed, found["accepted"], found["student_label"] == np.array(told))
                system.close()


def show(name: str, seed: int, sure: np.ndarray, agree: np.ndarray) -> None:
    """Print what is answered, and how much of it agrees with the teacher."""
    among, overall = agree[sure].mean() if sure.any() else float("nan"), 1 - (sure & ~agree).mean()
    print(
        f"{name}, seed {seed}: answered {sure.mean():.1%}, agreement of all requests {overall:.1%}, of those answered "
        f"{among:.1%}, of the student alone {agree.mean():.1%}",
        flush=True,
    )


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


if __name__ == "__main__":
    main()
