"""The settings of a training as options, with their types, and a command's options from and to YAML files."""

from __future__ import annotations

import json
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

import typer
import yaml
from typer.core import TyperCommand

from nlpkd.utils.files import write_atomic
from nlpkd.utils.provenance import without_tokens
from nlpkd.utils.yaml_files import read_yaml

SETTINGS = "nlpkd.settings"
"""Where a command's context keeps the fields of `DistillationConfig` that were given and are no option of its own."""

_OF_THE_FILE = "nlpkd.settings_of_the_file"


class TrainingCommand(TyperCommand):
    """A command that takes every field of `DistillationConfig` as an option beside its own, as the recipes do.

    `transformers.HfArgumentParser` reads them, so that names, types and forms are those of the recipes: with dashes or
    underscores, `--bf16` or `--bf16 False`. It is imported where one is given, so that `--help` stays quick.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take a command line apart into own options and settings.

        Args:
            ctx: the command's context.
            args: the words.

        Returns:
            What is left of its own.
        """
        own, settings = _split(self.own_flags(ctx), args)
        rest = super().parse_args(ctx, own)
        # Of two values argparse takes the later one: flags go over the file.
        if words := [*ctx.meta.get(_OF_THE_FILE, []), *settings]:
            ctx.meta[SETTINGS] = parse_settings(words)
        return rest

    def own_flags(self, ctx: Any) -> set[str]:
        """Return the flags of the options that are no mere settings."""
        return {flag for each in self.get_params(ctx) for flag in (*each.opts, *each.secondary_opts)}


def _split(own: set[str], words: list[str]) -> tuple[list[str], list[str]]:
    """Assign each flag, and the values that follow it, to the command or to the settings."""
    parts: dict[bool, list[str]] = {True: [], False: []}
    mine = True
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--set" and words:
            # The longer form --set NAME=VALUE of --name VALUE.
            name, equals, value = words.pop(0).partition("=")
            if not equals:
                raise typer.BadParameter(f"{name!r} is no FIELD=VALUE", param_hint="--set")
            words = [*_as_words(name, value_of(value)), *words]
            continue
        if word.startswith("--"):
            mine = word.partition("=")[0].replace("_", "-") in own
        parts[mine].append(word)
    return parts[True], parts[False]


def _settings_parser() -> Any:
    from transformers import HfArgumentParser

    from nlpkd.config import DistillationConfig

    return HfArgumentParser(
        [DistillationConfig],  # type: ignore[list-item]
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        usage=SUPPRESS,
    )


def parse_settings(words: list[str]) -> dict[str, Any]:
    """Read fields of `DistillationConfig` from flags.

    Args:
        words: flags and their values.

    Returns:
        The fields that are given, by name, with their types.

    Raises:
        typer.BadParameter: for a flag that is no field, or a value of another type.
    """
    parser = _settings_parser()
    for action in parser._actions:
        # Only what is given is wanted.
        action.default = SUPPRESS
    try:
        given, unknown = parser.parse_known_args(words)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from error
    if unknown:
        flags = [flag.replace("_", "-") for flag in parser._option_string_actions]
        close = get_close_matches(unknown[0].replace("_", "-"), flags, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise typer.BadParameter(
            f"{unknown[0]!r} is no option of this command, and no field of DistillationConfig{hint}"
        )
    return {name: value.value if isinstance(value, Enum) else value for name, value in vars(given).items()}


def print_settings(context: typer.Context, wanted: bool) -> None:
    """Print all fields of `DistillationConfig` as options, and end the command.

    Args:
        context: of the command.
        wanted: whether they were asked for.
    """
    if wanted:
        typer.echo(context.get_help())
        typer.echo(_settings_parser().format_help().replace("options:", "Fields of DistillationConfig:"))
        raise typer.Exit


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a file's options as the command's defaults, so that flags go over them.

    Args:
        context: of the command, which the file must be of.
        path: a YAML file: options by name, and perhaps `command`.

    Returns:
        The path.

    Raises:
        typer.BadParameter: for a file that can't be read, of another command, with unknown options, or with one twice.
    """
    if path is None:
        return None
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} can't be read: {' '.join(str(error).split())}") from error
    known = _parameters(context)
    content = _options_by_name(content, known, str(path))
    if (command := content.pop("command", context.info_name)) != context.info_name:
        raise typer.BadParameter(f"{path} is of the command {command}, not of {context.info_name}")
    trains = isinstance(context.command, TrainingCommand)
    if trains:
        # Older files keep settings under `set`.
        older = _options_by_name(content.pop("set", {}), known, f"set of {path}")
        _refuse_repeated([*content, *older], known, str(path))
        content |= older
    settings = {name: value for name, value in content.items() if name not in known}
    if unknown := sorted(settings.keys() - (_fields() if settings and trains else set())):
        raise typer.BadParameter(f"{path} has {unknown}, which {context.info_name} does not take: {sorted(known)}")
    context.meta[_OF_THE_FILE] = [word for name, value in settings.items() for word in _as_words(name, value)]
    own = {name: value for name, value in content.items() if name in known}
    for name, value in own.items():
        several = known[name].nargs != 1 or getattr(known[name], "multiple", False)
        if isinstance(value, (list, dict)) and not several:
            raise typer.BadParameter(f"{path}: {name} takes a single value, found {value!r:.200}")
    context.default_map = {known[name].name: _as_flags(known[name], value) for name, value in own.items()}
    return path


def _options_by_name(content: Any, known: Mapping[str, Any], place: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{place} must hold options by name, found {type(content).__name__}")
    _refuse_repeated(content, known, place)
    return {_plain(name): value for name, value in content.items()}


def _plain(name: Any) -> str:
    return str(name).replace("-", "_")


def _refuse_repeated(names: Iterable[Any], known: Mapping[str, Any], place: str) -> None:
    """Refuse two names of one option: with dashes and with underscores, or its short and its long one."""
    written: dict[str, Any] = {}
    for name in names:
        option = known[_plain(name)].name if _plain(name) in known else _plain(name)
        if option in written:
            raise typer.BadParameter(f"{place} has an option twice, as {written[option]!r} and {name!r}: give one")
        written[option] = name


def _fields() -> set[str]:
    from nlpkd.data.arguments import training_settings

    return training_settings()


def _parameters(context: typer.Context) -> dict[str, Any]:
    """Return the parameter of each option, by all of its names without dashes, the one that files have first."""
    own = [each for each in context.command.params if each.name not in ("config", "dry_run", "help_all", "help")]
    return {flag.lstrip("-").replace("-", "_"): each for each in own for flag in each.opts}


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


def save_config(context: typer.Context, path: Path) -> None:
    """Write the options that a command runs with, for `--config`; of tokens nothing.

    Args:
        context: of the command.
        path: the file, replaced as a whole.
    """
    names = {each.name: name for name, each in reversed(_parameters(context).items())}
    given = {names[name]: value for name, value in context.params.items() if name in names}
    given |= context.meta.get(SETTINGS, {})
    kept = {
        name: _as_yaml(value)
        for name, value in given.items()
        if value not in (None, [], ()) and not name.endswith("token")
    }
    text = yaml.safe_dump({"command": context.info_name} | kept, sort_keys=False, allow_unicode=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, f"# nlpkd {context.info_name} --config {path.name}\n{text}".encode())


def training_config(given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Split the arguments of a training's function.

    Args:
        given: the arguments by name.

    Returns:
        The `DistillationConfig`, and the arguments that are no settings of a training.
    """
    from nlpkd.config import DistillationConfig

    settings = {name: value for name, value in given.items() if name in _fields()}
    args = DistillationConfig(**settings | {"output_dir": str(given["output_dir"])})
    return args, {name: value for name, value in given.items() if name not in settings}


@contextmanager
def run_config(context: typer.Context, given: Mapping[str, Any]) -> Iterator[None]:
    """Keep a run's options in its directory as `run.yaml`; of a run that is refused none, and an older file stays.

    Args:
        context: of the command.
        given: the arguments of the training's function, among them `output_dir`, which no other run may hold.

    Yields:
        Nothing.
    """
    from accelerate import PartialState

    from nlpkd.utils.locks import only_run

    # The settings first: with them the processes of a launcher find each other, on CPUs too.
    output_dir = Path(training_config(given)[0].output_dir)
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
    """Return time and size of all files in a folder but its lock."""
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found}


def _as_words(name: str, value: Any) -> list[str]:
    """Return a setting as a flag and its values."""
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(json.dumps(each) if isinstance(each, dict) else str(each) for each in values)]


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Return values as options of another training: those that are settings of one, but for folder and push."""
    known = _fields() - {"output_dir", "push_to_hub"}
    return [word for name in values if name in known for word in _as_words(name.replace("_", "-"), values[name])]


def _as_flags(parameter: Any, value: Any) -> Any:
    """Return a file's value as flags give it: a mapping as several NAME=VALUE, a single one of several as a list."""
    if isinstance(value, Mapping):
        return [f"{name}={each if isinstance(each, str) else json.dumps(each)}" for name, each in value.items()]
    # Options of NAME=VALUE have a callback that says itself what they take.
    several = getattr(parameter, "multiple", False) and not parameter.callback
    return [value] if several and isinstance(value, str) else value


def _as_yaml(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_yaml(each) for each in value]
    return without_tokens(str(value)) if isinstance(value, (str, Path)) else value


def value_of(text: str) -> Any:
    """Read a value as JSON where it is JSON, and as text where not."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
