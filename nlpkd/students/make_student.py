"""Make a student: layers of the teacher, a narrower shape of it, a small model of another kind, or a checkpoint."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.low_rank import factorize_embeddings
from nlpkd.compression.vocabulary import trim_vocabulary
from nlpkd.evaluation.benchmark import choose_within
from nlpkd.models.layers import uniform_layers
from nlpkd.models.loading import load_classifier
from nlpkd.models.small_models import SMALL_STUDENTS, small_student
from nlpkd.students.narrow import narrow_student
from nlpkd.students.shapes import SHAPES
from nlpkd.utils.processes import decided_by_main_process

logger = logging.getLogger(__name__)


_WIDTHS = {"hidden_size", "intermediate_size", "num_attention_heads", "initialization"}


@overload
def make_student(
    teacher: PreTrainedModel | None = ...,
    layers: int | str | Sequence[int] | None = ...,
    *,
    vocabulary: Literal["trim"],
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]: ...


@overload
def make_student(
    teacher: PreTrainedModel | None = ...,
    layers: int | str | Sequence[int] | None = ...,
    *,
    checkpoint: str | Path | None = ...,
    max_latency_ms: float | None = ...,
    max_size_mb: float | None = ...,
    embedding_size: int | None = ...,
    revision: str | None = ...,
    id2label: Mapping[int, str] | None = ...,
    trust_remote_code: bool = ...,
    seed: int = ...,
    **shape: Any,
) -> PreTrainedModel: ...


def make_student(
    teacher: PreTrainedModel | None = None,
    layers: int | str | Sequence[int] | None = None,
    *,
    checkpoint: str | Path | None = None,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    vocabulary: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Iterable[str] | None = None,
    embedding_size: int | None = None,
    revision: str | None = None,
    id2label: Mapping[int, str] | None = None,
    trust_remote_code: bool = False,
    seed: int = 42,
    **shape: Any,
) -> PreTrainedModel | tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make the model to train.

    Args:
        teacher: the model to take layers from; with `checkpoint`, where the labels come from.
        layers: `3` or `"layers:3"` (evenly spread: 2, 4, 6 of 6), or the layers by number, as in `[1, 3, 6]` or
            `"layers:1,3,6"`. Embeddings, these layers, pooler and head are copied. Of a teacher whose layers share
            their weights (ALBERT) the student runs them fewer times: faster, and no smaller. A peft adapter is merged.
            Or a published student's shape by name (`nlpkd.students.SHAPES`), such as `"tinybert-4l-312"`, that
            `narrow_student` makes of the teacher's weights. Or `"bilstm"` or `"textcnn"`, which `small_student` starts
            from the teacher's embedding table.
        checkpoint: instead of layers, a local path or Hub id of any width and depth; its head is initialised at random
            where it has none that fits.
        max_latency_ms: instead of layers, the most that one forward pass (one text of 32 tokens) may take: the student
            with the most weights beside its embeddings that fits, as measured on this machine. That may be a BiLSTM,
            which objectives on layers can't match; `student_within` takes the objectives into account.
        max_size_mb: likewise, the most that its weights file may take.
        vocabulary: `"trim"` leaves the student the tokens of `texts` alone, and gives a tokenizer to match; see
            `nlpkd.compression.trim_vocabulary`.
        tokenizer: with a vocabulary to trim, the tokenizer that the student would read with.
        texts: with a vocabulary to trim, what the student will read, such as the training texts.
        embedding_size: of layers of the teacher, factorise their embedding table to this width; see
            `nlpkd.compression.factorize_embeddings`, as for the families that can.
        revision: branch, tag or commit of the checkpoint.
        id2label: label names, where there is no teacher to give them.
        trust_remote_code: run the repository's own code.
        seed: of what is initialised at random.
        **shape: with layers, narrower widths as `narrow_student` takes them (`hidden_size=192`,
            `initialization="slice"`); with `"bilstm"` or `"textcnn"`, settings of `small_student`.

    Returns:
        A float32 model in train mode that shares no memory with the teacher; with a trimmed vocabulary the tokenizer
        too.

    Raises:
        ValueError: if not exactly one of layers, checkpoint and budget is given, the teacher lacks what is asked for,
            or nothing fits the budget.
    """
    if vocabulary is not None or tokenizer is not None or texts is not None:
        if vocabulary != "trim" or tokenizer is None or texts is None or isinstance(texts, str):
            raise ValueError(
                "a vocabulary is trimmed to the tokens of a text: give vocabulary='trim', a tokenizer and a list of "
                "texts together"
            )
        texts = list(texts)
    if max_latency_ms is not None or max_size_mb is not None:
        if teacher is None or layers is not None or checkpoint is not None or shape:
            raise ValueError("a budget chooses the student's layers or shape: give the teacher, and no layers")
        start = teacher if texts is None else trim_vocabulary(teacher, tokenizer, texts)[0]  # type: ignore[arg-type]
        budget: dict[str, Any] = {"max_latency_ms": max_latency_ms, "max_size_mb": max_size_mb}
        layers = student_within(start, **budget, embedding_size=embedding_size)
    if texts is not None:
        whole = make_student(
            teacher, layers, checkpoint=checkpoint, embedding_size=embedding_size, revision=revision,
            id2label=id2label, trust_remote_code=trust_remote_code, seed=seed, **shape,
        )  # fmt: skip
        return trim_vocabulary(whole, tokenizer, texts)[:2]  # type: ignore[arg-type]
    if embedding_size is not None:
        if teacher is None or layers is None or (isinstance(layers, str) and layers in SMALL_STUDENTS):
            raise ValueError("embedding_size is of layers or a shape of a teacher: give teacher and layers")
        wide = make_student(teacher, layers, seed=seed, **shape)
        return factorize_embeddings(wide, rank=embedding_size)[0]
    if (layers is None) == (checkpoint is None):
        raise ValueError("give either layers (of the teacher) or checkpoint (a path or Hub id), and not both")
    if checkpoint is None:
        return _of_teacher(teacher, layers, id2label, seed, shape)  # type: ignore[arg-type]
    if shape:
        raise ValueError(f"{', '.join(shape)}: a checkpoint has the shape that it has, so leave this out")
    if id2label is None and teacher is not None:
        id2label = teacher.config.id2label  # type: ignore[assignment]
    return _from_checkpoint(checkpoint, revision, id2label, trust_remote_code, seed)


def student_within(
    teacher: PreTrainedModel,
    *,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    embedding_size: int | None = None,
    fits: Callable[[Any], bool] = lambda config: True,
) -> str:
    """Say which student of a teacher fits a budget: of those that do, the one with the most weights in use.

    Candidates are all numbers of its layers, the narrower shapes of `nlpkd.students.SHAPES`, a BiLSTM and a
    TextCNN; those of which no student of this teacher can be made are left out. Weights in use are those beside
    embedding tables, of which a text reads a few rows.

    Args:
        teacher: the model to start from.
        max_latency_ms: see `make_student`; measured by the main process, whose choice all processes take.
        max_size_mb: likewise.
        embedding_size: of the students' factorised embeddings, where they have such ones.
        fits: says of a candidate's config whether it may be chosen, such as whether the objectives can match it.

    Returns:
        The student, as in `"layers:3"`, for `make_student`.

    Raises:
        ValueError: if nothing fits.
    """

    def choose() -> str:
        candidates = _candidates(_merged(teacher), embedding_size, fits)
        return choose_within(candidates, max_latency_ms=max_latency_ms, max_size_mb=max_size_mb)[0]

    return decided_by_main_process(choose)


def _candidates(
    teacher: PreTrainedModel, embedding_size: int | None, fits: Callable[[Any], bool]
) -> dict[str, PreTrainedModel]:
    """Make every student that can be made and may be chosen, the one with the most weights in use first."""
    depths = [f"layers:{count}" for count in range(teacher.config.num_hidden_layers, 0, -1)]
    candidates, reasons = {}, {}
    for name in (*depths, *SHAPES, *SMALL_STUDENTS):
        try:
            candidates[name] = make_student(teacher, name, embedding_size=embedding_size)
        except ValueError as error:
            reasons[name] = str(error)
    if missing := [name for name in reasons if name in depths]:
        logger.warning("No student can be made of %s: %s", ", ".join(missing), reasons[missing[0]])
    candidates = {name: model for name, model in candidates.items() if fits(model.config)}
    if not candidates:
        raise ValueError(reasons.get(depths[0], "there is no student of this teacher that the objectives can match"))
    return dict(sorted(candidates.items(), key=lambda each: _weights_in_use(each[1]), reverse=True))


def _weights_in_use(model: PreTrainedModel) -> int:
    tables = {
        parameter for part in model.modules() if isinstance(part, nn.Embedding) for parameter in part.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if parameter not in tables)


def _of_teacher(
    teacher: PreTrainedModel | None,
    layers: int | str | Sequence[int],
    id2label: Mapping[int, str] | None,
    seed: int,
    shape: Mapping[str, Any],
) -> PreTrainedModel:
    if isinstance(layers, str) and layers in SMALL_STUDENTS:
        return small_student(layers, teacher, id2label=id2label, seed=seed, **shape)
    if teacher is None:
        raise ValueError(f"layers={layers!r} are layers of a teacher: pass the teacher")
    if unknown := sorted(shape.keys() - _WIDTHS):
        raise ValueError(f"make_student has no argument {', '.join(unknown)}; widths are {', '.join(sorted(_WIDTHS))}")
    teacher = _merged(teacher)
    if isinstance(layers, str) and layers in SHAPES:
        if both := sorted(shape.keys() & SHAPES[layers].keys()):
            raise ValueError(
                f"{', '.join(both)} of {layers} is {[SHAPES[layers][name] for name in both]}: leave it out"
            )
        return narrow_student(teacher, **SHAPES[layers], **shape, seed=seed)
    chosen = _chosen_layers(layers, getattr(teacher.config, "num_hidden_layers", 0))
    return narrow_student(teacher, layers=chosen, **shape, seed=seed) if shape else _from_layers(teacher, chosen)


def _chosen_layers(layers: int | str | Sequence[int], depth: int) -> list[int]:
    if isinstance(layers, str):
        match = re.fullmatch(r"layers:(\d+(?:,\d+)*)", layers)
        if match is None:
            raise ValueError(
                f"layers={layers!r} names no layers: use 'layers:3', 3, 'layers:2,4,6', [2, 4, 6], a shape "
                f"({', '.join(SHAPES)}), or another kind of student ({', '.join(SMALL_STUDENTS)})"
            )
        numbers = [int(number) for number in match[1].split(",")]
        layers = numbers if len(numbers) > 1 else numbers[0]
    if isinstance(layers, int):
        return uniform_layers(layers, depth)
    chosen = [int(layer) for layer in layers]
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 1 or chosen[-1] > depth:
        raise ValueError(f"layers must be ascending numbers from 1 to {depth}, the teacher's depth, got {chosen}")
    return chosen


def _merged(teacher: PreTrainedModel) -> PreTrainedModel:
    """Give a teacher in a peft wrapper without it, its adapter in the weights."""
    if not hasattr(teacher, "merge_and_unload"):
        return teacher
    adapted: Any = copy.deepcopy(teacher)
    return adapted.merge_and_unload()


def _from_layers(teacher: PreTrainedModel, chosen: Sequence[int]) -> PreTrainedModel:
    if not isinstance(teacher, PreTrainedModel) or any(hasattr(module, "base_layer") for module in teacher.modules()):
        raise ValueError(
            f"{type(teacher).__name__} is no transformers model, or has an adapter inside, so that its layers are not "
            "those of a plain student: merge the adapter first (peft's merge_and_unload), or pass a checkpoint instead"
        )
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer - 1] for layer in chosen]
    shared = getattr(config, "num_hidden_groups", None) == 1
    weights = teacher.state_dict() if shared else _weights_of_layers(teacher, chosen)
    with torch.random.fork_rng():
        student = type(teacher)(config).float()
    if differing := sorted(weights.keys() ^ student.state_dict().keys()):
        raise ValueError(
            f"layers {list(chosen)} of {type(teacher).__name__} make no model of its kind, since its layers differ in "
            f"their parts ({', '.join(differing)}): try layers that start with 1, as in 'layers:1,3,5', or a "
            "checkpoint"
        )
    student.load_state_dict(weights)
    return student.to(teacher.device).train()


def _weights_of_layers(teacher: PreTrainedModel, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
    """Give the teacher's weights without the layers not chosen, the others numbered anew."""
    depth = teacher.config.num_hidden_layers
    stacks = [
        name for name, module in teacher.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(stacks) != 1:
        raise ValueError(
            f"{type(teacher).__name__} has no single stack of {depth} layers to choose from (found "
            f"{stacks or 'none'}): pass a checkpoint instead"
        )
    prefix = f"{stacks[0]}."
    source = teacher.state_dict()
    weights = {name: tensor for name, tensor in source.items() if not name.startswith(prefix)}
    for position, layer in enumerate(chosen):
        old, new = f"{prefix}{layer - 1}.", f"{prefix}{position}."
        weights |= {new + name[len(old) :]: tensor for name, tensor in source.items() if name.startswith(old)}
    return weights


def _from_checkpoint(
    checkpoint: str | Path,
    revision: str | None,
    id2label: Mapping[int, str] | None,
    trust_remote_code: bool,
    seed: int,
) -> PreTrainedModel:
    labels: dict[str, Any] = {}
    if id2label is not None:
        names = {int(k): str(name) for k, name in id2label.items()}
        labels = {"num_labels": len(names), "id2label": names, "label2id": {name: k for k, name in names.items()}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student, _ = load_classifier(
            checkpoint, revision=revision, trust_remote_code=trust_remote_code, ignore_mismatched_sizes=True, **labels
        )
    return student.train()


def with_fresh_pooler(model: PreTrainedModel, seed: int = 42) -> PreTrainedModel:
    """Draw a backbone's pooler anew, as `from_config` would: weights from N(0, initializer_range^2), biases 0.

    Sentence encoders are trained on the mean of all tokens. Their checkpoints bring a pooler along that nothing has
    trained, and that weight decay has shrunk (that of all-MiniLM-L6-v2 has a standard deviation of 0.009 in place of
    0.02, and biases of 0), while a classifier starts from it.

    Args:
        model: a classifier with a pooler, changed in place.
        seed: of the numbers.

    Returns:
        The model.

    Raises:
        ValueError: if it has no pooler.
    """
    pooler = getattr(model.base_model, "pooler", None)
    if not isinstance(pooler, nn.Module) or not any(True for _ in pooler.parameters()):
        raise ValueError(
            f"fresh_pooler=True: {type(model).__name__} has no pooler that could be drawn anew: leave it out"
        )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for layer in (module for module in pooler.modules() if isinstance(module, nn.Linear)):
            layer.weight.normal_(std=model.config.initializer_range)
            if layer.bias is not None:
                layer.bias.zero_()
    return model
