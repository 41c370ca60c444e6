"""Fit student, teacher, data and objectives together before training, or refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from nlpkd.data.collator import DistillationCollator
from nlpkd.data.labels.classes import Classes
from nlpkd.data.rows import RowSample, list_lengths
from nlpkd.data.tokenization import TEACHER_PREFIX, column_prefixes, same_tokenizer
from nlpkd.models.attention import Wanted
from nlpkd.models.capture import Capture
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.inference import evaluating
from nlpkd.models.limits import positions_of
from nlpkd.models.loading import load_tokenizer
from nlpkd.models.onnx_classifier import OnnxClassifier
from nlpkd.models.padding import refuse_unknown_padding
from nlpkd.models.structure import classification_head, input_table, permute_head
from nlpkd.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, task_of
from nlpkd.teachers.checks import looks_like_probabilities
from nlpkd.utils.randomness import random_state_kept

_READ_ROWS = 100_000


def refuse_reentrant_checkpointing(args: Any, wanted: Wanted) -> None:
    """Refuse to checkpoint activations in a way that cuts an objective off from the student.

    Args:
        args: of the training.
        wanted: what the objectives want of the student.

    Raises:
        ValueError: if they want what is inside of a layer, and reentrant checkpointing computes it without gradients.
    """
    # transformers 5.23 calls it activation_checkpointing, and keeps the old name equal; older ones have the old name.
    settings: Any = args.gradient_checkpointing_kwargs or {}
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


def refuse_untokenised_rows(columns: Sequence[str], collate: Any, split: str) -> None:
    """Refuse rows of texts that nobody tokenised, where the collator does nothing but pad.

    Args:
        columns: of the rows; none where they are not known.
        collate: makes a batch of them; transformers' wrapper around a collator is looked into.
        split: which rows these are, for the error.

    Raises:
        ValueError: if they have no `input_ids`.
    """
    inner = getattr(collate, "data_collator", collate)
    pads = isinstance(inner, (DistillationCollator, DataCollatorWithPadding))
    if pads and columns and "input_ids" not in columns:
        raise ValueError(
            f"the {split} rows have the columns {list(columns)} and no input_ids: tokenise them, as "
            "nlpkd.load_text_classification does"
        )


def refuse_unpadded(rows: Any, collate: Any) -> None:
    """Refuse training rows of several lengths that nothing pads.

    Args:
        rows: a data set, or a sample of rows of another kind.
        collate: makes a batch of them; transformers' wrapper around a collator is looked into.

    Raises:
        ValueError: if there is no tokenizer to pad them.
    """
    inner = getattr(collate, "data_collator", collate)
    if inner is default_data_collator and "input_ids" in (rows.column_names or ()):
        lengths = {len(ids) for ids in rows["input_ids"][:_READ_ROWS]}
        if len(lengths) > 1:
            raise ValueError(
                f"the training rows have {min(lengths)} to {max(lengths)} tokens, and nothing pads them: pass the "
                "student's tokenizer (processing_class)"
            )


def refuse_unknown_tokens(model: Any, dataset: Any, column: str, role: str, split: str = "training") -> None:
    """Refuse rows with token ids that a model has no embedding for: its tokenizer is another model's.

    Args:
        model: the model; one of which nobody knows how many embeddings it has is passed.
        dataset: a `datasets.Dataset`, or a sample of rows of another kind.
        column: of the model's token ids.
        role: `"student"` or `"teacher"`, for the error.
        split: which rows these are, for the error.

    Raises:
        ValueError: if an id is beyond the embedding table; see `refuse_unknown_token`.
    """
    if not isinstance(dataset, (Dataset, RowSample)) or column not in dataset.column_names:
        return
    if isinstance(dataset, Dataset):
        batches = dataset.select_columns(column).with_format("arrow").iter(_READ_ROWS)
        highest = max((pc.max(pc.list_flatten(batch.column(column))).as_py() or 0 for batch in batches), default=0)
    else:
        highest = max((max(ids, default=0) for ids in dataset[column]), default=0)
    refuse_unknown_token(model, highest, role, f"the {split} rows have")


def refuse_unknown_token(model: Any, highest: int, role: str, holders: str) -> None:
    """Refuse a token id that a model has no embedding for.

    Args:
        model: the model; one of which nobody knows how many embeddings it has is passed.
        highest: the largest id of some texts.
        role: what the error calls the model, such as `"student"` or `"teacher"`.
        holders: these texts with their verb, as in `"the training rows have"`.

    Raises:
        ValueError: if it is beyond the embedding table.
    """
    # An ONNX file has its table inside.
    count = getattr(input_table(model), "num_embeddings", None)
    count = _vocabulary(model) if isinstance(model, OnnxClassifier) else count
    if isinstance(count, int) and highest >= count:
        raise ValueError(
            f"the {role} has embeddings of {count} tokens, and {holders} token {highest}: load model and tokenizer of "
            f"the {role} from the same place, or call model.resize_token_embeddings(len(tokenizer)) and fine-tune it"
        )


def too_long(model: nn.Module, rows: Any, column: str, role: str, split: str) -> str:
    """Say how many tokens the longest row has, where a model has fewer positions.

    Args:
        model: the model.
        rows: a `datasets.Dataset`; of anything else nothing is known.
        column: of the model's token ids.
        role: `"student"` or `"teacher"`.
        split: which rows these are.

    Returns:
        A sentence; an empty one where no row is too long, or nobody knows.
    """
    limit = positions_of(getattr(model, "config", None))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            # RoBERTa and its kin count from the padding token's place on.
            limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    if limit is None or not isinstance(rows, Dataset) or column not in rows.column_names:
        return ""
    longest = int(list_lengths(rows, column).max())
    if longest <= limit:
        return ""
    return (
        f"the {role} has {limit} positions, and a row of the {split} set has {longest} tokens: load the data with "
        f"max_length={limit}"
    )


def refuse_no_classifier(student: nn.Module, capture: Capture, batch: Mapping[str, Any], labels: int | None) -> None:
    """Run a student on one batch, in eval mode, and refuse one that gives no logits of the right number.

    Args:
        student: the model to train, where it will be trained.
        capture: what runs it.
        batch: a collated one, on the student's device.
        labels: how many labels there are; None where nobody knows.

    Raises:
        ValueError: if its forward takes other things, or it gives something else than a finite number for each label:
            what it gave is named.
    """
    capture.refuse_other_columns(student, batch, "student")
    with evaluating(student), random_state_kept():
        logits: Any = capture(student, batch).logits
    rows = len(next(iter(capture.inputs(batch).values())))
    expected = f"the student ({type(student).__name__}) must give logits (rows, labels)"
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows or not logits.is_floating_point():
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{expected}, and gave {found} for {rows} rows")
    if labels is not None and logits.shape[1] != labels:
        raise ValueError(f"{expected}: it gives {logits.shape[1]} logits a row, and there are {labels} labels")
    if not logits.isfinite().all():
        raise ValueError(f"{expected}, and gives NaN or infinite ones: check its weights and its dtype")
    if rows > 1 and labels != 1 and looks_like_probabilities(logits.float().cpu().numpy()):
        raise ValueError(f"{expected}, and gives probabilities: leave the softmax out, which the objectives do")


def label_order(teacher: nn.Module, classes: Classes | None) -> list[int] | None:
    """Find where the teacher has each of the student's labels.

    Args:
        teacher: its `config.id2label` is read.
        classes: the student's, their task too; None where nothing names them.

    Returns:
        order[k], the teacher's index of the student's label k, or None where names do not tell.

    Raises:
        ValueError: if the numbers of labels differ or the names contradict each other.
    """
    try:
        theirs = Classes.of_config(getattr(teacher, "config", None))
        if theirs is None or classes is None:
            return None
        # A student that says no task is trained for one class a row.
        one_a_row = classes.problem_type is None and len(classes) > 1
        return (replace(classes, problem_type=SINGLE_LABEL) if one_a_row else classes).positions_in(theirs)
    except ValueError as error:
        raise ValueError(f"labels of the teacher and of the student: {error}") from None


def align_copied_head(student: nn.Module, teacher: nn.Module, order: Sequence[int] | None) -> bool:
    """Put the head of a student that is a copy of its teacher's into the student's label order.

    Layers are copied in the teacher's order, and where names say nothing gold labels tell later that it is another.

    Args:
        student: changed in place, where its head still is the teacher's.
        teacher: a model or an ensemble, which knows the orders of its members.
        order: order[k], the teacher's index of the student's label k; None where it is the student's own.

    Returns:
        Whether it is a copy.
    """
    head = classification_head(student)
    teachers: list[tuple[nn.Module, Any]] = [(teacher, order)]
    if isinstance(teacher, TeacherEnsemble):
        teachers = list(zip(teacher.members, teacher.orders, strict=True))
    for model, found in teachers:
        copied = classification_head(model)
        if head is None or copied is None or head.weight.shape != copied.weight.shape:
            continue
        theirs = copied.weight.to(head.weight)
        if found is not None and torch.equal(head.weight, theirs[found]):
            return True
        if torch.equal(head.weight, theirs):
            if found is not None:
                permute_head(student, found)
            return True
    return False


def teacher_prefix(
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    columns: Sequence[str],
    match_tokens: Sequence[str],
    own: str = TEACHER_PREFIX,
) -> str:
    """Choose the columns that the teacher reads: the student's (`""`) or its own (`"teacher_"`).

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
        # Columns of its own are there for a teacher that reads them.
        differ = len(sizes) == 2 or own + "input_ids" in columns
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
    classes: Classes | None,
) -> None:
    """Set for each teacher of an ensemble its label order by name and the columns that it reads.

    Args:
        ensemble: the teachers.
        student: the model to train.
        tokenizer: the student's.
        teacher_tokenizers: one a teacher, None where it is the student's.
        columns: of the training data, empty if unknown.
        classes: the student's; None where nothing names them.

    Raises:
        ValueError: if a teacher's labels or tokenizer do not fit, or the data lack its columns; it is named.
    """
    config, prefixes = getattr(student, "config", None), []
    own = column_prefixes(tokenizer, teacher_tokenizers)
    for number, (member, given) in enumerate(zip(ensemble.members, teacher_tokenizers, strict=True)):
        # Which of several tokenizers' columns a teacher reads is not known without its tokenizer.
        known = columns if given is not None else ()
        try:
            ensemble.reorder(number, label_order(member, classes))
            prefixes.append(teacher_prefix(student, member, tokenizer, given, known, (), own[number]))
            refuse_unknown_padding(member, given or tokenizer, "teacher")
        except ValueError as error:
            raise ValueError(f"{ensemble.names[number]}: {error}") from None
    ensemble.read(prefixes)
    ensemble.task = task_of(config) or SINGLE_LABEL


def refuse_other_task(config: Any, problem_type: str) -> None:
    """Refuse a teacher that has scores where the labels make classes, or classes where they are scores.

    Args:
        config: the teacher's.
        problem_type: the task that the labels make.

    Raises:
        ValueError: if it has.
    """
    one_output = config.num_labels == 1
    if one_output != (problem_type == REGRESSION) and not (one_output and problem_type == MULTI_LABEL):
        raise ValueError(
            f"the labels make the task {problem_type}, and the teacher has {config.num_labels} outputs: name the "
            "labels' column (label_column), set problem_type, or take a teacher of this task (nlpkd.train_teacher)"
        )


def _vocabulary(model: nn.Module) -> int | None:
    return getattr(getattr(model, "config", None), "vocab_size", None)


def _tokenizer_beside(model: nn.Module) -> PreTrainedTokenizerBase | None:
    folder = Path(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
