"""A pull towards the weights that the student started from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Anchor:
    """The penalty weight / 2 * sum over parameters of (theta - theta_start)^2, and its gradient.

    L2-SP (Li, Grandvalet and Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", arXiv:1802.01483, equation 2): a regulariser on parameters, not an objective on outputs. It holds a copy
    of the starting weights.

    Args:
        model: the student at its start.
        weight: of the penalty, > 0.
    """

    def __init__(self, model: nn.Module, weight: float):
        self.weight = weight
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def pull(self, scale: float = 1.0) -> Tensor:
        """Add the penalty's gradient to the parameters' gradients.

        Args:
            scale: what the gradients are multiplied by (fp16's loss scale).

        Returns:
            The penalty, a float32 scalar.
        """
        moved = [now - start for now, start in zip(self.parameters, self.start, strict=True)]
        for parameter, difference in zip(self.parameters, moved, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(difference, alpha=self.weight * scale)
        return self.weight / 2 * torch.stack([d.float().square().sum() for d in moved]).sum()
