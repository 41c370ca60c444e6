"""Rows for the teacher to label: what is replaced, masked and cut, what is new, and how it gets to the trainer."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets
from samples import WORDS, raw_rows, tiny_bert
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from nlpkd.augment import UNLABELLED, MaskedLanguageModel, MaskingAndNGrams, augment, unlabelled
from nlpkd.augment.words import words_of

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ",", "!", "##s", "[unused0]"]


@pytest.fixture(scope="module")
def tokens() -> BertTokenizer:
    """The usual words, and tokens that are none."""
    return BertTokenizer(vocab={token: number for number, token in enumerate(TOKENS)}, model_max_length=64)


@pytest.fixture(scope="module")
def language_model() -> BertForMaskedLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForMaskedLM(
            BertConfig(
                vocab_size=len(TOKENS),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
                initializer_range=0.5,
            )  # fmt: skip
        )


@pytest.fixture
def make(tmp_path):
    """Augment into a cache of the test's own."""

    def make(data, augmenter, **settings) -> Dataset:
        return augment(data, augmenter, cache_dir=tmp_path, **settings)

    return make


class Numbered:
    """Variants that say what they are of; counts the rows it was asked for."""

    def __init__(self, form: str = "{text} {number}"):
        self.form, self.asked = form, 0

    def variants(self, texts, draws) -> Iterator[list[str]]:
        for text, generators in zip(texts, draws, strict=True):
            self.asked += 1
            yield [self.form.format(text=text, number=number) for number in range(len(generators))]

    def fingerprint(self) -> str:
        return self.form


def labelled(texts, labels=None, names=("neg", "pos"), column="text") -> Dataset:
    features = Features({column: Value("string"), "label": ClassLabel(names=list(names))})
    values = [row % len(names) for row in range(len(texts))] if labels is None else labels
    return Dataset.from_dict({column: texts, "label": values}, features=features)


def draws(texts: int, copies: int = 1) -> list[list[np.random.Generator]]:
    return [[np.random.default_rng((row, copy)) for copy in range(copies)] for row in range(texts)]


# What is drawn


def likely_words(model, tokenizer, text: str, word: int, top_k: int) -> list[str]:
    """The words that the model expects in a place, the naive way: one text, one mask, every token ranked."""
    words = text.split()
    words[word] = "[MASK]"
    encoded = tokenizer(" ".join(words), return_tensors="pt")
    place = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        scores = model.eval()(**encoded).logits[0, place]
    ranked = [tokenizer.convert_ids_to_tokens(int(number)) for number in scores.argsort(descending=True)]
    return [token for token in ranked if token in WORDS][:top_k]


def test_every_word_becomes_one_of_the_likely_ones_in_the_original_text(language_model, tokens):
    text, top_k = "the film was not very good", 3
    augmenter = MaskedLanguageModel(language_model, tokens, replace_probability=1, top_k=top_k)
    variants = [variant.split() for variant in next(augmenter.variants([text], draws(1, 200)))]
    for word in range(6):
        expected = likely_words(language_model, tokens, text, word, top_k)
        found = Counter(variant[word] for variant in variants)
        assert set(found) == set(expected) and len(expected) == top_k
        assert min(found.values()) > 200 / top_k / 2


def test_the_best_candidate_comes_first(language_model, tokens):
    text = "a great plot and bad actor"
    augmenter = MaskedLanguageModel(language_model, tokens, replace_probability=1, top_k=1)
    expected = [likely_words(language_model, tokens, text, word, 1)[0] for word in range(6)]
    assert next(augmenter.variants([text], draws(1))) == [" ".join(expected)]


def test_words_of_several_tokens_punctuation_marks_and_blanks_stay(language_model, tokens):
    text = "Good  films, [MASK] xx not bad!"
    augmenter = MaskedLanguageModel(language_model, tokens, replace_probability=1, top_k=1)
    (variant,) = next(augmenter.variants([text], draws(1)))
    good, unknown, no, bad = (variant.replace(",", "").replace("!", "").split()[word] for word in (0, 3, 4, 5))
    assert variant == f"{good}  films, [MASK] {unknown} {no} {bad}!"
    assert {good, unknown, no, bad} <= set(WORDS)


def test_only_whole_words_are_candidates(language_model, tokens):
    augmenter = MaskedLanguageModel(language_model, tokens, top_k=len(WORDS))
    assert sorted(augmenter.words.values()) == sorted(WORDS)


def test_a_byte_level_tokenizer_replaces_words_within_their_blanks():
    vocabulary = ["<s>", "<pad>", "</s>", "<mask>", "Ġgood", "Ġbad", "Ġfilm", "good", "ly", "Ġ!"]
    backend = Tokenizer(models.WordLevel({token: n for n, token in enumerate(vocabulary)}, unk_token="ly"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="<mask>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    augmenter = MaskedLanguageModel(BertForMaskedLM(config), tokenizer, replace_probability=1, top_k=3)
    assert augmenter.words == {4: "good", 5: "bad", 6: "film"}
    variants = [variant.split(" ") for variant in next(augmenter.variants(["good film !"], draws(1, 50)))]
    for place, expected in enumerate([{"good", "bad", "film"}, {"good", "bad", "film"}, {"!"}]):
        assert {variant[place] for variant in variants} == expected


def test_words_beyond_the_longest_input_stay(language_model, tokens):
    text = " ".join(["film"] * 100)
    augmenter = MaskedLanguageModel(language_model, tokens, replace_probability=1, top_k=15)
    words = next(augmenter.variants([text], draws(1)))[0].split()
    assert words[62:] == ["film"] * 38 and len(set(words[:62])) > 5


@pytest.mark.parametrize("batch_size", [1, 7])
def test_variants_do_not_depend_on_batches_or_on_the_texts_beside(language_model, tokens, batch_size):
    texts = raw_rows(12, seed=3)["text"][:]
    settings = {"replace_probability": 0.5, "top_k": 5}
    one = MaskedLanguageModel(language_model, tokens, batch_size=batch_size, **settings)
    all_at_once = list(MaskedLanguageModel(language_model, tokens, **settings).variants(texts, draws(12, 4)))
    assert list(one.variants(texts, draws(12, 4))) == all_at_once
    alone = [next(one.variants([text], [own])) for text, own in zip(texts, draws(12, 4), strict=True)]
    assert alone == all_at_once


def test_the_model_is_run_in_eval_mode_without_gradients(tokens):
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(TOKENS), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    ).train()
    seen = []
    model.register_forward_hook(lambda module, _, output: seen.append((module.training, output.logits.requires_grad)))
    list(MaskedLanguageModel(model, tokens, replace_probability=1).variants(["good film"], draws(1)))
    assert seen == [(False, False)]


def test_the_shares_of_replaced_masked_and_cut_rows_are_those_asked_for(language_model, tokens):
    text = " ".join("abcdefghij")
    variants = next(MaskingAndNGrams(tokens, 0.1, 0.25).variants([text], draws(1, 4000)))
    lengths = Counter(len(variant.split()) for variant in variants)
    assert set(lengths) == {1, 2, 3, 4, 5, 10}
    assert abs(1 - lengths[10] / 4000 - 0.25) < 0.03
    assert all(abs(lengths[size] / 4000 - 0.05) < 0.015 for size in range(1, 6))
    words = [word for variant in variants for word in variant.split()]
    assert abs(words.count("[MASK]") / len(words) - 0.1) < 0.01
    place = text.split().index
    for variant in variants:
        kept = [(position, word) for position, word in enumerate(variant.split()) if word != "[MASK]"]
        assert len({place(word) - position for position, word in kept}) <= 1

    fixed = MaskedLanguageModel(language_model, tokens, replace_probability=0.4, top_k=1)
    sentence = "the actor was fine and it"
    best = [likely_words(language_model, tokens, sentence, word, 1)[0] for word in range(6)]
    changes = [word for word in range(6) if best[word] != sentence.split()[word]]
    made = next(fixed.variants([sentence], draws(1, 2000)))
    changed = sum(variant.split()[word] == best[word] for variant in made for word in changes)
    assert changes and abs(changed / len(changes) / 2000 - 0.4) < 0.03


def test_masking_changes_no_word_at_probability_0_and_leaves_a_text_of_which_nothing_would_be_left(tokens):
    assert next(MaskingAndNGrams(tokens, 0, 0).variants(["a b  c"], draws(1, 3))) == ["a b c"] * 3
    assert next(MaskingAndNGrams(tokens, 1, 0).variants(["a b"], draws(1, 3))) == ["a b"] * 3
    assert all(
        len(text.split()) < 6 for text in next(MaskingAndNGrams(tokens, 0, 1).variants(["a " * 9], draws(1, 9)))
    )


# What is kept


SIGNS = ["这部电影非常好看，我很喜欢", "服务态度很差，等了两个小时", "หนังเรื่องนี้ดีมาก", "この映画はとても面白かった。"]


def test_texts_without_blanks_are_masked_and_cut_by_their_signs_and_joined_without_blanks(tokens):
    generators = draws(len(SIGNS), 200)
    masked = list(MaskingAndNGrams(tokens, 0.3, 0.0).variants(SIGNS, generators))
    for text, variants in zip(SIGNS, masked, strict=True):
        shares = [variant.count("[MASK]") / len(words_of(text)) for variant in variants]
        assert np.mean(shares) == pytest.approx(0.3, abs=0.05)
        assert not [variant for variant in variants if " " in variant]
    for text, variants in zip(SIGNS, MaskingAndNGrams(tokens, 0.0, 1.0).variants(SIGNS, generators), strict=True):
        assert {len(words_of(variant)) for variant in variants} == {1, 2, 3, 4, 5}
        assert all(variant in text for variant in variants)


def test_no_variant_is_masks_alone(tokens):
    texts = ["good", "good film", *SIGNS]
    for variants in MaskingAndNGrams(tokens, 0.6, 0.5).variants(texts, draws(len(texts), 100)):
        assert all(variant.replace("[MASK]", "").strip() for variant in variants)


def test_texts_of_which_nothing_new_comes_are_told_with_what_helps(make):
    class Same:
        def variants(self, texts, draws):
            return ([text] * len(some) for text, some in zip(texts, draws, strict=True))

        def fingerprint(self):
            return "same"

    rows = Dataset.from_dict({"text": SIGNS, "label": [0, 1, 0, 1]})
    with pytest.raises(ValueError, match="of 8 texts, 8 are in the train rows .* that finds more to change"):
        make(rows, Same(), copies=2)


def test_rows_have_the_text_the_mark_and_the_features_of_the_source(make):
    source = labelled(["good film", "bad film"]).add_column("idx", [1, 2])
    rows = make(source, Numbered(), copies=2)
    assert rows["text"][:] == ["good film 0", "good film 1", "bad film 0", "bad film 1"]
    assert rows["label"][:] == [UNLABELLED] * 4 == [-100] * 4
    assert rows.features == {name: source.features[name] for name in ("text", "label")}
    both = concatenate_datasets([source, rows])
    assert both["label"][:] == [0, 1, *[-100] * 4] and both.features == source.features


@pytest.mark.parametrize("kind, mark", [("int64", -100), ("int8", -100), ("float32", -100.0), ("string", "-100")])
def test_labels_of_every_type_have_a_mark(make, kind, mark):
    source = labelled(["a", "b"]).cast_column("label", Value(kind))
    rows = make(source, Numbered(), copies=1)
    assert rows["label"][:] == [mark] * 2
    assert concatenate_datasets([source, rows]).features == source.features


def test_a_row_without_a_score_is_marked_by_no_number(make):
    source = Dataset.from_dict({"text": ["a", "b"], "label": [-99.5, 100.0]})
    rows = make(source, Numbered(), copies=1)
    assert all(math.isnan(score) for score in rows["label"][:])
    assert concatenate_datasets([source, rows]).features == source.features


def test_no_row_is_made_twice_or_is_in_the_source_or_excluded(make):
    source = labelled(["good", "Bad", "GOOD 1", "good"])
    rows = make(source, Numbered(), copies=5, exclude=[labelled(["g o o d\t2"]), ["BAD 3", "bad 4"]])
    assert rows["text"][:] == ["good 0", "good 3", "good 4", "Bad 0", "Bad 1", "Bad 2"] + [
        f"GOOD 1 {number}" for number in range(5)
    ]


def test_forms_of_a_letter_are_the_same(make):
    source = labelled(["x", "y"])
    rows = make(source, Numbered("{text} Caf\u00e9{number}"), copies=1, exclude=[["x cafe\u0301\uff10"]])
    assert rows["text"][:] == ["y Café0"]


def test_a_pair_is_one_row_and_both_texts_vary(make, tokens):
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": Value("int64")})
    words = " ".join("abcdefghij")
    source = Dataset.from_dict({"premise": [words], "hypothesis": [words], "label": [0]}, features=features)
    rows = make(source, MaskingAndNGrams(tokens, 0.5, 0), copies=30)
    assert rows.column_names == ["premise", "hypothesis", "label"] and len(rows) == 30
    pairs = list(zip(rows["premise"], rows["hypothesis"], strict=True))
    assert sum(first != second for first, second in pairs) > 25
    assert len({first for first, _ in pairs}) > 25 and len({second for _, second in pairs}) > 25
    first, second = pairs[0]
    again = make(source, MaskingAndNGrams(tokens, 0.5, 0), copies=30, exclude=[rows.select([0])])
    assert (first, second) not in zip(again["premise"], again["hypothesis"], strict=True) and len(again) == 29
    swapped = Dataset.from_dict({"premise": [second], "hypothesis": [first], "label": [0]}, features=features)
    assert len(make(source, MaskingAndNGrams(tokens, 0.5, 0), copies=30, exclude=[swapped])) == 30


def test_the_same_seed_makes_the_same_rows_wherever_a_text_stands(tmp_path, language_model, tokens):
    data = raw_rows(20, seed=1)
    augmenter = MaskedLanguageModel(language_model, tokens, top_k=5)

    def rows(source, folder, seed=1):
        return augment(source, augmenter, copies=3, seed=seed, cache_dir=tmp_path / folder)["text"][:]

    first = rows(data, "first")
    assert rows(data, "again") == first
    assert rows(data, "other", seed=2) != first
    assert sorted(rows(data.select(range(19, -1, -1)), "reversed"), key=str) == sorted(first)


def test_rows_do_not_depend_on_how_many_are_read_at_once(tmp_path, tokens, monkeypatch):
    def rows(folder):
        return augment(raw_rows(30), MaskingAndNGrams(tokens), copies=4, cache_dir=tmp_path / folder)["text"][:]

    whole = rows("whole")
    monkeypatch.setattr("nlpkd.augment.rows.ROWS_AT_ONCE", 7)
    assert rows("parts") == whole


def test_rows_on_disk_are_used_again_only_for_the_same_call(make):
    source, augmenter = labelled(["a", "b"]), Numbered()
    first = make(source, augmenter, copies=2)
    assert augmenter.asked == 2 and first.cache_files
    assert make(source, augmenter, copies=2)[:] == first[:] and augmenter.asked == 2
    for changed in (
        {"copies": 3}, {"seed": 1}, {"exclude": [["a 0"]]}, {"data": labelled(["a", "B"])},
        {"data": source.rename_column("text", "review")}, {"augmenter": Numbered("{text}!{number}")},
    ):  # fmt: skip
        settings = {"data": source, "augmenter": augmenter, "copies": 2} | changed
        before = settings["augmenter"].asked
        make(**settings)
        assert settings["augmenter"].asked == before + 2, changed


def test_a_language_model_is_known_by_weights_tokenizer_and_settings(language_model, tokens):
    fresh = BertTokenizer(vocab=tokens.get_vocab(), model_max_length=64)
    first = MaskedLanguageModel(language_model, fresh)
    print_before = first.fingerprint()
    list(first.variants(["good film"], draws(1)))
    assert fresh.backend_tokenizer.truncation is not None
    assert first.fingerprint() == print_before
    assert MaskedLanguageModel(language_model, tokens, top_k=5).fingerprint() != print_before
    assert MaskedLanguageModel(language_model, tokens, replace_probability=0.3).fingerprint() != print_before
    assert MaskedLanguageModel(language_model, tokens, batch_size=2).fingerprint() == print_before
    cased = BertTokenizer(vocab=tokens.get_vocab(), model_max_length=64, do_lower_case=False)
    assert MaskedLanguageModel(language_model, cased).fingerprint() != print_before
    other = BertForMaskedLM(language_model.config)
    other.load_state_dict(language_model.state_dict())
    assert MaskedLanguageModel(other, tokens).fingerprint() == print_before
    with torch.no_grad():
        other.cls.predictions.bias[3] += 1
    assert MaskedLanguageModel(other, tokens).fingerprint() != print_before
    assert MaskedLanguageModel(other.bfloat16(), tokens).fingerprint()


def test_rows_are_written_as_they_are_made(make):
    source = labelled([f"{number}" for number in range(1000)])
    long = Numbered("{text} {number} " + "x" * 10_000)
    make(labelled(["warm", "up"]), Numbered())
    tracemalloc.start()
    rows = make(source, long, copies=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 10_000 and rows.data.nbytes > 100e6
    assert peak < 60e6


# Plain text


def test_plain_text_becomes_rows_like_the_labelled_ones(tmp_path):
    like, validation = labelled(["good film"], [0], column="review"), labelled(["bad film"], [0], column="review")
    (tmp_path / "lines.txt").write_text("a\nGood  film\n\nb\nA\nBAD FILM\n \n")
    lines = Dataset.from_text(str(tmp_path / "lines.txt"), cache_dir=str(tmp_path))
    for texts in (lines["text"], lines["text"][:], lines.rename_column("text", "review")):
        rows = unlabelled(texts, like, exclude=[validation], text_column="review", cache_dir=tmp_path)
        assert rows[:] == {"review": ["a", "b"], "label": [-100, -100]} and rows.features == like.features


def test_what_is_excluded_is_not_made_even_if_it_is_the_source(tmp_path):
    texts = labelled(["a", "b"])
    with pytest.raises(ValueError, match="Nothing new came of 2 rows"):
        unlabelled(texts, labelled(["c"], [0]), exclude=[texts], cache_dir=tmp_path)


def test_variants_of_plain_text_can_be_made(tmp_path):
    rows = unlabelled(["c"], labelled(["a", "b"]), cache_dir=tmp_path)
    assert augment(rows, Numbered(), copies=1, cache_dir=tmp_path)[:] == {"text": ["c 0"], "label": [-100]}


# What is refused


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"copies": 0}, "copies=0: give 1 or more"),
        ({"seed": -1}, "seed=-1: give 0 or more"),
        ({"text_column": "review"}, r"no column 'review' .* columns are \['text', 'label'\]"),
        ({"exclude": [["a 0", "b 0"]], "copies": 1}, "Nothing new came of 2 rows"),
        ({"exclude": ["a", "b"]}, "exclude\\[0\\] must be texts, in a list"),
        ({"exclude": labelled(["a"])}, "exclude=\\[validation, test\\]"),
        ({"exclude": [labelled(["a"], column="review")]}, r"no column 'text' but \['review', 'label'\]"),
        ({"exclude": [[1, 2]]}, "row 0 is 1, and must be a text"),
        ({"data": labelled(["a", " "])}, "1 empty texts"),
        (
            {"data": labelled(["a", "b"]).cast_column("label", Value("bool"))},
            "'label' are bool, with no place for -100",
        ),
        ({"data": labelled(["a", "b"]).cast_column("label", Value("uint8"))}, "uint8, with no place"),
    ],
)
def test_wrong_input_is_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**({"data": labelled(["a", "b"]), "augmenter": Numbered()} | settings))


def test_pairs_are_not_excluded_by_single_texts(make):
    pairs = Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [0]})
    with pytest.raises(ValueError, match=r"pairs: give data sets with the columns \['premise', 'hypothesis'\]"):
        make(pairs, Numbered(), exclude=[["a"]])


def test_an_error_of_the_augmenter_is_raised_as_it_is(make):
    class Broken(Numbered):
        def variants(self, texts, draws):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        make(labelled(["a"], [0]), Broken())


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_probabilities_are_checked(language_model, tokens, probability):
    with pytest.raises(ValueError, match="mask_probability must be a share of at least 0 and at most 1"):
        MaskingAndNGrams(tokens, mask_probability=probability)
    with pytest.raises(ValueError, match="ngram_probability must be a share of at least 0 and at most 1"):
        MaskingAndNGrams(tokens, ngram_probability=probability)
    with pytest.raises(ValueError, match="replace_probability must be a share of at least 0 and at most 1"):
        MaskedLanguageModel(language_model, tokens, replace_probability=probability)


def test_a_model_or_tokenizer_that_can_not_fill_a_mask_is_refused(language_model, tokens):
    with pytest.raises(ValueError, match="BertForSequenceClassification has no masked-LM head"):
        MaskedLanguageModel(tiny_bert(vocab_size=len(TOKENS)), tokens)
    causal = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(TOKENS), n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no masked-LM head"):
        MaskedLanguageModel(causal, tokens)
    more = BertTokenizer(vocab={token: number for number, token in enumerate([*TOKENS, "more"])})
    with pytest.raises(ValueError, match=f"tokenizer has {len(TOKENS) + 1} tokens, the model {len(TOKENS)}"):
        MaskedLanguageModel(language_model, more)
    for top_k in (0, len(WORDS) + 1):
        with pytest.raises(ValueError, match=f"top_k={top_k}: give 1 to {len(WORDS)}"):
            MaskedLanguageModel(language_model, tokens, top_k=top_k)
    with pytest.raises(ValueError, match="batch_size=0: give 1 or more"):
        MaskedLanguageModel(language_model, tokens, batch_size=0)
    maskless = PreTrainedTokenizerFast(tokenizer_object=tokens.backend_tokenizer)
    for wrong in (lambda: MaskingAndNGrams(maskless), lambda: MaskedLanguageModel(language_model, maskless)):
        with pytest.raises(ValueError, match="has no mask token"):
            wrong()
