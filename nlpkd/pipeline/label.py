"""Label texts with a teacher once, and keep every answer as it comes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, Value
from filelock import FileLock, Timeout

from nlpkd.data.arguments import DataArguments
from nlpkd.data.columns import check_texts, find_text_column
from nlpkd.data.sources import Source, read_splits
from nlpkd.teachers.base import FunctionTeacher, LabelingTeacher, as_probabilities

logger = logging.getLogger(__name__)

PROBABILITIES, TEACHER, QUESTION = "probabilities", "teacher", "question"
"""The columns that labelling adds to the rows."""


def label_training_rows(
    teacher: LabelingTeacher, train: Source, output: Path, asked: DataArguments
) -> tuple[Source, DataArguments]:
    """Let a teacher label the training rows of a distillation.

    Args:
        teacher: the teacher.
        train: the training rows, which need no label column; the other splits that they bring stay as they are.
        output: the parquet file that is written; answers of an earlier run with the same file are not asked again.
        asked: how rows are read.

    Returns:
        The labelled rows, and how they are read: with the teacher's answers as soft labels.

    Raises:
        ValueError: if soft labels, streaming or pairs are asked for too, or the rows can't be labelled.
    """
    if asked.soft_label_column is not None or asked.streaming or asked.text_pair_column is not None:
        raise ValueError(
            "a teacher that labels texts reads single texts that fit into memory, and gives the soft labels "
            "itself: leave soft_label_column, streaming and text_pair_column out"
        )
    splits, _ = read_splits(train, None, None, asked.dataset_config, asked.dataset_revision)
    # One process asks, the others find all answers there.
    with PartialState().main_process_first():
        label(teacher, splits["train"], output=output, text_column=asked.text_column)
    labelled: Source = output
    if len(splits) > 1:
        splits["train"] = read_splits(output)[0]["train"]
        labelled = splits
    return labelled, replace(
        asked,
        soft_label_column=PROBABILITIES,
        problem_type=teacher.problem_type,
        label_names=teacher.classes,
        dataset_config=None,
        dataset_revision=None,
    )


@dataclass(frozen=True)
class LabelPlan:
    """What a labelling will ask.

    Attributes:
        rows: of the source.
        texts: that differ; each is asked about once.
        known: of these, how many have been answered by an earlier run.
        calls: of the teacher that are left; of a server these are requests.
        letters: of the texts that are left, from which tokens (about a quarter) and cost can be estimated.
    """

    rows: int
    texts: int
    known: int
    calls: int
    letters: int

    def to_text(self) -> str:
        """Return one line for each number."""
        return "\n".join(f"{name}: {value:,}" for name, value in asdict(self).items())


def label(
    teacher: LabelingTeacher | Callable[[list[str]], Any],
    source: Source,
    *,
    output: str | Path,
    text_column: str | None = None,
    classes: Sequence[str] | None = None,
    max_requests: int | None = None,
    dry_run: bool = False,
) -> Path | LabelPlan:
    """Label texts with a teacher, for `nlpkd.distill(train=output, soft_label_column="probabilities")`.

    Every answer is appended to `OUTPUT.answers.jsonl` as it comes. A run that was stopped goes on from there and asks
    nothing again that has been answered; `output` is written when all rows have answers.

    Args:
        teacher: one of `nlpkd.teachers`, or any function from a list of texts to `(texts, classes)` probabilities.
        source: the texts: a file, a Hub id or rows in memory; its train split, without a label column.
        output: the parquet file: the source's columns, `probabilities` (one for each class by its name), `teacher`
            and `question`.
        text_column: the text's column; recognised by its usual names if None.
        classes: names of the classes, of a function.
        max_requests: stop with an error after so many calls of the teacher; what was answered is kept.
        dry_run: ask nothing, and return what would be asked.

    Returns:
        The output file; of a dry run the plan.

    Raises:
        ValueError: if the source can't be read, the answers that are there are another teacher's, an answer is no
            distribution (its row is named), or `max_requests` was reached.
    """
    teacher = _as_teacher(teacher, classes)
    output = Path(output)
    if output.suffix != ".parquet":
        raise ValueError(f"output must be a .parquet file, got {output}")
    # The texts, each one once.
    rows = read_splits(source)[0]["train"]
    column = find_text_column(rows.column_names, text_column)
    check_texts(rows, "train", column)
    if taken := {PROBABILITIES, TEACHER, QUESTION} & set(rows.column_names):
        raise ValueError(f"the rows have columns {sorted(taken)} already, which labelling adds: rename them")
    texts = rows[column][:]
    first_row: dict[str, int] = {}
    for row, text in enumerate(texts):
        first_row.setdefault(text, row)
    # What was answered before, and what is left.
    answers = AnswerFile(output.with_name(output.name + ".answers.jsonl"), teacher)
    if dry_run:
        return _plan(texts, list(first_row), answers.read(), teacher)
    output.parent.mkdir(parents=True, exist_ok=True)
    with _alone(answers.path):
        known = answers.read()
        groups = _groups([text for text in first_row if _key(text) not in known], teacher.rows_per_call)
        allowed = groups if max_requests is None else groups[:max_requests]
        # Ask, and keep.
        with answers.append() as file:
            for group, found in _asked(teacher, allowed, first_row):
                known |= answers.write(file, group, found)
    if len(allowed) < len(groups):
        raise ValueError(
            f"max_requests={max_requests} was reached: {len(groups) - len(allowed)} calls are left of "
            f"{len(groups)}. The answers are kept in {answers.path}; run again to go on"
        )
    _write(output, rows, [known[_key(text)] for text in texts], teacher)
    logger.warning("%d rows labelled by %s: %s", len(rows), teacher.describe()["name"], output)
    return output


class AnswerFile:
    """Answers of one teacher, a line of JSON each, after a first line that says whose they are.

    Args:
        path: the file.
        teacher: whose answers it holds.
    """

    def __init__(self, path: Path, teacher: LabelingTeacher):
        self.path = path
        self.owner = {"classes": list(teacher.classes), "teacher": json.loads(json.dumps(teacher.describe()))}

    def read(self) -> dict[str, list[float]]:
        """Return the answers by the texts' hashes; a last line that was cut short by a kill is dropped.

        Raises:
            ValueError: if they are another teacher's.
        """
        if not self.path.exists():
            return {}
        lines = self.path.read_bytes().split(b"\n")[:-1]
        if lines and json.loads(lines[0]) != self.owner:
            raise ValueError(
                f"{self.path} holds the answers of another teacher or question ({lines[0].decode()[:300]}): delete "
                "it, or give another output"
            )
        return {key: values for key, values in map(json.loads, lines[1:])}

    def append(self) -> IO[bytes]:
        """Open the file for further answers, behind its last whole line."""
        file = open(self.path, "a+b")  # noqa: SIM115
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        if end == 0:
            file.write(json.dumps(self.owner).encode() + b"\n")
            file.flush()
        return file

    @staticmethod
    def write(file: IO[bytes], texts: Sequence[str], found: np.ndarray) -> dict[str, list[float]]:
        """Append answers, which a kill of this process no longer loses; return them as `read` does."""
        new = {_key(text): row.tolist() for text, row in zip(texts, found, strict=True)}
        file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in new.items()))
        file.flush()
        return new


def _groups(texts: Sequence[str], size: int) -> list[list[str]]:
    return [list(texts[start : start + size]) for start in range(0, len(texts), size)]


def _plan(rows: Sequence[str], texts: Sequence[str], known: Mapping[str, Any], teacher: LabelingTeacher) -> LabelPlan:
    left = [text for text in texts if _key(text) not in known]
    calls = len(_groups(left, teacher.rows_per_call))
    return LabelPlan(len(rows), len(texts), len(texts) - len(left), calls, sum(map(len, left)))


def _as_teacher(teacher: Any, classes: Sequence[str] | None) -> LabelingTeacher:
    if isinstance(teacher, LabelingTeacher):
        return teacher
    if not callable(teacher) or classes is None:
        raise ValueError(
            f"teacher must be one of nlpkd.teachers, or a function on a list of texts with classes= beside it; got "
            f"{teacher!r:.100} and classes={classes!r}"
        )
    return FunctionTeacher(teacher, classes)


def _asked(teacher: LabelingTeacher, groups: Sequence[list[str]], first_row: Mapping[str, int]) -> Any:
    """Yield each group of texts with its answers, in the order in which they come.

    Never more than `teacher.concurrency` calls run. After an error no further call is made; those that run are
    waited for and yielded before it is raised.
    """
    waiting = iter(groups)
    failed: ValueError | None = None
    with ThreadPoolExecutor(teacher.concurrency) as pool:
        running: dict[Future[np.ndarray], list[str]] = {}
        while True:
            while failed is None and len(running) < teacher.concurrency and (group := next(waiting, None)):
                running[pool.submit(teacher.probabilities, group)] = group
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                group = running.pop(future)
                try:
                    found = as_probabilities(future.result(), len(group), teacher.classes, teacher.problem_type)
                except ValueError as error:
                    where = first_row[group[0]]
                    which = f"row {where}" if len(group) == 1 else f"{len(group)} texts from row {where} on"
                    failed = failed or ValueError(f"{which} ({group[0]!r:.80}): {error}")
                    continue
                yield group, found
    if failed is not None:
        raise failed


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _write(output: Path, rows: Dataset, answers: Sequence[Sequence[float]], teacher: LabelingTeacher) -> None:
    """Write the rows with their answers, under a temporary name first."""
    described, names = teacher.describe(), teacher.classes
    probabilities = [dict(zip(names, answer, strict=True)) for answer in answers]
    question = json.dumps(described["question"], ensure_ascii=False)
    rows = rows.add_column(PROBABILITIES, probabilities, feature={name: Value("float32") for name in names})
    rows = rows.add_column(TEACHER, [str(described["name"])] * len(rows))
    rows = rows.add_column(QUESTION, [question] * len(rows))
    unfinished = output.with_name(output.name + ".unfinished")
    rows.to_parquet(unfinished)
    unfinished.replace(output)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other labellings from the same answers."""
    try:
        with FileLock(path.with_name(path.name + ".lock"), timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another run appends to {path}: wait for it, or give another output") from None
