"""Labels that are numbers where classes have names: refused where nothing says which number is which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from nlpkd.data.labels.classes import Classes
from nlpkd.data.labels.kind import is_missing, read_kind, whole_number
from nlpkd.data.labels.multi_label import number_in_lists
from nlpkd.tasks import MULTI_LABEL, UNLABELLED


def refuse_numbers(
    splits: Mapping[str, Dataset],
    column: str | Sequence[str],
    task: str,
    names: Sequence[str],
    whose: str,
    advice: str = "Write the names in the column",
    *,
    ordered: bool = True,
) -> None:
    """Refuse labels that are numbers where the classes have names, and nothing says which number means which name.

    Lists of zeros and ones, or of ids, mean names that have an order. A single number may be of another one.

    Args:
        splits: the rows, by name.
        column: of the labels; several columns name their labels themselves.
        task: the problem type.
        names: of the classes, if there are any. Numbers mean those that are numbers themselves or count the ids
            (`LABEL_0`), and 0 and 1 mean false and true.
        whose: the names, such as "teacher has".
        advice: what to do.
        ordered: whether the names come in an order, as those of a teacher do.

    Raises:
        ValueError: for the first split with such labels.
    """
    if not isinstance(column, str) or _are_no_and_yes(names) or Classes.of(names).is_generic:
        return
    if task == MULTI_LABEL and ordered:
        return
    for split, data in splits.items():
        number: Any = None
        if task == MULTI_LABEL:
            number = number_in_lists(data, split, column, names)
        else:
            unknown = {str(each) for each in _numbers(data, column, names) if str(whole_number(each)) not in names}
            number = min(unknown - {*names, str(UNLABELLED)}, default=None)
        if number is not None:
            raise ValueError(
                f"the labels of the {split} split (column {column!r}) are numbers, such as {number}, and the {whose} "
                f"the classes {list(names)}: nothing says which number is which. {advice}"
            )


def named_by_numbers(found: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """Return what labels are called that were read: 0 and 1 are false and true where classes are called so.

    Args:
        found: the names that were read.
        names: of the classes.
    """
    return names if _are_no_and_yes(names) and len(found) == 2 and Classes.of(found).is_generic else found


def _are_no_and_yes(names: Sequence[str]) -> bool:
    return [name.casefold() for name in names] == ["false", "true"]


def _numbers(data: Dataset, column: str, names: Sequence[str]) -> list[Any]:
    """Return the labels of a column of whole numbers; none of another one."""
    feature = data.features[column]
    if isinstance(feature, ClassLabel):
        return feature.names if all(whole_number(name) is not None for name in feature.names) else []
    if not read_kind(data, column, names=names).whole:
        return []
    return [value for value in data[column][:] if not is_missing(value, whole=True)]
