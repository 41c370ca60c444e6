"""Commands that ship a student: compress, export, push, try."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nlpkd.cli.options import COLUMNS, DATA, MODELS, OUTPUT, Rows, arguments, command, option, typed
from nlpkd.cli.screen import (
    OF_THE_HUB,
    OF_TRAINING_ROWS,
    held_out_rows,
    reading,
    repository_of,
    show_files,
    show_report,
    show_table,
)
from nlpkd.cli.settings import save_config
from nlpkd.evaluation.report_text import flat
from nlpkd.utils.provenance import as_options

app = typer.Typer()

METHOD = "Method"


@command(app, *COLUMNS, "window_stride")
def compress(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A path or Hub id (id@revision).")],
    data: Rows,
    method: Annotated[
        str,
        option(
            METHOD,
            "prune-neurons, prune-heads, factorize-embeddings, factorize-linear, half or "
            "trim-vocabulary (to the words of --data).",
        ),
    ],
    output_dir: Annotated[Path, option(OUTPUT, "Where model, tokenizer and compression.json are saved.")],
    keep: Annotated[float | None, option(METHOD, "Share of the neurons or heads to keep.")] = None,
    intermediate_size: Annotated[int | None, option(METHOD, "Or how many neurons a layer keeps.")] = None,
    heads: Annotated[int | None, option(METHOD, "Or how many heads a layer keeps.")] = None,
    rank: Annotated[int | None, option(METHOD, "Rank of what is factorised.")] = None,
    energy: Annotated[float | None, option(METHOD, "Or the share of the squared weights that it keeps.")] = None,
    dtype: Annotated[str | None, option(METHOD, "bfloat16 (default) or float16, for half.")] = None,
    min_count: Annotated[int | None, option(METHOD, "Tokens that trim-vocabulary keeps occur so often.")] = None,
    **shared: Any,
) -> None:
    """Make a saved model smaller by one method; run it on its own output for the next.

    nlpkd compress student --method prune-neurons --keep 0.5 --data train.csv --output-dir smaller
    """
    from nlpkd.compression import compress as run

    given = arguments(context)
    result = run(**given)
    header, rows = result.cells()
    details = flat(result.records[-1]["details"])
    show_table(header, rows, result.verdict(), explained=details and f"How: {details}.")
    save_config(context, output_dir / "compress.yaml")
    # The rows of --data are those that it was made on.
    rows = ["--data", "HELD_OUT.csv", *as_options(typed(context, given), *reading(*OF_TRAINING_ROWS, *OF_THE_HUB))]
    both = [f"before={model}", f"student={output_dir}"]
    show_files("The model is", output_dir, ["evaluate", *both, *rows], ["export", output_dir, "--int8", *rows])


@command(app, *COLUMNS, "window_stride", "validation_split")
def export(
    context: typer.Context,
    student: Annotated[str, typer.Argument(help="Its folder; or a Hub id (id@revision), with --output-dir.")],
    data: Annotated[str | None, option(DATA, "Labelled rows to measure student and files on.")] = None,
    min_retention: Annotated[
        float | None,
        option(
            METHOD,
            "The least share of the student's headline metric on --data that a file must keep; 0.98 if left out.",
        ),
    ] = None,
    int8: Annotated[bool, option(METHOD, "Write onnx/model_int8.onnx too.")] = False,
    calibration: Annotated[
        str | None,
        option(DATA, "int8: labelled rows that fix the scales, such as the training data; else each batch does."),
    ] = None,
    per_channel: Annotated[bool, option(METHOD, "int8: a scale for each column of a weight.")] = True,
    embeddings: Annotated[bool, option(METHOD, "int8: the embedding tables too.")] = True,
    portable: Annotated[
        bool, option(METHOD, "int8: 7 bits, for x86 CPUs without VNNI.", "--portable/--no-portable", "--reduce-range")
    ] = False,
    output_dir: Annotated[Path | None, option(OUTPUT, "Another folder than the student's own.")] = None,
    **shared: Any,
) -> None:
    """Export a student to ONNX, compared with PyTorch text by text, and with --data by its quality.

    nlpkd export student --int8 --data test.csv --min-retention 0.98

    Exit status: 0, the files are in the student's folder; 2, bad input, or a file with other logits than PyTorch's;
    3, a file keeps less than --min-retention. With 2 and 3 no file is kept.
    """
    from nlpkd.pipeline.export import RetentionError, export_student
    from nlpkd.utils.disk.files import weight_files

    if min_retention is not None and data is None:
        raise ValueError(f"--min-retention {min_retention} is measured on labelled rows: give --data, or leave it out")
    given = arguments(context)
    try:
        result = export_student(**given)
    except RetentionError as error:
        typer.echo(f"nlpkd: {error}", err=True)
        raise typer.Exit(3) from error
    header, rows = result.cells()
    explained = "difference: the largest of any logit. agree: share of equal answers."
    if "portable" in header:
        explained += " portable: that share with --portable, which is for x86 CPUs without VNNI."
    show_table(header, rows, "" if result.report else result.verdict(), explained=explained)
    if result.report is not None:
        show_report(result.report, result.verdict())
    save_config(context, result.directory / "export.yaml")
    following: list[Any] = ["push", result.directory, "--repo-id", repository_of(result.directory)]
    if not weight_files(result.directory):
        # A push is of a whole student: in another folder than its own the files can be measured alone.
        rows = held_out_rows(given) or ["--data", "HELD_OUT.csv"]
        following = ["evaluate", f"student={result.directory / result.records[-1].file}", *rows]
    show_files("The ONNX files are", result.directory / "onnx", following)


@command(app)
def push(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="The folder that a run left.")],
    repo_id: Annotated[str, option(OUTPUT, "USER/NAME of the repository, made where missing.")],
    private: Annotated[bool | None, option(OUTPUT, "Make a new repository private or public.")] = None,
    revision: Annotated[str | None, option(OUTPUT, "Branch to push to.")] = None,
    create_pr: Annotated[bool, option(OUTPUT, "Open a pull request instead.")] = False,
    commit_message: Annotated[str, option(OUTPUT, "Title of the commit.")] = "Upload student distilled with nlpkd",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
    **shared: Any,
) -> None:
    """Push a saved student with tokenizer, card and report to the Hub.

    nlpkd push student --repo-id USER/NAME
    """
    from nlpkd.hub.push import files_to_delete, files_to_push, push_student

    if dry_run:
        target = {name: value for name, value in arguments(context).items() if name != "directory"}
        sent = files_to_push(directory, **target)
        deleted = files_to_delete(directory, names=sent, **target)
        typer.echo("\n".join(f"{size:>15,} bytes  {name}" for name, size in sent.items()))
        if deleted is None:
            typer.echo(f"{repo_id} can't be asked from here, so that what would be deleted there is not listed.")
        for name in deleted or []:
            typer.echo(f"{'deleted there':>21}  {name}")
        return
    typer.echo(push_student(**arguments(context)))


@command(app, *COLUMNS, "validation_split", name="try")
def try_student(
    context: typer.Context,
    student: Annotated[str, typer.Argument(help="Its folder, an ONNX file, or a Hub id (id@revision).")],
    teacher: Annotated[str | None, option(MODELS, "Its teacher, likewise, to answer beside it.")] = None,
    data: Annotated[
        str | None, option(DATA, "The rows that the report was measured on, to show those on which both differ.")
    ] = None,
    space: Annotated[
        str | None, option(OUTPUT, "Make a Space USER/NAME of the Hub instead, of models that are there.")
    ] = None,
    private: Annotated[bool | None, option(OUTPUT, "Make a new Space private or public.")] = None,
    port: Annotated[int | None, option(OUTPUT, "Of the page; a free one from 7860 on if left out.")] = None,
    browser: Annotated[bool, option(OUTPUT, "Open the page in a browser.")] = True,
    **shared: Any,
) -> None:
    """Open a page on this machine to type texts into: both answers, their probabilities and milliseconds.

    nlpkd try student --teacher teacher --data test.csv

    nlpkd try USER/STUDENT --teacher USER/TEACHER --space USER/NAME
    """
    from nlpkd.hub.space import make_space
    from nlpkd.serving.trial import make_trial

    if space is not None:
        if data is not None:
            raise ValueError("a Space shows no texts of data: leave --data out")
        pairs = shared["text_pair_column"] is not None
        typer.echo(f"The Space is {make_space(space, student, teacher, private=private, pairs=pairs)}.")
        return
    read_as = {name: value for name, value in arguments(context).items() if name in shared}
    page = make_trial(student, teacher, data, **read_as)
    from nlpkd.serving.page import LOCAL

    _, address, _ = page.launch(**LOCAL, server_port=port, inbrowser=browser, prevent_thread_lock=True)
    typer.echo(f"The page is at {address} on this machine alone; Ctrl-C ends it.")
    page.block_thread()
