"""From per-example rows to scores, as a metric's estimator says, for any weights of the examples.

The one idea: a resample gives each example a weight (how often it was drawn). Confusion counts and sums are linear in the
weights, so one matrix product scores every resample; only a corpus score has to be computed draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lorascope.errors import DataError
from lorascope.metrics.metric import Corpus, Estimator, FromCounts, Mean, Metric, Ratio

Scorer = Callable[[np.ndarray], np.ndarray]
"""Weights [draws, examples] -> scores [draws, seeds]."""
Rows = Mapping[str, np.ndarray]
"""Per-example column -> float64 [seeds, examples]."""


def whole_scores(estimator: Estimator, rows: Rows, *, num_classes: int) -> np.ndarray:
    """[seeds]: each seed's score on all examples. num_classes: of counts; others ignore it."""
    if isinstance(estimator, Mean):
        return rows[estimator.column].mean(1)
    num_examples = rows[estimator.columns[0]].shape[1]
    return scorer(estimator, rows, num_classes=num_classes)(np.ones((1, num_examples)))[0]


def score_of(metric: Metric, columns: Mapping[str, np.ndarray]) -> float:
    """The metric of one run, from its per-example columns, float64 [examples]. Raises DataError where one is absent."""
    assert metric.estimator is not None, f"{metric.name} is one number a run, and not made of examples"
    lacking = [name for name in metric.estimator.columns if name not in columns]
    if lacking:
        raise DataError(
            f"the metric `{metric.name}` is made of the per-example columns {', '.join(metric.estimator.columns)}, and the "
            f"task gives no {' and no '.join(lacking)}",
            hint=f"columns of the task's `example_scores`: {', '.join(columns)}",
        )
    rows = {name: columns[name][None] for name in metric.estimator.columns}
    num_classes = 2
    if isinstance(metric.estimator, FromCounts):
        num_classes = max(int(max(values.max() for values in rows.values())) + 1, 2)
    return float(whole_scores(metric.estimator, rows, num_classes=num_classes)[0])


def scorer(estimator: Estimator, rows: Rows, *, num_classes: int) -> Scorer:
    """What scores the seeds' rows under weights of the examples."""
    if isinstance(estimator, FromCounts):
        return _from_counts(estimator, rows, num_classes)
    if isinstance(estimator, Ratio):
        return _ratio(estimator, rows)
    if isinstance(estimator, Corpus):
        return _corpus(estimator, rows)
    values = rows[estimator.column]
    return lambda weights: weights @ values.T / weights.sum(1, keepdims=True)


def confusion_cells(labels: np.ndarray, predictions: np.ndarray, *, num_classes: int) -> np.ndarray:
    """[examples, classes * classes] float64: 1 in the cell (label, prediction) of each example."""
    cells = np.zeros((len(labels), num_classes * num_classes))
    cells[np.arange(len(labels)), labels * num_classes + predictions] = 1.0
    return cells


def _from_counts(estimator: FromCounts, rows: Rows, num_classes: int) -> Scorer:
    pairs = zip(rows["label"].astype(int), rows["prediction"].astype(int), strict=True)
    cells = np.concatenate([confusion_cells(y, p, num_classes=num_classes) for y, p in pairs], axis=1)
    return lambda weights: estimator.function(
        (weights @ cells).reshape(len(weights), -1, num_classes, num_classes)
    )  # fmt: skip


def _ratio(estimator: Ratio, rows: Rows) -> Scorer:
    above, below = rows[estimator.numerator].T, rows[estimator.denominator].T
    transform = estimator.transform or (lambda ratio: ratio)
    return lambda weights: transform((weights @ above) / (weights @ below))


def _corpus(estimator: Corpus, rows: Rows) -> Scorer:
    num_seeds = len(rows[estimator.columns[0]])

    def score(weights: np.ndarray) -> np.ndarray:
        found = np.empty((len(weights), num_seeds))
        for draw, times in enumerate(weights):
            drawn = np.repeat(np.arange(len(times)), times.astype(int))
            for seed in range(num_seeds):
                found[draw, seed] = estimator.score({name: rows[name][seed, drawn] for name in estimator.columns})
        return found

    return score
