"""Drift of the residual stream by layer and task, one panel a method: where in the model each task leaves its trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lorascope.report.drift.rows import drift_of
from lorascope.report.page import wording
from lorascope.report.page.facts import Facts
from lorascope.report.page.heat import HeatPanel, draw_heat

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_drift_heat(facts: Facts, width: float) -> Figure:
    """Rows are layers (the last on top), columns tasks."""
    return draw_heat(list(_panels(facts)), width, row_label="layer", column_label="")


def _panels(facts: Facts) -> Iterator[HeatPanel]:
    for model in facts.models:
        for method in facts.methods:
            rows = [
                row
                for row in drift_of(facts).profiles
                if (row.model, row.method, row.site) == (model, method, "residual")
            ]
            if not rows:
                continue
            tasks = [task for task in facts.tasks if any(row.task == task for row in rows)]
            owner = f" · {model}" if len(facts.models) > 1 else ""
            yield HeatPanel(
                title=wording.name(method) + owner,
                rows=tuple(sorted({row.layer for row in rows})),
                columns=tuple(wording.name(task) for task in tasks),
                values={(row.layer, wording.name(row.task)): row.drift.estimate for row in rows},
            )
