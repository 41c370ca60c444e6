"""Keep a teacher's outputs on the rows of a distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.models.ensemble import as_ensemble
from nlpkd.pipeline.jobs.distillation import prepare_job
from nlpkd.teachers.cache import cache_teacher_outputs


def cache_for_distillation(args: DistillationConfig, **keywords: Any) -> Dataset:
    """Run a teacher on the rows of a distillation, as `nlpkd.distill` with the same options would before training.

    A distillation whose objectives need the teacher's logits alone takes them from `teacher_cache_dir`.

    Args:
        args: the settings; `teacher_cache_dir`, or else the output directory, is where the outputs are kept.
        **keywords: teacher, student, data and the rest, as for `nlpkd.distill`.

    Returns:
        The training rows with the column `teacher_logits`.

    Raises:
        ValueError: without a teacher or the held-out rows that the distillation is measured on, of streamed rows, if
            several teachers have tokenizers of their own, or if something does not fit.
    """
    data_args, options = DataArguments.split_keywords(keywords)
    job = prepare_job(args, objectives="hinton", data_args=data_args, **options)
    rows = job.data["train"]
    if job.teacher is None:
        raise ValueError("only a teacher's outputs can be kept, and there are soft labels alone: give a teacher")
    if not isinstance(rows, Dataset):
        raise ValueError(
            "the outputs on streamed rows can't be kept, since their teacher runs on every batch: leave streaming out"
        )
    # The trainer settles whose label is whose, on a sample of gold labels where names do not say it.
    trainer = job.trainer(job.make_untrained_student(args.seed), args, job.stages[0])
    has_own_tokenizer = "teacher_input_ids" in rows.column_names and len(as_ensemble(job.teacher)) == 1
    tokenizer: Any = job.teacher_tokenizer if has_own_tokenizer else job.tokenizer
    return cache_teacher_outputs(
        job.teacher,
        rows,
        tokenizer,
        cache_dir=Path(args.teacher_cache_dir or args.output_dir),
        order=trainer.teacher_order,
        bf16=bool(args.bf16),
    )
