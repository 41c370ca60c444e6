"""Commands that train: train-teacher, cache, distill, frontier, tune."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from nlpkd.cli.labelling import DecisionModel, DecisionURL, Gold, Question, taught_by_answers
from nlpkd.cli.options import (
    DATA,
    LIMITS,
    MODELS,
    OUTPUT,
    SCHEDULE,
    TRAINED,
    TRAINING,
    Rows,
    arguments,
    command,
    option,
    typed,
)
from nlpkd.cli.parsing import TrainingCommand, value_of
from nlpkd.cli.screen import after_distilling, reading, show_files, show_frontier, show_report, show_table
from nlpkd.cli.settings import as_settings, over_file, run_config, training_config
from nlpkd.utils.provenance import as_options

app = typer.Typer()


@command(
    app, *TRAINED, "class_weights", "window_stride", "streaming", "trust_remote_code", "learning_rate",
    "resume_from_checkpoint", *SCHEDULE, "dry_run", name="train-teacher", cls=TrainingCommand,
)  # fmt: skip
def train_teacher(
    context: typer.Context,
    *,
    train: Rows,
    model: Annotated[str, option(MODELS, "Backbone: a path or Hub id (id@revision).")],
    fresh_pooler: Annotated[
        bool, option(MODELS, "Draw the pooler anew: of a backbone that was pretrained without it.")
    ] = False,
    output_dir: Annotated[Path, option(OUTPUT, "Where the teacher is saved.")],
    **shared: Any,
) -> None:
    """Fine-tune a backbone on gold labels: the first step where there is no fine-tuned teacher.

    nlpkd train-teacher --model google-bert/bert-base-uncased --train train.csv --validation dev.csv --output-dir out
    """
    given = arguments(context)
    if shared["dry_run"]:
        from nlpkd.pipeline.dry_run import plan_teacher

        args, options = training_config(given)
        typer.echo(plan_teacher(args, **options).to_text())
        return
    from nlpkd.pipeline.train_teacher import train_teacher as run

    with run_config(context, given):
        result = run(**given)
    show_table(*result.cells(), result.verdict())
    rows = as_options(typed(context, given), "train", "validation", *reading(), "class_weights", "seed")
    student = ["--baseline", "--output-dir", beside(output_dir, "student")]
    show_files("The teacher is", output_dir, ["distill", "--teacher", output_dir, *rows, *student])


@command(
    app,
    *TRAINED,
    "window_stride",
    "vocabulary",
    "teacher_dtype",
    "trust_remote_code",
    "seed",
    "help_all",
    cls=TrainingCommand,
)
def cache(
    context: typer.Context,
    *,
    train: Rows,
    teacher: Annotated[list[str], option(MODELS, "A path, Hub id (id@revision) or ONNX file; several: average.")],
    student: Annotated[str | None, option(MODELS, "As for distill, which it must be the same as.")] = None,
    output_dir: Annotated[Path, option(OUTPUT, "Where its outputs are kept.")],
    **shared: Any,
) -> None:
    """Run a teacher once on the rows of a distillation to come, for objectives that need its logits alone.

    nlpkd cache --teacher teacher --train train.csv --validation dev.csv --output-dir outputs

    nlpkd distill ... --objectives hinton --teacher-cache-dir outputs
    """
    from nlpkd.pipeline.cache import cache_for_distillation

    given = arguments(context)
    args, options = training_config(given)
    with run_config(context, given):
        rows = cache_for_distillation(args, **options)
    typer.echo(f"The teacher's logits on {len(rows):,} rows are in {output_dir}.")


@command(
    app, *TRAINED, "class_weights", "window_stride", "streaming", "vocabulary", "teacher_dtype", "trust_remote_code",
    "learning_rate", "resume_from_checkpoint", *LIMITS, *SCHEDULE, "dry_run", cls=TrainingCommand,
)  # fmt: skip
def distill(
    context: typer.Context,
    *,
    train: Rows,
    teacher: Annotated[
        list[str] | None, option(MODELS, "A path, Hub id (id@revision) or ONNX file; several: average.")
    ] = None,
    student: Annotated[
        str | None,
        option(
            MODELS,
            "layers:N, width:0.67 or a shape like tinybert-4l-312 (of the teacher), bilstm, textcnn, static, a path, "
            "or a Hub id; layers:3 unless there is a budget.",
        ),
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        option(MODELS, "Or the most that runs in so many milliseconds here (one text, 32 tokens)."),
    ] = None,
    max_size_mb: Annotated[float | None, option(MODELS, "Or the most that fits into so many megabytes.")] = None,
    ship: Annotated[
        bool, option(OUTPUT, "Trim the vocabulary, write onnx/model_int8.onnx, and measure that file too.")
    ] = False,
    embedding_size: Annotated[
        int | None, option(MODELS, "Width of a factorised embedding table, of layers of the teacher.")
    ] = None,
    start: Annotated[
        str, option(MODELS, "Layers of the teacher start as teacher (fine-tuned) or pretrained (before that).")
    ] = "teacher",
    backbone: Annotated[
        str | None, option(MODELS, "What the teacher was fine-tuned from, where its config does not say it.")
    ] = None,
    test: Annotated[str | None, option(DATA, "Rows that nothing is chosen on, to report on.")] = None,
    soft_label_column: Annotated[str | None, option(DATA, "Column of soft labels, in place of a teacher.")] = None,
    decision_model: DecisionModel = None,
    question: Question = None,
    decision_url: DecisionURL = None,
    gold: Gold = None,
    objectives: Annotated[
        str | None, option(TRAINING, "A preset of `nlpkd presets`; what suits the student if left out.")
    ] = None,
    baseline: Annotated[bool, option(TRAINING, "Train baselines on gold labels alone too.")] = False,
    num_seeds: Annotated[int, option(TRAINING, "Seeds to train student and baselines with.", min=1)] = 1,
    output_dir: Annotated[Path, option(OUTPUT, "Where student, card and report are saved.")],
    push_to_hub: Annotated[bool, option(OUTPUT, "Push the student at the end.")] = False,
    hub_model_id: Annotated[str | None, option(OUTPUT, "USER/NAME of the repository.")] = None,
    **shared: Any,
) -> None:
    """Distil a teacher into a student, measure it, and leave student, card and report in one folder.

    nlpkd distill --teacher teacher --student layers:3 --train reviews.csv --validation dev.csv --output-dir student
    """
    given = taught_by_answers(arguments(context), shared["dry_run"])
    if shared["dry_run"]:
        from nlpkd.pipeline.dry_run import plan_distillation

        args, options = training_config(given)
        planned = {"trainings": options.pop("num_seeds"), "learning_rate_is_given": "learning_rate" in given}
        typer.echo(plan_distillation(args, **planned, **options).to_text())
        return
    from nlpkd.pipeline.distill import distill as run

    with run_config(context, given):
        result = run(**given)
    show_report(result.report)
    show_files("The student is", output_dir, *after_distilling(output_dir, given))


@command(
    app, *TRAINED, "streaming", "vocabulary", "teacher_dtype", "trust_remote_code", "class_weights", *SCHEDULE,
    "dry_run", cls=TrainingCommand,
)  # fmt: skip
def frontier(
    context: typer.Context,
    *,
    train: Rows,
    teacher: Annotated[str, option(MODELS, "A path or Hub id (id@revision).")],
    students: Annotated[
        list[str] | None,
        option(MODELS, "As for distill, with commas between them; teacher is the teacher as it is, made smaller."),
    ] = None,
    only: Annotated[list[str] | None, option(MODELS, "Those of the students to make now.")] = None,
    ship: Annotated[bool, option(MODELS, "Compare what is deployed: trimmed vocabulary, ONNX, 8 bits.")] = False,
    test: Annotated[str | None, option(DATA, "Rows that nothing is chosen on, to report on.")] = None,
    objectives: Annotated[
        str | None, option(TRAINING, "A preset for all; if left out each has what suits it.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        option(
            TRAINING,
            "STUDENT.SETTING=VALUE of a single student, such as static.learning_rate=0.01.",
            "--override",
            "--overrides",
            callback=over_file,
        ),
    ] = None,
    num_seeds: Annotated[int, option(TRAINING, "Seeds to train each student with.", min=1)] = 1,
    max_latency_ms: Annotated[
        float | None, option(OUTPUT, "Pick the best that takes no longer from text to label, at the median.")
    ] = None,
    max_size_mb: Annotated[float | None, option(OUTPUT, "And whose file takes no more megabytes.")] = None,
    min_retention: Annotated[
        float | None,
        option(OUTPUT, "And that keeps such a share of the teacher's metric; by itself, the fastest that does."),
    ] = None,
    output_dir: Annotated[Path, option(OUTPUT, "Where students, table and picture are saved.")],
    **shared: Any,
) -> None:
    """Distil a teacher into several students, and show quality against time and size; a run again goes on.

    nlpkd frontier --teacher teacher --train train.csv --validation dev.csv --students teacher,layers:3,layers:2,static
    --ship --min-retention 0.98 --output-dir frontier
    """
    given = arguments(context)
    given |= {name: _names(given[name]) for name in ("students", "only") if name in given}
    given |= {"overrides": _overrides(overrides)} if overrides else {}
    if shared["dry_run"]:
        from nlpkd.comparison.frontier import plan_frontier

        plan = plan_frontier(**given)
        show_table(*plan.cells(), plan.verdict())
        return
    from nlpkd.comparison.frontier import frontier as run

    with run_config(context, given):
        report = run(**given)
    show_frontier(report)
    picked = report.picked
    following: list[list[Any]] = []
    if picked and picked.file.startswith("students/"):
        following = after_distilling(output_dir.joinpath(*Path(picked.file).parts[:2]), given)
    show_files("The frontier is", output_dir, *following)


@command(app, *TRAINED, *SCHEDULE, "dry_run", cls=TrainingCommand)
def tune(
    context: typer.Context,
    *,
    train: Rows,
    teacher: Annotated[str, option(MODELS, "A path or Hub id (id@revision).")],
    search: Annotated[
        list[str] | None,
        option(
            TRAINING,
            "SETTING=LOW..HIGH or SETTING=A,B,C; forward_kl.temperature is an objective's setting.",
            callback=over_file,
        ),
    ] = None,
    layers: Annotated[list[int] | None, option(MODELS, "Numbers of layers to choose from; 3 if left out.")] = None,
    objectives: Annotated[str, option(TRAINING, "A preset of one stage.")] = "hinton",
    n_trials: Annotated[int, option(TRAINING, "How many settings to try; a search goes on where it stopped.")] = 20,
    output_dir: Annotated[Path, option(OUTPUT, "Where the trials and tuning.json are kept.")],
    **shared: Any,
) -> None:
    """Search for settings on held-out rows, with Optuna; report a student on other rows than those.

    nlpkd tune --teacher teacher --train train.csv --validation-split 0.1 --search learning_rate=1e-5..5e-4
    --search forward_kl.temperature=1,2,4,8 --layers 2 --layers 3 --output-dir tuning
    """
    asked = dict(_searched(entry) for entry in search or [])
    given = arguments(context) | {"layers": layers or [3], "search": asked or None}
    if shared["dry_run"]:
        from nlpkd.pipeline.dry_run import plan_search

        typer.echo(plan_search(**given).to_text())
        return
    from nlpkd.pipeline.tune import tune as run

    with run_config(context, given):
        result = run(**given)
    header, found = result.cells()
    told = "A setting with a dot belongs to an objective. It is given in Python: ForwardKLLoss(temperature=2.0)."
    show_table(header, found, result.verdict(), explained=told if any("." in name for name in result.best) else "")
    # A student with what was found, and with the settings that all trials had.
    own = typed(context, given)
    student = ["--student", f"layers:{result.best['layers']}", "--objectives", objectives]
    # On the held-out rows the settings were chosen.
    rows = [*as_options(own, "train", "validation", *reading()), "--test", "TEST.csv"]
    words = [*rows, *as_settings(own | result.best), "--baseline"]
    following = ["distill", "--teacher", teacher, *student, *words, "--output-dir", beside(output_dir, "student")]
    show_files("The trials are", output_dir, following)


def beside(folder: Path, name: str) -> Path:
    """Return a folder beside another one, for the next command.

    Args:
        folder: the other one, which may be `.`, `..` or `/`.
        name: of the folder.

    Returns:
        Its path, relative where the other one's is.
    """
    return folder / ".." / name if folder.name in ("", "..") else folder.with_name(name)


def _searched(entry: str) -> tuple[str, tuple[Any, ...] | list[Any]]:
    """Read NAME=LOW..HIGH as a tuple, or NAME=A,B,C as a list, as is NAME=[A, B, C], which a file's list becomes."""
    name, equals, values = entry.partition("=")
    name = name.replace("-", "_")
    if isinstance(listed := value_of(values), list):
        return name, listed
    parts = values.split("..") if ".." in values else values.split(",")
    if not equals or not values or (".." in values and len(parts) != 2):
        raise typer.BadParameter(f"{entry!r} is no SETTING=LOW..HIGH or SETTING=A,B,C", param_hint="--search")
    found = [value_of(part) for part in parts]
    return name, tuple(found) if ".." in values else found


def _names(given: list[str]) -> list[str]:
    """Read names with commas between them; those of layers have commas of their own, as in layers:1,3."""
    return [name.strip() for each in given for name in re.split(r",(?!\s*\d)", each) if name.strip()]


def _overrides(given: list[str]) -> dict[str, dict[str, Any]]:
    """Read STUDENT.SETTING=VALUE."""
    found: dict[str, dict[str, Any]] = {}
    for entry in given:
        place, equals, value = entry.partition("=")
        student, dot, name = place.rpartition(".")
        if not (student and dot and equals):
            raise typer.BadParameter(f"{entry!r} is no STUDENT.SETTING=VALUE", param_hint="--override")
        found.setdefault(student, {})[name.replace("-", "_")] = value_of(value)
    return found
