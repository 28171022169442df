"""Runs that learnt nothing: a mean over seeds hides a collapsed one, so each run is looked at on its own.

A collapsed run is named and counted, and never dropped: verdicts use all runs. What a verdict would be without them is
shown as secondary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lorascope.metrics.quality import quality
from lorascope.stats.analysis import CollapsedRun
from lorascope.stats.quality.arms import ScoredArm

MAJORITY = "majority"
UNSTABLE_ABOVE = 0.2
"""The share of collapsed runs above which an arm is called unstable."""

Arms = Mapping[tuple[str, str, str], ScoredArm]


def collapsed_runs(arms: Arms, baselines: Arms, primary: Mapping[str, str]) -> list[CollapsedRun]:
    """Runs that predict one class for all test examples, or do not beat the task's majority baseline on its primary metric.

    arms, baselines: (model, task, name) -> its rows. A task without a majority baseline is only asked the first.
    """
    found = []
    for (model, task, method), arm in arms.items():
        metric = quality(primary[task])
        majority = baselines.get((model, task, MAJORITY))
        floor = None if majority is None else float(majority.seed_scores(metric)[0])
        for index, (seed, score) in enumerate(zip(arm.seeds, arm.seed_scores(metric), strict=True)):
            constant = _constant(arm, index)
            if constant is not None:
                why = f"predicts class {constant} for all {len(arm.examples)} test examples"
            elif floor is not None and not metric.is_better(float(score), floor):
                why = f"its {metric.title} ({score:.3f}) does not beat the majority ({floor:.3f})"
            else:
                continue
            found.append(CollapsedRun(model, task, method, seed, why))
    return found


def _constant(arm: ScoredArm, index: int) -> int | None:
    """The class that a run predicts for every example; None where it predicts several, or no classes at all."""
    if "prediction" not in arm.rows or "label" not in arm.rows:
        return None
    predictions, labels = arm.rows["prediction"][index], arm.rows["label"][index]
    one = predictions[0]
    return int(one) if bool(np.all(predictions == one)) and not bool(np.all(labels == one)) else None


def without_collapsed(arms: Arms, collapsed: list[CollapsedRun]) -> dict[tuple[str, str, str], ScoredArm]:
    """The arms with their collapsed runs left out; an arm whose runs have all collapsed is absent."""
    gone = {(run.model, run.task, run.method, run.seed) for run in collapsed}
    kept = {}
    for key, arm in arms.items():
        seeds = tuple(seed for seed in arm.seeds if (*key, seed) not in gone)
        if seeds:
            kept[key] = replace(arm, seeds=seeds, rows={name: arm.at(seeds, name) for name in arm.rows})
    return kept


def unstable_arms(arms: Arms, collapsed: list[CollapsedRun]) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(model, task, method) -> (collapsed runs, all runs), of arms that lose more than one run in five."""
    counts: dict[tuple[str, str, str], int] = {}
    for run in collapsed:
        key = (run.model, run.task, run.method)
        counts[key] = counts.get(key, 0) + 1
    return {
        key: (count, len(arms[key].seeds))
        for key, count in counts.items()
        if count > UNSTABLE_ABOVE * len(arms[key].seeds)
    }
