"""Metrics of quality: how well a run does on test examples. A task names those it reports.

One row is one metric; a plug-in adds rows through `add_metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lorascope.errors import StudyError
from lorascope.metrics.counts import f1, mcc
from lorascope.metrics.metric import Direction, FromCounts, Mean, Metric, Ratio, metric_named

if TYPE_CHECKING:
    import numpy as np


def _exp(ratio: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.exp(ratio)


_ROWS = (
    Metric("accuracy", "accuracy", "1", 100, 1, "higher", Mean("correct"), 0.0, 1.0),
    Metric("f1", "F1", "1", 100, 1, "higher", FromCounts(f1), 0.0, 1.0),
    Metric("mcc", "Matthews correlation", "1", 1, 3, "higher", FromCounts(mcc), -1.0, 1.0),
    Metric("exact_match", "exact match", "1", 100, 1, "higher", Mean("exact_match"), 0.0, 1.0),
    Metric("token_f1", "token F1", "1", 100, 1, "higher", Mean("token_f1"), 0.0, 1.0),
    Metric("loss", "loss", "nat", 1, 3, "lower", Mean("loss"), 0.0),
    Metric("perplexity", "perplexity", "1", 1, 3, "lower", Ratio("total_loss", "tokens", _exp), 1.0),
)
_METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}

QUALITY: Mapping[str, Metric] = _METRICS
"""Name -> metric, those of plug-ins included."""

DEFAULT = "accuracy"
"""What a task is scored by that says nothing else."""

_UNITS = {"loss": "nat", "total_loss": "nat"}


def quality(name: str, *, where: str | None = None) -> Metric:
    """The metric of this name. Raises StudyError, with the nearest name, where there is none."""
    return metric_named(name, QUALITY, where=where)


def add_metrics(metrics: Iterable[Metric]) -> None:
    """Adds rows. Raises StudyError for a name that another metric has."""
    for metric in metrics:
        if _METRICS.setdefault(metric.name, metric) != metric:
            raise StudyError(
                f"two metrics are called `{metric.name}`: {_METRICS[metric.name].title} and {metric.title}",
                hint="give the one of your own another name",
            )


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
