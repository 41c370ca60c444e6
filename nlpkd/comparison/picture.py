"""The picture of a frontier: quality against the time from text to label, the size as a mark's area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from nlpkd.comparison.points import Limits, Point, pareto_front
from nlpkd.evaluation.charts import INK, MUTED, PAPER, chart_axes, colour, shortened, to_svg

_SIZE_INCHES = (7.0, 4.6)


_LARGEST_AREA, _LEAST_AREA = 1100.0, 24.0
"""Of a mark, in square points."""


_DISTANCES = (3.0, 12.0, 24.0, 40.0)
"""How far from its mark a label may stand, in points, the nearest first."""


_DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]


def draw(points: Sequence[Point], metric: str, *, picked: Point | None = None, limits: Limits | None = None) -> str:
    """Draw a frontier.

    Args:
        points: the models, the teacher first.
        metric: name of the quality.
        picked: the budget's choice, which gets a ring.
        limits: the budget, drawn as dotted lines.

    Returns:
        The SVG element for a page; `nlpkd.evaluation.charts.standalone` makes it a file of its own.
    """
    known = [point for point in points if math.isfinite(point.quality.value)]
    with chart_axes(_SIZE_INCHES) as axes:
        axes.set_xscale("log")
        _scale(axes, known)
        _draw_front(axes, known)
        _draw_limits(axes, limits or Limits(), known)
        # The larger marks first, so that none hides another.
        largest = max(point.size_mb for point in known)
        areas = {point.name: max(_LEAST_AREA, _LARGEST_AREA * point.size_mb / largest) for point in known}
        for number, point in sorted(enumerate(known), key=lambda each: -each[1].size_mb):
            _draw_mark(axes, point, areas[point.name], colour(number), point == picked)
        axes.set_xlabel("milliseconds from text to label, one text at a time (p50, log scale)")
        axes.set_ylabel(f"{metric}, with 95 % interval")
        axes.set_title(
            "The area of a mark is the size of its file; the dashed line is the Pareto front.",
            fontsize=9, color=MUTED, loc="left",
        )  # fmt: skip
        _place_labels(axes, known, areas, picked)
        told = "; ".join(f"{each.name} {each.quality.value:.3f} in {each.text_to_label_ms:.2f} ms" for each in known)
        return to_svg(axes, f"{metric} against milliseconds from text to label: {told}")


def _scale(axes: Axes, points: Sequence[Point]) -> None:
    """Leave room for labels around the points, and write numbers of milliseconds in full."""
    times = [point.text_to_label_ms for point in points]
    room = max(1.6, (max(times) / min(times)) ** 0.12)
    axes.set_xlim(min(times) / room, max(times) * room)
    ends = [end for point in points for end in (point.quality.low, point.quality.high) if math.isfinite(end)]
    ends += [point.quality.value for point in points]
    margin = max(0.12 * (max(ends) - min(ends)), 0.004)
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    decades = math.log10(max(times) * room / (min(times) / room))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the best quality that is to be had in so much time."""
    front = pareto_front(points)
    right = axes.get_xlim()[1]
    times = [point.text_to_label_ms for point in front] + [right]
    values = [point.quality.value for point in front] + [front[-1].quality.value]
    axes.step(times, values, where="post", color=MUTED, linestyle="--", linewidth=1.2, zorder=1)


def _draw_limits(axes: Axes, limits: Limits, points: Sequence[Point]) -> None:
    """Draw the budget's limits on time and quality as dotted lines."""
    dotted: Any = {"color": INK, "linestyle": ":", "linewidth": 1.2, "zorder": 1}
    if limits.max_latency_ms is not None:
        axes.axvline(limits.max_latency_ms, **dotted)
    if limits.min_retention is not None:
        axes.axhline(limits.min_retention * points[0].quality.value, **dotted)


def _draw_mark(axes: Axes, point: Point, area: float, fill: str, picked: bool) -> None:
    value, low, high = point.quality.value, point.quality.low, point.quality.high
    spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(point.text_to_label_ms, value, yerr=spread, color=fill, capsize=3, linewidth=1.2, zorder=2)
    axes.scatter(
        point.text_to_label_ms, value, s=area, color=fill, edgecolors=PAPER, linewidths=0.8, alpha=0.85, zorder=3
    )
    if picked:
        ring = (math.sqrt(area) + 8) ** 2
        axes.scatter(
            point.text_to_label_ms, value, s=ring, facecolors="none", edgecolors=INK, linewidths=1.6, zorder=4
        )


def _place_labels(axes: Axes, points: Sequence[Point], areas: dict[str, float], picked: Point | None) -> None:
    """Write each name and size where it covers no mark, interval or other label, with a line to a mark far away."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    # In a drawing of 72 dots an inch a dot is a point.
    figure.set_dpi(72)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    inside = axes.get_window_extent()
    radii = {point.name: math.sqrt(areas[point.name] / math.pi) + (4 if point == picked else 0) for point in points}
    taken = [_box_of(axes, point, radii[point.name]) for point in points]
    taken += [_box_of_interval(axes, point) for point in points]
    taken += [box for line in axes.get_lines() if line.get_linestyle() in ("--", ":") for box in _boxes_of_line(line)]
    called = [point.name for point in points]
    names = dict(zip(called, shortened(called, 28), strict=True))
    # The crowded ones last would find nothing free: from the right, where names are longest.
    for point in sorted(points, key=lambda each: -each.text_to_label_ms):
        chosen = point == picked
        text = f"{names[point.name]}{' (picked)' if chosen else ''}\n{point.size_mb:.1f} MB"
        label = axes.annotate(
            text, (point.text_to_label_ms, point.quality.value), textcoords="offset points", xytext=(0, 0),
            fontsize=10, fontweight="bold" if chosen else "normal", color=INK, ha="center", va="center", zorder=5,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        label.set_in_layout(False)
        assert label.arrow_patch is not None
        box = label.get_window_extent(canvas.get_renderer())
        places = [
            _offset(direction, radii[point.name] + distance, box)
            for distance in _DISTANCES
            for direction in _DIRECTIONS
        ]
        best = min(places, key=lambda place: _covered(box.translated(*place), taken, inside))
        label.set_position(best)
        label.arrow_patch.set_visible(places.index(best) >= len(_DIRECTIONS))
        taken.append(box.translated(*best))


def _offset(direction: tuple[int, int], distance: float, box: Bbox) -> tuple[float, float]:
    """Return how far a label's middle is from its mark's in a direction."""
    across, up = direction
    slant = math.sqrt(0.5) if across and up else 1.0
    return across * (slant * distance + box.width / 2), up * (slant * distance + box.height / 2)


def _covered(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Return the area that a label would cover of what is drawn, and have outside of the axes."""
    area = box.width * box.height
    within = Bbox.intersection(box, inside)
    outside = area - (within.width * within.height if within else 0.0)
    shared = [common for each in taken if (common := Bbox.intersection(box.padded(2), each))]
    return 4 * outside + sum(each.width * each.height for each in shared)


def _box_of(axes: Axes, point: Point, radius: float) -> Bbox:
    across, up = axes.transData.transform((point.text_to_label_ms, point.quality.value))
    return Bbox.from_extents(across - radius, up - radius, across + radius, up + radius)


def _boxes_of_line(line: Line2D) -> list[Bbox]:
    """Return a box around each straight part of a front or limit."""
    corners = np.asarray(line.get_transform().transform_path(line.get_path()).vertices)
    return [
        Bbox.from_extents(*np.minimum(start, end), *np.maximum(start, end)).padded(2)
        for start, end in pairwise(corners)
    ]


def _box_of_interval(axes: Axes, point: Point) -> Bbox:
    ends = [end if math.isfinite(end) else point.quality.value for end in (point.quality.low, point.quality.high)]
    (across, low), (_, high) = (axes.transData.transform((point.text_to_label_ms, end)) for end in ends)
    return Bbox.from_extents(across - 4, low, across + 4, high)
