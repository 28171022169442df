"""Metrics of quality: how well a run does on test examples. A task names those it reports.

One row is one metric, listed in `registry.METRICS`; a plug-in adds rows by entry points of the group `lorascope.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from lorascope.errors import StudyError
from lorascope.metrics.counts import f1, mcc
from lorascope.metrics.metric import Direction, FromCounts, Mean, Metric, Ratio, metric_named
from lorascope.plugins import NameTable
from lorascope.registry import METRICS

if TYPE_CHECKING:
    import numpy as np


def _exp(ratio: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.exp(ratio)


ACCURACY = Metric("accuracy", "accuracy", "1", 100, 1, "higher", Mean("correct"), 0.0, 1.0)
F1 = Metric("f1", "F1", "1", 100, 1, "higher", FromCounts(f1), 0.0, 1.0)
MCC = Metric("mcc", "Matthews correlation", "1", 1, 3, "higher", FromCounts(mcc), -1.0, 1.0)
EXACT_MATCH = Metric("exact_match", "exact match", "1", 100, 1, "higher", Mean("exact_match"), 0.0, 1.0)
TOKEN_F1 = Metric("token_f1", "token F1", "1", 100, 1, "higher", Mean("token_f1"), 0.0, 1.0)
LOSS = Metric("loss", "loss", "nat", 1, 3, "lower", Mean("loss"), 0.0)
PERPLEXITY = Metric("perplexity", "perplexity", "1", 1, 3, "lower", Ratio("total_loss", "tokens", _exp), 1.0)


class MetricTable(Mapping[str, Metric]):
    """The rows of a table of names, read at first use. A plug-in's row that cannot be loaded, that calls itself
    otherwise or that has no estimator, is named in a warning and left out."""

    def __init__(self, names: NameTable) -> None:
        self._names = names

    @cached_property
    def _rows(self) -> dict[str, Metric]:
        found = self._names.loaded()
        problems = {name: problem for name, row in found.items() if (problem := _unusable(name, row))}
        for name, problem in problems.items():
            self._names.leave_out(name, f"the metric `{name}` ({self._names[name].origin}) is not used: {problem}")
        return {name: row for name, row in found.items() if name not in problems}

    def __getitem__(self, name: str) -> Metric:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _unusable(name: str, row: Metric) -> str | None:
    if row.name != name:
        return f"it calls itself `{row.name}`"
    return None if row.estimator is not None else "it has no estimator, which says how it comes from examples"


QUALITY = MetricTable(METRICS)
"""Name -> metric, those of plug-ins included."""

DEFAULT = "accuracy"
"""What a task is scored by that says nothing else."""

_UNITS = {"loss": "nat", "total_loss": "nat"}


def quality(name: str, *, where: str | None = None) -> Metric:
    """The metric of this name. Raises StudyError where there is none: with the reason, where a plug-in's is left out, else
    with the nearest name."""
    if name not in QUALITY and (problem := METRICS.problems.get(name)):
        raise StudyError(problem, where=where)
    return metric_named(name, QUALITY, where=where)


def unit_of(name: str) -> str:
    """The unit of a metric, or of a per-example column that metrics are made of, as the measurements table has it."""
    return QUALITY[name].unit if name in QUALITY else _UNITS.get(name, "1")


def share_a_scale(names: Iterable[str]) -> bool:
    """Whether values of these metrics may be averaged: one metric, or several that all lie between bounds."""
    found = set(names)
    return len(found) < 2 or all(quality(name).width is not None for name in found)


def common_direction(names: Iterable[str]) -> Direction | None:
    """Which is better, where all these metrics agree; None where they do not. A name without a row counts as higher."""
    found: set[Direction] = {QUALITY[name].direction if name in QUALITY else "higher" for name in names}
    return found.pop() if len(found) == 1 else None
