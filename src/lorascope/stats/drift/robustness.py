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
from lorascope.stats.drift.runs import (
    DriftArm,
    DriftSample,
    Key,
    average_log_ratios,
    estimate_log_ratio,
    estimate_mean,
)
from lorascope.stats.facts.study import Seeding
from lorascope.stats.quality.multibootstrap import BootstrapEstimate
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


def robustness_rows(study: Study, model: str, arms: Arms, *, seeding: Seeding) -> Iterator[DriftRobustness]:
    """Of one model: every arm by every definition, the average over tasks of the ratios last; nothing where there is one
    definition."""
    own = {key: arm for key, arm in arms.items() if key[0] == model}
    wanted = definitions(own)
    for definition in wanted if len(wanted) > 1 else ():
        by = arms_by(own, definition)
        pairs: dict[str, list[tuple[DriftSample, DriftSample]]] = {}
        for (_, task, method), arm in by.items():
            is_primary = own[model, task, method].pooling == definition.pooling and not definition.every_layer
            other = by.get((model, task, study.reference))
            about = _About(model, task, method, study.reference, definition, is_primary)
            yield _of_arm(about, arm, None if method == study.reference else other)
            first, second = arm.overall(), None if other is None else other.overall()
            if first is not None and second is not None and method != study.reference:
                pairs.setdefault(method, []).append((first, second))
        tasks = {key[1] for key in by}
        for method, found in pairs.items():
            if len(tasks) > 1 and len(found) == len(tasks):
                is_primary = not definition.every_layer and {arm.pooling for arm in own.values()} == {
                    definition.pooling
                }
                about = _About(model, "*", method, study.reference, definition, is_primary)
                yield _row(about, average_log_ratios([found], seeding=seeding))


class _About(NamedTuple):
    """What a row is about."""

    model: str
    task: str
    method: str
    reference: str
    definition: Definition
    is_primary: bool


def _of_arm(about: _About, arm: DriftArm, other: DriftArm | None) -> DriftRobustness:
    """other: the reference arm, None for itself."""
    sample, num_all = arm.overall(), len([layer for layer in arm.layers("residual") if layer > 0])
    if sample is None:
        return replace(_row(about, (None, none_healthy(num_all))), num_all=num_all)
    against = None if other is None else other.overall()
    row = _row(about, (None, "") if against is None else estimate_log_ratio(sample, against))
    estimate = estimate_mean(sample)
    drift = estimate.interval(0.95, method=OVER_BOTH if estimate.num_seeds > 1 else ONE_SEED)
    counted = len(arm.averaged("residual"))
    return replace(row, drift=drift, num_layers=counted, num_all=num_all, num_seeds=len(arm.seeds))


def _row(about: _About, ratio: tuple[BootstrapEstimate | None, str]) -> DriftRobustness:
    """With a ratio, or the reason why there is none."""
    estimate, reason = ratio
    return DriftRobustness(
        model=about.model,
        task=about.task,
        method=about.method,
        reference=about.reference,
        pooling=about.definition.pooling,
        every_layer=about.definition.every_layer,
        is_primary=about.is_primary,
        num_layers=0,
        num_all=0,
        drift=None,
        ratio=None if estimate is None else ratio_interval(estimate),
        num_seeds=0 if estimate is None else estimate.num_seeds,
        reason=reason,
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
