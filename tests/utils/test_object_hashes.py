"""Whatever a model's answers depend on changes its hash, and nothing else does."""

import collections
import copy
import enum
import functools
import json
import os
import re
import threading
import types

import numpy as np
import pytest
import torch
from families import bert, distilbert, electra, llama, modernbert, roberta
from paths import TESTS
from processes import run as run_program
from samples import tiny_bert
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.utils.object_hashes import Hasher, UnhashableError, hash_configuration, hash_in_run, hash_weights

FAMILIES = [bert, distilbert, electra, llama, modernbert, roberta]


class Odd(nn.Module):
    """A module of somebody's own with whatever it holds."""

    def __init__(self, **held):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        vars(self).update(held)

    def forward(self, inputs):
        return self.linear(inputs)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Holder:
    def __init__(self, value):
        self.value = value


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def adding(value):
    return lambda inputs: inputs + value


def by_default(value):
    def function(inputs, factor=value):
        return inputs * factor

    return function


def by_keyword(value):
    def function(inputs, *, factor=value):
        return inputs * factor

    return function


def by_global(value):
    return types.FunctionType((lambda inputs: inputs * FACTOR).__code__, {"FACTOR": value})  # noqa: F821


def a_class(value):
    class Local:
        factor = value

        def scaled(self, inputs):
            return inputs * value

    return Local


def linear(value):
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(value)
        layer.bias.zero_()
    return layer


def own_recursion(value):
    made = [value]
    made.append(made)
    return made


# From a number, something that holds it.
HELD = {
    "number": lambda value: value,
    "text": str,
    "bytes": lambda value: str(value).encode(),
    "none or not": lambda value: None if value > 1.5 else value,
    "list": lambda value: [1.0, value],
    "tuple": lambda value: (1.0, (value,)),
    "dictionary": lambda value: {"a": {"b": [value]}},
    "key": lambda value: {value: 1},
    "order": lambda value: {"a": 1, "b": 2} if value > 1.5 else {"b": 2, "a": 1},
    "set": lambda value: {value, "a", "b", "c"},
    "frozen set": lambda value: frozenset([value, "a", "b"]),
    "tensor": lambda value: torch.tensor([1.0, value]),
    "bf16": lambda value: torch.tensor([value], dtype=torch.bfloat16),
    "tensor in a list": lambda value: [torch.tensor(value)],
    "array": lambda value: np.array([[1.0, value]]),
    "array of objects": lambda value: np.array([None, value], dtype=object),
    "numpy number": np.float32,
    "dtype": lambda value: torch.float16 if value > 1.5 else torch.bfloat16,
    "dtype of numpy": lambda value: np.dtype("int64" if value > 1.5 else "int32"),
    "enum": lambda value: Colour.RED if value > 1.5 else Colour.BLUE,
    "closure": adding,
    "default": by_default,
    "default of a keyword": by_keyword,
    "global": by_global,
    "partial": lambda value: functools.partial(F.leaky_relu, negative_slope=value),
    "method": lambda value: Holder(value).__init__,
    "class": a_class,
    "object": Holder,
    "object of a class of its own": lambda value: a_class(value)(),
    "slots": Slotted,
    "queue": lambda value: collections.deque([value]),
    "pattern": lambda value: re.compile(str(value)),
    "namespace": lambda value: types.SimpleNamespace(value=value),
    "config": lambda value: BertConfig(initializer_range=value),
    "module in a list": lambda value: [linear(value)],
    "module in an object": lambda value: Holder(linear(value)),
    "itself within": own_recursion,
}


@pytest.mark.parametrize("name", ["held", "_held"])
@pytest.mark.parametrize("kind", HELD)
def test_whatever_a_module_of_somebodys_own_holds_counts(kind, name):
    first, same, other = (
        hash_configuration(nn.Sequential(Odd(**{name: HELD[kind](value)}))) for value in (1.0, 1.0, 2.0)
    )
    assert first == same != other


@pytest.mark.parametrize("kind", HELD)
def test_a_value_is_told_as_its_copy_is(kind):
    value = HELD[kind](2.0)
    assert Hasher().hash(value) == Hasher().hash(copy.deepcopy(value))


@pytest.mark.parametrize("kind", ["number", "bytes", "tensor", "dictionary"])
def test_a_modules_extra_state_is_among_its_weights(kind):
    class Own(nn.Module):
        def __init__(self, value):
            super().__init__()
            self._kept = HELD[kind](value)

        def get_extra_state(self):
            return self._kept

    assert hash_weights(Own(1.0)) == hash_weights(Own(1.0)) != hash_weights(Own(2.0))


@pytest.mark.parametrize("kind", ["list", "dictionary", "tensor", "array", "closure", "set", "text"])
def test_what_is_set_on_a_librarys_module_counts(kind):
    def told(value):
        model = tiny_bert()
        model.bert.encoder.layer[0].attention.self.held = HELD[kind](value)
        return hash_configuration(model)

    assert told(1.0) == told(1.0) != told(2.0)


def test_a_models_subclass_counts_with_what_it_adds():
    class Own(BertForSequenceClassification):
        factor = 2.0

        def forward(self, **inputs):
            return super().forward(**inputs)

    def told():
        return hash_configuration(Own(BertConfig(num_hidden_layers=1, hidden_size=4, num_attention_heads=1)))

    first = told()
    assert told() == first
    Own.factor = 3.0
    second = told()
    Own.forward = lambda self, **inputs: None
    assert len({first, second, told()}) == 3


@pytest.mark.parametrize(
    "value", [threading.Lock(), (each for each in ()), [threading.Lock()], Holder(threading.Lock())]
)
def test_what_nothing_tells_apart_is_refused_by_name_unless_it_is_private(value):
    with pytest.raises(UnhashableError, match=r"answers owe to 0\.held: .*(lock|generator).* begins with _"):
        hash_configuration(nn.Sequential(Odd(held=value)))
    assert hash_configuration(Odd(_held=value)) == hash_configuration(Odd())
    runs = [hash_in_run(hash_configuration, Odd(held=value)) for _ in range(2)]
    assert runs[0] != runs[1] and "owe to Odd.held" in runs[0]


def told(model):
    return dict(Hasher(model).modules(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_to_run_to_train_to_copy_to_save_and_to_load_changes_nothing(family, tmp_path):
    model = family()
    before = told(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert told(loaded) == before == told(copy.deepcopy(model))
    ids = torch.randint(5, 24, (2, 9))
    loaded.train()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    loaded.eval().requires_grad_(False)
    loaded(input_ids=ids[:1, :4], attention_mask=torch.ones_like(ids)[:1, :4], output_hidden_states=True)
    assert told(loaded) == before
    ensemble = TeacherEnsemble([model, loaded])
    assert told(ensemble) == told(copy.deepcopy(ensemble))


def test_an_adapter_that_was_saved_and_loaded_is_the_same(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_bert(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).eval()
    model.save_pretrained(tmp_path)
    ids = torch.ones(1, 4).long()
    before = told(model)
    model(input_ids=ids, attention_mask=ids)
    assert told(model) == before == told(peft.PeftModel.from_pretrained(tiny_bert(), tmp_path).eval())


ELSEWHERE = """
import json, sys
from test_object_hashes import FAMILIES, HELD, Odd, hash_configuration
held = {kind: hash_configuration(Odd(held=make(2.0))) for kind, make in HELD.items()}
json.dump(held | {family.__name__: hash_configuration(family()) for family in FAMILIES}, open(sys.argv[1], "w"))
"""


def test_another_process_tells_the_same(tmp_path):
    found = os.pathsep.join([str(TESTS / "utils"), str(TESTS)])
    done = run_program(["-c", ELSEWHERE, str(tmp_path / "told.json")], tmp_path, os.environ | {"PYTHONPATH": found})
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "told.json").read_text())
    ours = {kind: hash_configuration(Odd(held=make(2.0))) for kind, make in HELD.items()}
    assert theirs == ours | {family.__name__: hash_configuration(family()) for family in FAMILIES}
