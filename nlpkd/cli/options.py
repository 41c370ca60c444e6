"""What the commands share: options by type, and settings from and to YAML files."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from nlpkd.utils.files import write_atomic

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


DatasetConfig = Annotated[
    str | None, typer.Option(help="Configuration of a Hub data set, such as sst2 of nyu-mll/glue.")
]


DatasetRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub data set.")]


OneSplit = Annotated[
    str | None, typer.Option(help="Which split of the data to measure on; test, validation or train if left out.")
]


Vocabulary = Annotated[
    str | None, typer.Option(help='"trim": keep the embeddings of the training text\'s tokens alone.')
]


TeacherDtype = Annotated[str, typer.Option(help="Of the teacher's weights, such as bfloat16.")]


Streaming = Annotated[bool, typer.Option(help="Read the train file as it is needed.")]


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print sizes, steps, estimated time, memory and disk; train nothing.")
]


Split = Annotated[float | None, typer.Option(help="Share of the training rows to hold out instead of --validation.")]


Epochs = Annotated[float, typer.Option(help="Passes over the training rows.")]


Rate = Annotated[float, typer.Option(help="Peak learning rate.")]


Batch = Annotated[int, typer.Option("--batch-size", help="Rows of a batch on one device.")]


Seed = Annotated[int, typer.Option(help="Of weights, order of batches and dropout.")]


Remote = Annotated[bool, typer.Option(help="Run code from the model's repository.")]


Resume = Annotated[str | None, typer.Option(help="True, or a checkpoint's folder.")]


def over_file(context: typer.Context, parameter: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """Let the NAME=VALUE flags of an option go over those of the config file one by one.

    Args:
        context: of the command.
        parameter: the option.
        value: its flags; the file's values where there are none.

    Returns:
        The file's values and the flags, one a name; None where there are none.

    Raises:
        typer.BadParameter: if the file has no values by name.
    """
    kept = (context.default_map or {}).get(str(parameter.name)) or []
    if not isinstance(kept, list):
        raise typer.BadParameter(f"the config file must have values by name here, found {kept!r}")
    return list({str(each).partition("=")[0]: str(each) for each in [*kept, *(value or [])]}.values()) or None


Setting = Annotated[
    list[str] | None,
    typer.Option("--set", callback=over_file, help="Any other DistillationConfig field: --set weight_decay=0.01."),
]


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a file's settings as the command's defaults, so that flags go over them.

    Args:
        context: of the command, which the file must be of.
        path: a YAML file: options by name, `set` a mapping, and perhaps `command`.

    Returns:
        The path.

    Raises:
        typer.BadParameter: for a file that can't be read, of another command, or with unknown options.
    """
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path} must hold options by name, found {type(content).__name__}")
    known = _options(context)
    if (command := content.pop("command", context.info_name)) != context.info_name:
        raise typer.BadParameter(f"{path} is of the command {command}, not of {context.info_name}")
    if unknown := sorted(str(name) for name in content if _plain(name) not in known):
        raise typer.BadParameter(f"{path} has {unknown}, which {context.info_name} does not take: {sorted(known)}")
    # What can be given several times may stand alone in the file; NAME=VALUE options say themselves what they take.
    lists = {each.name for each in context.command.params if getattr(each, "multiple", False) and not each.callback}
    given = {known[_plain(name)]: _as_flags(value) for name, value in content.items()}
    context.default_map = {
        name: [value] if name in lists and isinstance(value, str) else value for name, value in given.items()
    }
    return path


Config = Annotated[
    Path | None,
    typer.Option(is_eager=True, callback=read_config, help="YAML file of options; flags go over it."),
]


def save_config(context: typer.Context, path: Path) -> None:
    """Write the options that a command runs with, for `--config`; of tokens nothing.

    Args:
        context: of the command.
        path: the file, replaced as a whole.
    """
    names = {parameter: name for name, parameter in _options(context).items()}
    values = {names[parameter]: value for parameter, value in context.params.items() if parameter in names}
    kept = {name: _as_yaml(name, value) for name, value in values.items() if value is not None}
    text = yaml.safe_dump({"command": context.info_name} | kept, sort_keys=False, allow_unicode=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, f"# nlpkd {context.info_name} --config {path.name}\n{text}".encode())


@contextmanager
def run_config(context: typer.Context, output_dir: Path) -> Iterator[None]:
    """Keep a run's options in its directory as `run.yaml`; of a run that is refused none, and an older file stays.

    Args:
        context: of the command.
        output_dir: the run's directory, which no other run may hold.

    Yields:
        Nothing.
    """
    from accelerate import PartialState

    from nlpkd.utils.locks import only_run

    path, main = output_dir / "run.yaml", PartialState().is_main_process
    with only_run(output_dir):
        before = path.read_bytes() if main and path.is_file() else None
        if main:
            save_config(context, path)
    files = _files(output_dir)
    try:
        yield
    except BaseException:
        # A run that wrote anything was accepted, and goes on by its options.
        if main and _files(output_dir) == files:
            path.unlink() if before is None else write_atomic(path, before)
        raise


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Give time and size of all files in a folder but its lock."""
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found}


def _options(context: typer.Context) -> dict[str, str]:
    """Give the parameter of each option, by the option's name without dashes."""
    own = [parameter for parameter in context.command.params if parameter.name not in ("config", "dry_run", "help")]
    return {_plain(parameter.opts[0].lstrip("-")): str(parameter.name) for parameter in own}


def _plain(name: Any) -> str:
    return str(name).replace("-", "_")


def _as_flags(value: Any) -> Any:
    """Give a value as flags give it: a mapping is several NAME=VALUE."""
    if isinstance(value, dict):
        return [f"{name}={each if isinstance(each, str) else json.dumps(each)}" for name, each in value.items()]
    return value


def _as_yaml(name: str, value: Any) -> Any:
    if name == "set":
        pairs = (entry.partition("=") for entry in value)
        return {field: value_of(text) for field, _, text in pairs if not field.endswith("token")}
    if isinstance(value, (list, tuple)):
        return [_as_yaml("", each) for each in value]
    return str(value) if isinstance(value, Path) else value


def column_of(columns: list[str] | None) -> Any:
    """Give a single column by itself, several as a list."""
    return columns[0] if columns is not None and len(columns) == 1 else columns


def value_of(text: str) -> Any:
    """Read a value as JSON where it is JSON, and as text where not."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_settings(settings: list[str] | None, options: Container[str]) -> dict[str, Any]:
    """Take FIELD=VALUE entries apart; fields of `DistillationConfig` that have no option of their own."""
    from nlpkd.config import DistillationConfig

    parsed = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"{setting!r} is no FIELD=VALUE", param_hint="--set")
        if name in options or name not in DistillationConfig.__dataclass_fields__:
            reason = "has an option of its own" if name in options else "is no field of DistillationConfig"
            raise typer.BadParameter(f"{name!r} {reason}", param_hint="--set")
        parsed[name] = value_of(value)
    return parsed
