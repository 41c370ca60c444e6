"""More text for the teacher to label: variants of the rows that there are, and plain unlabelled text.

Rows made here have the label -100: the teacher is run on them as on any row, so every objective on its outputs learns
from them, and the cross-entropy against gold labels leaves them out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlpkd.augment.augmenters import Augmenter, EmbeddingNeighbours, MaskedLanguageModel, MaskingAndNGrams
    from nlpkd.augment.constituents import ConstituentSwap
    from nlpkd.augment.lengths import follow_lengths
    from nlpkd.augment.near_duplicates import NearDuplicates
    from nlpkd.augment.rows import augment, unlabelled
    from nlpkd.augment.ways import WAYS, make_augmenter
    from nlpkd.tasks import UNLABELLED

_HOMES = {
    "Augmenter": "nlpkd.augment.augmenters",
    "ConstituentSwap": "nlpkd.augment.constituents",
    "EmbeddingNeighbours": "nlpkd.augment.augmenters",
    "MaskedLanguageModel": "nlpkd.augment.augmenters",
    "MaskingAndNGrams": "nlpkd.augment.augmenters",
    "NearDuplicates": "nlpkd.augment.near_duplicates",
    "UNLABELLED": "nlpkd.tasks",
    "WAYS": "nlpkd.augment.ways",
    "augment": "nlpkd.augment.rows",
    "follow_lengths": "nlpkd.augment.lengths",
    "make_augmenter": "nlpkd.augment.ways",
    "unlabelled": "nlpkd.augment.rows",
}

__all__ = [
    "UNLABELLED",
    "WAYS",
    "Augmenter",
    "ConstituentSwap",
    "EmbeddingNeighbours",
    "MaskedLanguageModel",
    "MaskingAndNGrams",
    "NearDuplicates",
    "augment",
    "follow_lengths",
    "make_augmenter",
    "unlabelled",
]


def __getattr__(name: str) -> Any:
    # The names of the ways are told without torch and transformers.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nlpkd.augment' has no attribute {name!r}")
