"""What a model is made of."""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.data.labels.classes import Classes, plain_name
from nlpkd.data.tokenization import SEGMENTS, TOKEN_COLUMNS, with_limit
from nlpkd.models.files.saved_config import refuse_unsaved_config, settle_model
from nlpkd.models.limits import positions_of
from nlpkd.models.padding import is_causal
from nlpkd.utils.object_hashes import is_foreign

logger = logging.getLogger(__name__)


def as_student(model: nn.Module) -> nn.Module:
    """Return a model as it can be trained, and saved: without torch's wrappers, what is trained of it in float32.

    Half-precision weights are trained in float32 (mixed precision is `bf16` or `fp16` of the settings): a step of
    the usual size is less than the distance of two bfloat16 numbers, and is lost.

    Args:
        model: changed in place where its weights are float16 or bfloat16, or its config asks for more than logits,
            which is said.

    Returns:
        The model inside of torch.compile's, `DataParallel`'s or `DistributedDataParallel`'s wrapper, if it is in one.

    Raises:
        ValueError: if it is TorchScript, or no model, or its config can't be saved.
    """
    model = unwrapped(
        model, "student", "torch_compile=True compiles a student, and a launcher trains it on several GPUs"
    )
    settle_model(model)
    refuse_unsaved_config(model, "student")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # DeepSpeed's own shards are its own business.
    half = [each for each in trained if each.dtype in (torch.float16, torch.bfloat16) and not hasattr(each, "ds_id")]
    if half:
        logger.warning("The student's weights are %s: they are trained, and saved, in float32.", half[0].dtype)
    if half and getattr(model, "quantization_method", None) is None:
        model.float()
    for parameter in half:
        # Of a quantised model those of the adapter alone.
        parameter.data = parameter.data.float()
    return model


def refuse_other_than_model(model: Any, role: str) -> None:
    """Refuse what is no model, such as a path to one.

    Args:
        model: what was given for one.
        role: what messages call it.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"the {role} is {model!r:.80}, and must be a model: load it first (nlpkd.load_teacher, or "
            "AutoModelForSequenceClassification.from_pretrained), or call nlpkd.distill, which takes paths and Hub ids"
        )


def refuse_other_than_plain(model: Any, role: str, parts: Sequence[str] = ("config", "get_input_embeddings")) -> None:
    """Refuse what is no model of transformers, whose parts are known by their names.

    Args:
        model: what was given for one.
        role: what messages call it.
        parts: what is needed of it.

    Raises:
        ValueError: if it is no model, or lacks one of them.
    """
    refuse_other_than_model(model, role)
    if lacking := [name for name in parts if not hasattr(model, name)]:
        raise ValueError(
            f"the {role} is a {type(model).__name__}, which has no {lacking[0]}: give a model of transformers (of an "
            "ONNX file that of its folder: nlpkd.load_teacher)"
        )


def unwrapped(model: nn.Module, role: str, advice: str = "") -> nn.Module:
    """Return the model inside of torch.compile's, `DataParallel`'s or `DistributedDataParallel`'s wrapper, and say so.

    Args:
        model: any module.
        role: what messages call it.
        advice: to who wants what the wrapper does.

    Returns:
        The model; itself where it is in no wrapper.

    Raises:
        ValueError: if it is no model, or TorchScript, whose forward does not tell what it takes, or has weights
            without values.
    """
    refuse_other_than_model(model, role)
    inner = model
    while (found := extract_model_from_parallel(inner, keep_torch_compile=False)) is not inner:
        inner = found
    if isinstance(inner, torch.jit.ScriptModule):
        raise ValueError(f"the {role} is TorchScript ({type(inner).__name__}): pass the model that it was made of")
    empty = [name for name, each in inner.named_parameters() if each.is_meta or is_lazy(each)]
    # Accelerate keeps weights that it offloads on the device "meta".
    if empty and not hasattr(inner, "hf_device_map") and not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            f"the {role} has weights without values ({empty[0]}): load them (from_pretrained, and not under "
            'torch.device("meta")), or run a lazy module once before'
        )
    if inner is not model:
        logger.warning("The %s is used without %s%s.", role, type(model).__name__, advice and f": {advice}")
    return inner


def refuse_untrained(student: nn.Module, optimizer: Any = None) -> None:
    """Refuse a training that would leave a student as it is.

    Args:
        student: the model to train.
        optimizer: that the user made, or None.

    Raises:
        ValueError: if none of its weights takes gradients, or the optimizer has none of them.
    """
    trained = {id(each) for each in student.parameters() if each.requires_grad}
    if not trained:
        raise ValueError("nothing of the student would be trained: all its weights have requires_grad=False")
    # DeepSpeed's stand-in for an optimizer has no groups.
    groups = getattr(optimizer, "param_groups", None)
    held = None if groups is None else {id(each) for group in groups for each in group["params"]}
    if held is not None and not trained & held:
        raise ValueError(
            "the optimizer has none of the student's weights: make it of the student's own parameters(), or pass "
            "optimizer_cls_and_kwargs"
        )


def without_adapter(model: nn.Module) -> nn.Module:
    """Return the transformers model inside of a peft adapter's wrapper; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def foreign_hook(model: nn.Module, but: Container[nn.Module] = ()) -> str | None:
    """Find a module or parameter with a hook of somebody's own, or with a forward that somebody replaced.

    Args:
        model: any module.
        but: modules in it to pass over.

    Returns:
        Its name, "the whole model" for the model itself; None where there is none.
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for name, module in model.named_modules():
        if module in but:
            continue
        hooks = [hook for kind in kinds for hook in getattr(module, kind).values()]
        # Accelerate keeps the forward that it wraps for mixed precision.
        replaced = "forward" in vars(module) and "_original_forward" not in vars(module)
        hooks += [vars(module)["forward"]] if replaced else []
        if any(is_foreign(getattr(hook, "func", hook)) for hook in hooks):
            return name or "the whole model"
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return name
    return None


def input_table(model: Any) -> nn.Module | None:
    """Return a model's input embeddings, None where it has none of its own (CANINE hashes characters)."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def forward_arguments(model: nn.Module) -> set[str]:
    """Return the names of what a model's forward takes.

    Args:
        model: any module. Of one in an adapter's wrapper the model inside is looked at. A forward of `**inputs` alone
            takes what the modules right below it take all of them, and a tokenizer's columns where these don't say it.

    Returns:
        The names. Segments are left out where there is a table of one of them (RoBERTa) or none, and of GPT-2 and its
        kin, which look them up among the words; a tokenizer of another family gives them all the same.
    """
    model = without_adapter(model)
    parameters = inspect.signature(model.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name for name, parameter in parameters.items() if parameter.kind not in variable}
    if not _reads_segments(model):
        named.discard(SEGMENTS)
    if named or inspect.Parameter.VAR_KEYWORD not in kinds:
        return named
    inside = [forward_arguments(child) for child in model.children() if type(child).forward is not nn.Module.forward]
    reading = [names for names in inside if "input_ids" in names]
    return set.intersection(*reading) if reading else set(TOKEN_COLUMNS)


def _reads_segments(model: nn.Module) -> bool:
    """Check whether the second text of a pair may have another segment than the first."""
    kinds = _kinds_of_segments(model)
    return not is_causal(model) if kinds is None else kinds > 1


def _kinds_of_segments(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    return getattr(getattr(config, "base_config", None) or config, "type_vocab_size", None)


def readable(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model reads of a tokenizer's columns.

    Args:
        model: as `forward_arguments` takes it.
        batch: the columns by name.

    Returns:
        Those that its forward takes.
    """
    accepted = forward_arguments(model)
    return {name: column for name, column in batch.items() if name in accepted}


def matching_tokenizer(tokenizer: Any, model: nn.Module) -> Any:
    """Return a tokenizer that gives of its own accord what a model reads: its segments, and no token too many.

    What is saved beside a model is called by pipelines that know nothing of the model.

    Args:
        tokenizer: the model's; left as it is.
        model: the model.

    Returns:
        The tokenizer itself where it is so, or is none of transformers, and else a copy.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    names = list(tokenizer.model_input_names)
    if SEGMENTS in names and SEGMENTS not in forward_arguments(model):
        names.remove(SEGMENTS)
    elif SEGMENTS not in names and SEGMENTS in forward_arguments(model) and (_kinds_of_segments(model) or 0) > 1:
        names.append(SEGMENTS)
    limited = with_limit(tokenizer, positions_of(getattr(model, "config", None)))
    if names == tokenizer.model_input_names:
        return limited
    matching = copy.copy(limited)
    matching.model_input_names = names
    # What is written to tokenizer_config.json.
    matching.init_kwargs = {**tokenizer.init_kwargs, "model_input_names": names}
    return matching


def required_arguments(model: nn.Module) -> set[str]:
    """Return the names of what a model's forward can't do without."""
    parameters = inspect.signature(without_adapter(model).forward).parameters.values()
    kinds = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.POSITIONAL_ONLY,
    )
    return {each.name for each in parameters if each.default is each.empty and each.kind in kinds}


def is_quantized(model: nn.Module) -> bool:
    """Check whether a model has layers of torch's eager quantisation, which mixed precision can't run."""
    return any(type(module).__module__.startswith("torch.ao.nn.") for module in model.modules())


def classification_head(model: nn.Module) -> nn.Linear | None:
    """Return the last linear layer of a classifier's head, which gives a logit for each label; None without one."""
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    body = getattr(model, "base_model", None)
    within = set() if body is None or body is model else set(body.modules())
    layers = [each for each in model.modules() if isinstance(each, nn.Linear) and each not in within]
    return next((each for each in reversed(layers) if each.out_features == labels), None)


def permute_head(model: nn.Module, order: Sequence[int]) -> None:
    """Change the order of a classifier's logits in place: logit `k` becomes what logit `order[k]` was.

    Args:
        model: the classifier, with its thresholds where these have no names; one without a linear head stays as it is.
        order: every index once.
    """
    head, config = classification_head(model), getattr(model, "config", None)
    if head is None:
        return
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[list(order)])
    if isinstance(thresholds := getattr(config, "thresholds", None), list):
        config.thresholds = [thresholds[number] for number in order]  # type: ignore[union-attr]


def lacks_head(model: nn.Module, missing: Container[str]) -> bool:
    """Check whether a classifier's head is among the parameters that a checkpoint did not have."""
    head = classification_head(model)
    return any(name in missing for name, each in model.named_parameters() if head is not None and each is head.weight)


def sort_drawn_head(model: Any) -> None:
    """Put a head that was just drawn into the order of its classes' names, so that each class always has the same.

    Args:
        model: the classifier, whose config names the classes; the same seed then gives a class the same weights in
            every order.
    """
    names = list(map(plain_name, model.config.id2label.values()))
    ranks = sorted(range(len(names)), key=names.__getitem__)
    if not Classes.of(model.config.id2label).is_generic:
        permute_head(model, [ranks.index(number) for number in range(len(names))])


def all_parameters(model: nn.Module) -> list[Tensor]:
    """List a model's parameters, those that modules share once for each of them."""
    return [parameter for module in model.modules() for parameter in module.parameters(recurse=False)]


HEADS_OUT = re.compile(r"\b(query|key|value|q_lin|k_lin|v_lin|attn\.[qkv])\.(weight|bias)$")


HEADS_IN = re.compile(r"\b(attention\.output\.dense|out_lin|attn\.o)\.weight$")


def size_name(config: Any, size: str) -> str:
    """Return the name that a family's config has for a size."""
    return "hidden_dim" if size == "intermediate_size" and not hasattr(config, size) else size


def layer_stack(model: PreTrainedModel) -> str:
    """Find the stack of a model's layers.

    Args:
        model: an encoder or decoder of transformers.

    Returns:
        The stack's name and a dot, as in `"bert.encoder.layer."`: what the names of its layers' weights start with.

    Raises:
        ValueError: if the model has none, or several.
    """
    depth = model.config.num_hidden_layers
    stacks = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(stacks) != 1:
        raise ValueError(
            f"{type(model).__name__} has no single stack of {depth} layers to choose from (found "
            f"{stacks or 'none'}): pass a checkpoint instead"
        )
    return f"{stacks[0]}."


def axes_following(teacher: PreTrainedModel, **sizes: int) -> dict[str, list[int]]:
    """Find the axes of parameters that follow a size of the config.

    Args:
        teacher: the model.
        **sizes: settings of the config and the values to try, other than its own.

    Returns:
        For each parameter by name the axes whose length another value changes.
    """
    config = copy.deepcopy(teacher.config)
    if "hidden_size" in sizes and getattr(config, "embedding_size", None) == config.hidden_size:
        config.embedding_size = sizes["hidden_size"]
    for size, value in sizes.items():
        setattr(config, size_name(config, size), value)
    with torch.device("meta"):
        probe = dict(type(teacher)(config).named_parameters())
    return {
        name: [axis for axis, size in enumerate(tensor.shape) if probe[name].shape[axis] != size]
        for name, tensor in teacher.named_parameters()
    }


def top_indices(importance: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest values of `(n,)`, in ascending order."""
    return importance.topk(count).indices.sort().values
