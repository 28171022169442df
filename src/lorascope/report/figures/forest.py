"""Forest plot: every difference of a method from its reference, with its interval, zero and the declared margin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorascope.report import wording
from lorascope.report.facts import Facts
from lorascope.report.figures import canvas
from lorascope.stats.analysis import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.34
_HEADING = 0.3


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
    figure, axes = canvas.panels(width, heights, columns=1, left=0.15, right=0.15, head=0.3, foot=0.58)
    for axis, metric, group, height in zip(axes, metrics, groups, heights, strict=True):
        _panel(axis, facts, group, metric=metric, height=height)
    return figure


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


def _panel(axes: Axes, facts: Facts, lines: list[str | Comparison], *, metric: str, height: float) -> None:
    """y is in inches from the bottom of the panel."""
    style = wording.metric_style(metric)
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
    for margin, hypotheses in _margins(facts, metric).items():
        x = margin * style.scale
        axes.axvline(x, color=canvas.MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
        _above(axes, x, f"margin {', '.join(hypotheses)}")
    _above(axes, 0, "no difference")
    reach = max((abs(end) for end in axes.get_xlim()), default=1.0) or 1.0
    axes.set_xlim(-reach * 1.04, reach * 1.04)
    axes.set_yticks([])
    canvas.axis_label(axes, f"{style.gap_axis}\n← reference better\u00a0\u00a0\u00a0\u00a0\u00a0method better →")


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
        ends = [interval.low * scale, interval.high * scale]
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
    """Where the declared margins lie (below zero; both sides for equivalence) and which hypotheses declare them."""
    margins: dict[float, list[str]] = {}
    declared: dict[str, Any] = facts.study.get("hypotheses") or {}
    for result in facts.analysis.hypotheses:
        hypothesis = declared.get(result.name, {})
        margin = hypothesis.get("margin")
        if margin is None or metric not in {facts.hypothesis_metric(result, task=task) for task in facts.tasks}:
            continue
        for x in (-margin, margin) if "equivalent" in hypothesis else (-margin,):
            margins.setdefault(x, []).append(result.name)
    return margins


def _above(axes: Axes, x: float, text: str) -> None:
    axes.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=canvas.FONT - 1.5,
        color=canvas.MUTED,
    )
