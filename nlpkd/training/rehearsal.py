"""Before the first step, once in small, what a training does later: what fails at the end is known at the start."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, recursively_apply
from accelerate.utils.memory import should_reduce_batch_size
from datasets import Dataset
from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_pt_utils import EvalLoopContainer

from nlpkd.data.label_names import label_column
from nlpkd.data.rows import list_lengths, makes_batches
from nlpkd.models.files.tokenizers import refuse_other_reading
from nlpkd.models.inference import unchanged
from nlpkd.students.readable import lost_when_read_back
from nlpkd.training.best import refuse_no_number, refuse_unkept
from nlpkd.training.failures import explain_out_of_memory
from nlpkd.utils.disk.files import staging_folder
from nlpkd.utils.disk.full_disk import MODEL_NOT_SAVED
from nlpkd.utils.object_hashes import is_foreign
from nlpkd.utils.progress import quiet
from nlpkd.utils.randomness import random_state_kept

logger = logging.getLogger(__name__)

ROWS = 4
"""Rows of a split that are tried: the longest one, that with the highest token, and the first ones."""

_STAGING = ".rehearsal-"

# What Trainer adds to the metrics of an evaluation.
_TIMES = ("runtime", "samples_per_second", "steps_per_second")


def rehearse(trainer: Any, beside: Callable[[Path], None] | None = None) -> None:
    """Try some rows of every split, the metrics and the saving, on all processes, and refuse what fails.

    The training rows go through student, teacher and objectives, and the evaluation rows through the metrics too,
    which are computed on all labels of the set. The main process saves student, tokenizer and objectives into a
    temporary folder in the output directory, and warns of a student that could not be read back. No random number of
    the training is used. Models that DeepSpeed or FSDP will split up are passed.

    Args:
        trainer: a `DistillationTrainer` before its training.
        beside: called by the main process with the folder that the student was saved in.

    Raises:
        ValueError: if a part fails, which is named.
    """
    evaluated = trainer.eval_dataset
    sets = evaluated if isinstance(evaluated, dict) else {"": evaluated}
    with _trying(trainer):
        _try_rows(trainer, trainer.train_dataset, "training")
        metrics: dict[str, float] | None = {}
        for name, rows in sets.items():
            found = None if rows is None else _try_evaluation(trainer, rows, name)
            metrics = None if found is None or metrics is None else metrics | found
        _check_best_metric(trainer.args, None if _others_add_metrics(trainer) else metrics)
        if trainer.is_world_process_zero():
            with staging_folder(Path(trainer.args.output_dir), _STAGING, MODEL_NOT_SAVED) as folder:
                with _named("saving student and tokenizer"):
                    trainer._save(str(folder))
                    refuse_other_reading(trainer.processing_class, folder)
                if lost := lost_when_read_back(trainer.model):
                    logger.warning("What is saved of the student can't be read back by from_pretrained: %s.", lost)
                with _named("saving the objectives"):
                    trainer.save_beside(folder / "objectives")
                if beside is not None:
                    # What a few rows tell is nothing to warn of.
                    named = _named("measuring student, teacher and baselines, or their card")
                    with named, quiet("nlpkd.evaluation"):
                        beside(folder)


def rehearse_loss(trainer: Any) -> None:
    """Try some training rows alone, of a training that others come before; see `rehearse`.

    Args:
        trainer: a `DistillationTrainer` that is not trained.

    Raises:
        ValueError: if student, teacher or objectives fail on them.
    """
    if trainer.args.rehearsal and not trainer._sharded:
        with explain_out_of_memory(trainer.args), _trying(trainer):
            _try_rows(trainer, trainer.train_dataset, "training")


@contextmanager
def _trying(trainer: Any) -> Iterator[None]:
    """Leave the trainer of all processes as it was, whatever is tried."""
    with random_state_kept(trainer.args.device), _failing_together(), unchanged(trainer.model), trainer._loss.tried():
        yield
    if trainer._signals.live is not None:
        trainer._signals.live.release()


def rows_to_try(rows: Any) -> Any:
    """Choose rows that show whether all others go through: the longest one, that with the highest token, some more.

    Args:
        rows: of any kind.

    Returns:
        A list of at most `ROWS` rows, of a data set a data set; None where they can't be read one by one.
    """
    if makes_batches(rows):
        rows = rows.head(ROWS)
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        return None
    if not isinstance(rows, Dataset):
        return [rows[number] for number in range(min(ROWS, len(rows)))]
    chosen: list[int] = []
    for column in sorted(name for name in rows.column_names if name.endswith("input_ids")):
        chosen.append(int(np.argmax(list_lengths(rows, column))))
    chosen += [number for number in range(len(rows)) if number not in chosen][: max(0, ROWS - len(chosen))]
    return rows.select(list(dict.fromkeys(chosen)))


def _try_rows(trainer: Any, rows: Any, split: str) -> tuple[Any, Any, Any, Any]:
    """Run some rows as the training or an evaluation would; return them, the loss, the predictions and the labels."""
    training = split == "training"
    loader = trainer.get_train_dataloader if training else trainer.get_eval_dataloader
    # Which batches a loader of the user's makes of them, it alone knows.
    few = None if rows is None or is_foreign(loader) else rows_to_try(rows)
    if few is None:
        return None, None, None, None
    trainer._signals.refuse_unknown_tokens(rows, split)
    with _named(f"the {split} rows", lambda: trainer._signals.too_long(few, split)):
        kept = few if not isinstance(few, Dataset) else trainer._remove_unused_columns(few, split)
        collate = trainer.data_collator
        if not isinstance(few, Dataset):
            collate = trainer._get_collator_with_removed_columns(collate, split)
        batch = collate([kept[number] for number in range(len(kept))])
        if training:
            with torch.no_grad():
                loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
            return few, loss, None, None
        loss_alone = trainer.args.prediction_loss_only or trainer.compute_metrics is None
        return few, *trainer.prediction_step(trainer.model, batch, prediction_loss_only=loss_alone)


def _try_evaluation(trainer: Any, rows: Any, name: str) -> dict[str, float] | None:
    """Evaluate some rows; return the metrics by their names, None where they can't be known before the end."""
    split = f"evaluation set {name}" if name else "evaluation"
    few, loss, logits, labels = _try_rows(trainer, rows, split)
    if few is None:
        return None
    prefix = f"eval_{name}_" if name else "eval_"
    times = dict.fromkeys((prefix + each for each in _TIMES), 0.0)
    metrics = times if loss is None else times | {f"{prefix}loss": float(loss)}
    args, compute = trainer.args, trainer.compute_metrics
    if compute is None or logits is None or labels is None:
        return metrics
    every = _all_labels(rows, labels)
    own_outputs = is_foreign(trainer.prediction_step)
    if trainer._metrics.sums_up or args.include_for_metrics or every is None or own_outputs:
        return None
    with _named(f"the metrics of the {split} rows"):
        trainer._metrics.begin(rows)
        found = compute(_gathered(trainer, logits, len(few), every))
        refuse_unkept(found, args)
    return metrics | {prefix + str(key).removeprefix(prefix): value for key, value in found.items()}


def _all_labels(rows: Any, some: Any) -> Tensor | None:
    """Return the labels of all rows as batches have those of some; None where the column does not tell them."""
    column = label_column(rows) if isinstance(rows, Dataset) else None
    if column is None or not isinstance(some, Tensor):
        return None
    labels = np.asarray(rows.with_format(None)[column][:])
    if labels.dtype.kind not in "biuf" or labels.shape[1:] != some.shape[1:]:
        return None
    return torch.as_tensor(labels).to(some)


def _gathered(trainer: Any, logits: Any, count: int, labels: Tensor) -> EvalPrediction:
    """Gather all labels as an evaluation does, each beside the logits of one of the `count` rows that were tried."""
    args, preprocess = trainer.args, trainer.preprocess_logits_for_metrics
    joined = args.eval_do_concat_batches
    predictions, answers = (EvalLoopContainer(joined, padding_index=-100) for _ in range(2))
    size = len(labels) if joined else args.eval_batch_size * args.world_size
    for numbers in torch.arange(len(labels), device=labels.device).split(size):
        outputs, batch = recursively_apply(lambda each: each[numbers % count], logits), labels[numbers]  # noqa: B023
        predictions.add(outputs if preprocess is None else preprocess(outputs, batch))
        answers.add(batch)
    return EvalPrediction(predictions.get_arrays(), answers.get_arrays())


def _others_add_metrics(trainer: Any) -> bool:
    """Check whether somebody's own method or callback gets an evaluation's metrics, and may add to them."""
    kinds = [type(each) for each in trainer.callback_handler.callbacks]
    methods = [getattr(trainer, name) for name in ("evaluate", "evaluation_loop", "_evaluate", "log")]
    events = [getattr(kind, name, kind) for kind in kinds for name in ("on_evaluate", "on_log")]
    return any(map(is_foreign, [*methods, *events]))


def _check_best_metric(args: Any, metrics: Mapping[str, float] | None) -> None:
    """Refuse to choose the best checkpoint by a metric that there will not be, or that is no number."""
    best = args.metric_for_best_model
    if best is None or not metrics or str(args.eval_strategy) in ("no", "IntervalStrategy.NO"):
        return
    full_name = f"eval_{best.removeprefix('eval_')}"
    if full_name not in metrics:
        names = sorted(name.removeprefix("eval_") for name in metrics)
        why = ", with prediction_loss_only=True" if args.prediction_loss_only else ""
        raise ValueError(
            f"metric_for_best_model={best!r} is no metric of an evaluation here{why}: choose one of {', '.join(names)}"
        )
    refuse_no_number(best, metrics[full_name])


@contextmanager
def _named(what: str, explain: Callable[[], str] = str) -> Iterator[None]:
    """Say what failed, and that nothing is trained yet."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (MemoryError, OSError)) or should_reduce_batch_size(error):
            raise
        told = explain() or f"{'' if isinstance(error, ValueError) else type(error).__name__ + ': '}{error}"
        raise ValueError(f"the rehearsal before the first step failed ({what}): {told}") from error


@contextmanager
def _failing_together() -> Iterator[None]:
    """Let every process know of a failure of another, so that none waits for one that is gone.

    Raises:
        ValueError: where another process failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    others = gather_object([None if failure is None else str(failure)])
    if failure is not None:
        raise failure
    if told := next(filter(None, others), None):
        raise ValueError(told)
