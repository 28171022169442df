"""Learning curves: validation score and loss over updates, the mean over seeds with the spread of seeds around it.

The one idea: a mean over seeds is drawn only as far as every seed has a value; beyond that (a seed stopped early)
the single seeds go on as thin lines, because a mean over fewer and fewer runs would bend for no reason of learning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = 1.45
_LEFT = 0.48
_RIGHT = 1.05


def validation_names(facts: Facts) -> list[str]:
    """The validation scores that were logged ("validation/accuracy"), without the loss."""
    names = facts.curves["name"].unique()
    return sorted(str(name) for name in names if str(name).startswith("validation/") and name != "validation/loss")


def draw_validation(facts: Facts, width: float, *, name: str) -> Figure:
    """Validation score over updates, one panel a (model, task), the chosen checkpoint of each seed marked."""
    style = facts.metric_style(name.removeprefix("validation/"), task="*")
    return _draw(facts, width, name=name, scale=style.scale, axis=f"validation {style.axis}", mark_best=True)


def draw_loss(facts: Facts, width: float, *, name: str) -> Figure:
    """Training or validation loss over updates. name: "train/loss" or "validation/loss"."""
    style = wording.metric_style("loss")
    axis = f"{'training' if name == 'train/loss' else 'validation'} {style.label} ({style.unit})"
    return _draw(facts, width, name=name, scale=1.0, axis=axis, mark_best=False)


def _draw(facts: Facts, width: float, *, name: str, scale: float, axis: str, mark_best: bool) -> Figure:
    rows = facts.curves.query("name == @name and value == value")
    present = set(zip(rows["model"], rows["task"], strict=True))
    cells = [cell for cell in facts.cells if cell in present]
    columns = canvas.num_columns(width, len(cells))
    figure, axes = canvas.panels(width, [_HEIGHT] * len(cells), columns=columns, left=_LEFT, right=_RIGHT, head=0.5)
    for panel, (model, task) in zip(axes, cells, strict=True):
        here = rows.query("model == @model and task == @task")
        _panel(panel, facts, here, scale=scale, mark_best=mark_best)
        canvas.panel_title(panel, facts.place(model, task), offset_inches=0.14, left=_LEFT - 0.05)
        panel.annotate(
            axis,
            (0, 1),
            xycoords="axes fraction",
            xytext=(-(_LEFT - 0.05) * 72, 5),
            textcoords="offset points",
            fontsize=canvas.FONT - 1,
            color=canvas.MUTED,
        )
    return figure


def _panel(axes: Axes, facts: Facts, rows: pd.DataFrame, *, scale: float, mark_best: bool) -> None:
    axes.grid(True, axis="y", color=canvas.GRID, linewidth=0.7)
    axes.grid(False, axis="x")
    ends: list[tuple[str, float]] = []
    best = {run.run: run.best_update for run in facts.runs if run.best_update is not None} if mark_best else {}
    for method in facts.methods:
        here = rows.query("method == @method")
        if here.empty:
            continue
        seeds = _smooth(here.pivot_table(index="update", columns="run", values="value").sort_index() * scale)
        ends.append((method, _lines(axes, facts, seeds, method=method, best=best)))
    axes.margins(x=0.02, y=0.08)
    axes.set_xlim(left=min(axes.get_xlim()[0], 0))
    _label_ends(axes, facts, ends)
    canvas.axis_label(axes, "updates")
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=5)


def _smooth(seeds: pd.DataFrame) -> pd.DataFrame:
    """Curves logged at every update are averaged in 40 windows: the eye cannot use more, and an SVG should not."""
    windows = 40
    if len(seeds) <= 2 * windows:
        return seeds
    updates = seeds.index.to_numpy()
    width = -(-int(updates.max()) // windows)
    window = (updates - 1) // width
    return cast("pd.DataFrame", seeds.groupby((window + 0.5) * width).mean())


def _lines(axes: Axes, facts: Facts, seeds: pd.DataFrame, *, method: str, best: Mapping[str, int]) -> float:
    """Draw one method; returns the y where its label belongs."""
    tint = canvas.colour(facts.methods, method)
    common = seeds.dropna()
    shared = common.index.max() if len(common) else 0
    for run in seeds.columns:
        line = cast("pd.Series", seeds[run].dropna())
        alone = line.loc[shared:]
        if len(alone) > 1:
            axes.plot(alone.index, alone, color=tint, linewidth=0.7, alpha=0.6, zorder=2)
        if best.get(run) in line.index:
            axes.plot([best[run]], [line[best[run]]], "o", color=tint, markersize=2.8, markeredgewidth=0, zorder=4)
    if common.empty:
        return float(seeds.ffill().iloc[-1].mean())
    mean = common.mean(axis=1)
    if common.shape[1] > 1:
        alpha = 0.2 if len(facts.methods) <= 3 else 0.1
        low, high = common.min(axis=1), common.max(axis=1)
        axes.fill_between(common.index, low, high, color=tint, alpha=alpha, linewidth=0, zorder=1)
    shape = canvas.marker(facts.methods, method) if len(common) == 1 else None
    axes.plot(common.index, mean, color=tint, linewidth=1.9, marker=shape, markersize=4, zorder=3)
    return float(mean.iloc[-1])


def _label_ends(axes: Axes, facts: Facts, ends: list[tuple[str, float]]) -> None:
    low, high = axes.get_ylim()
    gap = (high - low) * 0.13 / _HEIGHT
    placed = canvas.spread([end for _, end in ends], gap=gap, low=low, high=high)
    for (method, _), y in zip(ends, placed, strict=True):
        axes.annotate(
            wording.name(method),
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=canvas.FONT - 1,
            color=canvas.colour(facts.methods, method),
            annotation_clip=False,
        )
