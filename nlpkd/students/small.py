"""Small students that are no transformers, made for a teacher: of its labels, its vocabulary and its token vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.data.labels.classes import Classes
from nlpkd.models.inference import evaluating, placement
from nlpkd.models.reshaped import ReshapedForSequenceClassification
from nlpkd.models.small_models import PROJECTED_WIDTH, SMALL_STUDENTS
from nlpkd.models.structure import input_table, refuse_other_than_plain, sort_drawn_head
from nlpkd.utils.field_types import plain_arguments
from nlpkd.utils.fingerprints import hash_value
from nlpkd.utils.object_hashes import hash_configuration, hash_weights
from nlpkd.utils.progress import phase

CONTEXTUAL_WIDTH = 256
"""Width of token vectors from a teacher's encoder: model2vec's."""


_TOKENS_AT_ONCE = 512


@plain_arguments
def small_student(
    kind: str,
    teacher: PreTrainedModel | None = None,
    *,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    vocab_size: int | None = None,
    pad_token_id: int | None = None,
    embeddings: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_ids: Sequence[int] | None = None,
    seed: int = 42,
    **shape: Any,
) -> PreTrainedModel:
    """Make a small student that reads what its teacher reads.

    Args:
        kind: `"bilstm"`, `"textcnn"` or `"static"`.
        teacher: where labels, task, vocabulary, padding token and embeddings come from.
        id2label: label names by id or in order; the teacher's if None.
        vocab_size: size of the vocabulary; the teacher's if None.
        pad_token_id: the padding token; the teacher's if None.
        embeddings: `"teacher"` starts from a copy of the teacher's table, trained on, and projects a table wider than
            300 to 300, which keeps the parameters beside it under a million for teachers up to 1024 wide;
            `"contextual"` from what the teacher's encoder makes of each token alone (`token_vectors`), at
            `embedding_size`, 256 unless the teacher is narrower; `"random"`. If None, `"contextual"` for a `"static"`
            one with a tokenizer and a teacher that has layers, `"teacher"` with another teacher, else `"random"`.
        tokenizer: the teacher's, whose special tokens contextual vectors are made with.
        token_ids: the tokens whose contextual vectors are computed, such as those that a trimmed vocabulary will keep;
            all of them if None.
        seed: of what is initialised at random.
        **shape: further settings of `BiLSTMConfig`, `TextCNNConfig` or `StaticConfig`, such as `hidden_size=300`.

    Returns:
        A float32 model in train mode that shares no memory with the teacher.

    Raises:
        ValueError: if there is no such kind or setting, a setting is no size, or nothing says what labels or
            vocabulary are.
    """
    if kind not in SMALL_STUDENTS:
        raise ValueError(f"there is no small student {kind!r}: choose one of {sorted(SMALL_STUDENTS)}")
    config_class, model_class = SMALL_STUDENTS[kind]
    if unknown := sorted(shape.keys() - {setting.name for setting in dataclasses.fields(config_class)}):
        raise ValueError(f"{', '.join(unknown)}: no setting of {config_class.__name__}")
    # Where labels, vocabulary and embeddings come from.
    if teacher is None and (id2label is None or vocab_size is None):
        raise ValueError(f"a {kind} without a teacher needs id2label and vocab_size: give both, or the teacher")
    if embeddings is None and teacher is not None:
        encodes = tokenizer is not None and getattr(teacher.config, "num_hidden_layers", 0) > 0
        embeddings = "contextual" if kind == "static" and encodes else "teacher"
    embeddings = embeddings or "random"
    has = {"teacher": teacher is not None, "contextual": teacher is not None and tokenizer is not None, "random": True}
    if not has.get(embeddings):
        raise ValueError(
            "embeddings must be 'teacher', which needs one, 'contextual', which needs its tokenizer too, or 'random', "
            f"got {embeddings!r}"
        )
    given = {"id2label": id2label, "vocab_size": vocab_size, "pad_token_id": pad_token_id}
    shape |= {name: value for name, value in given.items() if value is not None}
    if teacher is not None:
        refuse_other_than_plain(teacher, "teacher")
        shape = _of_teacher(teacher, embeddings) | shape
    classes = Classes.of(shape.pop("id2label"))
    config = config_class(**shape, id2label=classes.id2label, label2id=classes.label2id)
    # The model, and the teacher's vectors in it.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = model_class(config).float()
    sort_drawn_head(student)
    if teacher is not None and embeddings != "random":
        ours, theirs = _table(student), _table(teacher)
        if embeddings == "contextual":
            theirs = token_vectors(teacher, tokenizer, config.embedding_size, token_ids)  # type: ignore[arg-type,attr-defined]
        if ours.shape != theirs.shape:
            raise ValueError(
                f"the teacher's embedding table is {tuple(theirs.shape)}, and {tuple(ours.shape)} is asked for: leave "
                "vocab_size and embedding_size out, or pass embeddings='random'"
            )
        with torch.no_grad():
            ours.copy_(theirs)
    return student.to("cpu" if teacher is None else teacher.device).train()


def _of_teacher(teacher: PreTrainedModel, embeddings: str) -> dict[str, Any]:
    """Return the settings that a student takes over from its teacher."""
    rows, width = _table(teacher).shape
    settings = {
        "id2label": teacher.config.id2label,
        "problem_type": teacher.config.problem_type,
        "vocab_size": rows,
        "pad_token_id": teacher.config.pad_token_id,
    }
    if embeddings == "contextual":
        settings["embedding_size"] = min(CONTEXTUAL_WIDTH, teacher.config.hidden_size)
    if embeddings == "teacher":
        settings |= {"embedding_size": width, "projection_size": PROJECTED_WIDTH if width > PROJECTED_WIDTH else None}
    return settings


def _table(model: PreTrainedModel) -> Any:
    """Return a model's embedding table.

    Raises:
        ValueError: if it has none with a row for each token.
    """
    table = getattr(input_table(model), "weight", None)
    if table is None:
        raise ValueError(
            f"{type(model).__name__} has no table with a vector for each token, and a small student reads tokens by "
            "one: choose layers of the teacher, or a checkpoint with a tokenizer of its own"
        )
    return table


_kept: dict[str, Tensor] = {}
"""The last vectors, by what they were made of: students of several seeds start from the same."""


def token_vectors(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, size: int, token_ids: Sequence[int] | None = None
) -> Tensor:
    """Compute vectors of the tokens of a teacher's vocabulary, as model2vec does (Tulkens and van Dongen 2024).

    Token t goes through the encoder alone between special tokens, [CLS] t [SEP], in the teacher's own dtype; its
    vector is the mean of the last hidden states of all of them, centred, and projected to the first principal axes of
    all vectors. They are scaled to a mean square length of 1. model2vec goes on to weigh tokens by their frequency;
    here training finds their weights.

    Args:
        teacher: a classifier with an encoder, on whose device it is computed.
        tokenizer: its tokenizer.
        size: how many axes.
        token_ids: the tokens; all of them if None.

    Returns:
        float32 `(vocabulary, size)`; zeros where a token is not among them.

    Raises:
        ValueError: if the encoder has fewer dimensions, gives no hidden states, can't read single tokens, or the
            tokenizer does not show where a token stands among the special ones.
    """
    encoder, device = _encoder(teacher), placement(teacher)[0]
    before, after = _special_tokens(tokenizer)
    count = len(_table(teacher))
    if max([*before, *after, 0]) >= count:
        raise ValueError(f"the tokenizer has special tokens beyond the {count} of the teacher: give the teacher's own")
    key = hash_value([hash_weights(encoder), hash_configuration(encoder), before, after, size, token_ids])
    if key in _kept:
        return _kept[key].to(device)
    # Every token through the encoder.
    vectors: list[Tensor] = []
    chosen = torch.tensor(range(count) if token_ids is None else token_ids, device=device)
    with phase(f"Computing the vectors of {len(chosen)} tokens"), evaluating(encoder):
        for ids in chosen.split(_TOKENS_AT_ONCE):
            parts = [ids.new_tensor(special).expand(len(ids), -1) for special in (before, after)]
            rows = torch.cat([parts[0], ids[:, None], parts[1]], dim=1)  # (tokens, special ones and one)
            outputs = _states_of_tokens(encoder, rows)
            states = getattr(outputs, "last_hidden_state", None)
            if states is None:
                raise ValueError(f"{type(encoder).__name__} gives no hidden states: use embeddings='teacher'")
            vectors.append(states.float().mean(dim=1))
        # The principal axes of all of them.
        centred = torch.cat(vectors)
        centred = centred - centred.mean(dim=0)
        if not 1 <= size <= centred.shape[1]:
            raise ValueError(f"embedding_size={size} must be from 1 to the encoder's {centred.shape[1]}")
        axes = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors[:, -size:].flip(dims=[1])
        found = centred @ axes.float()
        found = found / found.square().sum(dim=1).mean().sqrt()
    _kept.clear()
    # Made outside of the inference mode, whose tensors could not be trained.
    _kept[key] = torch.zeros(count, size).index_copy_(0, chosen.cpu(), found.cpu())
    return _kept[key].to(device)


def _states_of_tokens(encoder: PreTrainedModel, rows: Tensor) -> Any:
    """Run an encoder on single tokens, which is shorter than some families can read."""
    try:
        return encoder(input_ids=rows, attention_mask=torch.ones_like(rows))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"{type(encoder).__name__} can't read single tokens ({error!s:.100}): use embeddings='teacher'"
        ) from error


def _encoder(teacher: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a classifier that gives hidden states of a text."""
    inner: Any = teacher.base if isinstance(teacher, ReshapedForSequenceClassification) else teacher
    return inner.base_model.get_encoder() if inner.config.is_encoder_decoder else inner.base_model


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens before a text, and those behind it."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    if 0 not in special:
        raise ValueError(f"{type(tokenizer).__name__} marks all tokens of 'a' as special: use embeddings='teacher'")
    return ids[: special.index(0)], ids[len(ids) - special[::-1].index(0) :]
