"""A pull towards the weights that the student started from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Anchor:
    """The penalty weight / 2 * sum over parameters of (theta - theta_start)^2, and its gradient.

    L2-SP (Li, Grandvalet and Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", arXiv:1802.01483, equation 2): a regulariser on parameters, not an objective on outputs. It holds a copy
    of the starting weights of what is trained. A frozen parameter is not pulled, and is its own start until it is
    trained.

    Args:
        model: the student at its start.
        weight: of the penalty, > 0.
    """

    def __init__(self, model: nn.Module, weight: float):
        self.weight = weight
        self._parameters = list(model.parameters())
        self._start: dict[int, Tensor] = {}
        self._keep(parameter for parameter in self._parameters if parameter.requires_grad)

    def _keep(self, parameters: Iterable[Tensor]) -> None:
        self._start |= {id(each): each.detach().clone() for each in parameters if id(each) not in self._start}

    def hold(self) -> None:
        """Copy what is frozen too, since its values are about to be replaced by those of a checkpoint."""
        self._keep(self._parameters)

    @torch.no_grad()
    def pull(self, scale: float = 1.0) -> Tensor:
        """Add the penalty's gradient to the gradients of the parameters that are trained now.

        Args:
            scale: what the gradients are multiplied by (fp16's loss scale).

        Returns:
            The penalty, a float32 scalar.
        """
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        self._keep(trained)
        moved = [parameter - self._start[id(parameter)] for parameter in trained]
        for parameter, difference in zip(trained, moved, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(difference, alpha=self.weight * scale)
        return self.weight / 2 * torch.stack([d.float().square().sum() for d in moved]).sum()
