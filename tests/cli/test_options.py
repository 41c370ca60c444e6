"""Numbers that an option can't have are refused by its name, before anything is loaded, whatever the command."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from nlpkd.cli import app
from nlpkd.pipeline.compress import METHODS

COMMANDS = typer.main.get_command(app).commands

# Of these the infinite means something: nothing is limited.
ENDLESS = {"max_cost"}

SHARES = {
    "train-teacher": ["validation_split"], "cache": ["validation_split"], "distill": ["validation_split"],
    "frontier": ["validation_split", "min_retention"], "tune": ["validation_split"],
    "export": ["min_retention", "validation_split"], "evaluate": ["validation_split"],
    "verify": ["validation_split"], "try": ["validation_split"],
    "cascade": ["target_agreement", "target_accuracy"], "compress": ["keep", "energy"],
}  # fmt: skip

METHOD_OF = {"energy": "factorize-linear", "rank": "factorize-linear", "heads": "prune-heads"}
METHOD_OF |= {"min_count": "trim-vocabulary"}


def kind_of(parameter: Any) -> Any:
    """The type of an option's values: of a list that of its entries."""
    kind = parameter.type_descriptor.annotation if getattr(parameter, "type_descriptor", None) else None
    while get_args(kind):
        kind = next(each for each in get_args(kind) if each is not type(None))
    return kind


def numeric(command: str) -> dict[str, type]:
    """The options of a command that are numbers, each with its type."""
    return {each.name: kind_of(each) for each in COMMANDS[command].params if kind_of(each) in (int, float)}


def said(command: str, name: str, value: str, folder: Any) -> str:
    """What a command says of an option's value, all else being in order but for files that are nowhere."""
    words = [command]
    for each in COMMANDS[command].params:
        given = {"student": str(folder), "method": METHOD_OF.get(name, "prune-neurons")}.get(each.name, "./nowhere")
        if each.required or each.name in ("teacher", "data"):
            words += [*each.opts[:1], given] if each.opts[0].startswith("--") else [given]
    outcome = CliRunner().invoke(app, [*words, f"--{name.replace('_', '-')}", value], env={"COLUMNS": "300"})
    assert outcome.exit_code == 2 or isinstance(outcome.exception, ValueError), outcome.exception
    return f"{outcome.output} {outcome.exception}".replace("-", "_")


@pytest.mark.parametrize("command", [name for name in COMMANDS if numeric(name)])
def test_no_number_is_nan_infinite_or_larger_than_all_that_is_counted(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, kind in numeric(command).items():
        for value in (str(10**30),) if kind is int else ("nan", "inf") if name not in ENDLESS else ("nan",):
            told = said(command, name, value, tmp_path)
            assert name in told and "nowhere" not in told, (name, value, told)


@pytest.mark.parametrize(("command", "name"), [(command, name) for command in SHARES for name in SHARES[command]])
@pytest.mark.parametrize("value", ["98", "-1", "0"])
def test_a_percentage_is_no_share(command, name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = said(command, name, value, tmp_path)
    assert f"{name} must be a share above 0 and " in told and "such as 0.98 for 98 %" in told


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", ["-1", "0"])
def test_a_number_of_what_is_kept_is_refused_before_a_model_is_loaded(method, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("intermediate_size", "heads", "rank", "min_count"):
        if METHOD_OF.get(name, "prune-neurons") == method:
            told = said("compress", name, value, tmp_path)
            assert f"{name} must be a whole number of at least 1" in told
