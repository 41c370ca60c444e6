"""What a student is trained on; each objective one class, each family one file."""

from nlpkd.objectives.adversarial import AdversarialLoss
from nlpkd.objectives.attention import AttentionKLLoss, AttentionMSELoss
from nlpkd.objectives.base import LayerObjective, Objective
from nlpkd.objectives.correlation import DISTLoss
from nlpkd.objectives.examples import ContrastiveLoss, RelationalAngleLoss, RelationalDistanceLoss
from nlpkd.objectives.features import FeatureDistributionLoss, GramLoss
from nlpkd.objectives.hidden import EmbeddingMSELoss, HiddenStateCosineLoss, HiddenStateMSELoss, PatientLoss
from nlpkd.objectives.labels import CrossEntropyLoss, TeacherLabelLoss
from nlpkd.objectives.logits import DecoupledKDLoss, ForwardKLLoss, JSDLoss, LogitMSELoss, ReverseKLLoss
from nlpkd.objectives.presets import PRESETS, Stage, resolve
from nlpkd.objectives.relation import SelfAttentionRelationLoss, ValueRelationLoss
from nlpkd.objectives.temperature import ConstantTemperature, FocalTemperature, LinearTemperature, Temperature

__all__ = [
    "PRESETS",
    "AdversarialLoss",
    "AttentionKLLoss",
    "AttentionMSELoss",
    "ConstantTemperature",
    "ContrastiveLoss",
    "CrossEntropyLoss",
    "DISTLoss",
    "DecoupledKDLoss",
    "EmbeddingMSELoss",
    "FeatureDistributionLoss",
    "FocalTemperature",
    "ForwardKLLoss",
    "GramLoss",
    "HiddenStateCosineLoss",
    "HiddenStateMSELoss",
    "JSDLoss",
    "LayerObjective",
    "LinearTemperature",
    "LogitMSELoss",
    "Objective",
    "PatientLoss",
    "RelationalAngleLoss",
    "RelationalDistanceLoss",
    "ReverseKLLoss",
    "SelfAttentionRelationLoss",
    "Stage",
    "TeacherLabelLoss",
    "Temperature",
    "ValueRelationLoss",
    "resolve",
]
