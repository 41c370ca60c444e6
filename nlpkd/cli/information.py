"""Commands that tell: presets, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nlpkd.cli.options import command
from nlpkd.cli.screen import show_item

app = typer.Typer()


@app.command()
def presets() -> None:
    """List the presets of --objectives and the ways of --augment: what each does, its paper, and where it differs.

    nlpkd presets
    """
    from nlpkd.augment import WAYS
    from nlpkd.objectives.presets import PRESETS

    for name, preset in PRESETS.items():
        typer.echo(f"{name}: {preset.paper}")
        for number, stage in enumerate(preset.stages(), start=1):
            typer.echo(f"  stage {number}: {', '.join(objective.name for objective in stage.objectives)}")
        typer.echo(f"  {preset.differs}\n")
    for name, way in WAYS.items():
        typer.echo(f"--augment {name}: {way.paper}\n  {way.differs}\n")


@command(app)
def doctor(
    directory: Annotated[Path, typer.Argument(help="Where a run would write.")] = Path("."), **shared: Any
) -> None:
    """Check this machine: versions, devices, bf16, the Hub and the rights of the token, disk, cores and threads.

    Exit status 1 when a run can't work here. The token itself is never shown.

    nlpkd doctor
    """
    from nlpkd.cli.doctor import examine

    findings = examine(directory)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark = {True: "ok", False: "NO", None: "--"}[finding.ok]
        advice = f" ({finding.advice})" if finding.advice and finding.ok is not True else ""
        show_item(f"{mark}  {finding.check:<{width}}  ", f"{finding.found}{advice}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)
