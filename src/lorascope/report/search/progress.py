"""Searches as they went: scores by trial with the best so far, and scores by learning rate over the range searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts
from lorascope.report.search.rows import cells_of, count, direction_of, finals_of
from lorascope.stats.facts.searches import SearchFacts
from lorascope.stats.search import best_so_far, expected_best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT, _LEFT, _RIGHT = 1.75, 0.48, 1.05
_BELOW = 0.09
"""Of a panel's height, kept free beyond the worst score for diverged trials, and below for each method's range."""


def draw_progress(facts: Facts, width: float) -> Figure:
    """One panel a (model, task)."""
    return _draw(facts, width, panel=_progress_panel, label="trials")


def draw_rates(facts: Facts, width: float) -> Figure:
    """One panel a (model, task) in which a learning rate was searched."""
    return _draw(facts, width, panel=_rates_panel, label="learning rate")


def _draw(facts: Facts, width: float, *, panel: Any, label: str) -> Figure:
    cells = cells_of(facts)
    columns = canvas.num_columns(width, len(cells))
    figure, axes = canvas.panels(width, [_HEIGHT] * len(cells), columns=columns, left=_LEFT, right=_RIGHT, head=0.5)
    for axis, ((model, task), rows) in zip(axes, cells.items(), strict=True):
        axis.grid(True, axis="y", color=canvas.GRID, linewidth=0.7)
        axis.grid(False, axis="x")
        panel(axis, facts, rows)
        axis.locator_params(axis="y", nbins=5)
        canvas.panel_title(axis, facts.place(model, task), offset_inches=0.14, left=_LEFT - 0.05)
        canvas.note_above(axis, f"validation {wording.metric_style(rows[0].metric).axis}", left=_LEFT - 0.05)
        canvas.axis_label(axis, label)
    return figure


def _progress_panel(axes: Axes, facts: Facts, rows: Sequence[SearchFacts]) -> None:
    scale = wording.metric_style(rows[0].metric).scale
    floor = _set_height(axes, rows, lanes=1)
    ends = []
    for place, row in enumerate(rows):
        tint = canvas.colour(facts.methods, row.method)
        dodge = 0.16 * (place - (len(rows) - 1) / 2)
        direction = direction_of(row)
        _trials(axes, facts, row, [number + 1 + dodge for number, _ in enumerate(row.tried)], floor)
        so_far = best_so_far(finals_of(row), direction)
        best = [(n + 1, value * scale) for n, value in enumerate(so_far) if value is not None]
        if not best:
            continue
        axes.step(*zip(*best, strict=True), where="post", color=tint, linewidth=1.6, zorder=3)
        scores = [trial.value for trial in row.tried if trial.value is not None]
        worst = min(scores) if direction == "higher" else max(scores)
        known = [*scores, *[worst] * count(row, "diverged")]
        expected = [value * scale for value in expected_best(known, direction)]
        axes.plot(range(1, len(expected) + 1), expected, color=tint, linewidth=1.0, linestyle=(0, (3, 2)), zorder=2)
        ends.append((row.method, best[-1][1]))
    axes.set_xlim(0.4, max(len(row.tried) for row in rows) + 0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]
    _label(axes, facts, ends)


def _rates_panel(axes: Axes, facts: Facts, rows: Sequence[SearchFacts]) -> None:
    searched = [row for row in rows if "learning_rate" in row.space]
    floor = _set_height(axes, rows, lanes=1 + len(searched))
    low, high = axes.get_ylim()
    axes.set_xscale("log")
    axes.tick_params(axis="x", which="minor", length=0)
    ends = []
    for place, row in enumerate(searched):
        dimension, tint = row.space["learning_rate"], canvas.colour(facts.methods, row.method)
        values = (
            [dimension["low"], dimension["high"]] if isinstance(dimension, dict) else [min(dimension), max(dimension)]
        )
        lane = low + (0.03 + 0.05 * place) * (high - low)
        axes.plot(values, [lane, lane], color=tint, linewidth=2.2, solid_capstyle="butt", zorder=2)
        _trials(axes, facts, row, [trial.params["learning_rate"] for trial in row.tried], floor)
        scale = wording.metric_style(row.metric).scale
        if row.optimum is not None:
            ends.append((row.method, row.optimum.value * scale))
    _label(axes, facts, ends)


def _set_height(axes: Axes, rows: Sequence[SearchFacts], *, lanes: int) -> float:
    """Limits around all scores, with room below for `lanes`; the height at which diverged trials stand: at the worse end."""
    scale = wording.metric_style(rows[0].metric).scale
    scores = [trial.value * scale for row in rows for trial in row.tried if trial.value is not None] or [
        0.0,
        scale,
    ]
    low, high = min(scores), max(scores)
    span = (high - low) or 0.02 * scale
    below, above = (0.06 + _BELOW * lanes) * span, 0.06 * span
    if direction_of(rows[0]) == "lower":
        below, above = (0.06 + _BELOW * (lanes - 1)) * span, (0.06 + _BELOW) * span
    axes.set_ylim(low - below, high + above)
    return low - 0.05 * span if direction_of(rows[0]) == "higher" else high + 0.05 * span


def _trials(axes: Axes, facts: Facts, row: SearchFacts, places: Sequence[float], floor: float) -> None:
    tint, shape = canvas.colour(facts.methods, row.method), canvas.marker(facts.methods, row.method)
    scale = wording.metric_style(row.metric).scale
    best = row.optimum.number if row.optimum else None
    for trial, x in zip(row.tried, places, strict=True):
        if trial.value is None:
            axes.plot([x], [floor], "x", color=tint, markersize=4, markeredgewidth=1.1, zorder=4)
            continue
        is_complete = trial.state == "complete"
        size = 6.2 if trial.number == best else 3.8 if is_complete else 2.4
        axes.plot(
            [x], [trial.value * scale], shape, color=tint, markersize=size, markeredgewidth=0.6 if size > 6 else 0,
            markeredgecolor=canvas.PAGE, alpha=1.0 if is_complete else 0.65, zorder=4,
        )  # fmt: skip


def _label(axes: Axes, facts: Facts, ends: Sequence[tuple[str, float]]) -> None:
    low, high = axes.get_ylim()
    heights = [(y - low) / (high - low) for _, y in ends]
    placed = canvas.spread(heights, gap=0.13 / _HEIGHT, low=0.0, high=1.0)
    for (method, _), y in zip(ends, placed, strict=True):
        canvas.label_at_right(axes, wording.name(method), y=y, tint=canvas.colour(facts.methods, method))
