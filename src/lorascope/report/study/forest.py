"""Forest plot: every difference of a method from its reference, with its interval, zero and the declared margin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts
from lorascope.stats.analysis import Comparison, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.34
_HEADING = 0.3
_SIDE = 0.15
_LABEL_ROW = 0.15
_CHARACTER = 0.055
"""Inches: a row of labels above a panel, and about what a character of them takes."""


def forest_metrics(facts: Facts) -> list[str]:
    """The metrics that are compared, one panel each: differences of accuracy and of MCC share no axis."""
    return list(dict.fromkeys(comparison.metric for comparison in facts.analysis.comparisons))


def draw_forest(facts: Facts, width: float) -> Figure:
    """One row a comparison, label and numbers written above its interval, one panel a metric.

    Where a (model, task) has several comparisons (or the figure is narrow) it gets a heading, so labels are short.
    """
    metrics = forest_metrics(facts)
    groups = [_lines(facts, metric, headed=width < canvas.WIDE) for metric in metrics]
    heights = [sum(_HEADING if isinstance(line, str) else _ROW for line in group) + 0.1 for group in groups]
    marks = [_marks(facts, metric, panel_width=width - 2 * _SIDE) for metric in metrics]
    head = 0.3 + _LABEL_ROW * max((mark.row for panel in marks for mark in panel), default=0)
    figure, axes = canvas.panels(width, heights, columns=1, left=_SIDE, right=_SIDE, head=head, foot=0.58)
    for axis, metric, group, height, panel in zip(axes, metrics, groups, heights, marks, strict=True):
        _panel(axis, facts, group, metric=metric, height=height, marks=panel)
    return figure


@dataclass(frozen=True)
class _Mark:
    """A vertical line with a label above it. x: on the axis; row: how many labels lie between it and the panel. side: which
    end of the label stands at x, where its middle would take it off the figure."""

    x: float
    text: str
    row: int = 0
    side: Literal["center", "left", "right"] = "center"


def _marks(facts: Facts, metric: str, *, panel_width: float) -> list[_Mark]:
    """Zero and the margins, labels that would touch in rows above one another. panel_width: inches."""
    scale = wording.metric_style(metric).scale
    wanted = [_Mark(0.0, "no difference")]
    wanted += [_Mark(x * scale, f"margin {', '.join(names)}") for x, names in _margins(facts, metric).items()]
    inches = panel_width / (2 * _reach(facts, metric))
    placed: list[_Mark] = []
    for mark in wanted:
        row = 0
        while any(row == other.row and _touch(mark, other, inches=inches) for other in placed):
            row += 1
        room = panel_width / 2 - abs(mark.x) * inches + _SIDE
        fits = _CHARACTER * len(mark.text) / 2 <= room
        placed.append(replace(mark, row=row, side="center" if fits else "right" if mark.x > 0 else "left"))
    return placed


def _touch(first: _Mark, second: _Mark, *, inches: float) -> bool:
    """Whether two centred labels in one row would come closer than a blank. inches: a unit of the axis on paper."""
    room = _CHARACTER * ((len(first.text) + len(second.text)) / 2 + 2)
    return abs(first.x - second.x) * inches < room


def _reach(facts: Facts, metric: str) -> float:
    """Half the width of the axis, zero in its middle: all intervals and margins, and some air."""
    style = wording.metric_style(metric)
    rows = [row for row in facts.analysis.comparisons if row.metric == metric]
    ends = [
        abs(end) for row in rows for interval in (row.difference, row.difference_90) for end in _ends(interval, metric)
    ]
    ends += [abs(x) for x in _margins(facts, metric)]
    return 1.08 * style.scale * (max(ends, default=0.0) or 1.0 / style.scale)


def _ends(interval: Interval, metric: str) -> tuple[float, float]:
    """The interval's ends as far as two scores of this metric can differ."""
    style = wording.metric_style(metric)
    if style.low is None or style.high is None:
        return interval.low, interval.high
    widest = style.high - style.low
    return max(interval.low, -widest), min(interval.high, widest)


def _lines(facts: Facts, metric: str, *, headed: bool) -> list[str | Comparison]:
    """Comparisons in the study's order, with headings between them where they need any."""
    rows = _ordered(facts, metric)
    places = [facts.place(row.model, row.task) for row in rows]
    if not headed and len(set(places)) == len(places):
        return list(rows)
    lines: list[str | Comparison] = []
    for row, place in zip(rows, places, strict=True):
        heading = f"{place}, n = {row.num_seeds} × {wording.count(row.num_examples)}"
        if heading not in lines:
            lines.append(heading)
        lines.append(row)
    return lines


def _ordered(facts: Facts, metric: str) -> list[Comparison]:
    def place(comparison: Comparison) -> tuple[int, ...]:
        orders = ((facts.tasks, comparison.task), (facts.models, comparison.model), (facts.methods, comparison.method))
        return tuple(order.index(item) if item in order else len(order) for order, item in orders)

    return sorted((row for row in facts.analysis.comparisons if row.metric == metric), key=place)


def _panel(
    axes: Axes,
    facts: Facts,
    lines: list[str | Comparison],
    *,
    metric: str,
    height: float,
    marks: list[_Mark],
) -> None:
    """y is in inches from the bottom of the panel."""
    style = facts.metric_style(metric, task="*")
    axes.set_ylim(0, height)
    axes.axvline(0, color=canvas.INK, linewidth=1.0, zorder=1)
    headed = any(isinstance(line, str) for line in lines)
    y = height
    for line in lines:
        if isinstance(line, str):
            y -= _HEADING
            _write(axes, line, x=0, y=y, bold=True)
            continue
        y -= _ROW
        _interval(axes, facts, line, y=y + 0.07)
        label = f"{wording.name(line.method)} v {wording.name(line.reference)}"
        if not headed:
            n = f", n = {line.num_seeds} × {wording.count(line.num_examples)}"
            label = f"{facts.place(line.model, line.task)}: {label}{n}"
        numbers = wording.gap(metric, line.difference.estimate, unit=False)
        _write(axes, label, x=0, y=y + 0.13)
        _write(axes, f"{numbers} ({wording.gap_range(metric, line.difference)})", x=1, y=y + 0.13)
    for mark in marks:
        if mark.x:
            axes.axvline(mark.x, color=canvas.MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
        _above(axes, mark)
    reach = _reach(facts, metric)
    axes.set_xlim(-reach, reach)
    axes.set_yticks([])
    left, right = ("reference", "method") if style.direction == "higher" else ("method", "reference")
    canvas.axis_label(axes, f"{style.gap_axis}\n← {left} better\u00a0\u00a0\u00a0\u00a0\u00a0{right} better →")


def _write(axes: Axes, text: str, *, x: int, y: float, bold: bool = False) -> None:
    """Text at the left (x = 0) or right (x = 1) edge, on a patch of page so that no line runs through it."""
    axes.annotate(
        text,
        (x, y),
        xycoords=("axes fraction", "data"),
        ha="right" if x else "left",
        va="bottom",
        fontsize=canvas.FONT - 0.7,
        fontweight="bold" if bold else "normal",
        color=canvas.INK,
        bbox={"facecolor": canvas.PAGE, "edgecolor": "none", "pad": 0.8},
    )


def _interval(axes: Axes, facts: Facts, comparison: Comparison, *, y: float) -> None:
    scale = wording.metric_style(comparison.metric).scale
    tint = canvas.colour(facts.methods, comparison.method)
    for interval, thickness in ((comparison.difference, 1.3), (comparison.difference_90, 3.4)):
        ends = [end * scale for end in _ends(interval, comparison.metric)]
        axes.plot(ends, [y, y], color=tint, linewidth=thickness, solid_capstyle="butt", zorder=3)
    shape = canvas.marker(facts.methods, comparison.method)
    axes.plot(
        [comparison.difference.estimate * scale],
        [y],
        shape,
        markersize=6,
        color=tint,
        markeredgecolor=canvas.PAGE,
        markeredgewidth=0.7,
        zorder=4,
    )


def _margins(facts: Facts, metric: str) -> dict[float, list[str]]:
    """Where the declared margins lie (on the worse side of zero; both sides for equivalence) and which hypotheses declare
    them."""
    worse = -1 if wording.metric_style(metric).direction == "higher" else 1
    margins: dict[float, list[str]] = {}
    for result in facts.analysis.hypotheses:
        hypothesis = facts.study.hypotheses.get(result.name)
        margin = hypothesis.absolute_margin if hypothesis else None
        metrics = {facts.hypothesis_metric(result, task=task) for task in facts.tasks}
        if hypothesis is None or margin is None or metric not in metrics:
            continue
        for x in (-margin, margin) if hypothesis.equivalent is not None else (worse * margin,):
            margins.setdefault(x, []).append(result.name)
    return margins


def _above(axes: Axes, mark: _Mark) -> None:
    axes.annotate(
        mark.text,
        (mark.x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4 + 72 * _LABEL_ROW * mark.row),
        textcoords="offset points",
        ha=mark.side,
        fontsize=canvas.FONT - 1.5,
        color=canvas.MUTED,
    )
