"""The scale of drift: linear where values are alike, logarithmic where they span decades, and what its ticks say.

The one idea: a drift of exactly 0 is common (the embeddings of a LoRA model are its base's) and a debiased estimate may
lie below 0, so where values span decades and some are not positive the axis is linear near 0 and logarithmic beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lorascope.report import wording

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


def set_scale(axes: Axes, values: Sequence[float], *, which: Literal["x", "y"]) -> str:
    """Choose and set the scale of an axis that shows `values`; returns what its label must say of it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    scale, limits = (axes.set_xscale, axes.set_xlim) if which == "x" else (axes.set_yscale, axes.set_ylim)
    floor = floor_of(values)
    if floor is None:
        margin = 0.06 * (max(values) - min(values) or abs(max(values)) or 1.0)
        limits(min(values) - margin, max(values) + margin)
        axis.set_major_formatter(FuncFormatter(lambda value, _: wording.drift(value)))
        return ""
    largest = max(values)
    low, high = min(values), largest * 1.3
    if low >= floor:
        scale("log")
        limits(low / 1.3, high)
        few = math.log10(high / low) < 1.6
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        note = "log scale"
    else:
        scale("symlog", linthresh=floor, linscale=0.5)
        decades = range(round(math.log10(floor)), math.floor(math.log10(high)) + 1)
        negative = [-(10.0**power) for power in decades if -(10.0**power) >= low]
        axis.set_ticks([*reversed(negative), 0.0, *(10.0**power for power in decades)])
        limits(min(low * 1.3, -0.15 * floor), high)
        note = f"log scale, linear below {wording.drift(floor)}"
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: wording.drift(value)))
    return note
