"""Tokenizers: which are the same, their state with fewer tokens, and the columns that each makes of texts."""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from nlpkd.data.columns import HIDDEN_STATES, TEACHER_LOGITS, Columns
from nlpkd.utils.fingerprints import tokenizer_state


def original_ids(
    trimmed: PreTrainedTokenizerBase | None, tokenizer: PreTrainedTokenizerBase | None
) -> list[int] | None:
    """Find the ids that a trimmed tokenizer's tokens had.

    Args:
        trimmed: perhaps a trimmed form of the other.
        tokenizer: the whole one.

    Returns:
        Entry k is the old id of token k; None unless trimming `tokenizer` to these tokens gives all of `trimmed`'s
        content, whatever their classes and paths.
    """
    try:
        small, large = trimmable_state(trimmed), trimmable_state(tokenizer)  # type: ignore[arg-type]
    except ValueError:
        return None
    old, new = token_ids_of(large), token_ids_of(small)
    if not new.keys() <= old.keys():
        return None
    ids = sorted(old[token] for token in new)
    if not {added["id"] for added in large["added_tokens"]} <= set(ids):
        return None
    return ids if trimmed_state(large, ids) == small else None


def trimmable_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Read a tokenizer's content as `tokenizer.json` has it; settings of padding and truncation don't count."""
    state = tokenizer_state(tokenizer)
    if state is None:
        raise ValueError(f"{type(tokenizer).__name__} has no fast backend (tokenizer.json), which trimming rebuilds")
    if state["model"]["type"] not in ("WordPiece", "WordLevel", "BPE", "Unigram"):
        raise ValueError(f"the vocabulary of a {state['model']['type']} tokenizer can't be trimmed")
    return state


def token_ids_of(state: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token, added ones too."""
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return vocabulary | {added["content"]: added["id"] for added in state["added_tokens"]}


def subword_affixes(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a BPE model writes before the parts of a word that continue it, and after its last part."""
    return settings.get("continuing_subword_prefix") or "", settings.get("end_of_word_suffix") or ""


def trimmed_state(state: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Return a tokenizer's state with some of its tokens alone, renumbered in their order."""
    place = {old: new for new, old in enumerate(ids)}
    trimmed = copy.deepcopy(dict(state))
    settings = trimmed["model"]
    if isinstance(settings["vocab"], list):
        settings["vocab"] = [entry for number, entry in enumerate(settings["vocab"]) if number in place]
        settings["unk_id"] = place.get(settings["unk_id"])
    else:
        settings["vocab"] = {token: place[number] for token, number in settings["vocab"].items() if number in place}
    if settings["type"] == "BPE":
        prefix, kept = len(subword_affixes(settings)[0]), settings["vocab"]
        settings["merges"] = [
            [left, right]
            for left, right in settings["merges"]
            if left in kept and right in kept and left + right[prefix:] in kept
        ]
    for added in trimmed["added_tokens"]:
        added["id"] = place[added["id"]]
    _renumber_special_tokens(trimmed["post_processor"] or {}, place)
    return trimmed


def _renumber_special_tokens(processor: dict[str, Any], place: Mapping[int, int]) -> None:
    for inner in processor.get("processors", ()):
        _renumber_special_tokens(inner, place)
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [place[number] for number in special["ids"]]
    for name in {"sep", "cls"} & processor.keys():
        token, number = processor[name]
        processor[name] = [token, place[number]]


SEGMENTS = "token_type_ids"
"""The column that says which text of a pair a token is of."""


TOKEN_COLUMNS = ("input_ids", "attention_mask", SEGMENTS)


TEACHER_PREFIX = "teacher_"


DEFAULT_MAX_LENGTH = 512


TeacherTokenizers = PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None
"""One teacher's tokenizer, or one a teacher; None where it is the student's."""


TEACHER_TOKEN_COLUMN = re.compile(rf"({TEACHER_PREFIX}(?:\d+_)?)(?:{'|'.join(TOKEN_COLUMNS)})")


def is_made_here(name: str) -> bool:
    """Check whether rows get a column of this name beside their texts: of labels, tokens or a teacher's outputs."""
    outputs = name == TEACHER_LOGITS or name.startswith(HIDDEN_STATES.format(""))
    tokens = name in TOKEN_COLUMNS or TEACHER_TOKEN_COLUMN.fullmatch(name) is not None
    return outputs or tokens or name in ("labels", "length")


def with_usual_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that pads as classifiers read: on the right, so that positions begin with the text.

    One that was set up to generate text pads on the left. A model that counts its positions from there, such as GPT-2
    or BERT, would give a text other logits beside a longer one. XLNet, which reads the last place, pads on the left.

    Args:
        tokenizer: left as it is.

    Returns:
        The tokenizer, or a copy of it.
    """
    usual = "left" if type(tokenizer).__name__.startswith("XLNet") else "right"
    if getattr(tokenizer, "padding_side", usual) == usual:
        return tokenizer
    own = copy.copy(tokenizer)
    own.padding_side = usual
    return own


def with_limit(tokenizer: PreTrainedTokenizerBase, most: int | None) -> PreTrainedTokenizerBase:
    """Return a tokenizer that cuts a text at so many tokens, wherever it is loaded once it is saved.

    Args:
        tokenizer: left as it is.
        most: tokens of a text, special ones included; None where there is no limit.

    Returns:
        The tokenizer where its own limit is no higher, and else a copy of it.
    """
    if most is None or tokenizer.model_max_length <= most:
        return tokenizer
    own = copy.copy(tokenizer)
    own.model_max_length = most
    return own


NO_TOKENS = "is empty for this tokenizer, which makes no token of it: leave it out"
"""What to say of a text that no model can read."""


def refuse_no_tokens(lengths: Sequence[int], what: str) -> None:
    """Refuse texts that a tokenizer without special tokens, such as GPT-2's, makes nothing of: no model can read them.

    Beside longer texts, padding would be read in their place.

    Args:
        lengths: tokens of each text.
        what: they are, for the error.

    Raises:
        ValueError: if one has none; it names the first one's place.
    """
    if empty := [place for place, length in enumerate(lengths) if length == 0]:
        raise ValueError(f"{what}: text {empty[0]} (the first one is 0) {NO_TOKENS}")


def same_tokenizer(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Check whether two tokenizers turn every text into the same ids, whatever their classes and paths.

    Args:
        first: a tokenizer.
        second: another one.

    Returns:
        True for equal vocabulary, merges, normaliser, splitting, special and added tokens; settings of padding and
        truncation don't count. Tokenizers written in Python can't be compared: only the same object is the same.
    """
    refuse_paths(first, second)
    if first is second:
        return True
    state = tokenizer_state(first)
    return state is not None and state == tokenizer_state(second)


def refuse_paths(*tokenizers: Any) -> None:
    """Refuse a path or an id in place of a tokenizer.

    Raises:
        ValueError: for the first one.
    """
    for each in tokenizers:
        if isinstance(each, (str, os.PathLike)):
            raise ValueError(f"a tokenizer is {each!r:.80}: load it first (AutoTokenizer.from_pretrained)")


def per_teacher(tokenizers: TeacherTokenizers, teachers: int) -> list[PreTrainedTokenizerBase | None]:
    """Return one tokenizer a teacher.

    Args:
        tokenizers: one for all of them, or a list.
        teachers: how many there are.

    Returns:
        One a teacher, None where it is the student's.

    Raises:
        ValueError: if a list has another length.
    """
    if not isinstance(tokenizers, (list, tuple)):
        return [tokenizers] * teachers  # type: ignore[list-item]
    if len(tokenizers) != teachers:
        raise ValueError(
            f"there are {len(tokenizers)} tokenizers for {teachers} teachers: give one a teacher, None where it is "
            "the student's"
        )
    return list(tokenizers)


def column_prefixes(
    tokenizer: PreTrainedTokenizerBase | None, teacher_tokenizers: Sequence[PreTrainedTokenizerBase | None]
) -> list[str]:
    """Return the prefix of the columns that each teacher reads.

    Args:
        tokenizer: the student's.
        teacher_tokenizers: one a teacher, None where it is the student's.

    Returns:
        For each teacher `""` where its tokenizer is the student's, else `"teacher_"` for the first other tokenizer,
        `"teacher_2_"`, `"teacher_3_"`, ... for the next; teachers with the same tokenizer share columns.
    """
    prefixes: list[str] = []
    others: list[PreTrainedTokenizerBase] = []
    for other in teacher_tokenizers:
        if tokenizer is None or other is None or same_tokenizer(tokenizer, other):
            prefixes.append("")
            continue
        number = next((k for k, known in enumerate(others) if same_tokenizer(known, other)), len(others))
        if number == len(others):
            others.append(other)
        prefixes.append(f"{TEACHER_PREFIX}{number + 1}_" if number else TEACHER_PREFIX)
    return prefixes


def known_tokenizers(tokenizers: TeacherTokenizers) -> list[PreTrainedTokenizerBase]:
    """List the teachers' tokenizers that are not the student's."""
    several: Any = tokenizers if isinstance(tokenizers, (list, tuple)) else [tokenizers]
    return [tokenizer for tokenizer in several if tokenizer is not None]


def resolve_max_length(
    asked: int | None, tokenizers: Sequence[PreTrainedTokenizerBase], pairs: bool, *, special_tokens: bool = True
) -> int:
    """Return the most tokens of a row.

    Args:
        asked: by the user; None for the tokenizers' own limit, 512 at most.
        tokenizers: the student's and the teachers'.
        pairs: whether rows are pairs of texts.
        special_tokens: whether they get special tokens.

    Returns:
        The number of tokens, special ones included.

    Raises:
        ValueError: if that is more than the tokenizers take, or leaves no room for text; for what is no tokenizer.
    """
    for tokenizer in tokenizers:
        if not hasattr(tokenizer, "model_max_length"):
            raise ValueError(f"the tokenizer is {tokenizer!r:.80}: load it first (AutoTokenizer.from_pretrained)")
    limit = min(tokenizer.model_max_length for tokenizer in tokenizers)
    special = max(tokenizer.num_special_tokens_to_add(pair=pairs) * special_tokens for tokenizer in tokenizers)
    if asked is None:
        return int(min(limit, DEFAULT_MAX_LENGTH))
    if asked > limit:
        raise ValueError(
            f"max_length={asked} is more than the {int(limit)} tokens that the tokenizers take (model_max_length), "
            "which are what a model has positions for, or what it was trained with: lower it."
        )
    if asked <= special + pairs:
        raise ValueError(f"max_length={asked} leaves no room for text beside {special} special tokens: raise it.")
    return asked


def _mask_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    return getattr(tokenizer, "mask_token", None)


class TextEncoder:
    """Turns texts into every tokenizer's columns and the student's lengths; see `nlpkd.data.streaming.Encoder`."""

    def __init__(self, columns: Columns, tokenizers: Sequence[PreTrainedTokenizerBase], max_length: int):
        self.names, self.max_length = columns.texts, max_length
        self.masks: list[str] = []
        # A BERT teacher needs the segments of a pair even where the student's tokenizer leaves them out.
        self.segments = True if columns.text_pair else None
        self.tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        for prefix, tokenizer in zip(column_prefixes(tokenizers[0], tokenizers), tokenizers, strict=True):
            self.tokenizers.setdefault(prefix, tokenizer)

    def for_training(self) -> TextEncoder:
        """Return one for rows to learn from, of which each tokenizer reads a masked word as its own mask token.

        Such words have the mask token of one of them (`nlpkd.augment.MaskingAndNGrams`), which the others would read
        as several signs. A tokenizer that has no mask token reads the text as it is, and so are measured rows read, as
        they are served.
        """
        own = copy.copy(self)
        masks = {_mask_token(tokenizer) for tokenizer in self.tokenizers.values()} - {None}
        # The longest first, since one may be a part of another.
        own.masks = sorted(map(str, masks), key=lambda mask: (-len(mask), mask))
        return own

    def _texts(self, tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, list]) -> list[list[str]]:
        """Return the texts as a tokenizer is to read them, a list a column."""
        texts, mask = [batch[name] for name in self.names], _mask_token(tokenizer)
        if mask is None or len(self.masks) < 2:
            return texts
        masks = re.compile("|".join(map(re.escape, self.masks)))
        return [[masks.sub(lambda _: mask, text) for text in column] for column in texts]

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        """Return the rows' token columns, truncated, and `length`, the student's."""
        if not batch[self.names[0]]:
            # Tokenizers take no batch without texts; of a text they make the same columns.
            return {column: [] for column in self({name: [""] for name in self.names})}
        made: dict[str, list] = {}
        for prefix, tokenizer in self.tokenizers.items():
            encoded = tokenizer(
                *self._texts(tokenizer, batch),
                truncation=True,
                max_length=self.max_length,
                return_token_type_ids=self.segments,
                return_attention_mask=True,
            )
            made |= {prefix + column: encoded[column] for column in TOKEN_COLUMNS if column in encoded}
        return made | {"length": [len(ids) for ids in made["input_ids"]]}

    def truncated(self, batch: Mapping[str, list]) -> dict[str, int]:
        """Count the rows that lose tokens, by the prefix of the tokenizer's columns."""
        if not batch[self.names[0]]:
            return dict.fromkeys(self.tokenizers, 0)
        counts = {}
        for prefix, tokenizer in self.tokenizers.items():
            whole = tokenizer(*self._texts(tokenizer, batch), verbose=False)["input_ids"]
            counts[prefix] = sum(len(ids) > self.max_length for ids in whole)
        return counts

    def truncated_of(self, tokenised: Dataset) -> Counter[str]:
        """Count the rows that lose tokens, by the prefix of the tokenizer's columns."""
        # Rows below the limit lost none, so that those at the limit alone are tokenised anew.
        table = tokenised.with_format("arrow")[:]
        columns = [table[f"{prefix}input_ids"] for prefix in self.tokenizers]
        lengths = [pyarrow.compute.list_value_length(column).to_numpy() for column in columns]
        full = tokenised.select(np.flatnonzero(np.max(lengths, axis=0) >= self.max_length)).select_columns(self.names)
        counts: Counter[str] = Counter(dict.fromkeys(self.tokenizers, 0))
        for batch in full.iter(batch_size=100):
            counts.update(self.truncated(batch))
        return counts
