"""Columns: which hold the text and the label, that texts are texts, and columns of texts as arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Value

TEXT_NAMES = frozenset("text sentence review content tweet document comment body message description".split())


LABEL_NAMES = frozenset("label labels target class sentiment category stars rating".split())


PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    # As nlpkd.load and the pipeline of transformers have them.
    ("text", "text_pair"),
)


MAX_CLASSES = 1000


INTEGER = re.compile(r"0|-?[1-9][0-9]{0,15}")


BLANK = re.compile("[\\s\\x00-\\x1f\\u200b-\\u200f\\u2060\\ufeff]*")


@dataclass(frozen=True)
class Columns:
    """The columns that hold the text, the text it is paired with (or None) and the label, or one for each label."""

    text: str
    text_pair: str | None
    label: str | tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """The columns of the texts: one, or two of pairs."""
        return [self.text] if self.text_pair is None else [self.text, self.text_pair]

    @property
    def labels(self) -> list[str]:
        """The columns of the labels: one, or one a label."""
        return [self.label] if isinstance(self.label, str) else list(self.label)

    @property
    def names(self) -> list[str]:
        """All of these columns."""
        return [*self.texts, *self.labels]


def find_columns(
    available: Sequence[str],
    text: str | None = None,
    text_pair: str | None = None,
    label: str | Sequence[str] | None = None,
) -> Columns:
    """Take the named columns, and recognise those not named by their usual names.

    Args:
        available: the columns that there are.
        text: the text's column, or None to recognise it.
        text_pair: the second text's column; None: a pair only where both columns of a well-known pair are found.
        label: the label's column, several columns (one a label), or None to recognise it.

    Returns:
        The columns.

    Raises:
        ValueError: a named column is missing or named twice, none or several columns could be the one not named, or
            a column has a name that begins as those do that are made here.
    """
    if taken := [name for name in available if name.startswith(RESERVED)]:
        raise ValueError(f"Names of columns that begin with {RESERVED!r} are kept for nlpkd: rename {taken}.")
    labels = [label] if label is None or isinstance(label, str) else list(label)
    named = [("text_column", text), ("text_pair_column", text_pair), *(("label_column", name) for name in labels)]
    given = _given(available, named)
    free = [name for name in available if name not in given]
    if label is None:
        unknown = text is None and not any(usual_form(name) in TEXT_NAMES for name in free)
        also = ", and which is the text with text_column (--text-column)" if unknown else ""
        label = _the_one(free, LABEL_NAMES, available, "label", f"label_column (--label-column){also}")
        free.remove(label)
    return Columns(*_texts(free, available, text, text_pair), label if isinstance(label, str) else tuple(label))


def find_text_columns(available: Sequence[str], text: str | None = None, text_pair: str | None = None) -> list[str]:
    """Take the named columns of texts or of pairs, as `find_columns` does; no label column is needed.

    Args:
        available: the columns that there are.
        text: the text's column, or None to recognise it.
        text_pair: the second text's column; None: a pair only where both columns of a well-known pair are found.

    Returns:
        The text's column, of pairs both.

    Raises:
        ValueError: a named column is missing or named twice, or none or several columns could be the text.
    """
    given = _given(available, [("text_column", text), ("text_pair_column", text_pair)])
    free = [name for name in available if name not in given]
    return [name for name in _texts(free, available, text, text_pair) if name is not None]


def find_text_column(available: Sequence[str], text: str | None = None) -> str:
    """Take the named column of single texts, or recognise it by its usual names; no label column is needed.

    Args:
        available: the columns that there are.
        text: the text's column, or None to recognise it.

    Returns:
        The column.

    Raises:
        ValueError: the named column is missing, none or several columns could be the text, or it is one of a pair.
    """
    if text is None:
        found = _the_one(available, TEXT_NAMES, available, "text", "text_column (--text-column)")
        for pair in find_pairs(available):
            if found in pair:
                raise ValueError(
                    f"Single texts are read here, and these rows are pairs ({' and '.join(pair)}): name one text with "
                    "text_column (--text-column), or leave the other column out."
                )
        return found
    if text not in available:
        raise ValueError(f"There is no column {text!r} (text_column); the columns are {list(available)}.")
    return text


def find_pairs(available: Sequence[str]) -> list[tuple[str, str]]:
    """Find the columns of well-known pairs by their names, in any case and with blanks around them.

    Args:
        available: the columns that there are.

    Returns:
        The two columns of every pair that is there.
    """
    couples = [(first, second) for first in available for second in available]
    return [(first, second) for first, second in couples if (usual_form(first), usual_form(second)) in PAIRS]


def _given(available: Sequence[str], named: Sequence[tuple[str, str | None]]) -> list[str]:
    """Return the columns that are named; refuse what is not there, and one that is named twice."""
    for argument, name in named:
        if name is not None and name not in available:
            raise ValueError(f"There is no column {name!r} ({argument}); the columns are {list(available)}.")
    given = [name for _, name in named if name is not None]
    if len(set(given)) < len(given):
        raise ValueError(f"The same column is named twice: {given}; text_column, label_column.. must differ.")
    return given


def _texts(
    free: Sequence[str], available: Sequence[str], text: str | None, text_pair: str | None
) -> tuple[str, str | None]:
    """Return the columns of the text and of its pair, where they are not named those that are known by their names."""
    if text is None:
        pairs = find_pairs(free) if text_pair is None else []
        if pairs:
            others = {name for name in free if usual_form(name) in TEXT_NAMES}.difference(*pairs)
            if others or len(pairs) > 1:
                raise ValueError(
                    f"Several columns could be the text: {sorted(others)} and the pairs {pairs}. The columns are "
                    f"{list(available)}: say which with text_column (--text-column; pairs: --text-pair-column too)."
                )
            return pairs[0]
        text = _the_one(
            free, TEXT_NAMES, available, "text", "text_column (--text-column; pairs: --text-pair-column too)"
        )
    return text, text_pair


def usual_form(name: str) -> str:
    """Return the name of a column or a split as it is compared with usual ones: in any case, with blanks around it."""
    return name.strip().lower()


def _the_one(free: Sequence[str], known: frozenset[str], available: Sequence[str], what: str, argument: str) -> str:
    found = [name for name in free if usual_form(name) in known]
    if len(found) == 1:
        return found[0]
    problem = f"Several columns could be the {what}: {found}" if found else f"No column is known to be the {what}"
    raise ValueError(f"{problem}. The columns are {list(available)}: say which with {argument}.")


def check_texts(data: Dataset, split: str, column: str) -> None:
    """Refuse a column that is not text, and rows without any.

    Args:
        data: the rows of a split.
        split: the split's name, for the error.
        column: the text's column.

    Raises:
        ValueError: a value that is no string, is null, or holds nothing but blanks; it names split, column and rows.
    """
    feature = data.features[column]
    if not isinstance(feature, Value) or feature.dtype not in ("string", "large_string"):
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        raise ValueError(
            f"Column {column!r} of the {split} split is not text but {kind}: name another (text_column) or cast it."
        )
    empty = [row for row, text in enumerate(data[column][:]) if text is None or BLANK.fullmatch(text)]
    if empty:
        shown = ", ".join(map(str, empty[:5])) + (", .." if len(empty) > 5 else "")
        raise ValueError(
            f"Column {column!r} of the {split} split has {len(empty)} empty texts (row {shown}; the first row is 0): "
            "remove these rows or fill them in."
        )


def values_of(column: Any, wanted: str) -> Iterable[Any]:
    """Return what a column holds, in Python's own values.

    Args:
        column: a list, a tuple, a column of numpy, pandas, torch or datasets, a generator, anything to go through.
        wanted: what it must be, for the error.

    Returns:
        The values; of a generator and of a column on the disk as they are read.

    Raises:
        ValueError: for a single text, an array without dimensions too, a mapping and a table, which would be read by
            letters and by names.
    """
    table = hasattr(column, "columns") or hasattr(column, "column_names") or isinstance(column, Mapping)
    if table:
        raise ValueError(f"{wanted}; got {type(column).__name__}, which has columns of its own: give one of them")
    if hasattr(column, "__len__") and hasattr(column, "__getitem__") and not isinstance(column, Iterable):
        # A data set of torch.
        return [column[number] for number in range(len(column))]
    if isinstance(column, (str, bytes)) or not isinstance(column, Iterable):
        raise ValueError(f"{wanted}; got {type(column).__name__}")
    # Columns of numpy, pandas and torch, and of arrow, have values of their own, which these turn into Python's.
    as_list = getattr(column, "tolist", None) or getattr(column, "to_pylist", None)
    values = column if as_list is None else as_list()
    if as_list is not None and not isinstance(values, list):
        raise ValueError(f"{wanted}; got {type(column).__name__} without dimensions: give the value itself (.item())")
    return values


def each_text(texts: Any, name: str) -> Iterator[str]:
    """Go through a column of texts once.

    Args:
        texts: as `values_of` takes them.
        name: of the argument.

    Returns:
        The texts, each checked as it is read; what is no column is refused at once.

    Raises:
        ValueError: for what is no column, and for what is no text in it; it names the place.
    """
    values = values_of(texts, _wanted_texts(name))
    return (checked_text(text, f"{name}: text {place}") for place, text in enumerate(values))


def texts_again(texts: Any, name: str) -> Sequence[Any]:
    """Return a column of texts that can be gone through several times.

    Args:
        texts: as `values_of` takes them.
        name: of the argument.

    Returns:
        The column itself where it can be read again, and else a list; the texts are not checked yet.

    Raises:
        ValueError: for what is no column.
    """
    values = values_of(texts, _wanted_texts(name))
    return values if isinstance(values, Sequence) else list(values)


def checked_text(text: Any, which: str) -> str:
    """Return a text that a tokenizer can read.

    Args:
        text: what may be one.
        which: where it is, for the error.

    Returns:
        The text.

    Raises:
        ValueError: for what is no text, and for one that holds half of a character.
    """
    if not isinstance(text, str):
        raise ValueError(f"{which} is {text!r:.80}, and must be a text: leave it out")
    if has_half(text):
        raise ValueError(f"{which} holds {HALF}; found {text!r:.80}")
    return text


HALF = "half of a character (a lone surrogate such as \\ud83d): remove it"
"""What to say of a text that `has_half`."""


def has_half(text: str) -> bool:
    """Check whether a text has half of a character, as JSON can write it; no tokenizer and no column takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _wanted_texts(name: str) -> str:
    return f"{name} must be texts, in a list, a column or a generator"


RESERVED = "__nlpkd_"
"""How names of columns begin that mean something here alone: no column of a user's may be taken for one."""


DOCUMENT = RESERVED + "document"
"""The column that says which text a window is of."""


ROW = RESERVED + "row"
"""Of a row: its number, in what it was read from."""


LABEL_COLUMNS = ("labels", "label", "label_ids")
"""What the column of gold labels may be called in tokenised rows, of which each has one."""


TEACHER_LOGITS = "teacher_logits"
"""Column of a data set that holds the teacher's logits, `(batch, labels)`, in the student's label order."""


HIDDEN_STATES = "teacher_hidden_states_{}"
"""Columns of the states of one layer (0: the embeddings): bytes on disk, `(batch, seq, hidden)` in a batch."""
