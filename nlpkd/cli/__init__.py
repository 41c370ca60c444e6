"""The command line: parse, call, print."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

import typer

from nlpkd.cli import information, labelling, measuring, publishing, training
from nlpkd.cli.screen import show_phases
from nlpkd.evaluation.records import without_controls
from nlpkd.utils.packages import installed_version
from nlpkd.utils.provenance import FORESEEN
from nlpkd.utils.secrets import without_tokens

UNFORESEEN = 4
"""Exit status of an error that nlpkd did not foresee; its traceback is in the file that the message names."""

UNREAD = 141
"""Exit status where nobody reads what is printed any more, as under `head`: that of SIGPIPE in a shell."""

_LONGEST_ERROR = 2_000


app = typer.Typer(
    name="nlpkd",
    help="Distil a fine-tuned text classifier into a small, fast student, and measure what it cost.",
    epilog="Exit status: 0 done, 1 a check failed (verify, doctor), 2 something to mend, 3 see export, "
    f"{UNFORESEEN} an unforeseen error, 130 stopped by Ctrl-C, {UNREAD} nobody reads the output, 143 by SIGTERM "
    "(train-teacher and distill: with a checkpoint).",
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
    Neither errors nor warnings have tokens or control characters in them, whatever a server or a file said.
    """
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        # A daemon may have closed them. What is opened next would be taken for one of them.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A letter that a terminal can't show, or a path that is no UTF-8, must not end what was measured.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    show_phases()
    logging.setLogRecordFactory(partial(_printable_record, logging.getLogRecordFactory()))
    try:
        app()
    except SystemExit as ended:
        # Typer and rich end with 1 where nobody reads what they print, which is the status of a check that failed.
        if isinstance(ended.__context__, BrokenPipeError):
            raise SystemExit(UNREAD) from ended
        raise
    except FORESEEN as error:
        _tell(f"nlpkd: {_in_one_line(error)}")
        raise SystemExit(2) from error
    except Exception as error:
        handle, path = tempfile.mkstemp(prefix="nlpkd-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(_printable(traceback.format_exc()))
        _tell(f"nlpkd: unforeseen {_in_one_line(error)}; the traceback is in {path}")
        raise SystemExit(UNFORESEEN) from error
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                # What is left in it would be written as Python ends, which then has a status of its own.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _tell(text: str) -> None:
    """Print a line on standard error, where anybody reads that."""
    with suppress(BrokenPipeError):
        typer.echo(text, err=True)


def _printable(text: str) -> str:
    return without_tokens(without_controls(text))


def _printable_record(make: Callable[..., logging.LogRecord], *arguments: Any, **options: Any) -> logging.LogRecord:
    """Make a record of the log whose text, and whose traceback, may be shown."""
    record = make(*arguments, **options)
    # What can't be put together is left to logging, which says so and goes on.
    with suppress(Exception):
        record.msg, record.args = _printable(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = _printable("".join(traceback.format_exception(*record.exc_info)).rstrip())
    return record


def _in_one_line(error: Exception) -> str:
    told, kind = " ".join(_printable(str(error)).split()), type(error).__name__
    if len(told) > _LONGEST_ERROR:
        # What to do stands at the end.
        told = f"{told[: _LONGEST_ERROR // 2]} ... {told[-_LONGEST_ERROR // 2 :]}"
    foreseen = isinstance(error, FORESEEN) and not isinstance(error, MemoryError)
    return told if foreseen and told else f"{kind}: {told}" if told else kind
