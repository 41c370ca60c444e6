"""What a cache of teacher outputs takes besides the teacher: time and bytes by rows.

python tests/benchmarks/cache_growth.py --rows 100000 1000000
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from nlpkd import cache_teacher_outputs
from nlpkd.data.columns import TEACHER_LOGITS

LABELS = 2


def main() -> None:
    """Write, find again and read a cache for every number of rows, with a teacher that costs nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    print(
        "| rows | shards | bytes a row | written, s | found again, s | read in order, rows/s | read shuffled, rows/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            data = generated(rows, Path(folder))
            cache = Path(folder) / "cache"
            written, _ = timed(lambda: cached(data, cache))  # noqa: B023
            again, found = timed(lambda: cached(data, cache))  # noqa: B023
            shards = sorted(cache.glob("shard-*"))
            size = sum(path.stat().st_size for path in shards) / rows
            columns = found.select_columns([TEACHER_LOGITS])
            ordered, _ = timed(lambda: [len(batch[TEACHER_LOGITS]) for batch in columns.iter(256)])  # noqa: B023
            some = np.random.default_rng(0).permutation(rows)[:100_000]
            mixed, _ = timed(lambda: [columns[part.tolist()] for part in np.array_split(some, len(some) // 256)])  # noqa: B023
            print(
                f"| {rows:,} | {len(shards)} | {size:.1f} | {written:.1f} | {again:.1f} | {rows / ordered:,.0f} | "
                f"{len(some) / mixed:,.0f} |"
            )


def generated(rows: int, folder: Path) -> Dataset:
    """Texts of some 100 characters, in a file that is mapped into memory as a real one is."""
    Dataset.from_dict({"text": [f"{number:07d} " + "a text of words " * 6 for number in range(rows)]}).save_to_disk(
        folder / "texts"
    )
    return Dataset.load_from_disk(str(folder / "texts"))


def cached(data: Dataset, folder: Path) -> Dataset:
    """Cache what a function gives at no cost."""
    return cache_teacher_outputs(
        lambda texts: np.zeros((len(texts), LABELS), dtype=np.float32), data, cache_dir=folder,
        teacher_name="nothing",
    )  # fmt: skip


def timed(call):
    """Give the seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
