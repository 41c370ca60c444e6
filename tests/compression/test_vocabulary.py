"""A trimmed vocabulary splits a known text as before, gives the same logits to the last bit, and spells new words."""

import copy
import json
import random

import pytest
import torch
from datasets import Dataset
from samples import QUIET, raw_rows, tiny_bert
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from nlpkd import DistillationTrainer, distill, load_text_classification
from nlpkd.compression import trim_vocabulary
from nlpkd.compression.vocabulary import spelled_out, trim_embeddings
from nlpkd.data.tokenization import original_ids
from nlpkd.hub.saving import save_student
from nlpkd.objectives import AttentionMSELoss, ForwardKLLoss, HiddenStateMSELoss

SYLLABLES = "ba be bi bo da de di do ka ke ki ko la le li lo na ne ni no".split()
WHOLE = {"num_labels": 3, "initializer_range": 0.3}
SIZE = WHOLE | {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def corpus(lines: int, seed: int, syllables=SYLLABLES) -> list[str]:
    generator = random.Random(seed)

    def word() -> str:
        return "".join(generator.choices(syllables, k=generator.randint(1, 4)))

    return [" ".join(word() for _ in range(generator.randint(1, 8))) + generator.choice(".!?") for _ in range(lines)]


def train(model, trainer, pre_tokenizer, decoder) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.train_from_iterator(corpus(600, seed=1), trainer)
    return tokenizer


def backwards(backend: Tokenizer) -> Tokenizer:
    """Number the tokens from the other end, so that special tokens' ids move when others go."""
    state = json.loads(backend.to_str())
    last = backend.get_vocab_size() - 1
    settings, processor = state["model"], state["post_processor"]
    if isinstance(settings["vocab"], list):
        settings["vocab"], settings["unk_id"] = settings["vocab"][::-1], last - settings["unk_id"]
    else:
        settings["vocab"] = {token: last - number for token, number in settings["vocab"].items()}
    for added in state["added_tokens"]:
        added["id"] = last - added["id"]
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [last - number for number in special["ids"]]
    for name in {"sep", "cls"} & processor.keys():
        processor[name][1] = last - processor[name][1]
    return Tokenizer.from_str(json.dumps(state))


def wordpiece():
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend = train(
        models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    )
    backend.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backwards(backend), mask_token="[MASK]", model_max_length=32, padding_side="left", **names
    )
    return tokenizer, tiny_bert(vocab_size=len(tokenizer) + 3, pad_token_id=tokenizer.pad_token_id, **WHOLE)


def byte_level_bpe():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend = train(models.BPE(), trainer, pre_tokenizers.ByteLevel(), decoders.ByteLevel())
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", mask_token="<mask>", **names)
    config = RobertaConfig(vocab_size=len(tokenizer), **SIZE)
    return tokenizer, RobertaForSequenceClassification(config)


def unigram():
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=special, unk_token="[UNK]", max_piece_length=8, show_progress=False
    )
    backend = train(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backwards(backend), mask_token="[MASK]", **names)
    config = DebertaV2Config(vocab_size=len(tokenizer), type_vocab_size=0, pad_token_id=tokenizer.pad_token_id, **SIZE)
    return tokenizer, DebertaV2ForSequenceClassification(config)


FAMILIES = {"wordpiece": wordpiece, "byte-level bpe": byte_level_bpe, "unigram": unigram}
DOMAIN = corpus(12, seed=2, syllables=SYLLABLES[:7])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    tokenizer, model = FAMILIES[request.param]()
    return tokenizer, model.eval()


@pytest.fixture(scope="module")
def trimmed(family):
    tokenizer, model = family
    return trim_vocabulary(model, tokenizer, DOMAIN)


def logits_of(model, tokenizer, texts) -> torch.Tensor:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**batch).logits


def known_texts(tokenizer, small) -> list[str]:
    """Texts of the same kind that were not trimmed for, and whose tokens are all kept."""
    texts, kept = corpus(400, seed=3, syllables=SYLLABLES[:7]), small.get_vocab().keys()
    return [text for text in texts if kept >= set(tokenizer.tokenize(text))]


def test_known_texts_are_split_alike_and_their_logits_are_equal_to_the_last_bit(family, trimmed):
    tokenizer, model = family
    smaller, small, record = trimmed
    texts = DOMAIN + known_texts(tokenizer, small)
    assert len(texts) >= 3 * len(DOMAIN)
    assert record.details["tokens_after"] < 0.75 * record.details["tokens_before"]
    for text in texts:
        old, new = tokenizer(text, text)["input_ids"], small(text, text)["input_ids"]
        assert small.convert_ids_to_tokens(new) == tokenizer.convert_ids_to_tokens(old)
    assert small(texts)["input_ids"] != tokenizer(texts)["input_ids"]
    assert torch.equal(logits_of(smaller, small, texts), logits_of(model, tokenizer, texts))


def test_a_new_word_is_spelled_out_and_not_lost(family, trimmed):
    tokenizer, _ = family
    _, small, _ = trimmed
    respelled = 0
    for text in corpus(200, seed=4):
        tokens = small.tokenize(text)
        assert small.unk_token not in tokens
        assert small.decode(small(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
        respelled += tokens != tokenizer.tokenize(text)
    assert respelled > 100


def test_the_share_of_other_texts_that_is_spelled_out_is_told(family, trimmed):
    tokenizer, _ = family
    _, small, _ = trimmed
    texts = corpus(200, seed=4)
    tokens = [token for text in texts for token in tokenizer.tokenize(text)]
    dropped = sum(token not in small.get_vocab() for token in tokens)
    assert dropped and spelled_out(small, tokenizer, iter(texts)) == pytest.approx((dropped / len(tokens), 0))
    assert spelled_out(small, tokenizer, DOMAIN) == (0, 0)
    with pytest.raises(ValueError, match="no trimmed form"):
        spelled_out(tokenizer, small, texts)


def test_what_is_unknown_stays_unknown_in_the_same_place(family, trimmed):
    tokenizer, _ = family
    _, small, _ = trimmed
    for text in ("ba ☃ de", "☃", "ba☃", "☃☃be☃."):
        assert small.tokenize(text) == tokenizer.tokenize(text) or tokenizer.unk_token not in tokenizer.tokenize(text)


def test_ids_close_up_in_their_order_and_special_tokens_stay_what_they_are(family, trimmed):
    tokenizer, model = family
    smaller, small, record = trimmed
    assert sorted(small.get_vocab().values()) == list(range(record.details["tokens_after"]))
    assert record.details["tokens_after"] == len(small) == smaller.config.vocab_size
    old = [tokenizer.get_vocab()[token] for token in sorted(small.get_vocab(), key=small.get_vocab().get)]
    assert old == sorted(old) == original_ids(small, tokenizer)
    assert torch.equal(smaller.get_input_embeddings().weight, model.get_input_embeddings().weight[old])
    assert smaller.get_input_embeddings().num_embeddings == len(old)
    assert small.special_tokens_map == tokenizer.special_tokens_map
    assert (small.model_max_length, small.padding_side) == (tokenizer.model_max_length, tokenizer.padding_side)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        number = getattr(model.config, name, None)
        if number is not None:
            assert old[getattr(smaller.config, name)] == number
    assert smaller.get_input_embeddings().padding_idx == small.pad_token_id


def test_model_and_tokenizer_load_with_plain_transformers(family, trimmed, tmp_path):
    smaller, small, _ = trimmed
    smaller.save_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(DOMAIN)["input_ids"] == small(DOMAIN)["input_ids"]
    assert torch.equal(logits_of(loaded, again, DOMAIN), logits_of(smaller, small, DOMAIN))
    assert original_ids(again, family[0]) == original_ids(small, family[0])


def test_model_and_tokenizer_given_stay_as_they_are(family):
    tokenizer, model = family
    before, weights = tokenizer.backend_tokenizer.to_str(), copy.deepcopy(model.state_dict())
    config = model.config.to_dict()
    smaller, _, _ = trim_vocabulary(model, tokenizer, DOMAIN)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.add_(1)
    assert tokenizer.backend_tokenizer.to_str() == before and model.config.to_dict() == config
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_record_counts_rows_bytes_and_what_rare_tokens_cost(family):
    tokenizer, model = family
    counts: dict[str, int] = {}
    for token in (token for text in DOMAIN for token in tokenizer.tokenize(text)):
        counts[token] = counts.get(token, 0) + 1
    _, whole, record = trim_vocabulary(model, tokenizer, DOMAIN)
    assert record.details["respelled"] == record.details["unknown"] == record.details["lost"] == 0
    assert record.size_mb_before - record.size_mb_after == pytest.approx(
        (record.details["tokens_before"] - record.details["tokens_after"]) * 16 * 4 / 1e6, abs=2e-4
    )
    _, small, fewer = trim_vocabulary(model, tokenizer, DOMAIN, min_count=3)
    dropped = sum(count for token, count in counts.items() if token not in small.get_vocab())
    assert (
        fewer.details["respelled"] == pytest.approx(dropped / sum(counts.values())) and fewer.details["respelled"] > 0
    )
    assert fewer.details["lost"] == 0
    assert fewer.details["tokens_after"] < record.details["tokens_after"]
    rare = next(token for token in counts if token not in small.get_vocab())
    _, kept, _ = trim_vocabulary(model, tokenizer, DOMAIN, min_count=3, keep_tokens=[rare])
    assert rare in kept.get_vocab()


def test_byte_pairs_keep_the_way_that_the_word_itself_takes():
    # "abcd" is made as ab + cd, though a + bcd and bc are in the list too, as lists converted from tiktoken have them.
    vocabulary = ["<pad>", "a", "b", "c", "d", "bc", "ab", "cd", "bcd", "abcd", "da"]
    merges = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "bcd"), ("b", "cd"), ("ab", "cd"), ("d", "a")]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(numbers, merges))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    model = tiny_bert(vocab_size=len(vocabulary))
    _, small, _ = trim_vocabulary(model, tokenizer, ["abcd"])
    assert set(small.get_vocab()) == {"<pad>", "a", "b", "c", "d", "ab", "cd", "abcd"}
    assert small.tokenize("abcd dabcd") == tokenizer.tokenize("abcd") + ["d", "abcd"]
    merges = json.loads(small.backend_tokenizer.to_str())["model"]["merges"]
    assert merges == [["a", "b"], ["c", "d"], ["ab", "cd"]]


@pytest.mark.parametrize("suffix", [{"end_of_word_suffix": "</w>"}, {"continuing_subword_prefix": "@@"}])
def test_byte_pairs_with_affixes(suffix):
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "<unk>"], show_progress=False, **suffix)
    backend = train(
        models.BPE(unk_token="<unk>", **suffix), trainer, pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    _, small, record = trim_vocabulary(tiny_bert(vocab_size=len(tokenizer)), tokenizer, DOMAIN)
    assert record.details["tokens_after"] < 0.8 * record.details["tokens_before"]
    for text in DOMAIN + known_texts(tokenizer, small):
        assert small.tokenize(text) == tokenizer.tokenize(text)


def test_characters_without_a_token_are_spelled_in_bytes():
    vocabulary = ["<pad>", "<0xE2>", "<0x98>", "<0x83>", "<0x84>", "a", "b", "aa", "ab"]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(numbers, [("a", "a"), ("a", "b")], byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    _, small, _ = trim_vocabulary(tiny_bert(vocab_size=9), tokenizer, ["ab"])
    assert len(small) == 8 and small.tokenize("ab☃") == ["ab", "<0xE2>", "<0x98>", "<0x83>"]


def test_an_unknown_character_costs_a_unigram_model_what_it_did():
    # The lowest score of all, that of qq, says whether x☃y z or x, unknown, yz scores higher.
    scores = {"[UNK]": 0, "[PAD]": 0, "x": -0.1, "z": -12, "yz": -0.1, "x☃y": -12, "qq": -20, "xx": -15}
    backend = Tokenizer(models.Unigram([(piece, float(score)) for piece, score in scores.items()], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    _, small, _ = trim_vocabulary(tiny_bert(vocab_size=8), tokenizer, ["x☃yz", "yz"])
    assert tokenizer.tokenize("x☃yz") == small.tokenize("x☃yz") == ["x☃y", "z"]
    assert "xx" not in small.get_vocab()


def test_positions_that_count_from_the_pad_id_stay_right():
    vocabulary = ["unused", "unseen", "[PAD]", "[UNK]", "rare", "ba", "be"]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=7, **SIZE | {"pad_token_id": 2})).eval()
    texts = ["ba be be", "be"]
    smaller, small, _ = trim_vocabulary(model, tokenizer, texts)
    assert "rare" not in small.get_vocab() and small.pad_token_id == 2
    assert torch.equal(logits_of(smaller, small, texts), logits_of(model, tokenizer, texts))


# What is no trimmed form


def test_only_a_trimmed_form_of_a_tokenizer_has_its_ids(family, trimmed):
    tokenizer, _ = family
    _, small, _ = trimmed
    assert original_ids(tokenizer, tokenizer) == list(range(len(tokenizer)))
    assert original_ids(tokenizer, small) is None
    assert original_ids(None, tokenizer) is None
    for other in FAMILIES.values():
        whole = other()[0]
        if whole.get_vocab() != tokenizer.get_vocab():
            assert original_ids(small, whole) is None


@pytest.mark.parametrize("change", ["case", "order", "merge"])
def test_a_tokenizer_that_differs_in_more_than_its_tokens_is_another(change):
    tokenizer, model = byte_level_bpe()
    _, small, _ = trim_vocabulary(model, tokenizer, DOMAIN)
    state = json.loads(small.backend_tokenizer.to_str())
    if change == "case":
        state["normalizer"] = None
    elif change == "order":
        vocabulary = state["model"]["vocab"]
        first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    else:
        state["model"]["merges"].pop(0)
    backend = Tokenizer.from_str(json.dumps(state))
    assert original_ids(PreTrainedTokenizerFast(tokenizer_object=backend), tokenizer) is None


# What is refused


@pytest.mark.parametrize(
    "texts, keep, message",
    [
        ([], [], "no tokens"),
        (["", " "], [], "no tokens"),
        ("ba", [], "texts must be .*; got str"),
        (["ba"], ["xyzzy"], "'xyzzy'"),
    ],
)
def test_texts_and_names_that_say_nothing_are_refused(texts, keep, message):
    tokenizer, model = wordpiece()
    with pytest.raises(ValueError, match=message):
        trim_vocabulary(model, tokenizer, texts, keep_tokens=keep)


def test_models_and_tokenizers_that_can_not_be_trimmed_are_refused():
    tokenizer, model = wordpiece()
    with pytest.raises(ValueError, match="no fast backend"):
        trim_vocabulary(model, object(), DOMAIN)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not belong together"):
        trim_vocabulary(tiny_bert(), tokenizer, DOMAIN)
    with pytest.raises(ValueError, match="output layer over the vocabulary"):
        trim_vocabulary(BertForMaskedLM(model.config), tokenizer, DOMAIN)  # type: ignore[arg-type]
    model.set_input_embeddings(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no embedding table"):
        trim_embeddings(model, [0])


# Distillation


def rows(texts: list[str], **tokenizers) -> Dataset:
    raw = Dataset.from_dict({"text": texts, "label": [len(text) % 3 for text in texts]})
    return load_text_classification(raw, **tokenizers)["train"]


def test_a_teacher_of_the_whole_vocabulary_is_matched_token_by_token(family, trimmed, settings):
    """The student is the teacher with a trimmed table: hidden states and logits agree in every bit, so no loss."""
    tokenizer, model = family
    smaller, small, _ = trimmed
    trainer = DistillationTrainer(
        model=copy.deepcopy(smaller), teacher_model=copy.deepcopy(model),
        objectives=[HiddenStateMSELoss(), ForwardKLLoss()], train_dataset=rows(DOMAIN, tokenizer=small),
        # Words that the trimmed vocabulary spells out are spelled out for the teacher too.
        eval_dataset=rows(corpus(30, seed=4), tokenizer=small, teacher_tokenizer=tokenizer),
        processing_class=small, teacher_processing_class=tokenizer, args=settings(max_steps=2, learning_rate=0.0),
    )  # fmt: skip
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss/hidden_state_mse" in entry]
    assert logged and all(abs(entry["loss"]) < 1e-6 for entry in logged)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(0, abs=1e-6) and metrics["eval_agreement"] == 1


def test_without_a_trimmed_form_token_objectives_are_still_refused(settings):
    (tokenizer, model), (other, _) = wordpiece(), unigram()
    with pytest.raises(ValueError, match="match token with token.*trimmed form"):
        DistillationTrainer(
            model=tiny_bert(vocab_size=len(other), **WHOLE), teacher_model=model, objectives=[AttentionMSELoss()],
            train_dataset=rows(DOMAIN, tokenizer=other, teacher_tokenizer=tokenizer), processing_class=other,
            teacher_processing_class=tokenizer, args=settings(),
        )  # fmt: skip


def test_distil_with_a_trimmed_vocabulary(tmp_path, tokenizer, caplog):
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    teacher = tiny_bert(layers=4, **names)
    train = raw_rows(60, seed=1).filter(lambda text: "film" not in text and "great" not in text, input_columns="text")
    result = distill(
        teacher, "layers:2", train, raw_rows(30, seed=2), teacher_tokenizer=tokenizer, vocabulary="trim",
        baseline=True, output_dir=tmp_path, objectives="layerwise", max_steps=3, **QUIET,
        teacher_check="off",
    )  # fmt: skip
    assert "film" not in result.tokenizer.get_vocab() and "good" in result.tokenizer.get_vocab()
    # What there is to say of the rows is said once, though they are read again with the new tokenizer.
    told = [line.getMessage() for line in caplog.records if line.name.startswith(("nlpkd.data", "nlpkd.pipeline"))]
    assert sorted(told) == sorted(set(told)) and any("single_label_classification of 'text'" in line for line in told)
    assert any(f"trimmed to {len(result.tokenizer)} tokens; others spell out " in line for line in told)
    for folder in (tmp_path, tmp_path / "baseline" / "same_start"):
        loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        again = AutoTokenizer.from_pretrained(folder)
        assert not any(info.values())
        assert loaded.config.vocab_size == len(again) == len(result.tokenizer) < len(tokenizer)
    record = json.loads((tmp_path / "report.json").read_text())["run"]["student"]["vocabulary"]
    assert (record["tokens_before"], record["tokens_after"]) == (len(tokenizer), len(result.tokenizer))
    words = " ".join(raw_rows(30, seed=2)["text"]).split()
    # This vocabulary has whole words alone.
    assert record["not_spelled"] == {"validation": sum(word in ("film", "great") for word in words) / len(words)}
    assert record["spelled_out"] == {"validation": 0} and any("can't spell" in line for line in told)
    with pytest.raises(ValueError, match="'trim', 'whole' or None"):
        distill(teacher, "layers:2", train, vocabulary="small", output_dir=tmp_path)


@pytest.mark.parametrize("min_count", [1, 2, 3])
def test_what_a_vocabulary_of_whole_words_loses_is_no_spelling_and_is_said(min_count, caplog):
    backend = train(
        models.WordLevel(unk_token="[UNK]"),
        trainers.WordLevelTrainer(vocab_size=400, special_tokens=["[PAD]", "[UNK]"], show_progress=False),
        pre_tokenizers.Whitespace(),
        None,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    texts = corpus(40, seed=7)
    _, small, record = trim_vocabulary(
        tiny_bert(vocab_size=len(tokenizer)), tokenizer, iter(texts), min_count=min_count
    )
    unknown = [sum(token == "[UNK]" for text in texts for token in each.tokenize(text)) for each in (tokenizer, small)]
    total = sum(len(tokenizer.tokenize(text)) for text in texts)
    details = record.details
    assert details["respelled"] == 0 and details["unknown"] == pytest.approx(unknown[0] / total)
    assert details["lost"] == pytest.approx((unknown[1] - unknown[0]) / total)
    assert bool(details["lost"]) == (min_count > 1) == ("can't spell" in caplog.text)
    assert spelled_out(small, tokenizer, texts) == (0, details["lost"])


# The real thing


def test_minilm_on_tweets_is_a_third_smaller_and_equal_to_the_last_bit():
    from nlpkd.data.demo import demo_backbone, load_airline_tweets

    tokenizer = AutoTokenizer.from_pretrained(demo_backbone())
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(demo_backbone(), num_labels=3).eval()
    tweets = load_airline_tweets()
    smaller, small, record = trim_vocabulary(model, tokenizer, tweets["train"]["text"])
    assert (record.details["tokens_before"], record.details["tokens_after"], record.details["respelled"]) == (
        30522,
        11402,
        0,
    )
    assert record.size_mb_after < 0.7 * record.size_mb_before
    unseen, kept = tweets["test"]["text"][:], small.get_vocab().keys()
    known = [text for text in unseen if kept >= set(tokenizer.tokenize(text))]
    assert len(known) > 0.7 * len(unseen)
    assert all(
        small.convert_ids_to_tokens(new) == tokenizer.convert_ids_to_tokens(old)
        for new, old in zip(small(known)["input_ids"], tokenizer(known)["input_ids"], strict=True)
    )
    assert torch.equal(logits_of(smaller, small, known[:32]), logits_of(model, tokenizer, known[:32]))


@pytest.mark.parametrize("other", [None, 3, b"text", ["a", "b"]])
def test_what_is_no_text_among_the_texts_is_named_by_its_place(tokenizer, other):
    with pytest.raises(ValueError, match="text 1200 is .*, and must be a text"):
        trim_vocabulary(tiny_bert(), tokenizer, ["a good film"] * 1200 + [other])


def test_what_was_set_on_a_tokenizer_stays_with_its_trimmed_form(tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.normalizer = normalizers.Replace("superb", "good")
    own.truncation_side = "left"
    model, small, _ = trim_vocabulary(tiny_bert(), own, ["the film was good"])
    save_student(model, tmp_path, small)
    for trimmed in (small, AutoTokenizer.from_pretrained(tmp_path)):
        assert trimmed.tokenize("the superb film") == ["the", "good", "film"] and trimmed.truncation_side == "left"
        assert set(trimmed.model_input_names) == set(own.model_input_names)
