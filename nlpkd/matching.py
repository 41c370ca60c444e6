"""Fit student, teacher, data and objectives together before training, or refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nlpkd.capture import Wanted, is_causal
from nlpkd.columns import UNLABELLED
from nlpkd.compact import input_table
from nlpkd.data import TEACHER_PREFIX, column_prefixes, same_tokenizer
from nlpkd.ensemble import TeacherEnsemble
from nlpkd.labels import (
    align_names,
    check_correlated,
    check_teacher,
    is_generic,
    looks_like_probabilities,
    stratified_sample,
)
from nlpkd.loading import load_tokenizer
from nlpkd.streaming import TextStream
from nlpkd.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, task_of
from nlpkd.teacher import TEACHER_LOGITS, LiveTeacher, Teacher

logger = logging.getLogger(__name__)

CHECKED_ROWS = 256
"""Gold labels that a teacher is held against."""

_READ_ROWS = 100_000
_LABEL_COLUMNS = ("labels", "label", "label_ids")


def refuse_reentrant_checkpointing(args: Any, wanted: Wanted) -> None:
    """Refuse to checkpoint activations in a way that cuts an objective off from the student.

    Args:
        args: of the training.
        wanted: what the objectives want of the student.

    Raises:
        ValueError: if they want what is inside of a layer, and reentrant checkpointing computes it without gradients.
    """
    settings: Any = args.activation_checkpointing_kwargs or args.gradient_checkpointing_kwargs or {}
    inside = [kind for kind, layers in wanted.items() if layers and kind != "hidden_states"]
    if inside and settings.get("use_reentrant"):
        raise ValueError(
            f"use_reentrant=True computes the student's {', '.join(inside)} without gradients, so that objectives on "
            "them would train nothing: leave it out of the checkpointing arguments, or drop these objectives"
        )


def refuse_shared_weights(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student that is its teacher, or shares tensors with it.

    Args:
        student: the model to train.
        teacher: the model that must not change.

    Raises:
        ValueError: if training the student would change the teacher.
    """
    owned = {parameter.data_ptr() for parameter in teacher.parameters()}
    shared = [name for name, parameter in student.named_parameters() if parameter.data_ptr() in owned]
    if shared:
        raise ValueError(
            f"student and teacher share {len(shared)} tensors ({shared[0]}, ...): training one would change the "
            "other. Make the student with nlpkd.make_student(teacher, layers=...), which copies"
        )


def refuse_unknown_padding(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, role: str) -> None:
    """Refuse a decoder that can't tell a text's last token, from which it classifies, from padding.

    Args:
        model: the model; one that is no decoder, or has no config, is passed.
        tokenizer: what pads its texts, or None where that is not known.
        role: `"student"` or `"teacher"`, for the error.

    Raises:
        ValueError: if its config has no padding token, or another one than the tokenizer.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig) or not is_causal(model):
        return
    padding = config.get_text_config().pad_token_id
    used = None if tokenizer is None else tokenizer.pad_token_id
    if padding is None or used not in (None, padding):
        raise ValueError(
            f"the {role} classifies by the last token that is no padding, its config has pad_token_id {padding} and "
            f"the tokenizer {used}: set config.pad_token_id = tokenizer.pad_token_id of the {role}, the tokenizer "
            "being the one that it was fine-tuned with"
        )


def refuse_unknown_tokens(model: Any, dataset: Any, column: str, role: str) -> None:
    """Refuse rows with token ids that a model has no embedding for: its tokenizer is another model's.

    Args:
        model: the model; one without input embeddings is passed.
        dataset: a `datasets.Dataset`; anything else is passed.
        column: of the model's token ids.
        role: `"student"` or `"teacher"`, for the error.

    Raises:
        ValueError: if an id is beyond the embedding table.
    """
    table = input_table(model)
    if not isinstance(table, nn.Embedding) or not isinstance(dataset, Dataset) or column not in dataset.column_names:
        return
    batches = dataset.select_columns(column).with_format("arrow").iter(_READ_ROWS)
    highest = max((pc.max(pc.list_flatten(batch.column(column))).as_py() or 0 for batch in batches), default=0)
    if highest >= table.num_embeddings:
        raise ValueError(
            f"the {role} has embeddings of {table.num_embeddings} tokens, and the training rows have token {highest}: "
            f"load model and tokenizer of the {role} from the same place, or call "
            "model.resize_token_embeddings(len(tokenizer)) and fine-tune it"
        )


def label_column(dataset: Any) -> str | None:
    """Name the column of a data set that holds gold labels, or None."""
    return next((name for name in _LABEL_COLUMNS if name in (getattr(dataset, "column_names", None) or ())), None)


def follow_student_labels(dataset: Any, student_config: Any, split: str) -> Any:
    """Give a data set the label ids of the student, by name, and check that they are in range.

    Args:
        dataset: a `datasets.Dataset` or a `TextStream`; anything else, and rows without labels, are passed through.
        student_config: its `id2label` is followed where it has names of its own, and else takes the data set's names.
        split: name for messages.

    Returns:
        The data set, its ids changed where the same names come in another order.

    Raises:
        ValueError: if there are no rows, names contradict each other, or a label is out of range.
    """
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"the {split} set has no rows")
    if isinstance(dataset, TextStream) and student_config is not None:
        order = _order_by_name(dict(enumerate(dataset.names)), student_config, split)
        if order is not None and order != sorted(order):
            dataset.follow(order)
        return dataset
    column = label_column(dataset)
    if not isinstance(dataset, Dataset) or column is None or student_config is None:
        return dataset
    feature, order = dataset.features[column], None
    if isinstance(feature, ClassLabel):
        order = _order_by_name(dict(enumerate(feature.names)), student_config, split)
    task = task_of(student_config) or SINGLE_LABEL
    if task == SINGLE_LABEL:
        _refuse_out_of_range(dataset, column, student_config.num_labels, split)
    else:
        _refuse_other_targets(dataset, column, task, student_config.num_labels, split)
    if order is not None and order != sorted(order):
        logger.warning("The %s set's label ids follow the student's names: %s.", split, student_config.id2label)
        places = {UNLABELLED: UNLABELLED} | {source: place for place, source in enumerate(order)}
        names = ClassLabel(names=[student_config.id2label[place] for place in range(len(order))])
        followed = [places[value] for value in dataset[column][:]]
        return dataset.remove_columns(column).add_column(column, followed, feature=names)
    return dataset


def _order_by_name(names: dict[int, str], student_config: Any, split: str) -> list[int] | None:
    """Find the data's index of each of the student's labels; a student whose names say nothing takes the data's."""
    try:
        order = align_names(names, student_config.id2label)
    except ValueError as error:
        raise ValueError(f"labels of the {split} set and of the student: {error}") from None
    if order is None and not is_generic(names):
        student_config.id2label, student_config.label2id = names, {name: k for k, name in names.items()}
    return order


def _refuse_out_of_range(dataset: Dataset, column: str, num_labels: int, split: str) -> None:
    values = np.asarray(dataset[column][:])
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"column {column!r} of the {split} set holds labels that are no numbers, such as {values.tolist()[0]!r}: "
            "load the data with nlpkd.load_text_classification, which numbers them"
        )
    bad = np.flatnonzero((values != -100) & ((values < 0) | (values >= num_labels)))
    if bad.size:
        raise ValueError(
            f"row {bad[0]} of the {split} set has label {values[bad[0]]} in column {column!r}; the student has labels "
            f"0..{num_labels - 1} (-100: unlabelled)"
        )


def _refuse_other_targets(dataset: Dataset, column: str, task: str, num_labels: int, split: str) -> None:
    first = np.asarray(dataset[0][column], dtype=object if isinstance(dataset[0][column], str) else None)
    if task == MULTI_LABEL and first.shape != (num_labels,):
        raise ValueError(
            f"the task is {task} with {num_labels} labels, and row 0 of the {split} set has {dataset[0][column]!r} in "
            f"column {column!r}: give a 0 or 1 for each label, or load with nlpkd.load_text_classification"
        )
    if task == REGRESSION and (first.shape or first.dtype.kind not in "fiu"):
        raise ValueError(
            f"the task is {task}, and row 0 of the {split} set has {dataset[0][column]!r} in column {column!r}: give "
            "one score a row, or load with nlpkd.load_text_classification"
        )


def label_order(teacher: nn.Module, student: nn.Module) -> list[int] | None:
    """Find where the teacher has each of the student's labels.

    Args:
        teacher: its `config.id2label` is read.
        student: likewise.

    Returns:
        order[k], the teacher's index of the student's label k, or None where names do not tell.

    Raises:
        ValueError: if the numbers of labels differ or the names contradict each other.
    """
    theirs, ours = (getattr(getattr(model, "config", None), "id2label", None) for model in (teacher, student))
    if theirs is None or ours is None:
        return None
    try:
        return align_names(theirs, ours)
    except ValueError as error:
        raise ValueError(f"labels of the teacher and of the student: {error}") from None


def teacher_prefix(
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    columns: Sequence[str],
    match_tokens: Sequence[str],
    own: str = TEACHER_PREFIX,
) -> str:
    """Say which columns the teacher reads: the student's (`""`) or its own (`"teacher_"`).

    Args:
        student: the model to train.
        teacher: the teacher.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's, or None where it is the student's.
        columns: of the training data, empty if unknown.
        match_tokens: names of the objectives that match token with token, which other tokens rule out.
        own: the prefix of its own columns.

    Returns:
        The prefix.

    Raises:
        ValueError: if the tokenizers differ and nothing was said of it, or the data lack the teacher's columns.
    """
    if teacher_tokenizer is None:
        teacher_tokenizer = _tokenizer_beside(teacher)
        sizes = {_vocabulary(student), _vocabulary(teacher)} - {None}
        differ = len(sizes) == 2
        if tokenizer is not None and teacher_tokenizer is not None:
            differ = not same_tokenizer(tokenizer, teacher_tokenizer)
        if differ and own + "input_ids" not in columns:
            raise ValueError(
                f"the teacher has another tokenizer than the student (vocabularies of {_vocabulary(teacher)} and "
                f"{_vocabulary(student)} tokens): pass teacher_processing_class, and load the data with "
                "load_text_classification(..., teacher_tokenizer=...)"
            )
    elif tokenizer is None or same_tokenizer(tokenizer, teacher_tokenizer):
        differ = False
    else:
        differ = True
        if columns and own + "input_ids" not in columns:
            raise ValueError(
                f"the teacher has another tokenizer, and the data have no column {own}input_ids: load them with "
                "load_text_classification(..., teacher_tokenizer=...)"
            )
    if differ and match_tokens:
        raise ValueError(
            f"{', '.join(match_tokens)} match token with token, and student and teacher have different tokenizers: "
            "use objectives on logits (the preset 'hinton'), or a student that shares the teacher's tokenizer, whole "
            "or in a trimmed form (nlpkd.compression.trim_vocabulary)"
        )
    return own if differ else ""


def fit_ensemble(
    ensemble: TeacherEnsemble,
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    teacher_tokenizers: Sequence[PreTrainedTokenizerBase | None],
    columns: Sequence[str],
) -> None:
    """Give each teacher of an ensemble its label order by name and the columns that it reads.

    Args:
        ensemble: the teachers.
        student: the model to train.
        tokenizer: the student's.
        teacher_tokenizers: one a teacher, None where it is the student's.
        columns: of the training data, empty if unknown.

    Raises:
        ValueError: if a teacher's labels or tokenizer do not fit, or the data lack its columns; it is named.
    """
    config, prefixes = getattr(student, "config", None), []
    own = column_prefixes(tokenizer, teacher_tokenizers)
    for number, (member, given) in enumerate(zip(ensemble.members, teacher_tokenizers, strict=True)):
        # Which of several tokenizers' columns a teacher reads is not known without its tokenizer.
        known = columns if given is not None else ()
        try:
            ensemble.reorder(number, label_order(member, student))
            prefixes.append(teacher_prefix(student, member, tokenizer, given, known, (), own[number]))
            refuse_unknown_padding(member, given or tokenizer, "teacher")
        except ValueError as error:
            raise ValueError(f"{_who(number, ensemble)}{error}") from None
    ensemble.read(prefixes)
    ensemble.task = task_of(config) or SINGLE_LABEL


def _who(number: int, ensemble: TeacherEnsemble) -> str:
    return f"teacher {number + 1} of {len(ensemble)}: "


def _vocabulary(model: nn.Module) -> int | None:
    return getattr(getattr(model, "config", None), "vocab_size", None)


def _tokenizer_beside(model: nn.Module) -> PreTrainedTokenizerBase | None:
    folder = Path(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None


def hold_against_gold(
    teacher: Teacher,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int,
    device: torch.device,
    order: Sequence[int] | None,
    student_config: Any,
    check: str,
    seed: int,
    who: str = "",
) -> None:
    """Run a teacher on a sample of gold labels: settle its label order, and refuse one that teaches noise.

    Args:
        teacher: live or cached; a live one whose label names say nothing is given the order that fits; of an ensemble
            each teacher is, alone.
        dataset: the training rows.
        collate: makes a batch of rows.
        batch_size: rows of a batch.
        device: where batches go.
        order: the teacher's label order by name, already applied, or None where names do not tell.
        student_config: for the number and names of labels.
        check: `"error"`, `"warn"` or `"off"`.
        seed: of the sample.
        who: which teacher it is, before the messages.

    Raises:
        ValueError: if the teacher gives probabilities, NaN or another number of labels; or, with `"error"`, if no
            order of its labels beats the majority class.
    """
    if isinstance(teacher, LiveTeacher) and isinstance(teacher.model, TeacherEnsemble):
        ensemble = teacher.model
        for number, capture in enumerate(ensemble.captures):
            member, named = ensemble.members[number], ensemble.orders[number]
            alone = LiveTeacher(member, {}, device, order=named, prefix=capture.prefix, autocast=teacher.autocast)
            name = _who(number, ensemble)
            hold_against_gold(alone, dataset, collate, batch_size, device, named, student_config, check, seed, name)
            if alone.order is not None:
                ensemble.reorder(number, alone.order.tolist())
        return
    column = label_column(dataset)
    if column is None:
        labels = np.full(len(dataset), UNLABELLED)
        sample = list(range(min(CHECKED_ROWS, len(dataset))))
    else:
        labels = np.asarray(dataset[column][:])
        sample = stratified_sample(labels, CHECKED_ROWS, seed)
    if not sample:
        return
    found = []
    for at in range(0, len(sample), batch_size):
        batch = collate([dataset[row] for row in sample[at : at + batch_size]])
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        found.append(teacher.outputs(batch).logits.float().cpu().numpy())
    logits = np.concatenate(found)
    _refuse_no_logits(logits, student_config, who)
    if check == "off" or column is None:
        return
    names = student_config.id2label if student_config is not None else {k: str(k) for k in range(logits.shape[1])}
    given = None if order is None and isinstance(teacher, LiveTeacher) else list(range(logits.shape[1]))
    if task_of(student_config) in (None, SINGLE_LABEL):
        order, problem = check_teacher(logits, labels[sample], given, names)
    else:
        gold = labels[sample].reshape(logits.shape).astype(float)
        order, problem = check_correlated(logits, gold, given, names)
    if problem is not None and check == "error":
        raise ValueError(
            f"{who}{problem}. Check teacher, tokenizer and label order, or set teacher_check='warn' or 'off'"
        )
    if problem is not None:
        logger.warning("%s%s.", who, problem)
    elif given is None and isinstance(teacher, LiveTeacher):
        teacher.reorder(order, device)


def _refuse_no_logits(logits: np.ndarray, student_config: Any, who: str) -> None:
    expected = getattr(student_config, "num_labels", logits.shape[1])
    if logits.shape[1] != expected:
        raise ValueError(f"{who}the teacher gives {logits.shape[1]} logits a row, the student has {expected} labels")
    if not np.isfinite(logits).all():
        raise ValueError(f"{who}the teacher gives NaN or infinite logits: check its weights and its dtype")
    if looks_like_probabilities(logits):
        raise ValueError(
            f"{who}the teacher's logits ({TEACHER_LOGITS}) are probabilities: every row lies in [0, 1] and sums to 1. "
            "Pass logits, or their logarithm"
        )
    if task_of(student_config) == MULTI_LABEL and logits.min() >= 0 and logits.max() <= 1 and np.ptp(logits) > 0.5:
        raise ValueError(
            f"{who}the teacher's logits ({TEACHER_LOGITS}) are probabilities: all of them lie in [0, 1]. Pass logits, "
            "log(p / (1 - p))"
        )
