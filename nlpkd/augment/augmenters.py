"""What makes variants of a text: words masked and cut out, or replaced by likely words or by neighbours."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.augment.words import word_spans
from nlpkd.models.limits import positions_of
from nlpkd.utils.field_types import check_share, plain_arguments
from nlpkd.utils.fingerprints import hash_tokenizer, hash_value
from nlpkd.utils.object_hashes import hash_configuration, hash_weights

LONGEST_TEXT = 512


LONGEST_NGRAM = 5


Draws: TypeAlias = Sequence[Sequence[np.random.Generator]]


Place: TypeAlias = tuple[int, int]


class Augmenter(Protocol):
    """What makes variants of a text.

    One that reads the other rows too has a method `fit(texts)`, which `augment` calls with all texts of a column; it
    returns the augmenter of that column's texts, and the order of these changes nothing.
    """

    def variants(self, texts: Sequence[str], draws: Draws) -> Iterable[Sequence[str]]:
        """Return as many variants of every text as it has generators, each drawn from its own generator alone."""

    def fingerprint(self) -> str:
        """Return a string that differs wherever variants would: rows on disk are used again under the same one."""


class MaskingAndNGrams:
    """Words masked, and n-grams cut out.

    Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", arXiv:1903.12136,
    section 3.3: each word (`nlpkd.augment.words`) is masked with a probability; then, with another, only a run of
    1 to 5 words is kept. Their replacement of words by others of the same part of speech is left out, as it needs a
    tagger; both texts of a pair change, where they change one, the other or both in turns. A text of which no word
    would be left stays as it is.

    Args:
        tokenizer: the teacher's, for its mask token. `nlpkd.load_text_classification` has each tokenizer read it in
            training rows as its own.
        mask_probability: of masking a word.
        ngram_probability: of keeping no more than a run of words.

    Raises:
        ValueError: a tokenizer without a mask token, or a probability outside [0, 1].
    """

    @plain_arguments
    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, mask_probability: float = 0.1, ngram_probability: float = 0.25
    ):
        check_share("mask_probability", mask_probability, none=True, whole=True)
        check_share("ngram_probability", ngram_probability, none=True, whole=True)
        self.mask_token = mask_token_of(tokenizer)
        self.mask_probability, self.ngram_probability = mask_probability, ngram_probability

    def variants(self, texts: Sequence[str], draws: Draws) -> Iterator[list[str]]:
        """Mask and cut; see `Augmenter.variants`."""
        for text, generators in zip(texts, draws, strict=True):
            words = word_spans(text)
            yield [self._variant(text, words, generator) for generator in generators]

    def _variant(self, text: str, words: Sequence[Place], generator: np.random.Generator) -> str:
        masked = generator.random(len(words)) < self.mask_probability
        first, size = 0, len(words)
        if generator.random() < self.ngram_probability:
            size = min(int(generator.integers(1, LONGEST_NGRAM + 1)), len(words))
            first = int(generator.integers(len(words) - size + 1))
        if masked[first : first + size].all():
            return text
        made = ""
        for place in range(first, first + size):
            start, end = words[place]
            # Where no blank is, none comes.
            apart = place > first and words[place - 1][1] < start
            made += (" " if apart else "") + (self.mask_token if masked[place] else text[start:end])
        return made

    def fingerprint(self) -> str:
        """Return the settings; see `Augmenter.fingerprint`."""
        return repr((type(self).__name__, self.mask_token, self.mask_probability, self.ngram_probability))


class WordReplacement:
    """Words that are one token each replaced by one of their `top_k` candidates; a derived class says by which.

    Args:
        tokenizer: a fast tokenizer.
        replace_probability: of replacing a word.
        top_k: how many candidates a word has.
        max_length: what lies beyond so many tokens stays.

    Raises:
        ValueError: a tokenizer that gives no offsets, a probability outside [0, 1], or more candidates than words.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, replace_probability: float, top_k: int, max_length: int | None = None
    ):
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} can't tell where its tokens stand: use a fast tokenizer.")
        self.tokenizer, self.words = tokenizer, _whole_words(tokenizer)
        self.replace_probability, self.top_k, self.max_length = replace_probability, top_k, max_length
        check_share("replace_probability", replace_probability, none=True, whole=True)
        check_range("top_k", top_k, 1, len(self.words))

    def variants(self, texts: Sequence[str], draws: Draws) -> Iterator[list[str]]:
        """Replace words; see `Augmenter.variants`."""
        cut = {"truncation": self.max_length is not None, "max_length": self.max_length}
        encoded = self.tokenizer(list(texts), **cut, return_offsets_mapping=True, verbose=False)
        spans = [_spans(text, encoded.word_ids(row), encoded["offset_mapping"][row]) for row, text in enumerate(texts)]
        plans = [
            [self._plan(text, {token: ids[token] for token in own}, one) for one in generators]
            for text, ids, own, generators in zip(texts, encoded["input_ids"], spans, draws, strict=True)
        ]
        places = {(row, token) for row, plan in enumerate(plans) for ranks in plan for token in ranks}
        candidates = self._candidates(encoded["input_ids"], places)
        for row, plan in enumerate(plans):
            made = [texts[row]] * len(plan)
            for copy, ranks in enumerate(plan):
                for token, rank in sorted(ranks.items(), reverse=True):
                    start, end = spans[row][token]
                    made[copy] = made[copy][:start] + candidates[row, token][rank] + made[copy][end:]
            yield made

    def _plan(self, text: str, tokens: Mapping[int, int], generator: np.random.Generator) -> dict[int, int]:
        """Draw which tokens are replaced, and by which of their candidates; `tokens` has the ids by place."""
        replaced = generator.random(len(tokens)) < self.replace_probability
        ranks = generator.integers(self.top_k, size=len(tokens)).tolist()
        return {token: rank for token, rank, chosen in zip(tokens, ranks, replaced, strict=True) if chosen}

    def _candidates(self, texts: Sequence[list[int]], places: Iterable[Place]) -> Mapping[Place, list[str]]:
        """Return the candidates, best first, at each place (row, token)."""
        raise NotImplementedError


class EmbeddingNeighbours(WordReplacement):
    """Words replaced by their neighbours in a model's input embeddings.

    Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding", arXiv:1909.10351, algorithm 1,
    whose authors take neighbours in GloVe vectors for words of several tokens, and a masked language model for the
    others, with `top_k=15` and 20 copies. Here all neighbours are of the vectors at hand, those of
    the teacher: the whole words with the largest cosine, of words that are one token. The other words stay.

    Where the paper replaces each word with probability 0.4, here each variant has the same share of its words
    replaced: `change` of all words, rounded, at least one, and no more than there are of one token. Wang et al. 2023,
    "Understanding the Effect of Data Augmentation on Knowledge Distillation", arXiv:2305.12565, find 30 % best to
    distil with, and 10 % to fine-tune.

    Args:
        model: whose input embeddings are read, such as the teacher.
        tokenizer: its tokenizer.
        change: the share of the words that is replaced.
        top_k: how many neighbours a word has.

    Raises:
        ValueError: a model without such embeddings, a tokenizer that does not fit it or gives no offsets, a share
            outside [0, 1], or as many neighbours as words.
    """

    @plain_arguments
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, change: float = 0.3, top_k: int = 15
    ):
        check_share("change", change, none=True, whole=True)
        super().__init__(tokenizer, change, top_k)
        check_range("top_k", top_k, 1, len(self.words) - 1)
        vectors = getattr(model.get_input_embeddings(), "weight", None)
        if vectors is None or len(tokenizer) > len(vectors):
            raise ValueError(
                f"{type(model).__name__} has {0 if vectors is None else len(vectors)} input embeddings, the tokenizer "
                f"{len(tokenizer)} tokens: load both from the same place."
            )
        self._ids = list(self.words)
        self._row = {number: row for row, number in enumerate(self._ids)}
        self._vectors = torch.nn.functional.normalize(vectors.detach()[self._ids].float().cpu(), dim=-1)
        self._known: dict[int, list[str]] = {}

    def _plan(self, text: str, tokens: Mapping[int, int], generator: np.random.Generator) -> dict[int, int]:
        # The token of unknown words has no neighbours.
        known = [token for token, number in tokens.items() if number in self._row]
        count = math.floor(self.replace_probability * len(word_spans(text)) + 0.5)
        chosen = generator.permutation(known)[: max(1, count) if self.replace_probability else 0].tolist()
        return dict(zip(chosen, generator.integers(self.top_k, size=len(chosen)).tolist(), strict=True))

    def _candidates(self, texts: Sequence[list[int]], places: Iterable[Place]) -> Mapping[Place, list[str]]:
        numbers = {place: texts[place[0]][place[1]] for place in places}
        for number in sorted(set(numbers.values()) - self._known.keys()):
            scores = self._vectors @ self._vectors[self._row[number]]
            scores[self._row[number]] = -math.inf
            self._known[number] = [self.words[self._ids[row]] for row in scores.topk(self.top_k).indices.tolist()]
        return {place: self._known[number] for place, number in numbers.items()}

    def fingerprint(self) -> str:
        """Hash vectors, tokenizer and settings; see `Augmenter.fingerprint`."""
        vectors = hashlib.sha256(self._vectors.numpy().data).hexdigest()
        settings = [type(self).__name__, self.replace_probability, self.top_k]
        return hash_value([vectors, hash_tokenizer(self.tokenizer), *settings])


class MaskedLanguageModel(WordReplacement):
    """Words replaced by what a masked language model expects in their place.

    Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding", arXiv:1909.10351, algorithm 1:
    each word that is one token is replaced, with a probability, by one of the `top_k` words most likely there. All
    variants of a text share the candidates of its words, each masked in the original text: the authors' code does so,
    their algorithm masks in the text changed so far. Other than there, only whole words of letters and digits compete
    for the top k, and words of several tokens, which they replace by GloVe neighbours, stay as they are, as does what
    lies beyond the model's longest input.

    Draws don't depend on batches; the order of candidates does where two are equal but for rounding.

    Args:
        model: a masked language model, on the device where it is to run; it is set to eval.
        tokenizer: its tokenizer.
        replace_probability: of replacing a word.
        top_k: how many candidates a word has.
        batch_size: how many masked texts the model is given at once.

    Raises:
        ValueError: a model without a masked-LM head, a tokenizer that does not fit it, has no mask token or gives no
            offsets, a probability outside [0, 1], more candidates than words, or a batch without texts.
    """

    @plain_arguments
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        replace_probability: float = 0.4,
        top_k: int = 15,
        batch_size: int = 64,
    ):
        if model.get_output_embeddings() is None or model.can_generate():
            raise ValueError(
                f"{type(model).__name__} has no masked-LM head: load AutoModelForMaskedLM.from_pretrained(...)."
            )
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}: load both from the "
                "same place."
            )
        mask_token_of(tokenizer)
        longest = min(tokenizer.model_max_length, positions_of(model.config) or LONGEST_TEXT, LONGEST_TEXT)
        super().__init__(tokenizer, replace_probability, top_k, longest)
        check_range("batch_size", batch_size, 1)
        self.model, self.batch_size = model.eval(), batch_size

    @torch.no_grad()
    def _candidates(self, texts: Sequence[list[int]], places: Iterable[Place]) -> dict[Place, list[str]]:
        """Return the most likely words, best first, at each place (row, token) when it alone is masked."""
        found: dict[Place, list[str]] = {}
        device, words = self.model.device, torch.tensor(list(self.words), device=self.model.device)
        ordered = sorted(places, key=lambda place: (len(texts[place[0]]), place))
        for first in range(0, len(ordered), self.batch_size):
            batch = ordered[first : first + self.batch_size]
            masked = [torch.tensor(texts[row]) for row, _ in batch]
            for ids, (_, token) in zip(masked, batch, strict=True):
                ids[token] = self.tokenizer.mask_token_id
            logits = self.model(
                input_ids=pad_sequence(masked, True, self.tokenizer.pad_token_id or 0).to(device),
                attention_mask=pad_sequence([torch.ones_like(ids) for ids in masked], True).to(device),
            ).logits
            there = logits[torch.arange(len(batch), device=device), [token for _, token in batch]]
            best = words[there[:, words].topk(self.top_k).indices].tolist()
            found |= {place: [self.words[word] for word in top] for place, top in zip(batch, best, strict=True)}
        return found

    def fingerprint(self) -> str:
        """Hash weights, config, tokenizer and settings; see `Augmenter.fingerprint`."""
        hashes = [hash_weights(self.model), hash_configuration(self.model), hash_tokenizer(self.tokenizer)]
        settings = [self.replace_probability, self.top_k, self.max_length, self.tokenizer.mask_token_id]
        return hash_value([*hashes, *settings])


def _spans(text: str, words: Sequence[int | None], offsets: Sequence[Place]) -> dict[int, Place]:
    """Find where the tokens stand that are a word each."""
    spans = {}
    for token, (word, (start, end)) in enumerate(zip(words, offsets, strict=True)):
        start = end - len(text[start:end].lstrip())
        if word is not None and words.count(word) == 1 and _is_word(text[start:end]):
            spans[token] = (start, end)
    return spans


def _whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the whole words among the tokens: BPE and Unigram mark where words start, WordPiece (##) the rest."""
    starts = ("Ġ", "▁")
    tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    marked = any(token.startswith(starts) for _, token in tokens)
    whole = [number for number, token in tokens if not marked or token.startswith(starts)]
    words = {number: str(tokenizer.decode([number])).strip() for number in whole}
    return {number: word for number, word in words.items() if _is_word(word)}


def _is_word(text: str) -> bool:
    return bool(text) and all(unicodedata.category(letter)[0] in "LMN" for letter in text)


def mask_token_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer's mask token, or refuse one that has none."""
    if tokenizer.mask_token is None:
        raise ValueError(
            f"{tokenizer.name_or_path or type(tokenizer).__name__} has no mask token, as which masked words are read: "
            "use one that has, or a way to make text that masks no words, such as 'constituents'."
        )
    return str(tokenizer.mask_token)


def check_range(name: str, value: float, low: int, high: float = math.inf) -> None:
    """Refuse a setting outside of [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: give {low} {'or more' if high == math.inf else f'to {high}'}.")
