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

_ROW = 0.36


def forest_metrics(facts: Facts) -> list[str]:
    """The metrics that are compared, one panel each: differences of accuracy and of MCC share no axis."""
    return list(dict.fromkeys(comparison.metric for comparison in facts.analysis.comparisons))


def draw_forest(facts: Facts, width: float) -> Figure:
    """One row a comparison, label and numbers written above its interval, one panel a metric."""
    metrics = forest_metrics(facts)
    groups = [_ordered(facts, metric) for metric in metrics]
    heights = [len(group) * _ROW + 0.1 for group in groups]
    figure, axes = canvas.panels(width, heights, columns=1, left=0.15, right=0.15, head=0.42)
    for axis, metric, group in zip(axes, metrics, groups, strict=True):
        _panel(axis, facts, group, metric=metric)
    return figure


def _ordered(facts: Facts, metric: str) -> list[Comparison]:
    def place(comparison: Comparison) -> tuple[int, ...]:
        orders = ((facts.tasks, comparison.task), (facts.models, comparison.model), (facts.methods, comparison.method))
        return tuple(order.index(item) if item in order else len(order) for order, item in orders)

    return sorted((row for row in facts.analysis.comparisons if row.metric == metric), key=place)


def _panel(axes: Axes, facts: Facts, group: list[Comparison], *, metric: str) -> None:
    style = wording.metric_style(metric)
    top = len(group) - 0.35
    axes.set_ylim(-0.45, top)
    axes.axvline(0, color=canvas.INK, linewidth=1.0, zorder=1)
    for place, comparison in enumerate(group):
        y = len(group) - 1 - place
        _interval(axes, facts, comparison, y=y)
        label = f"{wording.name(comparison.method)} v {wording.name(comparison.reference)} · "
        label += facts.place(comparison.model, comparison.task)
        numbers = wording.gap(metric, comparison.difference.estimate, unit=False)
        numbers += f"  ({wording.gap_range(metric, comparison.difference)})"
        for text, x, side in ((label, 0, "left"), (numbers, 1, "right")):
            axes.annotate(
                text,
                (x, y + 0.17),
                xycoords=("axes fraction", "data"),
                ha=side,
                va="bottom",
                fontsize=canvas.FONT - 0.7,
                color=canvas.INK,
            )
    for margin, hypotheses in _margins(facts, metric).items():
        x = margin * style.scale
        axes.axvline(x, color=canvas.MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
        _above(axes, x, f"margin {', '.join(hypotheses)}")
    _above(axes, 0, "no difference")
    reach = max((abs(end) for end in axes.get_xlim()), default=1.0) or 1.0
    axes.set_xlim(-reach * 1.04, reach * 1.04)
    axes.set_yticks([])
    canvas.axis_label(axes, f"← reference better      {style.gap_axis}      method better →")


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
        markeredgecolor="white",
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
        if margin is None or result.metric not in (metric, "primary"):
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
