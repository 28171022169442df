"""Drift during training: layer by update, the mean over seeds, one panel an arm. Only for studies that took snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING

from lorascope.report.drift.rows import snapshot_rows
from lorascope.report.page import wording
from lorascope.report.page.facts import Facts
from lorascope.report.page.heat import HeatPanel, draw_heat

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_drift_dynamics(facts: Facts, width: float) -> Figure:
    """Rows are layers (the last on top), columns updates at which a snapshot was taken."""
    return draw_heat(list(_panels(facts)), width, row_label="layer", column_label="updates")


def _panels(facts: Facts) -> Iterator[HeatPanel]:
    arms: dict[tuple[str, str, str], dict[tuple[int, int], list[float]]] = {}
    for update, row in snapshot_rows(facts):
        cells = arms.setdefault((row.model, row.task, row.method), {})
        cells.setdefault((row.layer or 0, update), []).append(row.value)
    for model, task in facts.cells:
        for method in facts.methods:
            cells = arms.get((model, task, method))
            if cells:
                yield HeatPanel(
                    title=f"{facts.place(model, task)} · {wording.name(method)}",
                    rows=tuple(sorted({layer for layer, _ in cells})),
                    columns=tuple(wording.count(update) for update in sorted({update for _, update in cells})),
                    values={(layer, wording.count(update)): fmean(found) for (layer, update), found in cells.items()},
                )
