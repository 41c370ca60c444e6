"""The fine-tuning of a teacher made ready: from names of a backbone and of data to a `Job`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.augment.splits import refuse_augmentation
from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.label_names import name_classes
from nlpkd.data.rows import labelled_rows
from nlpkd.data.sources import Source
from nlpkd.data.text_classification import load_text_classification
from nlpkd.models.source import ModelSource
from nlpkd.objectives import CrossEntropyLoss
from nlpkd.objectives.presets import Stage
from nlpkd.pipeline.jobs.distillation import student_maker
from nlpkd.pipeline.jobs.job import Job
from nlpkd.pipeline.jobs.roles import weights_of_classes
from nlpkd.students.backbone import record_backbone
from nlpkd.students.checkpoint import with_fresh_pooler
from nlpkd.utils.hub_requests import limit_hub_requests


def prepare_teacher(
    args: DistillationConfig,
    model: str | Path | PreTrainedModel,
    train: Source,
    validation: Source | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    class_weights: str | Sequence[float] | Mapping[str, float] | None = None,
    fresh_pooler: bool = False,
    data_args: DataArguments | None = None,
) -> Job:
    """Load what fine-tuning a backbone on gold labels needs.

    The arguments are those of `nlpkd.train_teacher`; `data_args` says how the text is read.

    Returns:
        A job without a teacher, whose student is the backbone.

    Raises:
        ValueError: if model, data or settings do not fit.
    """
    if data_args is not None and data_args.soft_label_column is not None:
        raise ValueError(
            "a teacher learns from gold labels: leave soft_label_column out, or distil with nlpkd.distill"
        )
    refuse_augmentation(args, data_args or DataArguments(), None)
    limit_hub_requests()
    source = ModelSource.of(model, revision, trust_remote_code)
    source.refuse_as_output(args.output_dir)
    tokenizer = tokenizer or source.tokenizer()
    data = load_text_classification(train, validation, tokenizer=tokenizer, data_args=data_args)
    data = name_classes(data, data_args.label_names if data_args else ())
    data = replace(data, splits={**data.splits, "train": labelled_rows(data["train"])})
    weights = weights_of_classes(class_weights, data)
    load = student_maker(source, None, data)

    def make_untrained(seed: int) -> PreTrainedModel:
        """Load the backbone, whose name its config keeps."""
        model = with_fresh_pooler(load(seed), seed) if fresh_pooler else load(seed)
        record_backbone(model.config, source.revision, fresh_pooler)
        return model

    return Job(
        teacher=None,
        teacher_tokenizer=None,
        tokenizer=tokenizer,
        data=data,
        stages=[Stage([CrossEntropyLoss(class_weights=weights)])],
        origin={},
        make_untrained_student=make_untrained,
        class_weights=weights,
    )
