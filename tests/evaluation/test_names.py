"""Candidates' names: what a reader can't tell apart is refused, or numbered."""

from __future__ import annotations

from itertools import product

import pytest

from nlpkd.evaluation.figures.names import check_candidate_names, shown_name, told_apart
from nlpkd.evaluation.report_text import escape_markdown, markdown_table

ALIKE = [
    "int8",
    "int8 ",
    " int8",
    "int8\n",
    "int8\u200b",
    "int8\xa0",
    "\ufeffint8",
    "\uff49nt8",
    "in\u00adt8",
    "int8\x00",
]
APART = [
    "int8",
    "INT8",
    "int 8",
    "int_8",
    "*int8*",
    "int8|",
    "int8\\|",
    "&lt;int8",
    "<int8",
    "`int8`",
    "./int8",
    "/a/int8",
]


@pytest.mark.parametrize("other", ALIKE[1:])
def test_candidates_that_look_alike_are_refused(other):
    with pytest.raises(ValueError, match="look alike to a reader: call one of them otherwise"):
        check_candidate_names({"int8": 1, "fp16": 2, other: 3})


@pytest.mark.parametrize("name", ["", " ", "\t\n", "\u200b", 1, None, ("int8",)])
def test_a_name_that_nobody_can_read_is_refused(name):
    with pytest.raises(ValueError, match="must be texts that can be seen"):
        check_candidate_names({"int8": 1, name: 2})


@pytest.mark.parametrize("name", ["student", "teacher ", "\u200bbaseline"])
def test_a_name_that_is_taken_is_refused_however_it_is_written(name):
    with pytest.raises(ValueError, match="can't be called"):
        check_candidate_names({name: 1})


def test_names_that_pass_are_told_apart_in_markdown_too():
    check_candidate_names(dict.fromkeys(APART, 1))
    shown = markdown_table(["candidate"], [[escape_markdown(name)] for name in APART]).splitlines()[2:]
    assert len(set(shown)) == len(APART)


def test_names_that_become_alike_are_numbered_until_all_differ():
    wanted = ["./student", "./student (2)", "./student", "./student ", "x"]
    for order in (wanted, wanted[::-1], sorted(wanted)):
        chosen = told_apart({f"name {place}": name for place, name in enumerate(order)})
        assert len({shown_name(name) for name in chosen.values()}) == len(wanted)
        assert {shown_name(name).partition(" (")[0] for name in chosen.values()} == {"./student", "x"}


def test_all_that_look_alike_are_alike():
    assert {shown_name(first) == shown_name(second) for first, second in product(ALIKE, ALIKE)} == {True}
