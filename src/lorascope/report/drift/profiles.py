"""Drift by layer: one line a method with its band, and what drift would be without learning or without a common task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorascope.report.drift.rows import REFERENCES, drift_of, reference_profile, unhealthy_layers
from lorascope.report.drift.scale import set_scale
from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts
from lorascope.stats.analysis import DriftProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = 2.1
_LEFT = 0.5
_RIGHT = 1.05
_LINE = 0.13
"""Inches a label at the end of a line takes."""

_DOTTED, _DASHED = (0, (1, 1.6)), (0, (4, 2))


def draw_profiles(facts: Facts, width: float, *, site: str) -> Figure:
    """One panel a (model, task), all on one scale."""
    cells = [cell for cell in facts.cells if _profiles(facts, *cell, site=site)]
    columns = canvas.num_columns(width, len(cells))
    figure, axes = canvas.panels(width, [_HEIGHT] * len(cells), columns=columns, left=_LEFT, right=_RIGHT, head=0.5)
    shown = [point for cell in cells for point in _points(facts, *cell, site=site)]
    # embeddings that hardly move must not stretch the scale of the layers that do
    values, spread = [value for _, value in shown], [value for layer, value in shown if layer > 0]
    for panel, (model, task) in zip(axes, cells, strict=True):
        note = set_scale(panel, values, which="y", spread=spread)
        _panel(panel, facts, model, task, site=site)
        examples = drift_of(facts).num_examples.get(task)
        seeds = [profile.num_seeds for profile in _profiles(facts, model, task, site=site)]
        n = f" (n = {wording.range_text(seeds)} × {wording.count(examples)})" if examples else ""
        canvas.panel_title(panel, facts.place(model, task) + n, offset_inches=0.14, left=_LEFT - 0.05)
        canvas.note_above(panel, "drift, 1 − CKA" + (f" ({note})" if note else ""), left=_LEFT - 0.05)
    return figure


def _profiles(facts: Facts, model: str, task: str, *, site: str) -> list[DriftProfile]:
    """Of one panel, layers in order."""
    found = [row for row in drift_of(facts).profiles if (row.model, row.task, row.site) == (model, task, site)]
    return sorted((row for row in found if row.method in facts.methods), key=lambda row: row.layer)


def _references(facts: Facts, model: str, task: str, *, site: str) -> dict[str, dict[int, float]]:
    """Label -> profile of the references that belong to no method."""
    found = {
        REFERENCES[name]: reference_profile(facts, name, model=model, task=task, site=site)
        for name in ("random-initialisation", "other-examples", "seed-v-seed")
    }
    return {label: profile for label, profile in found.items() if profile}


def _seeds(facts: Facts, model: str, task: str, *, site: str) -> dict[str, dict[int, float]]:
    """Method -> seed v seed."""
    found = {
        method: reference_profile(facts, "seed-v-seed", model=model, task=task, site=site, method=method)
        for method in facts.methods
    }
    return {method: profile for method, profile in found.items() if profile}


def _points(facts: Facts, model: str, task: str, *, site: str) -> list[tuple[int, float]]:
    """(layer, drift) of all that a panel shows, but of bands only the upper ends: a lower one near 0 would stretch a
    log scale."""
    profiles = _profiles(facts, model, task, site=site)
    lines = [*_references(facts, model, task, site=site).values(), *_seeds(facts, model, task, site=site).values()]
    return [
        *((row.layer, value) for row in profiles for value in (row.drift.estimate, row.drift.high)),
        *(point for line in lines for point in line.items()),
    ]


def _panel(axes: Axes, facts: Facts, model: str, task: str, *, site: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(True, axis="y", color=canvas.GRID, linewidth=0.7)
    axes.grid(False, axis="x")
    for layer in unhealthy_layers(facts, model, task, site=site):
        axes.axvspan(layer - 0.5, layer + 0.5, color=canvas.GRID, alpha=0.6, linewidth=0, zorder=0)
    ends: list[tuple[str, str, float]] = []
    for label, profile in _references(facts, model, task, site=site).items():
        style = _DASHED if label == REFERENCES["seed-v-seed"] else _DOTTED
        axes.plot(list(profile), list(profile.values()), color=canvas.MUTED, linewidth=1.3, linestyle=style, zorder=2)
        ends.append((label, canvas.MUTED, list(profile.values())[-1]))
    for method, profile in _seeds(facts, model, task, site=site).items():
        tint = canvas.colour(facts.methods, method)
        axes.plot(list(profile), list(profile.values()), color=tint, linewidth=1.0, linestyle=_DASHED, zorder=2)
    shown = _profiles(facts, model, task, site=site)
    for method in facts.methods:
        rows = [row for row in shown if row.method == method]
        if rows:
            _line(axes, facts, rows)
            ends.append((wording.name(method), canvas.colour(facts.methods, method), rows[-1].drift.estimate))
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    canvas.axis_label(axes, "layer (0: embeddings)" if site == "residual" else "layer")
    label_ends(axes, ends)


def _line(axes: Axes, facts: Facts, rows: list[DriftProfile]) -> None:
    tint = canvas.colour(facts.methods, rows[0].method)
    alpha = 0.2 if len(facts.methods) <= 3 else 0.1
    layers = [row.layer for row in rows]
    low, high = ([getattr(row.drift, end) for row in rows] for end in ("low", "high"))
    if axes.get_yscale() == "log":
        low = [max(value, axes.get_ylim()[0]) for value in low]
    axes.fill_between(layers, low, high, color=tint, alpha=alpha, linewidth=0, zorder=1)
    shape = canvas.marker(facts.methods, rows[0].method)
    few = len(layers) <= 14
    axes.plot(
        layers,
        [row.drift.estimate for row in rows],
        color=tint,
        linewidth=1.8,
        marker=shape if few else None,
        markersize=3.2,
        markeredgewidth=0,
        zorder=3,
    )


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]], *, height: float = _HEIGHT) -> None:
    """Names at the ends of lines, in fractions of the panel's height so that any scale will do. ends: (name, colour, value).
    height: of the panel, inches."""
    to_fraction = axes.transAxes.inverted()
    heights = [float(to_fraction.transform(axes.transData.transform((0, y)))[1]) for _, _, y in ends]
    placed = canvas.spread(heights, gap=_LINE / height, low=0.0, high=1.0)
    for (label, tint, _), y in zip(ends, placed, strict=True):
        canvas.label_at_right(axes, label, y=y, tint=tint)
