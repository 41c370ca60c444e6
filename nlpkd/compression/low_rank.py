"""Matrices as products of two thin ones: the embedding table, and linear layers."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import MobileBertConfig, PreTrainedModel

from nlpkd.compression.record import CompressionRecord, record_of
from nlpkd.models.reshaped import rebuild, reshape_linears
from nlpkd.models.structure import refuse_other_than_plain
from nlpkd.utils.field_types import check_share, plain_arguments

_BERTS = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "camembert": "roberta."}
"""Families that MobileBERT can stand for, and what their encoder's weights are called."""


@plain_arguments
def factorize_embeddings(
    model: PreTrainedModel, *, rank: int | None = None, energy: float | None = None, dataset: Dataset | None = None
) -> tuple[PreTrainedModel, CompressionRecord]:
    r"""Replace the embedding table E by its best approximation of a lower rank, in a plain checkpoint.

    With V the first `rank` right singular vectors of diag(sqrt(n)) (E - 1 m'), row t of the table becomes V'(e_t - m),
    and a projection behind it gives m + V V'(e_t - m): the shape of ALBERT, Lan et al. (2020), arXiv:1909.11942,
    section 3.1. n counts the tokens of `dataset`, plus one each (Chen et al. 2018, "GroupReduce", arXiv:1806.06950,
    weigh likewise), and is 1 for all without it; m is the mean row.

    BERT has no place for the projection, and ELECTRA and ALBERT put their layer norm before it. MobileBERT, without
    bottlenecks, trigrams and with plain layer norms, is BERT with a projection in the right place: a BERT, RoBERTa,
    XLM-R or CamemBERT becomes a `MobileBertForSequenceClassification`. Everything but the table is carried over, two
    things nearly so: some layer norms have epsilon 1e-5 there, where BERT has 1e-12, which moves logits of a trained
    model by some 0.01; and RoBERTa's positions are counted from the left, so that its text must be padded on the
    right. A DeBERTa-v2 or v3 without absolute positions stays one, with m = 0.

    A distillation afterwards, with the model itself as the teacher, can win back part of what the rank costs.

    Args:
        model: a classifier; left as it is.
        rank: width of the new table.
        energy: instead, choose the smallest rank that keeps this share of the sum of n_t |e_t - m|^2, in (0, 1).
        dataset: tokenised rows (`input_ids`) that say which tokens matter.

    Returns:
        The smaller model, and the record with rank and energy kept.

    Raises:
        ValueError: if not exactly one of rank and energy is given, nothing would get smaller, or no plain checkpoint
            of the family has such a table.
    """
    refuse_other_than_plain(model, "model")
    kind = model.config.model_type
    if kind not in _BERTS and not _is_free_of_positions(model):
        raise ValueError(_advice(model))
    table: Any = model.get_input_embeddings()
    table = table.weight.detach()
    rows, width = table.shape
    mean = table.float().mean(dim=0) if kind in _BERTS else torch.zeros(width, device=table.device)
    centred = table.float() - mean
    counts = _token_counts(dataset, rows).to(table.device)
    _, values, axes = torch.linalg.svd(counts.sqrt()[:, None] * centred, full_matrices=False)
    shares = values.square().cumsum(dim=0) / values.square().sum()
    rank = _rank(shares, rank, energy)
    if rank * (rows + width) >= rows * width:
        raise ValueError(f"a table of {rows} x {width} gets no smaller with rank {rank}: choose a lower one")
    basis = axes[:rank].T  # (width, rank)
    factors = {"table": centred @ basis, "projection": basis.contiguous(), "mean": mean}
    smaller = _as_mobilebert(model, factors) if kind in _BERTS else _as_deberta(model, factors)
    paper = "Lan et al. 2020, arXiv:1909.11942, section 3.1"
    details = {"rank": rank, "energy": float(shares[rank - 1]), "architecture": type(smaller).__name__}
    return smaller, record_of("factorize_embeddings", paper, model, smaller, **details)


@plain_arguments
def factorize_linear(
    model: PreTrainedModel, *, rank: int | None = None, energy: float | None = None
) -> tuple[PreTrainedModel, CompressionRecord]:
    """Replace each linear layer's matrix W by the two factors of its truncated SVD, W = (U S) V'.

    Ben Noach and Goldberg (2020), "Compressing Pre-trained Language Models by Matrix Decomposition",
    https://aclanthology.org/2020.aacl-main.88, section 3, who distil afterwards: without that a low rank costs much.
    No plain checkpoint holds two matrices for one, so a `ReshapedForSequenceClassification` comes out, which loads by
    the same `from_pretrained` after `import nlpkd`. Layers that would not get smaller stay as they are.

    Args:
        model: a classifier; left as it is.
        rank: columns of U and V.
        energy: instead, choose for each layer the smallest rank that keeps this share of |W|^2, in (0, 1).

    Returns:
        The smaller model, and the record with the number of layers factorised and their ranks.

    Raises:
        ValueError: if not exactly one of rank and energy is given, or no layer would get smaller.
    """
    refuse_other_than_plain(model, "model")
    weights = model.state_dict()
    shapes: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        left, values, right = torch.linalg.svd(module.weight.detach().float(), full_matrices=False)
        found = _rank(values.square().cumsum(dim=0) / values.square().sum(), rank, energy, clip=True)
        if found * (module.in_features + module.out_features) >= module.weight.numel():
            continue
        shapes[name] = [module.in_features, found, module.out_features]
        del weights[f"{name}.weight"]
        scale = values[:found].sqrt()
        weights[f"{name}.0.weight"] = scale[:, None] * right[:found]
        weights[f"{name}.1.weight"] = left[:, :found] * scale
        if module.bias is not None:
            weights[f"{name}.1.bias"] = weights.pop(f"{name}.bias")
    if not shapes:
        raise ValueError(
            f"no linear layer of {type(model).__name__} gets smaller with rank={rank}, energy={energy}: choose lower "
            "ones, or another method"
        )
    smaller = reshape_linears(model, shapes, weights)
    ranks = sorted(shape[1] for shape in shapes.values())
    paper = "Ben Noach and Goldberg 2020, aclanthology.org/2020.aacl-main.88"
    details = {"layers": len(shapes), "rank": [ranks[0], ranks[-1]]}
    return smaller, record_of("factorize_linear", paper, model, smaller, **details)


def _rank(shares: Tensor, rank: int | None, energy: float | None, clip: bool = False) -> int:
    """Return the rank asked for, or the first whose share of the whole, `(full rank,)`, is large enough."""
    if (rank is None) == (energy is None):
        raise ValueError("give either rank or energy, and not both")
    if energy is not None:
        check_share("energy", energy)
        return min(int((shares < energy).sum()) + 1, len(shares))
    if rank is None or rank < 1 or (rank >= len(shares) and not clip):
        raise ValueError(
            "rank (of a student's table its embedding_size) must be at least 1 and below the full rank, "
            f"{len(shares)}: got {rank}"
        )
    return min(rank, len(shares))


def _token_counts(dataset: Dataset | None, rows: int) -> Tensor:
    counts = torch.ones(rows)
    if dataset is not None:
        for batch in dataset.select_columns("input_ids").iter(1000):
            ids = torch.tensor([*itertools.chain.from_iterable(batch["input_ids"])])  # type: ignore[call-overload]
            counts += torch.bincount(ids, minlength=rows)
    return counts


def _as_mobilebert(model: PreTrainedModel, factors: Mapping[str, Tensor]) -> PreTrainedModel:
    prefix, old = _BERTS[model.config.model_type], model.config
    known = {field.name for field in dataclasses.fields(MobileBertConfig)} | {"thresholds"}
    settings = {name: value for name, value in old.to_dict().items() if name in known}
    # RoBERTa's first position is behind the padding token's number.
    skipped = 0 if prefix == "bert." else old.pad_token_id + 1
    settings |= {
        "embedding_size": factors["table"].shape[1],
        "max_position_embeddings": old.max_position_embeddings - skipped,
        "trigram_input": False,
        "use_bottleneck": False,
        "num_feedforward_networks": 1,
        "normalization_type": "layer_norm",
        "classifier_activation": True,
        "architectures": None,
    }
    # The weights by the names that MobileBERT has for them.
    names = {
        prefix: "mobilebert.",
        "classifier.dense.": "mobilebert.pooler.dense.",
        "classifier.out_proj.": "classifier.",
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        start = next((start for start in names if name.startswith(start)), "")
        weights[names.get(start, "") + name.removeprefix(start)] = tensor
    # The table's factors in place of the table.
    embeddings = "mobilebert.embeddings."
    weights[f"{embeddings}position_embeddings.weight"] = weights[f"{embeddings}position_embeddings.weight"][skipped:]
    weights[f"{embeddings}word_embeddings.weight"] = factors["table"]
    weights[f"{embeddings}embedding_transformation.weight"] = factors["projection"]
    weights[f"{embeddings}embedding_transformation.bias"] = factors["mean"]
    return rebuild(model, MobileBertConfig(**settings), weights)


def _is_free_of_positions(model: PreTrainedModel) -> bool:
    """Check whether a DeBERTa's embeddings are those of its words alone, at full width."""
    config: Any = model.config
    return (
        config.model_type == "deberta-v2"
        and not config.position_biased_input
        and not config.type_vocab_size
        and getattr(config, "embedding_size", config.hidden_size) == config.hidden_size
    )


def _as_deberta(model: PreTrainedModel, factors: Mapping[str, Tensor]) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.embedding_size = factors["table"].shape[1]
    embeddings = "deberta.embeddings."
    weights = model.state_dict() | {
        f"{embeddings}word_embeddings.weight": factors["table"],
        f"{embeddings}embed_proj.weight": factors["projection"],
    }
    return rebuild(model, config, weights)


def _advice(model: PreTrainedModel) -> str:
    """Return what to do in place of factorising the embeddings of a family that has no such form."""
    if getattr(model.config, "embedding_size", None) is not None:
        return f"{type(model).__name__} has factorised embeddings: make_student with a hidden_size makes them narrower"
    families = ", ".join([*_BERTS, "deberta-v2 without absolute positions"])
    return (
        f"transformers has no model like {type(model).__name__} with factorised embeddings (known: {families}): trim "
        "its vocabulary instead (nlpkd.compression.trim_vocabulary), or distil into layers of a BERT"
    )
