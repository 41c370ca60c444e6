"""The table of a frontier calls each metric by a name that a reader knows."""

from __future__ import annotations

import pytest

from nlpkd.comparison.points import Point
from nlpkd.comparison.table import FrontierReport
from nlpkd.evaluation.records import AGREEMENT, METRIC_NAMES, Interval


@pytest.mark.parametrize(("metric", "called"), [*METRIC_NAMES.items(), (AGREEMENT, "agree")])
def test_the_narrow_table_has_the_whole_name_of_its_metric(metric, called):
    teacher = Point("teacher", Interval(0.8, 0.7, 0.9), 2.0, 1.0, 9.5, 1.0, [0.8], "")
    header, rows = FrontierReport(metric, 20, [teacher]).summary_cells()
    assert header == ["model", called, "kept", "ms", "MB", "faster", "front"]
    assert rows[0][:3] == ["teacher", "0.800 [0.700, 0.900]", "100.0 %"]
