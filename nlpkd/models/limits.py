"""Models and tokenizers that are refused by what their files say, before anything is built of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from nlpkd.utils.disk.files import WHOLE, explain_damage
from nlpkd.utils.disk.links import inside, is_snapshot, refuse_outside

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")

LARGEST_SIZES = {
    "num_hidden_layers": 1_000,
    "hidden_size": 100_000,
    "intermediate_size": 1_000_000,
    "vocab_size": 10_000_000,
    "max_position_embeddings": 100_000_000,
}
"""Far above any published model: a config that says more is damaged or hostile, and building it would never end."""


ONNX_FOLDER = "onnx"
"""Where a model's folder has its ONNX files."""


EXPORT_RECORD = f"{ONNX_FOLDER}/export.json"
"""What the ONNX files of a model's folder were made from, and how they compare with it."""


_COUNT_FROM_PADDING = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "data2vec-text", "ibert"),
    *("xmod", "mpnet", "longformer", "luke", "layoutlmv3", "lilt", "markuplm", "esm"),
}
"""Families whose first position is behind the padding token's number, so that the places before it are lost."""


def refuse_other_than_name(given: Any, role: str = "a model", advice: str = "save a model first") -> None:
    """Refuse what names no model, such as a model in memory.

    Args:
        given: what was given for a name.
        role: what the message calls it.
        advice: what to do with a model in memory.

    Raises:
        ValueError: if it is neither a path nor a Hub id.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise ValueError(f"{role} is named by a path or a Hub id, got {given!r:.80}: {advice}")


def positions_of(config: Any) -> int | None:
    """Return the most tokens that a model takes, special ones included.

    Args:
        config: the model's; None of a module without one.

    Returns:
        The number; None where the config names no limit.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    skipped = (config.pad_token_id or 0) + 1 if config.model_type in _COUNT_FROM_PADDING else 0
    return limit - skipped


def refuse_oversized_config(config: Any, name: str | Path) -> None:
    """Refuse a config whose model would take hours or all memory to build.

    Args:
        config: the config, with those of the models within it.
        name: where it is from, for the message.

    Raises:
        ValueError: if a size is above `LARGEST_SIZES`.
    """
    for size, most in LARGEST_SIZES.items():
        value = getattr(config, size, None)
        if isinstance(value, int) and value > most:
            raise ValueError(
                f"the config of {str(name)!r} has {size}={value:,}, and at most {most:,} is loaded: use a copy that "
                "you trust"
            )
    for part in getattr(config, "sub_configs", ()):
        if (within := getattr(config, part, None)) is not None:
            refuse_oversized_config(within, name)


def refuse_oversized_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str | Path) -> None:
    """Refuse a tokenizer with ids that no embedding table has.

    Args:
        tokenizer: the tokenizer.
        name: where it is from, for the message.

    Raises:
        ValueError: if an id is above the largest vocabulary of `LARGEST_SIZES`.
    """
    most = LARGEST_SIZES["vocab_size"]
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if number >= most:
        raise ValueError(
            f"the tokenizer of {str(name)!r} gives {token!r} the id {number:,}, and ids up to {most:,} are taken: use "
            "a copy that you trust"
        )


def refuse_unknown_dtype(dtype: Any) -> None:
    """Refuse what is no dtype of weights.

    Args:
        dtype: torch's, its name, or `"auto"`.

    Raises:
        ValueError: if torch has none of that name, or it is none of numbers with a fraction.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"no model has weights of dtype {dtype!r}: give 'float32', 'bfloat16' or 'float16'")


def refuse_foreign_files(folder: Path) -> None:
    """Refuse a folder whose files lie elsewhere: what is read of them goes on into students, and to the Hub.

    Weights may be links, since none but weights are taken from them.

    Args:
        folder: a model's folder; anything else is passed.

    Raises:
        ValueError: if config or tokenizer are links out of it, or the index of its weights names a file that lies
            elsewhere, or can't be read.
    """
    refuse_outside(folder, [path.name for pattern in _SMALL_FILES for path in folder.glob(pattern)])
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return
    with explain_damage(index, "use another copy of the model"):
        files = {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    for file in files:
        inside(folder, file)


def refuse_unreadable_labels(folder: Path) -> None:
    """Refuse a folder whose config.json does not have the labels' names by their ids, as transformers reads them.

    Args:
        folder: a model's folder; anything else is passed, and so is a config that is no JSON.

    Raises:
        ValueError: if `id2label` is a list, or its ids are no numbers.
    """
    path = folder / "config.json"
    try:
        names = dict(json.loads(path.read_text(encoding="utf-8"))).get("id2label")
    except (OSError, RecursionError, TypeError, ValueError):
        return
    by_id = isinstance(names, dict) and all(number.isdecimal() for number in names)
    if names is not None and not by_id:
        listed = isinstance(names, list) and len(names) <= 20
        right = dict(enumerate(names)) if listed else {0: "negative", 1: "positive"}  # type: ignore[arg-type]
        raise ValueError(
            f"{path} has the id2label {names!r:.200}, and a model's labels are named by their ids: write "
            f"{json.dumps(right, ensure_ascii=False)}{'' if listed else ', with your own names'}"
        )


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder whose adapter would have transformers load another model than the one that lies there.

    Args:
        folder: a model's folder; anything else is passed.

    Raises:
        ValueError: if an adapter lies beside weights, or names a base model: transformers would load that, from the
            Hub with the user's token if it is no folder.
    """
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        return
    with explain_damage(settings, "use another copy of the model"):
        base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    beside = any(folder.glob("model*.safetensors"))
    if beside or base is not None:
        found = "an adapter beside the weights" if beside else "an adapter alone"
        raise ValueError(
            f"{folder} holds {found}, of the base model {base!r}, which would be loaded: merge the adapter into the "
            "model (merge_and_unload of peft) and save that, or load both with peft and pass the model"
        )


def refuse_onnx_of_other_weights(folder: Path, weights: Mapping[str, str]) -> None:
    """Refuse a folder whose ONNX files were made from other weights.

    Args:
        folder: a model's; one that does not say what its ONNX files were made from is passed.
        weights: the SHA-256 of the model's weights by name, as far as they are known.

    Raises:
        ValueError: if they were made from others, or the record of the export can't be read.
    """
    noted = folder / EXPORT_RECORD
    if not noted.is_file():
        return
    if WHOLE in weights:
        # Beside it there may be the same weights in another dtype.
        weights = {WHOLE: weights[WHOLE]}
    with explain_damage(noted, export_advice(folder, "delete it and the ONNX files beside it")):
        made_from = dict(json.loads(noted.read_text(encoding="utf-8"))["weights_sha256"])
    if made_from and not weights.items() <= made_from.items():
        raise ValueError(
            f"the ONNX files in {folder / ONNX_FOLDER} were made from other weights than those in {folder}: "
            f"{export_advice(folder, 'delete them')}"
        )


def export_advice(folder: Path, otherwise: str) -> str:
    """Say what to do about ONNX files that are not of the model in their folder.

    Args:
        folder: the model's.
        otherwise: what can be done in place of an export.
    """
    if is_snapshot(folder):
        return (
            "load the weights themselves (file='model.safetensors'), or another revision; who owns the repository on "
            "the Hub exports again and pushes"
        )
    return f"export again (`nlpkd export {folder}`), or {otherwise}"
