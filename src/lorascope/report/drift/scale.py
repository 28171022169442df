"""The scale of drift: linear where values are alike, logarithmic where they span decades, and what its ticks say.

The one idea: a drift of exactly 0 is common (the embeddings of a LoRA model are its base's) and a debiased estimate may
lie below 0, so where values span decades and some are not positive the axis is linear near 0 and logarithmic beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lorascope.report.page import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DECADES = 4
"""Smaller than this many decades below the largest is as good as 0."""
_LINEAR_SPAN = 8


def floor_of(values: Sequence[float]) -> float | None:
    """Where a logarithmic axis of these values would begin (a power of ten); None where a linear one serves."""
    positive = [value for value in values if value > 0]
    if not positive:
        return None
    smallest = max(min(positive), max(positive) / 10**_DECADES)
    return 10.0 ** math.floor(math.log10(smallest)) if max(positive) / smallest > _LINEAR_SPAN else None


def set_scale(
    axes: Axes,
    values: Sequence[float],
    *,
    which: Literal["x", "y"],
    spread: Sequence[float] | None = None,
    kind: Literal["log", "linear"] | None = None,
) -> str:
    """Choose and set the scale of an axis that shows `values`; returns what its label must say of it.

    spread: those that decide the scale (all, if not given). kind: settles it; values that are not positive have no log.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    scale, limits = (axes.set_xscale, axes.set_xlim) if which == "x" else (axes.set_yscale, axes.set_ylim)
    floor, low, high = floor_of(spread or values), min(values), max(values)
    if low > 0 and kind != "linear" and (kind == "log" or (floor is not None and low >= floor)):
        scale("log")
        limits(low / 1.3, high * 1.3)
        axis.set_major_locator(LogLocator(subs=_subdivisions(high / low)))
        note = "log scale"
    elif floor is None or kind == "linear":
        margin = 0.06 * (high - low or abs(high) or 1.0)
        limits(low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(nbins=5))
        note = ""
    else:
        scale("symlog", linthresh=floor, linscale=0.5)
        decades = [10.0**power for power in range(round(math.log10(floor)), math.floor(math.log10(high * 1.3)) + 1)]
        axis.set_ticks([*(-tick for tick in reversed(decades) if -tick >= low), 0.0, *decades])
        limits(min(low * 1.3, -0.15 * floor), high * 1.3)
        note = f"log scale, linear below {_tick(floor)}"
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    return note


def _subdivisions(span: float) -> tuple[int, ...]:
    """Ticks of a decade, so that an axis of whatever span has at least two and no crowd."""
    return (1, 2, 3, 5, 7) if span < 4 else (1, 2, 5) if span < 40 else (1,)


def _tick(value: float) -> str:
    """0.01 and not 0.010; 1e-4."""
    number = 0.0 if abs(value) < 1e-12 else value
    return wording.drift(number) if abs(number) < 1e-3 else f"{number:.6g}".replace("-", wording.MINUS)
