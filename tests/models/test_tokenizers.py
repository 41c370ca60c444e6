"""A tokenizer is read as the model was trained with it, and saved as it was used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samples import WORDS, tiny_bert
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    LayoutLMv2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from nlpkd.hub.saving import save_student
from nlpkd.models.files.tokenizers import read_tokenizer, refuse_other_reading, save_tokenizer
from nlpkd.models.loading import load_tokenizer
from nlpkd.utils.fingerprints import tokenizer_state

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROLES = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
TEXTS = ["the film was good", "The film was NOT good, at  all", "was it? it was"]


def backend(model, splitting, normalizer=None) -> Tokenizer:
    made = Tokenizer(model)
    made.pre_tokenizer, made.normalizer = splitting, normalizer
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made.add_special_tokens(SPECIAL)
    return made


def unigram() -> Tokenizer:
    pieces = [(token, 0.0) for token in SPECIAL] + [(f"▁{word}", -1.0) for word in WORDS] + [("▁", -3.0)]
    return backend(models.Unigram(pieces, unk_id=3), pre_tokenizers.Metaspace())


def wordpiece(splitting=None, normalizer=None) -> Tokenizer:
    numbers = {token: number for number, token in enumerate([*SPECIAL, *WORDS, "NOT"])}
    return backend(models.WordPiece(numbers, unk_token="<unk>"), splitting or pre_tokenizers.Whitespace(), normalizer)


def cased() -> Tokenizer:
    made = wordpiece(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=False))
    made.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    return made


def saved(folder: Path, made: Tokenizer, kind: str, **settings) -> Path:
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "tokenizer_config.json").write_text(json.dumps(ROLES | settings))
    return folder


@pytest.mark.parametrize(
    ("make", "kind", "settings"),
    [
        (unigram, "bert", {}),
        (wordpiece, "roberta", {"tokenizer_class": "RobertaTokenizer"}),
        (cased, "bert", {"tokenizer_class": "BertTokenizerFast"}),
        (cased, "bert", {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "strip_accents": None}),
    ],
    ids=["no class", "another algorithm", "nothing of case", "case"],
)
def test_a_tokenizer_gives_the_ids_of_its_file_whatever_class_transformers_makes_of_it(
    make, kind, settings, tmp_path, caplog
):
    folder, file = saved(tmp_path, make(), kind, **settings), make()
    tokenizer = read_tokenizer(folder)
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [file.encode(text).ids for text in TEXTS]
    assert tokenizer("was", "good")["input_ids"] == file.encode("was", "good").ids
    assert len(tokenizer) == file.get_vocab_size() and tokenizer.pad_token_id == 1
    alike = AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert ("tokenizer.json" in caplog.text) != alike
    # What learns from it is read alike by plain transformers.
    save_tokenizer(tokenizer, tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert plain(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"] and plain.pad_token_id == 1


def test_a_token_that_the_class_alone_knows_gets_its_role_and_none_is_added(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "GOOD"]
    BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, do_lower_case=False).save_pretrained(
        tmp_path
    )
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer("GOOD")["input_ids"] == [2, 6, 3] and tokenizer.pad_token == "[PAD]" and len(tokenizer) == 7
    assert "token_type_ids" in tokenizer("GOOD")


def test_what_the_settings_say_of_case_is_followed_as_transformers_does(tmp_path, caplog):
    tokenizer = read_tokenizer(saved(tmp_path, cased(), "bert", tokenizer_class="BertTokenizer", do_lower_case=True))
    assert tokenizer("NOT")["input_ids"] == tokenizer("not")["input_ids"] and not caplog.records


def byte_level(**settings) -> RobertaTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = {token: number for number, token in enumerate([*SPECIAL, *letters, "go", "Ġgo"])}
    return RobertaTokenizer(vocab=numbers, merges=[("g", "o"), ("Ġ", "go")], **settings)


def sentencepiece() -> XLMRobertaTokenizer:
    pieces = [(token, 0.0) for token in SPECIAL] + [(f"▁{word}", -1.0) for word in WORDS] + [("▁", -3.0)]
    return XLMRobertaTokenizer(vocab=pieces)


def bert(**settings) -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "NOT", "##s", "café"]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, **settings)


USUAL = {
    "bert": bert,
    "cased bert": lambda: bert(do_lower_case=False),
    "bert with accents": lambda: bert(strip_accents=False),
    "roberta": byte_level,
    "roberta with a blank before": lambda: byte_level(add_prefix_space=True),
    "xlm-roberta": sentencepiece,
}


KINDS = {BertTokenizer: "bert", RobertaTokenizer: "roberta", XLMRobertaTokenizer: "xlm-roberta"}


@pytest.mark.parametrize("name", USUAL)
def test_a_tokenizer_that_transformers_saved_is_read_as_transformers_does_without_a_word(name, tmp_path, caplog):
    tokenizer = USUAL[name]()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": KINDS[type(tokenizer)]}))
    read = read_tokenizer(tmp_path)
    assert type(read) is type(tokenizer) and tokenizer_state(read) == tokenizer_state(tokenizer)
    assert not caplog.records


def set_side(tokenizer):
    tokenizer.truncation_side = "left"


def set_splitting_of_special_tokens(tokenizer):
    tokenizer.split_special_tokens = True


def set_normalizer(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("superb", "good"), normalizers.Lowercase()]
    )


def set_pre_tokenizer(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("o", "isolated")


def set_post_processor(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.cls_token} $A", special_tokens=[(tokenizer.cls_token, tokenizer.cls_token_id)]
    )


def add_a_token(tokenizer):
    tokenizer.add_tokens(["superb"])


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: None, set_side, set_splitting_of_special_tokens, set_normalizer, set_pre_tokenizer,
        set_post_processor, add_a_token,
    ],
)  # fmt: skip
def test_plain_transformers_reads_a_saved_tokenizer_as_it_was_used(name, change, tmp_path):
    tokenizer = USUAL[name]()
    change(tokenizer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    before = dict(tokenizer.init_kwargs)
    save_tokenizer(tokenizer, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["superb and good", f"good {tokenizer.mask_token} film", "the film was a good film at all and very bad"]
    for settings in ({}, {"truncation": True, "max_length": 6}):
        assert read(texts, **settings)["input_ids"] == tokenizer(texts, **settings)["input_ids"]
    assert read.model_input_names == tokenizer.model_input_names and before == tokenizer.init_kwargs
    refuse_other_reading(tokenizer, tmp_path)


class Shouting(BertTokenizer):
    """Reads every text in another way than its files tell."""

    def _encode_plus(self, text, *given, **options):
        return super()._encode_plus(f"not {text}" if isinstance(text, str) else text, *given, **options)


def test_a_tokenizer_whose_files_do_not_tell_how_it_reads_is_refused(tmp_path):
    tokenizer = Shouting(vocab=bert().get_vocab())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_tokenizer(tokenizer, tmp_path)
    with pytest.raises(ValueError, match="Shouting that is used is read back from its files as one that gives other"):
        refuse_other_reading(tokenizer, tmp_path)


def without_unknown(kind: str) -> PreTrainedTokenizerFast:
    tokens = ["<pad>", *WORDS, *sorted(set("".join(WORDS)) - set(WORDS))]
    numbers = {token: number for number, token in enumerate(tokens)}
    made = {
        "words": lambda: models.WordLevel(numbers),
        "pieces": lambda: models.Unigram([(token, -1.0) for token in tokens]),
    }[kind]()
    backend = Tokenizer(made)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_a_tokenizer_without_an_unknown_token_is_saved_and_read(kind, tmp_path):
    tokenizer, text = without_unknown(kind), " ".join(WORDS[:5])
    save_student(tiny_bert(vocab_size=len(tokenizer)), tmp_path, tokenizer)
    assert load_tokenizer(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_text_that_only_one_reading_refuses_is_a_difference(tmp_path):
    tokenizer = without_unknown("words")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_tokenizer(tokenizer, tmp_path)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="gives other tokens: of "):
        refuse_other_reading(tokenizer, tmp_path)


def test_a_tokenizer_that_takes_words_with_boxes_alone_is_not_compared_by_texts(tmp_path):
    tokenizer = LayoutLMv2Tokenizer(vocab=bert().get_vocab())
    (tmp_path / "config.json").write_text('{"model_type": "layoutlmv2"}')
    save_tokenizer(tokenizer, tmp_path)
    refuse_other_reading(tokenizer, tmp_path)
    assert type(read_tokenizer(tmp_path)) is LayoutLMv2Tokenizer


def test_files_that_were_read_back_once_are_not_read_again(tmp_path, monkeypatch):
    read, reading = [], AutoTokenizer.from_pretrained

    def counted(*given, **settings):
        read.append(given)
        return reading(*given, **settings)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", counted)
    tokenizer = bert(do_lower_case=False)
    tokenizer.add_tokens([f"only {tmp_path.name}"])
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"model_type": "bert", "pad_token_id": {number}}}')
        save_tokenizer(tokenizer, folder)
        refuse_other_reading(tokenizer, folder)
        tokenizer("good", truncation=True, max_length=5 + number, padding="max_length")
    assert len(read) == 2
    # What is set later is another tokenizer.
    set_normalizer(tokenizer)
    save_tokenizer(tokenizer, folder)
    refuse_other_reading(tokenizer, folder)
    assert len(read) == 4 and AutoTokenizer.from_pretrained(folder)("SUPERB")["input_ids"] == [2, 1, 3]


def test_a_config_of_code_that_is_not_run_is_read_without_a_word(tmp_path, said_by_transformers):
    (tmp_path / "config.json").write_text(
        '{"model_type": "my_own", "auto_map": {"AutoConfig": "own.OwnConfig"}, "vocab_size": 9}'
    )
    save_tokenizer(bert(), tmp_path)
    refuse_other_reading(bert(), tmp_path)
    assert not said_by_transformers


def test_trying_a_tokenizer_leaves_no_limit_in_its_file(tmp_path):
    tokenizer = bert()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_tokenizer(tokenizer, tmp_path)
    refuse_other_reading(tokenizer, tmp_path)
    read_tokenizer(tmp_path).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"] is None
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"] is None
