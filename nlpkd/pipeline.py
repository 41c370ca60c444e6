"""The job in one call: fine-tune a teacher, distil a student, measure a saved one."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.vocabulary import original_ids, trim_embeddings, trim_vocabulary
from nlpkd.config import DistillationConfig
from nlpkd.data import (
    TeacherTokenizers,
    TextClassificationData,
    load_text_classification,
    per_teacher,
    same_tokenizer,
)
from nlpkd.ensemble import as_one_teacher
from nlpkd.evaluation import evaluate_student
from nlpkd.hub import push_student
from nlpkd.labels import is_generic
from nlpkd.matching import follow_student_labels
from nlpkd.model_source import ModelSource, describe_teachers
from nlpkd.narrow import SHAPES
from nlpkd.objectives import CrossEntropyLoss, Objective
from nlpkd.objectives.presets import Stage, resolve
from nlpkd.report import EvaluationReport
from nlpkd.run import Job, checkpoint_to_resume, command_line, gold_trainer, now, only_run
from nlpkd.small_models import SMALL_STUDENTS
from nlpkd.sources import Source
from nlpkd.streaming import TextStream
from nlpkd.student import make_student
from nlpkd.task import SINGLE_LABEL, task_of
from nlpkd.windows import count_texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherResult:
    """A fine-tuned teacher.

    Attributes:
        model: the teacher, in eval mode.
        tokenizer: its tokenizer.
        metrics: its metrics on the validation set by name, empty without one.
        output_dir: where it was saved.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, float]
    output_dir: Path


@dataclass(frozen=True)
class DistillResult:
    """A distilled student.

    Attributes:
        student: the student, in eval mode.
        tokenizer: its tokenizer.
        report: what it keeps of the teacher and gains over its baseline.
        output_dir: where student, card and report were saved.
    """

    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    report: EvaluationReport
    output_dir: Path


def train_teacher(
    model: str | Path | PreTrainedModel,
    train: Source,
    validation: Source | None = None,
    *,
    output_dir: str | Path = "teacher",
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    args: DistillationConfig | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    problem_type: str | None = None,
    class_weights: str | Sequence[float] | None = None,
    max_length: int | None = None,
    window_stride: int | None = None,
    streaming: bool = False,
    validation_split: float | int | None = None,
    dataset_config: str | None = None,
    dataset_revision: str | None = None,
    **config: Any,
) -> TeacherResult:
    """Fine-tune a backbone on gold labels: the first step where there is no fine-tuned teacher.

    Args:
        model: a path, a Hub id (`id@revision` too), or a model.
        train: labelled text; see `load_text_classification`, as for the arguments on columns and splits.
        validation: held-out rows, measured at the end.
        output_dir: where the teacher is saved.
        tokenizer: of a model given as an object.
        revision: branch, tag or commit of the model.
        trust_remote_code: run the model repository's own code.
        args: the settings, in place of `config`.
        text_column: the column of the text.
        text_pair_column: the column of the second text.
        label_column: the column of the label, or several with a 0 or 1 for each label.
        problem_type: the task, where labels (and teacher) should not say it; see `nlpkd.targets.encode_targets`.
        class_weights: weights of the gold labels' classes in the cross-entropy: a list in the order of the label ids,
            or `"balanced"` for weights that make rare classes count as much as common ones.
        max_length: longest text in tokens.
        window_stride: cut longer texts into windows that share so many tokens, instead of truncating them.
        streaming: read the train file as it is needed; see `nlpkd.streaming`.
        validation_split: share or number of training rows to hold out where there is no validation set.
        dataset_config: configuration of a Hub data set.
        dataset_revision: revision of a Hub data set.
        **config: arguments of `DistillationConfig`.

    Returns:
        The teacher, saved.

    Raises:
        ValueError: if model, data or settings do not fit.
    """
    args = _settings(args, output_dir, config)
    with only_run(args.output_dir):
        source = ModelSource.of(model, revision, trust_remote_code)
        tokenizer = tokenizer or source.tokenizer()
        data = load_text_classification(
            train,
            validation,
            tokenizer=tokenizer,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            problem_type=problem_type,
            max_length=max_length,
            window_stride=window_stride,
            streaming=streaming,
            validation_split=validation_split,
            config_name=dataset_config,
            revision=dataset_revision,
            seed=args.seed,
        )
        if isinstance(source.given, PreTrainedModel):
            backbone = source.given
        else:
            backbone = make_student(
                checkpoint=source.given,
                revision=source.revision,
                id2label=data.id2label,
                trust_remote_code=trust_remote_code,
                seed=args.seed,
            )
        backbone.config.problem_type = data.problem_type  # type: ignore[assignment]
        trainer = gold_trainer(backbone, args, data, tokenizer, _class_weights(class_weights, data))
        trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
        trainer.save_model()
        metrics = {}
        if "validation" in data:
            metrics = trainer.evaluate()
            trainer.save_metrics("eval", metrics)
    return TeacherResult(trainer.model.eval(), tokenizer, metrics, Path(args.output_dir))


def distill(
    teacher: str | Path | PreTrainedModel | Sequence[str | Path | PreTrainedModel] | None = None,
    student: str | Path | PreTrainedModel = "layers:3",
    train: Source | None = None,
    validation: Source | None = None,
    test: Source | None = None,
    *,
    output_dir: str | Path = "out",
    vocabulary: str | None = None,
    embedding_size: int | None = None,
    objectives: str | Sequence[Objective] | Sequence[Stage] = "layerwise",
    baseline: bool = False,
    baseline_dir: str | Path | None = None,
    num_seeds: int = 1,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: TeacherTokenizers = None,
    teacher_revision: str | None = None,
    student_revision: str | None = None,
    teacher_dtype: str = "float32",
    trust_remote_code: bool = False,
    args: DistillationConfig | None = None,
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
    **config: Any,
) -> DistillResult:
    """Distil a teacher into a student, measure it, and leave student, tokenizer, card and report in one folder.

    Args:
        teacher: a path, a Hub id (`id@revision` too), or a model; a list of them is averaged (`nlpkd.ensemble`); None
            where the training rows bring soft labels along.
        student: `"layers:3"` or a shape such as `"tinybert-4l-312"` (of the teacher, of several the first; see
            `make_student`), `"bilstm"` or `"textcnn"` (which want objectives on logits, such as `"hinton"`), a path, a
            Hub id (`id@revision` too), or a model.
        train: labelled text; see `load_text_classification`, as for the arguments on columns and splits.
        validation: held-out rows; measured in the report where there is no test set.
        test: rows that nothing was chosen on, measured in the report.
        output_dir: where the student is saved.
        vocabulary: `"trim"` leaves the student the tokens of the training split's text alone, and a tokenizer to match
            (`nlpkd.compression.trim_vocabulary`); the teacher keeps its own.
        embedding_size: factorise the embedding table of a student that is made of the teacher's layers; see
            `make_student`.
        objectives: a preset's name (`nlpkd.objectives.PRESETS`), objectives, or stages (`nlpkd.objectives.Stage`).
        baseline: train the undistilled baseline too: the same student from the same weights, on gold labels alone.
        baseline_dir: where the baseline is saved, `output_dir/baseline` by default.
        num_seeds: how many seeds to train student and baseline with, from `seed` upwards; the first one's student is
            the result, the report has all of them.
        tokenizer: the student's, where it can't be loaded by the student's name.
        teacher_tokenizer: the teacher's, likewise; of several a list.
        teacher_revision: branch, tag or commit of a single teacher.
        student_revision: of the student.
        teacher_dtype: dtype of the teacher's weights.
        trust_remote_code: run the model repositories' own code.
        args: the settings, in place of `config`.
        text_column: the column of the text.
        text_pair_column: the column of the second text.
        label_column: the column of the label, or several with a 0 or 1 for each label.
        soft_label_column: the training rows' column of soft labels, in place of a teacher; see `nlpkd.soft_labels`.
        problem_type: the task, where labels (and teacher) should not say it; see `nlpkd.targets.encode_targets`.
        class_weights: weights of the gold labels' classes in the cross-entropy: a list in the order of the label ids,
            or `"balanced"` for weights that make rare classes count as much as common ones.
        max_length: longest text in tokens.
        window_stride: cut longer texts into windows that share so many tokens, instead of truncating them.
        streaming: read the train file as it is needed; see `nlpkd.streaming`.
        validation_split: share or number of training rows to hold out where there is no validation set.
        dataset_config: configuration of a Hub data set.
        dataset_revision: revision of a Hub data set.
        **config: arguments of `DistillationConfig`.

    Returns:
        The student and its report, saved; pushed to the Hub where `push_to_hub` is set.

    Raises:
        ValueError: if teacher, student, data, objectives or settings do not fit.
        RuntimeError: if the push fails; everything is on disk by then.
    """
    args = _settings(args, output_dir, config)
    if train is None:
        raise ValueError("distill needs train: a file, a Hub id, or rows in memory")
    if num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
    if embedding_size is not None and not _is_layers(student):
        raise ValueError(f"embedding_size is of students that are layers of the teacher, and student={student!r}")
    if vocabulary not in (None, "trim"):
        raise ValueError(f"vocabulary must be 'trim' or None, got {vocabulary!r}")
    with only_run(args.output_dir):
        given = teacher if isinstance(teacher, (list, tuple)) else [] if teacher is None else [teacher]
        teachers = [ModelSource.of(each, teacher_revision, trust_remote_code) for each in given]
        if bool(teachers) == (soft_label_column is not None):
            raise ValueError("give either a teacher or soft_label_column: one of them says what the student learns")
        if len(teachers) > 1 and teacher_revision is not None:
            raise ValueError("teacher_revision is of one teacher: write several as 'id@revision' each")
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
            label_names=_names_of_teachers(configs),
            max_length=max_length,
            window_stride=window_stride,
            streaming=streaming,
            validation_split=validation_split,
            config_name=dataset_config,
            revision=dataset_revision,
            seed=args.seed,
        )
        data = load(tokenizer=tokenizer, teacher_tokenizer=others)
        if "validation" not in data and "test" not in data:
            raise ValueError("there are no held-out rows to measure on: give validation=, or validation_split=0.1")
        loaded = [each.teacher(teacher_dtype) for each in teachers]
        origin = {
            "teacher": describe_teachers(teachers, soft_label_column),
            "student": learner.describe(),
            "data": data.name,
            "dataset_config": dataset_config,
            "dataset_revision": dataset_revision,
        }
        weights = _class_weights(class_weights, data)
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
        trained, report = job.run(args, num_seeds, baseline, Path(baseline_dir or Path(args.output_dir) / "baseline"))
        if args.push_to_hub and PartialState().is_main_process:
            _push(args)
    return DistillResult(trained.eval(), job.tokenizer, report, Path(args.output_dir))


def evaluate(
    student: str | Path,
    data: Source,
    *,
    teacher: str | Path | None = None,
    baseline: str | Path | None = None,
    trust_remote_code: bool = False,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    max_length: int | None = None,
    window_stride: int | None = None,
) -> EvaluationReport:
    """Measure a saved student, and beside it its teacher and its baseline, on labelled rows.

    Args:
        student: a path or Hub id (`id@revision`), or an ONNX file in a model's folder.
        data: labelled rows; see `load_text_classification`.
        teacher: the teacher, likewise.
        baseline: the undistilled baseline, likewise; it reads what the student reads.
        trust_remote_code: run the model repositories' own code.
        text_column: the column of the text.
        text_pair_column: the column of the second text.
        label_column: the column of the label, or several with a 0 or 1 for each label.
        max_length: longest text in tokens.
        window_stride: cut longer texts into windows that share so many tokens, instead of truncating them.

    Returns:
        The report.

    Raises:
        ValueError: if models or data do not fit.
    """
    named = {"student": student, "teacher": teacher, "baseline": baseline}
    sources = {role: ModelSource.of(name, None, trust_remote_code) for role, name in named.items() if name is not None}
    models: dict[str, Any] = {role: source.classifier() for role, source in sources.items()}
    tokenizers = {role: source.tokenizer() for role, source in sources.items()}
    own = tokenizers.get("teacher")
    if own is not None and same_tokenizer(tokenizers["student"], own):
        own = None
    rows = load_text_classification(
        data,
        tokenizer=tokenizers["student"],
        teacher_tokenizer=own,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        max_length=max_length,
        window_stride=window_stride,
        problem_type=task_of(models["student"].config),
        label_names=_names_of_teachers([models["student"].config]),
    )
    split = next(name for name in ("test", "validation", "train") if name in rows)
    described = {role: source.describe() for role, source in sources.items() if role != "baseline"}
    run = {
        "command": command_line(),
        "date": now(),
        **described,
        "data": {"name": rows.name, "split": split, "evaluated_rows": count_texts(rows[split])},
    }
    return evaluate_student(
        models["student"],
        models.get("teacher"),
        follow_student_labels(rows[split], models["student"].config, split),
        tokenizers["student"],
        baseline=models.get("baseline"),
        teacher_tokenizer=own,
        run=run,
    )


def _student_maker(
    student: ModelSource,
    teachers: Sequence[PreTrainedModel],
    data: TextClassificationData,
    embedding_size: int | None,
) -> Callable[[int], PreTrainedModel]:
    given: Any = student.given
    if isinstance(given, PreTrainedModel):
        return lambda seed: copy.deepcopy(given)
    if _is_layers(given):
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


def _names_of_teachers(configs: Sequence[Any]) -> list[str]:
    """Give the first teacher's labels in the order of their ids; none where its names say nothing."""
    names = configs[0].id2label if configs else None
    return [] if not names or is_generic(names) else [str(names[number]) for number in range(len(names))]


def _class_weights(asked: str | Sequence[float] | None, data: TextClassificationData) -> list[float] | None:
    if not isinstance(asked, str):
        return None if asked is None else list(asked)
    if asked != "balanced":
        raise ValueError(f"class_weights={asked!r}: give 'balanced', or a list with a weight for each class")
    return data.class_weights


def _weighted(stages: list[Stage], class_weights: Sequence[float] | None) -> list[Stage]:
    """Give every cross-entropy with gold labels the class weights, where it has none of its own."""
    for objective in (each for stage in stages for each in stage.objectives):
        if class_weights is not None and isinstance(objective, CrossEntropyLoss) and objective.class_weights is None:
            objective.class_weights = torch.tensor(class_weights)
    return stages


def _with_trimmed_vocabulary(
    job: Job, own: Sequence[PreTrainedTokenizerBase], load: Callable[..., TextClassificationData], seed: int
) -> Job:
    """Leave the student the vocabulary of the training split's text, and read the data again with it."""
    rows, start = job.data["train"], job.start
    columns = [column for column in (job.data.text_column, job.data.text_pair_column) if column is not None]
    texts = rows.raw_texts() if isinstance(rows, TextStream) else (text for column in columns for text in rows[column])
    _, tokenizer, record = trim_vocabulary(start(seed), job.tokenizer, texts)
    ids: Any = original_ids(tokenizer, job.tokenizer)
    others = _other_tokenizers(tokenizer, own)
    return replace(
        job,
        tokenizer=tokenizer,
        teacher_tokenizer=others,
        data=load(tokenizer=tokenizer, teacher_tokenizer=others),
        origin=job.origin | {"student": job.origin["student"] | {"vocabulary": asdict(record)}},
        start=lambda seed: trim_embeddings(start(seed), ids),
    )


def _other_tokenizers(tokenizer: PreTrainedTokenizerBase, own: Sequence[PreTrainedTokenizerBase]) -> Any:
    """Give each teacher's tokenizer, None where it is the student's; of a single teacher no list."""
    others = [None if same_tokenizer(tokenizer, each) else each for each in own]
    return others if len(own) > 1 else next(iter(others), None)


def _settings(args: DistillationConfig | None, output_dir: str | Path, config: dict[str, Any]) -> DistillationConfig:
    if args is None:
        return DistillationConfig(output_dir=str(output_dir), **config)
    if config:
        raise ValueError(f"give either args or single settings, not both: got args and {sorted(config)}")
    return args


def _is_layers(student: Any) -> bool:
    return isinstance(student, str) and (student.startswith("layers:") or student in {*SHAPES, *SMALL_STUDENTS})


def _push(args: DistillationConfig) -> None:
    address = push_student(
        args.output_dir,
        args.hub_model_id or Path(args.output_dir).resolve().name,
        private=args.hub_private_repo,
        token=args.hub_token,
        revision=args.hub_revision,
    )
    logger.warning("Pushed to %s.", address)
