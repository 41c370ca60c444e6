"""What a frontier would take, before it is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nlpkd.evaluation.report_text import markdown_table
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

    def to_text(self) -> str:
        """Write the plan: a row for each student, and what all take together."""
        heads = ["student", "parameters", "MB", "steps", "trainings", "training, min", "measuring, min", "disk, MB"]
        rows, refused = [], []
        for name, plan in self.students.items():
            if isinstance(plan, str):
                refused.append(f"{name} can't be made: {plan}")
                continue
            _, parameters, size_mb = plan.models[-1]
            figures = [f"{plan.training_minutes:.1f}", f"{plan.measuring_minutes:.1f}", f"{plan.disk_mb:,.0f}"]
            sizes = [f"{parameters:,}", f"{size_mb:.1f}", f"{sum(plan.steps):,}"]
            rows.append([name, *sizes, str(plan.trainings * (1 + plan.baselines)), *figures])
        if not rows:
            return "There is no student to train."
        about = (
            f"All of it takes about {self.minutes:.0f} minutes. It is less where objectives need the teacher's logits "
            "alone, which are kept once for all students. Exports, and what is timed at the end, are not counted."
        )
        return "\n\n".join([markdown_table(heads, rows), *refused, about])
