"""The charts of `report.html`: inline SVG drawn by matplotlib, coloured by the page's CSS variables."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nlpkd.evaluation.records import ReliabilityBin, percent

SERIES = 8
"""How many colours the page has for candidates; further ones start again."""


LIGHT = {
    "--paper": "#ffffff", "--card": "#f6f7f9", "--ink": "#16191d", "--muted": "#58616b", "--line": "#d9dde2",
    "--s0": "#5b6573", "--s1": "#0f6fc5", "--s2": "#c4601a", "--s3": "#2b8a4b", "--s4": "#8a4bb8", "--s5": "#b03060",
    "--s6": "#7a6a00", "--s7": "#008891",
}  # fmt: skip
"""The page's colours by CSS variable."""


DARK = {
    "--paper": "#14171b", "--card": "#1d2126", "--ink": "#e8eaed", "--muted": "#a2abb5", "--line": "#363c44",
    "--s0": "#a4aebb", "--s1": "#5db0f5", "--s2": "#f0954e", "--s3": "#63c584", "--s4": "#c594ec", "--s5": "#f07ba5",
    "--s6": "#d8c24a", "--s7": "#4dc9d1",
}  # fmt: skip
"""The same where a dark scheme is preferred."""


# Stand-ins in the drawing for what the page decides, in light and in dark.
INK, MUTED, LINE, PAPER = "#010101", "#010102", "#010103", "#010104"


_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper"}


_VARIABLES |= {f"#0202{number:02x}": f"--s{number}" for number in range(SERIES)}


_STYLE: Any = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "nlpkd",
    "text.color": INK,
    # A label such as "$x$" is text.
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
}


_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


_SIZE_INCHES = (4.0, 2.8)


# Room for numbers at the ticks, the axes' names and a title: left, right, bottom, top.
_MARGINS_INCHES = (0.75, 0.15, 0.5, 0.3)


MARKERS = "oDs^vPX*"


_CLASSES_NAMED = 20


NAME_LENGTH = 18
"""Letters of a name at a tick."""


TITLE_LENGTH = 40
"""Letters of a chart's title."""


def tradeoff(points: Sequence[Mapping[str, Any]], cost: str, quality: str) -> str:
    """Draw what quality costs, a point a candidate with its interval.

    Args:
        points: `{"name", "cost", "value", "low", "high"}` each.
        cost: name of the horizontal axis, with its unit.
        quality: name of the vertical axis.

    Returns:
        The SVG element.
    """
    with chart_axes() as axes:
        # Smaller and smaller, so that none hides another.
        for number, point in enumerate(points):
            spread = [[max(0.0, point["value"] - point["low"])], [max(0.0, point["high"] - point["value"])]]
            axes.errorbar(
                point["cost"], point["value"], yerr=spread, color=colour(number), marker=MARKERS[number % SERIES],
                markersize=max(5, 11 - 2 * number), capsize=3, linewidth=1.2,
            )  # fmt: skip
        axes.set_xlim(0, 1.12 * max(point["cost"] for point in points))
        axes.set(xlabel=cost, ylabel=quality)
        return to_svg(axes, f"{quality} against {cost} of {', '.join(str(point['name']) for point in points)}")


def curves(values: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """Draw the logged values of a training, a chart each.

    Args:
        values: `(step, value)` points by name.

    Returns:
        The SVG elements.
    """
    drawn = []
    for title, (name, points) in zip(shortened(list(values), TITLE_LENGTH), values.items(), strict=True):
        with chart_axes() as axes:
            steps, numbers = zip(*points, strict=True)
            marker = "o" if len(points) < 10 else None
            axes.plot(steps, numbers, color=colour(0), linewidth=1.6, marker=marker, markersize=4)
            axes.set_title(title, fontsize=10, y=1.0)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            told = f"{name} over {len(points)} logged steps, from {numbers[0]:.4g} to {numbers[-1]:.4g}"
            drawn.append(to_svg(axes, told))
    return drawn


def confusion(name: str, title: str, number: int, matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Draw a confusion matrix: a row a gold label, a column a predicted one, shaded by the row's shares.

    Args:
        name: the candidate.
        title: how the chart calls it.
        number: its place, for its colour.
        matrix: rows of gold labels by predicted labels.
        labels: their names.

    Returns:
        The SVG element.
    """
    classes = len(labels)
    with chart_axes((_SIZE_INCHES[0], _SIZE_INCHES[0]), named=True) as axes:
        axes.grid(False)
        for gold, row in enumerate(matrix):
            for predicted, count in enumerate(row):
                share = count / max(1, sum(row))
                axes.add_patch(Rectangle((predicted, gold), 1, 1, facecolor=colour(number), alpha=0.85 * share))
                if classes <= 10:
                    axes.text(
                        predicted + 0.5, gold + 0.5, f"{count:,}\n{percent(share, 0)}", ha="center", va="center",
                        color=INK, fontsize=10 if classes <= 5 else 7,
                    )  # fmt: skip
        places = [place + 0.5 for place in range(classes)] if classes <= _CLASSES_NAMED else []
        shown = shortened(labels[: len(places)])
        axes.set_xticks(places, shown, rotation=0 if classes <= 3 else 60, ha="center" if classes <= 3 else "right")
        axes.set_yticks(places, shown)
        axes.set(xlim=(0, classes), ylim=(classes, 0), aspect="equal", xlabel="predicted", ylabel="gold")
        axes.set_title(title, fontsize=10, y=1.0)
        right = sum(row[place] for place, row in enumerate(matrix))
        return to_svg(axes, f"confusion matrix of {name}: {right} of {sum(map(sum, matrix))} rows on the diagonal")


def reliability(name: str, title: str, number: int, bins: Sequence[ReliabilityBin]) -> str:
    """Draw a reliability diagram: accuracy by confidence, larger points for more rows.

    Args:
        name: the candidate.
        title: how the chart calls it.
        number: its place, for its colour.
        bins: of its decisions.

    Returns:
        The SVG element.
    """
    most = max(each.rows for each in bins)
    with chart_axes() as axes:
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
        confidence, accuracy = [each.confidence for each in bins], [each.accuracy for each in bins]
        axes.plot(confidence, accuracy, color=colour(number), linewidth=1.2, alpha=0.7)
        sizes = [12 + 90 * each.rows / most for each in bins]
        axes.scatter(confidence, accuracy, s=sizes, color=colour(number), zorder=3)
        axes.set(xlim=(min(0.45, min(confidence) - 0.05), 1.03), ylim=(-0.03, 1.05))
        axes.set(xlabel="confidence", ylabel="accuracy")
        axes.set_title(title, fontsize=10, y=1.0)
        return to_svg(axes, f"reliability diagram of {name}, {len(bins)} bins")


def by_group(groups: Sequence[str], values: Mapping[str, Sequence[float | None]], axis: str) -> str:
    """Draw a value of each candidate in each group, a line a group.

    Args:
        groups: their names, from the top down.
        values: one value a group by candidate, in the page's order; None is not drawn.
        axis: what the values are.

    Returns:
        The SVG element.
    """
    height = max(1.6, 0.7 + 0.36 * len(groups))
    with chart_axes((_SIZE_INCHES[0], height), named=True) as axes:
        offsets = [0.12 * (place - (len(values) - 1) / 2) for place in range(len(values))]
        for number, (own, offset) in enumerate(zip(values.values(), offsets, strict=True)):
            known = {place + offset: value for place, value in enumerate(own) if value is not None}
            drawn = list(known.values()), list(known)
            axes.scatter(*drawn, s=34, color=colour(number), marker=MARKERS[number % SERIES])
        axes.set_yticks(range(len(groups)), shortened(groups))
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return to_svg(axes, f"{axis} of {', '.join(values)} in {len(groups)} groups")


@contextmanager
def chart_axes(size_inches: tuple[float, float] = _SIZE_INCHES, named: bool = False) -> Iterator[Axes]:
    """Open axes in the style of the page's charts; `to_svg` writes them, meanwhile too.

    Args:
        size_inches: width and height.
        named: whether ticks have names of any length: their room is measured then, by drawing twice.

    Yields:
        The axes of a new figure.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Texts stay texts, which a browser draws in a font that has them: matplotlib's own only estimates their room.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size_inches, layout="constrained" if named else None)
        if not named:
            (width, height), (left, right, bottom, top) = size_inches, _MARGINS_INCHES
            figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        yield figure.add_subplot()


def to_svg(axes: Axes, description: str) -> str:
    """Write a figure as an element that stands in a page: no prolog, no date, sizes left to the page.

    Args:
        axes: of the figure.
        description: what it shows, for who can't see it.

    Returns:
        The SVG element, whose colours are the page's variables.
    """
    buffer = io.StringIO()
    assert axes.figure is not None
    axes.figure.savefig(  # type: ignore[union-attr]
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = _in_tags(drawing, r' id="(?!m|p|C)[^"]*"', lambda _: "")
    drawing = _recoloured(drawing, {stand_in: f"var({variable})" for stand_in, variable in _VARIABLES.items()})
    label = html.escape(description, quote=True)
    # By a function: in a template a backslash of somebody's name would be an escape.
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        lambda found: f'<svg role="img" aria-label="{label}" {found[1]} {_NAMESPACES}>',
        drawing,
    )


def standalone(drawing: str, title: str) -> str:
    """Turn an element of `to_svg` into a file of its own, as for a README: light, and dark where that is preferred.

    Args:
        drawing: the SVG element.
        title: what it is called.

    Returns:
        The SVG file.
    """
    # Plain colours first: not every program that shows an SVG knows variables, or asks for the scheme.
    drawing = _recoloured(drawing, {f"var({variable})": value for variable, value in LIGHT.items()})
    dark = "".join(
        f'[style*="{part}: {value}"] {{ {part}: {DARK[variable]} !important }} '
        for variable, value in LIGHT.items()
        for part in ("fill", "stroke")
    )
    style = f"text {{ font-family: sans-serif }} @media (prefers-color-scheme: dark) {{ {dark}}}"
    width, height = re.findall(r"[\d.]+", drawing[: drawing.index(">")].split('viewBox="')[1])[2:4]
    opening, rest = drawing.split(">", 1)
    paper = f'<rect width="100%" height="100%" style="fill: {LIGHT["--paper"]}"/>'
    start = f'{opening} width="{width}pt" height="{height}pt">\n<title>{html.escape(title)}</title>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{start}<style>{style}</style>\n{paper}{rest}\n'


def colour(number: int) -> str:
    """Return the stand-in of a candidate's colour, by its place in the page's order."""
    return f"#0202{number % SERIES:02x}"


def shortened(texts: Sequence[str], length: int = NAME_LENGTH) -> list[str]:
    """Cut texts in their middle, so that each is one line of at most so many letters.

    Args:
        texts: names of one chart.
        length: of the longest that is shown.

    Returns:
        As many texts, no two of them the same: they are numbered where cutting makes two of them one.
    """
    shown = [_cut(text, length) for text in texts]
    if len(set(shown)) == len(shown):
        return shown
    return [(tag := f"{number}. ") + _cut(text, length - len(tag)) for number, text in enumerate(texts, start=1)]


def _cut(text: str, length: int) -> str:
    line = " ".join(str(text).split())
    end = (length - 1) // 2
    return line if len(line) <= length else f"{line[: length - 1 - end]}…{line[-end:]}"


def _in_tags(drawing: str, pattern: str, change: Callable[[re.Match[str]], str]) -> str:
    """Change what is found in the tags of a drawing; what stands between them is text, and stays as it is."""
    return re.sub(r"<[a-zA-Z][^>]*>", lambda tag: re.sub(pattern, change, tag[0]), drawing)


def _recoloured(drawing: str, colours: Mapping[str, str]) -> str:
    """Replace colours in the style of each element."""
    known = re.compile("|".join(map(re.escape, colours)))
    return _in_tags(drawing, r' style="[^"]*"', lambda style: known.sub(lambda each: colours[each[0]], style[0]))
