"""A teacher's outputs on a whole data set: computed once, shared out over processes, kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, DatasetInfo, concatenate_datasets
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from nlpkd.config import fast_at_bf16
from nlpkd.data.columns import TEACHER_LOGITS
from nlpkd.data.labels.classes import Classes
from nlpkd.data.rows import formatted_as, is_plain
from nlpkd.data.soft_labels import PROBABILITY_FLOOR
from nlpkd.teachers.base import as_float64, classes_of_function
from nlpkd.teachers.checks import looks_like_probabilities
from nlpkd.teachers.runners import Finish, FunctionRunner, ModelRunner, Runner
from nlpkd.teachers.shards import ShardFolder
from nlpkd.utils.disk.locks import only_writer_if_any
from nlpkd.utils.field_types import plain_arguments

logger = logging.getLogger(__name__)


SHARD_ROWS = 4096
"""Rows of a shard: what a kill costs at most on each process."""


_SHARD_BYTES = 256e6


@plain_arguments
def cache_teacher_outputs(
    teacher: nn.Module | Callable[..., Any],
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    cache_dir: str | Path,
    order: Sequence[int] | None = None,
    hidden_states: Sequence[int] = (),
    budget_gb: float = 10.0,
    outputs: str = "logits",
    bf16: bool | None = None,
    batch_tokens: int | None = None,
    shard_rows: int = SHARD_ROWS,
    text_columns: Sequence[str] = ("text",),
    teacher_name: str | None = None,
) -> Dataset:
    """Run a teacher once on every row, and keep what it gives on disk.

    Shard k is computed by process k % processes. A call that was killed is taken up where it stopped, by any number
    of processes: shards that are there are checked and kept. The folder holds one cache; a call with another teacher,
    other tokens or another precision is refused. Of two runs on one folder the second waits for the first (with
    several processes, `ddp_timeout` at most).

    Args:
        teacher: a model, or any module or function that gives logits or probabilities `(rows, labels)`. A function is
            given a list of texts for each of `text_columns`, such as scikit-learn's `pipeline.predict_proba`. A module
            is moved to this process's device, and run in eval mode.
        dataset: the rows, the same on every process: tokenised for a module, which reads `teacher_input_ids`, ...
            where there are any, and else `input_ids`, ...
        tokenizer: of these columns: it says how a module's batches are padded.
        cache_dir: the folder, on a file system that all processes share; made where missing.
        order: order[k] is the index that the teacher gives the student's label k; its own order if None.
        hidden_states: layers (0: the embeddings) whose states to keep too, of each row's tokens, in bf16.
        budget_gb: the most that the cache may take, in GB (10^9 bytes).
        outputs: `"logits"`, or `"probabilities"`, whose logarithm is kept, after raising them to at least
            `PROBABILITY_FLOOR`.
        bf16: run a module in bf16 mixed precision; where the machine is fast at it, if None.
        batch_tokens: tokens of a module's batch, padding included; 512 of an ONNX file, 2,048 on a CPU, 16,384
            elsewhere.
        shard_rows: rows of a shard, and of a function's batch; more, where there would be more than `MOST_SHARDS`
            shards. A cache that is there keeps its own.
        text_columns: what a function reads.
        teacher_name: what tells a function from others, such as its name and version; required for one.

    Returns:
        The data set with a column `teacher_logits`, float32 of fixed length, which carries the names of the classes
        where the teacher's mean something (of `predict_proba` its estimator's `classes_`), and for each layer k asked
        for a column `teacher_hidden_states_k` of bytes, memory-mapped.

    Raises:
        ValueError: if the cache does not belong to this call (what differs is named) or is damaged (the shards are
            named), nothing tells an attribute of the teacher apart, the estimated size exceeds the budget, or the
            teacher gives NaN or not what `outputs` says.
    """
    _check_arguments(teacher, dataset, outputs, order, shard_rows)
    state = PartialState(cpu=not torch.accelerator.is_available())
    if isinstance(teacher, nn.Module):
        bf16 = fast_at_bf16(state.device.type == "cpu") if bf16 is None else bf16
        runner: Runner = ModelRunner(teacher, dataset, tokenizer, hidden_states, state.device, bf16, batch_tokens)
    else:
        runner = FunctionRunner(teacher, dataset, text_columns, teacher_name, hidden_states)
    # What the outputs depend on, and whether they fit.
    fingerprint = runner.fingerprint()
    size_gb = fingerprint.state_bytes / 1e9
    if size_gb > budget_gb:
        raise ValueError(
            f"the states of layers {list(hidden_states)} on {len(dataset)} rows take {size_gb:.3g} GB, more than "
            f"budget_gb={budget_gb:g}: raise it, ask for fewer layers, or cache logits alone"
        )
    if fingerprint.state_bytes:
        shard_rows = max(1, min(shard_rows, int(_SHARD_BYTES * len(dataset) / fingerprint.state_bytes)))
    parts = fingerprint.parts | {
        "the number of rows": len(dataset),
        "the label order": "the teacher's" if order is None or list(order) == sorted(order) else str(list(order)),
        "the kind of outputs": outputs,
        "the layers": str(sorted(set(hidden_states))),
    }
    # Compute the shards that are missing, each on one process, while other runs wait.
    path = Path(cache_dir)
    with only_writer_if_any(path, wait=True) if state.is_main_process else nullcontext():
        if state.is_main_process:
            ShardFolder.create(path, len(dataset), shard_rows, parts, fingerprint.explanations)
        state.wait_for_everyone()
        folder = ShardFolder.open(path, parts, fingerprint.explanations)
        missing = _missing_shards(folder, state)
        _compute(runner, folder, missing, outputs, order, state)
        state.wait_for_everyone()
    named = Classes.of_config(getattr(teacher, "config", None)) or classes_of_function(teacher)
    outputs_by_row = _with_class_names(folder.load(), named, order)
    cached = concatenate_datasets([dataset.with_format(None), outputs_by_row], axis=1)
    return formatted_as(cached, dataset, more=outputs_by_row.column_names)


def _with_class_names(columns: Dataset, classes: Classes | None, order: Sequence[int] | None) -> Dataset:
    """Let the column of logits carry its classes' names, where the teacher's mean something."""
    if classes is None or classes.is_generic or len(classes) != len(columns[0][TEACHER_LOGITS]):
        return columns
    features = columns.features.copy()
    names = classes.names if order is None else [classes.names[number] for number in order]
    features[TEACHER_LOGITS] = Classes.of(names).vector_feature
    return Dataset(columns.data, info=DatasetInfo(features=features))


def _check_arguments(teacher: Any, dataset: Any, outputs: str, order: Sequence[int] | None, shard_rows: int) -> None:
    if not isinstance(teacher, nn.Module) and not callable(teacher):
        raise ValueError(
            f"teacher must be a module or a function, got {type(teacher).__name__}: of a scikit-learn pipeline pass "
            "its predict_proba, with outputs='probabilities'"
        )
    if not isinstance(dataset, Dataset) or len(dataset) == 0:
        raise ValueError(f"dataset must be a datasets.Dataset with at least one row, got {dataset!r:.200}")
    if not is_plain(dataset):
        raise ValueError(
            "the rows have a transform, which makes anew what the teacher reads each time: keep what it gives with "
            "dataset.map, or run the teacher live (cache_teacher='off')"
        )
    if TEACHER_LOGITS in dataset.column_names:
        raise ValueError(f"the data set has a column {TEACHER_LOGITS} already: remove it first")
    if outputs not in ("logits", "probabilities"):
        raise ValueError(f"outputs must be 'logits' or 'probabilities', got {outputs!r}")
    if order is not None and sorted(order) != list(range(len(order))):
        raise ValueError(f"order must hold each index of the teacher's labels once, got {list(order)}")
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1, got {shard_rows}")


def _missing_shards(folder: ShardFolder, state: PartialState) -> list[int]:
    """Check this process's shards, and list those to compute; all processes refuse a damaged one of any."""
    own = range(state.process_index, len(folder), state.num_processes)
    found = folder.found()
    problems = gather_object([problem for k in own if k in found and (problem := folder.problem(found[k]))])
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}. Delete what is named here and run again: only missing shards are computed"
        )
    if found and state.is_main_process:
        logger.info("%d of %d shards found in %s.", len(found), len(folder), folder.path)
    return [k for k in own if k not in found]


def _compute(
    runner: Runner,
    folder: ShardFolder,
    missing: Sequence[int],
    outputs: str,
    order: Sequence[int] | None,
    state: PartialState,
) -> None:
    """Compute shards while the one before is written."""

    def write(number: int, finish: Finish) -> None:
        columns, span = finish(), folder.span(number)
        logits = _as_logits(columns.pop(TEACHER_LOGITS), outputs, span)
        if order is not None and len(order) != logits.shape[1]:
            raise ValueError(f"order has {len(order)} labels, the teacher gives {logits.shape[1]}")
        logits = logits if order is None else logits[:, list(order)]
        values = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1])
        states = {name: pa.array(rows, type=pa.large_binary()) for name, rows in columns.items()}
        folder.write(number, {TEACHER_LOGITS: values, **states})

    if not missing:
        return
    rows = sum(len(folder.span(number)) for number in missing)
    quiet = None if state.is_main_process else True
    with (
        tqdm(total=rows, desc="Running the teacher", unit=" rows", leave=False, disable=quiet) as bar,
        ThreadPoolExecutor(1) as writer,
        runner.running() as run,
    ):
        pending: Future[None] | None = None
        for number in missing:
            finish = run(folder.span(number), bar.update)
            # One shard at a time waits to be written, so that memory stays bounded and errors come soon.
            if pending is not None:
                pending.result()
            pending = writer.submit(write, number, finish)
        if pending is not None:
            pending.result()


def _as_logits(values: Any, outputs: str, span: range) -> np.ndarray:
    array = as_float64(values).astype(np.float32)
    if array.ndim != 2 or len(array) != len(span):
        raise ValueError(
            f"the teacher gave an array of shape {array.shape} for {len(span)} rows: expected one row each"
        )
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the teacher gives NaN or infinite {outputs} for row {span[bad[0]]}: check its weights and its precision"
        )
    if outputs == "probabilities":
        if not looks_like_probabilities(array):
            told = f"the teacher's outputs for rows {span.start} to {span.stop - 1} are no probabilities"
            if array.min() >= 0 and array.max() <= 1:
                raise ValueError(
                    f"{told} of one class a row, which sum to 1. Of several labels a row, let the teacher give "
                    "logits, log(p / (1 - p)), and pass outputs='logits'"
                )
            raise ValueError(f"{told}, which lie in [0, 1] and sum to 1: pass outputs='logits'")
        return np.log(np.maximum(array, PROBABILITY_FLOOR))
    # A single row of logits may look like that by chance.
    if len(array) > 1 and looks_like_probabilities(array):
        raise ValueError(
            "the teacher's outputs are probabilities: every row lies in [0, 1] and sums to 1. Pass "
            "outputs='probabilities'"
        )
    return array
