"""When merging pays: tasks on one machine at a fixed number of requests at once, and machines against total traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorascope.report.page import canvas
from lorascope.report.page.facts import Facts
from lorascope.report.serving.curves import label_ends
from lorascope.report.serving.rows import Place, level_text, place_name, places_of, serving_of
from lorascope.stats.serving.analysis import OneMachine, TrafficBreakEven
from lorascope.stats.serving.break_even import machines_merged, machines_with_adapters, shares_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT, _LEFT, _RIGHT = 2.0, 0.5, 1.05
_ADAPTERS, _MERGED, _ZIPF = canvas.METHOD_COLOURS[0], canvas.METHOD_COLOURS[1], canvas.METHOD_COLOURS[2]


def on_one_machine(facts: Facts, place: Place) -> list[OneMachine]:
    """At the largest batch that has an answer, by number of tasks."""
    known = [m for m in serving_of(facts).one_machine if (m.model, m.workload) == place and m.gain is not None]
    largest = max((m.batch for m in known), default=0.0)
    return sorted((m for m in known if m.batch == largest), key=lambda m: m.num_tasks)


def most_tasks(facts: Facts, place: Place) -> list[TrafficBreakEven]:
    """Uniform and Zipf, for the most tasks measured."""
    rows = [t for t in serving_of(facts).traffic if (t.model, t.workload) == place]
    return [t for t in rows if t.num_tasks == max(r.num_tasks for r in rows)]


def trade_places(facts: Facts) -> list[Place]:
    return [p for p in places_of(facts) if on_one_machine(facts, p) or most_tasks(facts, p)]


def draw_trade(facts: Facts, width: float) -> Figure:
    """Up to two panels a (model, workload)."""
    cells = [
        (place, kind)
        for place in trade_places(facts)
        for kind, rows in (("tasks", on_one_machine(facts, place)), ("traffic", most_tasks(facts, place)))
        if rows
    ]
    columns = canvas.num_columns(width, len(cells))
    figure, axes = canvas.panels(width, [_HEIGHT] * len(cells), columns=columns, left=_LEFT, right=_RIGHT, head=0.5)
    for panel, (place, kind) in zip(axes, cells, strict=True):
        panel.grid(True, axis="y", color=canvas.GRID, linewidth=0.7)
        panel.grid(False, axis="x")
        title, note = (_tasks if kind == "tasks" else _traffic)(panel, facts, place)
        canvas.panel_title(panel, f"{place_name(facts, place)}: {title}", offset_inches=0.14, left=_LEFT - 0.05)
        canvas.note_above(panel, note, left=_LEFT - 0.05)
    return figure


def _tasks(axes: Axes, facts: Facts, place: Place) -> tuple[str, str]:
    rows = on_one_machine(facts, place)
    tasks = [row.num_tasks for row in rows]
    ends = []
    for label, tint, shape, values in (
        ("one engine,\nadapters", _ADAPTERS, "o", [row.adapters for row in rows]),
        ("merged,\nin turns", _MERGED, "s", [row.merged for row in rows]),
    ):
        heights = [value.value or 0.0 if value else 0.0 for value in values]
        axes.plot(tasks, heights, color=tint, marker=shape, markersize=4, markeredgewidth=0, linewidth=1.5)
        held = [(at, value.interval) for at, value in zip(tasks, values, strict=True) if value and value.interval]
        axes.vlines(
            [at for at, _ in held], [i.low for _, i in held], [i.high for _, i in held], color=tint, linewidth=1.5
        )
        ends.append((label, tint, heights[-1]))
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    axes.set_xticks(tasks)
    canvas.axis_label(axes, "tasks on one machine")
    label_ends(axes, ends, height=_HEIGHT / 2)
    return "one machine", f"tokens/s, {level_text(rows[0].batch)} requests at once"


def _traffic(axes: Axes, facts: Facts, place: Place) -> tuple[str, str]:
    rows = most_tasks(facts, place)
    one = rows[0]
    crossing = max(row.last.interval.high if row.last.interval else row.last.value or 0.0 for row in rows)
    end = max(1.25 * crossing, 1.1 * one.num_tasks * one.merged_capacity)
    traffic = np.linspace(end / 1200, end, 1200)
    ends = []
    counts = [machines_with_adapters(t, one.adapter_capacity) for t in traffic]
    axes.step(traffic, counts, where="mid", color=_ADAPTERS, linewidth=1.5)
    ends.append(("adapters", _ADAPTERS, counts[-1]))
    for row, tint, label in zip(
        rows, (_MERGED, _ZIPF), ("merged,\nequal shares", "merged,\nZipf shares"), strict=False
    ):
        shares = shares_of(row.num_tasks, "uniform" if row.mix == "uniform" else "zipf")
        counts = [machines_merged(t, row.merged_capacity, shares=shares) for t in traffic]
        axes.step(
            traffic, counts, where="mid", color=tint, linewidth=1.2, linestyle="-" if row.mix == "uniform" else "--"
        )
        ends.append((label, tint, counts[-1]))
        if row.last.value:
            axes.axvline(row.last.value, color=tint, linewidth=0.8, linestyle=":", zorder=1)
        if row.last.interval:
            axes.axvspan(row.last.interval.low, row.last.interval.high, color=tint, alpha=0.12, linewidth=0, zorder=0)
    axes.set_xlim(0, end)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="both", nbins=5, integer=False)
    canvas.axis_label(axes, "requests/s of all tasks together")
    label_ends(axes, ends, height=_HEIGHT / 2)
    return f"{one.num_tasks} tasks", "machines needed"
