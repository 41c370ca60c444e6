"""A page to type a text into: what a student and its teacher answer, how sure they are, and how long it takes.

This file is a Space's `app.py` too, where nlpkd is not installed: it imports nothing of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    for classify in models.values():
        answer(classify, EXAMPLE, EXAMPLE if pairs else "")

    def compare(text: str, second: str) -> list[Any]:
        found = [answer(classify, text, second) for classify in models.values()]
        agree = "" if len(found) < 2 else verdict(models.values(), [scores for scores, _ in found])
        return [agree, *(cell for scores, ms in found for cell in (scores, f"{ms:.2f}"))]

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown("Type a text, and see what each model answers.")
        text = gradio.Textbox(label="Text", placeholder=EXAMPLE, lines=2, elem_id="text")
        second = gradio.Textbox(label="Second text", lines=2, elem_id="second", visible=pairs)
        button = gradio.Button("Compare", variant="primary", elem_id="compare")
        agree = gradio.Markdown(elem_id="agree")
        outputs: list[Any] = [agree]
        with gradio.Row():
            for number, name in enumerate(models):
                with gradio.Column():
                    outputs.append(gradio.Label(label=name, num_top_classes=_SHOWN, elem_id=f"answer-{number}"))
                    outputs.append(gradio.Textbox(label="ms, text to label", elem_id=f"ms-{number}"))
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
    name, revision = about["models"]["student"]
    try:
        report = json.loads(Path(hf_hub_download(name, "report.json", revision=revision)).read_text(encoding="utf-8"))
    except EntryNotFoundError:
        report = None
    return make_page(models, rows_that_differ(report) if report else (), title=f"Try {name}", pairs=about["pairs"])


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


def answer(classify: Callable[..., Any], text: str, second: str = "") -> tuple[dict[str, float] | str, float]:
    """Ask a model about a text, or about a pair where there is a second one.

    Returns:
        The probability of each label, or the score of a regression as text; and the milliseconds.
    """
    start = time.perf_counter()
    found = classify({"text": text, "text_pair": second} if second else text, top_k=None)
    ms = (time.perf_counter() - start) * 1e3
    found = found[0] if found and isinstance(found[0], list) else found
    # A model of several labels may know a single one.
    scored = len(found) == 1 and not _gives_several(classify)
    return (f"{found[0]['score']:.3f}" if scored else {each["label"]: each["score"] for each in found}), ms


def verdict(models: Iterable[Any], answers: Sequence[dict[str, float] | str]) -> str:
    """Say whether models decide alike on a text: by their likeliest label, or by all that each gives it of several.

    Args:
        models: as for `make_page`.
        answers: what `answer` returned of each; of scores the difference is said.
    """
    scores = [float(each) for each in answers if isinstance(each, str)]
    if len(scores) == len(answers):
        return f"Their scores are {max(scores) - min(scores):.3f} apart."
    decisions = {_decision(model, found) for model, found in zip(models, answers, strict=True)}
    return "They agree." if len(decisions) == 1 else "They differ."


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


def _decision(model: Any, scores: dict[str, float] | str) -> frozenset[str]:
    """Return the labels that a model gives a text."""
    if isinstance(scores, str):
        given = [scores]
    elif _gives_several(model):
        config = _config(model)
        thresholds = getattr(config, "thresholds", None) or dict.fromkeys(scores, 0.5)
        if not isinstance(thresholds, Mapping):
            thresholds = {config.id2label[number]: each for number, each in enumerate(thresholds)}
        given = [label for label, score in scores.items() if score > thresholds[label]]
    else:
        given = [max(scores, key=lambda label: scores[label])]
    return frozenset(given)


def _config(model: Any) -> Any:
    return getattr(getattr(model, "model", None), "config", None)


def _gives_several(model: Any) -> bool:
    """Check whether a model gives a text any number of its labels."""
    return getattr(_config(model), "problem_type", None) == "multi_label_classification"


if __name__ == "__main__":
    make_space_page(Path(__file__).parent).launch()
