"""A model of natural language inference as a zero-shot teacher."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.tokenization_utils_base import LARGE_INTEGER

from nlpkd.data.labels.classes import Classes, settle_classes
from nlpkd.models.inference import evaluating
from nlpkd.models.limits import positions_of
from nlpkd.models.loading import named_in_errors
from nlpkd.models.padding import refuse_unknown_padding
from nlpkd.models.source import LocalModel
from nlpkd.models.structure import readable
from nlpkd.tasks import MULTI_LABEL, SINGLE_LABEL
from nlpkd.teachers.base import (
    LETTERS_PER_TOKEN,
    Answers,
    CuttingTeacher,
    as_probabilities,
    batches_by_length,
    read_words,
)
from nlpkd.teachers.compatibility import refuse_unknown_token
from nlpkd.utils.field_types import check_counts, plain_arguments


class ZeroShotTeacher(CuttingTeacher):
    """Compute how far a text entails a sentence about each class, as `pipeline("zero-shot-classification")` does.

    Of one class a text: `p = softmax over the classes of the entailment logit`. Of several labels, for each label
    `p = softmax over (contradiction, entailment)`. Yin et al. 2019, https://arxiv.org/abs/1909.00161.

    Args:
        model: a path, a Hub id or a model fine-tuned on NLI, as the pipeline takes it.
        classes: names of the classes; or a mapping from them to the words that fill the template, the name where
            there are none.
        hypothesis_template: the sentence, with `{}` for the class.
        multi_label: whether any number of labels may hold for a text.
        batch_size: pairs of text and class in a forward pass.
        **pipeline_settings: further arguments of `transformers.pipeline`, such as `tokenizer`, `dtype` or `device`.

    Raises:
        ValueError: for fewer than two classes, words that are blank or another class's, or a template without one
            `{}`.
    """

    @plain_arguments
    def __init__(
        self,
        model: Any,
        classes: Sequence[str] | Mapping[str, str | None],
        *,
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
        batch_size: int = 64,
        **pipeline_settings: Any,
    ):
        self.classes = classes
        check_counts(batch_size=batch_size)
        words = list(classes.values()) if isinstance(classes, Mapping) else [None] * len(self.classes)
        filled = [read_words(each, name) for each, name in zip(words, self.classes, strict=True)]
        self.hypotheses = [_fill(hypothesis_template, each) for each in filled]
        if len(set(self.hypotheses)) < len(self.hypotheses):
            raise ValueError(f"each class needs a sentence of its own, got {self.hypotheses}")
        self.model = model
        self.problem_type = MULTI_LABEL if multi_label else SINGLE_LABEL
        self.batch_size = batch_size
        self._local = LocalModel(model, pipeline_settings)

    @functools.cached_property
    def _pipeline(self) -> Any:
        from transformers import pipeline

        with named_in_errors(self.model):
            # That for zero-shot classification looks entailment up in label2id before anybody can settle it.
            pipe: Any = pipeline("text-classification", model=self.model, **self._local.settings)
        settle_classes(pipe.model.config)
        _entailment(pipe)
        if self.problem_type == MULTI_LABEL:
            _contradiction(pipe)
        if pipe.tokenizer.pad_token is None:
            pipe.tokenizer.pad_token = pipe.tokenizer.eos_token
        refuse_unknown_padding(pipe.model, pipe.tokenizer, "teacher", self.batch_size)
        return pipe

    def _most_tokens(self) -> int | None:
        """Return how many tokens a pair may have, by tokenizer and model; None where neither names a limit."""
        tokenizer, positions = self._pipeline.tokenizer, positions_of(self._pipeline.model.config)
        limit = min(tokenizer.model_max_length, positions or LARGE_INTEGER)
        if limit >= LARGE_INTEGER:
            return None
        for hypothesis in self.hypotheses:
            if (tokens := len(tokenizer("", hypothesis)["input_ids"])) >= limit:
                raise ValueError(
                    f"the sentence {hypothesis!r:.200} has {tokens} tokens, and the model reads {limit} together with "
                    "a text: describe the class in fewer words"
                )
        return limit

    def cut_and_answer(self, texts: Sequence[str]) -> Answers:
        """Compare each text with each class, and count those that are cut; see `LabelingTeacher.answer`."""
        import torch

        pipe = self._pipeline
        # Every pair of a text and a hypothesis, text by text.
        pairs = [(text, hypothesis) for text in texts for hypothesis in self.hypotheses]
        limit = self._most_tokens()
        encoded = pipe.tokenizer(
            [text for text, _ in pairs],
            [hypothesis for _, hypothesis in pairs],
            truncation=False if limit is None else "only_first",
            max_length=limit,
        )
        cut = self._count_cut(pairs, [len(ids) for ids in encoded["input_ids"]], limit)
        highest = max((max(ids, default=0) for ids in encoded["input_ids"]), default=0)
        refuse_unknown_token(pipe.model, highest, "teacher", "the texts have")
        names = [name for name in pipe.tokenizer.model_input_names if name in encoded]
        logits = torch.zeros(len(pairs), pipe.model.config.num_labels)
        # The model reads them in batches of similar length.
        with evaluating(pipe.model):
            for batch in batches_by_length([len(each) for each in encoded["input_ids"]], self.batch_size):
                rows = {name: [encoded[name][number] for number in batch] for name in names}
                inputs = pipe.tokenizer.pad(rows, return_tensors="pt").to(pipe.device)
                logits[batch] = pipe.model(**readable(pipe.model, inputs)).logits.float().cpu()
        logits = logits.view(len(texts), len(self.classes), -1)
        if self.problem_type == MULTI_LABEL:
            answers = logits[..., [_contradiction(pipe), _entailment(pipe)]].softmax(-1)[..., 1]
        else:
            answers = logits[..., _entailment(pipe)].softmax(-1)
        found = as_probabilities(answers.numpy(), len(texts), self.classes, self.problem_type)
        return Answers(found, cut=cut, most_tokens=limit)

    def _count_cut(self, pairs: Sequence[tuple[str, str]], lengths: Sequence[int], limit: int | None) -> int:
        """Count the texts that lost tokens in a pair, of the pairs' lengths once they were cut."""
        full = [number for number, length in enumerate(lengths) if length == limit]
        if limit is None or not full:
            return 0
        columns = ([pairs[number][place] for number in full] for place in (0, 1))
        whole = self._pipeline.tokenizer(*columns, truncation=False, verbose=False)["input_ids"]
        cut = {number // len(self.hypotheses) for number, ids in zip(full, whole, strict=True) if len(ids) > limit}
        return len(cut)

    def expected_tokens(self, text: str) -> tuple[int, int]:
        """Estimate the tokens of a text's pairs; see `LabelingTeacher.expected_tokens`."""
        return sum(-(-len(text + each) // LETTERS_PER_TOKEN) for each in self.hypotheses), 0

    def describe(self) -> dict[str, Any]:
        """Return model, hypotheses and task, and what tells its weights."""
        name = self.model if isinstance(self.model, str) else getattr(self.model, "name_or_path", str(self.model))
        question = dict(zip(self.classes, self.hypotheses, strict=True))
        return {"name": str(name), "question": question, "problem_type": self.problem_type} | self._local.describe()


def _entailment(pipe: Any) -> int:
    """Return the id of the label that says that a text entails a sentence."""
    ids = Classes.of(pipe.model.config.id2label).label2id
    for name, number in ids.items():
        if name.lower().startswith("entail"):
            return number
    raise ValueError(f"the model's labels {list(ids)} name no entailment: set id2label of its config")


def _contradiction(pipe: Any) -> int:
    """Return the id of the label that contradicts; of two labels it is the one beside entailment."""
    ids = Classes.of(pipe.model.config.id2label).label2id
    for name, number in ids.items():
        if name.lower().startswith("contradict") or (len(ids) == 2 and number != _entailment(pipe)):
            return number
    raise ValueError(
        f"the model's labels {list(ids)} name no contradiction, which entailment is compared with where any number of "
        "labels may hold for a text: set id2label of its config, or leave multi_label out"
    )


def _fill(template: str, words: str) -> str:
    """Fill the place for the class in a template."""
    try:
        filled = template.format(words)
    except (AttributeError, IndexError, KeyError, ValueError):
        raise ValueError(f"hypothesis_template={template!r} must have one {{}} for the class, and no others") from None
    if filled == template:
        raise ValueError(f"hypothesis_template={template!r} has no {{}} for the class")
    return filled
