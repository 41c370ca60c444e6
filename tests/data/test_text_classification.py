"""From a source to tokenised splits and batches: what rows hold, what is counted, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from samples import raw_rows, tiny_bert
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nlpkd.data.arguments import DataArguments
from nlpkd.data.collator import DistillationCollator
from nlpkd.data.text_classification import load_rows_for_model, load_text_classification
from nlpkd.data.tokenization import column_prefixes, per_teacher, same_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "good", "bad", "film"]


def make_tokenizer(words=WORDS, segments=False, lower=True, **settings) -> PreTrainedTokenizerFast:
    """Build [CLS] text [SEP] (pair [SEP]), one id a word, the id its place in the list."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    if lower:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, words.index(mark)) for mark in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=marks)
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if segments else [])
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **(names | settings))


def reviews(rows: int = 6) -> Dataset:
    return Dataset.from_dict(
        {"text": ["good film a", "Bad film"] * (rows // 2), "label": ["pos", "neg"] * (rows // 2)}
    )


def load(train, *others, **settings):
    return load_text_classification(train, *others, **({"tokenizer": make_tokenizer()} | settings))


def test_rows_hold_tokens_labels_length_and_text(tmp_path):
    data = load(reviews(), reviews(2))
    assert list(data) == ["train", "validation"] and "test" not in data
    assert data["train"][1] == {
        "text": "Bad film",
        "labels": 0,
        "input_ids": [2, 8, 9, 3],
        "attention_mask": [1, 1, 1, 1],
        "length": 4,
    }
    assert data["train"].features["labels"] == ClassLabel(names=["neg", "pos"])
    assert (data.text_column, data.text_pair_column, data.label_column) == ("text", None, "label")
    assert (data.id2label, data.label2id, data.num_labels) == ({0: "neg", 1: "pos"}, {"neg": 0, "pos": 1}, 2)
    assert (data.problem_type, data.max_length, data.name) == ("single_label_classification", 512, "in-memory data")
    assert data.truncated == {"train": 0, "validation": 0}


def test_a_glue_like_tsv_comes_out_row_by_row(tmp_path):
    texts = [f"\"{word} film ' {number}" for number, word in enumerate(["good", "bad"] * 20)]
    lines = [f"{number % 2}\t{text}" for number, text in enumerate(texts)]
    (tmp_path / "train.tsv").write_text("label\tsentence\n" + "\n".join(lines) + "\n")
    data = load(str(tmp_path / "train.tsv"))
    assert data["train"]["sentence"][:] == texts
    assert data["train"]["labels"][:] == [0, 1] * 20
    assert data.id2label == {0: "LABEL_0", 1: "LABEL_1"} and data.name == "train.tsv"


def test_rows_at_the_limit_are_whole_and_longer_ones_are_counted_and_said(caplog):
    texts = ["a b", "a b c", "a b c a", "a b c a b", "a"]
    with caplog.at_level(logging.INFO):
        data = load(Dataset.from_dict({"text": texts, "label": ["x", "y", "x", "y", "x"]}), max_length=5)
    assert data["train"]["length"][:] == [4, 5, 5, 5, 3]
    assert data.truncated == {"train": 2} and data.max_length == 5
    assert "train: 2 of 5 rows truncated to 5 tokens" in caplog.text


def test_rows_that_a_teacher_s_tokenizer_cuts_are_counted_beside_the_student_s(tmp_path, caplog):
    rows = [{"text": text, "label": label} for text, label in (("abc", "x"), ("good", "y"), ("a b c a", "x"))]
    letters = make_tokenizer()
    letters.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for source, streaming in ((rows, False), (tmp_path / "rows.jsonl", True)):
        caplog.clear()
        data = load(source, rows[1:2], teacher_tokenizer=[None, letters], max_length=5, streaming=streaming)
        assert data.truncated == {"train": 1, "teacher_train": 2, "validation": 0, "teacher_validation": 1}
        assert "train: 1 of 3 rows truncated to 5 tokens\n" in caplog.text
        assert "train: 2 of 3 rows truncated to 5 tokens of the teacher's tokenizer" in caplog.text


def test_a_class_without_rows_can_t_be_balanced():
    rows = reviews().cast_column("label", ClassLabel(names=["neg", "never", "pos"]))
    with pytest.raises(ValueError, match="class 'never' has no rows to balance"):
        _ = load(rows).class_weights


def test_the_default_limit_is_the_tokenizers_own_or_512():
    assert load(reviews(), tokenizer=make_tokenizer(model_max_length=16)).max_length == 16
    assert load(reviews(), tokenizer=make_tokenizer(model_max_length=8192)).max_length == 512
    short = make_tokenizer(segments=True, model_max_length=8)
    assert load(reviews(), teacher_tokenizer=short).max_length == 8


@pytest.mark.parametrize("length, message", [(1000, "more than the 64 tokens"), (2, "no room for text")])
def test_a_limit_that_fits_no_model_or_no_text_is_refused(length, message):
    with pytest.raises(ValueError, match=message):
        load(reviews(), tokenizer=make_tokenizer(model_max_length=64), max_length=length)


def test_pairs_have_segments_and_the_longer_text_is_cut():
    pairs = Dataset.from_dict(
        {"premise": ["a b c a b", "a"], "hypothesis": ["good film", "b"], "label": ["yes", "no"]}
    )
    data = load(pairs, max_length=8)
    assert data.text_pair_column == "hypothesis"
    assert data["train"]["input_ids"][:] == [[2, 4, 5, 6, 3, 7, 9, 3], [2, 4, 3, 5, 3]]
    assert data["train"]["token_type_ids"][:] == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert data.truncated == {"train": 1}


def test_a_teacher_with_another_tokenizer_gets_columns_of_its_own():
    teacher = make_tokenizer(WORDS[::-1], segments=True)
    row = load(reviews(), teacher_tokenizer=teacher)["train"][1]
    assert row["teacher_input_ids"] == [9 - number for number in row["input_ids"]]
    assert row["teacher_attention_mask"] == row["teacher_token_type_ids"] or row["teacher_token_type_ids"] == [0] * 4
    assert row["length"] == 4 and "token_type_ids" not in row


def test_a_teacher_with_an_equal_tokenizer_shares_the_columns():
    columns = load(reviews(), teacher_tokenizer=make_tokenizer(model_max_length=64))["train"].column_names
    assert not [column for column in columns if column.startswith("teacher_")]


def test_each_tokenizer_of_several_teachers_gets_columns_once():
    mirrored, spelled = make_tokenizer(WORDS[::-1]), make_tokenizer(lower=False)
    teachers = [make_tokenizer(), mirrored, None, spelled, make_tokenizer(WORDS[::-1])]
    assert column_prefixes(make_tokenizer(), teachers) == ["", "teacher_", "", "teacher_2_", "teacher_"]
    assert column_prefixes(None, teachers) == [""] * 5
    fourth = make_tokenizer([*WORDS, "d"])
    assert column_prefixes(make_tokenizer(), [*teachers, fourth])[-2:] == ["teacher_", "teacher_3_"]
    row = load(reviews(), teacher_tokenizer=teachers)["train"][1]
    assert row["input_ids"] == [2, 8, 9, 3] and row["length"] == 4
    assert row["teacher_input_ids"] == [7, 1, 0, 6] and row["teacher_2_input_ids"] == [2, 1, 9, 3]
    assert not [column for column in row if column.startswith("teacher_3_")]
    assert load(reviews(), teacher_tokenizer=[None, make_tokenizer(model_max_length=16)]).max_length == 16


def test_every_teacher_has_a_tokenizer_of_the_list_or_all_the_same():
    first, second = make_tokenizer(), make_tokenizer(WORDS[::-1])
    assert per_teacher([first, None], 2) == [first, None] and per_teacher((second,), 1) == [second]
    assert per_teacher(second, 2) == [second, second] and per_teacher(None, 2) == [None, None]
    with pytest.raises(ValueError, match="2 tokenizers for 3 teachers: give one a teacher"):
        per_teacher([first, second], 3)


def test_tokenizers_are_compared_by_content(tmp_path):
    first = make_tokenizer()
    used = make_tokenizer(padding_side="left", model_max_length=7)
    used(["a b c", "a"], truncation=True, max_length=3, padding=True)
    first.save_pretrained(tmp_path)
    assert same_tokenizer(first, used)
    assert same_tokenizer(first, PreTrainedTokenizerFast.from_pretrained(tmp_path))
    assert not same_tokenizer(first, make_tokenizer([*WORDS[:-2], WORDS[-1], WORDS[-2]]))
    assert not same_tokenizer(first, make_tokenizer(lower=False))
    added = make_tokenizer()
    added.add_tokens(["ü"])
    assert not same_tokenizer(first, added)


def test_tokenizers_that_show_no_content_are_the_same_only_if_one_object():
    opaque = SimpleNamespace(backend_tokenizer=None)
    assert same_tokenizer(opaque, opaque)
    assert not same_tokenizer(opaque, SimpleNamespace(backend_tokenizer=None))
    assert not same_tokenizer(opaque, make_tokenizer())


@pytest.mark.parametrize("size", [0.2, 8])
def test_a_stratified_part_of_train_is_held_out(size):
    rows = [{"text": f"a {number}", "label": "rare" if number % 4 == 0 else "usual"} for number in range(40)]
    data = load(Dataset.from_list(rows), validation_split=size)
    assert Counter(data["validation"]["labels"][:]) == {0: 2, 1: 6}
    assert sorted(data["train"]["text"][:] + data["validation"]["text"][:]) == sorted(row["text"] for row in rows)


@pytest.mark.parametrize("size", [0.0, 1.0, -0.5, 0, 6, 1.5, True, 0.01])
def test_an_impossible_part_is_refused(size):
    with pytest.raises(ValueError, match="validation_split="):
        load(reviews(6), validation_split=size)


def test_a_class_of_one_row_can_not_be_split():
    rows = Dataset.from_dict({"text": ["a"] * 5, "label": ["x", "y", "y", "y", "y"]})
    with pytest.raises(ValueError, match="1 of them of the rarest class"):
        load(rows, validation_split=2)


@pytest.mark.parametrize("size", [0.1, 0.9, 0.5])
def test_a_part_that_lacks_a_class_is_told(size, caplog):
    rows = [{"text": f"a {number}", "label": "a" if number > 1 else "b"} for number in range(200)]
    data = load(Dataset.from_list(rows), validation_split=size)
    for split in ("train", "validation"):
        told = f"1 of the 2 classes have no {split} row: 'b'" in caplog.text
        assert told is (set(data[split]["labels"][:]) == {0})


def test_a_validation_set_and_a_validation_split_contradict_each_other():
    with pytest.raises(ValueError, match="leave one of them out"):
        load(reviews(), reviews(2), validation_split=0.5)


def test_an_empty_text_of_any_split_and_of_the_pair_is_refused():
    with pytest.raises(ValueError, match="Column 'text' of the validation split has 1 empty texts .row 1"):
        load(reviews(), Dataset.from_dict({"text": ["a", " "], "label": ["pos", "neg"]}))
    pairs = Dataset.from_dict({"premise": ["a", "b"], "hypothesis": ["c", ""], "label": ["x", "y"]})
    with pytest.raises(ValueError, match="Column 'hypothesis' of the train split"):
        load(pairs)


def test_a_split_without_a_column_is_refused():
    with pytest.raises(ValueError, match="The validation split has no column 'text'; its columns are"):
        load(reviews(), reviews().rename_column("text", "body"))
    with pytest.raises(ValueError, match="The validation split has no column 'label'"):
        load(reviews(), reviews().remove_columns("label"))


def test_a_test_split_without_labels_is_dropped_with_a_warning(caplog):
    data = load(DatasetDict(train=reviews(), test=reviews().remove_columns("label")))
    assert list(data) == ["train"] and "no column 'label'" in caplog.text


@pytest.mark.parametrize("name", ["labels", "length", "input_ids", "teacher_input_ids", "teacher_2_input_ids"])
def test_a_text_column_with_a_name_made_here_is_refused(name):
    with pytest.raises(ValueError, match=f"may not be called '{name}'"):
        load(reviews().rename_column("text", name), text_column=name)


def test_a_million_letters_are_one_truncated_row(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], ["a " * 500_000, "x"], ["\u202eb\u200b", "y"]])
    data = load(tmp_path / "a.csv")
    assert data["train"]["length"][0] == 512 and data.truncated == {"train": 1}


def test_a_batch_is_padded_to_its_longest_row_and_no_further(recwarn, caplog):
    data = load(reviews(), teacher_tokenizer=make_tokenizer(WORDS[::-1]))
    collate = DistillationCollator(make_tokenizer(), make_tokenizer(WORDS[::-1]))
    caplog.clear()
    batch = collate([data["train"][0], data["train"][1]])
    assert batch["input_ids"].tolist() == [[2, 7, 9, 4, 3], [2, 8, 9, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0]]
    assert batch["teacher_input_ids"].tolist() == [[7, 2, 0, 5, 6], [7, 1, 0, 6, 9]]
    assert batch["teacher_attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0] and batch["labels"].dtype == torch.int64
    assert set(batch) == {"input_ids", "attention_mask", "teacher_input_ids", "teacher_attention_mask", "labels"}
    assert not recwarn.list and not caplog.records


def test_segments_are_padded_though_the_tokenizer_does_not_ask_for_them():
    rows = [{"input_ids": [2, 4, 3], "token_type_ids": [0, 1, 1]}, {"input_ids": [2, 3], "token_type_ids": [0, 1]}]
    assert DistillationCollator(make_tokenizer())(rows)["token_type_ids"].tolist() == [[0, 1, 1], [0, 1, 0]]


def test_lengths_are_rounded_up_to_a_multiple():
    batch = DistillationCollator(make_tokenizer(), pad_to_multiple_of=8)([{"input_ids": [2, 4, 3]}])
    assert batch["input_ids"].shape == (1, 8) and batch["attention_mask"].sum() == 3


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
def test_labels_and_cached_logits_are_stacked(name):
    values = [torch.tensor(row, dtype=torch.float16) for row in ([0.5, 1.5], [2.0, 3.0])]
    rows = [
        {"input_ids": [2, 3], name: number, "teacher_logits": row, "text": "a"} for number, row in enumerate(values)
    ]
    batch = DistillationCollator(make_tokenizer())(rows)
    assert batch["labels"].tolist() == [0, 1] and batch["labels"].dtype == torch.int64
    assert batch["teacher_logits"].tolist() == [[0.5, 1.5], [2.0, 3.0]]
    assert batch["teacher_logits"].dtype == torch.float32
    assert "text" not in batch and "length" not in batch


def test_rows_that_do_not_stack_are_refused():
    rows = [{"input_ids": [2, 3], "teacher_logits": [0.0] * size} for size in (2, 3)]
    with pytest.raises(ValueError, match="Column 'teacher_logits' can't be batched"):
        DistillationCollator(make_tokenizer())(rows)


def test_teacher_columns_without_a_teacher_tokenizer_are_refused():
    with pytest.raises(ValueError, match="no teacher_tokenizer"):
        DistillationCollator(make_tokenizer())([{"input_ids": [2, 3], "teacher_input_ids": [2, 3]}])


def test_a_tokenizer_without_padding_token_is_refused():
    with pytest.raises(ValueError, match="has no padding token: set one"):
        DistillationCollator(make_tokenizer(pad_token=None))


@pytest.mark.parametrize("asked", [{"soft_label_column": "votes"}, {"streaming": True}])
def test_rows_for_a_model_that_is_there_take_no_settings_of_training_rows(asked):
    config = SimpleNamespace(id2label={0: "neg", 1: "pos"}, problem_type=None, num_labels=2)
    with pytest.raises(ValueError, match="are of training rows: leave them out"):
        DataArguments(**asked).with_labels_of(config)
    assert DataArguments(max_length=9).with_labels_of(config).label_names == ("neg", "pos")


SCORES = {"num_labels": 1, "problem_type": "regression"}


@pytest.mark.parametrize(
    "rows, config, said",
    [
        ("text,label\nx y,neg\nx z,\n", {}, "Row 1 of the data has no label"),
        ("text,label\nx y,neg\nx z,odd\n", {}, "label .*odd"),
        ("text,label\nx y,neg\n,pos\n", {}, "of the data has 1 empty texts .row 1"),
        ("text,label\nx y,odd\nx z,odd\n", {}, "All rows have the same label 'odd'.*the model are .'neg', 'pos'"),
        ("text,label\nx y,7\n", {}, "All rows have the same label 7.*the model are .'neg', 'pos'"),
        ("text,label\nx y,2.5\nx z,2.5\n", SCORES, "All rows have the same score.*no correlation to measure"),
        ("text,label\nx y,2.5\n", SCORES, "All rows have the same score.*no correlation to measure"),
    ],
)  # fmt: skip
def test_errors_of_rows_to_measure_on_do_not_speak_of_training(rows, config, said, tmp_path, tokenizer):
    (tmp_path / "test.csv").write_text(rows)
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}} if not config else config
    with pytest.raises(ValueError, match=f"(?i){said}") as refused:
        load_rows_for_model(tmp_path / "test.csv", tiny_bert(**names).config, tokenizer=tokenizer)
    assert "train" not in str(refused.value) and "nothing to" not in str(refused.value)


@pytest.mark.parametrize("names", [["test"], ["dev"], ["validation", "test"]])
def test_splits_that_are_not_for_training_are_measured_on_as_the_rows_alone_are(names, tokenizer):
    config = tiny_bert(id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1}).config
    rows = raw_rows(20, seed=3, names=("neg", "pos"))
    alone, _, expected = load_rows_for_model(rows, config, tokenizer=tokenizer)
    split = DatasetDict({name: rows if name == names[-1] else rows.select(range(5)) for name in names})
    found, role, loaded = load_rows_for_model(split, config, tokenizer=tokenizer)
    assert role == {"dev": "validation"}.get(names[-1], names[-1]) and found.to_dict() == alone.to_dict()
    assert (loaded.text_columns, loaded.id2label) == (expected.text_columns, expected.id2label)
    with pytest.raises(ValueError, match="There is no 'train' split"):
        load_text_classification(split, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "test, said",
    [
        ({"label": ["neg", "pos"]}, "The test split has no column 'stars'; its columns are"),
        ({"label": ["neg", "pos"], "stars": [-1, -1]}, "Row 0 of the test split has no label"),
        ({"label": ["neg", "pos"], "stars": [None, None]}, "Row 0 of the test split has no label"),
    ],
)
def test_a_test_split_that_is_measured_on_is_never_left_out(test, said, tokenizer):
    config = tiny_bert(id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1}).config
    train = Dataset.from_dict({"text": ["good", "bad"], "stars": ["pos", "neg"]})
    rows = DatasetDict(train=train, test=Dataset.from_dict({"text": ["good film", "bad film"]} | test))
    for asked in ({}, {"splits": ["test"]}):
        with pytest.raises(ValueError, match=said):
            load_rows_for_model(rows, config, tokenizer=tokenizer, **asked)
