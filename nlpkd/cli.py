"""The command line: parse, call, print."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="nlpkd",
    help="Distil a fine-tuned text classifier into a small, fast student, and measure what it cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Text = Annotated[str | None, typer.Option(help="Column of the text; recognised by common names if left out.")]
Pair = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
Label = Annotated[
    list[str] | None,
    typer.Option(help="Column of the label; recognised by common names if left out. Several: a 0 or 1 each."),
]
Task = Annotated[
    str | None, typer.Option(help="The task, where the labels should not say it, by the name config.problem_type has.")
]
Weights = Annotated[str | None, typer.Option(help="'balanced': rare classes count as much as common ones.")]
Rows = Annotated[str, typer.Option(help="csv, tsv, json, jsonl or parquet file, or a Hub id (id@revision).")]
MaybeRows = Annotated[str | None, typer.Option(help="Held-out rows, likewise.")]
Length = Annotated[int, typer.Option(help="Longest text in tokens; longer ones are truncated, and counted.")]
Stride = Annotated[
    int | None, typer.Option(help="Cut longer texts into windows that share so many tokens, instead of truncating.")
]
Streaming = Annotated[bool, typer.Option("--streaming", help="Read the train file as it is needed.")]
Split = Annotated[float | None, typer.Option(help="Share of the training rows to hold out instead of --validation.")]
Epochs = Annotated[float, typer.Option(help="Passes over the training rows.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Batch = Annotated[int, typer.Option("--batch-size", help="Rows of a batch on one device.")]
Seed = Annotated[int, typer.Option(help="Of weights, order of batches and dropout.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.")]
Resume = Annotated[str | None, typer.Option(help="True, or a checkpoint's folder.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="Any other DistillationConfig field: --set weight_decay=0.01.")
]


@app.command("train-teacher")
def train_teacher(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Backbone: a path or Hub id (id@revision).")],
    train: Rows,
    output_dir: Annotated[Path, typer.Option(help="Where the teacher is saved.")],
    validation: MaybeRows = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    problem_type: Task = None,
    class_weights: Weights = None,
    max_length: Length = 128,
    window_stride: Stride = None,
    streaming: Streaming = False,
    validation_split: Split = None,
    num_train_epochs: Epochs = 3,
    learning_rate: Rate = 5e-5,
    per_device_train_batch_size: Batch = 32,
    seed: Seed = 42,
    resume_from_checkpoint: Resume = None,
    trust_remote_code: Remote = False,
    settings: Setting = None,
) -> None:
    """Fine-tune a backbone on gold labels: the first step where there is no fine-tuned teacher.

    nlpkd train-teacher --model google-bert/bert-base-uncased --train train.csv --validation dev.csv --output-dir out
    """
    from nlpkd.pipeline import train_teacher as run

    result = run(
        model,
        train,
        validation,
        output_dir=output_dir,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=_column(label_column),
        problem_type=problem_type,
        class_weights=class_weights,
        max_length=max_length,
        window_stride=window_stride,
        streaming=streaming,
        validation_split=validation_split,
        trust_remote_code=trust_remote_code,
        num_train_epochs=num_train_epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=per_device_train_batch_size,
        seed=seed,
        resume_from_checkpoint=resume_from_checkpoint,
        **_parse(settings, context.params),
    )
    typer.echo(json.dumps(result.metrics, indent=2))
    typer.echo(f"The teacher is in {result.output_dir}.")


@app.command()
def distill(
    context: typer.Context,
    train: Rows,
    output_dir: Annotated[Path, typer.Option(help="Where student, card and report are saved.")],
    teacher: Annotated[
        list[str] | None, typer.Option(help="A path or Hub id (id@revision); several: average.")
    ] = None,
    student: Annotated[
        str,
        typer.Option(
            help="layers:N or a shape like tinybert-4l-312 (of the teacher), bilstm, textcnn, a path, or a Hub id."
        ),
    ] = "layers:3",
    validation: MaybeRows = None,
    test: MaybeRows = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    soft_label_column: Annotated[
        str | None, typer.Option(help="Column of soft labels, in place of a teacher.")
    ] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help='"trim": keep the embeddings of the training text\'s tokens alone.')
    ] = None,
    embedding_size: Annotated[
        int | None, typer.Option(help="Width of a factorised embedding table, of layers of the teacher.")
    ] = None,
    objectives: Annotated[str, typer.Option(help="A preset; `nlpkd presets` lists them.")] = "layerwise",
    baseline: Annotated[bool, typer.Option("--baseline", help="Train the undistilled baseline too.")] = False,
    num_seeds: Annotated[int, typer.Option(help="Seeds to train student and baseline with.")] = 1,
    problem_type: Task = None,
    class_weights: Weights = None,
    max_length: Length = 128,
    window_stride: Stride = None,
    streaming: Streaming = False,
    validation_split: Split = None,
    num_train_epochs: Epochs = 3,
    learning_rate: Rate = 5e-5,
    per_device_train_batch_size: Batch = 32,
    seed: Seed = 42,
    resume_from_checkpoint: Resume = None,
    trust_remote_code: Remote = False,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", help="Push the student at the end.")] = False,
    hub_model_id: Annotated[str | None, typer.Option(help="USER/NAME of the repository.")] = None,
    settings: Setting = None,
) -> None:
    """Distil a teacher into a student, measure it, and leave student, card and report in one folder.

    nlpkd distill --teacher teacher --student layers:3 --train reviews.csv --validation dev.csv --output-dir student
    """
    from nlpkd.pipeline import distill as run

    result = run(
        teacher,
        student,
        train,
        validation,
        test,
        output_dir=output_dir,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=_column(label_column),
        soft_label_column=soft_label_column,
        vocabulary=vocabulary,
        embedding_size=embedding_size,
        objectives=objectives,
        baseline=baseline,
        num_seeds=num_seeds,
        problem_type=problem_type,
        class_weights=class_weights,
        max_length=max_length,
        window_stride=window_stride,
        streaming=streaming,
        validation_split=validation_split,
        trust_remote_code=trust_remote_code,
        num_train_epochs=num_train_epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=per_device_train_batch_size,
        seed=seed,
        resume_from_checkpoint=resume_from_checkpoint,
        push_to_hub=push_to_hub,
        hub_model_id=hub_model_id,
        **_parse(settings, context.params),
    )
    typer.echo(result.report.to_markdown())
    typer.echo(f"The student is in {result.output_dir}.")


@app.command()
def tune(
    context: typer.Context,
    teacher: Annotated[str, typer.Option(help="A path or Hub id (id@revision).")],
    train: Rows,
    output_dir: Annotated[Path, typer.Option(help="Where the trials and tuning.json are kept.")],
    validation: MaybeRows = None,
    search: Annotated[
        list[str] | None,
        typer.Option(help="SETTING=LOW..HIGH or SETTING=A,B,C; forward_kl.temperature is an objective's setting."),
    ] = None,
    layers: Annotated[list[int] | None, typer.Option(help="Numbers of layers to choose from; 3 if left out.")] = None,
    objectives: Annotated[str, typer.Option(help="A preset of one stage.")] = "hinton",
    n_trials: Annotated[int, typer.Option(help="How many settings to try; a search goes on where it stopped.")] = 20,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    problem_type: Task = None,
    max_length: Length = 128,
    validation_split: Split = None,
    num_train_epochs: Epochs = 3,
    per_device_train_batch_size: Batch = 32,
    seed: Seed = 42,
    settings: Setting = None,
) -> None:
    """Search for settings on held-out rows, with Optuna; report a student on other rows than those.

    nlpkd tune --teacher teacher --train train.csv --validation-split 0.1 --search learning_rate=1e-5..5e-4
    --search forward_kl.temperature=1,2,4,8 --layers 2 --layers 3 --output-dir tuning
    """
    from nlpkd.tuning import tune as run

    asked = dict(_searched(entry) for entry in search or [])
    result = run(
        teacher,
        train,
        validation,
        search=asked or None,
        layers=layers or (3,),
        objectives=objectives,
        n_trials=n_trials,
        output_dir=output_dir,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=_column(label_column),
        problem_type=problem_type,
        max_length=max_length,
        validation_split=validation_split,
        num_train_epochs=num_train_epochs,
        per_device_train_batch_size=per_device_train_batch_size,
        seed=seed,
        **_parse(settings, context.params),
    )
    typer.echo(json.dumps({result.metric: result.value} | result.best, indent=2))
    typer.echo(f"All {len(result.trials)} trials are in {output_dir / 'tuning.json'}.")


@app.command()
def evaluate(
    student: Annotated[str, typer.Argument(help="A path or Hub id (id@revision), or an ONNX file.")],
    data: Rows,
    teacher: Annotated[str | None, typer.Option(help="The teacher, likewise.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The undistilled baseline, likewise.")] = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    max_length: Length = 128,
    window_stride: Stride = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where to save report.json and report.md.")] = None,
    trust_remote_code: Remote = False,
) -> None:
    """Measure a student, and beside it its teacher and its baseline, on labelled rows.

    nlpkd evaluate student --teacher teacher --data test.csv --output-dir reports
    """
    from nlpkd.pipeline import evaluate as run

    report = run(
        student,
        data,
        teacher=teacher,
        baseline=baseline,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=_column(label_column),
        max_length=max_length,
        window_stride=window_stride,
        trust_remote_code=trust_remote_code,
    )
    typer.echo(report.to_markdown())
    if output_dir is not None:
        report.save(output_dir)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="A path or Hub id (id@revision).")],
    method: Annotated[
        str,
        typer.Option(
            help="prune-neurons, prune-heads, prune-magnitude, factorize-embeddings, factorize-linear or half."
        ),
    ],
    data: Rows,
    output_dir: Annotated[Path, typer.Option(help="Where model, tokenizer and compression.json are saved.")],
    keep: Annotated[float | None, typer.Option(help="Share of the neurons or heads to keep.")] = None,
    intermediate_size: Annotated[int | None, typer.Option(help="Or how many neurons a layer keeps.")] = None,
    heads: Annotated[int | None, typer.Option(help="Or how many heads a layer keeps.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of weights that prune-magnitude zeroes.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of what is factorised.")] = None,
    energy: Annotated[float | None, typer.Option(help="Or the share of the squared weights that it keeps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (default) or float16, for half.")] = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    max_length: Length = 128,
    trust_remote_code: Remote = False,
) -> None:
    """Make a saved model smaller by one method; run it on its own output for the next.

    nlpkd compress student --method prune-neurons --keep 0.5 --data train.csv --output-dir smaller
    """
    from nlpkd.compression import compress as run

    options = {
        "keep": keep,
        "intermediate_size": intermediate_size,
        "heads": heads,
        "sparsity": sparsity,
        "rank": rank,
        "energy": energy,
        "dtype": dtype,
    }
    result = run(
        model,
        method,
        data,
        output_dir=output_dir,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=_column(label_column),
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        **{name: value for name, value in options.items() if value is not None},
    )
    typer.echo(json.dumps(result.records[-1], indent=2))
    typer.echo(f"The model is in {result.output_dir}.")


@app.command()
def export(
    student: Annotated[str, typer.Argument(help="Its folder; or a Hub id (id@revision), with --output-dir.")],
    int8: Annotated[bool, typer.Option("--int8", help="Write onnx/model_int8.onnx too.")] = False,
    data: Annotated[str | None, typer.Option(help="Labelled rows to measure student and files on.")] = None,
    min_retention: Annotated[
        float, typer.Option(help="The least share of the student's headline metric on --data that a file must keep.")
    ] = 0.98,
    per_channel: Annotated[bool, typer.Option(help="int8: a scale for each column of a weight.")] = True,
    embeddings: Annotated[bool, typer.Option(help="int8: the embedding tables too.")] = True,
    reduce_range: Annotated[bool, typer.Option("--reduce-range", help="int8: 7 bits, for CPUs without VNNI.")] = False,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    max_length: Length = 128,
    window_stride: Stride = None,
    output_dir: Annotated[Path | None, typer.Option(help="Another folder than the student's own.")] = None,
    trust_remote_code: Remote = False,
) -> None:
    """Export a student to ONNX, compared with PyTorch text by text, and with --data by its quality.

    nlpkd export student --int8 --data test.csv --min-retention 0.98

    Exit status: 0, the files are in the student's folder; 2, bad input, or a file with other logits than PyTorch's;
    3, a file keeps less than --min-retention. With 2 and 3 no file is kept.
    """
    from nlpkd.exporting import RetentionError, export_student

    chosen: dict[str, Any] = {"per_channel": per_channel, "embeddings": embeddings, "reduce_range": reduce_range}
    try:
        result = export_student(
            student,
            int8=int8,
            data=data,
            min_retention=min_retention,
            output_dir=output_dir,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=_column(label_column),
            max_length=max_length,
            window_stride=window_stride,
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
    typer.echo(f"The files are in {result.directory / 'onnx'}.")


@app.command()
def presets() -> None:
    """List the presets of --objectives: what each trains on, from which paper, and where it differs.

    nlpkd presets
    """
    from nlpkd.objectives.presets import PRESETS

    for name, preset in PRESETS.items():
        typer.echo(f"{name}: {preset.paper}")
        for number, stage in enumerate(preset.stages(), start=1):
            typer.echo(f"  stage {number}: {', '.join(objective.name for objective in stage.objectives)}")
        typer.echo(f"  {preset.differs}\n")


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="The folder that a run left.")],
    repo_id: Annotated[str, typer.Option(help="USER/NAME of the repository, made where missing.")],
    private: Annotated[bool | None, typer.Option(help="Make a new repository private or public.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
) -> None:
    """Push a saved student with tokenizer, card and report to the Hub.

    nlpkd push student --repo-id USER/NAME
    """
    from nlpkd.hub import push_student

    typer.echo(push_student(directory, repo_id, private=private, revision=revision, create_pr=create_pr))


def _column(columns: list[str] | None) -> Any:
    return columns[0] if columns is not None and len(columns) == 1 else columns


def _searched(entry: str) -> tuple[str, list[Any]]:
    name, equals, values = entry.partition("=")
    parts = values.split("..") if ".." in values else values.split(",")
    if not equals or not values or (".." in values and len(parts) != 2):
        raise typer.BadParameter(f"{entry!r} is no SETTING=LOW..HIGH or SETTING=A,B,C", param_hint="--search")
    return name, [_value(part) for part in parts]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _parse(settings: list[str] | None, options: Container[str]) -> dict[str, Any]:
    from nlpkd.config import DistillationConfig

    parsed = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"{setting!r} is no FIELD=VALUE", param_hint="--set")
        if name in options or name not in DistillationConfig.__dataclass_fields__:
            reason = "has an option of its own" if name in options else "is no field of DistillationConfig"
            raise typer.BadParameter(f"{name!r} {reason}", param_hint="--set")
        parsed[name] = _value(value)
    return parsed


def main() -> None:
    """Run the command line; what a user can mend is one line on standard error, and exit status 2."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        typer.echo(f"nlpkd: {' '.join(str(error).split())}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
