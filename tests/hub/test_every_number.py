"""One report, every door: a number is written the same way wherever it is shown."""

from __future__ import annotations

import html
import re

import pytest

from nlpkd.cli.screen import show_report
from nlpkd.evaluation.html_report import render_page
from nlpkd.evaluation.origin import RunRecord, TaskRecord
from nlpkd.evaluation.records import (
    ONNX_RUNTIME,
    Candidate,
    Comparison,
    Interval,
    Latency,
    SeedSpread,
    TemperatureScaling,
)
from nlpkd.evaluation.report import EvaluationReport
from nlpkd.hub.model_card import build_model_card

# No two of them are alike, whatever they are rounded to, nor a hundredth of each other.
WRITTEN = {
    0.84127: "0.841", 0.82163: "0.822", 0.86081: "0.861",  # the teacher's accuracy
    0.73416: "0.734", 0.71624: "0.716", 0.75371: "0.754",  # the student's
    0.62437: "0.624", 0.58741: "0.587", 0.64518: "0.645",  # without a teacher
    0.92483: "0.925", 0.90138: "0.901", 0.97312: "0.973",  # agreement
    0.73416 / 0.84127: "87.3", 0.55862: "55.9", 0.48127: "48", 0.29384: "29", 0.68271: "68",  # shares, in %
    0.10979: "+11.0", 0.05318: "+5.3", 0.16342: "+16.3", 0.00431: "0.0043",  # the gain and its test
    95.7431: "95.7", 31.6248: "31.6", 12.8734: "12.87", 14.1267: "14.13", 4.3219: "4.32", 5.0192: "5.02",  # MB, ms
    7.7281: "7.73", 2.1264: "2.13", 137.43: "137",  # text to label, training
    22_714_371: "22,714,371", 7_890_979: "7,890,979", 1_411: "1,411", 11_297: "11,297",
    0.78213: "0.782", 0.01347: "0.013", 0.51648: "0.516", 0.03824: "0.038", 1.3742: "1.37", 0.06853: "0.069",
}  # fmt: skip
# The terminal has room for millions of parameters.
MILLIONS = {22_714_371: "22.7", 7_890_979: "7.9"}
TIMES = {"2.9", "3.0", "3.6", "31 %", "33 %"}
"""How many times smaller and faster."""


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    numbers = iter(WRITTEN)

    def interval() -> Interval:
        return Interval(next(numbers), next(numbers), next(numbers))

    teacher, student, alone, agreement = (interval() for _ in range(4))
    parts = [Latency(1, 32, 2, 12.8734, 14.1267)], [Latency(1, 32, 2, 4.3219, 5.0192)]
    small = {"parameters": 7_890_979, "size_mb": 31.6248, "latency": parts[1], "text_to_label_ms": 2.1264}
    gained = Comparison(
        {"accuracy": Interval(0.10979, 0.05318, 0.16342)}, mcnemar_p=0.00431,
        gap=Interval(0.21690, 0.19, 0.25), gap_closed=Interval(0.48127, 0.29384, 0.68271),
    )  # fmt: skip
    return EvaluationReport(
        task=TaskRecord("single_label_classification", labels=["a", "b"], rows=1_411, majority_share=0.55862),
        run=RunRecord.from_dict({"data": {"train_rows": 11_297, "split": "test"}}),
        candidates={
            "teacher": Candidate({"accuracy": teacher}, None, 22_714_371, 95.7431, parts[0], text_to_label_ms=7.7281),
            "student": Candidate(
                {"accuracy": student}, agreement, **small, training_seconds=137.43,
                temperature_scaling=TemperatureScaling(1.3742, 1_411, 0.06853, 0.03824),
            ),
            "no_teacher": Candidate({"accuracy": alone}, agreement, **small),
            "onnx/model_int8.onnx": Candidate({"accuracy": student}, agreement, **small, runtime=ONNX_RUNTIME),
        },
        comparisons={"student_vs_no_teacher": gained},
        seeds={"student": {"accuracy": SeedSpread([0.7, 0.8], 0.78213, 0.01347),
                           "gap_closed": SeedSpread([0.5, 0.6], 0.51648, 0.03824)}},
    )  # fmt: skip


def doors(report: EvaluationReport, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    show_report(report)
    card = build_model_card(report, model_name="alice/student").content
    page = re.sub(r"<(svg|style|script).*?</\1>", "", render_page(report), flags=re.DOTALL)
    return {
        "report.md": report.to_markdown(),
        "report.html": html.unescape(re.sub("<[^>]+>", " ", page)),
        "terminal": capsys.readouterr().out,
        "card": card.partition("\n---\n")[2].partition("<!--")[0],
    }


def test_a_number_is_written_the_same_way_in_report_page_terminal_and_card(report, capsys):
    pytest.importorskip("matplotlib")
    shown = doors(report, capsys)
    for door, text in shown.items():
        tokens = re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text.replace("32 tokens", ""))
        for number, written in WRITTEN.items():
            allowed = {written, MILLIONS.get(number)} if door == "terminal" else {written}
            for token in set(tokens) - allowed - {f"{written},"}:
                found = float(token.replace(",", ""))
                # A share may be a percentage, and a count one of millions.
                scales = (1, 100) if number < 1 else (1, 1e-6) if number > 1e6 else (1,)
                alike = [abs(found - number * scale) <= 0.006 * number * scale for scale in scales]
                assert not any(alike) or token.rstrip(",") in allowed, (
                    f"{door} writes {number} as {token}, not {written}"
                )
    # What every door has is there, and is the same.
    everywhere = ["0.841 [0.822, 0.861]", "0.734 [0.716, 0.754]", "87.3 %", "95.7", "31.6", "12.87", "4.32",
                  "137", "+11.0 points (95 % interval +5.3 to +16.3, McNemar p = 0.0043)",
                  "0.782 ± 0.013 (n = 2)"]  # fmt: skip
    for written in everywhere:
        missing = [door for door, text in shown.items() if written not in " ".join(text.replace(" [", " [").split())]
        # The page puts no seeds beside its charts.
        assert missing in ([], ["report.html"] if "±" in written else []), written
    for door in ("report.md", "report.html", "card"):
        assert "55.9 %" in shown[door] and "7,890,979" in shown[door] and "7.73" in shown[door]
