"""The arguments of a measurement: those that can't be are refused before anything is run."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nlpkd.evaluation.origin import RunRecord
from nlpkd.evaluation.records import strict_json
from nlpkd.utils.field_types import are_numbers, check_counts

_LEAST = {"batch_size": 1, "bootstrap_samples": 1, "latency_runs": 0, "seed": 0}


def check_measuring(candidates: Collection[str], **given: Any) -> None:
    """Refuse arguments of `nlpkd.evaluate_student` that can't be, by their names.

    Args:
        candidates: names of what is measured.
        **given: of its arguments those that a caller gave: `batch_size`, `bootstrap_samples`, `latency_runs`, `seed`,
            `latency_batches`, `latency_tokens`, `training_seconds`, `teacher_order`, `teacher_thresholds`,
            `teacher_tokenizer`, `run`.

    Raises:
        ValueError: for the first one; it is named.
    """
    for name, least in _LEAST.items():
        if name in given:
            check_counts(least, **{name: given[name]})
    for name in sorted({"latency_batches", "latency_tokens"} & given.keys()):
        _check_sizes(name, given[name])
    _check_seconds(given.get("training_seconds"), candidates)
    order, tokenizer = given.get("teacher_order"), given.get("teacher_tokenizer")
    if order is not None and not (_is_list(order) and are_numbers(*order)):
        raise ValueError(f"teacher_order must be a list of indices, got teacher_order={order!r:.80}")
    cuts = given.get("teacher_thresholds")
    if cuts is not None and not (_is_list(cuts) and are_numbers(*cuts) and all(0 <= each <= 1 for each in cuts)):
        raise ValueError(f"teacher_thresholds must be a list of numbers from 0 to 1, got {cuts!r:.80}")
    own = list(tokenizer) if isinstance(tokenizer, (list, tuple)) else [tokenizer]
    needless = {"teacher_order": order is not None, "teacher_thresholds": cuts is not None}
    for name, useless in (needless | {"teacher_tokenizer": any(own)}).items():
        if useless and "teacher" not in candidates:
            raise ValueError(f"{name} is given, and there is no teacher: give one, or leave {name} out")
    _check_run(given.get("run"))


def check_text_columns(columns: Any, there_are: Collection[str]) -> None:
    """Refuse columns of texts that the rows lack.

    Args:
        columns: their names.
        there_are: the columns of the rows.

    Raises:
        ValueError: if they are no list, or one is not there.
    """
    if not _is_list(columns) or set(columns) - set(there_are):
        raise ValueError(f"text_columns must be a list of the columns {sorted(there_are)}, got {columns!r:.80}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _check_sizes(name: str, value: Any) -> None:
    """Refuse batch sizes or lengths that nothing can be timed at."""
    if name == "latency_tokens" and not _is_list(value):
        check_counts(**{name: value})
        return
    if not _is_list(value) or not value:
        raise ValueError(f"{name} must be a list of at least one whole number, got {name}={value!r:.80}")
    for place, each in enumerate(value):
        check_counts(**{f"{name}[{place}]": each})


def _check_seconds(seconds: Any, candidates: Collection[str]) -> None:
    """Refuse training times that are none, or of a model that is not measured."""
    by_name = seconds if isinstance(seconds, Mapping) else {"student": seconds}
    if unknown := [name for name in by_name if name not in candidates]:
        raise ValueError(f"training_seconds names {unknown}, and the candidates are {sorted(candidates)}")
    for name, value in by_name.items():
        if value is not None and not (are_numbers(value) and 0 <= value < math.inf):
            raise ValueError(f"training_seconds must be a number of at least 0, got {value!r:.80} of the {name}")


def _check_run(run: Any) -> None:
    """Refuse entries that no report could be read again with."""
    try:
        record = RunRecord.from_dict({} if run is None else run)
        record.check()
        json.dumps(strict_json(record.to_dict()), allow_nan=False)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"run can't be recorded: {error}. See nlpkd.evaluation.origin.RunRecord") from error
