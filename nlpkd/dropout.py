"""Dropout on the CPU from 16 random bits an element, where torch draws a whole number for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class QuickDropout(nn.Dropout):
    """`nn.Dropout` whose masks come from a quarter of the random numbers.

    An element is dropped with probability round(65536 p) / 65536, which is within 8e-6 of p, and else divided by one
    minus that probability, so that the mean stays. torch's CPU generator, seeded and resumed as ever, gives 64 bits at
    a time, which make four elements. Where that probability is 0 or 1, and beside the CPU, it is `nn.Dropout`.

    Args:
        p: probability of dropping an element.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of a tensor of any shape while training."""
        drawn = round(self.p * _LEVELS)
        if not self.training or input.device.type != "cpu" or not 0 < drawn < _LEVELS:
            return super().forward(input)
        count = input.numel()
        words = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        kept = words.view(torch.int16)[:count].view(input.shape) >= drawn - _LEVELS // 2
        return input * kept.to(input.dtype).mul_(_LEVELS / (_LEVELS - drawn))


class QuickDropouts:
    """A model whose dropout modules are quick ones for a while.

    Args:
        model: the model, changed in place; dropout that is no `nn.Dropout`, works in place or drops nothing stays.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        plain = {name: each for name, each in model.named_modules() if type(each) is nn.Dropout}
        self.own = {name: each for name, each in plain.items() if each.p and not each.inplace}
        for name, each in self.own.items():
            model.set_submodule(name, QuickDropout(each.p).train(each.training))

    def end(self) -> None:
        """Give the model its own dropout back."""
        for name, each in self.own.items():
            each.training = self.model.get_submodule(name).training
            self.model.set_submodule(name, each)
