"""Which layer of the student learns from which layer of the teacher: integers only, layers count 1..L."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

LayerSpec = str | Sequence[tuple[int, int]]
"""`"uniform"`, `"last"`, `"first"`, `"learned"`, `"1:2,2:4"`, or explicit `(student layer, teacher layer)` pairs."""


def uniform_layers(count: int, depth: int) -> list[int]:
    """Spread `count` layers evenly over `depth`: layer k of `count` is floor(k * depth / count + 1/2).

    Args:
        count: how many layers to choose, 1..depth.
        depth: how many there are.

    Returns:
        The chosen layers in ascending order, the last one always included: 3 of 6 gives [2, 4, 6].

    Raises:
        ValueError: if `count` is not in 1..depth.
    """
    if not 1 <= count <= depth:
        raise ValueError(f"can't choose {count} layers out of {depth}: choose a number from 1 to {depth}")
    return [(2 * k * depth + count) // (2 * count) for k in range(1, count + 1)]


def choose_layers(layers: int | Sequence[int], depth: int) -> list[int]:
    """Choose layers by their number or by their numbers.

    Args:
        layers: how many, evenly spread, or which, in ascending order and counted from 1.
        depth: how many there are.

    Returns:
        The chosen layers in ascending order.

    Raises:
        ValueError: if a layer is no whole number or does not exist, or they are not in order.
    """
    numbers = layers if isinstance(layers, Sequence) else [layers]
    if not _are_whole(numbers):
        raise ValueError(f"layers must be a whole number or a list of whole numbers, got {layers!r:.80}")
    if not isinstance(layers, Sequence):
        return uniform_layers(layers, depth)
    chosen = [int(layer) for layer in layers]
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 1 or chosen[-1] > depth:
        raise ValueError(f"layers must be ascending numbers from 1 to {depth}, the teacher's depth, got {chosen}")
    return chosen


def map_layers(spec: LayerSpec, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
    """Resolve a layer specification into `(student layer, teacher layer)` pairs.

    Args:
        spec: `"uniform"` (student layer k of S with teacher layer floor(k * T / S + 1/2)), `"last"` (last with last),
            `"first"` (k with k), `"learned"` (every layer with every one), `"1:2,3:6"`, or pairs. In explicit pairs
            layer 0 is the embedding output.
        student_depth: number of the student's layers, S.
        teacher_depth: number of the teacher's layers, T.

    Returns:
        At least one pair.

    Raises:
        ValueError: if the specification is unknown, empty, or names a layer that a model does not have.
    """
    pairs: list[tuple[int, int]] | None
    if isinstance(spec, str):
        pairs = _named(spec, student_depth, teacher_depth)
    else:
        try:
            pairs = [(student, teacher) for student, teacher in spec]
        except (TypeError, ValueError):
            pairs = None
        if pairs is None or not _are_whole([number for pair in pairs for number in pair]):
            raise ValueError(
                f"layers={spec!r:.80} is not a list of (student layer, teacher layer) pairs of whole numbers"
            )
    if not pairs:
        raise ValueError("a layer map needs at least one (student layer, teacher layer) pair, got none")
    for student, teacher in pairs:
        if not (0 <= student <= student_depth and 0 <= teacher <= teacher_depth):
            raise ValueError(
                f"layer pair {student}:{teacher} is out of range: the student has layers 1..{student_depth}, "
                f"the teacher 1..{teacher_depth} (0 is the embedding output)"
            )
    return pairs


def _are_whole(numbers: Sequence[Any]) -> bool:
    return all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers)


def _named(spec: str, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
    if spec == "uniform":
        if student_depth > teacher_depth:
            raise ValueError(
                f"a uniform layer map needs a teacher at least as deep as the student, got {teacher_depth} and "
                f"{student_depth} layers: name the pairs, as in layers='1:1,{student_depth}:{teacher_depth}'"
            )
        return list(enumerate(uniform_layers(student_depth, teacher_depth), start=1))
    if spec == "last":
        return [(student_depth, teacher_depth)]
    if spec == "first":
        return [(layer, layer) for layer in range(1, min(student_depth, teacher_depth) + 1)]
    if spec == "learned":
        return [(ours, theirs) for ours in range(1, student_depth + 1) for theirs in range(1, teacher_depth + 1)]
    try:
        return [(int(student), int(teacher)) for student, teacher in (pair.split(":") for pair in spec.split(","))]
    except ValueError:
        raise ValueError(
            f"layers={spec!r} is not a layer map: use 'uniform', 'last', 'first', 'learned', pairs like '1:2,3:6', "
            "or a list of (student layer, teacher layer)"
        ) from None
