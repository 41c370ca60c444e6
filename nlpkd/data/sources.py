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
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value, load_dataset

from nlpkd.data.readers import SUFFIXES, UNFIT, check_names, read_table, table_of, to_column
from nlpkd.data.rows import describe_rows
from nlpkd.utils.files import digest_of
from nlpkd.utils.fingerprints import hash_value
from nlpkd.utils.hub_requests import limit_hub_requests

logger = logging.getLogger(__name__)


Rows: TypeAlias = Dataset | pd.DataFrame | Sequence[Mapping[str, Any]]
"""Rows in memory."""


Source: TypeAlias = str | os.PathLike[str] | DatasetDict | Rows


SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def read_splits(
    train: Source,
    validation: Source | None = None,
    test: Source | None = None,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
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

    Returns:
        The splits, untouched, under "train", "validation" and "test", and a name for the record.

    Raises:
        ValueError: a source that is missing, empty, unreadable or of an unknown kind.
        ConnectionError: the Hub can't be reached.
    """
    if not _is_hub_id(train) and (dataset_config or dataset_revision):
        raise ValueError(
            "dataset_config and dataset_revision belong to a Hub dataset, but train is not a Hub id: leave them out."
        )
    splits = _train_splits(_read(train, dataset_config, dataset_revision))
    for role, source in (("validation", validation), ("test", test)):
        if source is not None:
            splits[role] = _one_split(_read(source), role)
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


def rows_without_train(
    source: Source, roles: Sequence[str], dataset_config: str | None = None, dataset_revision: str | None = None
) -> tuple[Dataset, str] | None:
    """Return the rows to measure on of a DatasetDict or Hub dataset that has no split to train on.

    Args:
        source: as for `read_splits`.
        roles: "train", "validation" and "test" in the order in which they are wanted.
        dataset_config: as for `read_splits`.
        dataset_revision: likewise.

    Returns:
        The rows of the first of the roles that is there, and the role; None where there is a split to train on, none
        of the roles, or a single set.
    """
    if not (isinstance(source, DatasetDict) or _is_hub_id(source)):
        return None
    found = _read(source, dataset_config, dataset_revision)
    if isinstance(found, Dataset) or not set(SPLIT_NAMES["train"]).isdisjoint(found):
        return None
    role = next((role for role in roles if not set(SPLIT_NAMES[role]).isdisjoint(found)), None)
    return None if role is None else (_one_split(found, role), role)


def _plain(data: Dataset) -> Dataset:
    """Take a format off, and give texts that Arrow keeps as views the type that everybody reads."""
    data = data.with_format(None)
    views = {name: Value("string") for name, feature in data.features.items() if feature == Value("string_view")}
    return data.cast(Features({**data.features, **views})) if views else data


def _train_splits(data: Dataset | DatasetDict) -> dict[str, Dataset]:
    if isinstance(data, Dataset):
        return {"train": data}
    splits = {}
    for role, names in SPLIT_NAMES.items():
        found = [name for name in names if name in data]
        if len(found) > 1:
            raise ValueError(f"Several splits could be the {role} split: {found}. Keep one in the DatasetDict.")
        if found:
            splits[role] = data[found[0]]
    if "train" not in splits:
        raise ValueError(f"There is no 'train' split; found {sorted(data)}. Pass the split you want as train=.")
    unused = sorted(set(data) - {name for names in SPLIT_NAMES.values() for name in names})
    if unused:
        logger.warning("Splits not used: %s. Pass one as validation= or test= if you need it.", ", ".join(unused))
    return splits


def _one_split(data: Dataset | DatasetDict, role: str) -> Dataset:
    if isinstance(data, Dataset):
        return data
    found = [name for name in SPLIT_NAMES[role] if name in data] or list(data)
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
        rows, written = Path(source).expanduser(), Path(output)
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
    found = _read(source)
    splits = found if isinstance(found, DatasetDict) else {"": found}
    return hash_value(
        {role: [str(rows.features), describe_rows(rows, rows.column_names, role)] for role, rows in splits.items()}
    )


def _read(
    source: Source, dataset_config: str | None = None, dataset_revision: str | None = None
) -> Dataset | DatasetDict:
    if isinstance(source, (Dataset, DatasetDict)):
        return source
    if isinstance(source, pd.DataFrame):
        return _from_frame(source)
    if isinstance(source, (list, tuple)):
        return Dataset(table_of(list(source), "the list"))
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"Can't read data from a {type(source).__name__}: pass a path, a Hub id, a Dataset, a DatasetDict, a "
            "DataFrame of pandas, or a list of dicts."
        )
    if _is_hub_id(source):
        return _from_hub(str(source), dataset_config, dataset_revision)
    return Dataset(read_table(source))


def _from_frame(frame: pd.DataFrame) -> Dataset:
    repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if repeated or not all(isinstance(name, str) for name in frame.columns):
        raise ValueError(
            f"The columns of the DataFrame, {list(frame.columns)}, must be different strings: name them with "
            "frame.columns = [...]."
        )
    check_names(list(frame.columns), "The DataFrame")
    try:
        return Dataset(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata())
    except (*UNFIT, pa.ArrowException, TypeError) as error:
        for name, column in frame.items():
            to_column(column.astype(object).where(column.notna(), None).tolist(), str(name), "the DataFrame")
        raise ValueError(
            f"The DataFrame can't be read: {' '.join(map(str, error.args))}: make it one type."
        ) from error


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
            "network: `make demo`, or your own files with --train_file FILE --validation_file FILE."
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{repo!r} is neither a file here nor a dataset you can read on the Hub: {error}") from error


@contextmanager
def without_training_words(source: Source) -> Iterator[None]:
    """Call rows that are measured on "the data" in errors: a single set is read as "train", and nobody trains on it.

    Args:
        source: the rows; those of several splits keep the splits' names.

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
        raise ValueError(re.sub(r"\btrain (rows?)\b", r"\1", told)) from None
