"""A few seconds of `make fuzz`: of damaged files that nlpkd reads back comes a result, or an error that names them."""

from __future__ import annotations

import pytest
from fuzz import CALLED, READERS, fuzz, problem


def test_damaged_files_are_named_by_all_that_read_them():
    tried, wrong = fuzz(seconds=30, seed=20, most=3 * len(READERS), each=0)
    assert wrong == [], "\n\n".join(wrong)
    assert all(tried[file, "read"] for file in CALLED), tried


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        ((0, "", "Traceback (most recent call last)\n"), "a traceback"),
        ((4, "", "nlpkd: unforeseen"), "exit status 4"),
        ((-11, "", ""), "exit status -11"),
        ((0, "\x1b[31mEVIL", ""), "a control character"),
        ((2, "", "something went wrong"), "an error without a line"),
    ],
)
def test_what_is_no_good_end_is_seen(ended, told):
    assert problem(*ended).startswith(told)
    assert problem(2, "", "Loading\nnlpkd: config.json is damaged: save it again\n") is None
