"""Soft labels that the data bring along, of an API or of voting people, as a teacher's logits."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, List, Value
from scipy.special import logit

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import LABEL_NAMES, TEACHER_LOGITS, TEXT_NAMES, find_pairs, usual_form
from nlpkd.data.labels.classes import Classes, NamesOfModel
from nlpkd.data.labels.kind import is_missing, parse_list
from nlpkd.data.labels.numbers import refuse_numbers
from nlpkd.data.labels.targets import read_task
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, UNLABELLED

logger = logging.getLogger(__name__)


PROBABILITY_FLOOR = 1e-6
"""Smaller probabilities are raised to this before the logarithm is taken."""


ROUNDING = 1e-3
"""By so much a probability may be above 1, or the sum of a text's probabilities beside it."""


def add_soft_labels(
    rows: Dataset,
    column: str,
    id2label: Mapping[int, str],
    split: str = "train",
    problem_type: str = SINGLE_LABEL,
) -> Dataset:
    """Turn a column of soft labels into the column `teacher_logits`, which a trainer takes for a teacher.

    A row's value is a list with a number for each label in the order of the ids, a mapping from label names to
    numbers, or a list of `{"label": .., "score": ..}` as a transformers pipeline gives; each also as a text of JSON,
    Python or numpy. Numbers are probabilities or votes: they are divided by their sum, except that of probabilities
    which sum to less than 1 (the top k of an API) the rest is spread evenly over the labels that are not named. The
    logits are the logarithms, of at least 1e-6. Of a multi-label task the numbers are probabilities, one a label (0
    for a label that is not named), and the logits log(p / (1 - p)); of a regression the value is the score.

    Args:
        rows: the rows.
        column: of the soft labels; it is removed.
        id2label: the labels' names by id.
        split: name for the errors.
        problem_type: the task.

    Returns:
        The rows with `teacher_logits`, float32 `(labels,)` each, which carries the labels' names.

    Raises:
        ValueError: if a value is not what it should be; row and value are named.
    """
    ids = {name: number for number, name in id2label.items()}

    def logits(value: Any, row: int) -> dict[str, list[float]]:
        try:
            if is_missing(value):
                raise ValueError("it is missing")
            if problem_type == REGRESSION:
                return {TEACHER_LOGITS: [_finite(float(value))]}
            if problem_type == MULTI_LABEL:
                probabilities = _numbers(value, ids)
                if probabilities.max() > 1 + ROUNDING:
                    raise ValueError("its numbers must be probabilities")
                bounded = np.clip(probabilities, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
                return {TEACHER_LOGITS: logit(bounded).tolist()}
            probabilities = np.maximum(_probabilities(value, ids), PROBABILITY_FLOOR)
            return {TEACHER_LOGITS: np.log(probabilities).tolist()}
        except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"Row {row} of the {split} split has the soft label {value!r:.120} in column {column!r}: {error}. "
                f"Give a number for each of {list(ids)}, a mapping from them, or a list of label and score."
            ) from None

    features = rows.features.copy()
    del features[column]
    features[TEACHER_LOGITS] = Classes.of(id2label).vector_feature
    return rows.map(
        logits, input_columns=column, with_indices=True, remove_columns=column, features=features, desc="Soft labels"
    )


def take_soft_labels(splits: DatasetDict, asked: DataArguments) -> tuple[DatasetDict, dict[str, Dataset]]:
    """Take the column of soft labels out of the splits, so that nothing else meets its name.

    Where held-out rows have gold labels in a column of this name, these stay: texts, numbers or lists of texts in what
    is their only column of labels.

    Args:
        splits: as they were read.
        asked: how they are read.

    Returns:
        The splits without soft labels, and the column alone of each split that has it; none where none is asked for.

    Raises:
        ValueError: if the training rows have no such column.
    """
    column = asked.soft_label_column
    if column is None:
        return splits, {}
    if column not in splits["train"].column_names:
        raise ValueError(f"The train split has no column {column!r}; its columns are {splits['train'].column_names}.")
    having = {split: data for split, data in splits.items() if column in data.column_names}
    soft = {
        split: data.select_columns(column)
        for split, data in having.items()
        if split == "train" or not _is_gold(data, column, asked.label_column)
    }
    others = {split: data.remove_columns(column) if split in soft else data for split, data in splits.items()}
    return DatasetDict(others), soft


def add_missing_label_columns(
    splits: DatasetDict, asked: DataArguments, soft: Mapping[str, Dataset]
) -> tuple[DatasetDict, DataArguments]:
    """Let soft labels or a teacher say what the classes are, where rows have no column of gold labels.

    Training rows without one get a label column in which every row is unlabelled. It has the name of the other splits'
    label column, so that these can be measured. Where no held-out row has a gold label either, those with soft labels
    are unlabelled likewise.

    Args:
        splits: as they were read, without soft labels.
        asked: how they are read, with a `soft_label_column` or `label_names`.
        soft: the soft labels of the splits that have some; see `take_soft_labels`.

    Returns:
        Both, unchanged where all rows have a label column, and without soft labels where no held-out rows have one.

    Raises:
        ValueError: if the soft labels name no classes, or gold labels of other splits are numbers where these, or a
            teacher, have names.
    """
    train = splits["train"]
    given = [asked.label_column] if isinstance(asked.label_column, str) else list(asked.label_column or ())
    usual = [name for name in train.column_names if usual_form(name) in LABEL_NAMES]
    has_gold = bool(set(given) & set(train.column_names) or (usual and not given))
    # What the splits call their labels, and which task these make.
    others = {split: data for split, data in splits.items() if split != "train"}
    known = [name for data in others.values() for name in data.column_names if usual_form(name) in LABEL_NAMES]
    label = (given or (usual if has_gold else known) or ["label"])[0]
    held_out = {split: data for split, data in others.items() if label in data.column_names}
    if (has_gold and (not soft or len(given) > 1 or len(held_out) == len(others))) or not (soft or held_out):
        return splits, asked
    if not soft and not _has_texts(train, asked):
        return splits, asked
    # Training rows get a label column in which nobody labelled any row.
    task = asked.problem_type or next((read_task(data, label) for data in held_out.values()), SINGLE_LABEL)
    several = task == MULTI_LABEL

    def unlabelled(rows: Dataset, feature: Any) -> Dataset:
        """Add a label column in which nobody labelled any row."""
        empty: list[Any] = [[UNLABELLED] if several else UNLABELLED] * len(rows)
        return rows.add_column(label, empty, feature=feature)

    feature: Any = train.features.get(label)
    if not has_gold:
        if task == REGRESSION or len(given) > 1:
            raise ValueError(
                "training rows without gold labels are for classes, in one label column of the other splits"
            )
        names = list(asked.label_names) or _names_in(soft["train"])
        ordered = bool(asked.label_names) or Classes.of_feature(*soft["train"].features.values()) is not None
        by_user = bool(asked.label_names) and not isinstance(asked.label_names, NamesOfModel)
        if not by_user:
            # A teacher that labelled these rows says the names itself.
            advice = "Write the names in the column"
            advice += "" if soft and asked.label_names else ", or give label_names in the order of the numbers"
            whose = "soft labels have" if soft and not asked.label_names else "teacher has"
            refuse_numbers(held_out, label, task, names, whose, advice, ordered=ordered)
        feature = List(Value("int64")) if several else ClassLabel(names=names)
        splits = DatasetDict({**splits, "train": unlabelled(train, feature)})
        asked = replace(asked, label_column=label, problem_type=task, label_names=names)
        if not soft:
            logger.warning("The train rows have no column %r: the teacher alone labels all %d.", label, len(train))
    # Where there is no gold label at all, held-out rows get one too.
    if not held_out:
        kind = feature if isinstance(feature, (ClassLabel, List)) else Value("int64")
        marked = {split: data for split, data in others.items() if split in soft}
        splits = DatasetDict({**splits, **{split: unlabelled(data, kind) for split, data in marked.items()}})
    return splits, asked


def _is_gold(rows: Dataset, column: str, label_column: str | Sequence[str] | None) -> bool:
    """Check whether held-out rows have gold labels in a column that is called as the soft labels are."""
    usual = [name for name in rows.column_names if usual_form(name) in LABEL_NAMES]
    if column != label_column and (label_column is not None or usual != [column]):
        return False
    value = next((value for value in rows[column] if not is_missing(value)), None)
    try:
        value = _parsed(value)
    except (ValueError, RecursionError):
        return True
    of_numbers = isinstance(value, (list, tuple)) and not all(isinstance(each, str) for each in value)
    return not (of_numbers or isinstance(value, Mapping))


def _has_texts(train: Dataset, asked: DataArguments) -> bool:
    """Check whether rows have a column of texts, so that a label's column is all that they lack."""
    if asked.text_column is not None:
        return asked.text_column in train.column_names
    plain = {usual_form(name) for name in train.column_names}
    return bool(plain & TEXT_NAMES) or bool(find_pairs(train.column_names))


def _names_in(rows: Dataset) -> list[str]:
    """Read the names of the classes from a column of soft labels; sorted where they have no order."""
    [(column, feature)] = rows.features.items()
    if isinstance(feature, dict):
        return list(feature)
    if classes := Classes.of_feature(feature):
        return list(classes.names)
    named: list[dict[str, Any] | None] = []
    for row, value in enumerate(rows[column][:]):
        try:
            named += [] if is_missing(value) else [_named(value)]
        except (json.JSONDecodeError, TypeError, KeyError, RecursionError):
            named.append(None)
        except ValueError as error:
            raise ValueError(
                f"Row {row} of the train split has the soft label {value!r:.120} in column {column!r}: {error}."
            ) from None
    if None in named or not named:
        raise ValueError(
            f"the training rows have no gold labels, and column {column!r} does not name its classes: write each soft "
            "label as a mapping from names to numbers, or give label_names"
        )
    return sorted({name for each in named for name in each or ()})


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise ValueError("it must be finite")
    return value


def _probabilities(value: Any, ids: Mapping[str, int]) -> np.ndarray:
    """Read votes or probabilities, `(labels,)`, that sum to 1."""
    numbers, named = _numbers(value, ids), _named(value)
    total = numbers.sum()
    if not total > 0:
        raise ValueError("its numbers must not all be 0")
    free = [number for name, number in ids.items() if named is not None and name not in named]
    if free and total < 1 - ROUNDING:
        numbers[free] = (1 - total) / len(free)
    return numbers / numbers.sum()


def _numbers(value: Any, ids: Mapping[str, int]) -> np.ndarray:
    """Read one number a label, `(labels,)`, 0 for a label that is not named."""
    numbers, named = np.zeros(len(ids)), _named(value)
    if named is not None:
        unknown = sorted(named.keys() - ids.keys())
        if unknown:
            raise ValueError(f"there is no label {unknown[0]!r}")
        for name, number in named.items():
            numbers[ids[name]] = number
    else:
        value = _parsed(value)
        if not isinstance(value, Collection):
            raise ValueError("it holds no numbers")
        if isinstance(value, Set):
            raise ValueError("a set has no order")
        if len(value) != len(ids):
            raise ValueError(f"it has {len(value)} numbers for {len(ids)} labels")
        numbers[:] = list(value)
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        raise ValueError("its numbers must be finite and not negative")
    return numbers


def _named(value: Any) -> dict[str, Any] | None:
    """Read a mapping from names to numbers in any of its forms; None for a plain list."""
    value = _parsed(value)
    if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        value = _without_twins([(entry["label"], entry["score"]) for entry in value])
    if not isinstance(value, Mapping):
        return None
    # Arrow gives every row all the names that any row has, with None for its own gaps.
    return {str(name): number for name, number in value.items() if number is not None}


def _parsed(value: Any) -> Any:
    """Read a text of a list or a mapping, as JSON, Python or numpy write it; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        try:
            tree = ast.parse(value.strip(), mode="eval")
            read = ast.literal_eval(tree)
        except (ValueError, SyntaxError, MemoryError):
            found = parse_list(value)
            if found is None:
                raise error from None
            return found
        for part in ast.walk(tree):
            if isinstance(part, ast.Dict):
                _without_twins([(ast.literal_eval(key), None) for key in part.keys if key is not None])
        return read


def _without_twins(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """Make a mapping of pairs; raise where a name comes twice."""
    names = [name for name, _ in pairs]
    if twins := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twins[0]!r} comes twice")
    return dict(pairs)
