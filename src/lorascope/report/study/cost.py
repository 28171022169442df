"""What each method costs: time, throughput, memory, parameters, export. One dot a run, the median as a bar."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.25
_LEFT = 1.2
_RIGHT = 0.55


@dataclass(frozen=True)
class CostMeasure:
    """key: field of a run. units: (name, size in the field's own unit), the smallest first; {unit} in a name stands for what
    the size of an example counts."""

    key: str
    label: str
    units: tuple[tuple[str, float], ...]

    def unit_for(self, largest: float) -> tuple[str, float]:
        """The largest unit of which the panel's largest value holds at least one and a half."""
        return next((unit for unit in reversed(self.units) if largest >= 1.5 * unit[1]), self.units[0])


_BYTES = (("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30))
MEASURES = (
    CostMeasure("training_seconds", "training time of a run", (("s", 1.0), ("min", 60.0), ("h", 3600.0))),
    CostMeasure("tokens_per_second", "throughput without padding", (("{unit}s/s", 1.0), ("thousand {unit}s/s", 1e3))),
    CostMeasure("peak_memory_bytes", "peak memory", _BYTES),
    CostMeasure(
        "trainable_parameters", "trainable parameters", (("thousands", 1e3), ("millions", 1e6), ("billions", 1e9))
    ),
    CostMeasure("export_bytes", "exported checkpoint", _BYTES),
    CostMeasure("energy_joules", "energy of a run", (("J", 1.0), ("kJ", 1e3), ("MJ", 1e6))),
)


def draw_cost(facts: Facts, width: float) -> Figure:
    """One panel a measure and model; a measure that no run has (energy on most machines) has no panel."""
    cells = [
        (measure, model)
        for measure in MEASURES
        for model in facts.models
        if any(values(facts, model, method, measure.key) for method in facts.methods)
    ]
    heights = [
        sum(bool(values(facts, model, m, measure.key)) for m in facts.methods) * _ROW + 0.1 for measure, model in cells
    ]
    columns = canvas.num_columns(width, len(cells))
    figure, axes = canvas.panels(width, heights, columns=columns, left=_LEFT, right=_RIGHT)
    for axis, (measure, model) in zip(axes, cells, strict=True):
        _panel(axis, facts, measure, model=model)
    return figure


def values(facts: Facts, model: str, method: str, key: str, *, task: str | None = None) -> list[float]:
    """One value a run, the missing ones left out."""
    found = (wording.as_float(getattr(run, key)) for run in facts.cell_runs(model, task, method))
    return [value for value in found if value is not None]


def _panel(axes: Axes, facts: Facts, measure: CostMeasure, *, model: str) -> None:
    methods = [method for method in facts.methods if values(facts, model, method, measure.key)]
    largest = max(max(values(facts, model, method, measure.key)) for method in methods)
    unit, size = measure.unit_for(largest)
    axes.set_ylim(-0.6, len(methods) - 0.4)
    for place, method in enumerate(methods):
        y = len(methods) - 1 - place
        numbers = [value / size for value in values(facts, model, method, measure.key)]
        middle = median(numbers)
        tint = canvas.colour(facts.methods, method)
        axes.barh([y], [middle], height=0.56, color=tint, alpha=0.28, linewidth=0)
        axes.plot(numbers, [y] * len(numbers), "o", color=tint, markersize=2.8, markeredgewidth=0, alpha=0.8)
        for text, x, side, offset in (
            (wording.name(method), 0, "right", -7),
            (wording.significant(middle, 3), 1, "left", 6),
        ):
            axes.annotate(
                text,
                (x, y),
                xycoords=("axes fraction", "data"),
                xytext=(offset, 0),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=canvas.FONT - 0.5,
                color=canvas.INK,
            )
    axes.set_xlim(left=0)
    axes.margins(x=0.04)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
    canvas.axis_label(axes, unit.format(unit=facts.unit))
    owner = f" · {model}" if len(facts.models) > 1 else ""
    canvas.panel_title(axes, measure.label + owner, left=_LEFT - 0.05)
