"""What a student is trained on; each objective one class, each family one file."""

from nlpkd.objectives.attention import AttentionMSELoss
from nlpkd.objectives.base import LayerObjective, Objective
from nlpkd.objectives.hidden import HiddenStateMSELoss
from nlpkd.objectives.logits import CrossEntropyLoss, ForwardKLLoss
from nlpkd.objectives.presets import PRESETS

__all__ = [
    "AttentionMSELoss",
    "CrossEntropyLoss",
    "ForwardKLLoss",
    "HiddenStateMSELoss",
    "LayerObjective",
    "Objective",
    "PRESETS",
]
