"""How the objectives of a run are weighed against each other while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from nlpkd.objectives.base import Objective


class Weighting(nn.Module):
    """Fixed weights: the sum of w_i L_i.

    Args:
        objectives: what is weighed; their `weight` is w_i.
    """

    name: ClassVar[str] = "fixed"
    learned: ClassVar[bool] = False
    scheduled: ClassVar[bool] = False

    def __init__(self, objectives: Sequence[Objective]):
        super().__init__()
        self.gold = [not objective.teacher_needed for objective in objectives]
        # A list, so that the objectives' parameters are not this module's too.
        self._weighed = list(objectives)

    @property
    def base(self) -> list[float]:
        """The objectives' weights as they are now."""
        return [objective.weight for objective in self._weighed]

    def factors(self, progress: float) -> Tensor | list[float]:
        """Return what each objective is multiplied by, `(objectives,)`.

        Args:
            progress: share of the training that is done, 0 to 1.
        """
        return self.base

    def at_the_end(self) -> list[float]:
        """Return what an evaluation weighs each objective by: weights at a schedule's end, learned ones at the start.

        So that the losses of two evaluations tell their students apart, and not how far the training is.
        """
        return self.base

    def penalty(self, shares: Tensor) -> Tensor | float:
        """Compute the term that keeps learned weights from moving to 0.

        Args:
            shares: how much of the optimizer step's mean this micro-batch makes, `(objectives,)`.
        """
        return 0.0


class LinearWeighting(Weighting):
    """Weights that move evenly from the teacher to the gold labels: teacher annealing.

    w_i * (1 - p) for objectives on the teacher, w_i * p for those on gold labels, p the share of the training that is
    done before the step, k / N of step k of N: Clark et al. 2019, "BAM! Born-Again Multi-Task Networks for Natural
    Language Understanding", arXiv:1907.04829, section 3.2, where one target is mixed; here each loss is weighed, which
    has the same gradient at temperature 1.

    Args:
        objectives: what is weighed, of both kinds.

    Raises:
        ValueError: if there are objectives of one kind only.
    """

    name = "linear"
    scheduled = True

    def __init__(self, objectives: Sequence[Objective]):
        super().__init__(objectives)
        if len(set(self.gold)) != 2:
            raise ValueError(
                "weighting='linear' moves from the teacher to the gold labels and needs objectives on both, such as "
                "[CrossEntropyLoss(), ForwardKLLoss()]"
            )

    def factors(self, progress: float) -> list[float]:
        """Interpolate; see `Weighting.factors`."""
        return [w * (progress if gold else 1 - progress) for w, gold in zip(self.base, self.gold, strict=True)]

    def at_the_end(self) -> list[float]:
        """Return the weights of the gold labels alone; see `Weighting.at_the_end`."""
        return self.factors(1.0)


class UncertaintyWeighting(Weighting):
    """Learned weights: the sum of w_i (exp(-s_i) L_i + s_i), s_i learned, 0 at the start.

    Kendall, Gal and Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", arXiv:1705.07115, equation 10, with s_i = log sigma_i^2 and twice their value. The best s_i is log L_i:
    every objective is brought to the same size, so that w_i says how much it matters and not in which units it comes.

    Args:
        objectives: what is weighed.
    """

    name = "uncertainty"
    learned = True

    def __init__(self, objectives: Sequence[Objective]):
        super().__init__(objectives)
        self.log_variances = nn.Parameter(torch.zeros(len(objectives)))

    def factors(self, progress: float) -> Tensor:
        """Compute w_i exp(-s_i); see `Weighting.factors`."""
        return _times(self.base, (-self.log_variances).exp())

    def penalty(self, shares: Tensor) -> Tensor:
        """Compute the micro-batch's share of the sum of w_i s_i; see `Weighting.penalty`."""
        return _times(self.base, self.log_variances * shares).sum()


def _times(weights: list[float], values: Tensor) -> Tensor:
    """Multiply values by numbers of the host, without a copy to the device, which would wait for it."""
    return torch.stack([weight * value for weight, value in zip(weights, values.unbind(), strict=True)])


WEIGHTINGS: dict[str, type[Weighting]] = {
    kind.name: kind for kind in (Weighting, LinearWeighting, UncertaintyWeighting)
}
"""By the names that `DistillationConfig.weighting` takes."""
