"""A student of the teacher's architecture with narrower widths, started from the teacher's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nlpkd.models.layers import choose_layers
from nlpkd.models.structure import HEADS_IN, HEADS_OUT, axes_following, layer_stack, size_name, top_indices
from nlpkd.students.teacher_layers import config_of_layers, renumbered

_Tag = tuple[str, str]
"""What an axis of a weight runs over, and the layer that it belongs to, "" for all of them."""


_STREAM, _POOLED, _TABLE = ("stream", ""), ("pooled", ""), ("table", "")


_TRIED_TOKENS = 8
"""Tokens of the text on which a family's weights are tried."""


_TRIED_VOCABULARY = 64
"""Rows of the embedding table of the model on which they are."""


def narrow_student(
    teacher: PreTrainedModel,
    *,
    layers: int | Sequence[int] | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    embedding_size: int | None = None,
    initialization: str = "svd",
    seed: int = 42,
) -> PreTrainedModel:
    """Make a student with narrower widths, each weight W of the teacher's turned into P' W Q.

    P and Q are what the student keeps of the axes. Of feed-forward units, attention heads (and of each head's
    dimensions; a student's head that is wider than the teacher's is made of several) and the pooler's units the ones
    with the largest sum of squared weights stay. All layers share the residual stream `(batch, seq, hidden)`, and so
    one P, read off G, the sum of W W' over all weights that read or write it:

    - `"slice"` keeps the dimensions with the largest diagonal of G;
    - `"svd"` keeps G's first eigenvectors, turned so that the mean over the wide dimensions is the mean over the
      narrow ones, which layer norm takes off. A layer norm's scale g is one number a dimension and can't be turned: it
      becomes the diagonal of P' diag(g) P, times the square root of the share of G that P keeps times wide / narrow,
      an approximation. At full width it is exact for scales that are all equal.

    Args:
        teacher: of a BERT-like family (BERT, DistilBERT, RoBERTa, XLM-R, ELECTRA, MPNet).
        layers: how many, evenly spread, or which, counted from 1; all if None.
        hidden_size: width of the stream; the teacher's if None, as for the sizes below.
        intermediate_size: feed-forward units of a layer.
        num_attention_heads: heads of a layer, a divisor of `hidden_size`.
        embedding_size: width of the embedding table in families that project it (ELECTRA).
        initialization: `"svd"`, `"slice"`, or `"random"` for the shape alone.
        seed: of `"random"`.

    Returns:
        A float32 model in train mode that shares no memory with the teacher.

    Raises:
        ValueError: if a size is larger than the teacher's, or the family's weights are not known, which is tried.
    """
    if initialization not in ("slice", "svd", "random"):
        raise ValueError(f"initialization must be 'svd', 'slice' or 'random', got {initialization!r}")
    depth = getattr(teacher.config, "num_hidden_layers", 0)
    if not depth:
        raise ValueError(f"{type(teacher).__name__} has no layers to make narrower: choose a checkpoint")
    chosen = choose_layers(depth if layers is None else layers, depth)
    sizes = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
        "embedding_size": embedding_size,
    }
    config = config_of_layers(teacher.config, chosen)
    config = _resized(config, {name: size for name, size in sizes.items() if size is not None})
    if initialization != "random":
        _refuse_other_weights(teacher, config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = type(teacher)(config).float()
    if initialization != "random":
        _copy_narrowed(student, teacher, chosen, initialization)
    return student.to(teacher.device).train()


def _resized(config: Any, sizes: Mapping[str, int]) -> Any:
    resized = copy.deepcopy(config)
    for size, value in sizes.items():
        has = getattr(config, size_name(config, size), None)
        if has is None or not 1 <= value <= has:
            raise ValueError(
                f"{size}={value} is not within the teacher's {has}: a student starts from its teacher's weights, so "
                "choose a narrower shape, or a pretrained checkpoint of this one"
            )
        setattr(resized, size_name(config, size), value)
    if getattr(config, "embedding_size", None) == config.hidden_size and "embedding_size" not in sizes:
        resized.embedding_size = resized.hidden_size
    if resized.hidden_size % resized.num_attention_heads:
        raise ValueError(
            f"hidden_size={resized.hidden_size} is no multiple of num_attention_heads={resized.num_attention_heads}"
        )
    return resized


def _refuse_other_weights(teacher: PreTrainedModel, config: Any) -> None:
    """Refuse a family that has weights of another meaning than their names and shapes tell.

    It is tried on a model of the student's widths with one layer and random weights. Turned at its full width, that
    gives the same logits as before if each weight was turned as the family reads it.

    Args:
        teacher: of the family.
        config: the student's.

    Raises:
        ValueError: if it gives others, or can't be turned at all.
    """
    config, pad = config_of_layers(config, [1]), getattr(config, "pad_token_id", None) or 0
    if hasattr(config, "vocab_size"):
        config.vocab_size = min(config.vocab_size, max(_TRIED_VOCABULARY, pad + 1))
    ids = torch.tensor([[token for token in range(_TRIED_TOKENS + 1) if token != pad]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        tried = type(teacher)(config).float().eval()
        for parameter in tried.parameters():
            # The scale of a layer norm stays 1: others can't be turned exactly.
            if parameter.ndim > 1 or not (parameter == 1).all():
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        try:
            expected = tried(**inputs).logits
        except RuntimeError:
            # Some Nystromformers read texts of one length alone.
            return
    turned = copy.deepcopy(tried)
    try:
        _copy_narrowed(turned, tried, [1], "svd")
        with torch.no_grad():
            found = turned(**inputs).logits
    except RuntimeError as error:
        raise _other_weights(teacher, error) from error
    difference = (expected - found).abs().max().item()
    if not difference <= 1e-3 * max(1.0, expected.abs().max().item()):
        raise _other_weights(teacher, f"turned at its full width its logits are {difference:.1g} off")


def _other_weights(teacher: PreTrainedModel, found: object) -> ValueError:
    return ValueError(
        f"{type(teacher).__name__} has weights of another meaning than those of BERT's relatives ({found!s:.100}): "
        "take layers of the teacher without widths, or a checkpoint"
    )


def _copy_narrowed(
    student: PreTrainedModel, teacher: PreTrainedModel, chosen: Sequence[int], initialization: str
) -> None:
    """Copy the teacher's weights into the student, narrowed."""
    prefix = layer_stack(teacher)
    source = {name: tensor.detach().float() for name, tensor in teacher.named_parameters()}
    weights, of_teacher = renumbered(source, prefix, chosen), _tags(teacher, prefix)
    tags = {name: of_teacher[name] for name in weights}
    if more := [name for name, _ in student.named_parameters() if name not in weights]:
        raise _other_weights(teacher, f"at these widths it has {more[0]} as well")
    # The sum of W W' over the weights on each axis, `(axis, axis)`.
    grams: dict[_Tag, Tensor] = {}
    for name, tensor in weights.items():
        for axis, tag in enumerate(tags[name]):
            if tag is not None and tensor.ndim == 2:
                rows = tensor.movedim(axis, 0).double()
                grams[tag] = grams.get(tag, torch.zeros(())) + rows @ rows.T
    kept, gain = _projections(grams, student, teacher, tags, initialization)
    # I-BERT has a class of its own for it.
    norms = {
        f"{name}.weight" for name, module in student.named_modules() if type(module).__name__.endswith("LayerNorm")
    }
    for name, parameter in student.named_parameters():
        tensor = weights[name]
        for axis, tag in enumerate(tags[name]):
            if tag in kept:
                matrix = kept[tag] ** 2 * (gain if tag == _STREAM else 1) if name in norms else kept[tag]
                tensor = torch.tensordot(tensor, matrix, dims=([axis], [0])).movedim(-1, axis)
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{name} of {type(teacher).__name__} can't be narrowed from {tuple(weights[name].shape)} to "
                f"{tuple(parameter.shape)}: keep the number of heads, or pass a checkpoint"
            )
        parameter.data.copy_(tensor)


def _tags(teacher: PreTrainedModel, prefix: str) -> dict[str, list[_Tag | None]]:
    """Find what each axis of each parameter runs over, by changing one size of the config after the other."""
    config = teacher.config
    table = {}
    try:
        hidden = axes_following(teacher, hidden_size=config.hidden_size + config.num_attention_heads)
        inner = axes_following(teacher, intermediate_size=getattr(config, size_name(config, "intermediate_size")) + 1)
        if getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:
            table = axes_following(teacher, embedding_size=config.embedding_size + 1)
    except (AttributeError, ValueError) as error:
        raise _other_weights(teacher, error) from error
    tags: dict[str, list[_Tag | None]] = {}
    heads = 0
    for name, tensor in teacher.named_parameters():
        layer = name[: name.index(".", len(prefix)) + 1] if name.startswith(prefix) else ""
        known = {_STREAM: hidden, ("inner", layer): inner, _TABLE: table}
        tags[name] = [
            next((tag for tag, axes in known.items() if axis in axes.get(name, ())), None)
            for axis in range(tensor.ndim)
        ]
        for pattern, axis in ((HEADS_OUT, 0), (HEADS_IN, 1)):
            if layer and pattern.search(name) and tags[name][axis] == _STREAM:
                tags[name][axis], heads = ("heads", layer), heads + 1
    if heads != 7 * config.num_hidden_layers:
        raise ValueError(
            f"the attention of {type(teacher).__name__} has weights of other names than query, key, value and output "
            "of BERT's relatives: take layers of the teacher, or a checkpoint"
        )
    _tag_pooled(teacher, prefix, tags)
    return tags


def _tag_pooled(teacher: PreTrainedModel, prefix: str, tags: dict[str, list[_Tag | None]]) -> None:
    """Tell the units between pooler and head from the stream: a nonlinearity stands between them."""
    after = [
        name
        for name, module in teacher.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(prefix)
    ]
    square = [name for name in after if tags[f"{name}.weight"] == [_STREAM, _STREAM]]
    for name in square:
        tags[f"{name}.weight"][0], tags[f"{name}.bias"] = _POOLED, [_POOLED]
    for name in after:
        if square and tags[f"{name}.weight"] == [None, _STREAM]:
            tags[f"{name}.weight"] = [None, _POOLED]


def _projections(
    grams: Mapping[_Tag, Tensor],
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tags: Mapping[str, list[_Tag | None]],
    initialization: str,
) -> tuple[dict[_Tag, Tensor], float]:
    """Compute what is kept of each axis, `(wide, narrow)`, and what a layer norm's scale is multiplied with."""
    narrow = {
        tag: parameter.shape[axis]
        for name, parameter in student.named_parameters()
        for axis, tag in enumerate(tags[name])
        if tag is not None
    }
    heads = teacher.config.num_attention_heads, student.config.num_attention_heads
    kept = {}
    for tag, gram in grams.items():
        size, importance = narrow[tag], gram.diagonal()
        chosen = _heads(importance, *heads, size) if tag[0] == "heads" else top_indices(importance, size)
        kept[tag] = torch.eye(len(importance), device=gram.device)[:, chosen]
    if initialization == "slice":
        return kept, 1.0
    kept[_STREAM], share = _basis(grams[_STREAM], narrow[_STREAM])
    return kept, (share * len(kept[_STREAM]) / narrow[_STREAM]) ** 0.5


def _heads(importance: Tensor, wide: int, narrow: int, size: int) -> Tensor:
    """Choose whole heads, and of each of them as many dimensions as the student's have: `(size,)`."""
    by_head = importance.view(wide, -1)
    width = by_head.shape[1]
    if size // narrow > width and size % width:
        raise ValueError(
            f"{narrow} heads of {size // narrow} dimensions can't be made of the teacher's, which have {width}: "
            f"choose more heads, or a hidden_size that is a multiple of {width}"
        )
    count, each = (narrow, size // narrow) if size // narrow <= width else (size // width, width)
    chosen = top_indices(by_head.sum(dim=1), count).tolist()
    return torch.cat([head * width + top_indices(by_head[head], each) for head in chosen])


def _basis(gram: Tensor, size: int) -> tuple[Tensor, float]:
    """Compute the first eigenvectors, turned to keep the mean a mean, `(wide, size)`, and their share of the whole."""
    values, vectors = torch.linalg.eigh(gram)
    basis = vectors[:, -size:]
    ones = basis.sum(dim=0)
    mirror = ones / ones.norm() - torch.full_like(ones, size**-0.5)
    if mirror.norm() > 1e-9:
        mirror = mirror / mirror.norm()
        basis = basis - 2 * torch.outer(basis @ mirror, mirror)
    return basis.float(), float(values[-size:].sum() / values.sum())
