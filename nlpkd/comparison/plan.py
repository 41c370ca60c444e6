"""What a frontier would take, before it is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nlpkd.evaluation.records import format_number
from nlpkd.evaluation.report_text import Cells, markdown_table
from nlpkd.pipeline.dry_run import Plan


@dataclass(frozen=True)
class FrontierPlan:
    """What the students of a frontier would take.

    Attributes:
        students: the plan of each by its name, or why it can't be made.
    """

    students: Mapping[str, Plan | str]

    @property
    def minutes(self) -> float:
        """Return the minutes of all that can be made, trainings and measuring."""
        plans = [each for each in self.students.values() if isinstance(each, Plan)]
        return sum(each.training_minutes + each.measuring_minutes for each in plans)

    def cells(self) -> Cells:
        """Return the table: a row for each student that can be made, with minutes and the megabytes of weights."""
        header = ["student", "params", "MB", "steps", "runs", "train min", "measure min", "disk MB"]
        rows = []
        for name, plan in self.students.items():
            if isinstance(plan, Plan):
                _, parameters, size_mb = plan.models[-1]
                sizes = [f"{parameters / 1e6:.1f} M", format_number(size_mb, ".1f"), f"{sum(plan.steps):,}"]
                minutes = [f"{plan.training_minutes:.1f}", f"{plan.measuring_minutes:.1f}"]
                rows.append(
                    [name, *sizes, str(plan.trainings * (1 + plan.baselines)), *minutes, f"{plan.disk_mb:,.0f}"]
                )
        return header, rows

    def verdict(self) -> str:
        """Say which students can't be made, and what all others take together."""
        refused = [f"{name} can't be made: {why}." for name, why in self.students.items() if isinstance(why, str)]
        if len(refused) == len(self.students):
            return "There is no student to train."
        about = (
            f"All of it takes about {self.minutes:.0f} minutes. It is less where objectives need the teacher's logits "
            "alone, which are kept once for all students. Exports, and what is timed at the end, are not counted."
        )
        return "\n\n".join([*refused, about])

    def to_text(self) -> str:
        """Write both."""
        header, rows = self.cells()
        return "\n\n".join([*([markdown_table(header, rows)] if rows else []), self.verdict()])
