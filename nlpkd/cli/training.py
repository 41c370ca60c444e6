"""Commands that train: train-teacher, cache, distill, tune."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from nlpkd.cli.options import (
    Batch,
    Config,
    DatasetConfig,
    DatasetRevision,
    DryRun,
    Epochs,
    Label,
    Length,
    MaybeRows,
    Pair,
    Rate,
    Remote,
    Resume,
    Rows,
    Seed,
    Setting,
    Split,
    Streaming,
    Stride,
    Task,
    TeacherDtype,
    Text,
    Vocabulary,
    Weights,
    column_of,
    over_file,
    parse_settings,
    run_config,
    value_of,
)

app = typer.Typer()


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
    fresh_pooler: Annotated[
        bool, typer.Option(help="Draw the pooler anew: of a backbone that was pretrained without it.")
    ] = False,
    max_length: Length = 128,
    window_stride: Stride = None,
    streaming: Streaming = False,
    validation_split: Split = None,
    dataset_config: DatasetConfig = None,
    dataset_revision: DatasetRevision = None,
    num_train_epochs: Epochs = 3,
    learning_rate: Rate = 5e-5,
    per_device_train_batch_size: Batch = 32,
    seed: Seed = 42,
    resume_from_checkpoint: Resume = None,
    trust_remote_code: Remote = False,
    dry_run: DryRun = False,
    settings: Setting = None,
    config: Config = None,
) -> None:
    """Fine-tune a backbone on gold labels: the first step where there is no fine-tuned teacher.

    nlpkd train-teacher --model google-bert/bert-base-uncased --train train.csv --validation dev.csv --output-dir out
    """
    options: dict[str, Any] = {
        "model": model,
        "train": train,
        "validation": validation,
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": column_of(label_column),
        "problem_type": problem_type,
        "class_weights": class_weights,
        "fresh_pooler": fresh_pooler,
        "max_length": max_length,
        "window_stride": window_stride,
        "streaming": streaming,
        "validation_split": validation_split,
        "dataset_config": dataset_config,
        "dataset_revision": dataset_revision,
        "trust_remote_code": trust_remote_code,
    }
    further = parse_settings(settings, context.params) | {
        "num_train_epochs": num_train_epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": per_device_train_batch_size,
        "seed": seed,
        "resume_from_checkpoint": resume_from_checkpoint,
    }
    if dry_run:
        from nlpkd.config import DistillationConfig
        from nlpkd.pipeline.dry_run import plan_teacher

        typer.echo(plan_teacher(DistillationConfig(output_dir=str(output_dir), **further), **options).to_text())
        return
    from nlpkd.pipeline.distill import train_teacher as run

    with run_config(context, output_dir):
        result = run(output_dir=output_dir, **options, **further)
    typer.echo(json.dumps(result.metrics, indent=2))
    typer.echo(f"The teacher is in {result.output_dir}.")


@app.command()
def cache(
    context: typer.Context,
    teacher: Annotated[list[str], typer.Option(help="A path or Hub id (id@revision); several: average.")],
    train: Rows,
    output_dir: Annotated[Path, typer.Option(help="Where its outputs are kept.")],
    student: Annotated[str, typer.Option(help="As for distill, which it must be the same as.")] = "layers:3",
    validation: MaybeRows = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    problem_type: Task = None,
    max_length: Length = 128,
    window_stride: Stride = None,
    validation_split: Split = None,
    dataset_config: DatasetConfig = None,
    dataset_revision: DatasetRevision = None,
    vocabulary: Vocabulary = None,
    teacher_dtype: TeacherDtype = "float32",
    seed: Seed = 42,
    trust_remote_code: Remote = False,
    settings: Setting = None,
    config: Config = None,
) -> None:
    """Run a teacher once on the rows of a distillation to come, for objectives that need its logits alone.

    nlpkd cache --teacher teacher --train train.csv --validation dev.csv --output-dir outputs

    nlpkd distill ... --objectives hinton --set teacher_cache_dir=outputs
    """
    from nlpkd.config import DistillationConfig
    from nlpkd.pipeline.distill import cache_for_distillation

    args = DistillationConfig(output_dir=str(output_dir), seed=seed, **parse_settings(settings, context.params))
    with run_config(context, output_dir):
        rows = cache_for_distillation(
            args,
            teacher=teacher,
            student=student,
            train=train,
            validation=validation,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=column_of(label_column),
            problem_type=problem_type,
            max_length=max_length,
            window_stride=window_stride,
            validation_split=validation_split,
            dataset_config=dataset_config,
            dataset_revision=dataset_revision,
            vocabulary=vocabulary,
            teacher_dtype=teacher_dtype,
            trust_remote_code=trust_remote_code,
        )
    typer.echo(f"The teacher's logits on {len(rows):,} rows are in {output_dir}.")


@app.command()
def distill(
    context: typer.Context,
    train: Rows,
    output_dir: Annotated[Path, typer.Option(help="Where student, card and report are saved.")],
    teacher: Annotated[
        list[str] | None, typer.Option(help="A path or Hub id (id@revision); several: average.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="layers:N or a shape like tinybert-4l-312 (of the teacher), bilstm, textcnn, a path, or a Hub id; "
            "layers:3 unless there is a budget."
        ),
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Or the most that runs in so many milliseconds here (one text, 32 tokens).")
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Or the most that fits into so many megabytes.")] = None,
    validation: MaybeRows = None,
    test: MaybeRows = None,
    text_column: Text = None,
    text_pair_column: Pair = None,
    label_column: Label = None,
    soft_label_column: Annotated[
        str | None, typer.Option(help="Column of soft labels, in place of a teacher.")
    ] = None,
    vocabulary: Vocabulary = None,
    embedding_size: Annotated[
        int | None, typer.Option(help="Width of a factorised embedding table, of layers of the teacher.")
    ] = None,
    objectives: Annotated[str, typer.Option(help="A preset; `nlpkd presets` lists them.")] = "layerwise",
    baseline: Annotated[bool, typer.Option(help="Train the undistilled baseline too.")] = False,
    num_seeds: Annotated[int, typer.Option(help="Seeds to train student and baseline with.")] = 1,
    problem_type: Task = None,
    class_weights: Weights = None,
    max_length: Length = 128,
    window_stride: Stride = None,
    streaming: Streaming = False,
    validation_split: Split = None,
    dataset_config: DatasetConfig = None,
    dataset_revision: DatasetRevision = None,
    num_train_epochs: Epochs = 3,
    learning_rate: Rate = 5e-5,
    per_device_train_batch_size: Batch = 32,
    seed: Seed = 42,
    resume_from_checkpoint: Resume = None,
    teacher_dtype: TeacherDtype = "float32",
    trust_remote_code: Remote = False,
    push_to_hub: Annotated[bool, typer.Option(help="Push the student at the end.")] = False,
    hub_model_id: Annotated[str | None, typer.Option(help="USER/NAME of the repository.")] = None,
    dry_run: DryRun = False,
    settings: Setting = None,
    config: Config = None,
) -> None:
    """Distil a teacher into a student, measure it, and leave student, card and report in one folder.

    nlpkd distill --teacher teacher --student layers:3 --train reviews.csv --validation dev.csv --output-dir student
    """
    further = parse_settings(settings, context.params)
    options: dict[str, Any] = {
        "teacher": teacher or None,
        "student": student,
        "max_latency_ms": max_latency_ms,
        "max_size_mb": max_size_mb,
        "train": train,
        "validation": validation,
        "test": test,
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": column_of(label_column),
        "soft_label_column": soft_label_column,
        "vocabulary": vocabulary,
        "embedding_size": embedding_size,
        "objectives": objectives,
        "problem_type": problem_type,
        "class_weights": class_weights,
        "max_length": max_length,
        "window_stride": window_stride,
        "streaming": streaming,
        "validation_split": validation_split,
        "dataset_config": dataset_config,
        "dataset_revision": dataset_revision,
        "teacher_dtype": teacher_dtype,
        "trust_remote_code": trust_remote_code,
    }
    further |= {
        "num_train_epochs": num_train_epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": per_device_train_batch_size,
        "seed": seed,
        "resume_from_checkpoint": resume_from_checkpoint,
        "push_to_hub": push_to_hub,
        "hub_model_id": hub_model_id,
    }
    if dry_run:
        from nlpkd.config import DistillationConfig
        from nlpkd.pipeline.dry_run import plan_distillation

        args = DistillationConfig(output_dir=str(output_dir), **further)
        typer.echo(plan_distillation(args, trainings=num_seeds, baseline=baseline, **options).to_text())
        return
    from nlpkd.pipeline.distill import distill as run

    with run_config(context, output_dir):
        result = run(output_dir=output_dir, num_seeds=num_seeds, baseline=baseline, **options, **further)
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
        typer.Option(
            callback=over_file,
            help="SETTING=LOW..HIGH or SETTING=A,B,C; forward_kl.temperature is an objective's setting.",
        ),
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
    dataset_config: DatasetConfig = None,
    dataset_revision: DatasetRevision = None,
    num_train_epochs: Epochs = 3,
    per_device_train_batch_size: Batch = 32,
    seed: Seed = 42,
    dry_run: DryRun = False,
    settings: Setting = None,
    config: Config = None,
) -> None:
    """Search for settings on held-out rows, with Optuna; report a student on other rows than those.

    nlpkd tune --teacher teacher --train train.csv --validation-split 0.1 --search learning_rate=1e-5..5e-4
    --search forward_kl.temperature=1,2,4,8 --layers 2 --layers 3 --output-dir tuning
    """
    depths = layers or [3]
    options: dict[str, Any] = {
        "teacher": teacher,
        "train": train,
        "validation": validation,
        "objectives": objectives,
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": column_of(label_column),
        "problem_type": problem_type,
        "max_length": max_length,
        "validation_split": validation_split,
        "dataset_config": dataset_config,
        "dataset_revision": dataset_revision,
    }
    further = parse_settings(settings, context.params) | {
        "num_train_epochs": num_train_epochs,
        "per_device_train_batch_size": per_device_train_batch_size,
        "seed": seed,
    }
    asked = dict(_searched(entry) for entry in search or [])
    if dry_run:
        from nlpkd.config import DistillationConfig
        from nlpkd.pipeline.dry_run import plan_distillation
        from nlpkd.pipeline.tune import check_search

        check_search(asked, objectives)
        # The dearest trial: the deepest student, for as long as any. None of them is kept.
        further["num_train_epochs"] = max(asked.get("num_train_epochs", [num_train_epochs]))
        args = DistillationConfig(output_dir=str(output_dir), **{"save_strategy": "no"} | further)
        plan = plan_distillation(args, trainings=n_trials, student=f"layers:{max(depths)}", **options)
        typer.echo(replace(plan, disk_mb=0.0).to_text())
        return
    from nlpkd.pipeline.tune import tune as run

    with run_config(context, output_dir):
        result = run(
            search=asked or None, layers=depths, n_trials=n_trials, output_dir=output_dir, **options, **further
        )
    typer.echo(json.dumps({result.metric: result.value} | result.best, indent=2))
    typer.echo(f"All {len(result.trials)} trials are in {output_dir / 'tuning.json'}.")


def _searched(entry: str) -> tuple[str, list[Any]]:
    name, equals, values = entry.partition("=")
    parts = values.split("..") if ".." in values else values.split(",")
    if not equals or not values or (".." in values and len(parts) != 2):
        raise typer.BadParameter(f"{entry!r} is no SETTING=LOW..HIGH or SETTING=A,B,C", param_hint="--search")
    return name, [value_of(part) for part in parts]
