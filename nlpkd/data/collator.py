"""Rows into padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from nlpkd.data.columns import LABEL_COLUMNS
from nlpkd.data.tokenization import (
    TEACHER_PREFIX,
    TEACHER_TOKEN_COLUMN,
    TOKEN_COLUMNS,
    TeacherTokenizers,
    column_prefixes,
    refuse_paths,
    with_usual_padding,
)


@dataclass
class DistillationCollator:
    """Batch rows, each tokenizer's columns padded to the longest of the batch.

    Attributes:
        tokenizer: pads input_ids, attention_mask and token_type_ids.
        teacher_tokenizer: pads the same columns with the prefix ``teacher_``, where there are any; or a list, one a
            teacher (None: the student's), whose columns have the prefixes of `column_prefixes`.
        pad_to_multiple_of: round the padded lengths up to a multiple of this.
    """

    tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: TeacherTokenizers = None
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        others: dict[str, Any] = {TEACHER_PREFIX: self.teacher_tokenizer}
        if isinstance(self.teacher_tokenizer, (list, tuple)):
            prefixes = column_prefixes(self.tokenizer, self.teacher_tokenizer)
            others = dict(zip(prefixes, self.teacher_tokenizer, strict=True))
        refuse_paths(self.tokenizer, *others.values())
        self.tokenizer = with_usual_padding(self.tokenizer)
        self._others: dict[str, Any] = {
            prefix: None if each is None else with_usual_padding(each) for prefix, each in others.items()
        }
        for tokenizer in (self.tokenizer, *self._others.values()):
            if tokenizer is not None and tokenizer.pad_token is None:
                raise ValueError(
                    f"{tokenizer.name_or_path or type(tokenizer).__name__} has no padding token: set one, such as "
                    "tokenizer.pad_token = tokenizer.eos_token, and model.config.pad_token_id to match."
                )

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of rows.

        Args:
            features: the rows; a label may be called label, labels or label_ids. Strings and "length" are left out.

        Returns:
            Token columns ``(batch, seq)`` and ``(batch, teacher seq)``, labels ``(batch,)``, and every other column of
            a fixed length stacked: integers as int64, floats (``teacher_logits``) as float32. Cached states (bytes)
            become bf16 ``(batch, seq, hidden)`` of the tokens that the teacher reads.

        Raises:
            ValueError: teacher columns without a teacher's tokenizer, several columns of labels, or rows whose values
                don't stack.
        """
        given = {name: features[0].get(name) for name in LABEL_COLUMNS}
        labels = [name for name, value in given.items() if value is not None and not isinstance(value, str)]
        if len(labels) > 1:
            raise ValueError(f"Rows have several columns of labels, {labels}: remove all but one of them.")
        batch = self._padded(self.tokenizer, features, "")
        own = {column: found[1] for column in features[0] if (found := TEACHER_TOKEN_COLUMN.fullmatch(column))}
        for prefix in dict.fromkeys(own.values()):
            tokenizer = self._others.get(prefix)
            if tokenizer is None:
                raise ValueError(f"There are {prefix}input_ids but no teacher_tokenizer to pad them with: pass it.")
            batch |= self._padded(tokenizer, features, prefix)
        for column, value in features[0].items():
            if (
                column not in own
                and column not in TOKEN_COLUMNS
                and column != "length"
                and value is not None
                and not isinstance(value, str)
            ):
                name = "labels" if column in LABEL_COLUMNS else column
                values = [row[column] for row in features]
                batch[name] = (
                    self._states(values, batch, own) if isinstance(value, bytes) else _stacked(column, values)
                )
        return batch

    def of_table(self, table: pa.Table) -> dict[str, torch.Tensor] | None:
        """Make the batch that `__call__` makes of a table's rows, without a Python object for each of their values.

        Args:
            table: the rows as a `datasets.Dataset` keeps them.

        Returns:
            The batch; None where a column has to be read row by row: a second tokenizer's tokens, cached states, empty
            cells, lists of several lengths, ...
        """
        names = [name for name in table.column_names if name != "length" and not _is_text(table.column(name))]
        found = {name: flat_numbers(table.column(name)) for name in names}
        tokens = {name: flat for name, flat in found.items() if name in TOKEN_COLUMNS and flat is not None}
        lengths = [each.lengths for each in tokens.values() if each.lengths is not None]
        if (
            not _pads_plainly(self.tokenizer)
            or None in found.values()
            or not {"input_ids", "attention_mask"} <= tokens.keys()
            or any(TEACHER_TOKEN_COLUMN.fullmatch(name) for name in names)
            or len(set(names) & set(LABEL_COLUMNS)) > 1
            or len(lengths) < len(tokens)
            or any((each != lengths[0]).any() for each in lengths)
        ):
            return None
        # The tokens are padded, all else is stacked.
        multiple, left = self.pad_to_multiple_of or 1, self.tokenizer.padding_side == "left"
        width = -(-int(lengths[0].max()) // multiple) * multiple
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        batch = {
            name: pad_flat(each.values, lengths[0], width, fill.get(name, 0), left) for name, each in tokens.items()
        }
        for name, each in found.items():
            if name not in tokens:
                if each is None or (values := each.stacked()) is None:
                    return None
                batch["labels" if name in LABEL_COLUMNS else name] = values
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _states(
        self, rows: Sequence[bytes], batch: Mapping[str, torch.Tensor], own: Mapping[str, str]
    ) -> torch.Tensor:
        """Pad cached states as the tokens are padded that they belong to."""
        prefix = TEACHER_PREFIX if TEACHER_PREFIX in own.values() else ""
        mask, tokenizer = batch[prefix + "attention_mask"], self._others[prefix] if prefix else self.tokenizer
        return pad_states(rows, mask.sum(dim=1).tolist(), mask.shape[1], tokenizer.padding_side == "left")

    def _padded(
        self, tokenizer: PreTrainedTokenizerBase, features: Sequence[Mapping[str, Any]], prefix: str
    ) -> dict[str, torch.Tensor]:
        rows = [
            {column: row[prefix + column] for column in TOKEN_COLUMNS if prefix + column in row} for row in features
        ]
        # Lists: on its way to tensors transformers goes through every token in Python.
        in_lists: Any = {"pad_to_multiple_of": self.pad_to_multiple_of, "return_tensors": None}
        collate = DataCollatorWithPadding(tokenizer, **in_lists)
        return {prefix + column: torch.as_tensor(values, dtype=torch.long) for column, values in collate(rows).items()}


def _stacked(column: str, values: Sequence[Any]) -> torch.Tensor:
    try:
        stacked = torch.stack([torch.as_tensor(value) for value in values])
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"Column {column!r} can't be batched, its rows differ in shape or type: {error}") from error
    return stacked.float() if stacked.is_floating_point() else stacked.long()


def pad_flat(values: np.ndarray, lengths: np.ndarray, width: int, fill: int, left: bool = False) -> np.ndarray:
    """Pad lists that lie one after another.

    Args:
        values: of all lists, `(tokens,)`.
        lengths: how many of them each list has, `(batch,)`.
        width: the batch's length, padding included.
        fill: the padding.
        left: whether it is on the left.

    Returns:
        int64 `(batch, width)`.
    """
    places = np.arange(width)
    real = places >= width - lengths[:, None] if left else places < lengths[:, None]
    padded = np.full(real.shape, fill, dtype=np.int64)
    padded[real] = values
    return padded


def _is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _pads_plainly(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Check whether a tokenizer pads as transformers' own class does."""
    kind, base = type(tokenizer), PreTrainedTokenizerBase
    return kind.pad is base.pad and kind._pad is base._pad


class FlatNumbers(NamedTuple):
    """The numbers of a column one after another.

    Attributes:
        values: int64 or float32, `(numbers,)`.
        lengths: how many each row's list has, `(rows,)`; None where a row has a number and no list.
    """

    values: np.ndarray
    lengths: np.ndarray | None

    def stacked(self) -> np.ndarray | None:
        """Return `(rows,)` or `(rows, length)`; None of lists of several lengths."""
        if self.lengths is None:
            return self.values
        length = int(self.lengths[0]) if len(self.lengths) else 0
        return None if (self.lengths != length).any() else self.values.reshape(len(self.lengths), length)


def flat_numbers(column: pa.ChunkedArray) -> FlatNumbers | None:
    """Return a column's numbers one after another; None where there is anything else in it."""
    kind, lengths = column.type, None
    if column.null_count:
        return None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
        column, kind = pc.list_flatten(column), kind.value_type
    whole = pa.types.is_signed_integer(kind)
    if column.null_count or not (whole or pa.types.is_float32(kind) or pa.types.is_float64(kind)):
        return None
    # What is too large for float32 becomes infinite.
    with np.errstate(over="ignore"):
        return FlatNumbers(column.to_numpy().astype(np.int64 if whole else np.float32), lengths)


def pack_states(states: Tensor, lengths: Sequence[int], left: bool = False) -> list[bytes]:
    """Cut padding off hidden states, and keep each row's bf16 bits.

    Args:
        states: `(batch, seq, hidden)`.
        lengths: tokens of each row.
        left: whether the padding is on the left.

    Returns:
        For each row the bits of its `(tokens, hidden)`, native byte order.
    """
    bits = states.to(torch.bfloat16).contiguous().view(torch.int16).cpu().numpy()
    width = bits.shape[1]
    spans = [(width - n, width) if left else (0, n) for n in lengths]
    return [row[start:stop].tobytes() for row, (start, stop) in zip(bits, spans, strict=True)]


def pad_states(rows: Sequence[bytes], lengths: Sequence[int], width: int, left: bool = False) -> Tensor:
    """Undo `pack_states`: batch the rows' states, padded with zeros.

    Args:
        rows: as `pack_states` gives them.
        lengths: tokens of each row.
        width: the batch's length, padding included.
        left: whether the padding is on the left.

    Returns:
        bf16 `(batch, width, hidden)`.

    Raises:
        ValueError: if a row's bytes are not so many tokens.
    """
    hidden = len(rows[0]) // (2 * lengths[0])
    states = torch.zeros(len(rows), width, hidden, dtype=torch.bfloat16)
    for number, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        if len(row) != 2 * n * hidden:
            raise ValueError(
                f"row {number} of the batch has cached states of {len(row)} bytes, and {n} tokens of {hidden} values "
                f"take {2 * n * hidden}: its tokens are not those that were cached"
            )
        values = torch.frombuffer(bytearray(row), dtype=torch.bfloat16).view(n, hidden)
        states[number, width - n if left else 0 : width if left else n] = values
    return states
