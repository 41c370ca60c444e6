"""Every family gives a student of each kind, or a refusal that says what to do."""

import pytest
import torch
from families import FAMILIES, of_family
from samples import tiny_bert

from nlpkd import make_student
from nlpkd.students.kinds import KINDS, StudentKind

ASKED = [
    {"layers": "layers:1"}, {"layers": "layers:1", "hidden_size": 8}, {"layers": "layers:2", "intermediate_size": 8},
    {"layers": "layers:1", "hidden_size": 8, "initialization": "random"}, {"layers": "width:1"}, {"layers": "bilstm"},
    {"layers": "static"},
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_can_not_be_made_of_a_family_is_refused_with_what_to_do(family):
    teacher = of_family(family)
    for asked in ASKED:
        try:
            student = make_student(teacher, **asked)
            assert student.config.num_labels == 3
        except ValueError as error:
            assert any(word in str(error) for word in ("take ", "try ", "choose ", "pass ", "keep ")), (asked, error)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, AssertionError, RuntimeError])
def test_what_a_family_s_code_raises_is_told_with_the_family_and_what_was_asked(error):
    def odd(teacher, name, *, id2label, seed):
        raise error("no such part")

    kind = StudentKind("odd".__eq__, "'odd'", odd, lambda teacher: ())
    KINDS.append(kind)
    try:
        message = f"a BertForSequenceClassification can't be made into 'odd' .{error.__name__}: no such part.: try "
        with pytest.raises(ValueError, match=message) as found:
            make_student(tiny_bert(), "odd")
        assert isinstance(found.value.__cause__, error)
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
