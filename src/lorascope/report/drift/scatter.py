"""A run's drift against another measure of the same run: the size of its weight change, what it forgot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lorascope.report.drift.rows import runs_with
from lorascope.report.drift.scale import set_scale
from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = 2.3
_LEFT, _RIGHT = 0.55, 1.2
_DRIFT = "drift, 1 − CKA"


def draw_drift_v_weights(facts: Facts, width: float) -> Figure:
    """x: ||dW|| / ||W|| of the whole model; y: drift. One dot a run, one panel a model."""
    return _draw(facts, width, metric="relative_update_norm", name="size of the weight change, ‖ΔW‖ / ‖W‖", other="x")


def draw_drift_v_forgetting(facts: Facts, width: float) -> Figure:
    """x: drift; y: how much the loss on general text rose, nat per token. One dot a run, one panel a model."""
    return _draw(facts, width, metric="forgetting", name="forgetting (nat per token)", other="y")


def _draw(facts: Facts, width: float, *, metric: str, name: str, other: Literal["x", "y"]) -> Figure:
    runs = runs_with(facts, metric)
    models = [model for model in facts.models if any(row.model == model for row, _ in runs)]
    columns = canvas.num_columns(width, len(models), panel_width=3.4)
    figure, axes = canvas.panels(width, [_HEIGHT] * len(models), columns=columns, left=_LEFT, right=_RIGHT, head=0.5)
    inner_width = width / columns - _LEFT - _RIGHT
    for panel, model in zip(axes, models, strict=True):
        here = [(row, value) for row, value in runs if row.model == model]
        _panel(panel, facts, here, name=name, other=other)
        _key(panel, facts, [row for row, _ in here], width=inner_width)
        canvas.panel_title(panel, f"{model} (n = {wording.plural(len(here), 'run')})", offset_inches=0.14, left=0.5)
    return figure


def _panel(
    axes: Axes, facts: Facts, runs: Sequence[tuple[Measured, float]], *, name: str, other: Literal["x", "y"]
) -> None:
    axes.grid(True, color=canvas.GRID, linewidth=0.7)
    drifts, others = [row.value for row, _ in runs], [value for _, value in runs]
    x, y = (others, drifts) if other == "x" else (drifts, others)
    x_label, y_label = (name, _DRIFT) if other == "x" else (_DRIFT, name)
    x_note = set_scale(axes, x, which="x", kind="log" if other == "x" else None)
    y_note = set_scale(axes, y, which="y", kind="linear" if other == "y" else None)  # forgetting has a sign
    for (row, _), x_value, y_value in zip(runs, x, y, strict=True):
        axes.plot(
            [x_value],
            [y_value],
            canvas.marker(facts.tasks, row.task),
            color=canvas.colour(facts.methods, row.method),
            markersize=4.6,
            markeredgecolor=canvas.PAGE,
            markeredgewidth=0.5,
            zorder=3,
            clip_on=False,
        )
    canvas.axis_label(axes, x_label + (f" ({x_note})" if x_note else ""))
    canvas.note_above(axes, y_label + (f" ({y_note})" if y_note else ""), left=0.5)


def _key(axes: Axes, facts: Facts, rows: Sequence[Measured], *, width: float) -> None:
    """Methods by colour, tasks by shape, at the right of the panel from its top down. width: of the panel, inches."""
    methods = [method for method in facts.methods if any(row.method == method for row in rows)]
    tasks = [task for task in facts.tasks if any(row.task == task for row in rows)]
    lines = [(wording.name(method), "o", canvas.colour(facts.methods, method)) for method in methods]
    if len(tasks) > 1:
        lines += [(wording.name(task), canvas.marker(facts.tasks, task), canvas.MUTED) for task in tasks]
    for place, (text, shape, tint) in enumerate(lines):
        y = 1 - (0.08 + 0.16 * place + (0.1 if place >= len(methods) else 0.0)) / _HEIGHT
        axes.plot(
            [1 + 0.12 / width],
            [y],
            shape,
            color=tint,
            markersize=4.2,
            markeredgewidth=0,
            transform=axes.transAxes,
            clip_on=False,
        )
        canvas.label_at_right(axes, text, y=y, tint=tint, offset=15)
