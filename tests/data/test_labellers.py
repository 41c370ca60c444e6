"""Splits that different teachers labelled are told apart, and only those."""

import pytest
from datasets import Dataset

from nlpkd.data.labels.labellers import CALIBRATION, INPUT_TOKENS, OUTPUT_TOKENS, QUESTION, TEACHER, other_labellers

TOLD = {TEACHER: "m", QUESTION: '"good?"', CALIBRATION: None, INPUT_TOKENS: None, OUTPUT_TOKENS: None}
FITTED = {CALIBRATION: '{"gold": "a1", "temperature": 0.095}'}


def labelled(*rows):
    return Dataset.from_list([{"text": "a", "soft": [0.5, 0.5]} | TOLD | row for row in rows or ({},)])


@pytest.mark.parametrize(
    ("train", "measured", "differs"),
    [
        (labelled(), labelled(), None),
        (labelled(), labelled({TEACHER: "n"}), ["teacher"]),
        (labelled(), labelled({QUESTION: '"bad?"'}), ["question"]),
        (labelled(FITTED), labelled(), ["calibration"]),
        (labelled(FITTED), labelled({CALIBRATION: '{"gold": "b2", "temperature": 0.095}'}), ["calibration"]),
        (labelled(FITTED), labelled({CALIBRATION: '{"gold": "a1", "temperature": 0.0952}'}), None),
        (labelled(), labelled({TEACHER: "n", QUESTION: "null"}), ["teacher", "question"]),
        (labelled({}, {TEACHER: "n"}), labelled({TEACHER: "n"}, {}), None),
        (labelled({}, {TEACHER: "n"}), labelled(), ["teacher"]),
        (labelled().remove_columns(CALIBRATION), labelled(), None),
        (labelled().remove_columns(CALIBRATION), labelled(FITTED), None),
        (labelled(FITTED), labelled().remove_columns(CALIBRATION), None),
        (labelled({TEACHER: "n"}).remove_columns(CALIBRATION), labelled(FITTED), ["teacher"]),
        # Columns of these names that labelling did not write, and answers that are not there.
        (labelled().remove_columns(INPUT_TOKENS), labelled({QUESTION: "another"}), None),
        (labelled(), labelled({TEACHER: "n"}).remove_columns("soft"), None),
    ],
)
def test_what_differs_between_those_who_labelled_two_splits_is_told(train, measured, differs, caplog):
    found = other_labellers({"train": train, "test": measured}, "soft")
    assert found == ({} if differs is None else {"test": differs})
    assert ("of the test split are of another" in caplog.text) is (differs is not None)
    assert not other_labellers({"train": train, "test": measured}, None)
