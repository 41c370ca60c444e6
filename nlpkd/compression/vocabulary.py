"""Trim a model's embedding table and its tokenizer to the tokens that a domain's texts need."""

from __future__ import annotations

import copy
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.record import CompressionRecord, record_of
from nlpkd.data.columns import each_text, texts_again
from nlpkd.data.tokenization import original_ids, subword_affixes, token_ids_of, trimmable_state, trimmed_state
from nlpkd.evaluation.records import percent
from nlpkd.models.files.tokenizers import keep_file_whole, save_tokenizer
from nlpkd.models.small_models import StaticForSequenceClassification
from nlpkd.models.structure import refuse_other_than_plain
from nlpkd.utils.disk.full_disk import temporary_folder
from nlpkd.utils.field_types import check_counts, plain_arguments

logger = logging.getLogger(__name__)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


_ROWS = 1000


@plain_arguments
def trim_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    min_count: int = 1,
    keep_tokens: Iterable[str] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, CompressionRecord]:
    """Drop the embedding rows of tokens that a domain does not use.

    Kept are the tokens of the texts, all special and added tokens, and every single character or byte that the
    vocabulary has, so that a new word is spelled out rather than lost, unless the vocabulary is one of whole words.
    Ids close up in their old order. A text whose tokens are all kept is split as before, and its logits stay equal to
    the last bit: Abdaoui et al. (2020), "Load What You Need: Smaller Versions of Multilingual BERT", arXiv:2010.05609.

    Args:
        model: a classifier; left as it is.
        tokenizer: its tokenizer, with a WordPiece, WordLevel, BPE or Unigram model of the library `tokenizers`; left
            as it is.
        texts: what the model will read, such as the training texts; of pairs both texts.
        min_count: keep the tokens that occur at least this often.
        keep_tokens: further tokens to keep, as the vocabulary writes them (`"##ing"`).

    Returns:
        A trimmed copy of the model, its tokenizer, and the record. Saved, both load with plain transformers. The
        record's details: `tokens_before` and `tokens_after`, the rows of the embedding table; `respelled`, the share
        of the texts' tokens that were dropped for being rarer than `min_count`, and are spelled by shorter ones now;
        `lost`, the share in whose place the tokenizer gives its token for the unknown, which a warning tells too;
        `unknown`, the share that the tokenizer did not know before.

    Raises:
        ValueError: if the tokenizer has no such backend, the texts are no column or have no tokens, `keep_tokens`
            names one that does not exist, `min_count` is below 1, or the embedding table is not the model's alone or
            too short for the tokenizer.
    """
    refuse_other_than_plain(model, "model")
    check_counts(min_count=min_count)
    state = trimmable_state(tokenizer)
    table = _table(model)
    texts = texts_again(texts, "texts")
    counts = _count(tokenizer, texts)
    known = token_ids_of(state)
    kept = set(each_text(keep_tokens, "keep_tokens"))
    if missing := sorted(kept - known.keys()):
        raise ValueError(f"keep_tokens names tokens that the vocabulary does not have: {missing[:5]}")
    used = {number for number, count in counts.items() if count >= min_count}
    ids = used | {known[token] for token in kept} | _safe(model, tokenizer, state)
    ids |= _spelled_with(state, ids)
    if max(known.values()) >= table.num_embeddings:
        raise ValueError(
            f"the tokenizer has ids up to {max(known.values())}, and the model's table {table.num_embeddings} rows: "
            "they do not belong together"
        )
    trimmed = _rebuilt(tokenizer, state, sorted(ids))
    smaller = trim_embeddings(model, sorted(ids))
    respelled, lost = _lacking(trimmed, tokenizer, counts, ids, texts)
    if lost:
        logger.warning(
            "The trimmed vocabulary can't spell %s of the tokens of its texts, which are unknown to it now: it has "
            "only whole words for them, so keep more (a smaller min_count, keep_tokens).",
            percent(lost),
        )
    record = record_of(
        "trim_vocabulary",
        "Abdaoui et al. 2020, arXiv:2010.05609",
        model,
        smaller,
        tokens_before=table.num_embeddings,
        tokens_after=len(ids),
        respelled=respelled,
        lost=lost,
        unknown=counts[tokenizer.unk_token_id] / counts.total(),  # type: ignore[index]
    )
    return smaller, trimmed, record


def trim_embeddings(model: PreTrainedModel, ids: Sequence[int]) -> PreTrainedModel:
    """Copy a model with some rows of its embedding table.

    Args:
        model: the model; left as it is.
        ids: the rows to keep, ascending; row k of the copy is row `ids[k]`.

    Returns:
        The copy, its config's `vocab_size` and ids of special tokens renumbered.

    Raises:
        ValueError: if the embedding table is not the model's alone, or pairs of tokens are hashed by their ids.
    """
    _table(model)
    if isinstance(model, StaticForSequenceClassification) and model.pairs is not None and model.pairs.weight.any():
        raise ValueError("the vectors of pairs are found by the tokens' ids, which a trim renumbers: trim, then train")
    smaller = copy.deepcopy(model)
    table = _table(smaller)
    place = {old: new for new, old in enumerate(ids)}
    table.weight = nn.Parameter(table.weight.detach()[list(ids)].clone(), requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(ids)
    table.padding_idx = place.get(table.padding_idx)  # type: ignore[arg-type,assignment]
    for config in _configs(smaller):
        config.vocab_size = len(ids)
        for name, value in _token_ids(model).items():
            if hasattr(config, name):
                setattr(config, name, [place[n] for n in value] if isinstance(value, list) else place[value])
    return smaller


def spelled_out(
    trimmed: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> tuple[float, float]:
    """Measure what a trimmed vocabulary lacks of texts that it was not made for.

    Args:
        trimmed: a trimmed form of the other.
        tokenizer: the whole one.
        texts: such as the held-out ones.

    Returns:
        The share of their tokens that shorter ones stand for now, and the share that is lost: in their place the
        trimmed tokenizer gives its token for the unknown.

    Raises:
        ValueError: if the one is no trimmed form of the other, or the texts have no tokens.
    """
    ids = original_ids(trimmed, tokenizer)
    if ids is None:
        raise ValueError("the first tokenizer is no trimmed form of the second: give those that trim_vocabulary has")
    texts = texts_again(texts, "texts")
    return _lacking(trimmed, tokenizer, _count(tokenizer, texts), set(ids), texts)


def _lacking(
    trimmed: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    counts: Counter[int],
    kept: Collection[int],
    texts: Iterable[str],
) -> tuple[float, float]:
    """Return which shares of the tokens of texts are spelled by shorter ones, and unknown, by what each one gives."""
    dropped = sum(count for number, count in counts.items() if number not in kept)
    if not dropped:
        return 0.0, 0.0
    unknown = _count(trimmed, texts)[trimmed.unk_token_id] - counts[tokenizer.unk_token_id]  # type: ignore[index]
    lost = min(max(unknown, 0), dropped)
    return (dropped - lost) / counts.total(), lost / counts.total()


def _table(model: PreTrainedModel) -> nn.Embedding:
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ValueError(f"{type(model).__name__} has no embedding table to trim, found {type(table).__name__}")
    tied = [name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is table.weight]
    if len(tied) > 1 or model.get_output_embeddings() is not None:
        raise ValueError(
            f"the embedding table of {type(model).__name__} belongs to an output layer over the vocabulary too: trim "
            f"a classifier ({', '.join(tied)})"
        )
    return table


def _count(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    remaining = each_text(texts, "texts")
    while rows := list(islice(remaining, _ROWS)):
        for ids in tokenizer(rows, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]:
            counts.update(ids)
    if not counts:
        raise ValueError("the texts have no tokens: give the texts that the model will read")
    return counts


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Return a model's config, and the one inside it that a reshaped model was made of."""
    base = getattr(model.config, "base_config", None)
    return [model.config] if base is None else [model.config, base]


def _token_ids(model: PreTrainedModel) -> dict[str, Any]:
    """Read the ids of special tokens in a model's config, those that its table has."""
    rows = range(_table(model).num_embeddings)
    known = {name: value for config in _configs(model) for name, value in config.to_dict().items()}
    named = {name: value for name, value in known.items() if name.endswith("_token_id")}
    several = {name: value if isinstance(value, list) else [value] for name, value in named.items()}
    return {name: named[name] for name, ids in several.items() if all(number in rows for number in ids)}


def _safe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any]) -> set[int]:
    """Collect the ids that any text may need."""
    settings, known = state["model"], token_ids_of(state)
    prefix, suffix = subword_affixes(settings)
    safe = {
        number
        for token, number in known.items()
        if len(token.removeprefix(prefix).removesuffix(suffix)) <= 1 or _BYTE.fullmatch(token)
    }
    safe |= {added["id"] for added in state["added_tokens"]} | set(tokenizer.all_special_ids)
    safe |= set(tokenizer("", "")["input_ids"])
    for value in _token_ids(model).values():
        safe |= set(value) if isinstance(value, list) else {value}
    if settings["type"] == "Unigram":
        # An unknown character is scored by the lowest score there is.
        safe |= {settings["unk_id"], min(range(len(settings["vocab"])), key=lambda n: settings["vocab"][n][1])}
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    pads = [table.padding_idx for table in tables if table is not _table(model) and table.padding_idx is not None]
    # RoBERTa counts positions from the pad id, which therefore has to stay where it is.
    return (safe | {number for pad in pads for number in range(pad + 1)}) - {None}


def _spelled_with(state: Mapping[str, Any], ids: set[int]) -> set[int]:
    """Collect the ids of what byte-pair encoding passes through on its way to some tokens."""
    settings = state["model"]
    if settings["type"] != "BPE":
        return set()
    ranks = {tuple(pair): rank for rank, pair in enumerate(settings["merges"])}
    known = settings["vocab"]
    return {
        known[step]
        for token, number in known.items()
        if number in ids
        for step in _steps(token, ranks, *subword_affixes(settings))
    }


def _steps(token: str, ranks: Mapping[tuple, int], prefix: str, suffix: str) -> Iterator[str]:
    """Merge a token's characters as byte-pair encoding does, the first pair of the lowest rank first."""
    inner = token.removeprefix(prefix).removesuffix(suffix)
    starts = token.startswith(prefix)
    symbols = [prefix + symbol if at or starts else symbol for at, symbol in enumerate(inner)]
    if symbols and token.endswith(suffix):
        symbols[-1] += suffix
    while len(symbols) > 1:
        rank, at = min((ranks.get(pair, math.inf), at) for at, pair in enumerate(pairwise(symbols)))
        if rank == math.inf:
            return
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1][len(prefix) :]]
        yield symbols[at]


def _rebuilt(
    tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any], ids: Sequence[int]
) -> PreTrainedTokenizerBase:
    """Make the trimmed tokenizer as it will be loaded: from its files."""
    wanted = trimmed_state(state, ids)
    place = {old: new for new, old in enumerate(ids)}
    with temporary_folder() as folder:
        save_tokenizer(tokenizer, folder)
        whole = folder / "tokenizer.json"
        whole.write_text(json.dumps(wanted, ensure_ascii=False), encoding="utf-8")
        settings = folder / "tokenizer_config.json"
        config = json.loads(settings.read_text(encoding="utf-8"))
        if decoder := config.get("added_tokens_decoder"):
            config["added_tokens_decoder"] = {str(place[int(number)]): token for number, token in decoder.items()}
        settings.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        keep_file_whole(folder, tokenizer.model_input_names)
        trimmed = AutoTokenizer.from_pretrained(folder)
    trimmed.name_or_path = tokenizer.name_or_path
    if trimmable_state(trimmed) != wanted:
        raise ValueError(
            f"{type(tokenizer).__name__} is not made from tokenizer.json alone, so its vocabulary can't be trimmed: "
            "load it as a PreTrainedTokenizerFast"
        )
    return trimmed
