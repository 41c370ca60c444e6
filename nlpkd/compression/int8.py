"""A classifier's ONNX file in 8 bits: `onnx/model_int8.onnx`, made from `onnx/model.onnx` beside it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.onnx import (
    FP32_FILE,
    OnnxRecord,
    Texts,
    accept,
    batch_of,
    compare_logits,
    export_onnx,
    export_record,
    most_tokens,
    quietly,
    texts_to_compare,
)
from nlpkd.models.limits import refuse_other_than_name
from nlpkd.models.loading import load_tokenizer
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.utils.disk.links import link_file
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.packages import require

logger = logging.getLogger(__name__)


INT8_FILE = "onnx/model_int8.onnx"


BROWSER_FILE = "onnx/model_quantized.onnx"
"""The same file under the name that transformers.js asks for in a browser of its own accord."""


_TABLES = {"Gather", "EmbedLayerNormalization"}


# Softmax, GELU and layer norms stay in float32, as they do in dynamic quantisation.
_STATIC_KINDS = {"MatMul", "Gather"}


@plain_arguments
def export_int8(
    directory: str | Path,
    *,
    texts: Texts | None = None,
    max_length: int | None = None,
    calibration: Texts | None = None,
    per_channel: bool = True,
    embeddings: bool = True,
    reduce_range: bool = False,
) -> OnnxRecord:
    """Write `onnx/model_int8.onnx`: the weights of `onnx/model.onnx` in 8 bits, and the activations too.

    On x86 CPUs without VNNI (most of those from before 2019) ONNX Runtime adds two products of 8 bits in 16, which
    saturate where both are large. `nlpkd.load` asks it for exact sums, which are slower there; other runtimes do not
    ask. Weights of 7 bits (`reduce_range`) can't saturate, and are coarser everywhere: the record says how well both
    agree with the float file.

    The file has a second name, `onnx/model_quantized.onnx`, which transformers.js looks for: one file on the disk.

    Without `calibration` it is ONNX Runtime's dynamic quantisation: the scale of an activation is that of its whole
    batch, so that a text's logits depend a little on the texts beside it. With it, it is the static one: scales are
    fixed to the smallest and largest activation on the calibration texts, a text's logits depend on nothing else, and
    what lies outside of that range is cut off.

    Args:
        directory: where `export_onnx` left the model.
        texts: real texts to compare on with `onnx/model.onnx`; see `export_onnx`.
        max_length: the most tokens of a text, within the limits of model and tokenizer; 512 if None.
        calibration: some hundred real texts, not those that are measured on, for static quantisation.
        per_channel: a scale for each column of a weight, in place of one for all: closer, at the same size and speed.
        embeddings: quantise the embedding tables too, most of a small student's size.
        reduce_range: use 7 bits of the weights, for CPUs without VNNI.

    Returns:
        The record.

    Raises:
        ImportError: if a package of the extra `export` is missing.
        ValueError: if there is no `onnx/model.onnx`, or there are no texts.
        RuntimeError: if the file gives logits that are not finite.
    """
    refuse_other_than_name(directory)
    directory = Path(directory)
    source = OnnxClassifier.from_pretrained(directory, file=FP32_FILE)
    tokenizer = load_tokenizer(directory)
    max_length = most_tokens(max_length, tokenizer, source)
    texts = texts_to_compare(texts, tokenizer, max_length)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".exporting-") as temporary:
        staged = Path(temporary) / INT8_FILE
        staged.parent.mkdir()
        batches = None
        if calibration is not None:
            typical = texts_to_compare(calibration, tokenizer, max_length, "calibration")
            batches = list(_inputs(source, typical, tokenizer, max_length))
        settings: dict[str, Any] = {"batches": batches, "embeddings": embeddings, "per_channel": per_channel}
        # The form that is not kept goes to the file's place first, to be compared.
        portable_agreement = None
        if not reduce_range:
            _quantize(source.path, staged, reduce_range=True, **settings)
            portable = OnnxClassifier(staged, source.config)
            _, portable_agreement, _ = compare_logits(portable, source, tokenizer, texts, max_length, (32,))
        _quantize(source.path, staged, reduce_range=reduce_range, **settings)
        classifier = OnnxClassifier(staged, source.config)
        difference, agreement, _ = compare_logits(classifier, source, tokenizer, texts, max_length)
        if not np.isfinite(difference):
            raise RuntimeError(f"the int8 file of {directory} gives logits that are not finite: it was not kept")
        link_file(staged, Path(temporary) / BROWSER_FILE)
        record = OnnxRecord(
            INT8_FILE, classifier.size_mb, FP32_FILE, len(texts), difference, agreement,
            portable_agreement=portable_agreement,
        )  # fmt: skip
        accept(Path(temporary), directory, [record], export_record(directory).get("state_sha256"))
    logger.info("%s", record)
    return record


@plain_arguments
def quantize_dynamic(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    texts: Texts | None = None,
    max_length: int | None = None,
    per_channel: bool = True,
    embeddings: bool = True,
    reduce_range: bool = False,
) -> OnnxRecord:
    """Write a model in 8 bits, the scale of an activation being that of its batch: `export_onnx`, then `export_int8`.

    `export_int8` with `calibration` does static quantisation.

    Args:
        model: a classifier.
        tokenizer: its tokenizer.
        directory: where both files go.
        texts: real texts to compare on; see `export_onnx`.
        max_length: the most tokens of a text; see `export_onnx`.
        per_channel: see `export_int8`, as for the two below.
        embeddings: quantise the embedding tables too.
        reduce_range: use 7 bits of the weights.

    Returns:
        The int8 file's record.

    Raises:
        ImportError: if a package of the extra `export` is missing.
        ValueError: if there are no texts.
        RuntimeError: if the model can't be exported, or a file gives other logits.
    """
    export_onnx(model, tokenizer, directory, texts=texts, max_length=max_length)
    settings = {"per_channel": per_channel, "embeddings": embeddings, "reduce_range": reduce_range}
    return export_int8(directory, texts=texts, max_length=max_length, **settings)  # type: ignore[arg-type]


def _inputs(
    model: OnnxClassifier, texts: Texts, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a model's inputs text by text, so that no activation of padding counts."""
    for at in range(len(texts)):
        batch = batch_of(tokenizer, texts[at : at + 1], max_length)
        yield {name: tensor.numpy() for name, tensor in batch.items() if name in model.inputs}


def _quantize(
    source: Path,
    target: Path,
    *,
    batches: Sequence[dict[str, np.ndarray]] | None,
    embeddings: bool,
    **settings: bool,
) -> None:
    """Quantise a file: statically by the activations of calibration batches, dynamically without them."""
    onnx, quantization = require("onnx"), require("onnxruntime.quantization")
    graph = onnx.load(source)
    # torch notes the shapes of a graph's values as traced, and ONNX Runtime refuses what it infers otherwise.
    del graph.graph.value_info[:]
    # Of what ONNX Runtime's own operators give, no type is inferred.
    options = {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT}
    left_out = set() if embeddings else _TABLES
    with quietly():
        if batches is None:
            kinds = set(require("onnxruntime.quantization.registry").IntegerOpsRegistry) - left_out
            quantization.quantize_dynamic(
                graph, target, op_types_to_quantize=sorted(kinds), extra_options=options, **settings
            )
        else:
            # All that ONNX Runtime asks of a CalibrationDataReader.
            reader = SimpleNamespace(get_next=partial(next, iter(batches), None))
            quantization.quantize_static(
                graph, target, reader, op_types_to_quantize=sorted(_STATIC_KINDS - left_out),
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
                extra_options=options, **settings,
            )  # fmt: skip
