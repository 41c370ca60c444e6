"""How labelled text is read: the keywords that every function on data has in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from nlpkd.data.columns import LABEL_NAMES, PAIRS, TEXT_NAMES, usual_form
from nlpkd.data.labels.classes import Classes, NamesOfModel
from nlpkd.tasks import task_of
from nlpkd.utils.field_types import check_counts, check_field_types, check_share

OF_A_SOURCE = ("dataset_config", "dataset_revision", "validation_split")
"""Fields of `DataArguments` that say which rows of a source are read, and not how."""


@dataclass(frozen=True)
class DataArguments:
    """How labelled text is read. Functions of nlpkd take these fields as keywords of the same names.

    Attributes:
        text_column: the text's column; recognised by its usual names if None.
        text_pair_column: the second text's column; pairs are recognised where both columns of a usual pair are found.
        label_column: the label's column, or several (a 0 or 1 for each label); recognised by its usual names if None.
        soft_label_column: the training rows' column of soft labels, of an API or of voting people, which become the
            teacher's logits; see `nlpkd.data.soft_labels`.
        problem_type: the task, where labels (and teacher) should not say it; see `nlpkd.data.labels.encode_targets`.
        label_names: the labels in the order of their ids, as a model has them; rows may lack some of them. Labels
            that are numbers get these names.
        max_length: the most tokens of a row; the tokenizers' own limit, 512 at most, if None.
        window_stride: cut longer texts into windows of max_length tokens that share so many with the one before, each
            a row with its text's label; what is measured is a text's average. Longer texts are truncated if None.
        streaming: read the train file (jsonl, csv, tsv, parquet) as it is needed, in memory that doesn't grow with it;
            see `nlpkd.data.streaming.TextStream`. It then needs a validation set of its own.
        validation_split: the fraction (or number) of train rows to hold out, stratified, as the validation split.
            Where nothing is trained, that part is what is measured: the same texts as a training on these rows
            holds out.
        dataset_config: the configuration of the Hub dataset, such as "sst2" of "glue".
        dataset_revision: the branch, tag or commit of the Hub dataset.
    """

    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | Sequence[str] | None = None
    soft_label_column: str | None = None
    problem_type: str | None = None
    label_names: Sequence[str] = ()
    max_length: int | None = None
    window_stride: int | None = None
    streaming: bool = False
    validation_split: float | int | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None

    def __post_init__(self):
        """Refuse values of another type than their fields have, and shares that are none; the ValueError names one."""
        check_field_types(self)
        for least, name in ((1, "max_length"), (0, "window_stride")):
            if getattr(self, name) is not None:
                check_counts(least, **{name: getattr(self, name)})
        if isinstance(self.validation_split, Integral):
            check_counts(validation_split=self.validation_split)
        else:
            check_share("validation_split", self.validation_split)

    def may_read(self, column: str) -> bool:
        """Check whether a column may be one that is read: it is named, or has a usual name of what is not named."""
        labels = [self.label_column] if isinstance(self.label_column, str) else list(self.label_column or ())
        named = {self.text_column, self.text_pair_column, self.soft_label_column, *labels}
        texts = TEXT_NAMES.union(*PAIRS) if self.text_column is None else frozenset()
        return column in named or usual_form(column) in (texts if labels else texts | LABEL_NAMES)

    @classmethod
    def split_keywords(cls, keywords: Mapping[str, Any]) -> tuple[DataArguments, dict[str, Any]]:
        """Separate the keywords that are fields of this class from the others.

        Args:
            keywords: of a function that takes both, such as `nlpkd.distill`.

        Returns:
            The arguments, and the keywords that are left.
        """
        names = {field.name for field in fields(cls)}
        own = {name: value for name, value in keywords.items() if name in names}
        return cls(**own), {name: value for name, value in keywords.items() if name not in names}

    @classmethod
    def split_of_training(
        cls, function: Callable[..., Any], keywords: Mapping[str, Any]
    ) -> tuple[DataArguments, dict[str, Any]]:
        """Separate likewise the keywords of a function that trains: the others are fields of `DistillationConfig`.

        Args:
            function: whose keywords they are, such as `nlpkd.distill`.
            keywords: those that are no parameters of its own.

        Returns:
            The arguments, and the settings of the training.

        Raises:
            ValueError: for a keyword that is neither; it says which ones were probably meant.
        """
        return cls.split_of(function, keywords, training_settings(), "a setting of a training")

    @classmethod
    def split_of(
        cls, function: Callable[..., Any], keywords: Mapping[str, Any], known: Collection[str] = (), others: str = ""
    ) -> tuple[DataArguments, dict[str, Any]]:
        """Separate likewise the keywords of a function, and refuse those that nothing of it takes.

        Args:
            function: whose keywords they are, such as `nlpkd.evaluate`.
            keywords: those that are no parameters of its own.
            known: names that it takes beside those of this class.
            others: what these are, such as "a setting of a training".

        Returns:
            The arguments, and the keywords that are left, all of them known.

        Raises:
            ValueError: for a keyword that is neither; it says which ones were probably meant.
        """
        data_args, left = cls.split_keywords(keywords)
        names = sorted({*known, *inspect.signature(function).parameters, *(field.name for field in fields(cls))})
        for unknown in left.keys() - set(known):
            longer = [name for name in names if name.endswith(f"_{unknown}")]
            close = get_close_matches(unknown, longer or names, n=3 if longer else 1, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            told = (
                f"neither an argument of {function.__name__} nor {others}"
                if others
                else (f"no argument of {function.__name__}")
            )
            raise ValueError(f"{unknown!r} is {told}{hint}")
        return data_args, left

    def with_labels_of(self, config: Any) -> DataArguments:
        """Fill in the task and the label names of a model that is there, where they are not given.

        Args:
            config: the model's config.

        Returns:
            The arguments to read the model's rows with.

        Raises:
            ValueError: if a field is set that only rows to train on have.
        """
        if self.soft_label_column is not None or self.streaming:
            raise ValueError("soft_label_column and streaming are of training rows: leave them out")
        return replace(
            self,
            problem_type=self.problem_type or task_of(config),
            label_names=self.label_names or NamesOfModel(Classes.of(config.id2label).names),
        )


def training_settings() -> set[str]:
    """Name the settings of a training, by which `DistillationConfig` has them; `label_names` say how text is read."""
    from nlpkd.config import DistillationConfig

    return {field.name for field in fields(DistillationConfig)} - {field.name for field in fields(DataArguments)}
