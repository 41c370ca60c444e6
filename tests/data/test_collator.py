"""Batches of a data set's tables: those that its rows make one by one."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets
from transformers import BertTokenizer

from nlpkd.data.collator import DistillationCollator
from nlpkd.training.batches.loaders import ROWS
from nlpkd.training.batches.loaders import _NumberedCollator as Numbered
from nlpkd.training.batches.loaders import _NumberedRows as Rows
from nlpkd.training.batches.samplers import LengthGroupedBatchSampler

LENGTHS = [5, 1, 9, 3, 3, 7, 2, 4]
NUMBERS = range(len(LENGTHS))
TOKENS = {
    "input_ids": [[5 + (place + number) % 7 for place in range(length)] for number, length in enumerate(LENGTHS)],
    "attention_mask": [[1] * length for length in LENGTHS],
}
TABLES = {
    "tokens alone": {},
    "token types": {"token_type_ids": [[place % 2 for place in range(length)] for length in LENGTHS]},
    "classes": {"labels": [number % 3 for number in NUMBERS]},
    "scores": {"label": [number / 3 for number in NUMBERS]},
    "several labels a row": {"labels": [[1.0, 0.0, number / 7] for number in NUMBERS]},
    "the teacher's logits": {"label_ids": [0] * 8, "teacher_logits": [[number / 3, -1e-9] for number in NUMBERS]},
    "text beside them": {"text": ["a film"] * 8, "length": LENGTHS, "more": [number - 4 for number in NUMBERS]},
}
ONE_BY_ONE = {
    "an empty cell": {"labels": [0, None] * 4},
    "an empty cell in a list": {"labels": [[0.5, None]] * 8},
    "lists of several lengths": {"labels": [[1.0] * (1 + number % 2) for number in NUMBERS]},
    "truth values": {"labels": [True, False] * 4},
    "a mask of another length": {"attention_mask": [[1]] * 8},
    "cached states": {"hidden": [b"\0\0"] * 8},
    "two columns of labels": {"label": [0] * 8, "labels": [1] * 8},
    "a teacher's tokens": {"teacher_input_ids": TOKENS["input_ids"]},
}
SHAPES = {
    "as made": lambda rows: rows,
    "in another order": lambda rows: rows.shuffle(seed=1),
    "of two tables": lambda rows: concatenate_datasets([rows.select(range(3)), rows.select(range(3, 8))]),
    "columns of two tables": lambda rows: concatenate_datasets(
        [rows.select_columns("input_ids"), rows.remove_columns("input_ids")], axis=1
    ),
}


def same(found: dict, expected: dict) -> bool:
    assert found.keys() == expected.keys()
    return all(found[name].dtype == each.dtype and torch.equal(found[name], each) for name, each in expected.items())


class XLNetTokenizer(BertTokenizer):
    """Known by its name: the one family that is padded on the left."""


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_makes_the_batch_of_its_rows(tokenizer, kind, shape, side):
    rows = SHAPES[shape](Dataset.from_dict(TOKENS | TABLES[kind]))
    made = BertTokenizer if side == "right" else XLNetTokenizer
    padding = made(vocab=tokenizer.get_vocab(), padding_side=side, pad_token="[MASK]")
    for multiple in (None, 8):
        collate = DistillationCollator(padding, pad_to_multiple_of=multiple)
        for chosen in ([*NUMBERS], [6, 2, 2], [4]):
            found = collate.of_table(rows.with_format("arrow")[chosen])
            assert same(found, collate([rows[number] for number in chosen]))


@pytest.mark.parametrize("stored", ["float32", "float64", "int8", "int32", "int64"])
def test_a_table_s_numbers_may_be_stored_in_any_width(tokenizer, stored):
    values = np.arange(8).astype(stored) / (3 if "float" in stored else 1)
    features = Features(
        {name: Sequence(Value("int8")) for name in TOKENS}
        | {"labels": Value(stored), "teacher_logits": Sequence(Value(stored), length=2)}
    )
    labels = {"labels": values.astype(stored), "teacher_logits": np.stack([values, -values], 1).astype(stored)}
    rows, collate = Dataset.from_dict(TOKENS | labels, features=features), DistillationCollator(tokenizer)
    assert same(collate.of_table(rows.with_format("arrow")[:]), collate([*rows]))


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_what_a_table_can_not_tell_is_left_to_the_rows(tokenizer, kind):
    rows = Dataset.from_dict(TOKENS | ONE_BY_ONE[kind])
    assert DistillationCollator(tokenizer).of_table(rows.with_format("arrow")[:]) is None


def test_tokens_without_a_mask_are_left_to_the_tokenizer_which_makes_one(tokenizer):
    rows, collate = Dataset.from_dict({"input_ids": TOKENS["input_ids"]}), DistillationCollator(tokenizer)
    assert collate.of_table(rows.with_format("arrow")[:]) is None
    assert Numbered(collate)(Rows(rows).__getitems__([1, 3]))["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


class OwnPadding(BertTokenizer):
    """A tokenizer that pads in a way of its own."""

    def _pad(self, encoded, **options):
        return super()._pad({name: values[:1] for name, values in encoded.items()}, **options)


class OwnCollator(DistillationCollator):
    """A collator that changes what it is given."""

    def __call__(self, features):
        return super().__call__([row | {"labels": 1 - row["labels"]} for row in features])


def test_a_loader_s_batches_are_the_rows_whatever_pads_and_collates_them(tokenizer):
    rows = Dataset.from_dict(TOKENS | {"labels": [number % 2 for number in NUMBERS]})
    own = OwnPadding(vocab=tokenizer.get_vocab())
    for collate in (DistillationCollator(tokenizer), DistillationCollator(own), OwnCollator(tokenizer)):
        for given in (rows, rows.with_format("torch"), rows.select_columns([*TOKENS, "labels"])):
            for numbers in LengthGroupedBatchSampler(LENGTHS, 3):
                found = Numbered(collate)(Rows(given).__getitems__(numbers))
                assert found.pop(ROWS) == numbers
                assert same(found, collate([rows[number] for number in numbers]))


@pytest.mark.parametrize("given", ["right", "left"])
@pytest.mark.parametrize(("kind", "usual"), [(BertTokenizer, "right"), (XLNetTokenizer, "left")])
def test_texts_are_padded_where_their_model_reads_none_whatever_the_tokenizer_was_set_to(
    tokenizer, kind, usual, given
):
    padding = kind(vocab=tokenizer.get_vocab(), padding_side=given)
    rows = [{"input_ids": ids, "teacher_input_ids": ids} for ids in ([2, 3], [2, 4, 3])]
    batch = DistillationCollator(padding, padding)(rows)
    padded = [2, 3, 0] if usual == "right" else [0, 2, 3]
    assert batch["input_ids"].tolist()[0] == batch["teacher_input_ids"].tolist()[0] == padded
    assert padding.padding_side == given
