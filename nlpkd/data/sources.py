"""Labelled text from files, the Hub, or rows in memory, as splits; nothing is guessed about its values."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from datasets import Dataset, DatasetDict, Features, Value, load_dataset

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import usual_form
from nlpkd.data.files.readers import SUFFIXES, read_table
from nlpkd.data.files.tables import MayRead, check_names, dataset_of, table_of, table_of_frame
from nlpkd.data.rows import describe_rows
from nlpkd.utils.disk.files import digest_of
from nlpkd.utils.field_types import plain_arguments, with_home
from nlpkd.utils.fingerprints import hash_value
from nlpkd.utils.hub_requests import limit_hub_requests

logger = logging.getLogger(__name__)


Rows: TypeAlias = Dataset | pd.DataFrame | Sequence[Mapping[str, Any]]
"""Rows in memory."""


Source: TypeAlias = str | os.PathLike[str] | DatasetDict | Rows


MAY_READ = DataArguments().may_read
"""Which columns may be read where nobody names one: those of usual names."""


SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


MEASURED_SPLITS = ("test", "validation", "train")
"""Where rows are measured on, the first of these that is there."""


FITTED_SPLITS = ("validation", "test", "train")
"""Where something is fitted before others are measured, the first of these that is there."""


@plain_arguments
def read_splits(
    train: Source,
    validation: Source | None = None,
    test: Source | None = None,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
    may_read: MayRead = MAY_READ,
) -> tuple[DatasetDict, str]:
    """Read the sources of up to three splits.

    Args:
        train: a csv, tsv (quotes are plain characters, as GLUE has them), json, jsonl or parquet file, a Hub id
            (``id`` or ``id@revision``), a Dataset, a DatasetDict (it and the Hub bring their other splits), a pandas
            DataFrame or a list of dicts.
        validation: the validation rows, the same kinds; wins over what ``train`` brings.
        test: the test rows, the same kinds; wins over what ``train`` brings.
        dataset_config: the configuration of the Hub dataset that ``train`` names.
        dataset_revision: the branch, tag or commit of the Hub dataset that ``train`` names.
        may_read: whether a column of a name may be one that is read; of usual names by default. Another one that no
            data set can hold is left out with a warning.

    Returns:
        The splits, untouched, under "train", "validation" and "test", and a name for the record.

    Raises:
        ValueError: a source that is missing, empty, unreadable or of an unknown kind.
        ConnectionError: the Hub can't be reached.
    """
    splits = _train_splits(read_source(train, dataset_config, dataset_revision, may_read))
    for role, source in (("validation", validation), ("test", test)):
        if source is not None:
            splits[role] = _one_split(read_source(source, may_read=may_read), role)
    for role, split in splits.items():
        if len(split) == 0:
            raise ValueError(f"The {role} split has no rows: check its source.")
        if split.format["type"] == "custom":
            raise ValueError(
                f"The {role} split has a transform (set_transform, with_transform), which makes its rows as they are "
                "read: apply it with rows.map(...), or take it off with rows.with_format(None)."
            )
    names = dict.fromkeys(name_of(source) for source in (train, validation, test) if source is not None)
    return DatasetDict({role: _plain(split) for role, split in splits.items()}), ", ".join(names)


def _plain(data: Dataset) -> Dataset:
    """Take a format off, and give texts that Arrow keeps as views the type that everybody reads."""
    data = data.with_format(None)
    views = {name: Value("string") for name, feature in data.features.items() if feature == Value("string_view")}
    return data.cast(Features({**data.features, **views})) if views else data


def _train_splits(data: Dataset | DatasetDict) -> dict[str, Dataset]:
    if isinstance(data, Dataset):
        return {"train": data}
    splits = {}
    for role in SPLIT_NAMES:
        found = _called(data, role)
        if len(found) > 1:
            raise ValueError(f"Several splits could be the {role} split: {found}. Keep one in the DatasetDict.")
        if found:
            splits[role] = data[found[0]]
    if "train" not in splits:
        raise ValueError(f"There is no 'train' split; found {sorted(data)}. Pass the split you want as train=.")
    unused = sorted(set(data).difference(*(_called(data, role) for role in SPLIT_NAMES)))
    if unused:
        logger.warning("Splits not used: %s. Pass one as validation= or test= if you need it.", ", ".join(unused))
    return splits


def _called(data: DatasetDict, role: str) -> list[str]:
    """Return the splits that have a role by their names, in any case."""
    return [split for split in data if usual_form(str(split)) in SPLIT_NAMES[role]]


def _one_split(data: Dataset | DatasetDict, role: str) -> Dataset:
    if isinstance(data, Dataset):
        return data
    found = _called(data, role) or list(data)
    if len(found) != 1:
        raise ValueError(f"Can't tell which split is the {role} split: {sorted(data)}. Pass one Dataset as {role}=.")
    return data[found[0]]


def _is_hub_id(source: Source) -> bool:
    """Check whether a source is a Hub id: at most ``user/name``, without a file's suffix, and nothing local."""
    if not isinstance(source, str):
        return False
    looks_local = source.startswith((".", "~", "/")) or "\\" in source or source.count("/") > 1
    is_file_name = Path(source).suffix.lower() in (*SUFFIXES, ".txt", ".xlsx")
    return not (looks_local or is_file_name or Path(source).exists())


def name_of(source: Source) -> str:
    """Return a source's name for a record: a Hub id, or a file without its folder."""
    if not isinstance(source, (str, os.PathLike)):
        return "in-memory data"
    return str(source) if _is_hub_id(source) else Path(source).name


def has_splits(source: Source) -> bool:
    """Check whether a source has splits by names: a Hub dataset and a DatasetDict, no file and no rows in memory.

    Args:
        source: as for `read_splits`.

    Returns:
        False of one set of rows, which is read under a name of a split that it does not have.
    """
    return isinstance(source, DatasetDict) or _is_hub_id(source)


def refuse_as_output(output: str | os.PathLike[str], **sources: Source | None) -> None:
    """Refuse to write a file that rows are read from, by whatever path or link.

    Args:
        output: the file that would be written.
        **sources: where the rows are read from, by the names of the arguments that say so.

    Raises:
        ValueError: if it is one of them.
    """
    for name, source in sources.items():
        if not isinstance(source, (str, os.PathLike)):
            continue
        rows, written = Path(with_home(source)), Path(output)
        if rows.exists() and written.exists() and rows.samefile(written):
            raise ValueError(
                f"{name}={str(source)!r} is the file {str(output)!r}, which would be overwritten: choose another one "
                "for the output"
            )


def identity_of_source(source: Source) -> str:
    """Tell a source from every other one, so that what was made of it is not taken for another's.

    Args:
        source: as for `read_splits`, or a file of any other kind.

    Returns:
        Of a file and of rows in memory a hash of their content, of a Hub id the id.
    """
    if isinstance(source, (str, os.PathLike)):
        return digest_of(Path(source)) if Path(source).is_file() else str(source)
    found = read_source(source)
    splits = found if isinstance(found, DatasetDict) else {"": found}
    return hash_value(
        {role: [str(rows.features), describe_rows(rows, rows.column_names, role)] for role, rows in splits.items()}
    )


def read_source(
    source: Source,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
    may_read: MayRead = MAY_READ,
) -> Dataset | DatasetDict:
    """Read a source as it is: one set of rows, or splits by their own names.

    Args:
        source: as for `read_splits`, like all others.
        dataset_config: likewise.
        dataset_revision: likewise.
        may_read: likewise.

    Returns:
        The rows, untouched.

    Raises:
        ValueError: a source that is missing, unreadable or of an unknown kind.
        ConnectionError: the Hub can't be reached.
    """
    if not _is_hub_id(source) and (dataset_config or dataset_revision):
        raise ValueError(
            f"dataset_config and dataset_revision belong to a Hub dataset, but {name_of(source)} is not a Hub id: "
            "leave them out."
        )
    if isinstance(source, (Dataset, DatasetDict)):
        return source
    if isinstance(source, pd.DataFrame):
        return _from_frame(source, may_read)
    if isinstance(source, (list, tuple)):
        return dataset_of(table_of(list(source), "the list", may_read), "the list", may_read)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"Can't read data from a {type(source).__name__}: pass a path, a Hub id, a Dataset, a DatasetDict, a "
            "DataFrame of pandas, or a list of dicts."
        )
    if _is_hub_id(source):
        return _from_hub(str(source), dataset_config, dataset_revision)
    return dataset_of(read_table(source, may_read), str(source), may_read)


def _from_frame(frame: pd.DataFrame, may_read: MayRead) -> Dataset:
    repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if repeated or not all(isinstance(name, str) for name in frame.columns):
        raise ValueError(
            f"The columns of the DataFrame, {list(frame.columns)}, must be different strings: name them with "
            "frame.columns = [...]."
        )
    check_names(list(frame.columns), "The DataFrame")
    return dataset_of(table_of_frame(frame, may_read), "the DataFrame", may_read)


def _from_hub(name: str, dataset_config: str | None, dataset_revision: str | None) -> DatasetDict:
    repo, _, named_revision = name.partition("@")
    if named_revision and dataset_revision and named_revision != dataset_revision:
        raise ValueError(
            f"Two revisions of {repo}: {named_revision!r} in its id and dataset_revision={dataset_revision!r}. "
            "Give one."
        )
    limit_hub_requests()
    try:
        return load_dataset(repo, dataset_config, revision=named_revision or dataset_revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"The Hugging Face Hub can't be reached, so the dataset {repo!r} can't be loaded ({error}). Without a "
            "network: `make demo`, or give local files."
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{repo!r} is neither a file here nor a dataset you can read on the Hub: {error}") from error


@contextmanager
def without_training_words(source: Source, labels: Sequence[str] = ()) -> Iterator[None]:
    """Call rows that are measured on "the data" in errors: a single set is read as "train", and nobody trains on it.

    Args:
        source: the rows; those of several splits keep the splits' names.
        labels: of the model that is measured; where rows of one label or score make no task, this is what they lack.

    Yields:
        Nothing.

    Raises:
        ValueError: what was raised meanwhile, in these words.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(source, DatasetDict) or (isinstance(source, str) and not Path(source).exists()):
            raise
        told = re.sub(r"(?i)\b(the) train (split|set)\b", r"\1 data", str(error))
        told = re.sub(r"\btrain (rows?)\b", r"\1", told)
        if labels:
            told = told.replace("there is nothing to classify", f"the labels of the model are {list(labels[:20])}")
            told = told.replace("there is nothing to learn", "that leaves no correlation to measure")
        raise ValueError(told) from None
