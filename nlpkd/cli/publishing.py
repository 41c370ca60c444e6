"""Commands that ship a student: compress, export, push."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nlpkd.cli.options import (
    Config,
    DatasetConfig,
    DatasetRevision,
    Label,
    Length,
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
def compress(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A path or Hub id (id@revision).")],
    method: Annotated[
        str,
        typer.Option(
            help="prune-neurons, prune-heads, factorize-embeddings, factorize-linear, half or "
            "trim-vocabulary (to the words of --data)."
        ),
    ],
    data: Rows,
    output_dir: Annotated[Path, typer.Option(help="Where model, tokenizer and compression.json are saved.")],
    keep: Annotated[float | None, typer.Option(help="Share of the neurons or heads to keep.")] = None,
    intermediate_size: Annotated[int | None, typer.Option(help="Or how many neurons a layer keeps.")] = None,
    heads: Annotated[int | None, typer.Option(help="Or how many heads a layer keeps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of what is factorised.")] = None,
    energy: Annotated[float | None, typer.Option(help="Or the share of the squared weights that it keeps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (default) or float16, for half.")] = None,
    min_count: Annotated[int | None, typer.Option(help="Tokens that trim-vocabulary keeps occur so often.")] = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    max_length: Length = 128,
    dataset_config: DatasetConfig = None,
    dataset_revision: DatasetRevision = None,
    trust_remote_code: Remote = False,
    config: Config = None,
) -> None:
    """Make a saved model smaller by one method; run it on its own output for the next.

    nlpkd compress student --method prune-neurons --keep 0.5 --data train.csv --output-dir smaller
    """
    from nlpkd.compression import compress as run

    options = {
        "keep": keep,
        "intermediate_size": intermediate_size,
        "heads": heads,
        "rank": rank,
        "energy": energy,
        "dtype": dtype,
        "min_count": min_count,
    }
    result = run(
        model,
        method,
        data,
        output_dir=output_dir,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=column_of(label_column),
        max_length=max_length,
        dataset_config=dataset_config,
        dataset_revision=dataset_revision,
        trust_remote_code=trust_remote_code,
        **{name: value for name, value in options.items() if value is not None},
    )
    typer.echo(json.dumps(result.records[-1], indent=2))
    typer.echo(f"The model is in {result.output_dir}.")
    save_config(context, output_dir / "compress.yaml")


@app.command()
def export(
    context: typer.Context,
    student: Annotated[str, typer.Argument(help="Its folder; or a Hub id (id@revision), with --output-dir.")],
    int8: Annotated[bool, typer.Option(help="Write onnx/model_int8.onnx too.")] = False,
    data: Annotated[str | None, typer.Option(help="Labelled rows to measure student and files on.")] = None,
    min_retention: Annotated[
        float | None,
        typer.Option(
            help="The least share of the student's headline metric on --data that a file must keep; 0.98 if left out."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="int8: labelled rows that fix the scales, such as the training data; else each batch does."),
    ] = None,
    per_channel: Annotated[bool, typer.Option(help="int8: a scale for each column of a weight.")] = True,
    embeddings: Annotated[bool, typer.Option(help="int8: the embedding tables too.")] = True,
    reduce_range: Annotated[bool, typer.Option(help="int8: 7 bits, for CPUs without VNNI.")] = False,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    max_length: Length = 128,
    window_stride: Stride = None,
    dataset_config: DatasetConfig = None,
    dataset_revision: DatasetRevision = None,
    output_dir: Annotated[Path | None, typer.Option(help="Another folder than the student's own.")] = None,
    trust_remote_code: Remote = False,
    config: Config = None,
) -> None:
    """Export a student to ONNX, compared with PyTorch text by text, and with --data by its quality.

    nlpkd export student --int8 --data test.csv --min-retention 0.98

    Exit status: 0, the files are in the student's folder; 2, bad input, or a file with other logits than PyTorch's;
    3, a file keeps less than --min-retention. With 2 and 3 no file is kept.
    """
    from nlpkd.pipeline.export import RetentionError, export_student

    if min_retention is not None and data is None:
        raise ValueError(f"--min-retention {min_retention} is measured on labelled rows: give --data, or leave it out")
    chosen: dict[str, Any] = {"per_channel": per_channel, "embeddings": embeddings, "reduce_range": reduce_range}
    chosen |= {} if min_retention is None else {"min_retention": min_retention}
    try:
        result = export_student(
            student,
            int8=int8,
            data=data,
            calibration=calibration,
            output_dir=output_dir,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=column_of(label_column),
            max_length=max_length,
            window_stride=window_stride,
            dataset_config=dataset_config,
            dataset_revision=dataset_revision,
            trust_remote_code=trust_remote_code,
            **chosen,
        )
    except RetentionError as error:
        typer.echo(f"nlpkd: {error}", err=True)
        raise typer.Exit(3) from error
    for record in result.records:
        typer.echo(json.dumps(asdict(record)))
    if result.report is not None:
        typer.echo(result.report.to_markdown())
    else:
        typer.echo("No gate ran: what the files keep of the student's quality is measured with --data alone.")
    typer.echo(f"The files are in {result.directory / 'onnx'}.")
    save_config(context, result.directory / "export.yaml")


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="The folder that a run left.")],
    repo_id: Annotated[str, typer.Option(help="USER/NAME of the repository, made where missing.")],
    private: Annotated[bool | None, typer.Option(help="Make a new repository private or public.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    create_pr: Annotated[bool, typer.Option(help="Open a pull request instead.")] = False,
    commit_message: Annotated[str, typer.Option(help="Title of the commit.")] = "Upload student distilled with nlpkd",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
    config: Config = None,
) -> None:
    """Push a saved student with tokenizer, card and report to the Hub.

    nlpkd push student --repo-id USER/NAME
    """
    from nlpkd.hub.push import files_to_push, push_student

    if dry_run:
        typer.echo("\n".join(f"{size:>15,} bytes  {name}" for name, size in files_to_push(directory, repo_id).items()))
        return
    chosen: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr}
    typer.echo(push_student(directory, repo_id, commit_message=commit_message, **chosen))
