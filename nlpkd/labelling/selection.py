"""Which texts to ask about next: those that a student is unsure of, and those that differ from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlpkd.evaluation.records import METRIC_NAMES, percent
from nlpkd.evaluation.report_text import markdown_table
from nlpkd.models.structure import readable
from nlpkd.tasks import MULTI_LABEL
from nlpkd.teachers.base import batches_by_length
from nlpkd.utils.disk.files import write_atomic, write_json

SELECTIONS = ("uncertainty", "diversity", "random")
"""By the student's margin; by its margin and a spread over its embeddings; by chance."""

_CANDIDATES = 5


def margins(probabilities: np.ndarray, problem_type: str) -> np.ndarray:
    """Compute how sure a student is of each text.

    Args:
        probabilities: `(texts, classes)`.
        problem_type: the task.

    Returns:
        `(texts,)`: the probability of the likeliest class minus that of the next; of several labels the least
        |2 p - 1| of any.
    """
    if problem_type == MULTI_LABEL:
        return np.abs(2 * probabilities - 1).min(axis=1)
    top = np.sort(probabilities, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def select_texts(select: str, count: int, sureness: np.ndarray, embeddings: np.ndarray) -> list[int]:
    """Choose texts by what a student makes of them.

    `uncertainty` takes the least sure ones (Scheffer et al. 2001, margin sampling). `diversity` takes, of five times
    as many least sure ones, those that lie far from each other: each next one is the farthest from all before (Sener
    and Savarese 2018, https://arxiv.org/abs/1708.00489, greedy k-center).

    Args:
        select: `uncertainty` or `diversity`.
        count: how many.
        sureness: of `margins`, `(texts,)`.
        embeddings: `(texts, hidden)`; their directions are compared.

    Returns:
        Numbers of texts, `count` or as many as there are.
    """
    order, count = np.argsort(sureness, kind="stable"), min(count, len(sureness))
    if select == "uncertainty" or count == 0:
        return order[:count].tolist()
    candidates = order[: _CANDIDATES * count]
    points = embeddings[candidates] / np.maximum(np.linalg.norm(embeddings[candidates], axis=1, keepdims=True), 1e-12)
    chosen = [0]
    nearest = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < count:
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return candidates[chosen].tolist()


def labels_for(curve: Sequence[tuple[int, float]], goal: float) -> float | None:
    """Compute how many labels a quality takes.

    Args:
        curve: labels bought and quality.
        goal: the quality.

    Returns:
        Where the curve first reaches it; between two points it is a straight line. None where it does not.
    """
    for (before, low), (after, high) in zip([(0, -np.inf), *curve], curve, strict=False):
        if high >= goal:
            return float(after if not np.isfinite(low) else before + (after - before) * (goal - low) / (high - low))
    return None


def labels_saved(curve: Sequence[tuple[int, float]], random: Sequence[tuple[int, float]]) -> float | None:
    """Compute the share of labels that a selection saves.

    Args:
        curve: labels bought and quality, of the selection.
        random: likewise, of a random choice.

    Returns:
        1 - labels that the selection needs / labels that random needs for the quality that random has at its end;
        below 0 where the selection needs more. None where it does not reach this quality.
    """
    needed, by_chance = (labels_for(each, random[-1][1]) for each in (curve, random))
    return None if needed is None or by_chance is None else 1 - needed / by_chance


def read_texts(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Run a student on texts.

    Args:
        model: the student, in eval mode.
        tokenizer: its tokenizer.
        texts: the texts.
        max_length: the most tokens of one.

    Returns:
        Its probabilities, and the mean of its last hidden states over the tokens.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    order: list[int] = []
    found: list[torch.Tensor] = []
    means: list[torch.Tensor] = []
    several = model.config.problem_type == MULTI_LABEL
    with torch.inference_mode():
        for batch in batches_by_length([len(each) for each in encoded["input_ids"]], 64):
            columns = {name: [values[number] for number in batch] for name, values in encoded.items()}
            inputs = tokenizer.pad(columns, return_tensors="pt").to(model.device)
            output = model(**readable(model, inputs), output_hidden_states=True)
            mask = inputs["attention_mask"][..., None].float()
            logits = output.logits.float()
            order += batch
            found.append((logits.sigmoid() if several else logits.softmax(-1)).cpu())
            means.append(((output.hidden_states[-1].float() * mask).sum(1) / mask.sum(1)).cpu())
    back = np.argsort(order)
    return torch.cat(found).numpy()[back], torch.cat(means).numpy()[back]


def save_curves(output: Path, curves: Mapping[str, Sequence[tuple[int, float]]], select: str, metric: str) -> None:
    """Write the curves as JSON and as a table, with what the selection saves against random.

    Args:
        output: the file of the labels, beside which they are written.
        curves: points of labels and quality, by the selection's name.
        select: the selection.
        metric: what the quality is.
    """
    saved = labels_saved(curves[select], curves["random"]) if len(curves) > 1 else None
    cells = []
    for points in zip(*curves.values(), strict=True):
        # Two numbers where the teacher did not answer as many texts of both.
        bought = " / ".join(dict.fromkeys(str(labels) for labels, _ in points))
        cells.append([bought, *(f"{value:.3f}" for _, value in points)])
    parts = [f"# {METRIC_NAMES.get(metric, metric)} of the student by labels bought"]
    parts.append(markdown_table(["labels", *curves], cells))
    if saved is not None:
        does, share = ("saves", saved) if saved >= 0 else ("needs", 1 - saved)
        parts.append(f"{select} {does} {percent(share, 0)} of the labels that random needs for its last value.")
    elif len(curves) > 1:
        parts.append(f"{select} does not reach the last value of random: it saves nothing.")
    write_atomic(output.with_name(output.name + ".curve.md"), ("\n\n".join(parts) + "\n").encode())
    record = {"metric": metric, "curves": curves, "labels_saved": saved}
    write_json(output.with_name(output.name + ".curve.json"), record)
