"""A teacher's outputs on a whole data set: computed once, shared out over processes, kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from nlpkd.config import fast_at_bf16
from nlpkd.data.collator import pack_states
from nlpkd.data.columns import HIDDEN_STATES, TEACHER_LOGITS
from nlpkd.data.soft_labels import PROBABILITY_FLOOR
from nlpkd.data.tokenization import TEACHER_PREFIX, TOKEN_COLUMNS
from nlpkd.models.capture import Capture
from nlpkd.models.inference import evaluating, frozen_copy
from nlpkd.teachers.checks import looks_like_probabilities
from nlpkd.teachers.shards import ShardFolder
from nlpkd.utils.fingerprints import hash_configuration, hash_tokenizer, hash_value, hash_weights
from nlpkd.utils.locks import only_writer

logger = logging.getLogger(__name__)


SHARD_ROWS = 4096
"""Rows of a shard: what a kill costs at most on each process."""


_BATCH_TOKENS = {"cpu": 2048}


_ACCELERATOR_BATCH_TOKENS = 16384


_SHARD_BYTES = 256e6


_HASHED_ROWS = 10_000


Columns = dict[str, Any]


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
        batch_tokens: tokens of a module's batch, padding included; 2,048 on a CPU, 16,384 elsewhere.
        shard_rows: rows of a shard, and of a function's batch; a cache that is there keeps its own.
        text_columns: what a function reads.
        teacher_name: what tells a function from others, such as its name and version; required for one.

    Returns:
        The data set with a column `teacher_logits`, float32 of fixed length, and for each layer k asked for a column
        `teacher_hidden_states_k` of bytes, memory-mapped.

    Raises:
        ValueError: if the cache does not belong to this call (what differs is named) or is damaged (the shards are
            named), the estimated size exceeds the budget, or the teacher gives NaN or not what `outputs` says.
    """
    _check_arguments(teacher, dataset, outputs, order, shard_rows)
    state = PartialState(cpu=not torch.accelerator.is_available())
    if isinstance(teacher, nn.Module):
        bf16 = fast_at_bf16(state.device.type == "cpu") if bf16 is None else bf16
        source: _Source = _Model(teacher, dataset, tokenizer, hidden_states, state.device, bf16, batch_tokens)
    else:
        source = _Function(teacher, dataset, text_columns, teacher_name, hidden_states)
    size_gb = source.state_bytes / 1e9
    if size_gb > budget_gb:
        raise ValueError(
            f"the states of layers {list(hidden_states)} on {len(dataset)} rows take {size_gb:.3g} GB, more than "
            f"budget_gb={budget_gb:g}: raise it, ask for fewer layers, or cache logits alone"
        )
    if source.state_bytes:
        shard_rows = max(1, min(shard_rows, int(_SHARD_BYTES * len(dataset) / source.state_bytes)))
    parts = source.parts | {
        "the number of rows": len(dataset),
        "the label order": "the teacher's" if order is None or list(order) == sorted(order) else str(list(order)),
        "the kind of outputs": outputs,
        "the layers": str(sorted(set(hidden_states))),
    }
    path = Path(cache_dir)
    with _alone(path) if state.is_main_process else nullcontext():
        if state.is_main_process:
            ShardFolder.create(path, len(dataset), shard_rows, parts, source.explanations)
        state.wait_for_everyone()
        folder = ShardFolder.open(path, parts, source.explanations)
        missing = _missing_shards(folder, state)
        _compute(source, folder, missing, outputs, order, state)
        state.wait_for_everyone()
    cached = concatenate_datasets([dataset.with_format(None), folder.load()], axis=1)
    return cached.with_format(dataset.format["type"], **dataset.format["format_kwargs"])


def _check_arguments(teacher: Any, dataset: Any, outputs: str, order: Sequence[int] | None, shard_rows: int) -> None:
    if not isinstance(teacher, nn.Module) and not callable(teacher):
        raise ValueError(
            f"teacher must be a module or a function, got {type(teacher).__name__}: of a scikit-learn pipeline pass "
            "its predict_proba, with outputs='probabilities'"
        )
    if not isinstance(dataset, Dataset) or len(dataset) == 0:
        raise ValueError(f"dataset must be a datasets.Dataset with at least one row, got {dataset!r:.200}")
    if TEACHER_LOGITS in dataset.column_names:
        raise ValueError(f"the data set has a column {TEACHER_LOGITS} already: remove it first")
    if outputs not in ("logits", "probabilities"):
        raise ValueError(f"outputs must be 'logits' or 'probabilities', got {outputs!r}")
    if order is not None and sorted(order) != list(range(len(order))):
        raise ValueError(f"order must hold each index of the teacher's labels once, got {list(order)}")
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1, got {shard_rows}")


def _alone(path: Path) -> AbstractContextManager[None]:
    """Keep other runs waiting; a cache that can't be written to needs no lock."""
    return only_writer(path, wait=True) if not path.exists() or os.access(path, os.W_OK) else nullcontext()


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
    source: _Source,
    folder: ShardFolder,
    missing: Sequence[int],
    outputs: str,
    order: Sequence[int] | None,
    state: PartialState,
) -> None:
    """Compute shards while the one before is written."""

    def write(number: int, finish: Callable[[], Columns]) -> None:
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
        source.running(),
    ):
        pending: Future[None] | None = None
        for number in missing:
            finish = source.run(folder.span(number), bar.update)
            # One shard at a time waits to be written, so that memory stays bounded and errors come soon.
            if pending is not None:
                pending.result()
            pending = writer.submit(write, number, finish)
        if pending is not None:
            pending.result()


def _as_logits(values: Any, outputs: str, span: range) -> np.ndarray:
    array = np.asarray(values, dtype=np.float32)
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
            raise ValueError(
                f"the teacher's outputs for rows {span.start} to {span.stop - 1} are no probabilities, which lie in "
                "[0, 1] and sum to 1: pass outputs='logits'"
            )
        return np.log(np.maximum(array, PROBABILITY_FLOOR))
    # A single row of logits may look like that by chance.
    if len(array) > 1 and looks_like_probabilities(array):
        raise ValueError(
            "the teacher's outputs are probabilities: every row lies in [0, 1] and sums to 1. Pass "
            "outputs='probabilities'"
        )
    return array


class _Source(Protocol):
    """What is cached.

    Attributes:
        parts: what its outputs depend on, by name.
        explanations: what helps to say why other parts differ.
        state_bytes: what the hidden states take.
    """

    parts: dict[str, Any]
    explanations: dict[str, Any]
    state_bytes: int

    def running(self) -> AbstractContextManager[Any]:
        """Make the context that `run` is called in."""

    def run(self, span: range, progress: Callable[[int], Any]) -> Callable[[], Columns]:
        """Start on rows; what it returns gives `teacher_logits` and states, and may be called on another thread."""


class _Function:
    def __init__(
        self,
        function: Callable[..., Any],
        dataset: Dataset,
        columns: Sequence[str],
        name: str | None,
        layers: Sequence[int],
    ):
        if not name:
            raise ValueError(
                "a teacher that is no module can't be fingerprinted: pass teacher_name, which has to change whenever "
                "its outputs do"
            )
        if layers:
            raise ValueError(f"hidden_states={list(layers)} can only be had of a transformers model")
        columns = [columns] if isinstance(columns, str) else list(columns)
        absent = [column for column in columns if column not in dataset.column_names]
        if absent:
            raise ValueError(f"there is no column {absent[0]!r}, only {dataset.column_names}: pass text_columns")
        self.function, self.columns = function, columns
        self.rows = dataset.select_columns(columns).with_format(None)
        self.state_bytes = 0
        self.explanations: dict[str, Any] = {}
        digest = hashlib.sha256()
        for batch in self.rows.iter(_HASHED_ROWS):
            for texts in zip(*(batch[column] for column in columns), strict=True):
                digest.update(json.dumps(texts).encode() + b"\n")
        self.parts = {"the teacher's name": name, "the texts": digest.hexdigest()}

    def running(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def run(self, span: range, progress: Callable[[int], Any]) -> Callable[[], Columns]:
        batch = self.rows[span.start : span.stop]
        values = self.function(*(batch[column] for column in self.columns))
        values = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
        progress(len(span))
        return lambda: {TEACHER_LOGITS: values}


class _Model:
    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase | None,
        layers: Sequence[int],
        device: torch.device,
        bf16: bool,
        batch_tokens: int | None,
    ):
        if tokenizer is None or tokenizer.pad_token_id is None:
            raise ValueError("batches of a module's tokens need padding: pass its tokenizer, with a padding token")
        depth = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
        if any(not 0 <= layer <= depth for layer in layers):
            raise ValueError(f"hidden_states={list(layers)}: the teacher has the layers 0 (the embeddings) to {depth}")
        self.layers = sorted(set(layers))
        self.capture = Capture(model, {"hidden_states": frozenset(self.layers)}, "teacher")
        own = [name for name in sorted(self.capture.arguments) if re.fullmatch(f"{TEACHER_PREFIX}.*input_ids", name)]
        if own:
            raise ValueError(
                f"the teachers read columns of tokenizers of their own ({', '.join(own)}), which can't be cached: run "
                "them live, or let all have the student's tokenizer"
            )
        together = hasattr(model, "columns") or TEACHER_PREFIX + "input_ids" not in dataset.column_names
        prefix = "" if together else TEACHER_PREFIX
        if prefix + "input_ids" not in dataset.column_names:
            raise ValueError(
                f"a module reads token ids, and there is no column input_ids, only {dataset.column_names}: load the "
                "data with nlpkd.load_text_classification"
            )
        self.model, self.device, self.bf16 = model.to(device), device, bf16
        self.batch_tokens = batch_tokens or _BATCH_TOKENS.get(device.type, _ACCELERATOR_BATCH_TOKENS)
        self.left = tokenizer.padding_side == "left"
        self.padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        columns = [
            column
            for column in TOKEN_COLUMNS
            if column in self.capture.arguments and prefix + column in dataset.column_names
        ]
        rows = dataset.select_columns([prefix + column for column in columns])
        self.rows = rows.rename_columns({prefix + column: column for column in columns}).with_format("arrow")
        tokens, longest, digest = _hash_tokens(self.rows)
        hidden = getattr(getattr(model, "config", None), "hidden_size", 0)
        self.state_bytes = 2 * tokens * hidden * len(self.layers)
        self.parts = {
            "the teacher's weights": hash_weights(model),
            "the teacher's configuration": hash_configuration(model),
            "the token ids (of texts, tokenizer and max_length)": digest,
            "the padding": f"{tokenizer.padding_side}, {self.padding}",
            "the precision": "bf16 autocast" if bf16 else "no autocast",
        }
        self.explanations = {"the tokenizer": hash_tokenizer(tokenizer), "the longest row": f"{longest} tokens"}

    def running(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(evaluating(self.model))
        if self.bf16:
            # One context for all batches: it keeps the weights that it has cast.
            stack.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
        self.copied = frozen_copy(self.model, self.device.type, first_token=not self.layers)
        return stack

    def run(self, span: range, progress: Callable[[int], Any]) -> Callable[[], Columns]:
        batches = []
        for rows, lengths, inputs in self._batches(self.rows[span.start : span.stop]):
            captured = self.capture(self.copied, inputs)
            found = captured.hidden_states or ()
            states = {layer: found[layer].to(torch.bfloat16) for layer in self.layers}  # type: ignore[union-attr]
            batches.append((rows, lengths, captured.logits, states))
            progress(len(rows))

        def finish() -> Columns:
            # Only here the device is waited for.
            order = np.argsort(np.concatenate([rows for rows, *_ in batches]))
            logits = torch.cat([logits.float() for _, _, logits, _ in batches]).cpu().numpy()
            columns: Columns = {TEACHER_LOGITS: logits[order]}
            for layer in self.layers:
                packed = [row for _, lengths, _, states in batches for row in self._pack(states[layer], lengths)]
                columns[HIDDEN_STATES.format(layer)] = [packed[row] for row in order]
            return columns

        return finish

    def _pack(self, states: Tensor, lengths: np.ndarray) -> list[bytes]:
        return pack_states(states, lengths.tolist(), self.left)

    def _batches(self, table: pa.Table) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, Tensor]]]:
        """Cut a shard into batches of similar length, the longest first: row numbers, lengths and what is read."""
        lengths = _lengths(table)
        order = np.argsort(-lengths, kind="stable")
        lengths = lengths[order]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        flat = {
            column: _flat(table.column(column).combine_chunks().take(pa.array(order))) for column in table.column_names
        }
        if "attention_mask" in self.capture.arguments and "attention_mask" not in flat:
            flat["attention_mask"] = np.ones(int(ends[-1]), dtype=np.int64)
        start = 0
        while start < len(order):
            width = int(lengths[start])
            stop = min(start + max(1, self.batch_tokens // max(1, width)), len(order))
            places = np.arange(width)
            real = places >= width - lengths[start:stop, None] if self.left else places < lengths[start:stop, None]
            inputs = {}
            for column, values in flat.items():
                padded = np.full(real.shape, self.padding.get(column, 0), dtype=np.int64)
                padded[real] = values[ends[start] : ends[stop]]
                inputs[column] = self._on_device(torch.from_numpy(padded))
            yield order[start:stop], lengths[start:stop], inputs
            start = stop

    def _on_device(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        # From pageable memory a copy would wait for the batches before it.
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _lengths(table: pa.Table) -> np.ndarray:
    return pc.list_value_length(table.column("input_ids")).to_numpy()


def _flat(lists: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.ascontiguousarray(pc.list_flatten(lists).to_numpy(), dtype=np.int64)


def _hash_tokens(rows: Dataset) -> tuple[int, int, str]:
    """Count the tokens of all rows and of the longest, and hash the columns, however they are stored."""
    tokens, longest = 0, 0
    digests = {name: hashlib.sha256() for name in ("lengths", *rows.column_names)}
    for table in rows.iter(_HASHED_ROWS):
        lengths = _lengths(table).astype(np.int64)
        tokens, longest = tokens + int(lengths.sum()), max(longest, int(lengths.max()))
        digests["lengths"].update(lengths.data)
        for column in table.column_names:
            digests[column].update(_flat(table.column(column)).data)
    return tokens, longest, hash_value({name: digest.hexdigest() for name, digest in digests.items()})
