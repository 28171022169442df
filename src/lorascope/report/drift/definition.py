"""By which tokens and over which layers drift was measured, and whether another choice would have said something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lorascope.report.drift.answer import less
from lorascope.report.drift.profiles import label_ends
from lorascope.report.drift.rows import base_rows, definition, drift_of
from lorascope.report.drift.scale import set_scale
from lorascope.report.page import canvas, wording
from lorascope.report.page.document import Column, Illustration, Table
from lorascope.report.page.facts import Facts
from lorascope.report.study.ledger import number_columns
from lorascope.stats.analysis import DriftRobustness, HypothesisResult
from lorascope.stats.drift.health import (
    EFFECTIVE_RANK,
    LABEL_CORRELATION,
    LEAST_EFFECTIVE_RANK,
    LENGTH_CORRELATION,
    SINK_NORM,
    SINK_SHARE,
    TOP_SHARE,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POOLINGS = {
    "decision-token": "decision token",
    "non-sink-mean": "mean without sinks",
    "mean": "plain mean",
    "token": "single tokens",
}
_LONG = {
    "decision-token": "at the token on which the model decides",
    "non-sink-mean": "in the mean over an example's tokens but attention sinks",
    "mean": "in the mean over all of an example's real tokens",
    "token": "at single tokens",
}
_HEIGHT, _LEFT, _RIGHT = 1.7, 0.5, 1.2


def definition_sentence(facts: Facts) -> str:
    """What drift in one number is here."""
    known = [found for cell in facts.cells if (found := definition(facts, *cell))]
    if not known:
        return (
            "This drift is by the definition of older versions: features pooled by the one `pooling` of the study (unless it "
            "named another, the mean over all real tokens, attention sinks included), averaged over every layer. In a decoder "
            "such a mean can be mostly the length of the text."
        )
    parts = []
    for found in known:
        counted = found.num_layers - len(found.left_out.get(found.pooling, ()))
        over = f"{counted} of {found.num_layers}" if found.least_effective_rank is not None else "all"
        parts.append((f"{_LONG.get(found.pooling, found.pooling)}, averaged over {over} layers", found))
    same: dict[str, list[str]] = {}
    for text, found in parts:
        same.setdefault(text, []).append(facts.place(found.model, found.task))
    said = "; ".join(text + (f" ({', '.join(places)})" if len(same) > 1 else "") for text, places in same.items())
    why = "" if known[0].least_effective_rank is None else (
        f" Layers whose features have an effective rank below {known[0].least_effective_rank:g} in the base are left out."
    )  # fmt: skip
    return f"Drift is taken {said}.{why}"


def elsewhere_sentence(facts: Facts, result: HypothesisResult) -> str:
    """For the card of a hypothesis: where another definition of drift has another verdict or sign; empty where none has."""
    turned = [row for row in result.elsewhere if row.differs]
    if not turned:
        return ""
    parts = [f"by the {_name(row.pooling, row.every_layer)}: {row.differs}" for row in turned]
    return f"**It depends on how drift is measured**: {'; '.join(parts)}."


def _name(pooling: str, every_layer: bool) -> str:
    return POOLINGS.get(pooling, pooling) + (", every layer" if every_layer else "")


def robustness_table(facts: Facts) -> Table | None:
    """Every arm by every definition of drift that was measured."""
    found = drift_of(facts).robustness
    rows = [
        (
            facts.place(row.model, row.task),
            wording.name(row.method),
            _name(row.pooling, row.every_layer) + (" (primary)" if row.is_primary else ""),
            f"{row.num_layers} of {row.num_all}" if row.num_all else wording.ABSENT,
            wording.ABSENT if row.drift is None else wording.drift(row.drift.estimate),
            wording.ABSENT if row.ratio is None else wording.ratio(row.ratio.estimate),
            wording.ratio_range(row.ratio),
            (row.reason or wording.ABSENT) if row.ratio is None else less(row.ratio.estimate),
        )
        for row in sorted(found, key=lambda row: _rank(facts, row))
    ]
    return Table(
        name="drift_robustness",
        title="Drift in one number by other definitions",
        columns=(
            *number_columns("task", "method", "drift by", numeric_from=3),
            *number_columns("layers", "drift", "ratio", "95% interval", numeric_from=0),
            Column("less or more"),
        ),
        rows=tuple(rows),
        note="Residual stream. Ratio: to the reference method's drift by the same definition. Hypotheses rest on the primary "
        "one. Layers: how many of the blocks' outputs are averaged; the others have fewer than "
        f"{LEAST_EFFECTIVE_RANK:g} directions in the base by that pooling. Every layer: none left out, which with the plain "
        "mean is the definition of lorascope until 0.1.",
    ) if rows else None  # fmt: skip


def _rank(facts: Facts, row: DriftRobustness) -> tuple[int, ...]:
    tasks = ["*", *facts.tasks]
    order = list(POOLINGS)
    return (
        facts.models.index(row.model),
        tasks.index(row.task),
        facts.methods.index(row.method),
        int(not row.is_primary),
        order.index(row.pooling) if row.pooling in order else len(order),
        int(row.every_layer),
    )


def health_table(facts: Facts) -> Table | None:
    """What the base's layers are like, by pooling: one row a (task, pooling), and the sinks of the task."""
    rows = [row for model, task in facts.cells for row in _health_rows(facts, model, task)]
    by_class = any(row[6] != wording.ABSENT for row in rows)
    if not by_class:
        rows = [(*row[:6], *row[7:]) for row in rows]
    return Table(
        name="drift_health",
        title="Health of the base's layers",
        columns=(
            *number_columns("task", "drift by", numeric_from=2),
            Column("left out"),
            *number_columns("effective rank", "top component", "its correlation with 1/length", numeric_from=0),
            *number_columns(*(["with label"] if by_class else []), numeric_from=0),
            *number_columns("sinks", "their norm", numeric_from=0),
        ),
        rows=tuple(rows),
        note="Outputs of the blocks, lowest to highest layer value; decided on the base alone, the same for all runs. "
        "Effective rank: participation ratio of the features' covariance. Top component: its share of the variance, and the "
        f"absolute correlation of its values with 1/length{' and with the class' if by_class else ''}. Sinks: positions of a "
        "sequence whose norm exceeds ten times the median of their sequence, as a share of all, and their norm in medians.",
    ) if rows else None  # fmt: skip


def _health_rows(facts: Facts, model: str, task: str) -> Iterator[tuple[str, ...]]:
    known = definition(facts, model, task)
    for pooling in known.poolings if known else ():
        ranks = _by_layer(facts, model, task, EFFECTIVE_RANK, pooling)
        if not ranks:
            continue
        spans = [
            _span([*_by_layer(facts, model, task, metric, pooling).values()])
            for metric in (TOP_SHARE, LENGTH_CORRELATION, LABEL_CORRELATION)
        ]
        sinks = [_span([*_by_layer(facts, model, task, metric, None).values()]) for metric in (SINK_SHARE, SINK_NORM)]
        left_out = [layer for layer, rank in ranks.items() if rank < LEAST_EFFECTIVE_RANK]
        yield (
            facts.place(model, task),
            POOLINGS.get(pooling, pooling) + (" (primary)" if known and pooling == known.pooling else ""),
            _layers(left_out) if left_out else "none",
            _span([*ranks.values()]),
            *spans,
            *sinks,
        )


def _by_layer(facts: Facts, model: str, task: str, metric: str, pooling: str | None) -> dict[int, float]:
    """Of the blocks' outputs."""
    rows = base_rows(facts, metric, pooling=pooling)
    here = [row for row in rows if (row.model, row.task, row.site) == (model, task, "residual")]
    return {row.layer: row.value for row in sorted(here, key=lambda row: row.layer or 0) if row.layer}


def _span(values: Sequence[float]) -> str:
    if not values:
        return wording.ABSENT
    return " to ".join(dict.fromkeys(wording.significant(pick(values)) for pick in (min, max)))


def _layers(layers: Sequence[int]) -> str:
    """ "1, 12–28"."""
    groups: list[list[int]] = []
    for layer in layers:
        if groups and layer == groups[-1][-1] + 1:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups)


_STYLES: tuple[tuple[str, Any], ...] = (
    (canvas.INK, "-"), (canvas.MUTED, "-"), (canvas.INK, (0, (4, 2))), (canvas.MUTED, (0, (1, 1.2))),
)  # fmt: skip
"""Lines of poolings; colours are kept for methods."""


def health_figure(facts: Facts) -> Illustration | None:
    """Effective rank of the base by layer, one line a pooling."""
    if not any(True for cell in facts.cells for _ in _health_rows(facts, *cell)):
        return None
    return Illustration(
        name="drift_health",
        title="Effective rank of the base by layer",
        caption="Participation ratio of the covariance of the residual stream's features; one line a pooling (solid black: the "
        f"primary one). Layers below the dotted line ({LEAST_EFFECTIVE_RANK:g}) are left out of averages by that pooling.",
        draw=partial(draw_health, facts),
    )


def draw_health(facts: Facts, width: float) -> Figure:
    """One panel a (model, task)."""
    cells = [cell for cell in facts.cells if any(True for _ in _health_rows(facts, *cell))]
    columns = canvas.num_columns(width, len(cells))
    figure, axes = canvas.panels(width, [_HEIGHT] * len(cells), columns=columns, left=_LEFT, right=_RIGHT, head=0.5)
    for panel, (model, task) in zip(axes, cells, strict=True):
        known = definition(facts, model, task)
        assert known is not None
        lines = {pooling: _by_layer(facts, model, task, EFFECTIVE_RANK, pooling) for pooling in known.poolings}
        values = [value for line in lines.values() for value in line.values()]
        note = set_scale(panel, [*values, LEAST_EFFECTIVE_RANK], which="y", kind="log")
        panel.grid(True, axis="y", color=canvas.GRID, linewidth=0.7)
        panel.axhline(LEAST_EFFECTIVE_RANK, color=canvas.MUTED, linewidth=1.0, linestyle=(0, (1, 1.6)))
        ends = []
        for place, (pooling, line) in enumerate(lines.items()):
            tint, style = _STYLES[place % len(_STYLES)]
            panel.plot(list(line), list(line.values()), color=tint, linewidth=1.6, linestyle=style)
            name = POOLINGS.get(pooling, pooling) + (
                "" if style == "-" else " (dashed)" if tint == canvas.INK else " (dotted)"
            )
            ends.append((name, tint, list(line.values())[-1]))
        label_ends(panel, ends, height=_HEIGHT)
        canvas.axis_label(panel, "layer")
        canvas.panel_title(panel, facts.place(model, task), offset_inches=0.14, left=_LEFT - 0.05)
        canvas.note_above(panel, f"effective rank ({note})" if note else "effective rank", left=_LEFT - 0.05)
    return figure
