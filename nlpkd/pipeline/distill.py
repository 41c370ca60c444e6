"""The job in one call: distil a teacher into a student, measure it, save it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.sources import Source
from nlpkd.data.tokenization import TeacherTokenizers
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.push import push_student
from nlpkd.labelling.costs import Prices, SpendingLimits
from nlpkd.objectives import Objective
from nlpkd.objectives.presets import Stage, with_preset_settings
from nlpkd.pipeline.jobs.distillation import prepare_job, prepare_labelled_job
from nlpkd.pipeline.jobs.settings import check_before, settings_of
from nlpkd.teachers.base import LabelingTeacher
from nlpkd.utils.disk.locks import only_run
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.progress import phase

logger = logging.getLogger(__name__)


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


@plain_arguments
def distill(
    teacher: str | Path | PreTrainedModel | Sequence[str | Path | PreTrainedModel] | LabelingTeacher | None = None,
    student: str | int | Sequence[int] | Path | PreTrainedModel | None = None,
    train: Source | None = None,
    validation: Source | None = None,
    test: Source | None = None,
    *,
    output_dir: str | Path = "out",
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    vocabulary: str | None = None,
    ship: bool = False,
    embedding_size: int | None = None,
    start: str = "teacher",
    backbone: str | Path | None = None,
    objectives: str | Sequence[Objective] | Sequence[Stage] | None = None,
    baseline: bool | str = False,
    baseline_dir: str | Path | None = None,
    num_seeds: int = 1,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: TeacherTokenizers = None,
    teacher_revision: str | None = None,
    student_revision: str | None = None,
    teacher_dtype: str = "float32",
    trust_remote_code: bool = False,
    args: DistillationConfig | None = None,
    class_weights: str | Sequence[float] | Mapping[str, float] | None = None,
    gold: Source | None = None,
    max_requests: int | None = None,
    max_cost: float | None = None,
    prices: Prices | tuple[float, float] | None = None,
    **keywords: Any,
) -> DistillResult:
    """Distil a teacher into a student, measure it, and leave student, tokenizer, card and report in one folder.

    Args:
        teacher: a path, a Hub id (`id@revision` too), an ONNX file, or a model; a list of them is averaged
            (`nlpkd.models.ensemble`); one of `nlpkd.teachers`, which labels the
            training texts, so that these need no label column; None where they bring soft labels along.
        student: `"layers:3"`, `"width:0.67"` (which wants `"dynabert"`, or other objectives that need no equal heads)
            or a shape such as `"tinybert-4l-312"` (of the teacher, of several the first; see `make_student`),
            `"bilstm"`, `"textcnn"` or `"static"` (which want objectives on logits), a path, a Hub id (`id@revision`
            too), a model, or layers by number, as in `make_student`. None is `"layers:3"`, or what fits the budget.
        train: labelled text; see `nlpkd.load_text_classification`.
        validation: held-out rows; measured in the report where there is no test set.
        test: rows that nothing was chosen on, measured in the report.
        output_dir: where the student is saved.
        max_latency_ms: in place of `student`, the most that a forward pass may take; see
            `nlpkd.students.budget.student_within`, among students that the objectives can match. The choice
            rests on timings, which may differ next time: to resume, give the student that was chosen.
        max_size_mb: likewise, the most that the weights file may take, before its vocabulary is trimmed.
        vocabulary: `"trim"` leaves the student the tokens of the training split's text alone, and a tokenizer to match
            (`nlpkd.compression.trim_vocabulary`); the teacher keeps its own. `"whole"` leaves it the teacher's. None
            is `"trim"` with `ship`, where the tokenizer's can be, and `"whole"` without.
        ship: make what is deployed too, and measure it beside the student: the vocabulary is trimmed, unless
            `vocabulary` says otherwise, and `onnx/model_int8.onnx` written; it is a candidate of the report by that
            name. It needs the extra `export`.
        embedding_size: factorise the embedding table of a student that is made of the teacher's layers; see
            `make_student`.
        start: whose weights a student that is made of the teacher has: `"teacher"`, or `"pretrained"`, the same layers
            of the backbone that the teacher was fine-tuned from, with a new head.
        backbone: path or Hub id (`id@revision` too) of that backbone, where the teacher's config does not record it as
            `train_teacher` does.
        objectives: a preset's name (`nlpkd.objectives.PRESETS`), objectives, or stages (`nlpkd.objectives.Stage`). If
            None, what suits the student: `"layerwise"` for layers, and for shapes and checkpoints with a single
            teacher's tokens and number of heads, `"dynabert"` for a share of the width, and `"hinton"` for all others
            and for families that do not show their layers.
        baseline: train baselines too, on gold labels alone with the student's settings and for as many steps, in as
            many stages, each with the student's own objectives on gold labels or with the last stage's that has some:
            `"no_teacher"`, the same shape from the pre-trained backbone, is what one has without a teacher;
            `"same_start"`, from the student's own start, is what remains without the losses. True trains both; they
            are one where the student starts from the pre-trained backbone, or from a checkpoint.
        baseline_dir: where the baselines are saved, each in a folder of its name; `output_dir/baseline` by default.
        num_seeds: how many seeds to train student and baselines with, from `seed` upwards; the first one's student is
            the result, the report has all of them.
        tokenizer: the student's, where it can't be loaded by the student's name.
        teacher_tokenizer: the teacher's, likewise; of several a list.
        teacher_revision: branch, tag or commit of a single teacher.
        student_revision: of the student.
        teacher_dtype: dtype of the teacher's weights.
        trust_remote_code: run the model repositories' own code.
        args: the settings.
        class_weights: weights of the gold labels' classes in the cross-entropy: a list in the order of the label ids,
            a mapping from their names, or `"balanced"` for weights that make rare classes count as much as common
            ones.
        gold: of a teacher that labels texts: a few rows with gold labels, by which it is corrected; see
            `nlpkd.calibrate_teacher`.
        max_requests: likewise, the most requests of this run; see `nlpkd.label`, as for the next two.
        max_cost: the most that all answers may cost.
        prices: of a million tokens of prompts and of answers.
        **keywords: how the text is read, by the fields of `nlpkd.data.arguments.DataArguments` (`text_column`,
            `label_column`, `max_length`, `validation_split`, ...); and, in place of `args`, single settings, by the
            fields of `DistillationConfig` (`num_train_epochs`, `learning_rate`, ...). Where these name no learning
            rate, it is 1e-3 of a student without layers, 2e-4 where its hidden size is below 512, and else 5e-5.

    Returns:
        The student and its report, saved; pushed to the Hub where `push_to_hub` is set.

    Raises:
        ValueError: if teacher, student, data, objectives or settings do not fit.
        RuntimeError: if the push fails; everything is on disk by then.
    """
    data_args, settings = DataArguments.split_of_training(distill, keywords)
    learning_rate_is_given = args is not None or "learning_rate" in settings
    args = with_preset_settings(settings_of(args, output_dir, settings), objectives)
    check_before(args, num_seeds, train=train, validation=validation, test=test)
    prepare: Any = prepare_job
    if isinstance(teacher, LabelingTeacher):
        prepare = partial(prepare_labelled_job, limits=SpendingLimits.of(max_requests, max_cost, prices), gold=gold)
    elif any(each is not None for each in (gold, max_requests, max_cost, prices)):
        raise ValueError("gold, max_requests, max_cost and prices are of a teacher that labels texts: leave them out")
    with only_run(args.output_dir):
        with phase("Loading teacher, student and rows"):
            job = prepare(
                args,
                teacher,
                student,
                train,
                validation,
                test,
                max_latency_ms=max_latency_ms,
                max_size_mb=max_size_mb,
                vocabulary=vocabulary,
                ship=ship,
                embedding_size=embedding_size,
                start=start,
                backbone=backbone,
                baseline=baseline,
                objectives=objectives,
                tokenizer=tokenizer,
                teacher_tokenizer=teacher_tokenizer,
                teacher_revision=teacher_revision,
                student_revision=student_revision,
                teacher_dtype=teacher_dtype,
                trust_remote_code=trust_remote_code,
                class_weights=class_weights,
                data_args=data_args,
            )
        if not learning_rate_is_given:
            args = replace(args, learning_rate=job.learning_rate)
        elif args.learning_rate == DistillationConfig.learning_rate < job.learning_rate / 10 and not all(
            "learning_rate" in stage.settings for stage in job.stages
        ):
            logger.warning(
                "learning_rate=%g is the default of large models; a student without layers learns next to nothing by "
                "it: %g suits it better.",
                args.learning_rate,
                job.learning_rate,
            )
        trained, report = job.run(args, num_seeds, Path(baseline_dir or Path(args.output_dir) / "baseline"))
        if args.push_to_hub and PartialState().is_main_process:
            with phase("Pushing the student"):
                options: Any = {"private": args.hub_private_repo, "revision": args.hub_revision}
                address = push_student(args.output_dir, args.repository, token=args.hub_token, **options)
                logger.warning("Pushed to %s.", address)
    return DistillResult(trained.eval(), job.tokenizer, report, Path(args.output_dir))
