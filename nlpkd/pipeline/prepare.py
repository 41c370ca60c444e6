"""A distillation made ready: models, tokenizers, data and objectives, from names to a `Job`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.vocabulary import spelled_out, trim_embeddings, trim_vocabulary
from nlpkd.config import DistillationConfig
from nlpkd.data.label_names import align_names, telling_names
from nlpkd.data.rows import labelled_rows, texts_of
from nlpkd.data.sources import Source, name_of
from nlpkd.data.text_classification import TextClassificationData, load_text_classification
from nlpkd.data.tokenization import TeacherTokenizers, original_ids, per_teacher, same_tokenizer
from nlpkd.models.ensemble import as_one_teacher
from nlpkd.models.source import ModelSource
from nlpkd.objectives import CrossEntropyLoss, Objective
from nlpkd.objectives.base import FEATURES
from nlpkd.objectives.labels import with_gold_settings
from nlpkd.objectives.presets import Stage, resolve
from nlpkd.pipeline.job import Job
from nlpkd.students.budget import student_within
from nlpkd.students.checkpoint import with_fresh_pooler
from nlpkd.students.kinds import kind_of
from nlpkd.students.make_student import make_student
from nlpkd.tasks import SINGLE_LABEL, task_of

logger = logging.getLogger(__name__)


def prepare_job(
    args: DistillationConfig,
    teacher: str | Path | PreTrainedModel | Sequence[str | Path | PreTrainedModel] | None,
    student: str | Path | PreTrainedModel | None,
    train: Source | None,
    validation: Source | None = None,
    test: Source | None = None,
    *,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    vocabulary: str | None = None,
    embedding_size: int | None = None,
    objectives: str | Sequence[Objective] | Sequence[Stage] = "layerwise",
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: TeacherTokenizers = None,
    teacher_revision: str | None = None,
    student_revision: str | None = None,
    teacher_dtype: str = "float32",
    trust_remote_code: bool = False,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    soft_label_column: str | None = None,
    problem_type: str | None = None,
    class_weights: str | Sequence[float] | None = None,
    max_length: int | None = None,
    window_stride: int | None = None,
    streaming: bool = False,
    validation_split: float | int | None = None,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
) -> Job:
    """Load what a distillation needs, and refuse what does not fit; the arguments are those of `nlpkd.distill`.

    Returns:
        The job, whose `run` trains.

    Raises:
        ValueError: if teacher, student, data, objectives or settings do not fit.
    """
    if train is None:
        raise ValueError("distill needs train: a file, a Hub id, or rows in memory")
    if embedding_size is not None and not (student is None or _is_layers(student)):
        raise ValueError(f"embedding_size is of students that are layers of the teacher, and student={student!r}")
    if vocabulary not in (None, "trim"):
        raise ValueError(f"vocabulary must be 'trim' or None, got {vocabulary!r}")
    given = teacher if isinstance(teacher, (list, tuple)) else [] if teacher is None else [teacher]
    teachers = [ModelSource.of(each, teacher_revision, trust_remote_code) for each in given]
    if bool(teachers) == (soft_label_column is not None):
        raise ValueError("give either a teacher or soft_label_column: one of them says what the student learns")
    if len(teachers) > 1 and teacher_revision is not None:
        raise ValueError("teacher_revision is of one teacher: write several as 'id@revision' each")
    if student is None:
        budget: dict[str, Any] = {"max_latency_ms": max_latency_ms, "max_size_mb": max_size_mb}
        wanted = [each for stage in resolve(objectives) for each in stage.objectives]
        student = _within_budget(teachers, wanted, budget, embedding_size)
    elif max_latency_ms is not None or max_size_mb is not None:
        raise ValueError(f"a budget chooses the student itself, and student={student!r} is given too: leave one out")
    learner = ModelSource.of(student, student_revision, trust_remote_code)
    if not teachers and _is_layers(student):
        raise ValueError(
            f"student={student!r} is made of parts of a teacher, and there is none: give a path or a Hub id"
        )
    own = [
        known or each.tokenizer()
        for known, each in zip(per_teacher(teacher_tokenizer, len(teachers)), teachers, strict=True)
    ]
    if tokenizer is None:
        shared = own and (_is_layers(student) or isinstance(student, PreTrainedModel))
        tokenizer = own[0] if shared else learner.tokenizer()
    others = _other_tokenizers(tokenizer, own)
    configs = [each.config() for each in teachers]
    load = partial(
        load_text_classification,
        train,
        validation,
        test,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        soft_label_column=soft_label_column,
        problem_type=problem_type or _task_of_teachers(configs),
        label_names=telling_names(configs[0].id2label) if configs else [],
        max_length=max_length,
        window_stride=window_stride,
        streaming=streaming,
        validation_split=validation_split,
        dataset_config=dataset_config,
        dataset_revision=dataset_revision,
        seed=args.seed,
    )
    data = load(tokenizer=tokenizer, teacher_tokenizer=others)
    if "validation" not in data and "test" not in data:
        raise ValueError("there are no held-out rows to measure on: give validation=, or validation_split=0.1")
    loaded = [each.teacher(teacher_dtype) for each in teachers]
    measured = test if "test" in data else validation
    origin = {
        "teacher": describe_teachers(teachers, soft_label_column),
        "student": learner.describe() | {"checkpoint": not _is_layers(student)},
        "data": data.name,
        "evaluated_source": name_of(train if measured is None else measured),
        "dataset_config": dataset_config,
        "dataset_revision": dataset_revision,
    }
    weights = weights_of_classes(class_weights, data, learner, configs[0] if _is_layers(learner.given) else None)
    job = Job(
        teacher=as_one_teacher(loaded, args.ensemble_weights, args.ensemble_average) if loaded else None,
        teacher_tokenizer=others,
        tokenizer=tokenizer,
        data=data,
        stages=_weighted(resolve(objectives, data.problem_type), weights),
        origin=origin,
        start=_student_maker(learner, loaded, data, embedding_size),
        class_weights=weights,
    )
    if vocabulary == "trim":
        job = _with_trimmed_vocabulary(job, own, load, args.seed)
    return job


def prepare_teacher(
    args: DistillationConfig,
    model: str | Path | PreTrainedModel,
    train: Source,
    validation: Source | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    class_weights: str | Sequence[float] | None = None,
    fresh_pooler: bool = False,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
    **columns: Any,
) -> Job:
    """Load what fine-tuning a backbone on gold labels needs; the arguments are those of `nlpkd.train_teacher`.

    Returns:
        A job without a teacher, whose student is the backbone.

    Raises:
        ValueError: if model, data or settings do not fit.
    """
    source = ModelSource.of(model, revision, trust_remote_code)
    tokenizer = tokenizer or source.tokenizer()
    data = load_text_classification(
        train,
        validation,
        tokenizer=tokenizer,
        dataset_config=dataset_config,
        dataset_revision=dataset_revision,
        seed=args.seed,
        **columns,
    )
    data = replace(data, splits={**data.splits, "train": labelled_rows(data["train"])})
    weights = weights_of_classes(class_weights, data, source)
    start = _student_maker(source, [], data, None)
    return Job(
        teacher=None,
        teacher_tokenizer=None,
        tokenizer=tokenizer,
        data=data,
        stages=[Stage([CrossEntropyLoss(class_weights=weights)])],
        origin={},
        start=(lambda seed: with_fresh_pooler(start(seed), seed)) if fresh_pooler else start,
        class_weights=weights,
    )


def weights_of_classes(
    asked: str | Sequence[float] | None, data: TextClassificationData, learner: ModelSource, followed: Any = None
) -> list[float] | None:
    """Give the class weights asked for: a list, `"balanced"` ones in the order of the student's labels, or None.

    Args:
        asked: as `nlpkd.distill` takes it.
        data: whose training rows are balanced.
        learner: what is trained; a model has labels of its own, which the rows follow.
        followed: config of the teacher whose layers the student is, and whose labels it has.

    Returns:
        One a class, or None.

    Raises:
        ValueError: for another word.
    """
    if not isinstance(asked, str):
        return None if asked is None else list(asked)
    if asked != "balanced":
        raise ValueError(f"class_weights={asked!r}: give 'balanced', or a list with a weight for each class")
    balanced = data.class_weights
    given: Any = learner.given
    config: Any = given.config if isinstance(given, PreTrainedModel) else followed
    order = None if config is None else align_names(data.id2label, config.id2label)
    return balanced if order is None else [balanced[place] for place in order]


def _within_budget(
    teachers: Sequence[ModelSource],
    objectives: Sequence[Objective],
    budget: Mapping[str, float | None],
    embedding_size: int | None,
) -> str:
    if all(limit is None for limit in budget.values()):
        return "layers:3"
    if not teachers:
        raise ValueError("a budget chooses among students of a teacher, and there is none")
    teacher = teachers[0].teacher("float32")
    config: Any = teacher.config if len(teachers) == 1 else [each.config() for each in teachers]

    def fits(student_config: Any) -> bool:
        try:
            for objective in copy.deepcopy(list(objectives)):
                if objective.needs & FEATURES:
                    objective.bind(student_config, config)
        except ValueError:
            return False
        return True

    return student_within(teacher, **budget, embedding_size=embedding_size, fits=fits)


def _student_maker(
    student: ModelSource,
    teachers: Sequence[PreTrainedModel],
    data: TextClassificationData,
    embedding_size: int | None,
) -> Callable[[int], PreTrainedModel]:
    given: Any = student.given
    if isinstance(given, PreTrainedModel):
        return lambda seed: copy.deepcopy(given)
    if teachers and _is_layers(given):
        return lambda seed: make_student(teachers[0], given, embedding_size=embedding_size, seed=seed)
    return lambda seed: make_student(
        checkpoint=given,
        revision=student.revision,
        id2label=data.id2label,
        trust_remote_code=student.trust_remote_code,
        seed=seed,
    )


def _task_of_teachers(configs: Sequence[Any]) -> str | None:
    """Give the task that the teachers were trained for, where it is not one class a row, which the labels say too."""
    tasks = {task_of(config) for config in configs} - {None, SINGLE_LABEL}
    if len(tasks) > 1:
        raise ValueError(f"the teachers have different tasks: {sorted(map(str, tasks))}")
    return next(iter(tasks), None)


def _weighted(stages: list[Stage], class_weights: Sequence[float] | None) -> list[Stage]:
    """Give every cross-entropy with gold labels the class weights, where it has none of its own."""
    return [Stage(with_gold_settings(stage.objectives, class_weights), **stage.settings) for stage in stages]


def _with_trimmed_vocabulary(
    job: Job, own: Sequence[PreTrainedTokenizerBase], load: Callable[..., TextClassificationData], seed: int
) -> Job:
    """Leave the student the vocabulary of the training split's text, and read the data again with it."""
    start = job.start
    texts = partial(texts_of, columns=job.data.text_columns)
    _, tokenizer, record = trim_vocabulary(start(seed), job.tokenizer, texts(job.data["train"]))
    ids: Any = original_ids(tokenizer, job.tokenizer)
    others = _other_tokenizers(tokenizer, own)
    held_out = [split for split in ("validation", "test") if split in job.data]
    lacking = {split: spelled_out(tokenizer, job.tokenizer, texts(job.data[split])) for split in held_out}
    for split, share in lacking.items():
        logger.warning("%s: %.1f %% of the tokens are not in the trimmed vocabulary: spelled out", split, 100 * share)
    return replace(
        job,
        tokenizer=tokenizer,
        teacher_tokenizer=others,
        data=load(tokenizer=tokenizer, teacher_tokenizer=others),
        origin=job.origin
        | {"student": job.origin["student"] | {"vocabulary": record.details | {"spelled_out": lacking}}},
        start=lambda seed: trim_embeddings(start(seed), ids),
    )


def _other_tokenizers(tokenizer: PreTrainedTokenizerBase, own: Sequence[PreTrainedTokenizerBase]) -> Any:
    """Give each teacher's tokenizer, None where it is the student's; of a single teacher no list."""
    others = [None if same_tokenizer(tokenizer, each) else each for each in own]
    return others if len(own) > 1 else next(iter(others), None)


def _is_layers(student: Any) -> bool:
    return isinstance(student, str) and kind_of(student) is not None


def describe_teachers(teachers: Sequence[ModelSource], soft_label_column: str | None) -> dict[str, Any]:
    """Describe what teaches as one: a model, several, or a column of the data.

    Args:
        teachers: the models.
        soft_label_column: the column, where there are none.

    Returns:
        Name and revision for a record.
    """
    described = [teacher.describe() for teacher in teachers]
    if len(described) == 1:
        return described[0]
    if not described:
        return {"name": f"soft labels of the column {soft_label_column!r}", "revision": None}
    names = [each["name"] + (f"@{each['revision']}" if each["revision"] else "") for each in described]
    return {"name": " and ".join(names), "revision": None}
