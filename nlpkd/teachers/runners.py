"""How a teacher is run on a whole data set, shard by shard: a module on token ids, or a function on texts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nlpkd.data.collator import pack_states, pad_flat
from nlpkd.data.columns import HIDDEN_STATES, TEACHER_LOGITS
from nlpkd.data.tokenization import TEACHER_PREFIX, TOKEN_COLUMNS, with_usual_padding
from nlpkd.models.capture import Capture
from nlpkd.models.ensemble import as_ensemble
from nlpkd.models.inference import evaluating, inference_copy
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.models.padding import refuse_unknown_padding
from nlpkd.models.structure import foreign_hook, is_quantized, unwrapped
from nlpkd.utils.fingerprints import hash_tokenizer, hash_value
from nlpkd.utils.object_hashes import hash_configuration, hash_weights

_BATCH_TOKENS = {"cpu": 2048, "onnx": 512}


_ACCELERATOR_BATCH_TOKENS = 16384


_HASHED_ROWS = 10_000


Columns = dict[str, Any]
"""A shard's columns: `teacher_logits` `(rows, labels)`, and of hidden states a list of bytes a row."""


Finish = Callable[[], Columns]
"""Waits for the device and returns the columns; may be called on another thread."""


@dataclass(frozen=True)
class Fingerprint:
    """What a teacher's outputs on some rows depend on.

    Attributes:
        parts: what they depend on, by name.
        explanations: what helps to say why other parts differ.
        state_bytes: what the hidden states take.
    """

    parts: dict[str, Any]
    explanations: dict[str, Any] = field(default_factory=dict)
    state_bytes: int = 0


class Runner(Protocol):
    """A teacher and the rows that it is run on."""

    def fingerprint(self) -> Fingerprint:
        """Hash teacher and rows, which takes a while for large ones."""

    def running(self) -> AbstractContextManager[Callable[[range, Callable[[int], Any]], Finish]]:
        """Make the context of a run.

        It gives the function that starts on a range of rows, and that calls its second argument with the number of
        rows that are done.
        """


class FunctionRunner:
    """A function on texts.

    Args:
        function: takes a list of texts for each column, and returns `(rows, labels)`.
        dataset: the rows.
        columns: what the function reads.
        name: what tells it from other functions.
        layers: of hidden states, of which a function has none.

    Raises:
        ValueError: if the name or a column is missing, or layers are asked for.
    """

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
        self.function, self.columns, self.name = function, columns, name
        self.rows = dataset.select_columns(columns).with_format(None)

    def fingerprint(self) -> Fingerprint:
        """Hash the texts; see `Runner.fingerprint`."""
        digest = hashlib.sha256()
        for batch in self.rows.iter(_HASHED_ROWS):
            for texts in zip(*(batch[column] for column in self.columns), strict=True):  # type: ignore[call-overload]
                digest.update(json.dumps(texts).encode() + b"\n")
        return Fingerprint({"the teacher's name": self.name, "the texts": digest.hexdigest()})

    def running(self) -> AbstractContextManager[Callable[[range, Callable[[int], Any]], Finish]]:
        """See `Runner.running`."""
        return nullcontext(self._run)

    def _run(self, span: range, progress: Callable[[int], Any]) -> Finish:
        batch = self.rows[span.start : span.stop]
        values = self.function(*(batch[column] for column in self.columns))
        progress(len(span))
        return lambda: {TEACHER_LOGITS: values}


class ModelRunner:
    """A module on token ids, in eval mode, in batches of as many tokens each.

    Args:
        model: the module; moved to the device as it is run.
        dataset: tokenised rows: `teacher_input_ids`, ... where there are any, and else `input_ids`, ...
        tokenizer: says how batches are padded.
        layers: whose hidden states to keep, 0 being the embeddings.
        device: where it runs.
        bf16: run it in bf16 mixed precision.
        batch_tokens: tokens of a batch, padding included; 512 of an ONNX file, 2,048 on a CPU, 16,384 elsewhere, if
            None.

    Raises:
        ValueError: if the tokenizer can't pad or its padding would be read, a layer does not exist, the rows lack what
            the module reads or have further columns that it reads, or it has hooks of somebody's own.
    """

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
        # Which columns the module reads: the student's, or those made with its own tokenizer.
        model = unwrapped(model, "teacher")
        if (hooked := foreign_hook(model)) is not None:
            raise ValueError(
                f"the teacher has a hook on {hooked} ({type(model).__name__}), and no fingerprint tells what it does: "
                "take it off, put what it does into a module, or run the teacher live (cache_teacher='off')"
            )
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
        other = self.capture.arguments - set(TOKEN_COLUMNS)
        if further := sorted(prefix + name for name in other if prefix + name in dataset.column_names):
            raise ValueError(
                f"the teacher reads the columns {', '.join(further)} too, which no cache pads: run it live "
                "(cache_teacher='off')"
            )
        # How it is run on them.
        for member in as_ensemble(model).members:
            refuse_unknown_padding(member, tokenizer, "teacher")
        tokenizer = with_usual_padding(tokenizer)
        self.model, self.tokenizer, self.device = model, tokenizer, device
        of_onnx = isinstance(model, OnnxClassifier)
        self.bf16 = bf16 and not is_quantized(model) and not of_onnx
        runs_on = "onnx" if of_onnx else device.type
        self.batch_tokens = batch_tokens or _BATCH_TOKENS.get(runs_on, _ACCELERATOR_BATCH_TOKENS)
        self.left = tokenizer.padding_side == "left"
        self.padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        columns = [
            column
            for column in TOKEN_COLUMNS
            if column in self.capture.arguments and prefix + column in dataset.column_names
        ]
        if "input_ids" not in columns:
            raise ValueError(
                f"the forward of the teacher ({type(model).__name__}) takes {sorted(self.capture.arguments)}, and no "
                "input_ids, which the rows have: name its argument so"
            )
        rows = dataset.select_columns([prefix + column for column in columns])
        self.rows = rows.rename_columns({prefix + column: column for column in columns}).with_format("arrow")

    def fingerprint(self) -> Fingerprint:
        """Hash weights, configuration and token ids; see `Runner.fingerprint`."""
        tokens, longest, digest = _hash_tokens(self.rows)
        hidden = getattr(getattr(self.model, "config", None), "hidden_size", 0)
        parts = {
            "the teacher's weights": hash_weights(self.model),
            "the teacher's configuration": hash_configuration(self.model),
            "the token ids (of texts, tokenizer and max_length)": digest,
            "the padding": f"{self.tokenizer.padding_side}, {self.padding}",
            "the precision": "bf16 autocast" if self.bf16 else "no autocast",
        }
        explanations = {"the tokenizer": hash_tokenizer(self.tokenizer), "the longest row": f"{longest} tokens"}
        return Fingerprint(parts, explanations, state_bytes=2 * tokens * hidden * len(self.layers))

    @contextmanager
    def running(self) -> Iterator[Callable[[range, Callable[[int], Any]], Finish]]:
        """Move the model to its device and put it in eval mode; see `Runner.running`."""
        model = self.model.to(self.device)
        # One context for all batches: it keeps the weights that it has cast.
        cast = torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()
        with evaluating(model), cast:
            yield partial(self._run, inference_copy(model, self.device.type, first_token=not self.layers))

    def _run(self, model: nn.Module, span: range, progress: Callable[[int], Any]) -> Finish:
        batches = []
        for rows, lengths, inputs in self._batches(self.rows[span.start : span.stop]):
            captured = self.capture(model, inputs)
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
                packed = [
                    row
                    for _, lengths, _, states in batches
                    for row in pack_states(states[layer], lengths.tolist(), self.left)
                ]
                columns[HIDDEN_STATES.format(layer)] = [packed[row] for row in order]
            return columns

        return finish

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
            inputs = {}
            for column, values in flat.items():
                own = values[ends[start] : ends[stop]]
                padded = pad_flat(own, lengths[start:stop], width, self.padding.get(column, 0), self.left)
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
