"""Commands that ask a large model: label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nlpkd.cli.options import DATA, MODELS, OUTPUT, Rows, command, option

app = typer.Typer()

DecisionModel = Annotated[
    str | None, option(MODELS, "A chat model or decision model that answers --question: a path, a Hub id, or a name.")
]
Question = Annotated[
    Path | None, option(MODELS, "YAML or JSON file: type (choice, noul, score), instructions, criteria.")
]
DecisionURL = Annotated[
    str | None,
    option(MODELS, "A server with /v1/systemone, such as transformers serve; the model runs here if left out."),
]

DECISION = ("decision_model", "question", "decision_url")
"""These options by name."""


@command(app)
def label(
    context: typer.Context,
    *,
    data: Rows,
    decision_model: DecisionModel,
    question: Question,
    decision_url: DecisionURL = None,
    text_column: Annotated[str | None, option(DATA, "Column of the text; recognised by common names.")] = None,
    concurrency: Annotated[int, option(MODELS, "Requests at the same time to a server.", min=1)] = 8,
    max_requests: Annotated[
        int | None, option(OUTPUT, "Stop after so many; what was answered is kept.", min=0)
    ] = None,
    output: Annotated[Path, option(OUTPUT, "The .parquet file of texts and probabilities.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be asked; ask nothing.")] = False,
    **shared: Any,
) -> None:
    """Label texts with a large model once; stopped and started again, it asks nothing twice.

    nlpkd label --data texts.csv --decision-model Qwen/Qwen2.5-7B-Instruct --question question.yaml --output l.parquet

    nlpkd distill --train l.parquet --soft-label-column probabilities ...
    """
    from nlpkd.pipeline.label import LabelPlan
    from nlpkd.pipeline.label import label as run

    teacher = decision_teacher(decision_model, question, decision_url, concurrency)
    result = run(teacher, data, output=output, text_column=text_column, max_requests=max_requests, dry_run=dry_run)
    typer.echo(result.to_text() if isinstance(result, LabelPlan) else f"The labels are in {result}.")


def decision_teacher(model: str | None, question: Path | None, url: str | None = None, concurrency: int = 8) -> Any:
    """Make the teacher that the options name.

    Args:
        model: the model.
        question: the file of its question.
        url: of a server.
        concurrency: requests at the same time to it.

    Returns:
        A `DecisionTeacher`, or None where neither model nor question is given.

    Raises:
        ValueError: if one of them is missing, or the file holds no question.
    """
    if model is None and question is None:
        if url is not None:
            raise ValueError("--decision-url is the server of --decision-model, which is missing")
        return None
    if model is None or question is None:
        raise ValueError("--decision-model and --question belong together: give both")
    import yaml

    from nlpkd.teachers import DecisionTeacher

    try:
        asked = yaml.safe_load(question.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{question} is not YAML: {error}") from error
    if not isinstance(asked, dict):
        raise ValueError(f"{question} must be a mapping with type, instructions and criteria, got {asked!r:.100}")
    return DecisionTeacher(model, asked, base_url=url, concurrency=concurrency)
