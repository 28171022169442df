"""Functional change: how differently two models decide the same examples.

A fresh head makes no prediction before training, so two runs are compared: two seeds of an arm (the floor), or LoRA and
full fine-tuning at one seed. Everything is per example, which is what paired tests need.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lorascope.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

UNITS = {"flip": "fraction", "kl": "nat", "js": "nat"}
"""Measures of change -> their units."""

PROBABILITY_FLOOR = 1e-12
_PREFIX = "probability_"


def prediction_change(reference: pd.DataFrame, run: pd.DataFrame, *, floor: float = PROBABILITY_FLOOR) -> pd.DataFrame:
    """One row an example, in the reference's order: example_id; flip (1 where the predicted classes differ, else 0);
    kl, KL(reference || run), and js, the Jensen-Shannon divergence, of their class probabilities in nats.

    reference, run: prediction rows (`Reading.predict`) of the same examples in any order. floor: probabilities
    below it are raised to it and the row divided by its sum, in both, so that kl is at most about -log(floor) (27.6 nats)
    where one model excludes what the other expects. js is at most log 2.

    Raises DataError where the rows are not of the same examples, classes and labels, or are no probabilities.
    """
    import pandas as pd

    first, second = _by_example(reference, "the reference"), _by_example(run, "the run")
    _refuse_different_examples(first, second)
    second = second.loc[first.index]
    p, q = _probabilities(first, "the reference", floor), _probabilities(second, "the run", floor)
    if p.shape != q.shape:
        raise DataError(
            f"the reference has {p.shape[1]} classes and the run {q.shape[1]}",
            hint="compare two runs of the same task",
        )
    labels = first["label"].to_numpy() != second["label"].to_numpy()
    if labels.any():
        raise DataError(
            f"{int(labels.sum())} examples have another label in the run than in the reference "
            f"(first: {first.index[labels][0]})",
            hint="the runs were scored on different versions of the data; run the study again in one store",
        )
    return pd.DataFrame(
        {
            "example_id": first.index.to_numpy(),
            "flip": (first["prediction"].to_numpy() != second["prediction"].to_numpy()).astype(np.float64),
            "kl": kl_divergence(p, q),
            "js": jensen_shannon_divergence(p, q),
        }
    )


def kl_divergence(
    p: Float[np.ndarray, "examples classes"], q: Float[np.ndarray, "examples classes"]
) -> Float[np.ndarray, " examples"]:
    """KL(p || q) = sum p log(p / q) in nats (Kullback and Leibler 1951). Every probability is above 0."""
    return np.maximum((p * np.log(p / q)).sum(axis=1), 0.0)  # below 0 by rounding alone


def jensen_shannon_divergence(
    p: Float[np.ndarray, "examples classes"], q: Float[np.ndarray, "examples classes"]
) -> Float[np.ndarray, " examples"]:
    """The mean of KL(p || m) and KL(q || m) with m = (p + q) / 2, in nats (Lin 1991): symmetric, at most log 2."""
    middle = (p + q) / 2
    return np.minimum((kl_divergence(p, middle) + kl_divergence(q, middle)) / 2, math.log(2))


def _by_example(predictions: pd.DataFrame, whose: str) -> pd.DataFrame:
    rows = predictions.set_index("example_id")
    repeated = rows.index.duplicated()
    if repeated.any():
        raise DataError(
            f"{whose} predicts example {rows.index[repeated][0]} twice",
            hint="give the predictions of one run, one row an example",
        )
    return rows


def _refuse_different_examples(first: pd.DataFrame, second: pd.DataFrame) -> None:
    missing, extra = first.index.difference(second.index), second.index.difference(first.index)
    if len(missing) or len(extra):
        raise DataError(
            f"the two runs predict different examples: {len(missing)} of the reference's {len(first)} are not in the "
            f"run, {len(extra)} of the run's {len(second)} not in the reference (first: {[*missing, *extra][0]})",
            hint="only predictions of one test set can be compared; were the runs made from different data?",
        )


def _probabilities(predictions: pd.DataFrame, whose: str, floor: float) -> Float[np.ndarray, "examples classes"]:
    """The rows' class probabilities, none below the floor."""
    count = sum(str(name).startswith(_PREFIX) for name in predictions.columns)
    found = predictions[[f"{_PREFIX}{index}" for index in range(count)]].to_numpy(dtype=np.float64)
    sums = found.sum(axis=1)
    wrong = ~((found >= 0).all(axis=1) & (np.abs(sums - 1) < 1e-6))  # a NaN is wrong too
    if wrong.any():
        raise DataError(
            f"the class probabilities of {whose} are no distribution in {int(wrong.sum())} examples "
            f"(first: {predictions.index[wrong][0]}, sum {sums[wrong][0]:.6g})",
            hint="a diverged run cannot be compared; remove it or train it again",
        )
    raised = np.maximum(found, floor)
    return raised / raised.sum(axis=1, keepdims=True)
