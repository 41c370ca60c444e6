"""Ways of making more text by name: a paper's augmenter with its settings.

What makes an augmenter imports what it needs, so that the ways are told without torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlpkd.utils.field_types import plain_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nlpkd.augment.augmenters import Augmenter
    from nlpkd.config import DistillationConfig

AUTO = "auto"


COPIES = 5
"""Variants of each row, where neither the settings nor a preset say how many."""


@dataclass(frozen=True)
class Way:
    """A named way of making more text.

    Attributes:
        paper: where it comes from.
        differs: what it does, and where it is not the paper's.
        make: makes its augmenter, of the share of words to change, the teacher, its tokenizer, and a masked language
            model by path or Hub id (or None).
    """

    paper: str
    differs: str
    make: Callable[[float, PreTrainedModel, PreTrainedTokenizerBase, str | None], Augmenter]


def _masked_lm(
    change: float, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, masked_lm: str | None
) -> Augmenter:
    """Load the masked language model, onto the teacher's device."""
    import torch
    from transformers import AutoModelForMaskedLM

    from nlpkd.augment.augmenters import MaskedLanguageModel
    from nlpkd.models.loading import load_config, load_tokenizer, split_revision

    if masked_lm is None:
        raise ValueError("'masked-lm' needs a masked language model: name one as augment_model")
    name, revision = split_revision(masked_lm)
    load_config(name, revision=revision)
    model = AutoModelForMaskedLM.from_pretrained(name, revision=revision, use_safetensors=True, dtype=torch.float32)
    return MaskedLanguageModel(model.to(teacher.device), load_tokenizer(name, revision=revision), change)


def _constituents(change: float, *given: Any) -> Augmenter:
    from nlpkd.augment.constituents import ConstituentSwap

    return ConstituentSwap(change)


def _neighbours(change: float, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *given: Any) -> Augmenter:
    from nlpkd.augment.augmenters import EmbeddingNeighbours

    return EmbeddingNeighbours(teacher, tokenizer, change)


def _masking(change: float, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *given: Any) -> Augmenter:
    from nlpkd.augment.augmenters import MaskingAndNGrams

    return MaskingAndNGrams(tokenizer, change, 0.0)


def _ngrams(change: float, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *given: Any) -> Augmenter:
    from nlpkd.augment.augmenters import MaskingAndNGrams

    return MaskingAndNGrams(tokenizer, change)


WAYS: dict[str, Way] = {
    "constituents": Way(
        "Zhang et al. (2022), TreeMix, arXiv:2205.06153",
        "A phrase or clause of a row in the place of one of another row. Rows that other rows contain are phrases, as "
        "in SST-2, and punctuation and conjunctions cut clauses, where the paper has a parser; the teacher labels.",
        _constituents,
    ),
    "neighbours": Way(
        "Jiao et al. (2020), TinyBERT, algorithm 1, arXiv:1909.10351",
        "Words replaced by one of 15 neighbours in the teacher's input embeddings, where the paper has a masked "
        "language model and GloVe vectors.",
        _neighbours,
    ),
    "masked-lm": Way(
        "Jiao et al. (2020), TinyBERT, algorithm 1, arXiv:1909.10351",
        "Words replaced by one of the 15 that a masked language model (--augment-model) expects there; words of "
        "several tokens stay.",
        _masked_lm,
    ),
    "masking": Way(
        "Tang et al. (2019), arXiv:1903.12136, section 3.3",
        "Words masked. Without the paper's n-gram cuts.",
        _masking,
    ),
    "ngrams": Way(
        "Tang et al. (2019), arXiv:1903.12136, section 3.3",
        "Words masked, and a quarter of the rows cut to a run of 1 to 5 words: for a BiLSTM or a TextCNN.",
        _ngrams,
    ),
}
"""Every way by its name."""


def way_for(student: Any) -> str:
    """Return the way that `"auto"` stands for: n-grams are cut only for students that read words in their order.

    Args:
        student: its name, or a config.

    Returns:
        `"ngrams"` for a BiLSTM and a TextCNN, and `"constituents"` for all others.
    """
    from nlpkd.models.small_models import SMALL_STUDENTS

    small = {name: config.model_type for name, (config, _) in SMALL_STUDENTS.items() if name != "static"}
    kinds = {*small, *small.values()}
    named = student if isinstance(student, str) else getattr(student, "model_type", None)
    return "ngrams" if named in kinds else "constituents"


def check_way(way: str) -> None:
    """Refuse a name of no way.

    Args:
        way: a name of `WAYS`, or `"auto"`.

    Raises:
        ValueError: for any other.
    """
    if way not in (*WAYS, AUTO):
        raise ValueError(f"there is no way {way!r} to augment: choose one of {sorted(WAYS)}, or {AUTO!r}")


def copies_of(args: DistillationConfig) -> int:
    """Return how many variants are drawn of each row.

    Args:
        args: the settings, with those of the preset.
    """
    return COPIES if args.augment_copies is None else args.augment_copies


def describe_augmentation(args: DistillationConfig, student: Any) -> dict[str, Any]:
    """Return the settings of more text for a record.

    Args:
        args: of a run that made some.
        student: the student's config.

    Returns:
        Those that are set, with the way that `"auto"` stood for.
    """
    given = {name: value for name, value in vars(args).items() if name.startswith("augment") and value is not None}
    way = way_for(student) if args.augment == AUTO else args.augment
    return given | {"augment": way, "augment_copies": copies_of(args)}


@plain_arguments
def make_augmenter(
    way: str,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    student: Any = None,
    change: float = 0.3,
    masked_lm: str | None = None,
) -> Augmenter:
    """Make an augmenter by its name.

    Args:
        way: a name of `WAYS`, or `"auto"` for the student's (`way_for`).
        teacher: the model that will label the rows.
        tokenizer: the teacher's.
        student: its name or config, for `"auto"`.
        change: about which share of a text's words is changed. Wang et al. 2023, "Understanding the Effect of Data
            Augmentation on Knowledge Distillation", arXiv:2305.12565, find 30 % best to distil with, and 10 % to
            fine-tune.
        masked_lm: path or Hub id (`id@revision` too) of a masked language model, for `"masked-lm"`.

    Returns:
        The augmenter, to give to `augment`.

    Raises:
        ValueError: if there is no such way, or it lacks what it needs.
    """
    check_way(way)
    name = way_for(student) if way == AUTO else way
    if masked_lm is not None and name != "masked-lm":
        raise ValueError(f"{name!r} has no use for a masked language model ({masked_lm}): leave augment_model out")
    return WAYS[name].make(change, teacher, tokenizer, masked_lm)
