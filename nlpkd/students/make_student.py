"""Make a student: layers of the teacher, a narrower shape of it, a small model of another kind, or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.compression.low_rank import factorize_embeddings
from nlpkd.compression.vocabulary import trim_vocabulary
from nlpkd.data.columns import each_text
from nlpkd.data.tokenization import original_ids
from nlpkd.models.structure import refuse_other_than_plain
from nlpkd.students.backbone import known_backbone
from nlpkd.students.budget import student_within
from nlpkd.students.checkpoint import load_student
from nlpkd.students.kinds import build_student, kind_of, merge_adapter
from nlpkd.utils.field_types import plain_arguments


@overload
def make_student(
    teacher: PreTrainedModel | None = ...,
    layers: int | str | Sequence[int] | None = ...,
    *,
    vocabulary: Literal["trim"],
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]: ...


@overload
def make_student(
    teacher: PreTrainedModel | None = ...,
    layers: int | str | Sequence[int] | None = ...,
    *,
    vocabulary: None = ...,
    **options: Any,
) -> PreTrainedModel: ...


@plain_arguments
def make_student(
    teacher: PreTrainedModel | None = None,
    layers: int | str | Sequence[int] | None = None,
    *,
    checkpoint: str | Path | None = None,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    vocabulary: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Iterable[str] | None = None,
    rows: Any = None,
    embedding_size: int | None = None,
    revision: str | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    start: str = "teacher",
    backbone: str | Path | None = None,
    trust_remote_code: bool = False,
    seed: int = 42,
    **shape: Any,
) -> PreTrainedModel | tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make the model to train.

    Args:
        teacher: the model to take layers from; with `checkpoint`, where the labels come from.
        layers: `3` or `"layers:3"` (evenly spread: 2, 4, 6 of 6), or the layers by number, as in `[1, 3, 6]` or
            `"layers:1,3,6"`. Embeddings, these layers, pooler and head are copied. Of a teacher whose layers share
            their weights (ALBERT) the student runs them fewer times: faster, and no smaller. A peft adapter is merged.
            Or a published student's shape by name (`nlpkd.students.SHAPES`), such as `"tinybert-4l-312"`, that
            `narrow_student` makes of the teacher's weights. Or `"width:0.67"`: all layers of the teacher, with this
            share of the heads and feed-forward neurons of each, those that its loss on `rows` depends on most
            (`width_student`). Or `"bilstm"`, `"textcnn"` or `"static"`, which `small_student` starts
            from the teacher's embedding table, or from what its encoder makes of each token.
        checkpoint: instead of layers, a local path or Hub id of any width and depth; its head is initialised at random
            where it has none that fits.
        max_latency_ms: instead of layers, the most that one forward pass (one text of 32 tokens) may take: the student
            with the most weights beside its embeddings that fits, as measured on this machine. That may be a BiLSTM,
            which objectives on layers can't match; `student_within` takes the objectives into account.
        max_size_mb: likewise, the most that its weights file may take.
        vocabulary: `"trim"` leaves the student the tokens of `texts` alone, and gives a tokenizer to match; see
            `nlpkd.compression.trim_vocabulary`.
        tokenizer: with a vocabulary to trim, the tokenizer that the student would read with; with rows, theirs; with
            `"static"`, the teacher's, to make each token's vector with its encoder.
        texts: with a vocabulary to trim, what the student will read, such as the training texts.
        rows: with `"width:0.67"`, tokenised rows with labels to measure on, such as the training rows that
            `load_text_classification` makes; other students pass them over.
        embedding_size: of layers of the teacher, factorise their embedding table to this width; see
            `nlpkd.compression.factorize_embeddings`, as for the families that can.
        revision: branch, tag or commit of the checkpoint.
        id2label: label names by id or in order, where there is no teacher to give them.
        start: whose weights a student that is made of a teacher has: `"teacher"`, the fine-tuned ones, or
            `"pretrained"`, the same layers of the backbone that the teacher was fine-tuned from, with a new head.
        backbone: with `start="pretrained"`, the path or Hub id (`id@revision` too) of that backbone; what the
            teacher's config records (`nlpkd.train_teacher` writes it there) if None.
        trust_remote_code: run the repository's own code.
        seed: of what is initialised at random.
        **shape: with layers, narrower widths as `narrow_student` takes them (`hidden_size=192`,
            `initialization="slice"`); with `"bilstm"`, `"textcnn"` or `"static"`, settings of `small_student`.

    Returns:
        A float32 model in train mode that shares no memory with the teacher; with a trimmed vocabulary the tokenizer
        too.

    Raises:
        ValueError: if not exactly one of layers, checkpoint and budget is given, the teacher lacks what is asked for,
            nothing fits the budget, or nobody knows the backbone to start from.
    """
    options: dict[str, Any]
    limits: dict[str, Any] = {"max_latency_ms": max_latency_ms, "max_size_mb": max_size_mb}
    limited = max_latency_ms is not None or max_size_mb is not None
    kind = kind_of(layers)
    texts = _texts_to_keep(vocabulary, tokenizer, texts, rows is not None or (kind is not None and kind.reads_rows))
    _check_source(teacher, layers, checkpoint, limited, embedding_size, shape)
    if teacher is not None:
        refuse_other_than_plain(teacher, "teacher", *([["config"]] if checkpoint is not None else []))
    check_start(start, backbone, teacher is not None and checkpoint is None)
    # Choose: the vocabulary will be trimmed, so the budget is of students with a trimmed one.
    if limited:
        reading: Any = teacher if texts is None else trim_vocabulary(teacher, tokenizer, texts)[0]  # type: ignore[arg-type]
        layers = student_within(reading, **limits, embedding_size=embedding_size)
    # Build.
    if layers is not None:
        pretrained = None
        if start == "pretrained":
            pretrained = known_backbone(teacher.config, backbone, "start='pretrained'")  # type: ignore[union-attr]
        options = {"backbone": pretrained, "trust_remote_code": trust_remote_code, "seed": seed}
        if texts is not None and kind is not None and kind.reads_rows:
            # What is computed for each token is computed for those that stay, as `nlpkd.distill` does.
            trimmed = trim_vocabulary(merge_adapter(teacher), tokenizer, texts)[1]  # type: ignore[arg-type]
            options["token_ids"] = original_ids(trimmed, tokenizer)
        student = build_student(teacher, layers, id2label=id2label, rows=rows, tokenizer=tokenizer, **options, **shape)
    else:
        labels: Any = teacher.config.id2label if id2label is None and teacher is not None else id2label
        options = {"revision": revision, "trust_remote_code": trust_remote_code, "seed": seed}
        student = load_student(checkpoint, id2label=labels, **options)  # type: ignore[arg-type]
    # Factorise the embeddings.
    if embedding_size is not None:
        student, _ = factorize_embeddings(student, rank=embedding_size)
    # Trim the vocabulary.
    return student if texts is None else trim_vocabulary(student, tokenizer, texts)[:2]  # type: ignore[arg-type]


def check_start(start: str, backbone: str | Path | None, made_of_teacher: bool) -> None:
    """Check whether a student can start as it is asked to.

    Args:
        start: as `make_student` takes it.
        backbone: likewise.
        made_of_teacher: whether the student is made of a teacher.

    Raises:
        ValueError: for another word, and where there is no teacher whose backbone it could be.
    """
    if start not in ("teacher", "pretrained"):
        raise ValueError(f"start={start!r}: give 'teacher' (its fine-tuned layers) or 'pretrained' (its backbone's)")
    if not made_of_teacher and (start == "pretrained" or backbone is not None):
        raise ValueError(
            f"start={start!r}, backbone={backbone!r}: these are of a student that is made of a teacher, such as "
            "'layers:3'; a checkpoint or model starts as it is, so leave them out"
        )


def _texts_to_keep(
    vocabulary: str | None, tokenizer: PreTrainedTokenizerBase | None, texts: Iterable[str] | None, other_use: bool
) -> list[str] | None:
    """Return the texts whose tokens a trimmed vocabulary keeps, as a list since a budget reads them too.

    Args:
        vocabulary: as `make_student` takes it.
        tokenizer: likewise.
        texts: likewise.
        other_use: whether the tokenizer is for something else too.
    """
    if vocabulary is None and texts is None and (tokenizer is None or other_use):
        return None
    if vocabulary != "trim" or tokenizer is None or texts is None:
        raise ValueError(
            f"a vocabulary is trimmed to the tokens of a text; found vocabulary={vocabulary!r}, tokenizer of type "
            f"{type(tokenizer).__name__}, texts of type {type(texts).__name__}: give vocabulary='trim', a tokenizer "
            "and a list of texts together, or none of them"
        )
    return list(each_text(texts, "texts"))


def _check_source(
    teacher: PreTrainedModel | None,
    layers: int | str | Sequence[int] | None,
    checkpoint: str | Path | None,
    limited: bool,
    embedding_size: int | None,
    shape: Mapping[str, Any],
) -> None:
    """Refuse anything but one of layers, checkpoint and budget, and options of one given with another."""
    if limited:
        if teacher is None or layers is not None or checkpoint is not None or shape:
            raise ValueError("a budget chooses the student's layers or shape: give the teacher, and no layers")
        return
    kind = kind_of(layers)
    if embedding_size is not None and (
        teacher is None or layers is None or (kind and not kind.is_plain(teacher, layers))
    ):
        raise ValueError(
            "embedding_size is for students that are built from a teacher's whole layers, found "
            f"{'no teacher' if teacher is None else 'a teacher'} and layers={layers!r}: choose 'layers:N' or a "
            "shape of a teacher, or leave embedding_size out"
        )
    if (layers is None) == (checkpoint is None):
        raise ValueError(
            "give either layers (of the teacher) or checkpoint (a path or Hub id), found "
            f"layers={layers!r} and checkpoint={checkpoint!r}"
        )
    if checkpoint is not None and shape:
        raise ValueError(f"{', '.join(shape)}: a checkpoint has the shape that it has, so leave this out")
