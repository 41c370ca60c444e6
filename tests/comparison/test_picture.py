"""The picture of a frontier: whole XML with every student in it, in both schemes, its labels apart from each other."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from browser import CHROMIUM, Browser

from nlpkd.comparison.points import Limits, Point
from nlpkd.comparison.table import FrontierReport
from nlpkd.evaluation.records import Interval

pytest.importorskip("matplotlib", reason="needs the extra `report`")

MODELS = {
    "teacher in PyTorch": (0.905, 9.8, 90.9), "teacher": (0.903, 2.9, 14.2), "width:0.67": (0.904, 2.1, 10.1),
    "layers:4": (0.899, 1.95, 9.9), "layers:3": (0.893, 1.4, 8.1), "layers:2": (0.87, 0.97, 6.3),
    "tinybert-4l-312": (0.86, 1.6, 7.7), "bilstm": (0.84, 0.8, 5.0), "static": (0.81, 0.06, 3.1),
    "<b>&amp; $x_1$ \\g<0>": (0.80, 0.3, 4.0),
}  # fmt: skip


def frontier(models, **limits) -> FrontierReport:
    points = [
        Point(name, Interval(value, value - 0.02, value + 0.02), ms, 0.8 * ms, size_mb, value / 0.905, [value], name)
        for name, (value, ms, size_mb) in models.items()
    ]
    run = {"teacher": "<i>MiniLM</i>", "command": "nlpkd frontier </dd><script>alert(1)</script>"}
    return FrontierReport("accuracy", 872, points, {"layers:9": "ValueError: <b>no</b>"}, Limits(**limits), run)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    frontier(MODELS, min_retention=0.98, max_latency_ms=3.0).save(folder)
    return folder


def texts(drawing: str) -> list[str]:
    return [
        "".join(each.itertext()) for each in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_the_drawing_is_whole_xml_and_names_every_model_the_axes_and_the_pick(saved):
    found = texts((saved / "frontier.svg").read_text())
    for name in MODELS:
        chosen = f"{name} (picked)" if name == "width:0.67" else name
        assert chosen in found, name
    assert "90.9 MB" in found and "3.1 MB" in found
    assert any("milliseconds from text to label" in each for each in found)
    assert any(each.startswith("accuracy") for each in found)
    assert {"0.1", "1", "10"} <= set(found)


def test_a_file_of_its_own_has_plain_colours_and_others_where_dark_is_preferred(saved):
    drawing = (saved / "frontier.svg").read_text()
    assert "var(" not in drawing and "#0202" not in drawing and "#0101" not in drawing
    plain = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", re.sub(r"<style>.*?</style>", "", drawing, flags=re.S)))
    styled = re.findall(r"<style>(.*?)</style>", drawing, flags=re.S)
    for colour in plain:
        assert any(f'"fill: {colour}"' in each or f'"stroke: {colour}"' in each for each in styled), colour
    page = (saved / "report.html").read_text()
    assert "var(--s1)" in page and "<script" not in page and "<b>no" not in page and "<i>MiniLM" not in page


def test_marks_have_the_area_of_the_files(tmp_path):
    frontier({"teacher in PyTorch": (0.9, 10.0, 90.0), "half": (0.8, 1.0, 45.0)}).save(tmp_path)
    drawing = (tmp_path / "frontier.svg").read_text()
    # The marks alone are not opaque.
    marks = re.findall(r'<path [^>]*d="([^"]*)"[^>]*opacity: 0.85', drawing)
    across = [[float(number) for number in re.findall(r"-?[0-9.]+", path)][::2] for path in marks]
    larger, smaller = (max(each) - min(each) for each in across)
    assert (larger / smaller) ** 2 == pytest.approx(2.0, rel=0.01)


def test_a_single_model_and_equal_ones_are_drawn(tmp_path):
    frontier({"teacher in PyTorch": (0.9, 10.0, 90.0)}).save(tmp_path)
    assert "teacher in PyTorch" in texts((tmp_path / "frontier.svg").read_text())
    frontier({"teacher in PyTorch": (0.9, 10.0, 90.0), "same": (0.9, 10.0, 90.0)}).save(tmp_path)
    assert "same" in texts((tmp_path / "frontier.svg").read_text())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium")
def test_a_browser_shows_labels_apart_and_inside_in_light_and_dark(saved, tmp_path):
    with Browser(tmp_path) as browser:
        for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")):
            browser.show(900, scheme)
            browser.open((saved / "frontier.svg").as_uri())
            assert browser.evaluate("getComputedStyle(document.querySelector('rect')).fill") == paper
            boxes = browser.evaluate(
                "[...document.querySelectorAll('text')].map(each => {const box = each.getBoundingClientRect(); "
                "return [each.textContent, box.left, box.top, box.right, box.bottom]})"
            )
            right, bottom = browser.evaluate("[document.documentElement.clientWidth, innerHeight]")
            for name, *box in boxes:
                assert box[0] >= 0 and box[1] >= 0 and box[2] <= right and box[3] <= bottom, name
            for one, other in itertools.combinations(boxes, 2):
                # Lines of one label touch; a hair of leading is no overlap.
                across = min(one[3], other[3]) - max(one[1], other[1])
                down = min(one[4], other[4]) - max(one[2], other[2])
                assert across <= 0 or down <= 3, (one[0], other[0])
