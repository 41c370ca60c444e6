"""Commands on what large models say of texts and labels: label, check-labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nlpkd.cli.options import DATA, LIMITS, MODELS, OUTPUT, Rows, arguments, command, option

app = typer.Typer()

_ASKED = ("decision_model", "question", "decision_url")
"""Options that say who answers."""

DecisionModel = Annotated[
    str | None, option(MODELS, "A chat model or decision model that answers --question: a path, a Hub id, or a name.")
]
Question = Annotated[
    Path | None,
    option(
        MODELS,
        "YAML or JSON file: a question for --decision-model (type, instructions, criteria), or a whole teacher "
        "(teacher: decision, zero-shot, embedding or chat; model; and the arguments of its class). Of a log of "
        "decisions as --train the name of the question.",
    ),
]
DecisionURL = Annotated[
    str | None,
    option(MODELS, "A server with /v1/systemone, such as transformers serve; the model runs here if left out."),
]

Gold = Annotated[
    str | None,
    option(
        MODELS, "A few rows with gold labels, to fit the temperature and the class priors of --question's teacher."
    ),
]


@command(app, "text_column", "label_column", *LIMITS)
def label(
    context: typer.Context,
    *,
    data: Rows,
    decision_model: DecisionModel = None,
    question: Question,
    decision_url: DecisionURL = None,
    gold: Gold = None,
    concurrency: Annotated[
        int | None, option(MODELS, "Requests at the same time to a server; the file's, or 8, if left out.", min=1)
    ] = None,
    budget: Annotated[
        int | None, option(DATA, "Label so many texts only, chosen in rounds by what --student is unsure of.", min=2)
    ] = None,
    select: Annotated[
        str | None,
        option(
            DATA,
            "Of a budget: uncertainty (if left out), diversity (unsure of, and apart from each other) or random.",
        ),
    ] = None,
    rounds: Annotated[int | None, option(DATA, "Of a budget: how many rounds; 5 if left out.", min=2)] = None,
    student: Annotated[str | None, option(MODELS, "Of a budget: a path or Hub id; trained after each round.")] = None,
    test: Annotated[str | None, option(DATA, "Of a budget: rows with gold labels, to measure the student on.")] = None,
    against_random: Annotated[
        bool, option(DATA, "Of a budget: buy as many random labels too, and say what the selection saves.")
    ] = False,
    max_length: Annotated[int | None, option(DATA, "Of a budget: longest text of the student in tokens.")] = None,
    output: Annotated[Path, option(OUTPUT, "The .parquet file of texts and probabilities.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be asked; ask nothing.")] = False,
    **shared: Any,
) -> None:
    """Label texts with a large model once; stopped and started again, it asks nothing twice.

    nlpkd label --data texts.csv --decision-model Qwen/Qwen2.5-7B-Instruct --question question.yaml --output l.parquet

    nlpkd label --data texts.csv --question teacher.yaml --output l.parquet --dry-run --input-price 0.15

    nlpkd label --data texts.csv --question teacher.yaml --output l.parquet --budget 900 --student small --test dev.csv

    nlpkd distill --train l.parquet --soft-label-column probabilities ...
    """
    from nlpkd.labelling.costs import LabelPlan
    from nlpkd.pipeline.label import label as run

    teacher = labelling_teacher(decision_model, question, decision_url, concurrency)
    used = ("data", *_ASKED, "concurrency")
    rest = {name: value for name, value in arguments(context).items() if name not in used}
    result = run(teacher, data, dry_run=dry_run, **rest)
    typer.echo(result.to_text() if isinstance(result, LabelPlan) else f"The labels are in {result}.")


@command(app, "text_column", *LIMITS, name="check-labels")
def check_labels(
    context: typer.Context,
    *,
    data: Rows,
    teacher: Annotated[
        str | None, option(MODELS, "A classifier that has not learned from these rows: a path or Hub id.")
    ] = None,
    decision_model: DecisionModel = None,
    question: Question = None,
    decision_url: DecisionURL = None,
    label_column: Annotated[str | None, option(DATA, "Column of the label; recognised by common names.")] = None,
    split: Annotated[str | None, option(DATA, "Split of the data to check, by its name; train if left out.")] = None,
    output: Annotated[Path, option(OUTPUT, "The .csv, .jsonl or .parquet file of the rows that are probably wrong.")],
    **shared: Any,
) -> None:
    """List the rows that are probably labelled wrongly, with the reason and the label that fits better.

    Without a teacher, a logistic regression that did not learn from a row judges it.

    nlpkd check-labels --data train.csv --output wrong.csv

    nlpkd check-labels --data train.csv --question teacher.yaml --output wrong.csv
    """
    from nlpkd.labelling.mislabelled import check_labels as run

    asked = labelling_teacher(decision_model, question, decision_url)
    if teacher is not None and asked is not None:
        raise ValueError("give --teacher or --question, not both")
    rest = {name: value for name, value in arguments(context).items() if name not in ("data", "teacher", *_ASKED)}
    typer.echo(run(data, asked or teacher, **rest).to_text())


def taught_by_answers(given: dict[str, Any], dry_run: bool) -> dict[str, Any]:
    """Turn the options on answers of large models into those of a distillation.

    Args:
        given: the options of `nlpkd distill`.
        dry_run: whether nothing is to be trained.

    Returns:
        The options, with the teacher that labels the texts, or with the answers that logs of decisions have.

    Raises:
        ValueError: if they do not fit together.
    """
    from nlpkd.labelling.logs import is_decision_log, read_decisions
    from nlpkd.labelling.rows import PROBABILITIES

    options = dict(given)
    own = {name: options.pop(name, None) for name in _ASKED}
    of_answers = [name for name in ("gold", "max_requests", "max_cost", "prices") if name in options]
    if is_decision_log(options.get("train")):
        if own.pop("question") is None or any(own.values()) or of_answers or options.get("teacher"):
            raise ValueError(
                f"{options['train']} is a log of decisions, whose answers are the teacher: give the name of one of "
                "its questions as --question, and no other teacher, gold labels or limits"
            )
        name = str(given["question"])
        rows, task = read_decisions(options["train"], name)
        for split in ("validation", "test"):
            if is_decision_log(options.get(split)):
                options[split] = read_decisions(options[split], name)[0]
        return options | {"train": rows, "soft_label_column": PROBABILITIES, "problem_type": task}
    labeller = labelling_teacher(own["decision_model"], own["question"], own["decision_url"])
    if labeller is None and "gold" in of_answers:
        raise ValueError("--gold corrects the teacher of --question, which is missing")
    if labeller is None and of_answers:
        raise ValueError("--max-requests, --max-cost and prices are of the teacher of --question, which is missing")
    if labeller is None:
        return options
    if options.get("teacher") or dry_run:
        raise ValueError("what --question asks is the teacher, and has a dry run of its own: `nlpkd label --dry-run`")
    return options | {"teacher": labeller}


def labelling_teacher(
    model: str | None, question: Path | None, url: str | None = None, concurrency: int | None = None
) -> Any:
    """Make the teacher that the options name.

    Args:
        model: of a decision teacher.
        question: the file of its question, or of a whole teacher.
        url: of a server.
        concurrency: requests at the same time to it; as the file says if None.

    Returns:
        A `nlpkd.teachers.LabelingTeacher`, or None where neither model nor question is given.

    Raises:
        ValueError: if one of them is missing, or the file holds neither question nor teacher.
    """
    if model is None and question is None:
        if url is not None:
            raise ValueError("--decision-url is the server of --decision-model, which is missing")
        return None
    if question is None:
        raise ValueError("--decision-model and --question belong together: give both")
    from nlpkd.labelling.kinds import make_teacher, names_a_teacher, read_mapping

    if not question.is_file():
        raise ValueError(
            f"--question {question} is no file. It is one, unless --train is a log of decisions (.jsonl): there it is "
            "the name of a question"
        )
    written = read_mapping(question)
    if names_a_teacher(written):
        if model is not None or url is not None:
            raise ValueError(f"{question} names the teacher itself: leave --decision-model and --decision-url out")
    elif model is None:
        raise ValueError(
            f"--decision-model and --question belong together, unless the file names a teacher; {question} holds a "
            "question alone"
        )
    else:
        written = {"teacher": "decision", "model": model, "question": written, "base_url": url}
    try:
        return make_teacher(written, concurrency=concurrency)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{question} holds nothing that can be asked: {error}") from error
