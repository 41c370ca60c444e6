"""The command line: parse, call, print."""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from typing import Annotated, Any

import typer

from nlpkd.cli import information, labelling, measuring, publishing, training
from nlpkd.utils.provenance import without_tokens
from nlpkd.utils.requirements import installed_version

UNFORESEEN = 4
"""Exit status of an error that nlpkd did not foresee; its traceback is in the file that the message names."""

app = typer.Typer(
    name="nlpkd",
    help="Distil a fine-tuned text classifier into a small, fast student, and measure what it cost.",
    epilog="Exit status: 0 done, 1 a check failed (verify, doctor), 2 something to mend, 3 see export, "
    f"{UNFORESEEN} an unforeseen error, 130 stopped by Ctrl-C, 143 by SIGTERM (train-teacher and distill: with a "
    "checkpoint).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (training, labelling, measuring, publishing, information):
    app.add_typer(group.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        version = installed_version("nlpkd")
        typer.echo(f"nlpkd {version}" if version else "nlpkd, not installed: run from its source tree")
        raise typer.Exit


@app.callback()
def _nlpkd(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; every error is one line on standard error.

    What a user can mend has exit status 2. Any other error has `UNFORESEEN`, and its traceback is kept in a file.
    Neither errors nor warnings have tokens in them, whatever a server said.
    """
    make_record = logging.getLogRecordFactory()

    def without_secrets(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make_record(*arguments, **options)
        record.msg, record.args = without_tokens(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(without_secrets)
    try:
        app()
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, MemoryError) as error:
        typer.echo(f"nlpkd: {_in_one_line(error)}", err=True)
        raise SystemExit(2) from error
    except Exception as error:
        handle, path = tempfile.mkstemp(prefix="nlpkd-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8") as log:
            log.write(without_tokens(traceback.format_exc()))
        typer.echo(f"nlpkd: unforeseen {_in_one_line(error)}; the traceback is in {path}", err=True)
        raise SystemExit(UNFORESEEN) from error


def _in_one_line(error: Exception) -> str:
    told, kind = " ".join(without_tokens(str(error)).split()), type(error).__name__
    foreseen = isinstance(error, (ValueError, OSError, RuntimeError, FloatingPointError, ImportError))
    return told if foreseen and told else f"{kind}: {told}" if told else kind
