"""The kinds of student that are made of a teacher, by the names that they go by.

A new kind is a function that makes it and an entry in `KINDS`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.record import new_failure
from nlpkd.models.layers import choose_layers
from nlpkd.models.small_models import SMALL_STUDENTS
from nlpkd.students.backbone import CONFIG_KEY, Backbone, load_pretrained
from nlpkd.students.narrow import narrow_student
from nlpkd.students.shapes import SHAPES
from nlpkd.students.small import small_student
from nlpkd.students.teacher_layers import copy_layers
from nlpkd.students.width import has_fewer_heads, share_of_width, width_student

_OTHER_FAMILY = (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError)
"""What a family's code raises where it is not like the others; NotImplementedError is a RuntimeError."""


_WIDTHS = {"hidden_size", "intermediate_size", "num_attention_heads", "initialization"}


@dataclass(frozen=True)
class StudentKind:
    """One kind of student.

    Attributes:
        has_name: checks whether a name is of this kind; layers go by a number or a list too.
        examples: what these names look like, for messages.
        build: makes one: takes the teacher (or None), the name, `id2label`, `seed`, and settings of the shape.
        candidates: lists the names to consider for a teacher where a budget chooses.
        has_layers: whether it has layers of the teacher.
        objectives: the preset that it is trained with where nobody names another; `"layerwise"` where it can be.
        is_plain: checks whether, made of a teacher by a name, it has the teacher's architecture, with embeddings that
            can be factorised.
        reads_rows: whether `build` takes `rows` too, their `tokenizer`, the `token_ids` that a trimmed vocabulary will
            keep, and the `fine_tuned` teacher to run on them.
    """

    has_name: Callable[[str], bool]
    examples: str
    build: Callable[..., PreTrainedModel]
    candidates: Callable[[PreTrainedModel], Iterable[str]]
    has_layers: bool = True
    objectives: str = "layerwise"
    is_plain: Callable[[PreTrainedModel, Any], bool] = lambda teacher, name: True
    reads_rows: bool = False


def _student_of_layers(
    teacher: PreTrainedModel | None, layers: int | str | Sequence[int], *, id2label: Any, seed: int, **widths: Any
) -> PreTrainedModel:
    """Copy layers of the teacher, narrowed where widths are given."""
    if isinstance(layers, str):
        if not re.fullmatch(r"layers:\d+(,\d+)*", layers):
            raise ValueError(_unknown(layers))
        numbers = [int(number) for number in layers.removeprefix("layers:").split(",")]
        layers = numbers if len(numbers) > 1 else numbers[0]
    teacher = _plain_teacher(teacher, layers, widths)
    chosen = choose_layers(layers, getattr(teacher.config, "num_hidden_layers", 0))
    return narrow_student(teacher, layers=chosen, seed=seed, **widths) if widths else copy_layers(teacher, chosen)


def _student_of_shape(
    teacher: PreTrainedModel | None, name: str, *, id2label: Any, seed: int, **widths: Any
) -> PreTrainedModel:
    """Narrow the teacher to a published shape."""
    shape = SHAPES[name]
    teacher = _plain_teacher(teacher, name, widths)
    if both := sorted(widths.keys() & shape.keys()):
        raise ValueError(f"{', '.join(both)} of {name} is {[shape[size] for size in both]}: leave it out")
    return narrow_student(teacher, **shape, **widths, seed=seed)


def _student_of_width(
    teacher: PreTrainedModel | None,
    name: str,
    *,
    id2label: Any,
    seed: int,
    fine_tuned: PreTrainedModel | None,
    rows: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    token_ids: Sequence[int] | None,
    **widths: Any,
) -> PreTrainedModel:
    """Keep a share of the heads and neurons of every layer."""
    share = share_of_width(name)
    if widths:
        raise ValueError(f"{', '.join(sorted(widths))}: {name} has the widths that it says, so leave this out")
    source, judge = (_plain_teacher(each, name, {}) for each in (teacher, fine_tuned))
    return width_student(judge, share, rows, tokenizer, weights_of=source)


def _small_student(
    teacher: PreTrainedModel | None, name: str, *, fine_tuned: PreTrainedModel | None, rows: Any, **settings: Any
) -> PreTrainedModel:
    """Make a small model of the teacher's tokens, for which no rows are needed."""
    return small_student(name, None if teacher is None else merge_adapter(teacher), **settings)


def _plain_teacher(teacher: PreTrainedModel | None, layers: Any, widths: Mapping[str, Any]) -> PreTrainedModel:
    """Return the teacher with its adapter merged; refuse a missing one, and settings that are no widths."""
    if teacher is None:
        raise ValueError(f"layers={layers!r} are layers of a teacher, and there is none: pass the teacher")
    if unknown := sorted(widths.keys() - _WIDTHS):
        raise ValueError(f"make_student has no argument {', '.join(unknown)}; widths are {', '.join(sorted(_WIDTHS))}")
    return merge_adapter(teacher)


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model in a peft wrapper without it, its adapter in the weights of a copy; any other as it is."""
    if not hasattr(model, "merge_and_unload"):
        return model
    adapted: Any = copy.deepcopy(model)
    return adapted.merge_and_unload()


def all_depths(teacher: PreTrainedModel) -> list[str]:
    """Name the students of every number of a teacher's layers, the deepest first; none of one without layers."""
    return [f"layers:{count}" for count in range(getattr(teacher.config, "num_hidden_layers", 0), 0, -1)]


KINDS = [
    StudentKind(
        lambda name: name.startswith("layers:"),
        "'layers:3', 3, 'layers:2,4,6', [2, 4, 6]",
        _student_of_layers,
        all_depths,
    ),
    StudentKind(
        lambda name: name.startswith("width:"),
        "'width:0.67'",
        _student_of_width,
        # A budget has no rows to measure on.
        lambda teacher: (),
        objectives="dynabert",
        is_plain=lambda teacher, name: not has_fewer_heads(merge_adapter(teacher), share_of_width(name)),
        reads_rows=True,
    ),
    StudentKind(
        SHAPES.__contains__,
        f"a shape ({', '.join(SHAPES)})",
        _student_of_shape,
        lambda teacher: SHAPES,
    ),
    StudentKind(
        SMALL_STUDENTS.__contains__,
        f"another kind of student ({', '.join(SMALL_STUDENTS)})",
        _small_student,
        lambda teacher: SMALL_STUDENTS,
        has_layers=False,
        objectives="hinton",
        is_plain=lambda teacher, name: False,
        reads_rows=True,
    ),
]
"""Every kind of student that is made of a teacher."""


def kind_of(layers: Any) -> StudentKind | None:
    """Return the kind of student that a name, a number of layers or a list of them is of; None for anything else."""
    if isinstance(layers, str):
        return next((kind for kind in KINDS if kind.has_name(layers)), None)
    return KINDS[0] if isinstance(layers, (int, Sequence)) else None


def name_of_layers(student: Any) -> Any:
    """Return layers that go by numbers as a name, and anything else as it is.

    Args:
        student: `3` or `"3"`, the number of layers; `[2, 4, 6]` or `"2,4,6"`, the layers; a name, a model, a path.
            Of a text that is a folder's path here nothing is taken for numbers.

    Returns:
        Such as `"layers:3"` and `"layers:2,4,6"`.

    Raises:
        ValueError: for a list of one, since names have no way to say it.
    """
    if isinstance(student, Integral):
        return f"layers:{student}"
    if isinstance(student, str):
        written = re.fullmatch(r"\d+(,\d+)*", student) and not Path(student).exists()
        return f"layers:{student}" if written else student
    if not isinstance(student, Sequence) or not all(isinstance(each, Integral) for each in student):
        return student
    if len(student) < 2:
        raise ValueError(f"student={list(student)!r}: name two layers or more, or say how many as a number, such as 3")
    return f"layers:{','.join(map(str, student))}"


def build_student(
    teacher: PreTrainedModel | None,
    layers: int | str | Sequence[int],
    *,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    seed: int = 42,
    backbone: Backbone | None = None,
    trust_remote_code: bool = False,
    rows: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_ids: Sequence[int] | None = None,
    **shape: Any,
) -> PreTrainedModel:
    """Make a student by its name, as `make_student` takes it.

    Args:
        teacher: the model to make it of.
        layers: a name of one of `KINDS`, the number of layers, or the layers by number.
        id2label: label names by id or in order, where there is no teacher to give them.
        seed: of what is initialised at random.
        backbone: what the teacher was fine-tuned from, to make the student of that in the same way; its head is new.
        trust_remote_code: run the backbone repository's own code.
        rows: of a kind that reads some, tokenised rows with labels; others pass them over.
        tokenizer: what they were tokenised with.
        token_ids: the tokens that a trimmed vocabulary will keep, where one will be made.
        **shape: settings of the kind.

    Returns:
        A float32 model in train mode that shares no memory with the teacher.

    Raises:
        ValueError: if no kind has such a name, or the teacher lacks what is asked for.
    """
    kind = kind_of(layers)
    if kind is None:
        raise ValueError(_unknown(layers))
    if kind.reads_rows:
        shape |= {"rows": rows, "tokenizer": tokenizer, "token_ids": token_ids, "fine_tuned": teacher}
    if teacher is not None and backbone is not None:
        teacher = load_pretrained(merge_adapter(teacher), backbone, seed=seed, trust_remote_code=trust_remote_code)
    try:
        student = kind.build(teacher, layers, id2label=id2label, seed=seed, **shape)
        if teacher is not None and (failure := new_failure(teacher, student)) is not None:
            raise failure
    except torch.OutOfMemoryError:
        raise
    except _OTHER_FAMILY as error:
        # The code of families differs in ways that no check knows beforehand.
        raise ValueError(
            f"a {type(teacher).__name__} can't be made into {layers!r} ({type(error).__name__}: {error!s:.200}): try "
            "another kind of student, such as 'layers:3' without widths or 'bilstm', or a checkpoint"
        ) from error
    # A student of some layers was not fine-tuned from the whole backbone.
    vars(student.config).pop(CONFIG_KEY, None)
    return student


def _unknown(name: Any) -> str:
    *most, last = (kind.examples for kind in KINDS)
    return f"layers={name!r} names no student of a teacher: use {', '.join(most)}, or {last}"
