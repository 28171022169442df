"""Serving in rows: what an arm takes in memory, and how long a request waits by where its adapter lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts
from lorascope.report.serving.rows import Place, arm_name, arms_of, place_name, places_of, repeats_text, serving_of
from lorascope.stats.serving.advice import STATES
from lorascope.stats.serving.analysis import Switching

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.27
_UNITS = (("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30))
_PEAKS = ("peak_device_bytes", "peak_process_bytes")
_ORDER = ("resident", "switched", "cpu", "evicted", "disk")
_SHORT = {"switched": "another's turn", "cpu": "in host memory", "evicted": "read again", "disk": "never read"}


def memory_of(facts: Facts, place: Place) -> dict[str, dict[str, float]]:
    """Arm -> weights, adapters and peak in bytes: medians over repeats, as far as they were measured."""
    found: dict[str, dict[str, float]] = {}
    for arm in arms_of(facts):
        facts_of_arm = {
            cell.metric: cell.median
            for cell in serving_of(facts).cells
            if (cell.model, cell.workload, cell.arm, cell.loop, cell.setting) == (*place, arm, "none", "default")
        }
        peak = next((facts_of_arm[name] for name in _PEAKS if facts_of_arm.get(name)), None)
        if facts_of_arm.get("weights_bytes"):
            found[arm] = {"weights": facts_of_arm["weights_bytes"], "adapters": facts_of_arm.get("adapter_bytes", 0.0)}
            found[arm] |= {"peak": peak} if peak else {}
    return found


def memory_places(facts: Facts) -> list[Place]:
    return [place for place in places_of(facts) if memory_of(facts, place)]


def draw_memory(facts: Facts, width: float) -> Figure:
    """One panel a (model, workload): weights and adapters as a bar, the peak as a mark."""
    places = memory_places(facts)
    heights = [len(memory_of(facts, place)) * _ROW + 0.1 for place in places]
    columns = canvas.num_columns(width, len(places), panel_width=3.4)
    figure, axes = canvas.panels(width, heights, columns=columns, left=1.0, right=1.35)
    arms = arms_of(facts)
    for panel, place in zip(axes, places, strict=True):
        rows = memory_of(facts, place)
        largest = max(max(row.values()) for row in rows.values())
        unit, size = next((u for u in reversed(_UNITS) if largest >= 1.5 * u[1]), _UNITS[0])
        for index, (arm, row) in enumerate(rows.items()):
            y, tint = len(rows) - 1 - index, canvas.colour(arms, arm)
            panel.barh([y], [row["weights"] / size], height=0.56, color=tint, alpha=0.28, linewidth=0)
            panel.barh(
                [y], [row["adapters"] / size], left=[row["weights"] / size], height=0.56, color=tint, linewidth=0
            )
            if "peak" in row:
                panel.plot([row["peak"] / size], [y], "d", color=tint, markersize=4.5, markeredgewidth=0, clip_on=False)
            adapters = f" + {wording.bytes_text(row['adapters'])}" if row["adapters"] else ""
            _beside(panel, y, arm_name(arm), value=f"{wording.bytes_text(row['weights'])}{adapters}")
        panel.set_xlim(0, 1.04 * largest / size)
        _rows(panel, len(rows), unit)
        canvas.panel_title(panel, place_name(facts, place), left=0.95)
    return figure


# ---------------------------------------------------------------------------------------------------------- switching


def switching_of(facts: Facts, place: Place) -> list[Switching]:
    """States from the cheapest."""
    rows = [s for s in serving_of(facts).switching if (s.model, s.workload) == place]
    return sorted(rows, key=lambda s: _ORDER.index(s.state) if s.state in _ORDER else len(_ORDER))


def switching_places(facts: Facts) -> list[Place]:
    return [place for place in places_of(facts) if switching_of(facts, place)]


def draw_switching(facts: Facts, width: float) -> Figure:
    """One panel a (model, workload): latency with its interval, and the ratio to a resident adapter."""
    places = switching_places(facts)
    heights = [len(switching_of(facts, place)) * _ROW + 0.15 for place in places]
    columns = canvas.num_columns(width, len(places), panel_width=3.4)
    figure, axes = canvas.panels(width, heights, columns=columns, left=1.0, right=1.15)
    for panel, place in zip(axes, places, strict=True):
        rows = switching_of(facts, place)
        for index, row in enumerate(rows):
            y = len(rows) - 1 - index
            middle = row.latency_ms.estimate if row.latency_ms else row.median_ms
            if row.latency_ms:
                ends = [row.latency_ms.low, row.latency_ms.high]
                panel.plot(ends, [y, y], color=canvas.METHOD_COLOURS[0], linewidth=1.6, solid_capstyle="butt")
            panel.plot([middle], [y], "o", color=canvas.METHOD_COLOURS[0], markersize=4.4, markeredgewidth=0)
            times = f" ({wording.ratio(row.ratio.estimate)}×)" if row.ratio else ""
            _beside(panel, y, _SHORT.get(row.state, row.state), value=f"{wording.significant(middle, 3)} ms{times}")
        panel.set_xlim(left=0)
        panel.margins(x=0.06)
        _rows(panel, len(rows), "latency of a single request (ms)")
        n = repeats_text(row.num_repeats for row in rows)
        canvas.panel_title(panel, f"{place_name(facts, place)} (n = {n})", left=0.95)
    return figure


def states_text(facts: Facts) -> str:
    """What the rows mean, of the states that occur."""
    shown = {row.state for place in switching_places(facts) for row in switching_of(facts, place)}
    return "; ".join(f"“{_SHORT[s]}”: {STATES[s]}" for s in _ORDER if s in shown and s in _SHORT)


def _rows(axes: Axes, count: int, label: str) -> None:
    axes.set_ylim(-0.6, count - 0.4)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
    canvas.axis_label(axes, label)


def _beside(axes: Axes, y: float, label: str, *, value: str) -> None:
    for text, x, side, offset in ((label, 0, "right", -7), (value, 1, "left", 7)):
        axes.annotate(
            text, (x, y), xycoords=("axes fraction", "data"), xytext=(offset, 0), textcoords="offset points", ha=side,
            va="center", fontsize=canvas.FONT - 0.5, color=canvas.INK,
        )  # fmt: skip
