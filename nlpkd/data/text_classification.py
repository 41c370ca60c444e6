"""Any source of labelled text as tokenised splits, with what the task is."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import LABEL_NAMES, Columns, check_texts, find_columns, usual_form
from nlpkd.data.label_names import adopt_label_names, align_labels_to_student, name_classes, name_numbers
from nlpkd.data.labels import encode_targets
from nlpkd.data.labels.classes import Classes, ClassWeights
from nlpkd.data.labels.labellers import other_labellers
from nlpkd.data.one_split import read_measured_rows, without_hidden_test
from nlpkd.data.rows import class_counts
from nlpkd.data.soft_labels import add_missing_label_columns, add_soft_labels, take_soft_labels
from nlpkd.data.sources import MEASURED_SPLITS, Source, read_splits, without_training_words
from nlpkd.data.splits.held_out import hold_out_validation, tell_contradictions
from nlpkd.data.streaming import TextStream, column_names
from nlpkd.data.tokenization import TeacherTokenizers, TextEncoder, is_made_here, known_tokenizers, resolve_max_length
from nlpkd.data.windows import cut_into_windows
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextClassificationData:
    """Tokenised splits and the task that their labels make.

    Attributes:
        splits: data sets ("train" of a stream is a `TextStream`): "train" and, where given, "validation" and "test";
            columns: input_ids, attention_mask, token_type_ids where the tokenizer gives them or texts are pairs, the
            same with the prefix ``teacher_`` where the teacher has a tokenizer of its own (``teacher_2_``, ... for
            further ones of several teachers), labels (a ClassLabel; zeros and ones, one a label; or a score), length
            (student tokens), document (of windows alone: the row number of their text) and the texts.
        text_column: the column of the text.
        text_pair_column: the column of the second text, or None.
        label_column: the label's column in the source, or one for each label; in ``splits`` it is always "labels".
        problem_type: the task, by the name that ``config.problem_type`` has for it.
        id2label: the classes' names by id.
        truncated: for each split, the rows that are longer than ``max_length`` student tokens; of a teacher with a
            tokenizer of its own under its columns' prefix, as "teacher_train".
        max_length: the most tokens a row may have, special tokens included.
        name: the source, for the record: a Hub id, files without their directory, or "in-memory data".
        window_stride: the tokens that the windows of a longer text share; None where it is truncated.
        other_labellers: see `nlpkd.data.labels.labellers.other_labellers`.
    """

    splits: dict[str, Any]
    text_column: str
    text_pair_column: str | None
    label_column: str | tuple[str, ...]
    problem_type: str
    id2label: dict[int, str]
    truncated: dict[str, int]
    max_length: int
    name: str
    window_stride: int | None = None
    other_labellers: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def text_columns(self) -> list[str]:
        """The columns of the texts: one, or two of pairs."""
        return [self.text_column] if self.text_pair_column is None else [self.text_column, self.text_pair_column]

    @property
    def reading(self) -> dict[str, Any]:
        """What a record says of how texts were read, by which they are read the same way again."""
        pairs = self.text_pair_column is not None
        return {"pairs": pairs, "max_length": self.max_length, "window_stride": self.window_stride}

    @property
    def arguments(self) -> dict[str, Any]:
        """The fields of `DataArguments` by which further rows of these columns are read in the same way."""
        columns = {"text_column": self.text_column, "text_pair_column": self.text_pair_column}
        lengths = {"max_length": self.max_length, "window_stride": self.window_stride}
        return columns | {"label_column": self.label_column} | lengths

    def __getitem__(self, split: str) -> Any:
        return self.splits[split]

    def __contains__(self, split: object) -> bool:
        return split in self.splits

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    @property
    def label2id(self) -> dict[str, int]:
        """The classes' ids by name."""
        return {label: number for number, label in self.id2label.items()}

    @property
    def num_labels(self) -> int:
        """How many classes or labels there are; 1 for a score."""
        return len(self.id2label)

    @property
    def class_weights(self) -> ClassWeights:
        """The weight of each class that makes rare ones count as much as common ones: rows / (classes * its rows).

        Raises:
            ValueError: if the task has no classes, or one of them no rows.
        """
        if self.problem_type != SINGLE_LABEL:
            raise ValueError(f"classes are balanced in single-label tasks, and this is {self.problem_type}")
        train, names = self.splits["train"], list(self.id2label.values())
        rows = class_counts(train, names)
        if 0 in rows:
            raise ValueError(f"class {names[rows.index(0)]!r} has no rows to balance: give a list of class_weights")
        return ClassWeights((sum(rows) / (len(rows) * each) for each in rows), Classes.of(names))


@plain_arguments
def load_text_classification(
    train: Source,
    validation: Source | None = None,
    test: Source | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: TeacherTokenizers = None,
    data_args: DataArguments | None = None,
    **keywords: Any,
) -> TextClassificationData:
    """Load labelled text from any source, check it, and tokenise it for the student and, if need be, the teacher.

    Args:
        train: a csv, tsv (quotes are plain characters, as GLUE has them), json, jsonl or parquet file, a Hub id
            (``id`` or ``id@revision``), a Dataset, a DatasetDict, a pandas DataFrame or a list of dicts.
        validation: the validation rows, the same kinds; wins over a validation split that comes with ``train``.
        test: the test rows, likewise.
        tokenizer: the student's tokenizer.
        teacher_tokenizer: the teacher's, or a list, one a teacher (None: the student's); each that differs in content
            from the student's, and from those before it, gets columns of its own.
        data_args: how the rows are read.
        **keywords: fields of `nlpkd.data.arguments.DataArguments`, such as `text_column`, in place of `data_args`.

    Returns:
        The tokenised splits and the task.

    Raises:
        ValueError: whatever is wrong with the input: what was found, where (split, row, column), and what to do.
        ConnectionError: the Hub can't be reached.
    """
    if data_args is not None and keywords:
        raise ValueError(f"give either data_args or single keywords, not both: got data_args and {sorted(keywords)}")
    own, _ = DataArguments.split_of(load_text_classification, keywords)
    asked = own if data_args is None else data_args
    tokenizers = [tokenizer, *known_tokenizers(teacher_tokenizer)]
    if asked.streaming:
        loaded = _stream_train(train, validation, test, tokenizers, asked)
    else:
        hub = asked.dataset_config, asked.dataset_revision
        splits, name = read_splits(train, validation, test, *hub, asked.may_read)
        loaded = _load_whole(splits, name, tokenizers, asked)
    return name_numbers(loaded, keywords.get("label_names", ()))


def _load_whole(
    splits: DatasetDict,
    name: str,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    asked: DataArguments,
    may_lack: bool = False,
) -> TextClassificationData:
    """Make splits that were read those of a task; `may_lack` is for rows that nothing is trained on."""
    # Keep the columns that are used.
    splits = splits if may_lack else without_hidden_test(splits, asked.label_column)
    named = asked.label_column is not None
    alone = may_lack and list(splits) == ["train"]  # What nothing is trained on is read as "train", and not called so.
    others = other_labellers(splits, asked.soft_label_column)
    splits, soft = take_soft_labels(splits, asked)
    if soft or asked.label_names:
        splits, asked = add_missing_label_columns(splits, asked, soft)
    columns = _find_columns(splits["train"].column_names, asked)
    splits = _select_columns(splits, columns, may_hide=not may_lack)
    # Settle the task by its labels; soft labels become logits in their order.
    targets = encode_targets(splits, columns.label, asked.problem_type, asked.label_names, may_lack, named)
    reason = targets.reason.replace(" of the train split", "") if alone else targets.reason
    _tell_kind(name, columns, targets.problem_type, reason)
    splits, id2label = targets.splits, Classes.of(targets.names).id2label
    for split in [each for each in splits if each in soft]:
        logits = add_soft_labels(soft[split], str(asked.soft_label_column), id2label, split, targets.problem_type)
        splits[split] = concatenate_datasets([splits[split], logits], axis=1)
    # Check the texts, hold out validation rows, and tokenise.
    _check_all_texts(splits, columns)
    if not may_lack and targets.problem_type != REGRESSION:
        tell_contradictions(splits["train"], columns.texts)
    if asked.validation_split is not None:
        splits = hold_out_validation(splits, columns.texts, asked.validation_split, alone=may_lack)
    max_length = resolve_max_length(asked.max_length, tokenizers, columns.text_pair is not None)
    if asked.window_stride is None:
        splits, truncated = _tokenise(splits, TextEncoder(columns, tokenizers, max_length), alone)
    else:
        splits = cut_into_windows(splits, columns, tokenizers, max_length, asked.window_stride)
        truncated = dict.fromkeys(splits, 0)
    # Say what the task was taken for.
    logger.warning(
        "%s: %s of %s, labels %r (%s), rows: %s",
        name,
        targets.problem_type,
        " and ".join(map(repr, columns.texts)),
        columns.label,
        _shortened(targets.names),
        ", ".join(f"{count:,}" if alone else f"{count:,} {split}" for split, count in splits.num_rows.items()),
    )
    return TextClassificationData(
        splits=splits,
        text_column=columns.text,
        text_pair_column=columns.text_pair,
        label_column=columns.label,
        problem_type=targets.problem_type,
        id2label=id2label,
        truncated=truncated,
        max_length=max_length,
        name=name,
        window_stride=asked.window_stride,
        other_labellers=others,
    )


def load_rows_for_model(
    data: Source,
    config: Any,
    *,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: TeacherTokenizers = None,
    data_args: DataArguments | None = None,
    splits: Sequence[str] = MEASURED_SPLITS,
) -> tuple[Any, str, TextClassificationData]:
    """Load labelled rows for a model that is there: of its task, with its label ids.

    Args:
        data: labelled rows; see `load_text_classification`.
        config: the model's; it takes the names of the rows' labels where its own carry no meaning.
        tokenizer: the model's tokenizer.
        teacher_tokenizer: of further models that read the rows, as for `load_text_classification`.
        data_args: how the rows are read; the task and label names are the model's where they are not given.
        splits: the first one that is there is taken; see `nlpkd.data.one_split.read_measured_rows`.

    Returns:
        The split's rows, its name, and all that was loaded.

    Raises:
        ValueError: if the rows can't be read, none of the splits is there, several could be meant, or labels are not
            the model's.
    """
    given = data_args or DataArguments()
    asked = given.with_labels_of(config)
    tokenizers = [tokenizer, *known_tokenizers(teacher_tokenizer)]
    measured = read_measured_rows(data, splits, asked)
    with without_training_words(measured.source, Classes.of(config.id2label).names):
        loaded = _load_whole(measured.splits, measured.name, tokenizers, asked, may_lack=True)
        loaded = name_classes(loaded, given.label_names, may_lack=True)
        rows = loaded[measured.key]
        adopt_label_names(config, rows)
        return align_labels_to_student(rows, config, measured.key), measured.split, loaded


def _stream_train(
    train: Source,
    validation: Source | None,
    test: Source | None,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    asked: DataArguments,
) -> TextClassificationData:
    """Stream the train rows; the other splits are read whole, with the classes of train."""
    unfit = (
        asked.soft_label_column,
        asked.validation_split,
        asked.window_stride is not None,
        asked.dataset_config,
        asked.dataset_revision,
        asked.problem_type not in (None, SINGLE_LABEL),
    )
    if any(unfit) or not isinstance(train, (str, os.PathLike)):
        raise ValueError(
            "streaming reads a file with one class a row: without soft labels, windows, validation_split and the "
            "Hub; give the validation set as a file of its own"
        )
    # The columns; the other splits are read whole.
    available = column_names(train)
    splits, name = read_splits([{"text": ""}], validation, test, may_read=asked.may_read)[0], Path(train).name
    del splits["train"]
    splits = without_hidden_test(splits, asked.label_column)
    try:
        columns = _find_columns(available, asked)
    except ValueError:
        if not asked.label_names or validation is None:
            raise
        # Text that nobody labelled: a teacher names the classes, and the held-out rows their column.
        lacking = [column for column in splits["validation"].column_names if column not in available]
        usual = [column for column in lacking if column == asked.label_column or usual_form(column) in LABEL_NAMES]
        columns = _find_columns([*available, *usual], asked)
        logger.warning("The train rows have no column %r: the teacher alone labels all.", columns.label)
    max_length = resolve_max_length(asked.max_length, tokenizers, columns.text_pair is not None)
    encode = TextEncoder(columns, tokenizers, max_length)
    # Read the train file through; its labels, together with the other splits', settle the classes.
    stream = TextStream.from_file(train, columns, encode.for_training(), asked, _select_columns(splits, columns))
    _tell_kind(name, columns, SINGLE_LABEL, stream.summary.reason)
    truncated = _report_truncated(stream.summary.truncated, "train", len(stream), max_length, "train")
    splits = stream.summary.held_out
    _check_all_texts(splits, columns)
    held_out, cut = _tokenise(splits, encode)
    told = name, SINGLE_LABEL, len(stream), columns.label, _shortened(stream.names)
    logger.warning("%s: %s, %d rows as a stream, labels %r (%s)", *told)
    return TextClassificationData(
        splits={"train": stream, **held_out},
        text_column=columns.text,
        text_pair_column=columns.text_pair,
        label_column=columns.label,
        problem_type=SINGLE_LABEL,
        id2label=Classes.of(stream.names).id2label,
        truncated=truncated | cut,
        max_length=max_length,
        name=name,
    )


def _find_columns(available: Sequence[str], asked: DataArguments) -> Columns:
    columns = find_columns(available, asked.text_column, asked.text_pair_column, asked.label_column)
    taken = sorted(filter(is_made_here, columns.texts))
    if taken:
        raise ValueError(f"A text column may not be called {taken[0]!r}, the name of a column made here: rename it.")
    return columns


def _select_columns(splits: DatasetDict, columns: Columns, may_hide: bool = True) -> DatasetDict:
    """Keep the columns that are used, the same ones in every split.

    A test split without labels is left out where it may hide them: where it is not what is measured on.
    """
    labels, kept = columns.labels, {}
    for split, data in splits.items():
        missing = [column for column in columns.names if column not in data.column_names]
        hidden = may_hide and split == "test" and missing == labels
        if missing and not hidden:
            raise ValueError(f"The {split} split has no column {missing[0]!r}; its columns are {data.column_names}.")
        if hidden:
            logger.warning("The test split is not used: it has no column %r.", labels[0])
            continue
        kept[split] = data.select_columns(columns.names)
    return DatasetDict(kept)


def _check_all_texts(splits: DatasetDict, columns: Columns) -> None:
    for split, data in splits.items():
        for column in columns.texts:
            check_texts(data, split, column)


def _tokenise(splits: DatasetDict, encode: TextEncoder, alone: bool = False) -> tuple[DatasetDict, dict[str, int]]:
    """Tokenise; count the rows that student or teacher don't see whole."""
    tokenised, truncated = DatasetDict(), dict[str, int]()
    for split, data in splits.items():
        called = "data" if alone else split
        own = encode.for_training() if called == "train" else encode
        tokenised[split] = data.map(own, batched=True, desc=f"Tokenising {called}")
        counts = own.truncated_of(tokenised[split])
        truncated |= _report_truncated(counts, split, len(data), own.max_length, called)
    return tokenised, truncated


def _report_truncated(counts: Mapping[str, int], split: str, rows: int, limit: int, called: str) -> dict[str, int]:
    """Warn of rows that lose tokens, and return the counts under the split's name."""
    for prefix, count in counts.items():
        if count:
            whose = " of the teacher's tokenizer" if prefix else ""
            told = f"{count:,} of {rows:,}"
            logger.warning("%s: %s rows truncated to %d tokens%s", called, told, limit, whose)
    return {prefix + split: count for prefix, count in counts.items()}


def _tell_kind(name: str, columns: Columns, problem_type: str, reason: str) -> None:
    """Say what the labels were taken for, where their values decided it."""
    kinds = {SINGLE_LABEL: "one class a row", MULTI_LABEL: "several labels a row", REGRESSION: "scores"}
    said = "%s: column %r holds %s: %s. Where they mean something else, set problem_type."
    if reason:
        logger.warning(said, name, columns.label, kinds[problem_type], reason)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
