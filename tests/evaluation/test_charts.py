"""Charts: a name is shown as it is, be it what it may, and stays apart from all others."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")

from nlpkd.evaluation import charts  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    "#010101 red", "#020201", "#010104", "var(--ink)", "var(--s1) x", 'plain id="foo" x', 'x style="fill: #010101"',
    "good 👍", "学生", 'viewBox="0 0 1 1"', "<svg x>", "</svg>", "--> <!--", "]]>", "&lt;g id=\"a\"&gt;", "\\g<0>",
    "$x_1$",
]  # fmt: skip
LONG = [f"customer_service_{kind}_of_parcels" for kind in ("refund", "return", "repair")]


def texts(drawing: str) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are_in_a_page_and_in_a_file_of_its_own():
    # Longer ones are cut, which changes them on purpose.
    names = [name for name in NAMES if len(name) <= charts.NAME_LENGTH]
    assert len(names) > 8
    by_class = charts.by_group(names, {"student": [0.5] * len(names)}, "F1")
    matrix = np.eye(len(names), dtype=int).tolist()
    drawings = [by_class, *(charts.confusion(name, name, 0, matrix, names) for name in NAMES)]
    for title, drawing in zip([None, *NAMES], drawings, strict=True):
        for version in (drawing, charts.standalone(drawing, "x")):
            found = texts(version)
            assert set(names) <= set(found), set(names) - set(found)
            assert title is None or title in found
            if title is not None:
                assert title in ElementTree.fromstring(version).attrib["aria-label"]


def test_colours_are_the_page_s_variables_and_plain_ones_in_a_file():
    drawing = charts.confusion("s", "s", 1, [[1, 0], [2, 3]], ["a", "b"])
    styles = re.findall(r'style="([^"]*)"', drawing)
    assert any("var(--s1)" in style for style in styles) and any("var(--ink)" in style for style in styles)
    assert not re.search("#0[12]0[12]0", drawing)
    alone = charts.standalone(drawing, "s")
    assert "var(" not in alone and charts.LIGHT["--s1"] in alone


@pytest.mark.parametrize("length", [12, charts.NAME_LENGTH, charts.TITLE_LENGTH])
def test_different_names_stay_different_when_they_are_cut(length):
    names = [f"{'x' * start}{middle}{'y' * 40}" for start in (0, 3, 30, 50) for middle in ("", "a", "b", "ab")]
    for given in (LONG, names, [*names, "short"], ["same", "same"], [], ["one"]):
        shown = charts.shortened(given, length)
        assert len(set(shown)) == len(given) and all(len(each) <= length for each in shown)


def test_a_cut_name_keeps_both_of_its_ends():
    assert charts.shortened(["customer_service_refund"]) == ["customer_…e_refund"]
    assert charts.shortened(["a  b\nc"]) == ["a b c"]


def test_a_value_that_is_not_known_is_not_drawn():
    def marks(values):
        return charts.by_group(["1 to 4", "5 to 9", "10 to 20"], values, "Pearson").count("<use ")

    whole = marks({"a": [0.5, 0.6, 0.7], "b": [0.5, 0.6, 0.7]})
    assert marks({"a": [0.5, None, 0.7], "b": [0.5, 0.6, 0.7]}) == whole - 1
    assert marks({"a": [None, None, None], "b": [0.5, 0.6, 0.7]}) == whole - 3
