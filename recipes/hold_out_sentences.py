"""Hold whole sentences out of SST-2's train file, to choose settings on: a random part would leak.

    python recipes/hold_out_sentences.py train.tsv --output_dir runs/sst2-choice

SST-2's training rows are phrases of one another. This holds out long texts that no other row contains, and drops every
row that one of them contains, so that nothing held out was seen in training. Writes `train.tsv` and `held_out.tsv`.
"""

import argparse
import csv
import random
from collections import defaultdict
from pathlib import Path

SHORTEST = 12
START = 5


def maximal(texts: list[str]) -> list[str]:
    """Keep the texts of at least 12 words that no other one contains."""
    long = [text for text in texts if len(text.split()) >= SHORTEST]
    starting = defaultdict(list)
    for text in long:
        words = text.split()
        for at in range(len(words) - START + 1):
            starting[tuple(words[at : at + START])].append(text)
    return [
        text
        for text in long
        if not any(text != other and f" {text} " in f" {other} " for other in starting[tuple(text.split()[:START])])
    ]


def phrases(text: str) -> set[str]:
    """List everything that is contained in a text, word by word."""
    words = text.split()
    return {" ".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)}


def main() -> None:
    """Split, and say what was dropped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_file", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/sst2-choice"))
    parser.add_argument("--sentences", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with options.train_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    candidates = maximal(sorted({row["sentence"].strip() for row in rows}))
    held = set(random.Random(options.seed).sample(candidates, options.sentences))
    seen = set().union(*map(phrases, held))
    parts = {
        "train": [row for row in rows if row["sentence"].strip() not in seen],
        "held_out": [row for row in rows if row["sentence"].strip() in held],
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in part)]
        (options.output_dir / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept, out = len(parts["train"]), len(parts["held_out"])
    print(
        f"{out} rows held out, {kept} kept for training, {len(rows) - kept - out} phrases of the held-out ones dropped"
    )


if __name__ == "__main__":
    main()
