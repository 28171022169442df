"""Serving by load: latency, throughput, first token and tokens between, one line an arm, intervals over repeats.

A marker is the geometric mean over repeats, its bar the 95% t interval; without an interval the median stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorascope.report.drift.scale import set_scale
from lorascope.report.page import canvas
from lorascope.report.page.facts import Facts
from lorascope.report.serving.rows import (
    METRICS,
    Place,
    arm_name,
    arms_of,
    curves_of,
    level_text,
    place_name,
    places_of,
    repeats_text,
)
from lorascope.stats.serving.analysis import ServingCell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT, _LEFT, _RIGHT = 2.1, 0.55, 1.05
_LINE = 0.13
"""Inches a label at the end of a line takes."""
_DODGE = 0.012
"""Of the x axis' span, between neighbouring arms, so that their bars can be told apart."""


def panels_with(facts: Facts, metrics: Sequence[str], *, loop: str = "batch") -> list[tuple[Place, str]]:
    """(place, metric) of the panels that have something to show."""
    return [(place, m) for place in places_of(facts) for m in metrics if curves_of(facts, place, m, loop=loop)]


def draw_curves(facts: Facts, width: float, *, metrics: Sequence[str], loop: str = "batch") -> Figure:
    """One panel a (model, workload) and metric."""
    cells = panels_with(facts, metrics, loop=loop)
    columns = canvas.num_columns(width, len(cells))
    figure, axes = canvas.panels(width, [_HEIGHT] * len(cells), columns=columns, left=_LEFT, right=_RIGHT, head=0.5)
    for panel, (place, metric) in zip(axes, cells, strict=True):
        curves = curves_of(facts, place, metric, loop=loop)
        note = _panel(panel, facts, curves, loop=loop)
        n = repeats_text(cell.num_repeats for rows in curves.values() for cell in rows)
        canvas.panel_title(panel, f"{place_name(facts, place)} (n = {n})", offset_inches=0.14, left=_LEFT - 0.05)
        canvas.note_above(panel, METRICS[metric] + (f", {note}" if note else ""), left=_LEFT - 0.05)
    return figure


def _panel(axes: Axes, facts: Facts, curves: dict[str, list[ServingCell]], *, loop: str) -> str:
    arms = arms_of(facts)
    levels = sorted({cell.level or 0.0 for rows in curves.values() for cell in rows})
    axes.grid(True, axis="y", color=canvas.GRID, linewidth=0.7)
    axes.grid(False, axis="x")
    shown = [value for rows in curves.values() for cell in rows for value in (_middle(cell), *_ends(cell))]
    note = set_scale(axes, shown, which="y")
    set_levels(axes, levels)
    ends = []
    for arm, rows in curves.items():
        dodge = (arms.index(arm) - (len(arms) - 1) / 2) * _DODGE
        tint = canvas.colour(arms, arm)
        x = [place_of(cell.level or 0.0, levels) + dodge * max(len(levels) - 1, 1) for cell in rows]
        axes.plot(
            x, [_middle(cell) for cell in rows], color=tint, linewidth=1.4, marker=canvas.marker(arms, arm),
            markersize=3.6, markeredgewidth=0, zorder=3,
        )  # fmt: skip
        for at, cell in zip(x, rows, strict=True):
            if cell.interval is not None:
                axes.plot([at, at], _ends(cell), color=tint, linewidth=1.1, zorder=2)
        ends.append((arm_name(arm), tint, _middle(rows[-1])))
    canvas.axis_label(axes, "requests at once (batch size)" if loop == "batch" else "requests arriving per second")
    label_ends(axes, ends, height=_HEIGHT)
    return note


def _middle(cell: ServingCell) -> float:
    return cell.interval.estimate if cell.interval is not None else cell.median


def _ends(cell: ServingCell) -> list[float]:
    return [cell.interval.low, cell.interval.high] if cell.interval is not None else []


def place_of(level: float, levels: Sequence[float]) -> float:
    """Levels stand at equal distances: they usually double."""
    return float(levels.index(level))


def set_levels(axes: Axes, levels: Sequence[float]) -> None:
    """An x axis whose ticks are the measured levels."""
    axes.set_xlim(-0.12 * max(len(levels) - 1, 1), (len(levels) - 1) + 0.08 * max(len(levels) - 1, 1))
    axes.set_xticks(range(len(levels)), [level_text(level) for level in levels])


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]], *, height: float) -> None:
    """Names at the ends of lines, spread so that none covers another. ends: (name, colour, last y)."""
    axes.get_ylim()  # settles limits that matplotlib would work out only when it draws
    to_fraction = axes.transAxes.inverted()
    heights = [float(to_fraction.transform(axes.transData.transform((0, y)))[1]) for _, _, y in ends]
    placed = canvas.spread(heights, gap=_LINE / height, low=0.0, high=1.0)
    for (label, tint, _), y in zip(ends, placed, strict=True):
        canvas.label_at_right(axes, label, y=y, tint=tint)
