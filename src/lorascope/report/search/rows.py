"""The searches of a study as rows: what figures and tables of the section "Search" are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lorascope.metrics.metric import Direction
from lorascope.report.page import wording
from lorascope.report.page.facts import Facts
from lorascope.stats.facts.searches import EdgeFacts, SearchFacts, TrialFacts

SETTINGS = {
    "learning_rate": "learning rate",
    "batch_size": "batch size",
    "warmup": "warm-up",
    "weight_decay": "weight decay",
    "gradient_clip": "gradient clip",
}
SAMPLERS = {
    "tpe": "a tree-structured Parzen estimator (TPE)",
    "gp": "a Gaussian process",
    "random": "random sampling",
    "grid": "a grid",
}


def direction_of(search: SearchFacts) -> Direction:
    """Which scores of it are better."""
    return wording.metric_style(search.metric).direction


def searches_of(facts: Facts) -> list[SearchFacts]:
    """Those that ended, in the study's order."""
    places = {(model, task, method): None for model, task in facts.cells for method in facts.methods}
    order = {key: place for place, key in enumerate(places)}
    return sorted(facts.stated.search, key=lambda row: order.get((row.model, row.task, row.method), len(order)))


def finals_of(search: SearchFacts) -> list[float | None]:
    """What each trial scored in the end, in order; None where it was ended early or diverged."""
    return [trial.value if trial.state == "complete" else None for trial in search.tried]


def edges_of(search: SearchFacts) -> dict[str, EdgeFacts]:
    """Setting -> the end of its range at which the optimum lies."""
    return {edge.name: edge for edge in search.edges}


def count(search: SearchFacts, state: str) -> int:
    """Trials that ended so."""
    return sum(trial.state == state for trial in search.tried)


def total(search: SearchFacts, figure: Callable[[TrialFacts], float]) -> float:
    """A figure summed over the trials."""
    return sum(figure(trial) for trial in search.tried)


def cells_of(facts: Facts) -> dict[tuple[str, str], list[SearchFacts]]:
    """(model, task) -> its searches."""
    found: dict[tuple[str, str], list[SearchFacts]] = {}
    for row in searches_of(facts):
        found.setdefault((row.model, row.task), []).append(row)
    return found


def saved_fraction(rows: Iterable[SearchFacts]) -> float | None:
    """Share of the training tokens that pruning spared; None where there was nothing to train."""
    rows = list(rows)
    whole = sum(total(row, lambda trial: trial.unpruned_tokens) for row in rows)
    return 1 - sum(total(row, lambda trial: trial.tokens) for row in rows) / whole if whole else None


def setting(name: str) -> str:
    return SETTINGS.get(name, name)


def value_text(name: str, value: Any) -> str:
    """A value as people write it: a rate with an exponent, a share of the updates as a percentage."""
    if isinstance(value, str):
        return value
    if name == "learning_rate":
        return wording.rate(value)
    if name == "warmup":
        return wording.fraction(value)
    return f"{value:.3g}"


def range_of(name: str, dimension: Any) -> str:
    """ "5e-5 to 5e-3, log", or the values of a list."""
    if isinstance(dimension, Mapping):
        ends = f"{value_text(name, dimension['low'])} to {value_text(name, dimension['high'])}"
        return f"{ends}, log" if dimension["log"] else ends
    return ", ".join(value_text(name, value) for value in dimension)
