"""Rank correlations over runs: does a run that drifts more score less, forget more, or just change its weights more?

Runs of all methods of one (model, task) are taken together. A run that changes its weights more also drifts more, whatever
the method, so beside each correlation stands the partial one given the weight change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.metrics.quality import quality
from lorascope.stats.analysis import DriftCorrelation, Interval
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

WEIGHT_CHANGE = "relative_update_norm"  # drift/weights.py: |dW| / |W| of all linear weights
FEW_RUNS = 10
_HOW = "Fisher z, Bonett-Wright"

Runs = Mapping[tuple[str, str], float]  # (method, seed) -> value


def spearman(x: np.ndarray, y: np.ndarray) -> Interval | None:
    """Spearman's rho with its 95% interval. x, y: [runs]. None below 4 runs or where x or y is the same in all of them."""
    if len(x) < 4 or _constant(x) or _constant(y):
        return None
    return _interval(_correlate(_ranks(x), _ranks(y)), len(x), given=0)


def partial_spearman(x: np.ndarray, y: np.ndarray, *, given: np.ndarray) -> Interval | None:
    """Spearman's rho of x and y given a third, by the first-order partial correlation of their ranks, with its 95% interval.

    None below 5 runs, and where one of them is constant or follows the third exactly.
    """
    if len(x) < 5 or any(_constant(values) for values in (x, y, given)):
        return None
    ranks = [_ranks(values) for values in (x, y, given)]
    xy, xz, yz = (_correlate(ranks[i], ranks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    left = (1 - xz**2) * (1 - yz**2)
    if left < 1e-12:
        return None
    return _interval((xy - xz * yz) / math.sqrt(left), len(x), given=1)


def _interval(rho: float, num_runs: int, *, given: int) -> Interval:
    """Fisher's z with variance (1 + rho^2 / 2) / (n - 3) (Bonett and Wright 2000), n less by one for each given
    variable (Fisher 1924).

    A perfect rank order has no z: its interval is that of the next lower correlation (two neighbours swapped), up to 1.
    """
    from scipy import stats

    rho = min(max(rho, -1.0), 1.0)
    limit = 1 - 12 / (num_runs * (num_runs**2 - 1))
    near = min(max(rho, -limit), limit)
    reach = float(stats.norm.ppf(0.975)) * math.sqrt((1 + near**2 / 2) / (num_runs - 3 - given))
    low, high = math.tanh(math.atanh(near) - reach), math.tanh(math.atanh(near) + reach)
    return Interval(rho, -1.0 if rho < -limit else low, 1.0 if rho > limit else high, 0.95, _HOW)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy import stats

    return np.asarray(stats.rankdata(values), float)


def _correlate(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) == 0)


# ---------------------------------------------------------------------------------------------------------- of drift


def drift_correlations(
    study: Study, table: pd.DataFrame, *, primary: Mapping[str, str], pooling: Mapping[tuple[str, str], str | None]
) -> list[DriftCorrelation]:
    """Drift against quality (more is better, whatever the metric), weight change and, where a text was scored, forgetting;
    for each (model, task). pooling: of drift in one number, by (model, task)."""
    whole: Any = table[table["example_id"].isna() & table["layer"].isna()]
    found = []
    for model in study.models:
        for task in study.tasks:
            rows = whole[(whole["model"] == model.name) & (whole["task"] == task.name)]
            rows = rows[rows["method"].isin([method.name for method in study.methods])]
            rows = rows[rows["seed"].isin([seed.label for seed in study.seeds])]
            by = pooling.get((model.name, task.name))
            drift = _runs(
                rows[rows["pooling"].isna() | (rows["pooling"] == by)], "drift", split="probe", site="residual"
            )
            if not drift:
                continue
            weight_change = _runs(rows, WEIGHT_CHANGE)
            scores = _runs(rows, primary[task.name], split="test")
            better = quality(primary[task.name]).gain
            others = {
                "quality": {run: better(score, 0.0) for run, score in scores.items()},
                "weight_change": weight_change,
            }
            if forgetting := _runs(rows, "forgetting"):
                others["forgetting"] = forgetting
            found += [
                _correlation((model.name, task.name), drift, (name, y), weight_change) for name, y in others.items()
            ]
    return found


def _runs(rows: Any, metric: str, *, split: str | None = None, site: str | None = None) -> Runs:
    rows = rows[rows["metric"] == metric]
    rows = rows[rows["split"].isna() if split is None else rows["split"] == split]
    rows = rows[rows["site"].isna() if site is None else rows["site"] == site]
    return dict(zip(zip(rows["method"], rows["seed"], strict=True), rows["value"].astype(float), strict=True))


def _correlation(place: tuple[str, str], x: Runs, named: tuple[str, Runs], control: Runs) -> DriftCorrelation:
    name, y = named
    runs = [run for run in x if run in y]
    first, second = (np.array([values[run] for run in runs]) for values in (x, y))
    rho, partial, notes = spearman(first, second), None, [_about(runs)]
    if rho is None:
        notes.append(_why_none(name, first, second))
    if name != "weight_change":
        known = [run for run in runs if run in control]
        if len(known) == len(runs):
            partial = partial_spearman(first, second, given=np.array([control[run] for run in runs]))
        if rho is not None and partial is None:
            few = (
                "5 runs are the fewest for it" if len(runs) < 5 else "weight change is not known apart from the others"
            )
            missing = f"weight change is known of {len(known)} runs only"
            notes.append(f"no partial correlation: {few if len(known) == len(runs) else missing}")
    return DriftCorrelation(*place, "drift", name, rho, partial, len(runs), "; ".join(notes))


def _about(runs: Sequence[tuple[str, str]]) -> str:
    methods = len({method for method, _ in runs})
    text = f"{len(runs)} runs of {methods} {'method' if methods == 1 else 'methods'}, taken as independent"
    return text + (": few, so the interval is rough" if 4 <= len(runs) < FEW_RUNS else "")


def _why_none(name: str, x: np.ndarray, y: np.ndarray) -> str:
    if len(x) < 4:
        return f"{len(x)} runs have both drift and {name.replace('_', ' ')}; an interval takes 4"
    return f"{'drift' if _constant(x) else name.replace('_', ' ')} is the same in all runs"
