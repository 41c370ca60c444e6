"""A command's options from and to YAML files, and the settings of a training among them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
import yaml

from nlpkd.cli.parsing import HIDDEN, OF_THE_FILE, SETTINGS, TrainingCommand, as_given, as_words
from nlpkd.utils.disk.files import write_atomic
from nlpkd.utils.disk.yaml_files import read_yaml
from nlpkd.utils.field_types import with_home
from nlpkd.utils.secrets import names_a_secret, without_tokens


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
    path = with_home(path)
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} can't be read: {' '.join(str(error).split())}") from error
    known = _parameters(context)
    content = _options_by_name(content, known, str(path))
    if (command := content.pop("command", None)) not in (None, context.info_name):
        raise typer.BadParameter(f"{path} is of the command {command}, not of {context.info_name}")
    trains = isinstance(context.command, TrainingCommand)
    if trains:
        # Older files keep settings under `set`.
        older = content.pop("set", None)
        older = {} if older is None else _options_by_name(older, known, f"set of {path}")
        _refuse_repeated([*content, *older], known, str(path))
        content |= older
    settings = {name: value for name, value in content.items() if name not in known}
    if unknown := sorted(settings.keys() - (_fields() if settings and trains else set())):
        raise typer.BadParameter(f"{path} has {unknown}, which {context.info_name} does not take: {sorted(known)}")
    for name, value in content.items():
        if isinstance(value, list) and None in value:
            raise typer.BadParameter(f"{path}: {name} has null among its values, found {value!r:.200}")
    context.meta[OF_THE_FILE] = [word for name, value in settings.items() for word in as_given(name, value)]
    # As everywhere in the file, null is what is not given.
    own = {name: value for name, value in content.items() if name in known and value is not None}
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
        typer.BadParameter: if the file has no values by name, or two flags (or the file) have one name.
    """
    kept = (context.default_map or {}).get(str(parameter.name)) or []
    if not isinstance(kept, list):
        raise typer.BadParameter(f"the config file must have values by name here, found {kept!r}")
    taken: dict[str, str] = {}
    for entries in (kept, value or []):
        named: dict[str, str] = {}
        for each in map(str, entries):
            if named.setdefault(_plain(each.partition("=")[0]), each) != each:
                first = named[_plain(each.partition("=")[0])]
                raise typer.BadParameter(f"{first!r} and {each!r} are two values of one name: give one")
        taken |= named
    return list(taken.values()) or None


def save_config(context: typer.Context, path: Path) -> None:
    """Write the options that a command runs with, for `--config`; of secrets that there was one.

    Args:
        context: of the command.
        path: the file, replaced as a whole.
    """
    names = {each.name: name for name, each in reversed(_parameters(context).items())}
    given = {names[name]: value for name, value in context.params.items() if name in names}
    given |= context.meta.get(SETTINGS, {})
    kept = {name: _as_yaml(name, value) for name, value in given.items() if value not in (None, [], ())}
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

    from nlpkd.utils.disk.locks import only_run

    # The settings first: with them the processes of a launcher find each other, on CPUs too.
    output_dir = Path(training_config(given)[0].output_dir)
    path, main = output_dir / "run.yaml", PartialState().is_main_process
    with only_run(output_dir):
        before = path.read_bytes() if main and path.is_file() else None
        if main:
            save_config(context, path)
        files = _files(output_dir) if main else {}
        try:
            yield
        except BaseException:
            # A run that wrote anything was accepted, and goes on by its options.
            if main and _files(output_dir) == files:
                path.unlink() if before is None else write_atomic(path, before)
            raise


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return time and size of all files in a folder but its lock."""
    found = {}
    for path in folder.rglob("*"):
        # Somebody may delete one meanwhile.
        with suppress(FileNotFoundError):
            if path.is_file() and path.name != ".lock":
                found[path] = path.stat().st_mtime_ns, path.stat().st_size
    return found


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Return values as options of another training: those that are settings of one, but for folder and push."""
    known = _fields() - {"output_dir", "push_to_hub"}
    return [word for name in values if name in known for word in as_words(name.replace("_", "-"), values[name])]


def _as_flags(parameter: Any, value: Any) -> Any:
    """Return a file's value as flags give it: a mapping as several NAME=VALUE, a single one of several as a list."""
    if isinstance(value, Mapping):
        values = {name: each if isinstance(each, str) else json.dumps(each) for name, each in value.items()}
        return [f"{name}={values[name]}" for name, each in value.items() if each is not None]
    # Options of NAME=VALUE have a callback that says itself what they take.
    several = getattr(parameter, "multiple", False) and not parameter.callback
    return [value] if several and isinstance(value, str) else value


def _as_yaml(name: str, value: Any) -> Any:
    """Return an option's value as it is, for the run that is made of it again; of a secret, `HIDDEN`."""
    if isinstance(value, (list, tuple)):
        return [_as_yaml(name, each) for each in value]
    if not isinstance(value, (str, Path)):
        return value
    with_password = "://" in str(value) and without_tokens(str(value)) != str(value)
    return HIDDEN if with_password or names_a_secret(name) else str(value)
