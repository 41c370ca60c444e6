"""A student with all of its teacher's layers, and of each the heads and feed-forward neurons that matter most."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.prune import heads_of, keep_heads, keep_neurons, measure_importance, neurons
from nlpkd.data.label_names import align_labels_to_student
from nlpkd.data.labels.classes import given_labels, thresholds_of
from nlpkd.data.rows import labelled_rows, makes_batches
from nlpkd.data.tokenization import TOKEN_COLUMNS
from nlpkd.evaluation.prediction import predict_logits
from nlpkd.models.structure import top_indices
from nlpkd.students.backbone import CONFIG_KEY
from nlpkd.students.teacher_layers import copy_layers
from nlpkd.tasks import MULTI_LABEL, REGRESSION, task_of
from nlpkd.utils.processes import decided_by_main_process
from nlpkd.utils.progress import phase

SAMPLED_ROWS = 512
"""Rows on which importance is measured."""


_MULTIPLE = 8
"""What the number of neurons is a multiple of: processors read that many at once."""


def share_of_width(name: str) -> float:
    """Return the share of heads and neurons that a name such as `"width:0.67"` keeps.

    Raises:
        ValueError: if it is no number above 0 and at most 1.
    """
    number = name.removeprefix("width:")
    if not re.fullmatch(r"\d*\.?\d+", number) or not 0 < float(number) <= 1:
        raise ValueError(f"{name!r} names no share of a teacher's width: write one above 0, at most 1: 'width:0.67'")
    return float(number)


def has_fewer_heads(teacher: PreTrainedModel, share: float) -> bool:
    """Return whether a student of a share of the width lacks heads, or neurons alone."""
    heads = heads_of(teacher).count
    return _heads_kept(heads, share) < heads


def _heads_kept(heads: int, share: float) -> int:
    return max(1, round(share * heads))


def width_student(
    teacher: PreTrainedModel,
    share: float,
    rows: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    weights_of: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """Make a student of all layers of its teacher, with a share of the heads and feed-forward neurons of each.

    Those stay that the teacher's loss depends on most: the gradients on masks of `nlpkd.compression.prune_heads` and
    `prune_neurons`, all taken of the whole teacher. It is what Hou et al. (2020), "DynaBERT: Dynamic BERT with
    Adaptive Width and Depth", arXiv:2004.04037, section 2.1, start from. They put the heads and neurons of one network
    in that order and train it at several widths; here a student has one width, from its start.

    Fewer neurons make a plain checkpoint. Fewer heads do where the config gives a head's width (Llama, Qwen3,
    NomicBERT); of BERT and its relatives they make a `ReshapedForSequenceClassification`, which loads by the same
    `from_pretrained` after `import nlpkd`.

    Args:
        teacher: a classifier.
        share: what is kept of the heads, rounded to whole ones, and of the neurons, rounded to a multiple of 8; in
            (0, 1]. At least one head and 8 neurons stay.
        rows: tokenised rows with labels, as `load_text_classification` gives them, such as the training rows, 512 of
            which are drawn. Where nobody labelled any, the teacher's answers are their labels. Needed for a share
            below 1.
        tokenizer: pads the rows.
        weights_of: a model of the teacher's shape whose weights the student gets, such as its pre-trained backbone;
            the teacher if None.

    Returns:
        A float32 model in train mode that shares no memory with the teacher.

    Raises:
        ValueError: if there are no rows to measure on, or the family's heads or neurons can't be fewer.
    """
    source, depth = teacher if weights_of is None else weights_of, getattr(teacher.config, "num_hidden_layers", 0)
    if not depth:
        raise ValueError(f"{type(teacher).__name__} has no layers to make narrower: choose another kind of student")
    student = copy_layers(source, range(1, depth + 1))
    # A reshaped model keeps the config that it was made of.
    vars(student.config).pop(CONFIG_KEY, None)
    if share == 1:
        return student
    # What there is, and how much of it stays.
    heads, inner = heads_of(teacher), neurons(teacher)
    fewer_heads = _heads_kept(heads.count, share)
    fewer_neurons = min(inner.count, max(_MULTIPLE, _MULTIPLE * round(share * inner.count / _MULTIPLE)))

    # Which of it matters most.
    def choose() -> list[dict[str, Tensor]]:
        sample = _sample(teacher, rows, tokenizer)
        with phase("Measuring which heads and neurons matter"):
            measured = measure_importance(teacher, [heads, inner], sample, tokenizer, max_rows=SAMPLED_ROWS)  # type: ignore[arg-type]
        counts = (fewer_heads, fewer_neurons)
        return [
            {layer: top_indices(values, count).cpu() for layer, values in each.items()}
            for each, count in zip(measured, counts, strict=True)
        ]

    # A GPU's gradients differ in their last bits from one process to another, and with them what comes first.
    kept_heads, kept_neurons = decided_by_main_process(choose)
    # The student without the rest; neurons first, since what has fewer heads may be no model of the family any more.
    student = keep_neurons(student, kept_neurons)
    return keep_heads(student, kept_heads) if fewer_heads < heads.count else student


def _sample(teacher: PreTrainedModel, rows: Any, tokenizer: PreTrainedTokenizerBase | None) -> Dataset:
    """Return rows whose labels are in the teacher's order; where nobody labelled any, its answers are their labels."""
    stream = makes_batches(rows)
    columns = getattr(rows, "column_names", None) or ()
    if tokenizer is None or not (stream or (isinstance(rows, Dataset) and {"input_ids", "labels"} <= {*columns})):
        raise ValueError(
            "a student of a share of the teacher's width keeps what matters most on data: give rows=, tokenised rows "
            "with labels as load_text_classification makes them, and tokenizer=, what they were tokenised with (found "
            f"rows of type {type(rows).__name__} with columns {[*columns]}, tokenizer of type "
            f"{type(tokenizer).__name__})"
        )
    rows = align_labels_to_student(rows, teacher.config, "train")
    if stream:
        known = any(rows.summary.class_counts.values())
        rows = rows.sample(SAMPLED_ROWS) if known else rows.head(SAMPLED_ROWS)
    tokens = [name for name in rows.column_names if name in TOKEN_COLUMNS]
    if len(labelled := labelled_rows(rows)):
        return labelled.select_columns([*tokens, "labels"])
    task = task_of(teacher.config)
    if task == REGRESSION:
        raise ValueError("no row has a gold score, and the loss against a teacher's own is 0: give labelled rows")
    rows = rows.shuffle(seed=0).select(range(min(SAMPLED_ROWS, len(rows))))
    rows = rows.select_columns(tokens)
    logits = predict_logits(teacher, rows, tokenizer)
    if task == MULTI_LABEL:
        answers = given_labels(logits, thresholds_of(teacher.config)).astype(np.float32)
    else:
        answers = logits.argmax(axis=1)
    return rows.add_column("labels", answers.tolist())
