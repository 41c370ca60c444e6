"""Students that are no transformers: a BiLSTM, a TextCNN and a bag of vectors, which transformers saves and loads.

Importing this module registers their model types, `nlpkd_bilstm`, `nlpkd_textcnn` and `nlpkd_static`, with
`AutoConfig` and `AutoModelForSequenceClassification`; `import nlpkd` sees to it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd.utils.field_types import are_numbers, check_counts

PROJECTED_WIDTH = 300
"""What a wider embedding table of a teacher is projected to: the width of the embeddings in both papers."""


class SmallConfig(PreTrainedConfig):
    """What all small models have.

    Args:
        vocab_size: rows of the embedding table.
        embedding_size: its width.
        projection_size: width of a trained linear layer between the table and what reads it; None for no such layer.
        embedding_dropout: dropout on the embedded tokens.
        classifier_dropout: dropout on what the classifier reads.
        pad_token_id: the token that is padding where no attention mask says so.
    """

    vocab_size: int = 30522
    embedding_size: int = PROJECTED_WIDTH
    projection_size: int | None = None
    embedding_dropout: float = 0.0
    classifier_dropout: float = 0.0
    pad_token_id: int | None = 0


class BiLSTMConfig(SmallConfig):
    """Settings of a `BiLSTMForSequenceClassification`; the defaults are of the paper's size.

    Args:
        hidden_size: units of the LSTM in each direction.
        num_layers: bidirectional layers. (`num_hidden_layers` would promise layers that objectives can match.)
        intermediate_size: width of the fully connected layer.
    """

    model_type = "nlpkd_bilstm"

    hidden_size: int = 150
    num_layers: int = 1
    intermediate_size: int = 200


class TextCNNConfig(SmallConfig):
    """Settings of a `TextCNNForSequenceClassification`; the defaults are the paper's.

    Args:
        num_filters: filters of each width.
        filter_widths: how many tokens a filter reads.
    """

    model_type = "nlpkd_textcnn"

    num_filters: int = 100
    filter_widths: list[int] | tuple[int, ...] = (3, 4, 5)
    classifier_dropout: float = 0.5


class StaticConfig(SmallConfig):
    """Settings of a `StaticForSequenceClassification`.

    Args:
        intermediate_size: width of the fully connected layer.
        num_pairs: rows of a second table, of pairs of neighbouring tokens; 0 for no such table.
    """

    model_type = "nlpkd_static"

    intermediate_size: int = 256
    num_pairs: int = 0
    embedding_dropout: float = 0.1


_SIZES = ("vocab_size", "embedding_size", "hidden_size", "num_layers", "intermediate_size", "num_filters")


def _check_sizes(config: Any) -> None:
    """Refuse what is no size, be it given or read from a file."""
    check_counts(**{name: getattr(config, name) for name in _SIZES if hasattr(config, name)})
    if config.projection_size is not None:
        check_counts(projection_size=config.projection_size)
    check_counts(0, num_pairs=getattr(config, "num_pairs", 0))
    for name in ("embedding_dropout", "classifier_dropout"):
        if not are_numbers(share := getattr(config, name)) or not 0 <= share <= 1:
            raise ValueError(f"{name} must be a number from 0 to 1, got {share!r:.80}")


class SmallModel(PreTrainedModel):
    """Embed the real tokens, encode them into one vector, classify it.

    Padding, wherever it stands, changes nothing. Only logits come out: there are no hidden states or attention maps to
    match, and `output_hidden_states` is no argument.

    Args:
        config: the settings.
        width: of the vector that `encode` gives.
    """

    config: Any

    def __init__(self, config: Any, width: int):
        _check_sizes(config)
        super().__init__(config)
        self.embeddings: nn.Module = nn.Embedding(config.vocab_size, config.embedding_size)
        self.projection: nn.Module = nn.Identity()
        if config.projection_size is not None:
            self.projection = nn.Linear(config.embedding_size, config.projection_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.classifier_dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(width, config.num_labels)

    @abstractmethod
    def encode(self, states: Tensor, lengths: Tensor, ids: Tensor | None) -> Tensor:
        """Turn a text into one vector.

        Args:
            states: its embedded tokens from position 0 on, zeros behind them, `(batch, seq, embedding)`.
            lengths: how many tokens it has, `(batch,)`; 0 reads one zero.
            ids: the tokens, `(batch, seq)`; None where their embeddings were given.

        Returns:
            `(batch, width)`.
        """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify texts.

        Args:
            input_ids: `(batch, seq)`.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, seq)`; without it every token but `pad_token_id`
                is real.
            token_type_ids: passed over; a pair of texts is read as one sequence.
            inputs_embeds: rows of the embedding table in place of `input_ids`, `(batch, seq, embedding)`.
            labels: for the loss of `config.problem_type`, as of any model of transformers.

        Returns:
            Logits `(batch, labels)`, and the loss where there are labels.

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both")
        embedded = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # (batch, seq, embedding)
        if attention_mask is not None:
            real = attention_mask.bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        else:
            real = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        states, lengths = _from_the_left(self.embedding_dropout(self.projection(embedded)), real)
        ids = None if input_ids is None else _from_the_left(input_ids[..., None], real)[0].squeeze(-1)
        logits = self.classifier(self.classifier_dropout(self.encode(states, lengths, ids)))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding table."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table."""
        self.embeddings = value

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own: transformers' normal(0, 0.02) is for deep models with layer norms.
        if isinstance(module, (nn.Embedding, nn.Linear, nn.Conv1d, nn.LSTM)):
            module.reset_parameters()


class BiLSTMForSequenceClassification(SmallModel):
    """A bidirectional LSTM, its last states of both directions, a ReLU layer, a classifier.

    Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", arXiv:1903.12136,
    section 3.1. A pair of texts is read as one sequence with the tokenizer's separator, where the paper runs one LSTM
    on each text and compares the two.

    Args:
        config: the settings.
    """

    config_class = BiLSTMConfig

    def __init__(self, config: BiLSTMConfig):
        super().__init__(config, config.intermediate_size)
        # One LSTM a direction, since torch's bidirectional one starts backwards from the padding unless it is packed,
        # and packed sequences train at half the speed on a CPU and wait for the GPU.
        widths = [config.projection_size or config.embedding_size]
        widths += [2 * config.hidden_size] * (config.num_layers - 1)
        self.forwards = nn.ModuleList(nn.LSTM(width, config.hidden_size, batch_first=True) for width in widths)
        self.backwards = nn.ModuleList(nn.LSTM(width, config.hidden_size, batch_first=True) for width in widths)
        self.intermediate = nn.Linear(2 * config.hidden_size, config.intermediate_size)
        self.post_init()

    def encode(self, states: Tensor, lengths: Tensor, ids: Tensor | None) -> Tensor:
        """Read the text in both directions; see `SmallModel.encode`."""
        place = torch.arange(states.shape[1], device=states.device)
        last = (lengths - 1).clamp(min=0)[:, None]  # (batch, 1)
        mirrored = torch.where(place <= last, last - place, place)  # (batch, seq)
        for forwards, backwards in zip(self.forwards, self.backwards, strict=True):
            ahead, _ = forwards(states)
            back, _ = backwards(_take(states, mirrored))
            states = torch.cat([ahead, _take(back, mirrored)], dim=-1)  # (batch, seq, 2 * hidden)
        ends = torch.cat([_take(ahead, last), _take(back, last)], dim=-1).squeeze(1)  # (batch, 2 * hidden)
        return F.relu(self.intermediate(ends))


class TextCNNForSequenceClassification(SmallModel):
    """Filters over a few neighbouring tokens, the maximum of each over the text, a classifier.

    Kim 2014, "Convolutional Neural Networks for Sentence Classification", arXiv:1408.5882, section 2, with one channel
    of trained embeddings. A text shorter than a filter is filled up with zeros. A pair of texts is read as one
    sequence with the tokenizer's separator.

    Args:
        config: the settings.
    """

    config_class = TextCNNConfig

    def __init__(self, config: TextCNNConfig):
        widths = config.filter_widths
        if not isinstance(widths, (list, tuple)) or not widths:
            raise ValueError(f"filter_widths must be a list of one width or more, got {widths!r:.80}")
        check_counts(**{f"filter_widths[{place}]": width for place, width in enumerate(widths)})
        super().__init__(config, config.num_filters * len(config.filter_widths))
        width = config.projection_size or config.embedding_size
        self.filters = nn.ModuleList(nn.Conv1d(width, config.num_filters, size) for size in config.filter_widths)
        self.post_init()

    def encode(self, states: Tensor, lengths: Tensor, ids: Tensor | None) -> Tensor:
        """Take each filter's maximum over the text; see `SmallModel.encode`."""
        features = []
        for size, filters in zip(self.config.filter_widths, self.filters, strict=True):
            found = F.relu(filters(F.pad(states.transpose(1, 2), (0, size - 1))))  # (batch, filters, seq)
            place = torch.arange(found.shape[-1], device=found.device)
            overhanging = place > (lengths - size).clamp(min=0)[:, None]  # (batch, seq)
            # Behind the ReLU 0 never wins the maximum.
            features.append(found.masked_fill(overhanging[:, None], 0).amax(dim=-1))
        return torch.cat(features, dim=-1)


class StaticForSequenceClassification(SmallModel):
    """A weighted mean of token vectors, layer norm, a ReLU layer, a classifier: no token knows its neighbours.

    The mean of v_t is weighed by exp(u . v_t), so that a token has one weight wherever it stands, and u is learned: 0
    at the start, where all tokens count alike. model2vec weighs tokens by their frequency instead and does not train
    them (Tulkens and van Dongen 2024, https://github.com/MinishLab/model2vec).

    With `num_pairs`, tokens a and b side by side have a vector too, row (1000003 a + b) mod num_pairs of a second
    table, which is in the mean like a token: the bigrams of fastText (Joulin et al. 2017, "Bag of Tricks for Efficient
    Text Classification", arXiv:1607.01759, section 2.2), of ids in place of words. Pairs that fall on one row share
    it. All rows are 0 at the start.

    Args:
        config: the settings.
    """

    config_class = StaticConfig

    def __init__(self, config: StaticConfig):
        super().__init__(config, config.intermediate_size)
        width = config.projection_size or config.embedding_size
        self.pairs = nn.Embedding(config.num_pairs, width) if config.num_pairs else None
        self.importance = nn.Linear(width, 1, bias=False)
        # Tables differ in scale by a hundred times, and a mean is smaller yet.
        self.norm = nn.LayerNorm(width)
        self.intermediate = nn.Linear(width, config.intermediate_size)
        self.post_init()

    def encode(self, states: Tensor, lengths: Tensor, ids: Tensor | None) -> Tensor:
        """Average the tokens; see `SmallModel.encode`."""
        place = torch.arange(states.shape[1], device=states.device)
        # Of a text without tokens every place is read, and all are zeros.
        absent = (place >= lengths[:, None]) & (lengths > 0)[:, None]  # (batch, seq)
        if self.pairs is not None:
            if ids is None:
                raise ValueError("inputs_embeds does not say which tokens stand side by side: give input_ids")
            rows = (ids[:, :-1] * 1_000_003 + ids[:, 1:]) % self.config.num_pairs
            states = torch.cat([states, self.embedding_dropout(self.pairs(rows)).to(states.dtype)], dim=1)
            absent = torch.cat([absent, place[1:] >= lengths[:, None]], dim=1)  # (batch, 2 * seq - 1)
        scores = self.importance(states).squeeze(-1)
        weights = scores.masked_fill(absent, torch.finfo(scores.dtype).min).softmax(dim=-1)
        mean = (weights[:, None] @ states).squeeze(1)  # (batch, width)
        return F.relu(self.intermediate(self.norm(mean)))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.importance or module is self.pairs:
            nn.init.zeros_(module.weight)


def _take(states: Tensor, places: Tensor) -> Tensor:
    """Take of states `(batch, seq, width)` those at `(batch, n)` places: `(batch, n, width)`."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def _from_the_left(states: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Move real tokens to the front, in their order, zeros behind them; return their numbers too, `(batch,)`."""
    place = torch.arange(real.shape[1], device=real.device)
    order = torch.where(real, place, place + real.shape[1]).argsort(dim=1)
    lengths = real.sum(dim=1)
    return _take(states, order).masked_fill((place >= lengths[:, None])[..., None], 0), lengths


SMALL_STUDENTS: dict[str, tuple[type[SmallConfig], type[Any]]] = {
    "bilstm": (BiLSTMConfig, BiLSTMForSequenceClassification),
    "textcnn": (TextCNNConfig, TextCNNForSequenceClassification),
    "static": (StaticConfig, StaticForSequenceClassification),
}
"""The small students by kind: settings and model."""


for _config, _model in SMALL_STUDENTS.values():
    AutoConfig.register(_config.model_type, _config)
    AutoModelForSequenceClassification.register(_config, _model)
