"""Commands that measure: evaluate, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlpkd.cli.options import (
    Config,
    DatasetConfig,
    DatasetRevision,
    Label,
    Length,
    OneSplit,
    Pair,
    Remote,
    Rows,
    Stride,
    Text,
    column_of,
    save_config,
)

app = typer.Typer()


@app.command()
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
    teacher: Annotated[str | None, typer.Option(help="The teacher, likewise.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The undistilled baseline, likewise.")] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Other labelled rows, to fit temperatures (or thresholds) on.")
    ] = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    max_length: Length = 128,
    window_stride: Stride = None,
    dataset_config: DatasetConfig = None,
    dataset_revision: DatasetRevision = None,
    split: OneSplit = None,
    latency_grid: Annotated[
        bool, typer.Option(help="Time batches of 1, 8 and 32 at 16, 64 and 128 tokens, 100 passes each.")
    ] = False,
    latency_runs: Annotated[
        int | None,
        typer.Option(min=0, help="Timed passes a batch size and length, 30 if left out; 0 times nothing."),
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure each model's memory, in a process of its own.")] = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where to save report.json, report.md and report.html.")
    ] = None,
    examples: Annotated[
        int, typer.Option(help="Texts to show in report.html on which student and teacher differ most; never pushed.")
    ] = 0,
    trust_remote_code: Remote = False,
    config: Config = None,
) -> None:
    """Measure any number of models side by side on labelled rows: a student, its teacher, its baseline, and others.

    nlpkd evaluate teacher student student/onnx/model_int8.onnx --data test.csv --output-dir reports

    nlpkd evaluate teacher=runs/teacher student=runs/student pruned=runs/pruned --data test.csv --latency-grid
    """
    from nlpkd.pipeline.evaluate import LATENCY_GRID, name_models
    from nlpkd.pipeline.evaluate import evaluate as run

    named = name_models(models, teacher=teacher, baseline=baseline)
    timing = (LATENCY_GRID if latency_grid else {}) | ({} if latency_runs is None else {"latency_runs": latency_runs})
    report = run(
        named.pop("student"),
        data,
        teacher=named.pop("teacher", None),
        baseline=named.pop("baseline", None),
        candidates=named,
        held_out=held_out,
        output_dir=output_dir,
        examples=examples,
        memory=memory,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=column_of(label_column),
        max_length=max_length,
        window_stride=window_stride,
        dataset_config=dataset_config,
        dataset_revision=dataset_revision,
        split=split,
        trust_remote_code=trust_remote_code,
        **timing,
    )
    typer.echo(report.to_markdown())
    if output_dir is not None:
        save_config(context, output_dir / "evaluate.yaml")


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="A Hub id (id@revision), or the folder that a run left.")],
    data: Annotated[str | None, typer.Option(help="The rows it was measured on, if they are not on the Hub.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher, to check the agreement with it too; the report's on the Hub.")
    ] = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    max_length: Annotated[int | None, typer.Option(help="Longest text in tokens; the report's if left out.")] = None,
    window_stride: Stride = None,
    dataset_config: DatasetConfig = None,
    dataset_revision: DatasetRevision = None,
    split: OneSplit = None,
    trust_remote_code: Remote = False,
    config: Config = None,
) -> None:
    """Measure a published student again, and say figure by figure whether its report and card hold.

    Exit status 1 when a claim does not hold.

    nlpkd verify USER/NAME@v1.0 --data test.csv
    """
    from nlpkd.pipeline.verify import verify as run

    verification = run(
        model,
        data,
        teacher=teacher,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=column_of(label_column),
        max_length=max_length,
        window_stride=window_stride,
        dataset_config=dataset_config,
        dataset_revision=dataset_revision,
        split=split,
        trust_remote_code=trust_remote_code,
    )
    typer.echo(verification.to_markdown())
    if not verification.holds:
        raise typer.Exit(1)
