"""More rows beside the training rows of a job: their columns, their marks, and what they are kept apart from."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from datasets import Dataset, DatasetDict
from samples import QUIET, WORDS, masking_tokenizers, raw_rows, tiny_bert
from transformers import BertTokenizer

from nlpkd import DistillationTrainer, distill, load_text_classification, train_teacher
from nlpkd.augment import EmbeddingNeighbours, make_augmenter
from nlpkd.augment.near_duplicates import similarity
from nlpkd.augment.splits import read_texts, with_more_text
from nlpkd.objectives import ForwardKLLoss, Stage

TEXTS = raw_rows(40, seed=5)["text"][:]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    """Make the rows anew in each test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizers():
    return masking_tokenizers()


def longer(settings, data, tokenizer, *others, **given):
    """Add neighbours' variants as a job does."""
    args = settings(**{"augment": "neighbours", "augment_copies": 2} | given)
    make = lambda: EmbeddingNeighbours(tiny_bert(), tokenizer, args.augment_change, top_k=5)  # noqa: E731
    return with_more_text(data, args, make, [tokenizer, *others])


def test_five_variants_are_drawn_where_nothing_says_how_many(settings, tokenizer):
    data = load_text_classification(raw_rows(20, seed=5), tokenizer=tokenizer)
    five, usual = (longer(settings, data, tokenizer, augment_copies=copies)["train"] for copies in (5, None))
    assert usual.to_list() == five.to_list() and len(five) > 3 * 20


def rows_of(kind: str) -> tuple[dict, dict]:
    columns = {
        "classes": {"label": [number % 2 for number in range(40)]},
        "several": {"label": [["a"] if number % 3 else ["a", "b"] for number in range(40)]},
        "scores": {"label": [number / 7 for number in range(40)]},
    }
    return {"text": TEXTS, **columns[kind]}, {"label_column": "label"}


@pytest.mark.parametrize(
    "kind, mark", [("classes", -100), ("several", [-100.0, -100.0]), ("scores", math.nan)], ids=str
)
def test_rows_come_behind_the_training_rows_with_the_mark_of_the_task(settings, tokenizer, kind, mark):
    rows, named = rows_of(kind)
    data = load_text_classification(
        Dataset.from_dict(rows), Dataset.from_dict(rows).select(range(20)), tokenizer=tokenizer, **named
    )
    before = {split: data[split].to_list() for split in data}
    both = longer(settings, data, tokenizer)
    assert {split: data[split].to_list() for split in data} == before, "the caller's splits stay"
    assert both["validation"] is data["validation"]
    found = both["train"].to_list()
    assert both["train"].features == data["train"].features and found[: len(rows["text"])] == before["train"]
    new = both["train"].select(range(40, len(found)))
    assert len(new) > 20
    for row in new:
        assert row["labels"] == mark or (mark != mark and math.isnan(row["labels"]))
        assert row["input_ids"] == tokenizer(row["text"])["input_ids"] and row["length"] == len(row["input_ids"])


def test_the_rows_are_tokenised_for_the_teacher_too_and_cut_rows_are_counted(settings, tokenizer):
    other = BertTokenizer(
        vocab={token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[::-1]])},
        model_max_length=64,
    )
    data = load_text_classification(
        raw_rows(40, seed=5), raw_rows(9, seed=6), tokenizer=tokenizer, teacher_tokenizer=other, max_length=8
    )
    both = longer(settings, data, tokenizer, other)
    row = both["train"][-1]
    assert row["teacher_input_ids"] == other(row["text"], truncation=True, max_length=8)["input_ids"]
    cut = sum(len(tokenizer(text)["input_ids"]) > 8 for text in both["train"]["text"])
    assert both.truncated["train"] == both.truncated["teacher_train"] == cut > data.truncated["train"] > 0
    assert both.truncated["validation"] == data.truncated["validation"]


@pytest.mark.parametrize("way", ["masking", "ngrams"])
@pytest.mark.parametrize(("student", "teacher"), [*permutations(["WordPiece", "BPE", "Unigram"], 2)])
def test_each_tokenizer_reads_a_masked_word_as_its_own_mask_token(settings, tokenizers, way, student, teacher):
    own, other = tokenizers[student], tokenizers[teacher]
    data = load_text_classification(raw_rows(20, seed=5), tokenizer=own, teacher_tokenizer=other)
    args = settings(augment=way, augment_copies=2)
    make = lambda: make_augmenter(way, tiny_bert(), other)  # noqa: E731
    made = with_more_text(data, args, make, [own, other])["train"].select(range(20, 40))
    for row in made:
        masks = row["text"].count(other.mask_token)
        assert row["input_ids"].count(own.mask_token_id) == masks
        assert row["teacher_input_ids"].count(other.mask_token_id) == masks
        rest = [number for number in row["input_ids"] if number != own.mask_token_id]
        assert set(own.decode(rest, skip_special_tokens=True).split()) <= set(WORDS)
    assert any(other.mask_token in text for text in made["text"])


def test_words_are_not_masked_for_a_tokenizer_without_a_mask_token(settings, tokenizers):
    without, other = masking_tokenizers()["BPE"], tokenizers["WordPiece"]
    without.mask_token = None
    data = load_text_classification(raw_rows(20, seed=5), tokenizer=without, teacher_tokenizer=other)
    make = lambda: make_augmenter("masking", tiny_bert(), other)  # noqa: E731
    with pytest.raises(ValueError, match="has no mask token, .* such as 'constituents'"):
        with_more_text(data, settings(augment="masking"), make, [without, other])


def test_no_row_is_made_that_nearly_equals_one_that_is_evaluated(settings, tokenizer):
    train = raw_rows(60, seed=1)
    everything = longer(settings, load_text_classification(train, tokenizer=tokenizer), tokenizer)["train"]["text"][
        60:
    ]
    # What would be made is evaluated, in part: as it is, and with a word more.
    parts = everything[:10], [f"{text} was" for text in sorted(everything, key=len)[-10:]]
    held, tested = (Dataset.from_dict({"text": part, "label": [0, 1] * 5}) for part in parts)
    data = load_text_classification(train, held, tested, tokenizer=tokenizer)
    made = longer(settings, data, tokenizer)["train"]["text"][60:]
    near = {text for text in everything if any(similarity(text, other) >= 0.7 for part in parts for other in part)}
    assert made == [text for text in everything if text not in near] and len(made) > 20
    assert near >= {*parts[0], *(text.removesuffix(" was") for text in parts[1])}
    # The order of what is evaluated changes nothing.
    data = load_text_classification(train, held.select(range(9, -1, -1)), tested.shuffle(seed=0), tokenizer=tokenizer)
    assert longer(settings, data, tokenizer)["train"]["text"][60:] == made


def test_the_seed_decides_and_pairs_have_both_texts(settings, tokenizer):
    pairs = {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": [0, 1] * 20}
    data = load_text_classification(Dataset.from_dict(pairs), tokenizer=tokenizer)
    first, again, other = (longer(settings, data, tokenizer, seed=seed)["train"][:] for seed in (1, 1, 2))
    assert first == again != other
    changed = [(first["premise"][row], first["hypothesis"][row]) for row in range(40, len(first["labels"]))]
    assert not {one for one, _ in changed} <= set(TEXTS) and not {two for _, two in changed} <= set(TEXTS)
    assert first["token_type_ids"][-1].count(1) == len(changed[-1][1].split()) + 1


def test_rows_follow_the_lengths_of_texts_that_need_no_label(settings, tokenizer, tmp_path):
    (tmp_path / "texts.txt").write_text("a b c\n\nd e f\n")
    (tmp_path / "texts.csv").write_text("id,text\n1,a b c\n2,d e f\n")
    data = load_text_classification(raw_rows(60, seed=1), tokenizer=tokenizer)
    made = [
        longer(settings, data, tokenizer, augment_texts=str(tmp_path / name))["train"]["text"][60:]
        for name in ("texts.txt", "texts.csv")
    ]
    assert made[0] == made[1] and {len(text.split()) for text in made[0]} == {3}


@pytest.mark.parametrize(
    "content, message",
    [(None, "File not found"), (b"", "is empty"), (b" \n\n", "is empty"), (b"caf\xe9\n", r"byte 3\)")],
)
def test_a_text_file_that_can_t_be_read_is_refused_in_plain_words(tmp_path, content, message):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(str(path))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_text_file_is_read_a_text_a_line_without_a_byte_order_mark(tmp_path, start):
    (tmp_path / "texts.txt").write_bytes(start + "a café\r\n\n b\u0085c".encode())
    assert read_texts(str(tmp_path / "texts.txt")) == ["a café", " b\u0085c"]


QUICK = {**QUIET, "max_steps": 3, "per_device_train_batch_size": 8, "teacher_check": "off"}


@pytest.mark.parametrize(
    "student, asked, way, more",
    [("layers:1", "neighbours", "neighbours", {"augment_change": 0.5}), ("bilstm", "auto", "ngrams", {})],
)
def test_a_job_makes_the_rows_and_its_report_says_so(tokenizer, tmp_path, student, asked, way, more):
    splits = DatasetDict(train=raw_rows(60, seed=1), validation=raw_rows(20, seed=7))
    result = distill(
        tiny_bert(layers=2), student, splits, objectives="hinton", baseline="same_start", output_dir=tmp_path,
        tokenizer=tokenizer, teacher_tokenizer=tokenizer, augment=asked, augment_copies=2, **more, **QUICK,
    )  # fmt: skip
    run = result.report.run
    assert run.data.train_rows > 75 and run.data.evaluated_rows == 20
    made = {name: value for name, value in run.settings.items() if name.startswith("augment")}
    assert made == {"augment": way, "augment_copies": 2, "augment_change": 0.3} | more
    assert f"augment: {way}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"augment": "swap"}, "there is no way 'swap'"),
        ({"augment_model": "x"}, "augment_model say how rows are made, .* name a way as augment, or 'auto'"),
        ({"augment_copies": 3, "augment_change": 0.2}, "augment_copies and augment_change say how rows are made"),
        ({"augment": "masked-lm"}, "needs a masked language model"),
        ({"augment": "auto", "window_stride": 2}, "leave streaming and window_stride out"),
        ({"augment": "auto", "augment_copies": 0}, "augment_copies must be >= 1"),
        ({"augment": "auto", "augment_change": 1.5}, "augment_change must be a share"),
        ({"augment": "auto", "augment_change": "much"}, "augment_change must be a number"),
    ],
)
def test_settings_that_make_no_rows_are_refused(tokenizer, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        distill(
            tiny_bert(), "layers:1", raw_rows(20), raw_rows(9, seed=3), output_dir=tmp_path,
            tokenizer=tokenizer, teacher_tokenizer=tokenizer, **given, **QUICK,
        )  # fmt: skip


def test_who_has_no_teacher_to_label_rows_refuses_them(settings, tokenizer, make_rows, tmp_path):
    votes = raw_rows(20).map(lambda row: {"votes": [0.2, 0.8]}).remove_columns("label")
    with pytest.raises(ValueError, match="for a fine-tuned teacher to label, and there is none that is run"):
        distill(
            None, tiny_bert(), votes, raw_rows(9, seed=3), soft_label_column="votes", label_names=["neg", "pos"],
            tokenizer=tokenizer, augment="auto", output_dir=tmp_path, use_cpu=True,
        )  # fmt: skip
    with pytest.raises(ValueError, match="there is none that is run"):
        train_teacher(
            tiny_bert(), raw_rows(20), tokenizer=tokenizer, augment="auto", output_dir=tmp_path, use_cpu=True
        )
    with pytest.raises(ValueError, match=r"augment='auto' is for nlpkd\.distill"):
        DistillationTrainer(
            tiny_bert(), tiny_bert(), settings(augment="auto"), train_dataset=make_rows(20), processing_class=tokenizer
        )
    with pytest.raises(ValueError, match="augment: no setting of a stage"):
        Stage([ForwardKLLoss()], augment="auto")
