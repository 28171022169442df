"""The overhead of adapters over merging against their number, with the fitted line and its band; and what tuning gains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorascope.report.page import canvas
from lorascope.report.page.facts import Facts
from lorascope.report.serving.curves import label_ends, place_of, set_levels
from lorascope.report.serving.rows import (
    Place,
    arm_name,
    arms_of,
    level_text,
    overheads_of,
    place_name,
    places_of,
    repeats_text,
    serving_of,
)
from lorascope.stats.serving.analysis import ServingOverhead, Tuning
from lorascope.stats.serving.cells import num_adapters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC = "latency_ms_p95"
_HEIGHT, _LEFT, _RIGHT = 2.1, 0.55, 0.8


def _adapters(facts: Facts, place: Place) -> list[ServingOverhead]:
    return [o for o in overheads_of(facts, place, METRIC) if num_adapters(o.arm)]


def overhead_places(facts: Facts) -> list[Place]:
    return [place for place in places_of(facts) if _adapters(facts, place)]


def draw_overhead(facts: Facts, width: float) -> Figure:
    """One panel a (model, workload): p95 latency over merged, one colour a batch size."""
    places = overhead_places(facts)
    columns = canvas.num_columns(width, len(places))
    figure, axes = canvas.panels(width, [_HEIGHT] * len(places), columns=columns, left=_LEFT, right=_RIGHT, head=0.5)
    for panel, place in zip(axes, places, strict=True):
        rows = _adapters(facts, place)
        _overhead_panel(panel, facts, place, rows)
        n = repeats_text(o.num_repeats for o in rows)
        canvas.panel_title(panel, f"{place_name(facts, place)} (n = {n})", offset_inches=0.14, left=_LEFT - 0.05)
        canvas.note_above(panel, "p95 latency over merged (%)", left=_LEFT - 0.05)
    return figure


def _overhead_panel(axes: Axes, facts: Facts, place: Place, rows: list[ServingOverhead]) -> None:
    axes.grid(True, axis="y", color=canvas.GRID, linewidth=0.7)
    axes.grid(False, axis="x")
    levels = sorted({o.level or 0.0 for o in rows})
    fit = next((f for f in serving_of(facts).regressions if (f.model, f.workload, f.metric) == (*place, METRIC)), None)
    numbers = sorted({num_adapters(o.arm) or 0 for o in rows})
    span = max(numbers[-1] - numbers[0], 1)
    ends = []
    for index, level in enumerate(levels):
        tint = canvas.METHOD_COLOURS[index % len(canvas.METHOD_COLOURS)]
        here = [o for o in rows if o.level == level]
        line = [p for p in fit.points if p.level == level] if fit else []
        if line:
            x = [p.num_adapters for p in line]
            low, high = [more(p.ratio.low) for p in line], [more(p.ratio.high) for p in line]
            axes.fill_between(x, low, high, color=tint, alpha=0.1, linewidth=0, zorder=1)
            axes.plot(x, [more(p.ratio.estimate) for p in line], color=tint, linewidth=1.2, zorder=2)
        for o in here:
            at = (num_adapters(o.arm) or 0) + (index - (len(levels) - 1) / 2) * 0.012 * span
            if o.interval:
                axes.plot([at, at], [more(o.interval.low), more(o.interval.high)], color=tint, linewidth=1.1, zorder=3)
            shape = canvas.MARKERS[index % len(canvas.MARKERS)]
            axes.plot([at], [more(o.estimate)], shape, color=tint, markersize=3.6, markeredgewidth=0, zorder=4)
        last = max(here, key=lambda o: num_adapters(o.arm) or 0)
        ends.append((f"batch {level_text(level)}", tint, more(last.estimate)))
    axes.axhline(0, color=canvas.MUTED, linewidth=0.8, zorder=1)
    axes.set_xlim(numbers[0] - 0.08 * span, numbers[-1] + 0.08 * span)
    axes.set_xticks(numbers)
    axes.margins(y=0.08)
    canvas.axis_label(axes, "adapters side by side")
    label_ends(axes, ends, height=_HEIGHT)


def more(ratio: float) -> float:
    """A ratio as an overhead in percent."""
    return 100 * (ratio - 1)


# ------------------------------------------------------------------------------------------------------------- tuning


def tuned_rows(facts: Facts, place: Place) -> list[Tuning]:
    """Under the standard load: closed loop, greedy, adapters in turn or the study's first choice."""
    return [
        t
        for t in serving_of(facts).tuning
        if (t.model, t.workload, t.metric, t.loop, t.sampling) == (*place, METRIC, "batch", "greedy")
        and t.choice == _first_choice(facts, place)
    ]


def _first_choice(facts: Facts, place: Place) -> str:
    found = [t.choice for t in serving_of(facts).tuning if (t.model, t.workload) == place]
    return "round-robin" if "round-robin" in found else found[0] if found else ""


def tuned_places(facts: Facts) -> list[Place]:
    return [place for place in places_of(facts) if tuned_rows(facts, place)]


def draw_tuning(facts: Facts, width: float) -> Figure:
    """One panel a (model, workload): default over tuned p95 latency by batch size."""
    places = tuned_places(facts)
    columns = canvas.num_columns(width, len(places))
    figure, axes = canvas.panels(width, [1.5] * len(places), columns=columns, left=_LEFT, right=0.9, head=0.5)
    arms = arms_of(facts)
    for panel, place in zip(axes, places, strict=True):
        rows = sorted(tuned_rows(facts, place), key=lambda t: t.level or 0.0)
        levels = sorted({t.level or 0.0 for t in rows})
        panel.grid(True, axis="y", color=canvas.GRID, linewidth=0.7)
        panel.grid(False, axis="x")
        set_levels(panel, levels)
        panel.axhline(0, color=canvas.MUTED, linewidth=0.8)
        ends = []
        for arm in dict.fromkeys(t.arm for t in rows):
            tint, here = canvas.colour(arms, arm), [t for t in rows if t.arm == arm]
            for t in here:
                at = place_of(t.level or 0.0, levels)
                if t.interval:
                    panel.plot([at, at], [more(t.interval.low), more(t.interval.high)], color=tint, linewidth=1.1)
                panel.plot(
                    [at], [more(t.estimate)], canvas.marker(arms, arm), color=tint, markersize=4, markeredgewidth=0
                )
            ends.append((arm_name(arm), tint, more(here[-1].estimate)))
        panel.margins(y=0.15)
        canvas.axis_label(panel, "requests at once (batch size)")
        label_ends(panel, ends, height=1.5)
        n = repeats_text(t.num_repeats for t in rows)
        canvas.panel_title(panel, f"{place_name(facts, place)} (n = {n})", offset_inches=0.14, left=_LEFT - 0.05)
        canvas.note_above(panel, "p95 latency, default over tuned (%)", left=_LEFT - 0.05)
    return figure
