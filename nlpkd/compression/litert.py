"""A classifier as a LiteRT (TFLite) file for phones and small boards, compared with PyTorch before it is kept."""

from __future__ import annotations

import copy
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.onnx import (
    Texts,
    batch_of,
    quietly,
    refuse_another_model,
    refuse_another_tokenizer,
    texts_to_compare,
)
from nlpkd.compression.record import agreement_of
from nlpkd.models.files.tokenizers import save_tokenizer
from nlpkd.models.limits import positions_of
from nlpkd.models.structure import forward_arguments, matching_tokenizer, refuse_other_than_plain
from nlpkd.utils.disk.links import move_into
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.packages import require

logger = logging.getLogger(__name__)


LITERT_FILE, LITERT_INT8_FILE = "model.tflite", "model_int8.tflite"


@dataclass(frozen=True)
class LiteRTRecord:
    """What an export gave, and how it compares with PyTorch.

    Attributes:
        file: its name.
        size_mb: megabytes (10^6 bytes).
        tokens: of every text, padding included: the file takes `(1, tokens)` int32.
        inputs: what it takes, in order.
        rows: texts that were compared.
        largest_difference: of any logit.
        agreement: share of the same decisions; of a regression the correlation of both scores.
    """

    file: str
    size_mb: float
    tokens: int
    inputs: list[str]
    rows: int
    largest_difference: float
    agreement: float


@plain_arguments
def export_litert(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    tokens: int = 64,
    int8: bool = False,
    texts: Texts | None = None,
    tolerance: float = 1e-3,
) -> LiteRTRecord:
    """Write a classifier as `model.tflite`, or in 8 bits as `model_int8.tflite`, of one text of a fixed length.

    By litert-torch, Google's converter, which traces PyTorch; 8 bits by ai-edge-quantizer (weights, and activations as
    they come). The file gets its name once its logits are PyTorch's on the texts; a failure leaves what was there.

    Args:
        model: the classifier; left as it is.
        tokenizer: its tokenizer, which is saved beside the file where there is none.
        directory: where the file goes.
        tokens: of every text; shorter ones are padded, longer ones cut.
        int8: write the file in 8 bits.
        texts: real texts to compare on, or pairs; 64 of random tokens if None.
        tolerance: how far a logit of the float32 file may be off, times the largest logit where that is above 1.

    Returns:
        The record.

    Raises:
        ImportError: if the package litert-torch is missing.
        ValueError: if there are no texts, the model takes fewer tokens, or the folder holds another model.
        RuntimeError: if the model can't be converted, or the file gives other logits.
    """
    converter = require("litert_torch", extra="litert")
    refuse_other_than_plain(model, "model")
    if tokens > (limit := positions_of(model.config) or tokens):
        raise ValueError(f"tokens={tokens} is more than the {limit} that the model takes: lower it")
    # Check the folder, and tokenise the texts as the file will read them.
    directory = Path(directory)
    refuse_another_model(directory, model, tokenizer)
    # Padding and truncation stay in a tokenizer once it was used.
    untouched = copy.deepcopy(tokenizer)
    texts = texts_to_compare(texts, tokenizer, tokens)
    refuse_another_tokenizer(model, tokenizer, texts, tokens)
    reference = copy.deepcopy(model).float().cpu().eval()
    batches = [_padded(batch_of(tokenizer, texts[at : at + 1], tokens), tokenizer, tokens) for at in range(len(texts))]
    accepted = forward_arguments(reference)
    inputs = [name for name in batches[0] if name in accepted]
    # Convert under a temporary name.
    classifier = _ByPosition(reference, inputs)
    file = LITERT_INT8_FILE if int8 else LITERT_FILE
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".exporting-") as staged:
        path = Path(staged) / file
        try:
            with quietly():
                converter.convert(classifier, tuple(batches[0][name] for name in inputs)).export(str(path))
        except Exception as error:  # Its errors derive from Exception alone.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RuntimeError(f"litert-torch can't convert this {type(model).__name__}: {reason}") from error
        if int8:
            _quantize(path)
        # Compare with PyTorch, and only then give the file its name.
        with torch.no_grad():
            expected = torch.cat([classifier(*(batch[name] for name in inputs)) for batch in batches])
        found = _run(path, [[batch[name] for name in inputs] for batch in batches])
        difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
        if not (np.isfinite(difference) if int8 else difference <= tolerance * max(1.0, largest)):
            raise RuntimeError(
                f"the LiteRT file of this {type(model).__name__} gives other logits than PyTorch, off by up to "
                f"{difference:.3g} on {len(texts)} texts: it was not kept"
            )
        agreement = agreement_of(found, model.config, expected, model.config)
        record = LiteRTRecord(file, path.stat().st_size / 1e6, tokens, inputs, len(texts), difference, agreement)
        if not (directory / "tokenizer_config.json").is_file():
            save_tokenizer(matching_tokenizer(untouched, model), directory)
        move_into(directory, path, Path(file))
    logger.info("%s", record)
    return record


class _ByPosition(nn.Module):
    """A classifier that takes its inputs in order and returns its logits."""

    def __init__(self, model: PreTrainedModel, inputs: list[str]):
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *values: Tensor) -> Tensor:
        return self.model(**dict(zip(self.inputs, values, strict=True))).logits


def _padded(batch: Any, tokenizer: PreTrainedTokenizerBase, tokens: int) -> dict[str, Tensor]:
    return dict(tokenizer.pad(batch, padding="max_length", max_length=tokens, return_tensors="pt"))


def _quantize(path: Path) -> None:
    quantizer, recipe = require("ai_edge_quantizer.quantizer", "litert"), require("ai_edge_quantizer.recipe", "litert")
    with quietly():
        work = quantizer.Quantizer(str(path))
        work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        work.quantize().export_model(str(path), overwrite=True)


def _run(path: Path, rows: list[list[Tensor]]) -> Tensor:
    """Run a file on one text after another: logits `(rows, labels)`."""
    runtime: Any = require("ai_edge_litert.interpreter", extra="litert").Interpreter(str(path), num_threads=1)
    runtime.allocate_tensors()
    # litert-torch calls its inputs by number, and a runtime lists them in another order.
    places = sorted(runtime.get_input_details(), key=lambda each: int(each["name"].split("_")[-1].split(":")[0]))
    logits = []
    for values in rows:
        for place, value in zip(places, values, strict=True):
            runtime.set_tensor(place["index"], value.numpy().astype(place["dtype"]))
        runtime.invoke()
        logits.append(torch.from_numpy(runtime.get_tensor(runtime.get_output_details()[0]["index"]).copy()))
    return torch.cat(logits)
