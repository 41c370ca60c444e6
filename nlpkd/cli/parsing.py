"""A command line taken apart: a command's own options, and the settings of a training with their types."""

from __future__ import annotations

import json
from argparse import SUPPRESS, ArgumentError
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from typing import Any

import typer
from typer.core import TyperCommand

from nlpkd.utils.field_types import with_home

SETTINGS = "nlpkd.settings"
"""Where a command's context keeps the fields of `DistillationConfig` that were given and are no option of its own."""

HIDDEN = "*** (a secret: give it again)"
"""What a file of options has in place of a secret."""

OF_THE_FILE = "nlpkd.settings_of_the_file"
"""Where it keeps the words of those that are in its file of options."""


_WORDS = ("text_column", "text_pair_column", "label_column", "soft_label_column", "label_names", "commit_message")
"""Options that are no paths, whatever they begin with."""

_FILES = ("config", "data", "gold", "held_out", "test", "train", "validation")
"""Options that name a file of options, or rows."""


class Command(TyperCommand):
    """A command whose options may be paths from the home folder, on the command line and in a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take a command line apart.

        Args:
            ctx: the command's context.
            args: the words.

        Returns:
            What is left of them.
        """
        options = {flag: each for each in self.get_params(ctx) for flag in (*each.opts, *each.secondary_opts)}
        _refuse_two_values(args, options)
        rest = super().parse_args(ctx, args)
        _refuse_hidden(ctx, ctx.params)
        ctx.params = {name: value if name in _WORDS else with_home(value) for name, value in ctx.params.items()}
        return rest


class TrainingCommand(Command):
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
        if words := [*ctx.meta.get(OF_THE_FILE, []), *settings]:
            ctx.meta[SETTINGS] = parse_settings(words)
            _refuse_hidden(ctx, ctx.meta[SETTINGS])
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
            words = [*as_given(name, value_of(value)), *words]
            continue
        if word.startswith("--"):
            mine = word.partition("=")[0].replace("_", "-") in own
        parts[mine].append(word)
    return parts[True], parts[False]


def _refuse_two_values(words: list[str], options: Mapping[str, Any]) -> None:
    """Refuse two values of an option that has two names or names rows or a file of options.

    The first one would be lost unsaid, where a second file reads as more rows. Of every other flag that is repeated
    the last value is taken, as everywhere.

    Args:
        words: a command line.
        options: the command's, by all of their flags.
    """
    written: dict[str, tuple[str, str, str]] = {}
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        option = options.get(flag)
        if option is None or getattr(option, "multiple", False) or getattr(option, "is_flag", False):
            continue
        value = value if equals else " ".join(words[place + 1 : place + 2])
        told = word if equals else f"{word} {value}"
        before, first, earlier = written.setdefault(str(option.name), (flag, told, value))
        if earlier != value and (before != flag or option.name in _FILES):
            raise typer.BadParameter(f"{first!r} and {told!r} are two values of one option, which takes one: give one")


def _refuse_hidden(context: Any, values: Mapping[str, Any]) -> None:
    """Refuse what a file of options says that it hides, where no flag gives it."""
    for name, value in values.items():
        if value == HIDDEN:
            raise typer.BadParameter(
                f"{context.params.get('config')} does not hold the secret in {name}: give it as "
                f"--{name.replace('_', '-')}, or take its line out of the file"
            )


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


def as_given(name: str, value: Any) -> list[str]:
    """Return a setting of a file as words that argparse reads.

    Args:
        name: of the setting.
        value: its value; None is what is not given.

    Returns:
        The flag and its values; a single one, which may begin like a flag, in one word with it.
    """
    if value is None:
        return []
    flag, *values = as_words(name, value)
    return [f"{flag}={values[0]}"] if len(values) == 1 else [flag, *values]


def as_words(name: str, value: Any) -> list[str]:
    """Return a setting as a flag and its values, for a command line that is shown."""
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(json.dumps(each) if isinstance(each, dict) else str(each) for each in values)]


def value_of(text: str) -> Any:
    """Read a value as JSON where it is JSON, and as text where not."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
