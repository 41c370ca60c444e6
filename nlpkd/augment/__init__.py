"""More text for the teacher to label: variants of the rows that there are, and plain unlabelled text.

Rows made here have the label -100: the teacher is run on them as on any row, so every objective on its outputs learns
from them, and the cross-entropy against gold labels leaves them out.
"""

from nlpkd.augment.augmenters import Augmenter, Draws, EmbeddingNeighbours, MaskedLanguageModel, MaskingAndNGrams
from nlpkd.augment.constituents import ConstituentSwap
from nlpkd.augment.lengths import follow_lengths
from nlpkd.augment.near_duplicates import NearDuplicates, Row
from nlpkd.augment.rows import VERSION, Texts, augment, unlabelled
from nlpkd.augment.ways import WAYS, make_augmenter
from nlpkd.tasks import UNLABELLED

__all__ = [
    "UNLABELLED",
    "VERSION",
    "WAYS",
    "Augmenter",
    "ConstituentSwap",
    "Draws",
    "EmbeddingNeighbours",
    "MaskedLanguageModel",
    "MaskingAndNGrams",
    "NearDuplicates",
    "Row",
    "Texts",
    "augment",
    "follow_lengths",
    "make_augmenter",
    "unlabelled",
]
