"""Which gold labels are probably wrong: confident learning on a teacher's probabilities, or on out-of-fold ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from datasets import Dataset, DatasetDict
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import check_texts, find_columns
from nlpkd.data.labels import encode_targets
from nlpkd.data.labels.classes import Classes
from nlpkd.data.labels.numbers import named_by_numbers, refuse_numbers
from nlpkd.data.one_split import read_one_split
from nlpkd.data.sources import Source, refuse_as_output, without_training_words
from nlpkd.data.text_classification import load_rows_for_model
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.evaluation.records import percent
from nlpkd.labelling.costs import Prices, SpendingLimits
from nlpkd.labelling.rows import answers_beside, asked_probabilities
from nlpkd.models.source import ModelSource
from nlpkd.tasks import SINGLE_LABEL, UNLABELLED, is_unlabelled, refuse_other_than_one_class
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.utils.disk.files import atomic_file
from nlpkd.utils.field_types import plain_arguments

FOLDS = 5

_WORD = re.compile(r"(?u)\b\w+\b")

_ROUNDING = 1e-6
"""By so much less than a mean that float32 numbers have, a probability is still at the mean."""


@dataclass(frozen=True)
class Mislabelled:
    """A row whose label is probably wrong.

    Attributes:
        row: its number in the data.
        text: its text; of a pair both, a line each.
        label: its label.
        proposed_label: the likeliest class.
        label_probability: what its label gets.
        proposed_probability: what the proposed one gets.
        reason: why it is listed.
    """

    row: int
    text: str
    label: str
    proposed_label: str
    label_probability: float
    proposed_probability: float
    reason: str


@dataclass(frozen=True)
class LabelCheck:
    """The labels of some rows, checked.

    Attributes:
        rows: that were checked.
        found: those with a label that is probably wrong, the likeliest first.
        output: the file with them, None where none was asked for.
        split: of the data that was checked; None where it has no splits.
    """

    rows: int
    found: list[Mislabelled]
    output: Path | None = None
    split: str | None = None

    def to_text(self) -> str:
        """Return how many there are, and which labels are taken for which."""
        taken = Counter((each.label, each.proposed_label) for each in self.found)
        share = percent(len(self.found) / self.rows)
        where = f" of the split {self.split!r}" if self.split else ""
        lines = [f"{len(self.found):,} of {self.rows:,} labels{where} ({share}) are probably wrong."]
        lines += [f"{count:,} of {label!r} are rather {other!r}." for (label, other), count in taken.most_common()]
        return "\n".join(lines + ([f"They are in {self.output}."] if self.output else []))


def probably_wrong(labels: np.ndarray, probabilities: np.ndarray) -> list[int]:
    """Find rows with wrong labels by confident learning.

    A class's threshold is the mean probability that it gets on rows with its label. A row counts as wrong where,
    of the classes at or above their thresholds, the likeliest is not its label. As many rows as that, those whose
    label gets the least probability, are returned. What is below a threshold by rounding alone is at it: the mean of
    equal numbers may be above each of them. (Northcutt et al. 2021, "Confident Learning",
    https://arxiv.org/abs/1911.00068; cleanlab's `low_self_confidence` chooses likewise, class by class.)

    Args:
        labels: class ids `(rows,)`.
        probabilities: `(rows, classes)`, of a model that has not learned from these labels.

    Returns:
        Numbers of rows, the likeliest to be wrong first.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    rows, classes = probabilities.shape
    own = probabilities[np.arange(rows), labels]
    thresholds = np.array(
        [own[labels == each].mean() if (labels == each).any() else np.inf for each in range(classes)]
    )
    confident = np.where(probabilities >= thresholds - _ROUNDING, probabilities, -1.0)
    count = int(((confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels)).sum())
    suspects = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return suspects[np.argsort(own[suspects], kind="stable")[:count]].tolist()


@plain_arguments
def check_labels(
    data: Source,
    teacher: LabelingTeacher | str | Path | None = None,
    *,
    output: str | Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    max_requests: int | None = None,
    max_cost: float | None = None,
    prices: Prices | tuple[float, float] | None = None,
    seed: int = 42,
) -> LabelCheck:
    """Find the rows that are probably labelled wrongly, one class a row, and write them to a file.

    Args:
        data: labelled rows.
        teacher: whose probabilities tell: one of `nlpkd.teachers`, or a path or Hub id of a classifier, which must not
            have learned from these rows. If None, a logistic regression on words and pairs of words learns from four
            fifths of the rows what it tells of the others.
        output: a .csv, .jsonl or .parquet file of them.
        text_column: the text's column; recognised by its usual names if None.
        label_column: the label's column, likewise.
        split: of the data, the one to check, by its name. If None "train", or the only one that there is; a warning
            names the others, which are not checked.
        max_requests: of one of `nlpkd.teachers`, whose answers are kept beside the output: the most requests of this
            run; see `nlpkd.label`, as for the next two.
        max_cost: the most that all answers may cost.
        prices: of a million tokens of prompts and of answers.
        seed: of the folds.

    Returns:
        What was found.

    Raises:
        ValueError: if the rows do not have one class each, no row has a label, the teacher has other classes or
            another task, or reads single texts where these are pairs; if there is no such split, or several could be
            meant; if `output` is the file of the rows; without a teacher, if a class has fewer than five rows, or too
            few rows have words.
    """
    output = None if output is None else Path(output)
    if output is not None and output.suffix not in _WRITERS:
        raise ValueError(f"output must be one of {', '.join(_WRITERS)}, got {output}")
    if output is not None:
        refuse_as_output(output, data=data)
    limits = SpendingLimits.of(max_requests, max_cost, prices)
    if limits != SpendingLimits() and (output is None or not isinstance(teacher, LabelingTeacher)):
        raise ValueError(
            "max_requests, max_cost and prices are of one of nlpkd.teachers whose answers are kept beside the output: "
            "give both, or leave them out"
        )
    _refuse_other_task(teacher)
    names = teacher.classes if isinstance(teacher, LabelingTeacher) else ()
    rows, split = read_one_split(data, split, how="give its name as split=")
    with without_training_words(rows):
        columns = find_columns(rows.column_names, text_column, None, label_column)
        for column in columns.texts:
            check_texts(rows, "train", column)
        refuse_numbers({split or "train": rows}, columns.label, SINGLE_LABEL, names, "teacher has")
        targets = encode_targets(DatasetDict({"train": rows}), columns.label, None, names)
    if targets.problem_type != SINGLE_LABEL:
        raise ValueError(f"labels are checked where each row has one class, and these are {targets.problem_type}")
    if isinstance(teacher, LabelingTeacher) and columns.text_pair is not None:
        raise ValueError(
            f"the teacher reads single texts, and these rows are pairs ({' and '.join(columns.texts)}): give a "
            "classifier of pairs by its path, leave the teacher out, or name one text as text_column"
        )
    labels = np.array(targets.splits["train"]["labels"][:])
    known = np.flatnonzero(~is_unlabelled(labels))
    if not len(known):
        raise ValueError(f"none of the {len(labels)} rows has a label: {columns.label} is {UNLABELLED} in all of them")
    texts = rows.select_columns(columns.texts).select(known)
    asked = ["\n".join(each) for each in zip(*(texts[column][:] for column in columns.texts), strict=True)]
    given = labels[known]
    # Probabilities in the order of the labels' ids.
    who = "the teacher"
    if teacher is None:
        found, who = _out_of_fold(asked, given, targets.names, seed), "a model that did not learn from this row"
    elif not isinstance(teacher, LabelingTeacher):
        found = _of_classifier(teacher, texts, given, targets.names)
    else:
        called = named_by_numbers(targets.names, teacher.classes)
        places = _places(called, Classes.of(teacher.classes), by_name=True)
        answers = None if output is None else answers_beside(output, teacher)
        numbered = [f"row {row}" for row in known]
        found = asked_probabilities(teacher, asked, answers, limits, numbered)[:, places]
        answered = np.flatnonzero(~np.isnan(found).any(axis=1))
        known, given, found = known[answered], given[answered], found[answered]
        asked = [asked[place] for place in answered]
    # The rows, with the reason.
    means = {each: float(found[given == each, each].mean()) for each in np.unique(given)}
    listed = []
    for place in probably_wrong(given, found):
        label, proposed = int(given[place]), int(found[place].argmax())
        name, other = targets.names[label], targets.names[proposed]
        theirs, best = float(found[place, label]), float(found[place, proposed])
        usual = f"rows labelled {name!r} get {means[label]:.2f} for it on average"
        reason = f"{who} gives {name!r} {theirs:.3f} and {other!r} {best:.3f}; {usual}"
        listed.append(Mislabelled(int(known[place]), asked[place], name, other, theirs, best, reason))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        columns_of_file = {field.name: [getattr(each, field.name) for each in listed] for field in fields(Mislabelled)}
        with atomic_file(output) as file:
            _WRITERS[output.suffix](Dataset.from_dict(columns_of_file), file)
    return LabelCheck(len(known), listed, output, split)


_WRITERS: Mapping[str, Callable[[Dataset, BinaryIO], int]] = {
    ".csv": Dataset.to_csv,
    ".jsonl": Dataset.to_json,
    ".parquet": Dataset.to_parquet,
}


def _refuse_other_task(teacher: LabelingTeacher | str | Path | None) -> None:
    """Refuse a teacher that does not give a text one of several classes, before anything is asked of it."""
    wanted = "a check of labels"
    if isinstance(teacher, LabelingTeacher):
        refuse_other_than_one_class(teacher, wanted, str(teacher.describe()["name"]))
    elif teacher is not None:
        refuse_other_than_one_class(ModelSource.of(str(teacher), None, False).config(), wanted, str(teacher))


def _out_of_fold(texts: Sequence[str], labels: np.ndarray, names: Sequence[str], seed: int) -> np.ndarray:
    """Predict each row by a model of the other folds, `(rows, classes)`."""
    counts = np.bincount(labels, minlength=len(names))
    present = np.flatnonzero(counts)
    if counts[present].min() < FOLDS:
        rare = names[int(present[counts[present].argmin()])]
        raise ValueError(f"class {rare!r} has fewer than {FOLDS} rows: leave it out, or give a teacher")
    model: Any = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD.pattern),
        LogisticRegression(max_iter=1000),
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities = np.zeros((len(texts), len(names)))
    splits = list(folds.split(texts, labels))
    if not all(any(_WORD.search(texts[row]) for row in learned) for learned, _ in splits):
        raise ValueError("too few rows have words to learn from, only signs or nothing: give a teacher")
    probabilities[:, present] = cross_val_predict(model, list(texts), labels, cv=splits, method="predict_proba")
    return probabilities


def _of_classifier(path: str | Path, texts: Dataset, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Predict all rows, of one or two columns, by a fine-tuned classifier: `(rows, classes)` in the names' order."""
    source = ModelSource.of(str(path), None, False)
    model, tokenizer = source.teacher("float32"), source.tokenizer()
    rows = {name: texts[column][:] for name, column in zip(("text", "text_pair"), texts.column_names, strict=False)}
    rows["label"] = [names[label] for label in labels]
    pair = "text_pair" if "text_pair" in rows else None
    read = DataArguments(text_column="text", text_pair_column=pair, label_column="label")
    loaded, _, _ = load_rows_for_model(Dataset.from_dict(rows), model.config, tokenizer=tokenizer, data_args=read)
    logits = predict_logits(model, loaded, tokenizer).astype(np.float64)
    config: Any = model.config
    classes = Classes.of(config.id2label)
    # Sorted, so that sums over classes are rounded alike whatever order the teacher has.
    ranked = sorted(range(len(classes)), key=lambda place: classes.names[place])
    found = softmax(logits[:, ranked], axis=1)
    return found[:, [ranked.index(place) for place in _places(names, classes)]]


def _places(names: Sequence[str], classes: Classes, *, by_name: bool = False) -> list[int]:
    """Return where a teacher has each class of the rows: by name, and where names say nothing by place."""
    told = f"the labels are {list(names[:20])}, the teacher's classes {list(classes.names[:20])}"
    if by_name and set(names) <= set(classes.names):
        return [classes.names.index(name) for name in names]
    try:
        order = classes.positions_of(Classes.of(names))
    except ValueError as error:
        raise ValueError(f"{told}: {error}") from error
    if order is None and by_name:
        raise ValueError(f"{told}: give the labels these names")
    return list(range(len(names))) if order is None else order
