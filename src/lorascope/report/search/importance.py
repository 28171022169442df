"""Which settings the scores of a search depended on: a bar a setting, one panel a (model, task)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts
from lorascope.report.search.rows import cells_of, setting
from lorascope.stats.facts.searches import SearchFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _GAP = 0.2, 0.12
_LEFT, _RIGHT = 1.05, 0.5


def cells_with(facts: Facts) -> dict[tuple[str, str], list[SearchFacts]]:
    """(model, task) -> its searches of which the importance is known."""
    known = {cell: [row for row in rows if row.importance] for cell, rows in cells_of(facts).items()}
    return {cell: rows for cell, rows in known.items() if rows}


def draw_importance(facts: Facts, width: float) -> Figure:
    cells = cells_with(facts)
    heights = [sum(len(row.importance or {}) * _ROW + _ROW + _GAP for row in rows) for rows in cells.values()]
    columns = canvas.num_columns(width, len(cells), panel_width=3.3)
    figure, axes = canvas.panels(width, heights, columns=columns, left=_LEFT, right=_RIGHT)
    for axis, ((model, task), rows), height in zip(axes, cells.items(), heights, strict=True):
        _panel(axis, facts, rows, height)
        canvas.panel_title(axis, facts.place(model, task), left=_LEFT - 0.05)
    return figure


def _panel(axes: Axes, facts: Facts, rows: list[SearchFacts], height: float) -> None:
    y = height
    for row in rows:
        tint = canvas.colour(facts.methods, row.method)
        y -= _ROW
        _text(axes, wording.name(row.method), y=y + _ROW / 2, tint=tint, bold=True)
        for name, share in sorted((row.importance or {}).items(), key=lambda item: -item[1]):
            y -= _ROW
            axes.barh([y + _ROW / 2], [100 * share], height=0.72 * _ROW, color=tint, linewidth=0)
            _text(axes, setting(name), y=y + _ROW / 2, tint=canvas.INK)
            axes.annotate(
                wording.fraction(share, 0), (100 * share, y + _ROW / 2), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=canvas.FONT - 1, color=canvas.MUTED, annotation_clip=False,
            )  # fmt: skip
        y -= _GAP
    axes.set_ylim(0, height)
    axes.set_xlim(0, 100)
    axes.set_yticks([])
    axes.set_xticks([0, 25, 50, 75, 100])
    canvas.axis_label(axes, "share of variance (%)")


def _text(axes: Axes, text: str, *, y: float, tint: str, bold: bool = False) -> None:
    axes.annotate(
        text, (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0), textcoords="offset points", ha="right",
        va="center", fontsize=canvas.FONT - 1, color=tint, fontweight="bold" if bold else "normal",
    )  # fmt: skip
