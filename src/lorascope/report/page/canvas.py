"""What all figures share: size, type, colours, panels. Figure objects only, no pyplot, so nothing global is touched.

The one idea: neutral colours (ink, muted, grid) and method colours are a fixed palette, so that the page can replace
them in the inlined SVG by CSS variables and the same drawing serves light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 7.0
NARROW = 3.7
"""Inches: a page's text block, and a phone held upright at about 1:1."""

INK, MUTED, GRID, PAGE = "#1b2026", "#667080", "#dfe3e8", "#ffffff"
NEUTRALS = {"ink": INK, "muted": MUTED, "grid": GRID, "page": PAGE}
FONT = 8.5

# Blue and vermilion of Okabe and Ito (2008), then each colour as far as possible from those before it, for readers with any
# kind of colour vision (a test simulates them: Machado et al. 2009), with a contrast of at least 3:1 on the page.
METHOD_COLOURS = ("#0072b2", "#d55e00", "#552222", "#7700ff", "#bb8877", "#002299", "#442255", "#883311")
# For a dark page; found in the same way.
METHOD_COLOURS_DARK = ("#5ab4e8", "#ff9248", "#9944ff", "#bbffdd", "#558877", "#ffee00", "#ccee99", "#88eeff")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")


def colour(methods: Sequence[str], method: str) -> str:
    """The colour of a method: its place in the study decides, so it is the same in every figure."""
    return METHOD_COLOURS[methods.index(method) % len(METHOD_COLOURS)] if method in methods else MUTED


def marker(methods: Sequence[str], method: str) -> str:
    """A shape in addition to the colour, for readers who cannot tell the colours apart."""
    return MARKERS[methods.index(method) % len(MARKERS)] if method in methods else "o"


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def num_columns(width: float, panels: int, *, panel_width: float = 3.2) -> int:
    return max(1, min(panels, math.floor(width / panel_width)))


def panels(
    width: float,
    heights: Sequence[float],
    *,
    columns: int,
    left: float,
    right: float = 0.15,
    top: float = 0.0,
    head: float = 0.34,
    foot: float = 0.46,
) -> tuple[Figure, list[Axes]]:
    """A grid of axes whose plotting areas have exactly `heights` inches, margins in inches around each.

    Exact margins instead of a layout engine: labels of known length keep their place whatever the data are.
    """
    rows = [list(range(start, min(start + columns, len(heights)))) for start in range(0, len(heights), columns)]
    row_heights = [max(heights[index] for index in row) for row in rows]
    total = top + sum(height + head + foot for height in row_heights)
    figure = new_figure(width, total)
    cell = width / columns
    axes: list[Any] = []
    above = top
    for row, row_height in zip(rows, row_heights, strict=True):
        for place, index in enumerate(row):
            bottom = total - above - head - heights[index]
            box = (
                (place * cell + left) / width,
                bottom / total,
                (cell - left - right) / width,
                heights[index] / total,
            )
            axes.append(figure.add_axes(box))
        above += row_height + head + foot
    for axis in axes:
        dress(axis)
    return figure, axes


def dress(axes: Axes) -> None:
    """Quiet axes: no box, a light grid behind, small type."""
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=FONT - 1, length=0, pad=3)
    axes.grid(True, axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def panel_title(axes: Axes, text: str, *, offset_inches: float = 0.0, left: float = 0.0) -> None:
    """A bold heading at the panel's top left, `left` inches left of the plotting area."""
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-left * 72, 7 + offset_inches * 72),
        textcoords="offset points",
        fontsize=FONT,
        fontweight="bold",
        color=INK,
        va="bottom",
    )


def note_above(axes: Axes, text: str, *, left: float = 0.0) -> None:
    """What the y axis shows, in small type between the panel's title and the panel."""
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-left * 72, 5),
        textcoords="offset points",
        fontsize=FONT - 1,
        color=MUTED,
    )


def label_at_right(axes: Axes, text: str, *, y: float, tint: str, offset: float = 5) -> None:
    """A name next to the panel's right edge. y: as a fraction of its height; offset: from the edge, points."""
    axes.annotate(
        text,
        (1, y),
        xycoords="axes fraction",
        xytext=(offset, 0),
        textcoords="offset points",
        va="center",
        fontsize=FONT - 1,
        color=tint,
        annotation_clip=False,
    )


def axis_label(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, fontsize=FONT - 1, color=MUTED, labelpad=3)


def with_caption(figure: Figure, *, title: str, caption: str) -> Figure:
    """The figure with title above and caption below, so that a file taken out of the report still explains itself."""
    import textwrap

    width, height = figure.get_size_inches()
    lines = textwrap.wrap(caption, round(width * 17.5))
    head, foot = 0.36, 0.16 * len(lines) + 0.16
    total = height + head + foot
    figure.set_size_inches(width, total)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, (box.y0 * height + foot) / total, box.width, box.height * height / total))
    left = 0.05 / width
    figure.text(left, 1 - 0.1 / total, title, fontsize=FONT + 2, fontweight="bold", color=INK, va="top")
    figure.text(
        left, (foot - 0.06) / total, "\n".join(lines), fontsize=FONT - 1, color=MUTED, va="top", linespacing=1.35
    )
    return figure


def spread(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed so that neighbours are `gap` apart, inside [low, high] where it fits.

    Used for labels at line ends. Labels are pushed up in order, then the whole stack is shifted back inside.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [0.0] * len(positions)
    previous = -math.inf
    for index in order:
        placed[index] = previous = max(positions[index], previous + gap, low)
    ceiling = high
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
