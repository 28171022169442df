"""Drift in one number by other definitions: does what a study says of it depend on the pooling, or on the layers?

A definition is a pooling together with whether the layers that are unhealthy in the base count. The primary one decides; the
others are shown next to it, and a hypothesis whose verdict or sign differs by one of them says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from lorascope.stats.analysis import DriftRobustness, HypothesisResult, Interval, VerdictElsewhere
from lorascope.stats.drift.health import none_healthy
from lorascope.stats.drift.runs import DriftArm, Key, estimate_log_ratio, estimate_mean
from lorascope.stats.quality.multibootstrap import BootstrapEstimate, average_estimates
from lorascope.study.spec import Study

OVER_BOTH = "t over seeds and examples"
ONE_SEED = "bootstrap over examples, this seed only"

Arms = Mapping[Key, DriftArm]


class Definition(NamedTuple):
    """pooling: None for the primary one of each (model, task)."""

    pooling: str
    every_layer: bool


def definitions(arms: Arms) -> list[Definition]:
    """Every definition that was measured but the primary ones; with no layer left out, where one would be."""
    found = [variant for arm in arms.values() for variant in (arm, *arm.others) if variant.pooling is not None]
    poolings = dict.fromkeys(str(variant.pooling) for variant in found)
    partial = {variant.pooling for variant in found if any(site == "residual" for site, _ in variant.unhealthy)}
    both = [Definition(pooling, every) for pooling in poolings for every in (False, True)]
    return [one for one in both if not one.every_layer or one.pooling in partial]


def arms_by(arms: Arms, definition: Definition) -> dict[Key, DriftArm]:
    """The arms that were measured by this definition, with their drift by it."""
    found = {}
    for key, arm in arms.items():
        for variant in (arm, *arm.others):
            if variant.pooling == definition.pooling:
                found[key] = variant.over_every_layer() if definition.every_layer else variant
    return found


def robustness_rows(study: Study, model: str, arms: Arms) -> Iterator[DriftRobustness]:
    """Of one model: every arm by every definition, the average over tasks of the ratios last; nothing where there is one
    definition."""
    own = {key: arm for key, arm in arms.items() if key[0] == model}
    wanted = definitions(own)
    if len(wanted) < 2:
        return
    for definition in wanted:
        by = arms_by(own, definition)
        ratios: dict[str, list[BootstrapEstimate]] = {}
        for (_, task, method), arm in by.items():
            row, estimate = _row(model, task, method, study.reference, definition, by)
            is_primary = own[model, task, method].pooling == definition.pooling and not definition.every_layer
            yield replace(row, is_primary=is_primary)
            if estimate is not None:
                ratios.setdefault(method, []).append(estimate)
            del arm
        tasks = {key[1] for key in by}
        for method, estimates in ratios.items():
            if len(tasks) > 1 and len(estimates) == len(tasks):
                yield _average(model, method, study.reference, definition, own, estimates)


def _row(
    model: str, task: str, method: str, reference: str, definition: Definition, by: Arms
) -> tuple[DriftRobustness, BootstrapEstimate | None]:
    arm, other = by[model, task, method], by.get((model, task, reference))
    sample, ratio, reason = arm.overall(), None, ""
    drift = None
    num_all = len([layer for layer in arm.layers("residual") if layer > 0])
    if sample is None:
        reason = none_healthy(num_all)
    else:
        estimate = estimate_mean(sample)
        drift = estimate.interval(0.95, method=OVER_BOTH if estimate.num_seeds > 1 else ONE_SEED)
        against = other.overall() if other is not None and method != reference else None
        if against is not None:
            ratio, reason = estimate_log_ratio(sample, against)
    row = DriftRobustness(
        model=model,
        task=task,
        method=method,
        reference=reference,
        pooling=definition.pooling,
        every_layer=definition.every_layer,
        is_primary=False,
        num_layers=len(arm.averaged("residual")),
        num_all=num_all,
        drift=drift,
        ratio=None if ratio is None else ratio_interval(ratio),
        num_seeds=len(arm.seeds),
        reason=reason,
    )
    return row, ratio


def _average(
    model: str, method: str, reference: str, definition: Definition, arms: Arms, estimates: Sequence[BootstrapEstimate]
) -> DriftRobustness:
    average = average_estimates(list(estimates))
    is_primary = not definition.every_layer and all(arm.pooling == definition.pooling for arm in arms.values())
    return DriftRobustness(
        model=model,
        task="*",
        method=method,
        reference=reference,
        pooling=definition.pooling,
        every_layer=definition.every_layer,
        is_primary=is_primary,
        num_layers=0,
        num_all=0,
        drift=None,
        ratio=ratio_interval(average),
        num_seeds=average.num_seeds,
    )


def ratio_interval(estimate: BootstrapEstimate) -> Interval:
    """The 95% interval of a ratio from the estimate of its log."""
    log = estimate.interval(0.95)
    how = f"{OVER_BOTH if estimate.num_seeds > 1 else ONE_SEED}, log scale"
    return Interval(math.exp(log.estimate), math.exp(log.low), math.exp(log.high), 0.95, how)


# ---------------------------------------------------------------------------------------------------------- hypotheses


def with_verdicts_elsewhere(
    results: Sequence[HypothesisResult], arms: Arms, judge: Callable[[Mapping[Key, DriftArm]], list[HypothesisResult]]
) -> list[HypothesisResult]:
    """The results with what those on drift would be by the other definitions. judge: the study's hypotheses on other arms."""
    primary = {arm.pooling for arm in arms.values()}
    others = [one for one in definitions(arms) if one.every_layer or primary != {one.pooling}]
    if not others or not any(_is_on_drift(result) for result in results):
        return list(results)
    found: dict[str, list[VerdictElsewhere]] = {}
    for definition in others:
        for result, again in zip(results, judge(arms_by(arms, definition)), strict=True):
            if _is_on_drift(result):
                found.setdefault(result.name, []).append(_elsewhere(result, again, definition))
    return [replace(result, elsewhere=found.get(result.name, [])) for result in results]


def _is_on_drift(result: HypothesisResult) -> bool:
    return result.kind == "lower" and result.metric == "drift"


def _elsewhere(result: HypothesisResult, again: HypothesisResult, definition: Definition) -> VerdictElsewhere:
    """differs: in words, where the verdict or the side of 1 on which a ratio lies is another."""
    differs = []
    if again.verdict != result.verdict:
        differs.append(f"{again.verdict} instead of {result.verdict}")
    pairs = [("on average", result.average, again.average)]
    theirs = {(part.model, part.task): part.estimate for part in again.parts}
    pairs += [
        (f"{p.model} on {p.task}", p.estimate, theirs.get((p.model, p.task))) for p in result.parts if p.task != "*"
    ]
    turned = [where for where, own, other in pairs if own and other and (own.estimate < 1) != (other.estimate < 1)]
    if turned:
        differs.append(f"the ratio lies on the other side of 1 {', '.join(turned)}")
    return VerdictElsewhere(
        definition.pooling, definition.every_layer, again.verdict, again.average, "; ".join(differs)
    )
