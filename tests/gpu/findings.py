"""What a part of the check is given, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Setup:
    """Where and at what size to check.

    Args:
        device: the device under test; the CPU is what it is compared with.
        tiny: use models and data of a test's size.
        train_file: labelled text for the speed, or None for the embedded tweets.
        tokenizer: folder of its tokenizer, or None for the embedded one.
        folder: for files that nobody needs afterwards.
    """

    device: torch.device
    tiny: bool
    train_file: str | None
    tokenizer: str | None
    folder: Path

    @property
    def on_card(self) -> bool:
        """Check whether the device is a GPU."""
        return self.device.type == "cuda"


@dataclass
class Findings:
    """Checks that were held to a limit, and figures that have none."""

    checks: list[dict] = field(default_factory=list)
    figures: dict[str, float | str] = field(default_factory=dict)

    def at_most(self, name: str, found: float, limit: float) -> None:
        """Record a check that holds where `found <= limit`; NaN does not."""
        self.checks.append({"name": name, "found": rounded(found), "limit": f"<= {limit:g}", "ok": found <= limit})

    def at_least(self, name: str, found: float, limit: float) -> None:
        """Record a check that holds where `found >= limit`; NaN does not."""
        self.checks.append({"name": name, "found": rounded(found), "limit": f">= {limit:g}", "ok": found >= limit})

    def failed(self, name: str, found: str) -> None:
        """Record a check that does not hold."""
        self.checks.append({"name": name, "found": found, "limit": "", "ok": False})

    def not_run(self, name: str, why: str) -> None:
        """Record a check that this device can't make."""
        self.checks.append({"name": name, "found": why, "limit": "", "ok": None})

    def figure(self, name: str, value: float | str) -> None:
        """Record a figure."""
        self.figures[name] = rounded(value) if isinstance(value, (int, float)) else value


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")
