"""What the measurements say on each part of a hypothesis: paired differences of quality, ratios of cost and of drift.

A part is one (model, task); its evidence is an estimate with its variance components, or the reason why there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lorascope.errors import DataError
from lorascope.metrics.quality import quality, share_a_scale
from lorascope.stats.drift.health import none_healthy
from lorascope.stats.drift.runs import (
    NO_SHARED_SEED,
    DriftArm,
    DriftSample,
    Key,
    average_log_ratios,
    estimate_log_ratio,
)
from lorascope.stats.facts.study import Seeding
from lorascope.stats.hypotheses import ONE_SEED, Evidence, Test
from lorascope.stats.quality.arms import ScoredArm
from lorascope.stats.quality.multibootstrap import (
    BootstrapEstimate,
    SeedDifferences,
    average_differences,
    average_estimates,
    average_over_tasks,
    estimate_difference,
    metric_differences,
    metric_scores,
    ratio_of_means,
)
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

NOT_ALL_MEASURED = "not every model and task is measured yet"
_SAME_IN_EVERY_SEED = ("trainable_parameters", "export_bytes")

Arms = Mapping[tuple[str, str, str], ScoredArm]


class Pairs:
    """Paired differences of two methods of a (model, task), on the seeds both have."""

    def __init__(self, arms: Arms, generator_seed: int) -> None:
        self.arms, self.generator_seed = arms, generator_seed

    def seeds(self, *keys: tuple[str, str, str]) -> tuple[str, ...]:
        """Seeds that every one of these arms has, in the study's order; none if an arm is absent."""
        if any(key not in self.arms for key in keys):
            return ()
        return tuple(s for s in self.arms[keys[0]].seeds if all(s in self.arms[key].seeds for key in keys[1:]))

    def differences(
        self, method: ScoredArm, reference: ScoredArm, *, metric: str, seeds: tuple[str, ...]
    ) -> SeedDifferences:
        """method - reference of each seed, in the metric's own unit."""
        row = quality(metric)
        first, second = (arm.columns(row, seeds) for arm in (method, reference))
        assert row.estimator is not None
        return metric_differences(
            row.estimator,
            first,
            second,
            num_classes=max(arm.num_classes(row) for arm in (method, reference)),
            generator=np.random.default_rng(self.generator_seed),
        )

    def scores(self, arm: ScoredArm, *, metric: str, seeds: tuple[str, ...]) -> SeedDifferences:
        """What each seed of an arm scores, under the resamples that all arms share."""
        row = quality(metric)
        assert row.estimator is not None
        return metric_scores(
            row.estimator,
            arm.columns(row, seeds),
            num_classes=arm.num_classes(row),
            generator=np.random.default_rng(self.generator_seed),
        )

    def ratio(
        self, method: ScoredArm, reference: ScoredArm, *, metric: str, seeds: tuple[str, ...]
    ) -> BootstrapEstimate:
        """The ratio of the arms' means over seeds and examples."""
        scores = [[self.scores(arm, metric=metric, seeds=seeds)] for arm in (method, reference)]
        ratio, (around,) = ratio_of_means(*scores)
        return replace(estimate_quality(around, metric), mean=ratio)

    def estimate(
        self, method: ScoredArm, reference: ScoredArm, *, metric: str, seeds: tuple[str, ...]
    ) -> BootstrapEstimate:
        """The mean of `differences` over seeds and examples."""
        return estimate_quality(self.differences(method, reference, metric=metric, seeds=seeds), metric)


def estimate_quality(differences: SeedDifferences, metric: str) -> BootstrapEstimate:
    """A metric without a bound does not count examples, so that no example is the least it can differ by."""
    return estimate_difference(differences, continuous=quality(metric).width is None)


def unless_broken(
    parts: Sequence[Evidence], average: Evidence, test: Test, broken: Mapping[tuple[str, str, str], str]
) -> tuple[list[Evidence], Evidence]:
    """Evidence on an arm that failed a gate may be shown but decides nothing, and neither does an average over it."""
    judged, unsound = [], []
    for part in parts:
        reasons = [
            f"{arm} {broken[part.model, part.task, arm]}"
            for arm in (test.method, test.reference)
            if (part.model, part.task, arm) in broken
        ]
        if reasons:
            part = replace(part, usable=False, why="; ".join(reasons), remedy=_remedy(reasons))
            unsound.append(part)
        judged.append(part)
    if unsound:
        why = "; ".join(f"{part.model} on {part.task}: {part.why}" for part in unsound)
        average = replace(average, usable=False, why=why, remedy=unsound[0].remedy)
    return judged, average


def _remedy(reasons: Sequence[str]) -> str:
    """What makes an arm pass the gates that it failed."""
    if any("the gate `beats baselines`" in reason for reason in reasons):
        return "the baselines of its task, which `lorascope run` measures"
    if all("the gate `beats " in reason for reason in reasons):
        return (
            "an arm that beats its baselines: search its learning rate (`search: {}`), train longer (`train.epochs`), or give "
            "it more training examples"
        )
    return "an arm that passes its gates"


def no_common_direction(
    study: Study, test: Test, metrics: Mapping[str, str], *, pairs: Pairs, seeding: Seeding
) -> tuple[list[Evidence], Evidence]:
    """No evidence: of one metric more is better, of another less, so that one threshold cannot hold for both."""
    del pairs, seeding
    ways = "; ".join(f"{task}: {name}, {quality(name).direction} is better" for task, name in metrics.items())
    why = f"the tasks' metrics are not of one direction ({ways}), so one claim cannot span them"
    remedy = "a claim `on` a metric that every task has, or a study for each kind of task"
    return (
        [Evidence(model.name, task.name, None, False, why, remedy) for task in study.tasks for model in study.models],
        Evidence("*", "*", None, False, why, remedy),
    )


def quality_evidence(
    study: Study, test: Test, metrics: Mapping[str, str], *, pairs: Pairs, seeding: Seeding
) -> tuple[list[Evidence], Evidence]:
    """Evidence for each (model, task), and for their average.

    Tasks have examples of their own; models of a task share its examples and are averaged before the variance is taken.
    """
    parts: dict[tuple[str, str], Evidence] = {}
    arms_of = {
        task.name: [(m.name, task.name, arm) for m in study.models for arm in (test.method, test.reference)]
        for task in study.tasks
    }
    for task, keys in arms_of.items():
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            parts[first[0], task] = _part_evidence(pairs, first, second, metric=metrics[task], is_ratio=test.is_ratio)
    in_all = pairs.seeds(*(key for keys in arms_of.values() for key in keys))
    by_task, centre = [], 0.0
    seeds_of = {task: in_all if seeding == "shared" else pairs.seeds(*keys) for task, keys in arms_of.items()}
    measured = {task: seeds for task, seeds in seeds_of.items() if seeds}
    if test.is_ratio and measured:
        scored = [
            [
                average_differences([pairs.scores(pairs.arms[key], metric=metrics[task], seeds=seeds) for key in keys])
                for task, seeds in measured.items()
                for keys in [arms_of[task][side::2]]
            ]
            for side in (0, 1)
        ]
        centre, by_task = ratio_of_means(*scored)
    elif measured:
        for task, seeds in measured.items():
            arms = [
                (pairs.arms[a], pairs.arms[b]) for a, b in zip(arms_of[task][::2], arms_of[task][1::2], strict=True)
            ]
            differences = [pairs.differences(a, b, metric=metrics[task], seeds=seeds) for a, b in arms]
            by_task.append(average_differences(differences))
    average = Evidence("*", "*", None, False, NOT_ALL_MEASURED)
    if not share_a_scale(metrics.values()):
        names = ", ".join(dict.fromkeys(metrics.values()))
        why = f"the tasks' metrics ({names}) have no unit in common, so that their mean says nothing"
        average = Evidence("*", "*", None, False, why, "a claim `on` one metric, or `over: every`")
    elif len(by_task) == len(study.tasks):
        is_unbounded = any(quality(metric).width is None for metric in metrics.values())
        estimate = estimate_average(by_task, seeding=seeding, continuous=is_unbounded)
        estimate = replace(estimate, mean=estimate.mean + centre)
        average = _average_evidence(list(parts.values()), estimate)
    return list(parts.values()), average


def estimate_average(by_task: Sequence[SeedDifferences], *, seeding: Seeding, continuous: bool) -> BootstrapEstimate:
    """The mean over tasks. Seeds that tasks share are averaged over tasks first; derived ones are independent."""
    if seeding == "shared" and len(by_task) > 1:
        return estimate_difference(average_over_tasks(by_task), continuous=continuous)
    return average_estimates([estimate_difference(one, continuous=continuous) for one in by_task])


def _part_evidence(
    pairs: Pairs, first: tuple[str, str, str], second: tuple[str, str, str], *, metric: str, is_ratio: bool
) -> Evidence:
    seeds = pairs.seeds(first, second)
    if not seeds:
        absent = [key[2] for key in (first, second) if key not in pairs.arms]
        why = f"{' and '.join(absent)} not measured yet" if absent else "the two arms share no seed"
        return Evidence(first[0], first[1], None, False, why)
    estimated = pairs.ratio if is_ratio else pairs.estimate
    estimate = estimated(pairs.arms[first], pairs.arms[second], metric=metric, seeds=seeds)
    usable = len(seeds) > 1
    return Evidence(first[0], first[1], estimate, usable, "" if usable else ONE_SEED)


def _average_evidence(parts: Sequence[Evidence], estimate: BootstrapEstimate) -> Evidence:
    """The average may decide only where each of its parts could."""
    one_seed = any(not part.usable for part in parts) or (estimate.num_seeds < 2 and estimate.variance > 0)
    return Evidence("*", "*", estimate, not one_seed, ONE_SEED if one_seed else "")


def cost_evidence(
    study: Study, test: Test, metrics: Mapping[str, str], *, table: pd.DataFrame, seeding: Seeding
) -> tuple[list[Evidence], Evidence]:
    """Logs of cost ratios, paired by seed: their mean is the log ratio of geometric seed means."""
    costs = table[table["split"].isna() & table["example_id"].isna() & table["site"].isna() & table["layer"].isna()]
    values = {
        tuple(key): float(value)
        for *key, value in zip(
            costs["model"], costs["task"], costs["method"], costs["seed"], costs["metric"], costs["value"], strict=True
        )
    }
    logs: dict[tuple[str, str], dict[str, float]] = {}
    for model in study.models:
        for task in study.tasks:
            metric = metrics[task.name]
            found = logs.setdefault((model.name, task.name), {})
            for seed in study.seeds:
                first, second = (
                    values.get((model.name, task.name, arm, seed.label, metric))
                    for arm in (test.method, test.reference)
                )
                if first is not None and second is not None:
                    place = f"{model.name} on {task.name}, seed {seed.label}"
                    found[seed.label] = _log_ratio(first, second, metric, place)
    parts = [_cost_part(model, task, metrics[task], list(found.values())) for (model, task), found in logs.items()]
    estimates = [part.estimate for part in parts if part.estimate is not None]
    if len(estimates) < len(parts):
        return parts, Evidence("*", "*", None, False, NOT_ALL_MEASURED)
    if seeding == "shared" and len(parts) > 1:
        seeds = [seed.label for seed in study.seeds if all(seed.label in found for found in logs.values())]
        if not seeds:
            return parts, Evidence("*", "*", None, False, "no seed is measured in every part")
        means = [float(np.mean([found[seed] for found in logs.values()])) for seed in seeds]
        return parts, _average_evidence(parts, _estimate_of_logs(means))
    return parts, _average_evidence(parts, average_estimates(estimates))


def _log_ratio(first: float, second: float, metric: str, place: str) -> float:
    if first <= 0 or second <= 0:
        raise DataError(
            f"{metric} of {place} is {min(first, second):g}; a ratio of costs needs both above 0",
            hint="A meter that could not measure leaves its row out instead of writing 0.",
        )
    return math.log(first / second)


def _cost_part(model: str, task: str, metric: str, logs: Sequence[float]) -> Evidence:
    if not logs:
        return Evidence(model, task, None, False, f"no seed has {metric} of both arms")
    usable = len(logs) > 1 or metric in _SAME_IN_EVERY_SEED
    return Evidence(model, task, _estimate_of_logs(logs), usable, "" if usable else ONE_SEED)


def _estimate_of_logs(logs: Sequence[float]) -> BootstrapEstimate:
    """The mean of one number a seed; no examples play a part."""
    n = len(logs)
    between = float(np.var(logs, ddof=1)) if n > 1 else 0.0
    return BootstrapEstimate(float(np.mean(logs)), between / n, max(n - 1, 1), between, 0.0, 0.0, n, 0)


def drift_evidence(
    study: Study, test: Test, *, arms: Mapping[Key, DriftArm], seeding: Seeding
) -> tuple[list[Evidence], Evidence]:
    """Logs of ratios of drift, a run's drift being its mean over the residual stream's layers, paired by seed and by
    resample of the probe examples. Tasks have examples of their own; models of a task share theirs."""
    parts = [_drift_part(model.name, task.name, test, arms=arms) for task in study.tasks for model in study.models]
    without = next((part for part in parts if part.estimate is None), None)
    if without is not None:
        why = f"{without.model} on {without.task}: {without.why}"
        return parts, Evidence("*", "*", None, False, why, without.remedy)
    samples = {
        model.name: [_samples(model.name, task.name, test, arms=arms) for task in study.tasks] for model in study.models
    }
    estimate, why = average_log_ratios(list(samples.values()), seeding=seeding)
    if estimate is None:
        return parts, Evidence("*", "*", None, False, why)
    return parts, _average_evidence(parts, estimate)


def _samples(model: str, task: str, test: Test, *, arms: Mapping[Key, DriftArm]) -> tuple[DriftSample, DriftSample]:
    """The drift of both arms in one number a run; both were measured."""
    first, second = (arms[model, task, method].overall() for method in (test.method, test.reference))
    assert first is not None and second is not None
    return first, second


def _drift_part(model: str, task: str, test: Test, *, arms: Mapping[Key, DriftArm]) -> Evidence:
    found = {method: arms.get((model, task, method)) for method in (test.method, test.reference)}
    samples = [arm.overall() for arm in found.values() if arm is not None]
    if None in samples or len(samples) < 2:
        known = next((arm for arm in found.values() if arm is not None), None)
        if known is not None and known.unhealthy and not known.averaged("residual"):
            blocks = [layer for layer in known.layers("residual") if layer > 0]
            return Evidence(model, task, None, False, none_healthy(len(blocks)), "a study with another `pooling`")
        absent = [method for method, arm in found.items() if arm is None or arm.overall() is None]
        return Evidence(model, task, None, False, f"the drift of {' and '.join(absent)} is not measured yet")
    first, second = (sample for sample in samples if sample is not None)
    estimate, reason = estimate_log_ratio(first, second)
    if estimate is None:
        remedy = "a drift above 0 in every run: more probe examples, or methods that change the model"
        return Evidence(model, task, None, False, reason, Evidence.remedy if reason == NO_SHARED_SEED else remedy)
    usable = estimate.num_seeds > 1
    return Evidence(model, task, estimate, usable, "" if usable else ONE_SEED)
