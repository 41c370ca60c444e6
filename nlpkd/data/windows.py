"""Long texts as overlapping windows of tokens: rows of their own, whose logits are averaged for the whole text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from nlpkd.data.columns import DOCUMENT, Columns
from nlpkd.data.tokenization import column_prefixes

logger = logging.getLogger(__name__)


def windows_of(
    tokenizer: PreTrainedTokenizerBase, column: str, max_length: int, stride: int
) -> Callable[[Mapping[str, list], list[int]], dict[str, list]]:
    """Make the function that `Dataset.map(batched=True, with_indices=True)` turns texts into windows with.

    Args:
        tokenizer: a fast tokenizer.
        column: of the text.
        max_length: tokens of a window, special ones included.
        stride: tokens that a window shares with the one before it.

    Returns:
        A function of a batch and its row numbers, which gives every window the columns of its text, its tokens,
        `length` and, as `DOCUMENT`, the text's row number.

    Raises:
        ValueError: if the tokenizer is not a fast one, or windows would not move forward.
    """
    room = max_length - tokenizer.num_special_tokens_to_add()
    if not 0 <= stride < room:
        raise ValueError(f"window_stride must be from 0 to {room - 1} at max_length={max_length}, got {stride}")
    if not tokenizer.is_fast:
        raise ValueError(f"windows need a fast tokenizer, and this is {type(tokenizer).__name__}: truncate instead")

    def windows(batch: Mapping[str, list], rows: list[int]) -> dict[str, list]:
        encoded = tokenizer(
            batch[column],
            truncation=True,
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_attention_mask=True,
        )
        texts = encoded.pop("overflow_to_sample_mapping")
        made: dict[str, list] = {name: [values[text] for text in texts] for name, values in batch.items()}
        made |= {name: list(values) for name, values in encoded.items()}
        return made | {
            "length": [len(ids) for ids in encoded["input_ids"]],
            DOCUMENT: [rows[text] for text in texts],
        }

    return windows


def cut_into_windows(
    splits: DatasetDict,
    columns: Columns,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    max_length: int,
    stride: int,
) -> DatasetDict:
    """Cut the rows of all splits into windows, and say how many they make.

    Args:
        splits: of texts.
        columns: of the texts.
        tokenizers: the student's and the teachers'.
        max_length: tokens of a window, special ones included.
        stride: tokens that a window shares with the one before it.

    Returns:
        The windows, each with the columns of its text.

    Raises:
        ValueError: for pairs of texts and for several tokenizers.
    """
    if columns.text_pair is not None or len(set(column_prefixes(tokenizers[0], tokenizers))) > 1:
        raise ValueError(
            "window_stride is for single texts and one tokenizer: the windows of pairs, and of another tokenizer, "
            "would not be the same. Leave it out, and longer texts are truncated."
        )
    cut = windows_of(tokenizers[0], columns.text, max_length, stride)
    windows = {}
    for split, data in splits.items():
        windows[split] = data.map(cut, batched=True, with_indices=True, desc=f"Cutting {split} into windows")
        if len(windows[split]) > len(data):
            logger.warning(
                "%s: %d rows make %d windows of %d tokens", split, len(data), len(windows[split]), max_length
            )
    return DatasetDict(windows)


def average_windows(logits: np.ndarray, documents: Sequence[int] | np.ndarray) -> np.ndarray:
    """Average the logits of each text's windows.

    Args:
        logits: `(windows, labels)`.
        documents: the text that each window is of, `(windows,)`, in ascending order.

    Returns:
        `(texts, labels)`, in the order of the texts.
    """
    _, places, counts = np.unique(np.asarray(documents), return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), logits.shape[1]), dtype=np.float64)
    np.add.at(sums, places, logits)
    return (sums / counts[:, None]).astype(logits.dtype)


def one_row_a_document(values: Any, documents: Sequence[int] | np.ndarray) -> np.ndarray:
    """Take what all windows of a text have in common, such as its label, from its first one.

    Args:
        values: one entry a window.
        documents: the text that each window is of, in ascending order.

    Returns:
        One entry a text.
    """
    return np.asarray(values)[_first_windows(documents)]


def whole_texts(rows: Dataset) -> Dataset:
    """Take a row a text, so that as many texts are counted and read as there are.

    Args:
        rows: windows, of which each has the whole text too, or rows of one text each.

    Returns:
        The first window of each text, in the order of the texts; rows without windows as they are.
    """
    return rows if DOCUMENT not in rows.column_names else rows.select(_first_windows(rows[DOCUMENT][:]))


def _first_windows(documents: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.unique(np.asarray(documents), return_index=True)[1]
