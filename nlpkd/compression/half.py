"""Weights in half precision."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from nlpkd.compression.record import CompressionRecord, record_of
from nlpkd.models.reshaped import rebuild
from nlpkd.models.structure import refuse_other_than_plain

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The half precisions by the name that `config.dtype` has for them."""


_PAPERS = {
    "bfloat16": "Kalamkar et al. 2019, arXiv:1905.12322",
    "float16": "Micikevicius et al. 2018, arXiv:1710.03740",
}


def to_half(
    model: PreTrainedModel, *, dtype: str | torch.dtype = "bfloat16"
) -> tuple[PreTrainedModel, CompressionRecord]:
    """Round the weights to 16 bits: half the file, in a plain checkpoint whose `config.dtype` says so.

    bfloat16 keeps float32's range and 8 bits of precision, float16 has 11 bits and ends at 65504. How much the logits
    move `nlpkd.compression.compress` measures. A CPU without bfloat16 instructions runs it slower than float32; load
    with `dtype="float32"` there, and keep the small file.

    There is nothing on torchao's int8 here: with torchao 0.18 and transformers 5.23 `save_pretrained` of a quantised
    model fails ("Attempted to access the data pointer on an invalid python storage").

    Args:
        model: a classifier; left as it is.
        dtype: `"bfloat16"` or `"float16"`.

    Returns:
        A copy in half precision, and the record.

    Raises:
        ValueError: if the dtype is another, the weights have it already, or one is too large for it.
    """
    refuse_other_than_plain(model, "model")
    name = str(dtype).removeprefix("torch.")
    if name not in HALVES:
        raise ValueError(f"dtype must be one of {sorted(HALVES)}, got {name!r}")
    if model.dtype == HALVES[name]:
        raise ValueError(f"the weights are {name} already")
    half = rebuild(model, copy.deepcopy(model.config), model.state_dict(), HALVES[name])
    for parameter, tensor in half.named_parameters():
        if not tensor.isfinite().all():
            raise ValueError(f"{parameter} has values that {name} can't hold: use bfloat16, or mend the weights")
    return half, record_of("to_half", _PAPERS[name], model, half, dtype=name)
