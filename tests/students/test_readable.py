"""A model in memory is refused exactly where `from_pretrained` would not give it back."""

from functools import partial

import pytest
import torch
from families import FAMILIES, SIZE, bert, distilbert, electra, llama, make, modernbert, of_family, roberta
from samples import tiny_bert
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)

from nlpkd import compression, make_student
from nlpkd.students.readable import lost_when_read_back, refuse_unreadable


class TwoHeads(BertForSequenceClassification):
    """A class of somebody's own, with one more layer than its config's class has."""

    def __init__(self, config):
        super().__init__(config)
        self.second = nn.Linear(config.hidden_size, config.num_labels)


class OwnLoss(BertForSequenceClassification):
    """A class of somebody's own with the weights of its config's class."""


class WeightedLoss(BertForSequenceClassification):
    """A class of somebody's own, with a buffer that its loss alone needs."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("class_weights", torch.ones(config.num_labels))


class UnknownConfig(BertConfig):
    """A config that nobody registered."""

    model_type = "unknown"


class Unknown(BertForSequenceClassification):
    """Its model."""

    config_class = UnknownConfig


def with_part(name: str, part: nn.Module) -> PreTrainedModel:
    model = tiny_bert()
    model.set_submodule(name, part)
    return model


def with_adapter() -> PreTrainedModel:
    peft, model = pytest.importorskip("peft"), tiny_bert()
    model.add_adapter(peft.LoraConfig(target_modules=["query"]))
    return model


def with_norm() -> PreTrainedModel:
    model = tiny_bert()
    nn.utils.parametrizations.weight_norm(model.classifier)
    return model


def with_more_words() -> PreTrainedModel:
    model = tiny_bert()
    model.resize_token_embeddings(model.config.vocab_size + 3)
    return model


LOSES = {
    "a head of several layers": lambda: with_part("classifier", nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))),
    "a head of more outputs": lambda: with_part("classifier", nn.Linear(16, 3)),
    "a head without a bias": lambda: with_part("classifier", nn.Linear(16, 2, bias=False)),
    "a wider layer": lambda: with_part("bert.encoder.layer.0.intermediate.dense", nn.Linear(16, 99)),
    "words that its config does not count": lambda: with_part("bert.embeddings.word_embeddings", nn.Embedding(99, 16)),
    "a part of its own class": lambda: TwoHeads(tiny_bert().config),
    "a config that nobody knows": lambda: Unknown(UnknownConfig(**SIZE)),
    "an adapter": with_adapter,
    "a weight in two parts": with_norm,
}

KEEPS = {each.__name__: partial(make, each) for each in (bert, distilbert, roberta, electra, modernbert, llama)}
KEEPS |= {name: partial(of_family, name) for name in FAMILIES}
KEEPS |= {name: lambda name=name: make_student(tiny_bert(), name) for name in ("layers:1", "bilstm", "static")}
KEEPS |= {
    "narrower": lambda: make_student(tiny_bert(), "layers:1", hidden_size=8, intermediate_size=8),
    "factorised": lambda: compression.factorize_linear(tiny_bert(), rank=4)[0],
    "factorised embeddings": lambda: compression.factorize_embeddings(tiny_bert(), rank=4)[0],
    "more words": with_more_words,
    "own class": lambda: OwnLoss(tiny_bert().config),
    "a buffer more": lambda: WeightedLoss(tiny_bert().config),
}


@pytest.mark.parametrize("case", [*LOSES, *KEEPS])
def test_a_model_is_refused_exactly_where_reading_it_back_loses_weights(case, tmp_path):
    model = (LOSES | KEEPS)[case]()
    random = torch.get_rng_state()
    told = lost_when_read_back(model)
    assert (told is not None) == (case in LOSES) and torch.equal(random, torch.get_rng_state())
    if case in LOSES:
        with pytest.raises(ValueError, match="in memory could not be read back once it is saved: .*Give a model"):
            refuse_unreadable(model)
    if case in ("an adapter", "a config that nobody knows"):
        return
    model.save_pretrained(tmp_path)
    read, found = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True, ignore_mismatched_sizes=True
    )
    unknown = set(found["unexpected_keys"]) - {name for name, _ in model.named_buffers()}
    lost = [*found["missing_keys"], *unknown, *found["mismatched_keys"]]
    assert bool(lost) == (case in LOSES)
    assert lost_when_read_back(read) is None


@pytest.mark.parametrize("kind", ["module", "adapter"])
def test_of_what_has_no_config_or_is_in_a_wrapper_nothing_is_said(kind):
    if kind == "module":
        assert lost_when_read_back(nn.Linear(2, 2)) is None
    else:
        peft = pytest.importorskip("peft")
        assert lost_when_read_back(peft.get_peft_model(tiny_bert(), peft.LoraConfig(task_type="SEQ_CLS"))) is None
