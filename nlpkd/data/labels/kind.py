"""What a column of labels is, read from its values and not from the type that holds them."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from datasets import ClassLabel, Dataset

from nlpkd.data.columns import BLANK
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, UNLABELLED

MISSING_WORDS = frozenset("nan -nan na n/a #n/a <na> nat null none".split())
"""What programs write for a value that is missing. Among names such a word is a name, among numbers it is none."""


_NUMBER = re.compile(
    r"[+-]?(?:\d{1,100}(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,4})?|[+-]?(?:inf|infinity|nan)", re.ASCII | re.IGNORECASE
)


_INTEGER = re.compile(r"([+-]?)(0*)(\d{1,100}?)(?:\.0*)?", re.ASCII)


_FIGURES = re.compile(r"\W*\d[\d\W]*")


_ITEM = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[+-]?\d+\.?\d*(?:e[+-]?\d+)?|True|False)"""


_ARRAY = re.compile(rf"\[\s*{_ITEM}(?:\s+{_ITEM})*\s*\]", re.ASCII)


@dataclass(frozen=True)
class LabelKind:
    """What a column of labels is.

    Attributes:
        task: the problem type that the values make.
        reason: why, for the log; empty where the column names its classes itself.
        whole: whether the classes are whole numbers, however each is written (`1`, `"1.0"`, `" +1"`).
        padded: whether some have zeros in front, so that they are names as they are written.
    """

    task: str
    reason: str
    whole: bool = False
    padded: bool = False


def read_kind(
    data: Dataset,
    column: str,
    rows: Sequence[int] | None = None,
    names: Sequence[str] = (),
    one_class: bool = False,
) -> LabelKind:
    """Read what a column of labels is, the same for a file, a frame, a stream and rows in memory.

    Lists, and texts that all are lists (as JSON, Python or numpy write them), are several labels a row. Numbers, and
    texts that all are numbers, are classes where each of them is whole, and else scores. All other values are names of
    classes. Values that are missing do not count.

    Args:
        data: the training rows.
        column: the label's column.
        rows: the rows' numbers, for the reason; 0, 1, ... if None.
        names: of a model's classes, for a class that is called `"None"`.
        one_class: whether one class a row is known to be meant, whatever the texts look like.

    Returns:
        The kind.

    Raises:
        ValueError: if some texts are lists and others are not, or numpy left out a part of one.
    """
    if isinstance(data.features[column], ClassLabel):
        return LabelKind(SINGLE_LABEL, "")
    # Each different value once, with the first row that has it.
    first: dict[tuple[type, Any], int] = {}
    for row, value in zip(range(len(data)) if rows is None else rows, data[column][:], strict=True):
        if isinstance(value, (list, tuple)):
            return LabelKind(MULTI_LABEL, f"{_of_row(value, row)} is a list")
        if not isinstance(value, dict) and str(value) != str(UNLABELLED):
            first.setdefault((type(value), value), row)
    known = {value: row for (_, value), row in first.items() if not is_missing(value)}
    # Texts of lists.
    texts = {value: row for value, row in known.items() if isinstance(value, str) and value.strip()[:1] in "[({"}
    if texts and not one_class and _are_lists(texts, known, column):
        return LabelKind(MULTI_LABEL, f"{_of_row(*_first(texts))} is a list")
    # Numbers, among which a word for what is missing is no name.
    words = {value for value in known if is_missing(value, whole=True) and value not in names}
    numbers = {value: number_of(value) for value in known if value not in words}
    odd = next((value for value, number in numbers.items() if number is None), None)
    if odd is not None or not numbers:
        # Where none is a number, or only digits and signs, there is nothing that could be meant otherwise.
        plain = odd is not None and not any(_FIGURES.fullmatch(str(value)) for value in numbers)
        plain = plain and all(number is None for number in numbers.values())
        told = "no row has a label" if odd is None else f"{_of_row(odd, known[odd])} is no number"
        joined = None if one_class else _joined_names(known)
        if joined is not None:
            value, parts = joined
            listed = f"as a list, {str(parts)!r:.80}, it would be several labels"
            told = f"{_of_row(value, known[value])} is a name; {listed}"
        return LabelKind(SINGLE_LABEL, "" if plain and joined is None else told)
    fraction = next((value for value in numbers if whole_number(value) is None), None)
    if fraction is not None:
        return LabelKind(REGRESSION, f"{_of_row(fraction, known[fraction])} is not whole")
    padded = next((value for value in numbers if is_padded(value)), None)
    zeros = "" if padded is None else f", and zeros in front are kept ({padded!r:.40})"
    return LabelKind(SINGLE_LABEL, f"all labels are whole{zeros}", whole=True, padded=padded is not None)


def is_missing(value: Any, whole: bool = False) -> bool:
    """Check whether a value is no label: null, NaN, or a text of blanks.

    Args:
        value: of a column of labels.
        whole: whether the labels are numbers, of which none is called "NA".
    """
    if isinstance(value, str):
        return BLANK.fullmatch(value) is not None or (whole and value.strip().casefold() in MISSING_WORDS)
    return value is None or value != value


def number_of(value: Any) -> float | None:
    """Read a number, or a text of one in ASCII; None where it is neither, such as `"1_0"`, `"1,000"` and true."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def whole_number(value: Any) -> int | None:
    """Read a whole number, or a text of one such as `"+1"` and `"1.0"`; None where it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        if found := _INTEGER.fullmatch(value.strip()):
            return int(found[1] + found[3])
        if "e" not in value.lower():
            return None
    number = number_of(value)
    return int(number) if number is not None and math.isfinite(number) and number.is_integer() else None


def parse_list(value: str) -> list[Any] | None:
    """Read a list that is written as text by JSON, Python or numpy, such as `["a"]`, `('a', 'b')` and `[0 1]`.

    Args:
        value: the text.

    Returns:
        The list; None where the text is none.
    """
    text = value.strip()
    if not text or text[0] + text[-1] not in ("[]", "()", "{}"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            if _ARRAY.fullmatch(text):
                # Numpy writes no commas.
                return [ast.literal_eval(item) for item in re.findall(_ITEM, text)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                found = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    if isinstance(found, set):
        return sorted(found, key=str)
    return list(found) if isinstance(found, (list, tuple)) else None


def _are_lists(texts: Mapping[str, int], known: Mapping[Any, int], column: str) -> bool:
    """Check whether all known values are texts of lists; raise where only some are."""
    for text, row in texts.items():
        if text.strip()[-1] == "]" and re.search(r"\s\.\.\.\s", text):
            raise ValueError(
                f"Row {row} has {text!r:.80} in the label column {column!r}: numpy left out a part of this list when "
                "it was written. Write the rows again with labels.tolist(), or as parquet or jsonl."
            )
    lists = {text: row for text, row in texts.items() if parse_list(text) is not None}
    filled = {text: row for text, row in lists.items() if parse_list(text)}
    others = [value for value in known if value not in lists]
    if filled and others:
        text, row = _first(filled)
        raise ValueError(
            f"Column {column!r} mixes lists, such as {text!r:.80} (row {row}), and other labels, such as "
            f"{others[0]!r:.80} (row {known[others[0]]}): write a list in every row, or set problem_type."
        )
    return bool(lists) and not others


def _joined_names(known: Mapping[Any, int]) -> tuple[str, list[str]] | None:
    """Find a name that looks like several labels, since each part of it is in other names too; and these parts."""
    for separator in ",;|":
        parts = {value: [part.strip() for part in value.split(separator)] for value in known if isinstance(value, str)}
        holders = Counter(part for each in parts.values() for part in set(each))
        for value, each in parts.items():
            if len(each) > 1 and all(part and holders[part] > 1 for part in each):
                return value, each
    return None


def is_padded(value: Any) -> bool:
    """Check whether a value is a text of a whole number with zeros in front."""
    found = _INTEGER.fullmatch(value.strip()) if isinstance(value, str) else None
    return found is not None and len(found[2]) > 0


def _of_row(value: Any, row: int) -> str:
    return f"label {value!r:.40} (row {row} of the train split)"


def _first(rows: Mapping[Any, int]) -> tuple[Any, int]:
    return next(iter(rows.items()))
