"""The decision pipeline's answers for many texts at once: the same prompts and probabilities, in batches."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.decision.modeling_utils import DecisionMixin, process_scores
from transformers.decision.template_utils import MARK, SPLIT, prepare_inputs

from nlpkd.models.inference import evaluating
from nlpkd.teachers.base import batches_by_length
from nlpkd.teachers.compatibility import refuse_unknown_token

PLACE = "nlpkdplaceofthetext"
"""Stands for the text in a prompt that is written once for all texts."""

_PROBES = (PLACE, f"A \"b\" & \\c\\ {{{{ {PLACE} }}}} 'd'\n\n\té 中 [x]")

# What a chat template may look for in its messages (tags), and the marks of transformers' own escapes.
_TELLING = re.compile("[<\U000f0000\U000f0001]")

_SHORTEST_PREFIX = 16


@dataclass(frozen=True)
class _Prompt:
    """A prompt about one text.

    Attributes:
        row: of the text.
        ids: `(1, tokens)`.
        marks: the number of tokens before each place that is read, `(questions,)`.
        questions: that are read there.
    """

    row: int
    ids: torch.Tensor
    marks: torch.Tensor
    questions: list[Any]


class DecisionBatches:
    """Answer the questions of one decision pipeline about many texts.

    The prompts are those of the pipeline. Where the chat template writes the text into it as it is, which is tried out
    with two texts, the rest of the prompt is rendered once. Prompts of similar length share a forward pass; the tokens
    that all of them begin with go through the model once.

    Args:
        pipe: `transformers.pipeline("decision")`.
        questions: by name.
        batch_size: prompts of a forward pass.
    """

    def __init__(self, pipe: Any, questions: Mapping[str, Any], batch_size: int):
        self.pipe, self.questions, self.batch_size = pipe, dict(questions), batch_size

    def answer(self, texts: Sequence[str]) -> list[tuple[dict[str, Any], tuple[int | None, int | None]]]:
        """Answer all questions about all texts.

        Args:
            texts: the texts.

        Returns:
            For each text the answers by the questions' names, as the pipeline gives them, and the tokens of its
            prompts and answers (None each where a decision model reads them in its own way).
        """
        with evaluating(self.pipe.model):
            return self._answer(texts)

    def _answer(self, texts: Sequence[str]) -> list[tuple[dict[str, Any], tuple[int | None, int | None]]]:
        # The heads of decision models read their prompts in ways of their own: one at a time, as the pipeline does.
        if isinstance(self.pipe.model, DecisionMixin):
            return [(self.pipe(self._request(text)), (None, None)) for text in texts]
        prompts = self._prompts(texts)
        highest = max((int(prompt.ids.max()) for prompt in prompts), default=0)
        refuse_unknown_token(self.pipe.model, highest, "teacher", "the prompts have")
        answers: list[dict[str, Any]] = [{} for _ in texts]
        counts = [0] * len(texts)
        start = self._shared_start(prompts)
        cache = self._keys_and_values(start) if start is not None else None
        if cache is None:
            start = None
        skipped = 0 if start is None else start.shape[-1]
        for batch in batches_by_length([prompt.ids.shape[-1] for prompt in prompts], self.batch_size):
            chosen = [prompts[number] for number in batch]
            for prompt, logits in zip(chosen, self._logits(chosen, cache, skipped), strict=True):
                counts[prompt.row] += prompt.ids.shape[-1]
                scores = process_scores(self.pipe.decision_config, prompt.ids, prompt.marks, prompt.questions, logits)
                for question, each in zip(prompt.questions, scores, strict=True):
                    answers[prompt.row][question.name] = question.answer(each.softmax(-1).tolist())
        return [(answer, (count, 0)) for answer, count in zip(answers, counts, strict=True)]

    def _request(self, text: str) -> dict[str, Any]:
        return {"state": text, "questions": self.questions}

    def _prompts(self, texts: Sequence[str]) -> list[_Prompt]:
        """Make every prompt of every text."""
        rendered, control_tokens = self._rendered
        plain = [
            row
            for row, text in enumerate(texts)
            if rendered and text == text.strip() and not _TELLING.search(text) and not control_tokens.search(text)
        ]
        prompts = []
        for chat, questions in rendered or ():
            chats = [chat.replace(PLACE, texts[row]) for row in plain]
            encoded = self.pipe.tokenizer(chats, add_special_tokens=False)["input_ids"] if chats else []
            for row, ids in zip(plain, encoded, strict=True):
                prompts.append(_Prompt(row, *self._without_sentinels(ids), questions))
        # All other texts are rendered by the pipeline itself.
        for row in sorted(set(range(len(texts))) - set(plain)):
            for inputs, questions in self.pipe.preprocess(self._request(texts[row]))["prompts"]:
                prompts.append(_Prompt(row, inputs["input_ids"], inputs["marks"], questions))
        return prompts

    def _without_sentinels(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids without marks and splits, `(1, tokens)`, and the tokens before each mark, or all of them."""
        mark, split = self._sentinels
        kept: list[int] = []
        if mark not in ids and split not in ids:
            return torch.tensor([ids]), torch.tensor([len(ids)])
        marks = []
        for token in ids:
            if token == mark:
                marks.append(len(kept))
            elif token != split:
                kept.append(token)
        return torch.tensor([kept]), torch.tensor(marks or [len(kept)])

    @functools.cached_property
    def _sentinels(self) -> list[int]:
        return self.pipe.tokenizer.convert_tokens_to_ids([MARK, SPLIT])

    @functools.cached_property
    def _rendered(self) -> tuple[list[tuple[str, list[Any]]] | None, re.Pattern[str]]:
        """The prompts as text with `PLACE` for the state, None where a text is not written as it is.

        Beside them the pattern of the tokens that the pipeline encodes as text where a user writes them.
        """
        pipe = self.pipe
        found: list[list[tuple[str, list[Any]]]] = []
        for probe in _PROBES:
            writer = _Writer(pipe.tokenizer)
            prompts = prepare_inputs(pipe.decision_config, self._request(probe), writer)
            found.append([(chat, questions) for chat, (_, questions) in zip(writer.chats, prompts, strict=True)])
            encoded = pipe.tokenizer(writer.chats, add_special_tokens=False)["input_ids"]
            for ids, (inputs, _) in zip(encoded, prompts, strict=True):
                read, marks = self._without_sentinels(ids)
                if not (torch.equal(read, inputs["input_ids"]) and torch.equal(marks, inputs["marks"])):
                    found.append([])
        tokens = "|".join(re.escape(token.content) for token in pipe.tokenizer.added_tokens_decoder.values())
        as_it_is = (
            getattr(pipe, "processor", None) is None
            and len(found) == len(_PROBES)
            and all(chat.count(PLACE) == 1 for chat, _ in found[0])
            and [chat.replace(PLACE, _PROBES[1]) for chat, _ in found[0]] == [chat for chat, _ in found[1]]
        )
        return found[0] if as_it_is else None, re.compile(tokens or "$^")

    def _shared_start(self, prompts: Sequence[_Prompt]) -> torch.Tensor | None:
        """Return the tokens that all prompts begin with, `(1, tokens)`; None where they are not worth a pass."""
        common = os.path.commonprefix([prompt.ids[0].tolist() for prompt in prompts])
        # What is read comes after them.
        length = min(len(common), *(int(prompt.marks[0]) - 1 for prompt in prompts)) if prompts else 0
        mean = sum(prompt.ids.shape[-1] for prompt in prompts) / max(1, len(prompts))
        worth_it = len(prompts) > 1 and length >= max(_SHORTEST_PREFIX, mean / 4)
        return torch.tensor([common[:length]]) if worth_it else None

    def _keys_and_values(self, start: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """Compute keys and values of the shared start, layer by layer; None where the model keeps other states."""
        output = self.pipe.model(input_ids=start.to(self.pipe.device), use_cache=True, logits_to_keep=1)
        layers = getattr(getattr(output, "past_key_values", None), "layers", None) or []
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        return [(layer.keys, layer.values) for layer in layers]

    def _logits(self, prompts: Sequence[_Prompt], cache: Any, skipped: int) -> list[list[torch.Tensor]]:
        """Run the model on a batch; return the logits of the options of each question of each prompt."""
        pipe, ids = self.pipe, [prompt.ids[0, skipped:] for prompt in prompts]
        # Pad on the right, where a causal model's earlier positions do not see it.
        inputs: dict[str, Any] = {"input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)}
        if not self._is_causal:
            ones = [torch.ones_like(each) for each in ids]
            inputs["attention_mask"] = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True)
        inputs = {name: each.to(pipe.device) for name, each in inputs.items()}
        if cache is not None:
            expanded = [tuple(each.expand(len(ids), -1, -1, -1) for each in layer) for layer in cache]
            inputs["past_key_values"] = DynamicCache(expanded)
        # The logits before any mark of the batch.
        read = [prompt.marks - 1 - skipped for prompt in prompts]
        positions = torch.unique(torch.cat(read))
        logits = pipe.model(
            **inputs, use_cache=cache is not None, logits_to_keep=positions.to(pipe.device)
        ).logits.cpu()
        return [
            [
                logits[place, at, pipe.label_token_ids(tuple(question.labels))]
                for at, question in zip(torch.searchsorted(positions, where), prompt.questions, strict=True)
            ]
            for place, (prompt, where) in enumerate(zip(prompts, read, strict=True))
        ]

    @functools.cached_property
    def _is_causal(self) -> bool:
        """Whether what follows a token leaves its logits as they are, so that padding on the right needs no mask."""
        ids = self.pipe.preprocess(self._request(PLACE))["prompts"][0][0]["input_ids"].to(self.pipe.device)
        longer = torch.nn.functional.pad(ids, (0, 3))
        place = torch.tensor([ids.shape[-1] - 1], device=ids.device)
        alone, padded = (
            self.pipe.model(input_ids=each, use_cache=False, logits_to_keep=place).logits.float()
            for each in (ids, longer)
        )
        tolerance = 1e-4 if self.pipe.model.dtype == torch.float32 else 3e-2
        return bool((alone - padded).abs().max() <= tolerance * alone.abs().max())


class _Writer:
    """A tokenizer that keeps the chats that it encodes, as text.

    Args:
        tokenizer: does the work.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.chats: list[str] = []

    def apply_chat_template(self, conversation: Any, **settings: Any) -> Any:
        """Keep the chat, and encode it."""
        encoding = ("tokenize", "return_dict", "return_tensors", "sanitize_control_tokens")
        plain = {name: value for name, value in settings.items() if name not in encoding}
        self.chats.append(self.tokenizer.apply_chat_template(conversation, tokenize=False, **plain))
        return self.tokenizer.apply_chat_template(conversation, **settings)
