"""The teacher's outputs for a distillation to come: run on its training rows once, ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from nlpkd.cache import cache_teacher_outputs
from nlpkd.config import DistillationConfig
from nlpkd.ensemble import TeacherEnsemble
from nlpkd.prepare import prepare_job


def cache_for_distillation(args: DistillationConfig, **options: Any) -> Dataset:
    """Run a teacher on the rows of a distillation, as `nlpkd.distill` with the same options would before training.

    A distillation whose objectives need the teacher's logits alone takes them from `teacher_cache_dir`.

    Args:
        args: the settings; `teacher_cache_dir`, or else the output directory, is where the outputs are kept.
        **options: teacher, student, data and the rest, as for `nlpkd.prepare.prepare_job`.

    Returns:
        The training rows with the column `teacher_logits`.

    Raises:
        ValueError: without a teacher and rows that are all there, if several teachers have tokenizers of their own, or
            if something does not fit.
    """
    job = prepare_job(args, objectives="hinton", **options)
    rows = job.data["train"]
    if job.teacher is None or not isinstance(rows, Dataset):
        raise ValueError(
            "a cache is of a teacher's outputs on rows that are not streamed: leave out what says otherwise"
        )
    # The trainer settles whose label is whose, on a sample of gold labels where names do not say it.
    trainer = job.trainer(job.start(args.seed), args, job.stages[0])
    apart = "teacher_input_ids" in rows.column_names and not isinstance(job.teacher, TeacherEnsemble)
    own: Any = job.teacher_tokenizer if apart else job.tokenizer
    return cache_teacher_outputs(
        job.teacher,
        rows,
        own,
        cache_dir=Path(args.teacher_cache_dir or args.output_dir),
        order=trainer.teacher_order,
        bf16=bool(args.bf16),
    )
