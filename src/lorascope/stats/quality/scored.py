"""Scores of arms and of baselines on every metric that a task reports, checked against what the runs themselves reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.errors import DataError
from lorascope.metrics.quality import QUALITY, quality
from lorascope.stats.analysis import Score
from lorascope.stats.quality.arms import BASELINE_PREFIX, ScoredArm
from lorascope.stats.quality.multibootstrap import estimate_difference, metric_scores
from lorascope.stats.quality.paired import t_interval

if TYPE_CHECKING:
    import pandas as pd

Arms = Mapping[tuple[str, str, str], ScoredArm]
_SUMMARY_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ScoredStudy:
    """primary: of each arm on its task's primary metric; others: on its further metrics; baselines: on all of them."""

    primary: list[Score]
    others: list[Score]
    baselines: list[Score]

    def further_metrics(self, task: str) -> tuple[str, ...]:
        """What a task is scored by besides its primary metric."""
        return tuple(dict.fromkeys(score.metric for score in self.others if score.task == task))


def score_arms(
    arms: Arms, baselines: Arms, table: pd.DataFrame, *, primary: Mapping[str, str], generator_seed: int
) -> ScoredStudy:
    """Raises DataError where a summary in the table contradicts its per-example rows."""
    others = _other_metrics(table, primary)
    scores = [_score(arm, primary[arm.task]) for arm in arms.values()]
    other_scores = [_score(arm, metric) for arm in arms.values() for metric in others.get(arm.task, ())]
    _require_agreeing_summaries([*scores, *other_scores], table)
    of_baselines = [
        _baseline_score(arm, metric, generator_seed)
        for arm in baselines.values()
        for metric in (primary[arm.task], *others.get(arm.task, ()))
        if _has_columns(arm, metric)
    ]
    return ScoredStudy(scores, other_scores, of_baselines)


def _score(arm: ScoredArm, metric: str) -> Score:
    row = quality(metric, where=f"tasks.{arm.task}")
    values = arm.seed_scores(row)
    interval = t_interval(values)
    return Score(
        model=arm.model,
        task=arm.task,
        method=arm.method,
        metric=metric,
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        interval=interval.within(row.low, row.high) if interval else None,
        seeds={seed: float(value) for seed, value in zip(arm.seeds, values, strict=True)},
        num_examples=len(arm.examples),
    )


def _baseline_score(baseline: ScoredArm, metric: str, generator_seed: int) -> Score:
    """With an interval over test examples (and over draws, where the baseline draws)."""
    row = quality(metric)
    assert row.estimator is not None
    scores = metric_scores(
        row.estimator,
        baseline.columns(row, baseline.seeds),
        num_classes=baseline.num_classes(row),
        generator=np.random.default_rng(generator_seed),
    )
    estimate = estimate_difference(scores, continuous=row.width is None)
    interval = estimate.interval(0.95, method="bootstrap over examples").within(row.low, row.high)
    return Score(
        model=baseline.model,
        task=baseline.task,
        method=baseline.method,
        metric=metric,
        mean=estimate.mean,
        sd=float(scores.values.std(ddof=1)) if len(scores.values) > 1 else None,
        interval=interval,
        seeds={seed: float(value) for seed, value in zip(baseline.seeds, scores.values, strict=True)},
        num_examples=len(baseline.examples),
    )


def _other_metrics(table: pd.DataFrame, primary: Mapping[str, str]) -> dict[str, list[str]]:
    """Task -> its metrics besides the primary one, as its runs report them; the loss is what is trained on, no score."""
    rows: Any = table[(table["split"] == "test") & table["example_id"].isna() & table["metric"].isin(list(QUALITY))]
    rows = rows[~rows["method"].str.startswith(BASELINE_PREFIX)]
    found: dict[str, list[str]] = {}
    for task, metric in dict.fromkeys(zip(rows["task"], rows["metric"], strict=True)):
        if metric not in (primary.get(task), "loss"):
            found.setdefault(task, []).append(metric)
    return found


def _has_columns(arm: ScoredArm, metric: str) -> bool:
    row = quality(metric)
    return row.estimator is not None and {*row.estimator.columns} <= {*arm.rows}


def _require_agreeing_summaries(scores: Sequence[Score], table: pd.DataFrame) -> None:
    """A summary row on the test split must be what its per-example rows give: or one of them is not the run's."""
    rows = table[(table["split"] == "test") & table["example_id"].isna()]
    columns = zip(rows["model"], rows["task"], rows["method"], rows["metric"], rows["seed"], rows["value"], strict=True)
    stated = {tuple(key): float(value) for *key, value in columns}
    for score in scores:
        for seed, value in score.seeds.items():
            summary = stated.get((score.model, score.task, score.method, score.metric, seed), value)
            if abs(summary - value) > _SUMMARY_TOLERANCE:
                raise DataError(
                    f"{score.method} on {score.task} with {score.model}, seed {seed}: the summary says {score.metric} "
                    f"{summary:.6f}, its test examples give {value:.6f}",
                    hint="The table mixes two evaluations of the run; evaluate it again.",
                )
