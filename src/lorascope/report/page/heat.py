"""Heat maps with the number in every cell: colour for the eye, digits for the reader, one scale for all panels.

The one idea: layers are rows, so a deep model makes a tall figure and not cells too narrow for their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorascope.report.drift.scale import floor_of
from lorascope.report.page import canvas, wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_ROW = 0.165
_COLUMN = 0.42
_CHARACTER = 0.058
_LEFT, _RIGHT = 0.4, 0.12
_DARK, _LIGHT = "#101418", "#fbfcfd"
"""Ink on a cell: not the page's own colours, which the page turns round in the dark."""


@dataclass(frozen=True)
class HeatPanel:
    """values: (row, column) -> value; a cell without one stays empty."""

    title: str
    rows: tuple[int, ...]
    columns: tuple[str, ...]
    values: dict[tuple[int, str], float]


def draw_heat(panels: Sequence[HeatPanel], width: float, *, row_label: str, column_label: str) -> Figure:
    """The panels side by side as far as the width allows, one colour scale for all."""
    needed = max(
        len(panel.columns) * max(_COLUMN, *(_CHARACTER * len(name) + 0.08 for name in panel.columns))
        for panel in panels
    )
    columns = canvas.num_columns(width, len(panels), panel_width=min(width, needed + _LEFT + _RIGHT))
    heights = [len(panel.rows) * _ROW for panel in panels]
    cell = width / columns
    right = max(_RIGHT, cell - _LEFT - 1.5 * needed)  # few columns are not stretched over a page
    foot = 0.42 if column_label else 0.26
    figure, axes = canvas.panels(width, heights, columns=columns, left=_LEFT, right=right, head=0.5, foot=foot)
    norm = _norm([value for panel in panels for value in panel.values.values()])
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel, norm=norm)
        canvas.panel_title(axis, panel.title, offset_inches=0.14, left=_LEFT - 0.05)
        canvas.note_above(axis, row_label, left=_LEFT - 0.05)
        if column_label:
            canvas.axis_label(axis, column_label)
    return figure


def _norm(values: Sequence[float]) -> Normalize:
    """Colours by the logarithm where values span decades; what is not positive has the colour of the smallest."""
    from matplotlib.colors import LogNorm, Normalize

    floor, largest = floor_of(values), max(values)
    if floor is None:
        return Normalize(vmin=min(0.0, *values) if len(values) > 1 else 0.0, vmax=largest or 1.0, clip=True)
    smallest = max(floor, min(value for value in values if value > 0))
    return LogNorm(vmin=smallest, vmax=largest, clip=True)


def _draw(axes: Axes, panel: HeatPanel, *, norm: Normalize) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    colours = colormaps["YlGnBu"]
    for y, row in enumerate(panel.rows):
        for x, column in enumerate(panel.columns):
            value = panel.values.get((row, column))
            if value is None:
                continue
            place = float(norm(max(value, norm.vmin or 0.0)))
            red, green, blue, _ = colours(place)
            axes.add_patch(
                Rectangle((x, y), 1, 1, facecolor=(red, green, blue), edgecolor=(red, green, blue), linewidth=0.3)
            )
            axes.text(
                x + 0.5,
                y + 0.52,
                wording.drift(value),
                ha="center",
                va="center",
                fontsize=canvas.FONT - 2,
                color=_LIGHT if _luminance(red, green, blue) < 0.2 else _DARK,
            )
    axes.set_xlim(0, len(panel.columns))
    axes.set_ylim(0, len(panel.rows))
    axes.set_xticks([x + 0.5 for x in range(len(panel.columns))], panel.columns)
    axes.set_yticks([y + 0.5 for y in range(len(panel.rows))], [str(row) for row in panel.rows])
    axes.tick_params(labelsize=canvas.FONT - 2)


def _luminance(*channels: float) -> float:
    """Relative luminance of a colour (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
