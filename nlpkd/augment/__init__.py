"""More text for the teacher to label: variants of the rows that there are, and plain unlabelled text.

Rows made here have the label -100: the teacher is run on them as on any row, so every objective on its outputs learns
from them, and the cross-entropy against gold labels leaves them out.
"""

from nlpkd.augment.augmenters import Augmenter, Draws, MaskedLanguageModel, MaskingAndNGrams
from nlpkd.augment.rows import VERSION, Row, Texts, augment, unlabelled
from nlpkd.tasks import UNLABELLED

__all__ = [
    "UNLABELLED",
    "VERSION",
    "Augmenter",
    "Draws",
    "MaskedLanguageModel",
    "MaskingAndNGrams",
    "Row",
    "Texts",
    "augment",
    "unlabelled",
]
