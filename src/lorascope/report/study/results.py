"""Every arm against the baselines: mean with t interval, one dot a seed, baselines as rows and as lines through."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts
from lorascope.stats.analysis import Score
from lorascope.stats.facts.found import BaselineFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.27
_LEFT = 1.2
_RIGHT = 0.55


def draw_results(facts: Facts, width: float) -> Figure:
    """One panel a (model, task); rows are methods, then baselines; x is the primary metric."""
    cells = [cell for cell in facts.cells if _rows(facts, *cell)]
    # Few panels take the whole width: baselines lie far below, and the intervals of the arms need the room.
    columns = 1 if len(cells) <= 3 else canvas.num_columns(width, len(cells))
    heights = [len(_rows(facts, *cell)) * _ROW + 0.1 for cell in cells]
    figure, axes = canvas.panels(width, heights, columns=columns, left=_LEFT, right=_RIGHT)
    for axis, (model, task) in zip(axes, cells, strict=True):
        _panel(axis, facts, model, task)
    return figure


Painter = Callable[["Axes", float], None]


def _rows(facts: Facts, model: str, task: str) -> list[tuple[str, float, bool, Painter]]:
    """(label, value, is a baseline, what draws it at height y) from top to bottom."""
    metric = facts.primary_metric(task)
    rows: list[tuple[str, float, bool, Painter]] = []
    for method in facts.methods:
        score = facts.score(model, task, method, metric=metric)
        if score is not None:
            rows.append((wording.name(method), score.mean, False, _arm(facts, score)))
    for baseline in facts.cell_baselines(model, task, metric=metric):
        rows.append((baseline.name, baseline.mean, True, _baseline(metric, baseline)))
    return rows


def _arm(facts: Facts, score: Score) -> Painter:
    scale = wording.metric_style(score.metric).scale
    tint = canvas.colour(facts.methods, score.method)
    shape = canvas.marker(facts.methods, score.method)

    def paint(axes: Axes, y: float) -> None:
        if score.interval is not None:
            ends = [end * scale for end in drawn_ends(score)]
            axes.plot(ends, [y, y], color=tint, linewidth=1.8, solid_capstyle="butt", zorder=3)
        seeds = [value * scale for value in score.seeds.values()]
        if len(seeds) > 1:
            # equal scores (accuracies are counts) are stacked, so that every seed is seen
            below = [y - 0.28 - 0.11 * seeds[:place].count(value) for place, value in enumerate(seeds)]
            axes.plot(seeds, below, "o", color=tint, markersize=2.3, markeredgewidth=0, zorder=3)
        axes.plot(
            [score.mean * scale],
            [y],
            shape,
            color=tint,
            markersize=4.6,
            zorder=4,
            markeredgecolor=canvas.PAGE,
            markeredgewidth=0.5,
        )

    return paint


def drawn_ends(score: Score) -> tuple[float, float]:
    """The interval's ends as far as the metric can go: a t interval has no bounds, an accuracy ends at 100%."""
    style = wording.metric_style(score.metric)
    assert score.interval is not None
    low = score.interval.low if style.low is None else max(score.interval.low, style.low)
    high = score.interval.high if style.high is None else min(score.interval.high, style.high)
    return low, high


def cut_short(facts: Facts) -> bool:
    """Whether an interval of this figure reaches beyond what its metric can be."""
    shown = [
        score for score in facts.analysis.scores if score.interval and score.metric == facts.primary_metric(score.task)
    ]
    return any(drawn_ends(score) != (score.interval.low, score.interval.high) for score in shown if score.interval)


def _baseline(metric: str, baseline: BaselineFacts) -> Painter:
    scale = wording.metric_style(metric).scale

    def paint(axes: Axes, y: float) -> None:
        x = baseline.mean * scale
        axes.plot([x, x], [y, axes.get_ylim()[1]], color=canvas.MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        axes.plot([x], [y], "|", color=canvas.MUTED, markersize=8, markeredgewidth=1.8, zorder=2)

    return paint


def _panel(axes: Axes, facts: Facts, model: str, task: str) -> None:
    metric = facts.primary_metric(task)
    style = facts.metric_style(metric, task=task)
    rows = _rows(facts, model, task)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    for place, (label, value, is_baseline, paint) in enumerate(rows):
        y = len(rows) - 1 - place
        paint(axes, y)
        tint = canvas.MUTED if is_baseline else canvas.INK
        _beside(axes, y, label, value=wording.decimal(value * style.scale, style.digits), tint=tint)
    axes.set_yticks([])
    axes.margins(x=0.06)
    canvas.axis_label(axes, style.axis)
    canvas.panel_title(axes, _title(facts, model, task), left=_LEFT - 0.05)


def _title(facts: Facts, model: str, task: str) -> str:
    examples = [score.num_examples for score in facts.analysis.scores if (score.model, score.task) == (model, task)]
    n = f" (n = {wording.range_text(examples)})" if examples else ""
    return facts.place(model, task) + n


def _beside(axes: Axes, y: float, label: str, *, value: str, tint: str) -> None:
    for text, x, side, offset in ((label, 0, "right", -7), (value, 1, "left", 7)):
        axes.annotate(
            text,
            (x, y),
            xycoords=("axes fraction", "data"),
            xytext=(offset, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=canvas.FONT - 0.5,
            color=tint,
        )
