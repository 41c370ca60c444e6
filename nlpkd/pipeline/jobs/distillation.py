"""A distillation made ready: from names of models and data to a `Job`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.augment import Augmenter, make_augmenter
from nlpkd.augment.splits import refuse_augmentation, with_more_text
from nlpkd.compression.onnx import EXPORT_PACKAGES
from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import OF_A_SOURCE, DataArguments
from nlpkd.data.label_names import name_classes
from nlpkd.data.labels.classes import Classes
from nlpkd.data.rows import measured_split
from nlpkd.data.sources import Source, name_of
from nlpkd.data.text_classification import TextClassificationData, load_text_classification
from nlpkd.data.tokenization import TeacherTokenizers, known_tokenizers
from nlpkd.hub.model_card import hub_id
from nlpkd.labelling.costs import SpendingLimits
from nlpkd.labelling.splits import LABELS_NAME, RowsToLabel
from nlpkd.models.ensemble import as_one_teacher
from nlpkd.models.source import ModelSource
from nlpkd.objectives import Objective
from nlpkd.objectives.matching import shows_layers
from nlpkd.objectives.presets import Stage, resolve, with_class_weights
from nlpkd.pipeline.compress import with_trimmed_vocabulary
from nlpkd.pipeline.jobs.job import Job
from nlpkd.pipeline.jobs.roles import (
    Teachers,
    baselines_asked_for,
    can_match,
    describe_labeller,
    is_pretrained,
    own_tokenizer,
    usual_learning_rate,
    usual_objectives,
    weights_of_classes,
)
from nlpkd.students.backbone import find_backbone, known_backbone
from nlpkd.students.budget import student_within
from nlpkd.students.kinds import kind_of, merge_adapter, name_of_layers
from nlpkd.students.make_student import check_start, make_student
from nlpkd.students.readable import refuse_unreadable
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.teachers.compatibility import refuse_other_task
from nlpkd.utils.hub_requests import limit_hub_requests
from nlpkd.utils.packages import require
from nlpkd.utils.progress import quiet


def prepare_job(
    args: DistillationConfig,
    teacher: str | Path | PreTrainedModel | Sequence[str | Path | PreTrainedModel] | None = None,
    student: str | int | Sequence[int] | Path | PreTrainedModel | None = None,
    train: Source | None = None,
    validation: Source | None = None,
    test: Source | None = None,
    *,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    vocabulary: str | None = None,
    ship: bool = False,
    embedding_size: int | None = None,
    start: str = "teacher",
    backbone: str | Path | None = None,
    baseline: bool | str = False,
    objectives: str | Sequence[Objective] | Sequence[Stage] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: TeacherTokenizers = None,
    teacher_revision: str | None = None,
    student_revision: str | None = None,
    teacher_dtype: str = "float32",
    trust_remote_code: bool = False,
    class_weights: str | Sequence[float] | Mapping[str, float] | None = None,
    data_args: DataArguments | None = None,
) -> Job:
    """Load what a distillation needs, and refuse what does not fit; see `prepare_labelled_job` too.

    The arguments are those of `nlpkd.distill`; `data_args` says how the text is read.

    Returns:
        The job, whose `run` trains.

    Raises:
        ValueError: if teacher, student, data, objectives or settings do not fit.
    """
    student = name_of_layers(student)
    _refuse_unfit_options(teacher, train, student, vocabulary, ship, embedding_size)
    limit_hub_requests()
    asked = data_args or DataArguments()
    refuse_augmentation(args, asked, teacher)

    # Who teaches, and who learns.
    teachers = Teachers.of(teacher, teacher_tokenizer, teacher_revision, trust_remote_code, asked.soft_label_column)
    budget = {"max_latency_ms": max_latency_ms, "max_size_mb": max_size_mb}
    student = _student_asked_for(student, teachers, budget, objectives, embedding_size)
    learner = ModelSource.of(student, student_revision, trust_remote_code)
    inherits = _is_made_of_a_teacher(student)
    for each in (*teachers.models, learner, *([ModelSource.of(backbone)] if backbone else [])):
        each.refuse_as_output(args.output_dir)
    check_start(start, backbone, inherits)
    if start == "pretrained":
        known_backbone(teachers.models[0].config(), backbone, "start='pretrained'")
    baselines = baselines_asked_for(
        baseline, learner, teachers.models[0].config() if inherits else None, start=start, backbone=backbone
    )
    if tokenizer is None:
        tokenizer = teachers.tokenizers[0] if teachers.tokenizers and inherits else own_tokenizer(learner, teachers)

    # The rows, as both read them.
    told, names = asked.problem_type, asked.label_names
    asked = teachers.fill_in_task_and_names(asked)

    load_models = cache(lambda: [each.classifier(teacher_dtype) for each in teachers.models])
    parent = cache(lambda: teachers.models[0].in_pytorch(load_models()[0]))

    def augmenter() -> Augmenter:
        kind, settings = student if inherits else learner.config(), (args.augment_change, args.augment_model)
        return make_augmenter(str(args.augment), parent(), teachers.tokenizers[0], kind, *settings)

    def load(tokenizer: PreTrainedTokenizerBase) -> TextClassificationData:
        beside = teachers.tokenizers_beside(tokenizer)
        with teachers.explain_one_output(told):
            read: Any = {"tokenizer": tokenizer, "teacher_tokenizer": beside, "data_args": asked}
            data = load_text_classification(train, validation, test, **read)
            teachers.refuse_classes_of_one_output(told, data)
        return with_more_text(name_classes(data, names), args, augmenter, [tokenizer, *known_tokenizers(beside)])

    data = load(tokenizer)
    for each in teachers.models:
        refuse_other_task(each.config(), data.problem_type)
    measured = test if measured_split(data.splits) == "test" else validation

    # The models, the losses, and the job.
    models, beside = load_models(), teachers.tokenizers_beside(tokenizer)
    options = {"embedding_size": embedding_size, "backbone": backbone, "rows": data["train"], "tokenizer": tokenizer}
    make: Any = partial(student_maker, learner, parent() if inherits else None, data, **options)

    def shown(preset: str) -> bool:
        """Check whether both models show the layers that a preset matches."""
        same_family = inherits or learner.config().model_type == models[0].config.model_type
        with quiet("nlpkd"):
            return shows_layers([models[0], *([] if same_family else [make()(args.seed)])], preset)

    if objectives is None:
        objectives = usual_objectives(learner, teachers, beside is None, shown)
    weights = weights_of_classes(class_weights, data)
    described = learner.describe() | {"checkpoint": not inherits}
    if start != "teacher":
        described["start"] = start
    described |= _backbone_on_the_hub(parent() if inherits else None, backbone)
    job = Job(
        teacher=as_one_teacher(models, args.ensemble_weights, args.ensemble_average) if models else None,
        teacher_tokenizer=beside,
        tokenizer=tokenizer,
        data=data,
        stages=with_class_weights(resolve(objectives, data.problem_type), weights, bool(baselines)),
        origin={
            "teacher": teachers.describe(),
            "student": described,
            "data": data.name,
            "evaluated_source": name_of(train if measured is None else measured),
            "measured_source": train if measured is None else measured,
            **{name: getattr(asked, name) for name in OF_A_SOURCE},
        },
        make_untrained_student=make(start=start),
        parent=parent() if inherits else None,
        teacher_sources=teachers.models,
        baselines={
            name: make(start="pretrained" if name == "no_teacher" and inherits else start) for name in baselines
        },
        class_weights=weights,
        ship=ship,
        learning_rate=usual_learning_rate(learner, teachers),
        teacher_folders=[each.folder for each in teachers.models],
    )
    if vocabulary == "whole" or (vocabulary is None and not ship):
        return job
    whole = merge_adapter(parent()) if inherits else None
    return with_trimmed_vocabulary(job, whole, teachers, load, args.seed, required=vocabulary == "trim")


def prepare_labelled_job(
    args: DistillationConfig,
    teacher: LabelingTeacher,
    student: Any = None,
    train: Source | None = None,
    validation: Source | None = None,
    test: Source | None = None,
    *,
    limits: SpendingLimits | None = None,
    gold: Source | None = None,
    data_args: DataArguments | None = None,
    **options: Any,
) -> Job:
    """Load what a distillation needs, refuse what does not fit, and let the teacher label the rows last of all.

    The whole job is prepared twice: on rows without answers, which shows whatever is to be refused, and on those with
    the answers.

    Args:
        args: the settings.
        teacher: the teacher.
        student: as for `nlpkd.distill`.
        train: the training rows, which need no label column.
        validation: the validation rows, with gold labels or without.
        test: the test rows, likewise.
        limits: the limits of what is asked.
        gold: a few rows with gold labels, by which the teacher is corrected.
        data_args: how rows are read.
        **options: further ones of `prepare_job`.

    Returns:
        The job, whose `run` trains.

    Raises:
        ValueError: if student, data, objectives or settings do not fit, and then nothing was asked; or if the teacher
            does not answer.
    """
    asked = data_args or DataArguments()
    if train is None:
        raise ValueError("distill needs train: a file, a Hub id, or rows in memory")
    refuse_augmentation(args, asked, None)
    output = Path(args.output_dir) / LABELS_NAME
    rows = RowsToLabel.of(teacher, train, validation, test, output, asked, limits, gold)
    named = dict.fromkeys(name_of(each) for each in (train, validation, test) if each is not None)

    def prepared(splits: DatasetDict, teacher: LabelingTeacher) -> Job:
        job = prepare_job(args, None, student, splits, data_args=rows.read_as, **options)
        given = test if "test" in job.data else validation
        measured = train if given is None else given
        told: dict[str, Any] = {"data": ", ".join(named), "evaluated_source": name_of(measured)}
        told |= {"measured_source": measured, "teacher": describe_labeller(teacher)}
        told |= {"unanswered_rows": {str(name): len(rows.texts[str(name)]) - len(splits[name]) for name in splits}}
        few = () if rows.gold is None else rows.gold.texts
        return replace(job, origin=job.origin | told, corrected_by=few)

    job = prepared(rows.unanswered(), teacher)
    job.check(args)
    # It is told before the teacher is paid for.
    _ = job.learned
    answered = rows.answered()
    # What there is to say of the rows was said when they were first read.
    with quiet("nlpkd"):
        job = prepared(*answered)
        _ = job.learned
    return job


def _backbone_on_the_hub(parent: PreTrainedModel | None, given: str | Path | None) -> dict[str, str]:
    """Return what a card names where teacher and student are folders: what the parent was fine-tuned from."""
    known = None if parent is None else find_backbone(parent.config, given)
    return {"backbone": known.name} if known is not None and hub_id(known.name) else {}


def _refuse_unfit_options(
    teacher: Any, train: Any, student: Any, vocabulary: str | None, ship: bool, embedding_size: int | None
) -> None:
    """Refuse what can be refused before anything is loaded."""
    if isinstance(teacher, LabelingTeacher):
        raise ValueError("a teacher that labels texts is one of `nlpkd.distill` alone: give a fine-tuned classifier")
    if train is None:
        raise ValueError("distill needs train: a file, a Hub id, or rows in memory")
    if embedding_size is not None and not (student is None or _is_made_of_a_teacher(student)):
        raise ValueError(f"embedding_size is of students that are layers of the teacher, and student={student!r}")
    if isinstance(student, nn.Module) and not isinstance(student, PreTrainedModel):
        raise ValueError(
            f"student is a {type(student).__name__}, which distill can't save as a plain model of transformers: merge "
            "an adapter into its model (peft's merge_and_unload), or train it with DistillationTrainer"
        )
    if vocabulary not in (None, "trim", "whole"):
        raise ValueError(f"vocabulary must be 'trim', 'whole' or None, got {vocabulary!r}")
    for package in EXPORT_PACKAGES if ship else ():
        require(package)


def _student_asked_for(
    student: Any,
    teachers: Teachers,
    budget: Mapping[str, float | None],
    objectives: Any,
    embedding_size: int | None,
) -> Any:
    """Return the student that was given, what fits a budget, or `"layers:3"`."""
    bounded = any(limit is not None for limit in budget.values())
    if student is not None and bounded:
        raise ValueError(f"a budget chooses the student itself, and student={student!r} is given too: leave one out")
    if bounded and not teachers.models:
        raise ValueError("a budget chooses among students of a teacher, and there is none")
    if bounded:
        teacher = teachers.models[0].in_pytorch(teachers.models[0].classifier())
        shown = cache(partial(shows_layers, [teacher]))

        def fits(name: str, student_config: Any) -> bool:
            """Check whether the student's objectives can match it with its teachers."""
            usual = usual_objectives(ModelSource.of(name), teachers, True, shown)
            return can_match(resolve(usual if objectives is None else objectives), student_config, teachers)

        return student_within(teacher, **budget, embedding_size=embedding_size, fits=fits)
    student = "layers:3" if student is None else student
    if not teachers.models and _is_made_of_a_teacher(student):
        raise ValueError(
            f"student={student!r} is made of parts of a teacher, and there is none: give a path or a Hub id"
        )
    return student


def student_maker(
    student: ModelSource,
    parent: PreTrainedModel | None,
    data: TextClassificationData,
    **options: Any,
) -> Callable[[int], PreTrainedModel]:
    """Return a function from a seed to the untrained student; `options` are of one that is made of a teacher.

    Raises:
        ValueError: if it is a model in memory that could not be read back once it is saved.
    """
    given: Any = student.given
    if isinstance(given, PreTrainedModel):
        refuse_unreadable(given)
        return lambda seed: copy.deepcopy(given)
    if parent is not None:
        trust: dict[str, Any] = {"trust_remote_code": student.trust_remote_code}
        return lambda seed, **more: make_student(parent, given, seed=seed, **options, **more, **trust)
    # A trained head without names is put in the rows' order by the trainer, which has gold labels.
    own = Classes.of_config(student.config())
    unnamed = own is not None and own.is_generic and len(own) == data.num_labels and not is_pretrained(student)
    return lambda seed: make_student(
        checkpoint=given,
        revision=student.revision,
        id2label=None if unnamed else data.id2label,
        trust_remote_code=student.trust_remote_code,
        seed=seed,
    )


def _is_made_of_a_teacher(student: Any) -> bool:
    """Check whether a student is named as layers or a shape of a teacher, or a small model on its embeddings."""
    return isinstance(student, str) and kind_of(student) is not None
