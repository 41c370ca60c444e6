"""More text for the teacher to label: variants of the rows that there are, and plain unlabelled text.

Rows made here have the label -100: the teacher is run on them as on any row, so every objective on its outputs learns
from them, and the cross-entropy against gold labels leaves them out.
"""

from __future__ import annotations

import hashlib
import logging
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, LargeList, List
from datasets.exceptions import DatasetGenerationError
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.data.columns import check_texts, find_columns
from nlpkd.data.labels import read_task
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL, UNLABELLED
from nlpkd.utils.fingerprints import hash_configuration, hash_tokenizer, hash_value, hash_weights

logger = logging.getLogger(__name__)


ROWS_AT_ONCE = 128


LONGEST_TEXT = 512


LONGEST_NGRAM = 5


VERSION = 1
"""Raise it whenever other rows would come of the same settings, so that rows on disk are made anew."""


Row: TypeAlias = tuple[str, ...]


Texts: TypeAlias = Dataset | Sequence[str]


Draws: TypeAlias = Sequence[Sequence[np.random.Generator]]


Place: TypeAlias = tuple[int, int]


class Augmenter(Protocol):
    """What makes variants of a text."""

    def variants(self, texts: Sequence[str], draws: Draws) -> Iterable[Sequence[str]]:
        """Return as many variants of every text as it has generators, each drawn from its own generator alone."""

    def fingerprint(self) -> str:
        """Return a string that differs wherever variants would: rows on disk are used again under the same one."""


class MaskingAndNGrams:
    """Words masked, and n-grams cut out.

    Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", arXiv:1903.12136,
    section 3.3: each word (what stands between blanks) is masked with a probability; then, with another, only a run of
    1 to 5 words is kept. Their replacement of words by others of the same part of speech is left out, as it needs a
    tagger; both texts of a pair change, where they change one, the other or both in turns.

    Args:
        tokenizer: the teacher's, for its mask token.
        mask_probability: of masking a word.
        ngram_probability: of keeping no more than a run of words.

    Raises:
        ValueError: a tokenizer without a mask token, or a probability outside [0, 1].
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, mask_probability: float = 0.1, ngram_probability: float = 0.25
    ):
        _within("mask_probability", mask_probability, 0, 1)
        _within("ngram_probability", ngram_probability, 0, 1)
        self.mask_token = _mask_token(tokenizer)
        self.mask_probability, self.ngram_probability = mask_probability, ngram_probability

    def variants(self, texts: Sequence[str], draws: Draws) -> Iterator[list[str]]:
        """Mask and cut; see `Augmenter.variants`."""
        for text, generators in zip(texts, draws, strict=True):
            yield [self._variant(text.split(), generator) for generator in generators]

    def _variant(self, words: list[str], generator: np.random.Generator) -> str:
        masked = generator.random(len(words)) < self.mask_probability
        words = [self.mask_token if hidden else word for word, hidden in zip(words, masked, strict=True)]
        if generator.random() < self.ngram_probability:
            size = min(int(generator.integers(1, LONGEST_NGRAM + 1)), len(words))
            start = int(generator.integers(len(words) - size + 1))
            words = words[start : start + size]
        return " ".join(words)

    def fingerprint(self) -> str:
        """Return the settings; see `Augmenter.fingerprint`."""
        return repr((type(self).__name__, self.mask_token, self.mask_probability, self.ngram_probability))


class MaskedLanguageModel:
    """Words replaced by what a masked language model expects in their place.

    Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding", arXiv:1909.10351, algorithm 1:
    each word that is one token is replaced, with a probability, by one of the `top_k` words most likely there. All
    variants of a text share the candidates of its words, each masked in the original text: the authors' code does so,
    their algorithm masks in the text changed so far. Other than there, only whole words of letters and digits compete
    for the top k, and words of several tokens, which they replace by GloVe neighbours, stay as they are, as does what
    lies beyond the model's longest input.

    Draws don't depend on batches; the order of candidates does where two are equal but for rounding.

    Args:
        model: a masked language model, on the device where it is to run; it is set to eval.
        tokenizer: its tokenizer.
        replace_probability: of replacing a word.
        top_k: how many candidates a word has.
        batch_size: how many masked texts the model is given at once.

    Raises:
        ValueError: a model without a masked-LM head, a tokenizer that does not fit it, has no mask token or gives no
            offsets, a probability outside [0, 1], more candidates than words, or a batch without texts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        replace_probability: float = 0.4,
        top_k: int = 15,
        batch_size: int = 64,
    ):
        if model.get_output_embeddings() is None or model.can_generate():
            raise ValueError(
                f"{type(model).__name__} has no masked-LM head: load AutoModelForMaskedLM.from_pretrained(...)."
            )
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}: load both from the "
                "same place."
            )
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} can't tell where its tokens stand: use a fast tokenizer.")
        _mask_token(tokenizer)
        self.model, self.tokenizer, self.words = model.eval(), tokenizer, _whole_words(tokenizer)
        self.replace_probability, self.top_k, self.batch_size = replace_probability, top_k, batch_size
        positions = getattr(model.config, "max_position_embeddings", LONGEST_TEXT)
        self.max_length = min(tokenizer.model_max_length, positions, LONGEST_TEXT)
        _within("replace_probability", replace_probability, 0, 1)
        _within("top_k", top_k, 1, len(self.words))
        _within("batch_size", batch_size, 1)

    def variants(self, texts: Sequence[str], draws: Draws) -> Iterator[list[str]]:
        """Replace words; see `Augmenter.variants`."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        spans = [_spans(text, encoded.word_ids(row), encoded["offset_mapping"][row]) for row, text in enumerate(texts)]
        plans = [[self._plan(own, one) for one in generators] for own, generators in zip(spans, draws, strict=True)]
        places = {(row, token) for row, plan in enumerate(plans) for ranks in plan for token in ranks}
        candidates = self._candidates(encoded["input_ids"], places)
        for row, plan in enumerate(plans):
            made = [texts[row]] * len(plan)
            for copy, ranks in enumerate(plan):
                for token, rank in sorted(ranks.items(), reverse=True):
                    start, end = spans[row][token]
                    made[copy] = made[copy][:start] + candidates[row, token][rank] + made[copy][end:]
            yield made

    def _plan(self, tokens: Iterable[int], generator: np.random.Generator) -> dict[int, int]:
        """Draw which tokens are replaced, and by which of their candidates."""
        tokens = list(tokens)
        replaced = generator.random(len(tokens)) < self.replace_probability
        ranks = generator.integers(self.top_k, size=len(tokens)).tolist()
        return {token: rank for token, rank, chosen in zip(tokens, ranks, replaced, strict=True) if chosen}

    @torch.no_grad()
    def _candidates(self, texts: Sequence[list[int]], places: Iterable[Place]) -> dict[Place, list[str]]:
        """Return the most likely words, best first, at each place (row, token) when it alone is masked."""
        found: dict[Place, list[str]] = {}
        device, words = self.model.device, torch.tensor(list(self.words), device=self.model.device)
        ordered = sorted(places, key=lambda place: (len(texts[place[0]]), place))
        for first in range(0, len(ordered), self.batch_size):
            batch = ordered[first : first + self.batch_size]
            masked = [torch.tensor(texts[row]) for row, _ in batch]
            for ids, (_, token) in zip(masked, batch, strict=True):
                ids[token] = self.tokenizer.mask_token_id
            logits = self.model(
                input_ids=pad_sequence(masked, True, self.tokenizer.pad_token_id or 0).to(device),
                attention_mask=pad_sequence([torch.ones_like(ids) for ids in masked], True).to(device),
            ).logits
            there = logits[torch.arange(len(batch), device=device), [token for _, token in batch]]
            best = words[there[:, words].topk(self.top_k).indices].tolist()
            found |= {place: [self.words[word] for word in top] for place, top in zip(batch, best, strict=True)}
        return found

    def fingerprint(self) -> str:
        """Hash weights, config, tokenizer and settings; see `Augmenter.fingerprint`."""
        hashes = [hash_weights(self.model), hash_configuration(self.model), hash_tokenizer(self.tokenizer)]
        settings = [self.replace_probability, self.top_k, self.max_length, self.tokenizer.mask_token_id]
        return hash_value([*hashes, *settings])


def augment(
    data: Dataset,
    augmenter: Augmenter,
    *,
    copies: int = 20,
    seed: int = 42,
    exclude: Sequence[Texts] = (),
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Make unlabelled variants of labelled rows.

    No variant equals, but for case, blanks and Unicode form, a row of `data`, another variant, or a row of `exclude`.
    What is drawn for a text depends on the seed and on the text alone, not on the rows around it.

    Rows go to disk as they are made and are read from there; memory holds a hash of each. The same call finds them in
    the cache again, and of several processes on one machine the first makes them while the others wait.

    Args:
        data: the train rows, before tokenisation.
        augmenter: `MaskedLanguageModel`, `MaskingAndNGrams`, or your own.
        copies: how many variants are drawn of each row (both papers: 20); those that are not new are dropped.
        seed: seeds the draws, 0 or more.
        exclude: data sets with the same text columns, such as validation and test, or columns of texts.
        text_column: the text's column; recognised by its usual names if None.
        text_pair_column: the second text's column; usual pairs are recognised. Both texts of a pair are varied.
        label_column: the label's column; recognised by its usual names if None.
        cache_dir: where the rows are kept; the cache of `datasets` if None.

    Returns:
        The text columns and the label column, with the features of `data` and the label -100 ("-100" among strings),
        to put after `data` with `datasets.concatenate_datasets`.

    Raises:
        ValueError: columns that are missing or hold no text, labels with no place for -100, a setting too low, an
            `exclude` of another kind, or no new variant at all.
    """
    _within("copies", copies, 1)
    _within("seed", seed, 0)
    names, label_column = _names(data, text_column, text_pair_column, label_column)
    for name in names:
        check_texts(data, "train", name)

    def variants(rows: list[Row]) -> Iterator[Row]:
        keys, made = [_key(row) for row in rows], []
        for place, texts in enumerate(zip(*rows, strict=True)):
            draws = [[np.random.default_rng((seed, key, copy, place)) for copy in range(copies)] for key in keys]
            made.append(augmenter.variants(texts, draws))
        for columns in zip(*made, strict=True):
            yield from zip(*columns, strict=True)

    settings = repr((augmenter.fingerprint(), copies, seed))
    return _new_rows(data, variants, data, names, label_column, exclude, settings, cache_dir)


def unlabelled(
    texts: Texts,
    like: Dataset,
    *,
    exclude: Sequence[Texts] = (),
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Make rows of plain text that fit labelled ones; blank texts and those of `like` and `exclude` are passed over.

    Args:
        texts: a column of texts (`Dataset.from_text("lines.txt")["text"]`), or a data set with `like`'s text columns.
        like: the labelled train rows.
        exclude: as in `augment`.
        text_column: the text's column in `like`; recognised by its usual names if None.
        text_pair_column: the second text's column in `like`; usual pairs are recognised.
        label_column: the label's column in `like`; recognised by its usual names if None.
        cache_dir: as in `augment`.

    Returns:
        The rows that are new, as `augment` gives them.

    Raises:
        ValueError: as for `augment`.
    """
    names, label_column = _names(like, text_column, text_pair_column, label_column)

    def filled(rows: list[Row]) -> Iterator[Row]:
        return (row for row in rows if all(map(str.strip, row)))

    return _new_rows(texts, filled, like, names, label_column, exclude, "unlabelled", cache_dir)


def _names(
    data: Dataset, text: str | None, text_pair: str | None, label: str | Sequence[str] | None
) -> tuple[list[str], str | tuple[str, ...]]:
    columns = find_columns(data.column_names, text, text_pair, label)
    return columns.texts, columns.label


def _new_rows(
    source: Texts,
    make: Callable[[list[Row]], Iterator[Row]],
    data: Dataset,
    names: list[str],
    label_column: str | tuple[str, ...],
    exclude: Sequence[Texts],
    settings: str,
    cache_dir: str | Path | None,
) -> Dataset:
    """Write what `make` makes of the source's rows and is neither in the data nor excluded, with `data`'s columns."""
    labels = [label_column] if isinstance(label_column, str) else list(label_column)
    task, features = read_task(data, label_column), Features({name: data.features[name] for name in names})
    marks = {name: _mark(data.features[name], name, task) for name in labels}
    if isinstance(exclude, (str, Dataset, Mapping)) or any(isinstance(part, (str, Mapping)) for part in exclude):
        raise ValueError("exclude is no sequence of data sets or of columns: write exclude=[validation, test].")
    digest = hashlib.blake2b(repr((VERSION, settings, features)).encode(), digest_size=16)
    known: set[int] = set()
    for place, texts in enumerate((source, data, *exclude)):
        digest.update(f"{len(texts)} rows".encode())
        for rows in _chunks(texts, names):
            digest.update(repr(rows).encode())
            known.update(map(_key, rows) if place > 0 else ())

    def new() -> Iterator[dict[str, str]]:
        before = len(known)
        for rows in _chunks(source, names):
            for row in make(rows):
                key = _key(row)
                if key not in known:
                    known.add(key)
                    yield dict(zip(names, row, strict=True))
        if len(known) == before:
            raise ValueError(
                f"Nothing new came of {len(source)} rows: all of it is in the train rows or excluded. Raise copies or "
                "the augmenter's probabilities, or give other texts."
            )

    try:
        made = Dataset.from_generator(
            new,
            features=features,
            cache_dir=None if cache_dir is None else str(cache_dir),
            fingerprint=digest.hexdigest(),
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    logger.info("%d new rows without labels, of %d", len(made), len(source))
    # Added afterwards, since a ClassLabel takes no -100 from a generator.
    for name, mark in marks.items():
        made = made.add_column(name, [mark] * len(made), feature=data.features[name])
    return made


def _chunks(texts: Texts, names: Sequence[str]) -> Iterator[list[Row]]:
    """Read texts by and by."""
    if isinstance(texts, Dataset):
        missing = [name for name in names if name not in texts.column_names]
        if missing:
            raise ValueError(f"A data set has no column {missing[0]!r} but {texts.column_names}: rename its columns.")
        batches = texts.with_format(None).select_columns(list(names)).iter(ROWS_AT_ONCE)
        chunks = (list(zip(*(batch[name] for name in names), strict=True)) for batch in batches)
    elif len(names) > 1:
        raise ValueError(f"The rows are pairs: give data sets with the columns {list(names)}, not texts.")
    else:
        starts = range(0, len(texts), ROWS_AT_ONCE)
        chunks = ([(text,) for text in texts[start : start + ROWS_AT_ONCE]] for start in starts)
    for rows in chunks:
        odd = [text for row in rows for text in row if not isinstance(text, (str, type(None)))]
        if odd:
            raise ValueError(f"A text is a {type(odd[0]).__name__}, {odd[0]!r:.80}: give strings.")
        yield [tuple(text or "" for text in row) for row in rows]


def _key(row: Row) -> int:
    """Hash a row's texts without case, blanks and differences of Unicode form."""
    plain = ("".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in row)
    return int.from_bytes(hashlib.blake2b("\n".join(plain).encode(), digest_size=8).digest(), "little")


def _mark(feature: Any, column: str, task: str) -> Any:
    """Return the mark of an unlabelled row in the type of a label column."""
    if isinstance(feature, (List, LargeList)):
        return [_mark(feature.feature, column, SINGLE_LABEL)] * max(1, getattr(feature, "length", -1))
    kind = "int64" if isinstance(feature, ClassLabel) else getattr(feature, "dtype", type(feature).__name__)
    if kind in ("string", "large_string"):
        return f"[{UNLABELLED}]" if task == MULTI_LABEL else str(UNLABELLED)
    if not kind.startswith(("int", "float")):
        raise ValueError(
            f"Labels in column {column!r} are {kind}, with no place for {UNLABELLED} (unlabelled): cast them to a "
            "ClassLabel, strings or int64."
        )
    return UNLABELLED


def _spans(text: str, words: Sequence[int | None], offsets: Sequence[Place]) -> dict[int, Place]:
    """Find where the tokens stand that are a word each."""
    spans = {}
    for token, (word, (start, end)) in enumerate(zip(words, offsets, strict=True)):
        start = end - len(text[start:end].lstrip())
        if word is not None and words.count(word) == 1 and _is_word(text[start:end]):
            spans[token] = (start, end)
    return spans


def _whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the whole words among the tokens: BPE and Unigram mark where words start, WordPiece (##) the rest."""
    starts = ("Ġ", "▁")
    tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    marked = any(token.startswith(starts) for _, token in tokens)
    whole = [number for number, token in tokens if not marked or token.startswith(starts)]
    words = {number: str(tokenizer.decode([number])).strip() for number in whole}
    return {number: word for number, word in words.items() if _is_word(word)}


def _is_word(text: str) -> bool:
    return bool(text) and all(unicodedata.category(letter)[0] in "LMN" for letter in text)


def _mask_token(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.mask_token is None:
        raise ValueError(f"{tokenizer.name_or_path or type(tokenizer).__name__} has no mask token: use one that has.")
    return str(tokenizer.mask_token)


def _within(name: str, value: float, low: int, high: float = math.inf) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: give {low} {'or more' if high == math.inf else f'to {high}'}.")
