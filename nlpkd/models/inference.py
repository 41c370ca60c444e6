"""Run a model for its outputs alone: in eval mode, where it is, by a copy that gives the same outputs sooner."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nlpkd.models.attention import CAPTURING_SDPA
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.first_token import first_token_only, reads_first_token


def inference_copy(model: nn.Module, device_type: str, first_token: bool) -> nn.Module:
    """Copy a frozen model's modules, not its weights, into what gives the same outputs sooner.

    Args:
        model: whose weights no longer change.
        device_type: where it runs.
        first_token: let the last layer give the first token alone; see `nlpkd.models.first_token`. Hooks and modules
            that the model is given later, the copy does not have.

    Returns:
        A copy that shares the weights, but within autocast those of linear layers, which are cast once to its dtype,
        as autocast would on every batch, and that runs nlpkd's attention where it ran sdpa: the same outputs but for
        rounding. The model itself where it is not transformers' own or can't be copied; an ensemble of such copies.
    """
    if isinstance(model, TeacherEnsemble):
        return model.with_members([inference_copy(member, device_type, first_token) for member in model.members])
    first_token = first_token and reads_first_token(model)
    casts = torch.is_autocast_enabled(device_type)
    if not isinstance(model, PreTrainedModel):
        return model
    # transformers' sdpa waits for a GPU in every forward pass, to learn whether the batch has padding; in bf16 on the
    # CPU the plain products of short texts are sooner.
    own_attention = model.config._attn_implementation == "sdpa" and (casts or device_type != "cpu")
    if not (first_token or casts or own_attention):
        return model
    # deepcopy takes what its memo has instead of copying it.
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if casts:
        parts = [(module, tensor) for module in model.modules() for tensor in module.parameters(recurse=False)]
        elsewhere = {id(tensor) for module, tensor in parts if type(module) is not nn.Linear}
        dtype = torch.get_autocast_dtype(device_type)
        for _, tensor in parts:
            if id(tensor) not in elsewhere and tensor.dtype == torch.float32:
                shared[id(tensor)] = nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
    try:
        copied = copy.deepcopy(model, shared)
    except Exception:
        # Weights that a parametrisation computes, or modules of one's own that raise whatever they like.
        return model
    if first_token:
        first_token_only(copied)
    if own_attention:
        copied.set_attn_implementation(CAPTURING_SDPA)
    return copied


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without gradients, and restore the training flag of every module.

    Args:
        model: any module.

    Yields:
        Nothing.
    """
    with in_eval_mode(model), torch.inference_mode():
        yield


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and restore the training flag of every module.

    Args:
        model: any module.

    Yields:
        Nothing.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return where a model is and in which dtype, judged by its first parameter.

    Args:
        model: any module.

    Returns:
        Device and dtype; cpu and float32 for a module without parameters.
    """
    parameter = next(model.parameters(), torch.empty(0))
    return parameter.device, parameter.dtype
