"""Who takes part in a distillation: its teachers, and the baselines that are trained beside the student."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.label_names import telling_names
from nlpkd.data.labels.classes import Classes, ClassWeights, NamesOfModel, forget_thresholds
from nlpkd.data.rows import labelled_rows, random_access
from nlpkd.data.text_classification import TextClassificationData
from nlpkd.data.tokenization import TeacherTokenizers, per_teacher, same_tokenizer, with_limit
from nlpkd.evaluation.scoring import headline_of
from nlpkd.models.small_models import SmallConfig
from nlpkd.models.source import ModelSource
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.objectives.base import FEATURES, Objective
from nlpkd.objectives.presets import Stage, of_stage, resolve
from nlpkd.students.backbone import CONFIG_KEY, find_backbone, known_backbone
from nlpkd.students.kinds import StudentKind, kind_of
from nlpkd.students.shapes import SHAPES
from nlpkd.tasks import REGRESSION, SINGLE_LABEL, task_of
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.training.resuming import Training, train_once
from nlpkd.training.trainer import DistillationTrainer

logger = logging.getLogger(__name__)

_WIDE = 512
"""The hidden size from which on a student has the learning rate that BERT-base is fine-tuned with."""

_ONE_OUTPUT = (
    "A teacher has one output, which is taken for a score. If it is a sigmoid over two classes, give it two: a "
    "head with a row of zeros before its own, num_labels=2; if it is a score, say problem_type='regression'"
)


def describe_labeller(teacher: LabelingTeacher) -> dict[str, Any]:
    """Return what the record says of a teacher that labelled the texts, as `Teachers.describe` does of models."""
    told = teacher.describe()
    fitted = {"calibration": told["calibration"]} if "calibration" in told else {}
    return {"name": str(told["name"]), "revision": None} | fitted


@dataclass(frozen=True)
class Teachers:
    """What the student learns from: one or several fine-tuned models, or a column of soft labels of the data.

    Attributes:
        models: where the models come from, in order; none where soft labels are learned from.
        tokenizers: theirs.
        soft_label_column: the column, where there are no models.
    """

    models: Sequence[ModelSource]
    tokenizers: Sequence[PreTrainedTokenizerBase]
    soft_label_column: str | None

    @classmethod
    def of(
        cls,
        given: str | Path | PreTrainedModel | Sequence[str | Path | PreTrainedModel] | None,
        tokenizer: TeacherTokenizers,
        revision: str | None,
        trust_remote_code: bool,
        soft_label_column: str | None,
    ) -> Teachers:
        """Find the teachers and their tokenizers; the arguments are those of `nlpkd.distill`.

        Raises:
            ValueError: if there are no teachers and no soft labels, or both, or one revision for several.
        """
        several = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        models = [ModelSource.of(each, revision, trust_remote_code) for each in several]
        if bool(models) == (soft_label_column is not None):
            raise ValueError("give either a teacher or soft_label_column: one of them says what the student learns")
        if len(models) > 1 and revision is not None:
            raise ValueError("teacher_revision is of one teacher: write several as 'id@revision' each")
        pairs = zip(per_teacher(tokenizer, len(models)), models, strict=True)
        return cls(models, [known or each.tokenizer() for known, each in pairs], soft_label_column)

    def describe(self) -> dict[str, Any]:
        """Return name and revision for the record; several models are one, with each of them as `models`."""
        described = [each.describe_weights() for each in self.models]
        if len(described) == 1:
            return described[0]
        if not described:
            return {"name": f"soft labels of the column {self.soft_label_column!r}", "revision": None}
        names = [each["name"] + (f"@{each['revision']}" if each["revision"] else "") for each in described]
        return {"name": " and ".join(names), "revision": None, "models": described}

    def fill_in_task_and_names(self, data: DataArguments) -> DataArguments:
        """Return the data arguments with what the models' configs know: the task, and the first one's label names.

        Raises:
            ValueError: if the models have different tasks.
        """
        configs = [each.config() for each in self.models]
        # That every row has one class is left out: the loader reads it from the labels.
        tasks = {task_of(config) for config in configs} - {None, SINGLE_LABEL}
        if len(tasks) > 1:
            raise ValueError(f"the teachers have different tasks: {sorted(map(str, tasks))}")
        return replace(
            data,
            problem_type=data.problem_type or next(iter(tasks), None),
            label_names=data.label_names or NamesOfModel(telling_names(configs[0].id2label) if configs else ()),
        )

    def _has_one_output(self, told: str | None) -> bool:
        """Check whether a model has one output, and neither its config nor the user says what it is."""
        configs = [each.config() for each in self.models]
        return told is None and any(config.num_labels == 1 and not config.problem_type for config in configs)

    @contextmanager
    def explain_one_output(self, told: str | None) -> Iterator[None]:
        """Say of rows that can't be read that their labels are taken for scores since a teacher has one output."""
        try:
            yield
        except ValueError as error:
            raise (ValueError(f"{error} {_ONE_OUTPUT}") if self._has_one_output(told) else error) from None

    def refuse_classes_of_one_output(self, told: str | None, data: TextClassificationData) -> None:
        """Refuse labels of 0 and 1 alone beside a teacher of one output, which may be a sigmoid over two classes.

        Raises:
            ValueError: if nobody says that they are scores.
        """
        rows = random_access(data["train"], first=10_000)
        if data.problem_type == REGRESSION and self._has_one_output(told) and set(rows["labels"][:]) <= {0.0, 1.0}:
            raise ValueError("All labels are 0 or 1.")

    def tokenizers_beside(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Return each model's tokenizer, None where it is the student's; of a single model no list."""
        others = [None if same_tokenizer(tokenizer, each) else each for each in self.tokenizers]
        return others if len(others) > 1 else next(iter(others), None)


def baselines_asked_for(
    asked: bool | str, student: ModelSource, teacher_config: Any, *, start: str, backbone: str | Path | None
) -> list[str]:
    """Return the names of the baselines to train.

    Args:
        asked: as `nlpkd.distill` takes it: a name, True for all that there are, or False for none.
        student: as it was asked for.
        teacher_config: config of the teacher that the student is made of; None of a checkpoint or a model.
        start: of a student that is made of a teacher; see `make_student`.
        backbone: the teacher's, where the caller names it.

    Returns:
        `no_teacher`, `same_start`, both or none. Where the student itself starts from pre-trained weights both are
        one, which goes by the name that was asked for, or by `no_teacher`.

    Raises:
        ValueError: for another name, and for `no_teacher` where no pre-trained weights of the student are known.
    """
    if asked is False:
        return []
    if asked is not True and asked not in ("no_teacher", "same_start"):
        raise ValueError(f"baseline={asked!r}: give 'no_teacher', 'same_start', True (both) or False (none)")
    if asked == "same_start":
        return ["same_start"]
    if teacher_config is not None:
        pretrained = start == "pretrained"
        if asked == "no_teacher":
            known_backbone(teacher_config, backbone, "baseline='no_teacher'")
        elif not pretrained and find_backbone(teacher_config, backbone) is None:
            logger.warning(
                "There is no baseline no_teacher, since nobody says which backbone the teacher was fine-tuned from: "
                "name it as backbone=... (--backbone), and what is gained over having no teacher will be known."
            )
            return ["same_start"]
    else:
        pretrained = is_pretrained(student)
        if asked == "no_teacher" and not pretrained:
            raise ValueError(
                "baseline='no_teacher' starts from pre-trained weights, and this student is a classifier already: use "
                "baseline='same_start', or give a pre-trained checkpoint by its path or Hub id"
            )
        if not pretrained:
            return ["same_start"]
    return ["no_teacher"] if pretrained or asked == "no_teacher" else ["no_teacher", "same_start"]


def is_pretrained(student: ModelSource) -> bool:
    """Check whether a student is a checkpoint by name that was not fine-tuned as a classifier.

    Args:
        student: as it was asked for.

    Returns:
        False too of a model that was given as an object, of which nobody knows.
    """
    if isinstance(student.given, PreTrainedModel):
        return False
    config = student.config()
    architectures = getattr(config, "architectures", None) or []
    return not hasattr(config, CONFIG_KEY) and not any("SequenceClassification" in name for name in architectures)


def usual_objectives(student: ModelSource, teachers: Teachers, same_tokens: bool, shown: Callable[[str], bool]) -> str:
    """Name the preset that a student is trained with where nobody names another.

    Args:
        student: as it was asked for.
        teachers: who it learns from.
        same_tokens: whether it reads their tokens, so that one of its tokens is one of theirs.
        shown: checks whether both show the layers that a preset matches; see `shows_layers`.

    Returns:
        `"dynabert"` of a share of the teacher's width. `"layerwise"` of a student with layers where these can be
        matched with those of a single teacher, token by token. `"hinton"` of all others.
    """
    kind = _kind(student, teachers)
    usual = "layerwise" if kind is None else kind.objectives
    if len(teachers.models) != 1 or teachers.models[0].is_onnx or usual == "hinton":
        return "hinton"
    matched = usual != "layerwise" or (same_tokens and can_match(resolve(usual), _config(student, teachers), teachers))
    return usual if matched and shown(usual) else "hinton"


def usual_learning_rate(student: ModelSource, teachers: Teachers) -> float:
    """Return the peak learning rate of a student where nobody names another.

    Args:
        student: as it was asked for.
        teachers: who it learns from.

    Returns:
        1e-3 of a BiLSTM and its like, which start from next to nothing; 2e-4 of a model whose hidden states are
        narrower than 512 numbers; and else that of `transformers.TrainingArguments`, 5e-5.
    """
    kind = _kind(student, teachers)
    if kind is not None and not kind.has_layers:
        return 1e-3
    config = _config(student, teachers)
    if isinstance(config, SmallConfig):
        return 1e-3
    hidden_size = getattr(config.get_text_config(), "hidden_size", _WIDE)
    return 2e-4 if hidden_size < _WIDE else DistillationConfig.learning_rate


def _kind(student: ModelSource, teachers: Teachers) -> StudentKind | None:
    """Return the kind of a student that is made of a teacher."""
    return kind_of(student.given) if isinstance(student.given, str) and teachers.models else None


def _config(student: ModelSource, teachers: Teachers) -> Any:
    """Return the config that a student with layers will have, as far as its widths go."""
    if _kind(student, teachers) is None:
        return student.config()
    config = copy.deepcopy(teachers.models[0].config())
    for name, value in SHAPES.get(str(student.given), {}).items():
        setattr(config, "num_hidden_layers" if name == "layers" else name, value)
    return config


def can_match(stages: Sequence[Stage], student_config: Any, teachers: Teachers) -> bool:
    """Check whether all objectives on features can match such a student with its teachers.

    Args:
        stages: with the objectives, which are left as they are.
        student_config: of the student.
        teachers: who it learns from.

    Returns:
        Whether none of them refuses, and no teacher that they match is an ONNX file, which has logits alone.
    """
    configs = [each.config() for each in teachers.models]
    wanted = [each for stage in stages for each in stage.objectives if each.needs & FEATURES]
    if wanted and any(each.is_onnx for each in teachers.models):
        return False
    try:
        for objective in copy.deepcopy(wanted):
            objective.bind(student_config, configs if len(configs) > 1 else configs[0])
    except ValueError:
        return False
    return True


def weights_of_classes(
    asked: str | Sequence[float] | Mapping[str, float] | None, data: TextClassificationData
) -> Sequence[float] | Mapping[str, float] | None:
    """Return the class weights asked for: those that were given, or the balanced ones of the training rows.

    Args:
        asked: as `nlpkd.distill` takes it.
        data: whose training rows are balanced.

    Returns:
        One a class, or None.

    Raises:
        ValueError: for another word.
    """
    if asked is None or isinstance(asked, Mapping):
        return asked
    if not isinstance(asked, str):
        # In the order of the rows' label ids, which may not be the student's.
        classes = Classes.of(data.id2label)
        CrossEntropyLoss(class_weights=asked)  # Refuses what are no weights.
        if len(asked) != len(classes):
            raise ValueError(f"got {len(asked)} class weights for {len(classes)} labels ({classes}): give one a label")
        return ClassWeights(asked, classes)
    if asked != "balanced":
        raise ValueError(
            f"class_weights={asked!r}: give 'balanced'; in Python also a list with a weight a class, or weights "
            "by the classes' names"
        )
    return data.class_weights


def supervised_trainer(
    model: PreTrainedModel,
    args: DistillationConfig,
    data: TextClassificationData,
    tokenizer: PreTrainedTokenizerBase,
    objectives: Sequence[Objective],
) -> DistillationTrainer:
    """Make a trainer that learns from gold labels alone: of a teacher, or of an undistilled baseline."""
    # There is no teacher whose weight could move against the labels', and further rows have no gold labels.
    args = replace(lean_by_default(args), weighting="fixed", augment=None)
    if (args.metric_for_best_model or "").removeprefix("eval_") == "agreement":
        # Without a teacher there is nothing to agree with.
        headline = headline_of(data.problem_type, data["validation" if "validation" in data else "train"])
        logger.warning("The best checkpoint of a model without a teacher is chosen by %s, not by agreement.", headline)
        args = replace(args, metric_for_best_model=headline, greater_is_better=True)
    model.config.problem_type = data.problem_type  # type: ignore[assignment]
    forget_thresholds(model.config)
    trainer = DistillationTrainer(
        model=model,
        args=args,
        objectives=objectives,
        train_dataset=labelled_rows(data["train"]),
        eval_dataset=data["validation"] if "validation" in data else None,
        processing_class=with_limit(tokenizer, data.max_length),
    )
    trainer.same_start = True
    return trainer


def train_baseline(
    model: PreTrainedModel,
    name: str,
    data: TextClassificationData,
    tokenizer: PreTrainedTokenizerBase,
    settings: Sequence[DistillationConfig],
    lessons: Sequence[Sequence[Objective]],
) -> tuple[PreTrainedModel, Training]:
    """Train on gold labels alone, stage after stage as the student was trained.

    Args:
        model: the untrained baseline.
        name: its name.
        data: whose training rows have labels, if not all of them.
        tokenizer: the student's.
        settings: of each stage.
        lessons: the objectives of each stage, by `nlpkd.objectives.presets.gold_labels_alone`.

    Returns:
        The baseline, and what it took.
    """
    done = []
    for number, (args, objectives) in enumerate(zip(settings, lessons, strict=True), start=1):
        trainer = supervised_trainer(model, args, data, tokenizer, objectives)
        done.append(train_once(trainer, f"the baseline {name}{of_stage(number, len(settings))}"))
        model = trainer.model
    return model, Training.of(done)


def lean_by_default(args: DistillationConfig) -> DistillationConfig:
    """Train leanly without a teacher too, unless refused: a baseline is trained as its student is."""
    return replace(args, lean_training=True) if args.lean_training is None else args


def own_tokenizer(learner: ModelSource, teachers: Teachers) -> PreTrainedTokenizerBase:
    """Return the tokenizer that lies where a student was loaded from; of a model that has none there the teacher's."""
    if not (isinstance(learner.given, PreTrainedModel) and teachers.tokenizers):
        return learner.tokenizer()
    try:
        return learner.tokenizer()
    except (ValueError, OSError):
        logger.warning(
            "There is no tokenizer where the student was loaded from: it reads with the teacher's. If it has another "
            "one, pass tokenizer=..."
        )
        return teachers.tokenizers[0]
