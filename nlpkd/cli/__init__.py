"""The command line: parse, call, print."""

from __future__ import annotations

import typer

from nlpkd.cli import information, measuring, publishing, training

app = typer.Typer(
    name="nlpkd",
    help="Distil a fine-tuned text classifier into a small, fast student, and measure what it cost.",
    epilog="Exit status: 0 done, 1 a check failed (verify, doctor), 2 something to mend, 3 see export, "
    "130 stopped by Ctrl-C, 143 by SIGTERM (train-teacher and distill: with a checkpoint).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (training, measuring, publishing, information):
    app.add_typer(group.app)


def main() -> None:
    """Run the command line; what a user can mend is one line on standard error, and exit status 2."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        typer.echo(f"nlpkd: {' '.join(str(error).split())}", err=True)
        raise SystemExit(2) from error
