"""The held-out part of the training rows: by the texts alone, and equal texts on one side."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset

from nlpkd import load_text_classification

# Of three classes, with copies that differ in case and blanks, and texts that two classes have.
ROWS = [
    {"text": text, "label": label}
    for label, count in (("rare", 20), ("usual", 60), ("common", 120))
    for number in range(count)
    for text in [f"{label} film {number}", f" {label.upper()}  film {number}"][: 1 + (number % 5 == 0)]
]
ROWS += [{"text": f"rare film {number}", "label": "common"} for number in range(4)]


def held_out(rows, tokenizer, size=0.2, **options):
    """The texts of both parts, as a reader sees them."""
    data = load_text_classification(Dataset.from_list(rows), tokenizer=tokenizer, validation_split=size, **options)
    texts = {split: ["".join(text.lower().split()) for text in data[split]["text"][:]] for split in data}
    assert sorted(texts["train"] + texts["validation"]) == sorted(
        "".join(row["text"].lower().split()) for row in rows
    ), "no row gets lost"
    return texts, data


@pytest.mark.parametrize("size", [0.1, 0.2, 0.5, 41, 3])
def test_equal_texts_stay_on_one_side(size, tokenizer):
    texts, data = held_out(ROWS, tokenizer, size)
    assert not set(texts["train"]) & set(texts["validation"])
    assert len(data["validation"]) == (round(size * len(ROWS)) if size < 1 else size)


def test_each_class_has_its_share(tokenizer):
    data = held_out(ROWS, tokenizer)[1]
    names = data["validation"].features["labels"].names
    counts = Counter(names[label] for label in data["validation"]["labels"][:])
    for name, rows in Counter(row["label"] for row in ROWS).items():
        assert abs(counts[name] - 0.2 * rows) <= 3


def test_the_order_of_rows_and_the_names_of_classes_change_nothing(tokenizer):
    texts = held_out(ROWS, tokenizer)[0]
    renamed = [row | {"label": row["label"].replace("common", "a common one")} for row in ROWS]
    for rows in (ROWS[::-1], list(Dataset.from_list(ROWS).shuffle(seed=3)), renamed):
        assert set(held_out(rows, tokenizer)[0]["validation"]) == set(texts["validation"])
    ordered = {"label_names": ["usual", "rare", "common"]}
    assert set(held_out(ROWS, tokenizer, **ordered)[0]["validation"]) == set(texts["validation"])


def test_a_row_more_or_less_moves_hardly_any_other(tokenizer):
    before = set(held_out(ROWS, tokenizer)[0]["validation"])
    for rows in ([*ROWS, {"text": "one film more", "label": "usual"}], ROWS[1:], ROWS[:-1]):
        assert len(before ^ set(held_out(rows, tokenizer)[0]["validation"])) <= 4


@pytest.mark.parametrize("labels", [[[0, 1], [1, 1], [1, 0], [0, 0]], [0.5, 1.5, 2.5, 3.25]], ids=["tags", "scores"])
def test_rows_without_classes_are_held_out_by_their_texts_too(labels, tokenizer):
    rows = [{"text": f"film {number // 2}", "label": labels[number % 4]} for number in range(80)]
    texts, data = held_out(rows, tokenizer)
    assert not set(texts["train"]) & set(texts["validation"]) and len(data["validation"]) == 16
    assert set(held_out(rows[::-1], tokenizer)[0]["validation"]) == set(texts["validation"])


def test_of_pairs_both_texts_count(tokenizer):
    rows = [
        {"text": f"film {number % 10}", "text_pair": f"plot {number % 20}", "label": "ab"[number % 2]}
        for number in range(60)
    ]
    data = load_text_classification(Dataset.from_list(rows), tokenizer=tokenizer, validation_split=0.3)
    train, validation = (
        set(zip(data[split]["text"][:], data[split]["text_pair"][:], strict=True)) for split in ("train", "validation")
    )
    assert validation and not train & validation and len(data["validation"]) == 18


def test_a_text_that_is_most_of_the_rows_is_left_to_the_training(tokenizer):
    rows = [{"text": "film" if number < 70 else f"film {number}", "label": "ab"[number % 2]} for number in range(100)]
    texts, data = held_out(rows, tokenizer, 0.1)
    assert "film" not in texts["validation"] and len(data["validation"]) == 10
    alike = [{"text": "film", "label": "ab"[number % 2]} for number in range(10)]
    with pytest.raises(ValueError, match="validation_split=0.2 can't hold out a part of so few different texts"):
        held_out(alike, tokenizer)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["a", "b", "a", "b"], "1 texts of the train split are there with different labels, in 2 rows"),
        (["a", "a", "a", "b"], None),
        ([[0, 1], [1, 1], [1, 0], [0, 0]], "1 texts of the train split are there with different labels, in 2 rows"),
        ([0.5, 1.5, 2.5, 3.25], None),
    ],
)
def test_equal_texts_with_different_labels_are_told_once(labels, told, tokenizer, caplog):
    texts = ["A film", "a  film", "film", "plot"]
    load_text_classification(Dataset.from_dict({"text": texts, "label": labels}), tokenizer=tokenizer)
    said = [each.getMessage() for each in caplog.records if "different labels" in each.getMessage()]
    assert len(said) == (told is not None) and all(told in each for each in said)
