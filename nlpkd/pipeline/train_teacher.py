"""Fine-tune a backbone on gold labels, and measure it: the teacher of a distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import OF_A_SOURCE, DataArguments
from nlpkd.data.label_names import ask_for_label_names
from nlpkd.data.sources import Source
from nlpkd.data.splits.learned import count_learned
from nlpkd.evaluation.origin import headline_name
from nlpkd.evaluation.prediction import gold_labels, warn_of_one_class
from nlpkd.evaluation.records import AGREEMENT, METRIC_NAMES, format_number
from nlpkd.evaluation.report_text import Cells
from nlpkd.evaluation.scoring import headline_of
from nlpkd.pipeline.jobs.roles import supervised_trainer
from nlpkd.pipeline.jobs.settings import settings_of
from nlpkd.pipeline.jobs.teacher import prepare_teacher
from nlpkd.training.failures import explain_unsaved, saved_model
from nlpkd.training.resuming import checkpoint_to_resume
from nlpkd.utils.disk.locks import only_run
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.progress import phase


@dataclass(frozen=True)
class TeacherResult:
    """A fine-tuned teacher.

    Attributes:
        model: the teacher, in eval mode.
        tokenizer: its tokenizer.
        metrics: its metrics on the validation set by name, empty without one.
        output_dir: where it was saved.
        headline: the metric that a verdict rests on, as in a report on the same rows; empty without one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, float]
    output_dir: Path
    headline: str = ""

    def cells(self) -> Cells:
        """Return the table of its metrics: their names, and a row of figures; no row where none was measured."""
        figures = {name: self.metrics.get(f"eval_{metric}") for metric, name in METRIC_NAMES.items()}
        known = {name: format_number(value) for name, value in figures.items() if value is not None}
        return [*known], [[*known.values()]] if known else []

    def verdict(self) -> str:
        """Return in words how good it is."""
        value, loss = self.metrics.get(f"eval_{self.headline}"), self.metrics.get("eval_loss")
        if value is not None:
            return f"On the held-out rows the teacher's {headline_name(self.headline)} is {format_number(value)}."
        if loss is not None and self.headline != AGREEMENT:
            return f"On the held-out rows only the teacher's loss was measured: {format_number(loss)}."
        why = "the held-out rows have no gold labels" if self.metrics else "there are no held-out rows"
        return f"The teacher was not measured, since {why}."


@plain_arguments
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
    class_weights: str | Sequence[float] | Mapping[str, float] | None = None,
    fresh_pooler: bool = False,
    **keywords: Any,
) -> TeacherResult:
    """Fine-tune a backbone on gold labels: the first step where there is no fine-tuned teacher.

    Args:
        model: a path, a Hub id (`id@revision` too), or a model.
        train: labelled text; see `nlpkd.load_text_classification`.
        validation: held-out rows, measured at the end.
        output_dir: where the teacher is saved.
        tokenizer: of a model given as an object.
        revision: branch, tag or commit of the model.
        trust_remote_code: run the model repository's own code.
        args: the settings.
        class_weights: weights of the gold labels' classes in the cross-entropy: a list in the order of the label ids,
            a mapping from their names, or `"balanced"` for weights that make rare classes count as much as common
            ones.
        fresh_pooler: draw the pooler's weights anew, for a backbone whose pretraining did not use it; see
            `nlpkd.students.checkpoint.with_fresh_pooler`.
        **keywords: how the text is read, by the fields of `nlpkd.data.arguments.DataArguments` (`text_column`,
            `label_column`, `max_length`, `validation_split`, ...); and, in place of `args`, single settings, by the
            fields of `DistillationConfig` (`num_train_epochs`, `learning_rate`, ...).

    Returns:
        The teacher, saved; the entry `nlpkd_backbone` of its config names the backbone.

    Raises:
        ValueError: if model, data or settings do not fit.
    """
    data_args, settings = DataArguments.split_of_training(train_teacher, keywords)
    args = settings_of(args, output_dir, settings)
    with only_run(args.output_dir):
        with phase("Loading backbone and rows"):
            job = prepare_teacher(
                args,
                model,
                train,
                validation,
                tokenizer=tokenizer,
                revision=revision,
                trust_remote_code=trust_remote_code,
                class_weights=class_weights,
                fresh_pooler=fresh_pooler,
                data_args=data_args,
            )
        untrained = job.make_untrained_student(args.seed)
        ask_for_label_names(untrained.config, job.data["train"])
        trainer = supervised_trainer(untrained, args, job.data, job.tokenizer, job.stages[0].objectives)
        with phase("Training the teacher"):
            trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
            with explain_unsaved(args, "the teacher"):
                trainer.save_model()
            job.remember(args.output_dir)
        metrics, headline = {}, ""
        if "validation" in job.data:
            count_learned(job.data["validation"], job.data["train"], job.data.text_columns, "validation")
            gold, names = gold_labels(job.data["validation"]), list(job.data.id2label.values())
            warn_of_one_class(gold, names, job.data.problem_type)
            source, reading = train if validation is None else validation, job.data.arguments
            if validation is None:
                reading |= {name: getattr(data_args, name) for name in OF_A_SOURCE}
            with saved_model(args, "teacher", source, reading), phase("Measuring the teacher"):
                metrics = trainer.evaluate()
                trainer.save_metrics("eval", metrics)
            headline = headline_of(job.data.problem_type, job.data["validation"])
    return TeacherResult(trainer.model.eval(), trainer.processing_class, metrics, Path(args.output_dir), headline)
