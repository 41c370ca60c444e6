"""A page to type a text into: what a student and its teacher answer, how sure they are, and how long it takes.

This file is a Space's `app.py` too, where nlpkd is not installed: it imports nothing of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio

HEADER = ("row", "text", "gold", "teacher", "student")
"""The columns of the rows on which student and teacher differ."""

MODELS_NAME = "models.json"
"""The file of a Space that says which models it asks, and what it calls their labels."""

EXAMPLE = "The parcel came on Tuesday, and everything was in it."

LOCAL: dict[str, Any] = {
    "server_name": "127.0.0.1",
    "share": False,
    "ssr_mode": False,
    "quiet": True,
    "footer_links": [],
    # Fonts of the browser, where Gradio's own would be asked of a server.
    "theme": gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
}
"""Arguments of `launch` for a page that nobody sees but this machine, and that asks nobody else for anything."""

_SHOWN = 5


class Answer(NamedTuple):
    """What a model answers.

    Attributes:
        given: the labels that it gives the text, the likeliest first; of a regression its score as text.
        probabilities: of each label, the likeliest first; none of a regression.
        ms: milliseconds from text to label.
    """

    given: tuple[str, ...]
    probabilities: dict[str, float]
    ms: float

    @property
    def shown(self) -> str:
        """What it gives, a label a line."""
        return "\n".join(self.given) or "(no label)"


def make_page(
    models: Mapping[str, Callable[..., Any]],
    rows: Sequence[Sequence[Any]] = (),
    *,
    title: str = "Student and teacher",
    pairs: bool = False,
) -> gradio.Blocks:
    """Make a page that asks each model about a text, and shows their answers side by side.

    Args:
        models: text-classification pipelines, by the name that the page shows; they call the same labels alike, see
            `name_labels`.
        rows: rows on which they differ, each with the columns of `HEADER`.
        title: of the page.
        pairs: whether a text has a second one beside it.

    Returns:
        The page, which `launch(**LOCAL)` opens.
    """
    # The first call of a model takes longer than all later ones.
    first = {name: answer(classify, EXAMPLE, EXAMPLE if pairs else "") for name, classify in models.items()}

    def compare(text: str, second: str) -> list[Any]:
        found = [answer(classify, text, second) for classify in models.values()]
        agree = "" if len(found) < 2 else verdict(found)
        return [agree, *(cell for each in found for cell in (each.shown, each.probabilities, f"{each.ms:.2f}"))]

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown("Type a text, and see what each model answers.")
        text = gradio.Textbox(label="Text", placeholder=EXAMPLE, lines=2, elem_id="text")
        second = gradio.Textbox(label="Second text", lines=2, elem_id="second", visible=pairs)
        button = gradio.Button("Compare", variant="primary", elem_id="compare")
        agree = gradio.Markdown(elem_id="agree")
        outputs: list[Any] = [agree]
        with gradio.Row():
            for number, (name, classify) in enumerate(models.items()):
                with gradio.Column():
                    outputs.append(gradio.Textbox(label=name, elem_id=f"given-{number}"))
                    # Its heading would be the likeliest label, be it given or not.
                    bars = gradio.Label(
                        label="Probabilities", num_top_classes=_SHOWN, show_heading=False,
                        visible=bool(first[name].probabilities), elem_id=f"answer-{number}",
                    )  # fmt: skip
                    if cuts := thresholds(classify):
                        told = "\n".join(f"{label}: {cut:.3f}" for label, cut in cuts.items())
                        gradio.Textbox(told, label="Labels are given above", max_lines=_SHOWN, interactive=False)
                    outputs += [bars, gradio.Textbox(label="ms, text to label", elem_id=f"ms-{number}")]
        gradio.on([button.click, text.submit], compare, [text, second], outputs)
        if rows:
            gradio.Markdown("Rows of the report on which student and teacher differ most. Click on one to ask both.")
            table = gradio.Dataset(
                components=["textbox"] * len(HEADER), headers=list(HEADER), samples=[[*map(str, row)] for row in rows],
                samples_per_page=len(rows), show_label=False, elem_id="rows",
            )  # fmt: skip
            # A row without a text leaves the one that stands there.
            filled = table.click(lambda row: row[1] or gradio.skip(), table, text)
            filled.then(compare, [text, second], outputs)
    return page


def make_space_page(folder: Path) -> gradio.Blocks:
    """Make the page of a Space, as its `models.json` says.

    Args:
        folder: with that file: `{"models": {role: [id, revision]}, "labels": {role: [name, ..]}, "pairs": bool}`.

    Returns:
        The page.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
    from transformers import pipeline

    about = json.loads((folder / MODELS_NAME).read_text(encoding="utf-8"))
    models = {}
    for role, (name, revision) in about["models"].items():
        classify = pipeline("text-classification", model=name, revision=revision, truncation=True)
        name_labels(classify, about["labels"][role])
        models[f"{role}: {name}"] = classify
    student, revision = about["models"]["student"]
    try:
        path = hf_hub_download(student, "report.json", revision=revision)
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except EntryNotFoundError:
        report = None
    if report and "teacher" in about["models"]:
        teacher, revision = about["models"]["teacher"]
        settle_thresholds(models[f"teacher: {teacher}"], report, teacher, revision)
    rows = rows_that_differ(report) if report else ()
    return make_page(models, rows, title=f"Try {student}", pairs=about["pairs"])


def name_labels(classify: Any, names: Sequence[str]) -> None:
    """Give a pipeline's labels other names, so that what it answers can be compared with what others answer.

    Args:
        classify: a text-classification pipeline; it answers with these names from then on.
        names: one a label, in the order of their ids.
    """
    config = classify.model.config
    if isinstance(thresholds := getattr(config, "thresholds", None), Mapping):
        config.thresholds = [thresholds[config.id2label[number]] for number in range(len(names))]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def settle_thresholds(teacher: Any, report: Mapping[str, Any], name: str, revision: str | None) -> None:
    """Let a teacher decide by the thresholds of the student's report, if they were chosen for this very teacher.

    Args:
        teacher: its pipeline, with the student's names of the labels; see `name_labels`.
        report: the content of a `report.json`.
        name: of the teacher, as a report tells it.
        revision: likewise.
    """
    run = report["run"]
    about, chosen = run.get("teacher") or {}, (run.get("thresholds") or {}).get("teacher") or {}
    config = teacher.model.config
    names = [config.id2label[number] for number in range(len(config.id2label))]
    if set(chosen) == set(names) and (about.get("name"), about.get("revision")) == (name, revision):
        config.thresholds = [chosen[label] for label in names]


def answer(classify: Callable[..., Any], text: str, second: str = "") -> Answer:
    """Ask a model about a text, or about a pair where there is a second one.

    Args:
        classify: as for `make_page`.
        text: the text.
        second: the one beside it.

    Returns:
        What it gives the text, and how sure it is.
    """
    start = time.perf_counter()
    found = classify({"text": text, "text_pair": second} if second else text, top_k=None)
    ms = (time.perf_counter() - start) * 1e3
    found = found[0] if found and isinstance(found[0], list) else found
    probabilities = {each["label"]: each["score"] for each in found}
    ordered = sorted(probabilities, key=lambda label: -probabilities[label])
    if cuts := thresholds(classify):
        return Answer(tuple(label for label in ordered if probabilities[label] > cuts[label]), probabilities, ms)
    # A model of several labels may know a single one; another model that does gives scores.
    if len(found) == 1:
        return Answer((f"{found[0]['score']:.3f}",), {}, ms)
    return Answer((ordered[0],), probabilities, ms)


def thresholds(classify: Any) -> dict[str, float]:
    """Return what the probability of each label must be above for a model to give it.

    Args:
        classify: as for `make_page`.

    Returns:
        By label; empty of a model that gives each text one label, or a score.
    """
    config: Any = getattr(getattr(classify, "model", None), "config", None)
    if getattr(config, "problem_type", None) != "multi_label_classification":
        return {}
    names = [config.id2label[number] for number in range(len(config.id2label))]
    own = getattr(config, "thresholds", None) or [0.5] * len(names)
    return dict(own) if isinstance(own, Mapping) else dict(zip(names, own, strict=True))


def verdict(answers: Sequence[Answer]) -> str:
    """Say whether models give a text the same labels.

    Args:
        answers: of each model; of scores the difference is said.

    Returns:
        One sentence.
    """
    if not any(each.probabilities for each in answers):
        scores = [float(each.given[0]) for each in answers]
        return f"Their scores are {max(scores) - min(scores):.3f} apart."
    return "They agree." if len({frozenset(each.given) for each in answers}) == 1 else "They differ."


def rows_that_differ(report: Mapping[str, Any], texts: Mapping[int, str] | None = None) -> list[list[Any]]:
    """Return the rows of a report on which the student differs most from its teacher, with the columns of `HEADER`.

    Args:
        report: the content of a `report.json`.
        texts: texts by row number; the others stay empty.
    """
    names = report["task"]["labels"]
    return [
        [
            each["row"],
            (texts or {}).get(each["row"], ""),
            names[each["gold"]],
            f"{names[each['teacher_predicted']]} ({each['teacher_probability']:.2f})",
            f"{names[each['predicted']]} ({each['probability']:.2f})",
        ]
        for each in report["candidates"]["student"].get("breakdown", {}).get("disagreements") or []
    ]


if __name__ == "__main__":
    make_space_page(Path(__file__).parent).launch()
