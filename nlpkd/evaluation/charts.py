"""The charts of `report.html`: inline SVG drawn by matplotlib, coloured by the page's CSS variables."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nlpkd.evaluation.records import ReliabilityBin

SERIES = 8
"""How many colours the page has for candidates; further ones start again."""


# Stand-ins in the drawing for what the page decides, in light and in dark.
_INK, _MUTED, _LINE, _PAPER = "#010101", "#010102", "#010103", "#010104"


_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _PAPER: "--paper"}


_VARIABLES |= {f"#0202{number:02x}": f"--s{number}" for number in range(SERIES)}


_STYLE: Any = {
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "nlpkd",
    "text.color": _INK,
    # A label such as "$x$" is text.
    "text.parse_math": False,
    "xtick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.color": _LINE,
    "ytick.labelcolor": _MUTED,
}


_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


_SIZE_INCHES = (4.0, 2.8)


# Room for numbers at the ticks, the axes' names and a title: left, right, bottom, top.
_MARGINS_INCHES = (0.75, 0.15, 0.5, 0.3)


_MARKERS = "oDs^vPX*"


_CLASSES_NAMED = 20


_NAME_LENGTH = 18


def tradeoff(points: Sequence[Mapping[str, Any]], cost: str, quality: str) -> str:
    """Draw what quality costs, a point a candidate with its interval.

    Args:
        points: `{"name", "cost", "value", "low", "high"}` each.
        cost: name of the horizontal axis, with its unit.
        quality: name of the vertical axis.

    Returns:
        The SVG element.
    """
    with _axes() as axes:
        # Smaller and smaller, so that none hides another.
        for number, point in enumerate(points):
            spread = [[max(0.0, point["value"] - point["low"])], [max(0.0, point["high"] - point["value"])]]
            axes.errorbar(
                point["cost"], point["value"], yerr=spread, color=_colour(number), marker=_MARKERS[number % SERIES],
                markersize=max(5, 11 - 2 * number), capsize=3, linewidth=1.2,
            )  # fmt: skip
        axes.set_xlim(0, 1.12 * max(point["cost"] for point in points))
        axes.set(xlabel=cost, ylabel=quality)
        return _svg(axes, f"{quality} against {cost} of {', '.join(str(point['name']) for point in points)}")


def curves(values: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """Draw the logged values of a training, a chart each.

    Args:
        values: `(step, value)` points by name.

    Returns:
        The SVG elements.
    """
    drawn = []
    for name, points in values.items():
        with _axes() as axes:
            steps, numbers = zip(*points, strict=True)
            marker = "o" if len(points) < 10 else None
            axes.plot(steps, numbers, color=_colour(0), linewidth=1.6, marker=marker, markersize=4)
            axes.set_title(_short(name, 40), fontsize=10, y=1.0)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            told = f"{name} over {len(points)} logged steps, from {numbers[0]:.4g} to {numbers[-1]:.4g}"
            drawn.append(_svg(axes, told))
    return drawn


def confusion(name: str, number: int, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Draw a confusion matrix: a row a gold label, a column a predicted one, shaded by the row's shares.

    Args:
        name: the candidate.
        number: its place, for its colour.
        matrix: rows of gold labels by predicted labels.
        labels: their names.

    Returns:
        The SVG element.
    """
    classes = len(labels)
    with _axes((_SIZE_INCHES[0], _SIZE_INCHES[0]), named=True) as axes:
        axes.grid(False)
        for gold, row in enumerate(matrix):
            for predicted, count in enumerate(row):
                share = count / max(1, sum(row))
                axes.add_patch(Rectangle((predicted, gold), 1, 1, facecolor=_colour(number), alpha=0.85 * share))
                if classes <= 10:
                    axes.text(
                        predicted + 0.5, gold + 0.5, f"{count}\n{share:.0%}", ha="center", va="center",
                        color=_INK, fontsize=10 if classes <= 5 else 7,
                    )  # fmt: skip
        places = [place + 0.5 for place in range(classes)] if classes <= _CLASSES_NAMED else []
        shown = [_short(label) for label in labels[: len(places)]]
        axes.set_xticks(places, shown, rotation=0 if classes <= 3 else 60, ha="center" if classes <= 3 else "right")
        axes.set_yticks(places, shown)
        axes.set(xlim=(0, classes), ylim=(classes, 0), aspect="equal", xlabel="predicted", ylabel="gold")
        axes.set_title(_short(name, 40), fontsize=10, y=1.0)
        right = sum(row[place] for place, row in enumerate(matrix))
        return _svg(axes, f"confusion matrix of {name}: {right} of {sum(map(sum, matrix))} rows on the diagonal")


def reliability(name: str, number: int, bins: Sequence[ReliabilityBin]) -> str:
    """Draw a reliability diagram: accuracy by confidence, larger points for more rows.

    Args:
        name: the candidate.
        number: its place, for its colour.
        bins: of its decisions.

    Returns:
        The SVG element.
    """
    most = max(each.rows for each in bins)
    with _axes() as axes:
        axes.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1)
        confidence, accuracy = [each.confidence for each in bins], [each.accuracy for each in bins]
        axes.plot(confidence, accuracy, color=_colour(number), linewidth=1.2, alpha=0.7)
        sizes = [12 + 90 * each.rows / most for each in bins]
        axes.scatter(confidence, accuracy, s=sizes, color=_colour(number), zorder=3)
        axes.set(xlim=(min(0.45, min(confidence) - 0.05), 1.03), ylim=(-0.03, 1.05))
        axes.set(xlabel="confidence", ylabel="accuracy")
        axes.set_title(_short(name, 40), fontsize=10, y=1.0)
        return _svg(axes, f"reliability diagram of {name}, {len(bins)} bins")


def by_group(groups: Sequence[str], values: Mapping[str, Sequence[float]], axis: str) -> str:
    """Draw a value of each candidate in each group, a line a group.

    Args:
        groups: their names, from the top down.
        values: one value a group by candidate, in the page's order.
        axis: what the values are.

    Returns:
        The SVG element.
    """
    height = max(1.6, 0.7 + 0.36 * len(groups))
    with _axes((_SIZE_INCHES[0], height), named=True) as axes:
        offsets = [0.12 * (place - (len(values) - 1) / 2) for place in range(len(values))]
        for number, (own, offset) in enumerate(zip(values.values(), offsets, strict=True)):
            places = [place + offset for place in range(len(groups))]
            axes.scatter(own, places, s=34, color=_colour(number), marker=_MARKERS[number % SERIES])
        axes.set_yticks(range(len(groups)), [_short(group) for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return _svg(axes, f"{axis} of {', '.join(values)} in {len(groups)} groups")


@contextmanager
def _axes(size_inches: tuple[float, float] = _SIZE_INCHES, named: bool = False) -> Iterator[Axes]:
    """Open axes to draw on.

    Args:
        size_inches: width and height.
        named: whether ticks have names of any length: their room is measured then, by drawing twice.

    Yields:
        The axes of a new figure.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size_inches, layout="constrained" if named else None)
        if not named:
            (width, height), (left, right, bottom, top) = size_inches, _MARGINS_INCHES
            figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        yield figure.add_subplot()


def _svg(axes: Axes, description: str) -> str:
    """Write a figure as an element that stands in a page: no prolog, no date, sizes left to the page."""
    buffer = io.StringIO()
    assert axes.figure is not None
    axes.figure.savefig(  # type: ignore[union-attr]
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' id="(?!m|p|C)[^"]*"', "", drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    label = html.escape(description, quote=True)
    # By a function: in a template a backslash of somebody's name would be an escape.
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        lambda found: f'<svg role="img" aria-label="{label}" {found[1]} {_NAMESPACES}>',
        drawing,
    )


def _colour(number: int) -> str:
    return f"#0202{number % SERIES:02x}"


def _short(text: str, length: int = _NAME_LENGTH) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"
