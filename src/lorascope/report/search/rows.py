"""The searches of a study as rows: what figures and tables of the section "Search" are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorascope.metrics.metric import Direction
from lorascope.report.page import wording
from lorascope.report.page.facts import Facts

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


@dataclass(frozen=True)
class SearchRow:
    """One search. raw: the result of its `search` step, with model, task and method."""

    raw: Mapping[str, Any]

    @property
    def model(self) -> str:
        return self.raw["model"]

    @property
    def task(self) -> str:
        return self.raw["task"]

    @property
    def method(self) -> str:
        return self.raw["method"]

    @property
    def metric(self) -> str:
        return self.raw["metric"]

    @property
    def direction(self) -> Direction:
        return wording.metric_style(self.metric).direction

    @property
    def trials(self) -> list[dict[str, Any]]:
        return self.raw["trials"]

    @property
    def optimum(self) -> dict[str, Any] | None:
        return self.raw["optimum"]

    @property
    def proposed_by(self) -> str | None:
        """ "optuna 5.0.0"; of several versions, which proposed which trials; None of a grid."""
        return self.raw["proposed_by"]

    @property
    def importance(self) -> Mapping[str, float]:
        return self.raw["importance"] or {}

    @cached_property
    def edges(self) -> dict[str, dict[str, Any]]:
        """Setting -> the end of its range at which the optimum lies."""
        return {edge["name"]: edge for edge in self.raw["edges"]}

    @property
    def finals(self) -> list[float | None]:
        """What each trial scored in the end, in order; None where it was ended early or diverged."""
        return [trial["value"] if trial["state"] == "complete" else None for trial in self.trials]

    def count(self, state: str) -> int:
        return sum(trial["state"] == state for trial in self.trials)

    def total(self, key: str) -> float:
        return sum(trial[key] for trial in self.trials)


def searches_of(facts: Facts) -> list[SearchRow]:
    """Those that ended, in the study's order."""
    rows = [SearchRow(raw) for raw in facts.raw.get("search") or []]
    places = {(model, task, method): None for model, task in facts.cells for method in facts.methods}
    order = {key: place for place, key in enumerate(places)}
    return sorted(rows, key=lambda row: order.get((row.model, row.task, row.method), len(order)))


def cells_of(facts: Facts) -> dict[tuple[str, str], list[SearchRow]]:
    """(model, task) -> its searches."""
    found: dict[tuple[str, str], list[SearchRow]] = {}
    for row in searches_of(facts):
        found.setdefault((row.model, row.task), []).append(row)
    return found


def saved_fraction(rows: Iterable[SearchRow]) -> float | None:
    """Share of the training tokens that pruning spared; None where there was nothing to train."""
    rows = list(rows)
    whole = sum(row.total("unpruned_tokens") for row in rows)
    return 1 - sum(row.total("tokens") for row in rows) / whole if whole else None


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
