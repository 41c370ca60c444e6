"""One model of several: the mean of their weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


def average_weights(models: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """Average models weight by weight: theta = (1 / k) sum_i theta_i.

    That is the uniform soup of Wortsman et al. (2022), "Model soups", arXiv:2203.05482, section 2. It is meant for
    models that were fine-tuned from the same weights, the head's included: those of other starts are no neighbours,
    and their mean is no good model.

    Args:
        models: one or more of one shape; left as they are.

    Returns:
        A copy of the first with the mean of all, taken in float32.

    Raises:
        ValueError: if there is none, or their weights have other names or shapes.
    """
    if not models:
        raise ValueError("there are no models to average: give at least one")
    states = [model.state_dict() for model in models]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    for number, other in enumerate(shapes[1:], start=2):
        if differing := sorted(name for name, _ in shapes[0].items() ^ other.items()):
            raise ValueError(f"model {number} differs from the first in {differing[0]}: average models of one shape")
    averaged = copy.deepcopy(models[0])
    for name, tensor in averaged.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([state[name].float() for state in states]).mean(dim=0))
    return averaged
