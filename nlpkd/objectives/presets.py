"""Ways of distilling by name: a paper's objectives with its settings, in one stage or several."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nlpkd.objectives.attention import AttentionKLLoss, AttentionMSELoss
from nlpkd.objectives.base import Objective
from nlpkd.objectives.contract import refuse_other_objectives
from nlpkd.objectives.correlation import DISTLoss
from nlpkd.objectives.hidden import EmbeddingMSELoss, HiddenStateCosineLoss, HiddenStateMSELoss, PatientLoss
from nlpkd.objectives.idle import refuse_idle_class_weights
from nlpkd.objectives.labels import CrossEntropyLoss, GivenWeights, with_gold_settings
from nlpkd.objectives.logits import ForwardKLLoss, LogitMSELoss
from nlpkd.objectives.relation import SelfAttentionRelationLoss, ValueRelationLoss
from nlpkd.tasks import REGRESSION

if TYPE_CHECKING:
    from nlpkd.config import DistillationConfig

_RUN_OWN = frozenset({"output_dir", "push_to_hub", "resume_from_checkpoint", "seed", "data_seed"})
"""Settings of the whole run, as are those of further text (`augment`, ...)."""


class Stage:
    """A part of a training with objectives and settings of its own; the student goes on from stage to stage.

    Args:
        objectives: of this stage, not bound yet.
        **settings: fields of `DistillationConfig` that differ from the run's, such as `num_train_epochs` and
            `learning_rate`.

    Raises:
        ValueError: if there are no objectives, or others than those, or a setting is unknown or belongs to the whole
            run.
    """

    def __init__(self, objectives: Sequence[Objective], **settings: Any):
        refuse_other_objectives(objectives)
        if not objectives:
            raise ValueError("a stage has no objectives: give at least one, such as [ForwardKLLoss()]")
        if settings:
            # Imported where it is needed, since it takes longer than all objectives.
            from nlpkd.config import DistillationConfig

            own = {field.name for field in dataclasses.fields(DistillationConfig) if field.init} - _RUN_OWN
            known = {name for name in own if not name.startswith("augment")}
            if unknown := sorted(settings.keys() - known):
                raise ValueError(f"{', '.join(unknown)}: no setting of a stage; take fields of DistillationConfig")
        self.objectives = list(objectives)
        self.settings = settings


def of_stage(number: int, stages: int) -> str:
    """Return what is said beside the name of a model that all but the last of its stages trained."""
    return f", stage-{number}" if number < stages else ""


@dataclass(frozen=True)
class Preset:
    """A named way of distilling.

    Attributes:
        paper: where it comes from.
        differs: where it is not the paper's, and why.
        stages: makes its stages, with fresh objectives.
        settings: fields of `DistillationConfig` that belong to it, where the run does not name them (None).
    """

    paper: str
    differs: str
    stages: Callable[[], list[Stage]]
    settings: Mapping[str, Any] = field(default_factory=dict)


def _hinton(temperature: float = 2.0) -> list[Objective]:
    return [CrossEntropyLoss(weight=0.5), ForwardKLLoss(temperature=temperature, weight=0.5)]


PRESETS: dict[str, Preset] = {
    "hinton": Preset(
        "Hinton, Vinyals and Dean (2015), arXiv:1503.02531",
        "Equal weights of gold labels and soft targets (T = 2), where the paper weighs the gold labels less and "
        "searches T. Works for any pair of models.",
        lambda: [Stage(_hinton())],
    ),
    "soft_targets": Preset(
        "Hinton, Vinyals and Dean (2015), arXiv:1503.02531",
        "Soft targets alone (T = 2), no gold labels: for augmented text, and for labels that are wrong.",
        lambda: [Stage([ForwardKLLoss(temperature=2.0)])],
    ),
    "best": Preset(
        "Zhang et al. (2022), TreeMix, arXiv:2205.06153, and Hinton, Vinyals and Dean (2015), arXiv:1503.02531",
        "Soft targets alone (T = 2) on the training rows and on ten variants of each that the teacher labels "
        "(--augment auto --augment-copies 10), where TreeMix fine-tunes on mixed labels. An epoch is up to eleven "
        "times as long as one of the rows alone; its figures are of one epoch.",
        lambda: [Stage([ForwardKLLoss(temperature=2.0)])],
        {"augment": "auto", "augment_copies": 10},
    ),
    "layerwise": Preset(
        "after Jiao et al. (2020), TinyBERT, arXiv:1909.10351",
        "Logits, gold labels, hidden states and attention maps of evenly spread layers at once, in one stage; "
        "attention as probabilities. Wants a student of as many heads as its teacher.",
        lambda: [Stage([*_hinton(), HiddenStateMSELoss(weight=1.0), AttentionMSELoss(weight=1.0)])],
    ),
    "dynabert": Preset(
        "Hou et al. (2020), DynaBERT, arXiv:2004.04037",
        "'layerwise' without attention maps, so that heads may differ, as of 'width:0.67'. The paper has no gold "
        "labels, weighs hidden states 0.1, matches embeddings too, and trains several widths on augmented text.",
        lambda: [Stage([*_hinton(), HiddenStateMSELoss(weight=1.0)])],
    ),
    "distilbert": Preset(
        "Sanh et al. (2019), DistilBERT, arXiv:1910.01108",
        "The paper's weights 5, 2 and 1 and T = 2, on the task's labels: cross-entropy with gold labels takes the "
        "place of masked language modelling.",
        lambda: [Stage([ForwardKLLoss(2.0, weight=5.0), CrossEntropyLoss(weight=2.0), HiddenStateCosineLoss("last")])],
    ),
    "pkd": Preset(
        "Sun et al. (2019), Patient Knowledge Distillation, arXiv:1908.09355",
        "PKD-Skip with alpha = 0.5, T = 10 and beta = 1 for a mean over layers of squared distances; the paper "
        "searches alpha, T and beta for each task.",
        lambda: [Stage([*_hinton(temperature=10.0), PatientLoss(layers="uniform")])],
    ),
    "tinybert": Preset(
        "Jiao et al. (2020), TinyBERT, arXiv:1909.10351",
        "Its two stages, embeddings with hidden states with attention scores, then soft targets at T = 1, each of "
        "num_train_epochs; one projection a layer, where the paper's code shares one; the teacher's dropout is off; "
        "augmentation is separate (nlpkd.augment).",
        lambda: [
            Stage([EmbeddingMSELoss(), HiddenStateMSELoss(layers="uniform"), AttentionMSELoss(on="scores")]),
            Stage([ForwardKLLoss(temperature=1.0)]),
        ],
    ),
    "minilm": Preset(
        "Wang et al. (2020), MiniLM, arXiv:2002.10957",
        "Attention distributions and value relations of the last layers on the task's text, where the paper distils "
        "a pretrained model; a second stage trains the head as 'hinton' does. Each stage has num_train_epochs.",
        lambda: [Stage([AttentionKLLoss(layers="last"), ValueRelationLoss(layers="last")]), Stage(_hinton())],
    ),
    "minilmv2": Preset(
        "Wang et al. (2021), MiniLMv2, arXiv:2012.15828",
        "Query, key and value relations of the last layers on the task's text, where the paper distils a pretrained "
        "model; a second stage trains the head as 'hinton' does. Each stage has num_train_epochs. Heads and widths "
        "may differ.",
        lambda: [Stage([SelfAttentionRelationLoss(layers="last")]), Stage(_hinton())],
    ),
    "dist": Preset(
        "Huang et al. (2022), DIST, arXiv:2205.10536",
        "Cross-entropy with gold labels and both correlations with weight 1 at T = 1. Of two classes only the "
        "correlation within classes is left.",
        lambda: [Stage([CrossEntropyLoss(), DISTLoss(temperature=1.0, beta=1.0, gamma=1.0)])],
    ),
}


def with_preset_settings(args: DistillationConfig, objectives: Any) -> DistillationConfig:
    """Return the settings of a run with those that belong to its preset.

    Args:
        args: the settings; those that were named, and so are not None, stay.
        objectives: as for `resolve`; None and objectives bring no settings.

    Returns:
        The settings themselves where the preset has none.
    """
    own = PRESETS[objectives].settings if isinstance(objectives, str) and objectives in PRESETS else {}
    left = {name: value for name, value in own.items() if getattr(args, name) is None}
    return dataclasses.replace(args, **left) if left else args


def resolve(objectives: str | Sequence[Objective] | Sequence[Stage], problem_type: str | None = None) -> list[Stage]:
    """Turn a preset's name, objectives or stages into stages.

    Args:
        objectives: a name of `PRESETS`, objectives for a single stage, or stages.
        problem_type: the task; a preset for regression, which has no distribution over classes, matches the teacher's
            score (`LogitMSELoss`) where it would match soft targets.

    Returns:
        Stages with fresh, unbound objectives for a name; with the same instances otherwise.

    Raises:
        ValueError: if there is no such preset, or the list is empty, mixed, or of something else.
    """
    if isinstance(objectives, str):
        if objectives not in PRESETS:
            raise ValueError(f"there is no preset {objectives!r}: choose one of {sorted(PRESETS)}, or pass a list")
        stages = PRESETS[objectives].stages()
        for stage in stages if problem_type == REGRESSION else ():
            stage.objectives = [
                LogitMSELoss(weight=each.weight) if isinstance(each, ForwardKLLoss) else each
                for each in stage.objectives
            ]
        return stages
    if not isinstance(objectives, Iterable) or isinstance(objectives, Mapping):
        raise ValueError(f"objectives={objectives!r:.80}: give a preset's name, or a list")
    given: list[Any] = list(objectives)
    if not given:
        raise ValueError("objectives is an empty list: give at least one, such as [ForwardKLLoss()]")
    if all(isinstance(each, Stage) for each in given):
        return given
    if any(isinstance(each, Stage) for each in given):
        raise ValueError("objectives mixes stages and objectives: wrap the objectives in a Stage")
    return [Stage(given)]


def with_class_weights(stages: Sequence[Stage], class_weights: GivenWeights, baselines: bool) -> list[Stage]:
    """Give the class weights of a run to the cross-entropies that have none of their own.

    Args:
        stages: with objectives not bound yet, which are left as they are.
        class_weights: as `distill` takes them; None changes nothing.
        baselines: whether baselines are trained too, on gold labels alone.

    Returns:
        The stages, with copies of those objectives.

    Raises:
        ValueError: if nothing that is trained takes the weights.
    """
    alone = gold_labels_alone(stages) if baselines else []
    lists = [*(stage.objectives for stage in stages), *alone]
    refuse_idle_class_weights([each for objectives in lists for each in objectives], class_weights)
    return [Stage(with_gold_settings(stage.objectives, class_weights), **stage.settings) for stage in stages]


def gold_labels_alone(stages: Sequence[Stage], class_weights: GivenWeights = None) -> list[list[Objective]]:
    """Leave of each stage the objectives that learn from gold labels without a teacher, with weights that sum to 1.

    Args:
        stages: with objectives not bound yet, which are left as they are.
        class_weights: of the cross-entropy that is learned where no stage learns from gold labels.

    Returns:
        Copies, stage by stage; a stage without such objectives has those of the last stage that has some.
    """
    left = [_gold_copies(stage.objectives) for stage in stages]
    bare: list[Objective] = [CrossEntropyLoss(class_weights=class_weights)]
    usual = next(filter(None, reversed(left)), bare)
    return [each or copy.deepcopy(usual) for each in left]


def _gold_copies(objectives: Sequence[Objective]) -> list[Objective]:
    gold = [
        copy.deepcopy(each)
        for each in objectives
        if "labels" in each.needs and not each.teacher_needed and each.weight > 0
    ]
    total = sum(each.weight for each in gold)
    for each in gold:
        each.weight /= total
    return gold
