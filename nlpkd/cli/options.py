"""The options that several commands share, each declared once, and what a command makes of those it was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from nlpkd.cli.parsing import SETTINGS, Command, print_settings
from nlpkd.cli.screen import hide_bars_of_weights
from nlpkd.cli.settings import read_config
from nlpkd.utils.field_types import check_finite

DATA, MODELS, TRAINING, OUTPUT = "Data", "Teacher and student", "Training", "Output"
"""The groups of options in `--help`."""


def option(group: str, text: str, *names: str, **further: Any) -> Any:
    """Declare an option: its group in `--help`, its help, and its names where they are not the parameter's."""
    return typer.Option(*names, help=text, rich_help_panel=group, **further)


Rows = Annotated[str, option(DATA, "csv, tsv, json, jsonl or parquet file, or a Hub id (id@revision).")]


@dataclass
class Shared:
    """The options by the name of the function's argument that they give."""

    validation: Annotated[str | None, option(DATA, "Held-out rows, likewise.")] = None
    validation_split: Annotated[
        float | None, option(DATA, "Share of the rows to hold out, the same texts each time, and to measure on.")
    ] = None
    text_column: Annotated[str | None, option(DATA, "Column of the text; recognised by common names if left out.")] = (
        None
    )
    text_pair_column: Annotated[str | None, option(DATA, "Column of the second text of a pair.")] = None
    label_column: Annotated[
        list[str] | None,
        option(DATA, "Column of the label; recognised by common names if left out. Several: a 0 or 1 each."),
    ] = None
    label_names: Annotated[
        list[str] | None,
        option(DATA, "Names of labels that are numbers, in the order of the numbers: negative,positive."),
    ] = None
    problem_type: Annotated[
        str | None,
        option(DATA, "The task, where the labels should not say it, by the name config.problem_type has."),
    ] = None
    max_length: Annotated[
        int | None,
        option(
            DATA, "Longest text in tokens; longer ones are truncated, and counted. The models' own limit if left out."
        ),
    ] = None
    window_stride: Annotated[
        int | None,
        option(DATA, "Cut longer texts into windows that share so many tokens, instead of truncating them."),
    ] = None
    streaming: Annotated[bool, option(DATA, "Read the train file as it is needed.")] = False
    dataset_config: Annotated[
        str | None, option(DATA, "Configuration of a Hub data set, such as sst2 of nyu-mll/glue.")
    ] = None
    dataset_revision: Annotated[str | None, option(DATA, "Branch, tag or commit of a Hub data set.")] = None
    split: Annotated[
        str | None, option(DATA, "Split of the data to measure on, by its name; test or validation if left out.")
    ] = None
    vocabulary: Annotated[
        str | None,
        option(MODELS, '"trim" keeps the embeddings of the training text\'s tokens, as --ship does; "whole" all.'),
    ] = None
    max_requests: Annotated[
        int | None, option(OUTPUT, "Of --question: stop after so many; what was answered is kept.", min=0)
    ] = None
    max_cost: Annotated[
        float | None, option(OUTPUT, "Stop before the kept answers have cost more; needs prices.", min=0)
    ] = None
    input_price: Annotated[float | None, option(OUTPUT, "Of a million tokens of the prompts.", min=0)] = None
    output_price: Annotated[float | None, option(OUTPUT, "Of a million tokens of the answers.", min=0)] = None
    teacher_dtype: Annotated[str, option(MODELS, "Of the teacher's weights, such as bfloat16.")] = "float32"
    trust_remote_code: Annotated[bool, option(MODELS, "Run code from the model's repository.")] = False
    num_train_epochs: Annotated[float, option(TRAINING, "Passes over the training rows.")] = 3
    learning_rate: Annotated[
        float | None,
        option(TRAINING, "Peak learning rate; 5e-5 if left out, of a student what suits it."),
    ] = None
    per_device_train_batch_size: Annotated[
        int, option(TRAINING, "Rows of a batch on one device.", "--batch-size", "--per-device-train-batch-size")
    ] = 32
    class_weights: Annotated[
        str | None, option(TRAINING, "'balanced': rare classes count as much as common ones.")
    ] = None
    seed: Annotated[int, option(TRAINING, "Of weights, order of batches and dropout.")] = 42
    resume_from_checkpoint: Annotated[str | None, option(TRAINING, "True, or a checkpoint's folder.")] = None
    help_all: Annotated[
        bool,
        typer.Option(
            "--help-all", is_eager=True, callback=print_settings, rich_help_panel=TRAINING,
            help="List every field of DistillationConfig: each is an option too, such as --weight-decay 0.01.",
        ),
    ] = False  # fmt: skip
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, steps, estimated time, memory and disk; train nothing.")
    ] = False
    config: Annotated[
        Path | None,
        typer.Option(
            is_eager=True, callback=read_config, help="YAML file of options; options on the command line override it."
        ),
    ] = None


COLUMNS = (
    "text_column", "text_pair_column", "label_column", "max_length", "dataset_config", "dataset_revision",
    "trust_remote_code",
)  # fmt: skip
"""Options of every command that reads labelled rows."""

TRAINED = ("validation", "validation_split", *COLUMNS[:-1], "label_names", "problem_type")
"""Options of every command that trains."""

SCHEDULE = ("num_train_epochs", "per_device_train_batch_size", "seed", "help_all")
"""Options of every command whose student learns."""

LIMITS = ("max_requests", "max_cost", "input_price", "output_price")
"""Options of every command that asks a teacher which may be paid for."""

_MAY_BE_INFINITE = ("max_cost",)
"""What may be infinite: then nothing is limited."""

_UNGIVEN = ("config", "dry_run", "help_all")


def command(app: typer.Typer, *shared: str, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
    """Register a function as a command that has the options of its own signature, and shared ones.

    Args:
        app: where it is registered.
        *shared: names of fields of `Shared`; the function receives them as `**given`.
        name: of the command; the function's if None.
        **settings: further arguments of `typer.Typer.command`.

    Returns:
        The decorator.
    """
    hints = get_type_hints(Shared, include_extras=True)
    known = {
        each.name: inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name]
        )
        for each in fields(Shared)
    }

    settings = {"cls": Command} | settings

    def register(function: Any) -> Any:
        signature = inspect.signature(function, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        taken = [known[each] for each in (*shared, "config")]

        @wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            from nlpkd.utils.hub_requests import limit_hub_requests

            check_finite({name: value for name, value in options.items() if name not in _MAY_BE_INFINITE})
            hide_bars_of_weights()
            limit_hub_requests()
            return function(*arguments, **options)

        run.__signature__ = signature.replace(parameters=[*own, *taken])  # type: ignore[attr-defined]
        # Options have the names of the Python arguments too.
        normal = {"token_normalize_func": lambda flag: flag.replace("_", "-")}
        return app.command(name, context_settings=normal, **settings)(run)

    return register


def arguments(context: typer.Context) -> dict[str, Any]:
    """Return the arguments of a command's function: all options that were given or have a default, by name.

    Args:
        context: of the command.

    Returns:
        Its options and settings, without those that are None: there the function's own default holds.
    """
    given = {name: value for name, value in context.params.items() if name not in _UNGIVEN}
    columns = given.get("label_column")
    if columns and len(columns) == 1:
        given["label_column"] = columns[0]
    names = given.get("label_names")
    if names and len(names) == 1:
        given["label_names"] = [name.strip() for name in names[0].split(",")]
    given |= context.meta.get(SETTINGS, {})
    asked, answered = given.pop("input_price", None), given.pop("output_price", None)
    if (asked, answered) != (None, None):
        given["prices"] = (asked or 0.0, answered or 0.0)
    return {name: value for name, value in given.items() if value not in (None, [], ())}


def typed(context: typer.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that were given, on the command line or in a file, and are no defaults of the command."""
    source = context.get_parameter_source
    return {name: value for name, value in given.items() if getattr(source(name), "name", "") != "DEFAULT"}
