"""Commands that measure: evaluate, verify, cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nlpkd.cli.options import COLUMNS, DATA, MODELS, OUTPUT, Rows, arguments, command, option
from nlpkd.cli.screen import after_distilling, show_files, show_report, show_table, show_verification
from nlpkd.cli.settings import save_config

app = typer.Typer()


@command(app, *COLUMNS, "window_stride", "validation_split", "split")
def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            help="Paths or Hub ids, each as NAME=PATH too. Without a name, what is called teacher, student or "
            "baseline is that; the student is else the only other one, or, beside a teacher, the first."
        ),
    ],
    data: Rows,
    held_out: Annotated[
        str | None, option(DATA, "Other labelled rows, to fit temperatures (or thresholds) on.")
    ] = None,
    teacher: Annotated[str | None, option(MODELS, "The teacher, likewise.")] = None,
    baseline: Annotated[str | None, option(MODELS, "The undistilled baseline, likewise.")] = None,
    latency_grid: Annotated[
        bool, option(OUTPUT, "Time batches of 1, 8 and 32 at 16, 64 and 128 tokens, 100 passes each.")
    ] = False,
    latency_runs: Annotated[
        int | None,
        option(OUTPUT, "Timed passes a batch size and length, 30 if left out; 0 times nothing.", min=0),
    ] = None,
    memory: Annotated[bool, option(OUTPUT, "Measure each model's memory, in a process of its own.")] = False,
    output_dir: Annotated[Path | None, option(OUTPUT, "Where to save report.json, report.md and report.html.")] = None,
    examples: Annotated[
        int,
        option(OUTPUT, "Texts to show in report.html on which student and teacher differ most; never pushed."),
    ] = 0,
    **shared: Any,
) -> None:
    """Measure any number of models side by side on labelled rows: a student, its teacher, its baseline, and others.

    nlpkd evaluate teacher student student/onnx/model_int8.onnx --data test.csv --output-dir reports

    nlpkd evaluate teacher=runs/teacher student=runs/student pruned=runs/pruned --data test.csv --latency-grid
    """
    from nlpkd.pipeline.evaluate import LATENCY_GRID, name_models
    from nlpkd.pipeline.evaluate import evaluate as run

    given = arguments(context)
    named = name_models(given.pop("models"), teacher=teacher, baseline=baseline)
    roles: dict[str, Any] = {role: named.pop(role) for role in ("student", "teacher", "baseline") if role in named}
    timing: dict[str, Any] = LATENCY_GRID if given.pop("latency_grid") else {}
    run(**timing | given | roles, candidates=named, show=show_report)
    if output_dir is None:
        typer.echo("\nNothing was saved: with --output-dir FOLDER the whole report is.")
        return
    save_config(context, output_dir / "evaluate.yaml")
    # Only what is a folder is exported beside itself.
    following = after_distilling(roles["student"], given | roles)[: 2 if Path(roles["student"]).is_dir() else 1]
    show_files("The report is", output_dir, *following)


@command(app, *(each for each in COLUMNS if each != "max_length"), "window_stride", "validation_split", "split")
def verify(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A Hub id (id@revision), or the folder that a run left.")],
    data: Annotated[str | None, option(DATA, "The rows it was measured on, if they are not on the Hub.")] = None,
    teacher: Annotated[
        str | None, option(MODELS, "The teacher, to check the agreement with it too; the report's on the Hub.")
    ] = None,
    max_length: Annotated[int | None, option(DATA, "Longest text in tokens; the report's if left out.")] = None,
    unjudged: Annotated[bool, option(OUTPUT, "Show the figures too that are not judged, with the reason.")] = False,
    **shared: Any,
) -> None:
    """Measure a published student again, and say figure by figure whether its report and card hold.

    Exit status 1 when a claim does not hold.

    nlpkd verify USER/NAME@v1.0 --data test.csv
    """
    from nlpkd.pipeline.verify import verify as run

    given = arguments(context)
    unjudged = given.pop("unjudged")
    verification = run(**given)
    show_verification(verification, everything=unjudged)
    if not verification.holds:
        raise typer.Exit(1)


@command(app, "text_column", "text_pair_column", "label_column", "trust_remote_code")
def cascade(
    context: typer.Context,
    *,
    student: Annotated[Path, option(MODELS, "The student's folder, where cascade.json is written.")],
    teacher: Annotated[str, option(MODELS, "What answers where the student is unsure: a path or Hub id.")],
    data: Rows,
    target_agreement: Annotated[
        float | None, option(OUTPUT, "Least share of the student's answers that agree with the teacher's.")
    ] = None,
    target_accuracy: Annotated[
        float | None, option(OUTPUT, "Or the least share of all answers that are right, by the rows' labels.")
    ] = None,
    **shared: Any,
) -> None:
    """Choose when a student answers by itself and when its teacher is asked, on rows that neither was trained on.

    nlpkd cascade --student student --teacher teacher --data dev.csv --target-agreement 0.98
    """
    from nlpkd.pipeline.cascade import cascade as run

    record = run(**arguments(context))
    header, rows = record.cells()
    # Every fifth one, back from the chosen one; all of them are in the file.
    show_table(header, rows[::-5][::-1], record.verdict())
    show_files("The cascade is", student)
    typer.echo(f'nlpkd.load("{student}", fallback="{teacher}") answers by it.')
