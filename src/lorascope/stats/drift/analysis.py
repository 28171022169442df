"""What a study says about drift: profiles over layers, ratios between methods, correlations over runs.

Sites and layers are many, so the tests of single layers are corrected as one family for each (model, task, site); the
overall ratio and the thirds of the layers stand for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lorascope.stats.analysis import DriftAnalysis, DriftProfile, DriftReduction
from lorascope.stats.correlation import drift_correlations
from lorascope.stats.drift.robustness import ONE_SEED, OVER_BOTH, ratio_interval, robustness_rows
from lorascope.stats.drift.runs import (
    DriftArm,
    DriftSample,
    Key,
    average_log_ratios,
    estimate_log_ratio,
    estimate_mean,
    log_ratios,
)
from lorascope.stats.facts.study import Seeding
from lorascope.stats.interval import Interval
from lorascope.stats.quality.multibootstrap import BootstrapEstimate
from lorascope.stats.quality.paired import hedges_g
from lorascope.stats.verdicts import adjust
from lorascope.study.hypothesis import Lower
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

THIRDS = ("early", "middle", "late")


def analyse_drift(
    study: Study,
    table: pd.DataFrame,
    arms: Mapping[Key, DriftArm],
    *,
    primary: Mapping[str, str],
    seeding: Seeding = "derived",
) -> DriftAnalysis | None:
    """Profiles, ratios and correlations of everything whose drift was measured; None if nothing's was.

    table: validated measurements. arms: of `read_drift_arms`. primary: task -> its primary metric.
    """
    if not arms:
        return None
    return DriftAnalysis(
        num_draws=min(len(arm.draws) for arm in arms.values()),
        num_examples={
            task.name: min(arm.num_examples for key, arm in arms.items() if key[1] == task.name)
            for task in study.tasks
            if any(key[1] == task.name for key in arms)
        },
        profiles=[profile for key, arm in arms.items() for profile in _profiles(key, arm)],
        reductions=_correct_layers(
            [
                found
                for model in study.models
                for pair in _pairs(study)
                for found in _reductions(study, model.name, pair, arms=arms, seeding=seeding)
            ]
        ),
        correlations=drift_correlations(
            study, table, primary=primary, pooling={key[:2]: arm.pooling for key, arm in arms.items()}
        ),
        robustness=[row for model in study.models for row in robustness_rows(study, model.name, arms, seeding=seeding)],
    )


def _profiles(key: Key, arm: DriftArm) -> Iterator[DriftProfile]:
    for site, layer in arm.points:
        estimate = estimate_mean(arm.sample(site, [layer]))
        how = OVER_BOTH if estimate.num_seeds > 1 else ONE_SEED
        yield DriftProfile(*key, site, layer, estimate.interval(0.95, method=how), estimate.num_seeds)


# ------------------------------------------------------------------------------------------------------------ ratios


@dataclass(frozen=True)
class _Part:
    """Which layers of a site a ratio is about."""

    site: str
    part: str
    layer: int | None = None


def _pairs(study: Study) -> list[tuple[str, str]]:
    """Every method over full fine-tuning (or, without it, the first method), and what hypotheses on drift compare."""
    reference = study.reference
    declared = [(h.lower, h.than) for h in study.hypotheses.values() if isinstance(h, Lower) and h.on == "drift"]
    wanted = [(method.name, reference) for method in study.methods if method.name != reference]
    return list(dict.fromkeys([*wanted, *declared]))


def _reductions(
    study: Study, model: str, pair: tuple[str, str], *, arms: Mapping[Key, DriftArm], seeding: Seeding
) -> Iterator[DriftReduction]:
    """Of one model and two methods: on each task that has both, and on average where there are several tasks."""
    found: dict[_Part, dict[str, tuple[DriftSample, DriftSample]]] = {}
    without: dict[_Part, set[str]] = {}
    for task in study.tasks:
        keys = [(model, task.name, method) for method in pair]
        if any(key not in arms for key in keys):
            continue
        for part, first, second in _comparable_parts(arms[keys[0]], arms[keys[1]]):
            estimate, reason = estimate_log_ratio(first, second)
            found.setdefault(part, {})[task.name] = (first, second)
            if estimate is None:
                without.setdefault(part, set()).add(task.name)
            reduction = _reduction(model, task.name, pair, part, estimate, reason)
            yield replace(reduction, hedges_g=_effect(first, second)) if part.part != "layer" else reduction
    for part, by_task in found.items() if len(study.tasks) > 1 else ():
        lacking = [t.name for t in study.tasks if t.name not in by_task or t.name in without.get(part, ())]
        if lacking:
            yield _reduction(model, "*", pair, part, None, f"no ratio on {', '.join(lacking)}")
        else:
            estimate, reason = average_log_ratios([list(by_task.values())], seeding=seeding)
            yield _reduction(model, "*", pair, part, estimate, reason)


def _comparable_parts(method: DriftArm, reference: DriftArm) -> Iterator[tuple[_Part, DriftSample, DriftSample]]:
    """The parts of each site that both arms measured in the same layers. Layer 0, the embedding, and layers that are
    unhealthy in the base are no part of a mean; a third of the depth without a healthy layer has none."""
    for site in dict.fromkeys(site for site, _ in method.points):
        both = [layer for layer in method.layers(site) if layer in reference.layers(site)]
        blocks = [layer for layer in method.averaged(site) if layer in reference.averaged(site)]
        if blocks and method.averaged(site) == reference.averaged(site):
            means = [arm.overall() if site == "residual" else arm.sample(site, blocks) for arm in (method, reference)]
            if means[0] is not None and means[1] is not None:
                yield _Part(site, "overall"), means[0], means[1]
            depth = [layer for layer in method.layers(site) if layer > 0]
            thirds = np.array_split(depth, len(THIRDS)) if len(depth) >= len(THIRDS) else []
            for name, third in zip(THIRDS, thirds, strict=False):
                layers = [int(layer) for layer in third if int(layer) in blocks]
                if layers:
                    yield _Part(site, name), method.sample(site, layers), reference.sample(site, layers)
        for layer in both:
            yield _Part(site, "layer", layer), method.sample(site, [layer]), reference.sample(site, [layer])


def _reduction(
    model: str, task: str, pair: tuple[str, str], part: _Part, estimate: BootstrapEstimate | None, reason: str
) -> DriftReduction:
    seeds = estimate.num_seeds if estimate else 0
    return DriftReduction(
        model=model,
        task=task,
        method=pair[0],
        reference=pair[1],
        site=part.site,
        part=part.part,
        layer=part.layer,
        ratio=ratio_interval(estimate) if estimate else None,
        p_value=estimate.p_two_sided() if estimate and seeds > 1 else None,
        p_holm=None,
        num_seeds=seeds,
        reason=reason,
    )


def _effect(method: DriftSample, reference: DriftSample) -> Interval | None:
    """Hedges g of the seeds' log ratios; None where there are none, or fewer than two seeds."""
    logs, _ = log_ratios(method, reference)
    return None if logs is None else hedges_g(logs.values)


def _correct_layers(reductions: Sequence[DriftReduction]) -> list[DriftReduction]:
    """Holm over the tests of single layers of each (model, task, site), all pairs of methods together."""
    families: dict[tuple[str, str, str], list[int]] = {}
    for index, found in enumerate(reductions):
        if found.part == "layer" and found.p_value is not None:
            families.setdefault((found.model, found.task, found.site), []).append(index)
    corrected = list(reductions)
    for family in families.values():
        holm, _ = adjust([reductions[index].p_value or 0.0 for index in family])
        for index, p_holm in zip(family, holm, strict=True):
            corrected[index] = replace(reductions[index], p_holm=p_holm)
    return corrected
