"""Unlabelled rows beside labelled ones: variants of their texts, and plain text that is new."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import ClassLabel, Dataset, Features, LargeList, List
from datasets.exceptions import DatasetGenerationError

from nlpkd.augment.augmenters import Augmenter, check_range
from nlpkd.augment.near_duplicates import NearDuplicates, Row
from nlpkd.data.columns import Columns, check_texts, checked_text, find_columns, texts_again, values_of
from nlpkd.data.labels import read_task
from nlpkd.data.rows import refuse_other_than_dataset
from nlpkd.data.splits.plain_text import plain_text
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, UNLABELLED
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)


ROWS_AT_ONCE = 128


VERSION = 4
"""Raise it whenever other rows would come of the same settings, so that rows on disk are made anew."""


Texts: TypeAlias = Dataset | Sequence[str]


@plain_arguments
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

    No variant equals, but for case, blanks and Unicode form, a row of `data` or another variant, and none nearly
    equals a row of `exclude` (`nlpkd.augment.near_duplicates`). What is drawn for a text depends on the seed and on
    the text alone; of an augmenter with `fit` on which texts there are too, and not on their order.

    Rows go to disk as they are made and are read from there; memory holds a hash of each. The same call finds them in
    the cache again, and of several processes on one machine the first makes them while the others wait.

    Args:
        data: the train rows, before tokenisation.
        augmenter: one that `make_augmenter` makes by its name, `MaskedLanguageModel`, `MaskingAndNGrams`, ..., or
            your own.
        copies: how many variants are drawn of each row (both papers: 20); those that are not new are dropped.
        seed: seeds the draws, 0 or more.
        exclude: data sets with the same text columns, such as validation and test, or columns of texts.
        text_column: the text's column; recognised by its usual names if None.
        text_pair_column: the second text's column; usual pairs are recognised. Both texts of a pair are varied.
        label_column: the label's column; recognised by its usual names if None.
        cache_dir: where the rows are kept; the cache of `datasets` if None.

    Returns:
        The text columns and the label column, with the features of `data` and the label -100 ("-100" among strings,
        NaN among scores), to put after `data` with `datasets.concatenate_datasets`.

    Raises:
        ValueError: columns that are missing or hold no text, labels with no place for -100, a setting too low, an
            `exclude` of another kind, or no new variant at all.
    """
    refuse_other_than_dataset(data, "data")
    if isinstance(augmenter, str):
        raise ValueError(f"augmenter={augmenter!r} is a name: give what make_augmenter makes by this name")
    columns = find_columns(data.column_names, text_column, text_pair_column, label_column)
    for name in columns.texts:
        check_texts(data, "train", name)
    marks = _marks(data, columns)
    made = variants_of(
        data, augmenter, columns.texts, copies=copies, seed=seed, exclude=exclude, cache_dir=cache_dir
    )  # fmt: skip
    return _marked(made, data, marks)


def variants_of(
    data: Dataset,
    augmenter: Augmenter,
    names: Sequence[str],
    *,
    copies: int,
    seed: int,
    exclude: Sequence[Texts] = (),
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Make variants of texts, without labels; see `augment`, whose arguments these are.

    Args:
        data: the train rows.
        augmenter: makes the variants.
        names: the text columns.
        copies: how many variants are drawn of each row.
        seed: seeds the draws.
        exclude: what no variant may nearly equal.
        cache_dir: where the rows are kept.

    Returns:
        The text columns.

    Raises:
        ValueError: as for `augment`.
    """
    check_range("copies", copies, 1)
    check_range("seed", seed, 0)

    @cache
    def of_column(name: str) -> Augmenter:
        """Return the augmenter of a column's texts."""
        return augmenter.fit(data[name][:]) if hasattr(augmenter, "fit") else augmenter

    def variants(rows: list[Row]) -> Iterator[Row]:
        keys, made = [_key(row) for row in rows], []
        for place, (name, texts) in enumerate(zip(names, zip(*rows, strict=True), strict=True)):
            draws = [[np.random.default_rng((seed, key, copy, place)) for copy in range(copies)] for key in keys]
            made.append(of_column(name).variants(texts, draws))
        for texts_of_row in zip(*made, strict=True):
            yield from zip(*texts_of_row, strict=True)

    settings = repr((augmenter.fingerprint(), copies, seed))
    advice = "raise copies or the share that is changed, or take an augmenter that finds more to change in such texts"
    return _new_rows(data, variants, data, names, exclude, settings, cache_dir, advice)


@plain_arguments
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

    Texts that nearly equal one of `exclude` are passed over too.

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
    refuse_other_than_dataset(like, "like")
    columns = find_columns(like.column_names, text_column, text_pair_column, label_column)

    def filled(rows: list[Row]) -> Iterator[Row]:
        return (row for row in rows if all(map(str.strip, row)))

    marks = _marks(like, columns)
    source = _read_again(texts, "texts")
    made = _new_rows(source, filled, like, columns.texts, exclude, "unlabelled", cache_dir, "give other texts")
    return _marked(made, like, marks)


def _new_rows(
    source: Texts,
    make: Callable[[list[Row]], Iterator[Row]],
    data: Dataset,
    names: Sequence[str],
    exclude: Sequence[Texts],
    settings: str,
    cache_dir: str | Path | None,
    advice: str,
) -> Dataset:
    """Write what `make` makes of the source's rows and is neither in the data nor like what is excluded."""
    features = Features({name: data.features[name] for name in names})
    parts = values_of(exclude, "exclude must be a list of data sets or of columns: write exclude=[validation, test]")
    excluded = [_read_again(part, f"exclude[{place}]") for place, part in enumerate(parts)]
    digest = hashlib.blake2b(repr((VERSION, settings, features)).encode(), digest_size=16)
    known: set[int] = set()
    for place, texts in enumerate((source, data, *excluded)):
        digest.update(f"{len(texts)} rows".encode())
        for rows in _chunks(texts, names):
            digest.update(repr(rows).encode())
            known.update(map(_key, rows) if place > 0 else ())

    def new() -> Iterator[dict[str, str]]:
        before, nearly, made = len(known), 0, 0
        near = NearDuplicates(row for texts in excluded for rows in _chunks(texts, names) for row in rows)
        for rows in _chunks(source, names):
            for row in make(rows):
                made, key = made + 1, _key(row)
                if key in known:
                    continue
                if row in near:
                    nearly += 1
                    continue
                known.add(key)
                yield dict(zip(names, row, strict=True))
        if len(known) == before:
            raise ValueError(
                f"Nothing new came of {len(source)} rows: of {made:,} texts, {made - nearly:,} are in the train rows "
                f"or excluded, and {nearly:,} nearly equal what is excluded. To have new ones, {advice}."
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
    return made


def _marked(made: Dataset, data: Dataset, marks: Mapping[str, Any]) -> Dataset:
    """Add the label columns of `data`; afterwards, since a ClassLabel takes no -100 from a generator."""
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
    for number, rows in enumerate(chunks):
        yield [
            tuple(checked_text("" if text is None else text, f"row {place}") for text in row)
            for place, row in enumerate(rows, start=number * ROWS_AT_ONCE)
        ]


def _read_again(texts: Any, name: str) -> Texts:
    """Return texts that can be read several times; refuse what are none."""
    return texts if isinstance(texts, Dataset) else texts_again(texts, name)


def _key(row: Row) -> int:
    """Hash a row's texts without case, blanks and differences of Unicode form."""
    return int.from_bytes(hashlib.blake2b("\n".join(map(plain_text, row)).encode(), digest_size=8).digest(), "little")


def _marks(data: Dataset, columns: Columns) -> dict[str, Any]:
    """Return the mark of an unlabelled row for each label column."""
    task, labels = read_task(data, columns.label), columns.label
    return {name: _mark(data.features[name], name, task) for name in ([labels] if isinstance(labels, str) else labels)}


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
    return math.nan if task == REGRESSION and kind.startswith("float") else UNLABELLED
