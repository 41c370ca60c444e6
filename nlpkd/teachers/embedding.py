"""A sentence encoder and descriptions of the classes as a teacher."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import LARGE_INTEGER

from nlpkd.data.columns import texts_again
from nlpkd.models.inference import evaluating
from nlpkd.models.loading import named_in_errors
from nlpkd.models.source import LocalModel
from nlpkd.models.structure import input_table
from nlpkd.teachers.base import Answers, CuttingTeacher, as_probabilities
from nlpkd.teachers.compatibility import refuse_unknown_token
from nlpkd.utils.field_types import check_counts, plain_arguments
from nlpkd.utils.packages import require


class EmbeddingTeacher(CuttingTeacher):
    """Compare a text's embedding with those of each class's descriptions.

    `p = softmax over the classes of cos(text, class) / temperature`, the class being the mean of its descriptions'
    unit vectors. Needs sentence-transformers (the extra `teachers`), which pools as the checkpoint's
    `modules.json` says, and takes the mean of the tokens where there is none.

    Args:
        model: a path, a Hub id, or a `SentenceTransformer`.
        descriptions: for each class one description, or several.
        temperature: the lower, the surer; `fit_temperature` finds one.
        batch_size: texts of a forward pass.
        **model_settings: further arguments of `SentenceTransformer`, such as `device` or `revision`.

    Raises:
        ValueError: for fewer than two classes, a class without a description, or a temperature that is not positive.
    """

    @plain_arguments
    def __init__(
        self,
        model: Any,
        descriptions: Mapping[str, str | Sequence[str]],
        *,
        temperature: float = 0.05,
        batch_size: int = 64,
        **model_settings: Any,
    ):
        self.classes = descriptions
        check_counts(batch_size=batch_size)
        listed: list[list[str]] = [
            list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
            for given in descriptions.values()
        ]
        self.descriptions = dict(zip(self.classes, listed, strict=True))
        if not all(given and all(isinstance(each, str) and each.strip() for each in given) for given in listed):
            raise ValueError(f"give each class a description, or several, in words, got {self.descriptions}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.model = model
        self.temperature = temperature
        self.batch_size = batch_size
        self._local = LocalModel(model, model_settings)
        self._vectors: np.ndarray | None = None

    def cut_and_answer(self, texts: Sequence[str]) -> Answers:
        """Compare each text with each class, and count those that are cut; see `LabelingTeacher.answer`."""
        answers = softmax(self._similarities(texts) / self.temperature, axis=1)
        found = as_probabilities(answers, len(texts), self.classes, self.problem_type)
        return Answers(found, cut=self._count_cut(texts), most_tokens=self._most_tokens)

    def fit_temperature(self, texts: Sequence[str], confidence: float = 0.8) -> EmbeddingTeacher:
        """Set the temperature at which the likeliest class of a text has this probability on average.

        Cosines of a sentence encoder lie close together; without a temperature all classes look alike. No label is
        needed for this, and the order of the classes does not change.

        Args:
            texts: some texts of the task.
            confidence: the mean of the greatest probability, between 1 / classes and 1.

        Returns:
            The teacher itself.

        Raises:
            ValueError: if the confidence is out of range, or the texts can't be told apart.
        """
        if not 1 / len(self.classes) < confidence < 1:
            raise ValueError(f"confidence must be between {1 / len(self.classes):.3f} and 1, got {confidence}")
        similarities = self._similarities(texts_again(texts, "texts")).astype(np.float64)

        def excess(log_temperature: float) -> float:
            top = softmax(similarities / np.exp(log_temperature), axis=1).max(axis=1)
            return float(top.mean() - confidence)

        low, high = np.log(1e-5), np.log(1e3)
        if excess(low) < 0:
            raise ValueError("the classes can't be told apart on these texts: their similarities are the same")
        self.temperature = float(np.exp(brentq(excess, low, high)))
        return self

    def describe(self) -> dict[str, Any]:
        """Return model, descriptions and temperature, and what tells its weights."""
        name = self.model if not hasattr(self.model, "model_card_data") else self.model.model_card_data.base_model
        told = {"name": str(name), "question": self.descriptions, "temperature": self.temperature}
        return told | self._local.describe()

    @functools.cached_property
    def _encoder(self) -> Any:
        kind = require("sentence_transformers", "teachers").SentenceTransformer
        with named_in_errors(self.model):
            return self.model if isinstance(self.model, kind) else kind(str(self.model), **self._local.settings)

    @property
    def _most_tokens(self) -> int | None:
        """How many tokens of a text the encoder reads; None where it names no limit."""
        limit = getattr(self._encoder[0], "max_seq_length", None)
        return None if limit is None or limit >= LARGE_INTEGER else int(limit)

    def _count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that have more tokens than the encoder reads, with the words that it puts before each."""
        encoder, limit = self._encoder, self._most_tokens
        tokenizer = getattr(encoder[0], "tokenizer", None)
        if limit is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return 0
        prompt = encoder.prompts.get(encoder.default_prompt_name) or ""
        ids = tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
        return sum(len(each) > limit for each in ids)

    def _class_vectors(self) -> np.ndarray:
        """The unit vector of each class, `(classes, hidden)`, as the model is now."""
        # Somebody's own encoder may change between two calls.
        if self._vectors is None or self._encoder is self.model:
            means = np.stack([self._embed(each).mean(axis=0) for each in self.descriptions.values()])
            self._vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
        return self._vectors

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        self._refuse_unknown_tokens(texts)
        with evaluating(self._encoder):
            return self._encoder.encode(
                list(texts), batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
            )

    def _refuse_unknown_tokens(self, texts: Sequence[str]) -> None:
        """Refuse texts with tokens that the encoder has no embedding for; those of most encoders can't have any."""
        model = getattr(self._encoder[0], "auto_model", None)
        count = getattr(input_table(model), "num_embeddings", None)
        if len(texts) and isinstance(count, int) and len(self._encoder.tokenizer) > count:
            encoded = self._encoder.tokenizer(list(texts), truncation=True)
            highest = max((max(ids, default=0) for ids in encoded["input_ids"]), default=0)
            refuse_unknown_token(model, highest, "teacher", "the texts have")

    def _similarities(self, texts: Sequence[str]) -> np.ndarray:
        return self._embed(texts) @ self._class_vectors().T
