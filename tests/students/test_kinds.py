"""Every family gives a student of each kind, or a refusal that says what to do."""

import pytest
import torch
from datasets import Dataset
from families import FAMILIES, of_family
from samples import tiny_bert

from nlpkd import make_student
from nlpkd.students.kinds import KINDS, StudentKind

ASKED = [
    {"layers": "layers:1"}, {"layers": "layers:1", "hidden_size": 8}, {"layers": "layers:2", "intermediate_size": 8},
    {"layers": "layers:1", "hidden_size": 8, "initialization": "random"}, {"layers": "width:1"},
    {"layers": "width:0.5"}, {"layers": "bilstm"}, {"layers": "static"},
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_a_family_runs_or_is_refused_with_what_to_do(family, tokenizer):
    teacher = of_family(family)
    rows = Dataset.from_dict({**tokenizer(["good film"] * 3, return_token_type_ids=False), "labels": [0, 1, 2]})
    for asked in ASKED:
        try:
            student = make_student(teacher, **asked, rows=rows, tokenizer=tokenizer)
        except ValueError as error:
            advice = ("take ", "try ", "choose ", "pass ", "keep ", "prune ", "load ", "by another method")
            assert any(word in str(error) for word in advice), (asked, error)
            continue
        assert student.config.num_labels == 3
        ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, getattr(teacher.config, "eos_token_id", 1) or 1]])
        with torch.no_grad():
            assert student.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, AssertionError, RuntimeError, KeyError])
def test_what_a_family_s_code_raises_is_told_with_the_family_and_what_was_asked(error):
    def odd(teacher, name, *, id2label, seed):
        raise error("no such part")

    kind = StudentKind("odd".__eq__, "'odd'", odd, lambda teacher: ())
    KINDS.append(kind)
    try:
        message = f"a BertForSequenceClassification can't be made into 'odd' .{error.__name__}: .?no such part.*: try "
        with pytest.raises(ValueError, match=message) as found:
            make_student(tiny_bert(), "odd")
        assert isinstance(found.value.__cause__, error)
    finally:
        KINDS.remove(kind)


def test_a_student_that_can_not_run_is_no_student():
    def broken(teacher, name, *, id2label, seed):
        student = tiny_bert()
        student.bert.encoder.layer[0].output.LayerNorm = torch.nn.LayerNorm(8)
        return student

    kind = StudentKind("broken".__eq__, "'broken'", broken, lambda teacher: ())
    KINDS.append(kind)
    try:
        with pytest.raises(ValueError, match="can't be made into 'broken' .RuntimeError: .*: try another kind of"):
            make_student(tiny_bert(), "broken")
    finally:
        KINDS.remove(kind)


def test_a_lack_of_memory_is_no_matter_of_the_family():
    def large(teacher, name, *, id2label, seed):
        raise torch.OutOfMemoryError("out of memory")

    kind = StudentKind("large".__eq__, "'large'", large, lambda teacher: ())
    KINDS.append(kind)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            make_student(tiny_bert(), "large")
    finally:
        KINDS.remove(kind)
