"""Texts as numbers that are equal where a reader would call the texts equal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from nlpkd.data.splits.plain_text import plain_texts

_ROWS = 10_000


def text_hashes(rows: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Hash the text of each row, so that texts which differ in case, blanks and Unicode form alone have one hash.

    Equal are those whose `nlpkd.data.splits.plain_text.plain_text` is.

    Args:
        rows: of any format.
        columns: of the texts, one or two.

    Returns:
        Numbers of 64 bits, `(rows,)`.
    """
    digests: list[bytes] = []
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(_ROWS):
        texts = _plain(table, columns).cast(pa.large_binary()).to_pylist()
        digests += [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _plain(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Join the plain texts of each row."""
    filled = (pc.fill_null(table.column(name).combine_chunks().cast(pa.large_string()), "") for name in columns)
    between = pa.scalar("\n", pa.large_string())
    return reduce(lambda one, other: pc.binary_join_element_wise(one, other, between), map(plain_texts, filled))
