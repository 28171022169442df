"""How likely a study is to decide its own claims, before it runs: studies are drawn and judged by the rules that will judge
the real one.

One idea: what a verdict needs is evidence, and evidence is a mean with its variance components. So evidence is drawn from
what is assumed of seeds, examples and repeats, in two worlds: one in which every claim holds by a stated amount, one in
which every claim fails by it. The real `judge`, `apply_family` and conclusion do the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorascope.metrics.quality import QUALITY
from lorascope.stats.analysis import HypothesisResult
from lorascope.stats.evidence import estimate_average
from lorascope.stats.hypotheses import Evidence, Test, hypothesis_test
from lorascope.stats.quality.multibootstrap import BootstrapEstimate, SeedDifferences, estimate_difference
from lorascope.stats.serving.repeats import estimate_of_logs
from lorascope.stats.verdicts import Sides, apply_family, judge
from lorascope.study.conclusion import Verdict, parse_conclusion
from lorascope.study.hypothesis import (
    Equivalent,
    Hypothesis,
    Lower,
    NonInferior,
    Overhead,
    RelativeMargin,
    Superior,
)
from lorascope.study.spec import Study

ALPHA, STUDIES, REFERENCE_SCORE = 0.05, 200, 0.85
World = Literal["holds", "fails", "found"]
WORLDS: tuple[World, ...] = ("holds", "fails")
CONCLUSION = "conclusion"


@dataclass(frozen=True)
class Assumptions:
    """Standard deviations: between seeds of a difference of scores; of the log of a ratio of drifts and of costs; between
    repeats of the log of a serving overhead. discordant: the share of examples on which two arms disagree, half of that in
    every seed. probe: the share of the variance of a log ratio of drifts that its examples add to every seed."""

    seed_sd: float = 0.01
    discordant: float = 0.10
    drift_sd: float = 0.40
    cost_sd: float = 0.05
    repeat_sd: float = 0.08
    probe: float = 0.05


@dataclass(frozen=True)
class Chance:
    """Of one hypothesis, or of the conclusion: the probability of each verdict in a world. truth: what is true there."""

    name: str
    world: World
    truth: str
    supported: float
    refuted: float

    @property
    def decided(self) -> float:
        return self.supported + self.refuted


def chances(
    study: Study,
    metrics: Mapping[str, str],
    examples: Mapping[str, int],
    assumed: Assumptions,
    *,
    effects: Mapping[str, float] | None = None,
    studies: int = STUDIES,
) -> list[Chance]:
    """Two a hypothesis that can be simulated, and two of the conclusion where all of its hypotheses can.

    metrics, examples: task -> its primary metric, and the number of its test examples. effects: hypothesis -> what finished
    runs found (a difference, or a ratio), a third world for those that have one. Not simulated are claims on metrics
    that are no share of a whole, and on costs that every seed has alike.
    """
    drawn = {name: claim for name, claim in study.hypotheses.items() if _can_be_drawn(study, claim, metrics)}
    found: list[Chance] = []
    known = {name: effects[name] for name in drawn if effects and name in effects}
    worlds: tuple[World, ...] = (*WORLDS, "found") if known else WORLDS
    for world in worlds:
        truths = {name: _effect(claim, world, known.get(name)) for name, claim in drawn.items()}
        generator = np.random.default_rng(2026)
        rows = [_draw_study(study, drawn, truths, metrics, examples, assumed, generator) for _ in range(studies)]
        for name, claim in drawn.items():
            if world != "found" or name in known:
                found.append(_chance(name, world, in_words(claim, truths[name]), [row[name] for row in rows]))
        if study.conclusion is not None and set(drawn) == set(study.hypotheses) and world != "found":
            formula = parse_conclusion(study.conclusion, drawn)
            verdicts: list[Verdict] = [formula.evaluate(row) for row in rows]
            found.append(_chance(CONCLUSION, world, f"every claim {world}", verdicts))
    return found


def _chance(name: str, world: World, truth: str, verdicts: Sequence[Verdict]) -> Chance:
    count = len(verdicts)
    return Chance(name, world, truth, verdicts.count("supported") / count, verdicts.count("refuted") / count)


def _can_be_drawn(study: Study, claim: Hypothesis, metrics: Mapping[str, str]) -> bool:
    if isinstance(claim, Overhead):
        return study.measure.serving is not None
    if isinstance(claim, Lower):
        return claim.on not in ("trainable_parameters", "export_bytes")
    names = [metrics.get(task.name, "") if claim.on == "primary" else claim.on for task in study.tasks]
    return all(name in QUALITY and QUALITY[name].width == 1.0 and QUALITY[name].higher_is_better for name in names)


# ------------------------------------------------------------------------------------------------------------ worlds


def in_words(claim: Hypothesis, effect: float) -> str:
    """What is true of a claim."""
    if isinstance(claim, Lower | Overhead):
        what = "drift" if isinstance(claim, Lower) and claim.on == "drift" else "cost"
        return f"{100 * math.exp(effect):.0f}% of the reference's {what}"
    if isinstance(claim.margin if not isinstance(claim, Superior) else 0.0, RelativeMargin):
        return f"{100 * effect:.1f}% of the reference's score"
    return "no difference" if effect == 0 else f"{100 * effect:+.1f} points".replace("-", "−")


def _effect(claim: Hypothesis, world: World, found: float | None) -> float:
    """The true difference, ratio or log ratio of every part. A claim holds, or fails, by half of what it allows; or it is as
    finished runs found it, where they did."""
    if world == "found" and found is not None:
        return math.log(found) if isinstance(claim, Lower | Overhead) else found
    holds = world != "fails"
    if isinstance(claim, Lower):
        return 2 * math.log1p(-claim.by) if holds else 0.0
    if isinstance(claim, Overhead):
        return math.log1p(claim.at_most) * (0.5 if holds else 1.5)
    if isinstance(claim, Superior):
        return 0.02 if holds else -0.02
    factor = (0.0 if holds else -1.5) if isinstance(claim, Equivalent) else (-0.5 if holds else -1.5)
    if isinstance(claim.margin, RelativeMargin):
        return 1 + factor * claim.margin.relative
    return factor * claim.margin


def _draw_study(
    study: Study,
    claims: Mapping[str, Hypothesis],
    truths: Mapping[str, float],
    metrics: Mapping[str, str],
    examples: Mapping[str, int],
    assumed: Assumptions,
    generator: np.random.Generator,
) -> dict[str, Verdict]:
    """The verdicts of one drawn study."""
    results, sides = [], []
    for name, claim in claims.items():
        test, parts, average = _draw(study, claim, truths[name], metrics, examples, assumed, generator)
        over = claim.at if isinstance(claim, Overhead) else claim.over
        result, own = judge(
            name, test, metric=claim.on, parts=parts, average=average, over=over, alpha=ALPHA, explain=False
        )
        results.append(result)
        sides.append(own)
    return _verdicts(results, sides)


def _verdicts(results: list[HypothesisResult], sides: list[Sides]) -> dict[str, Verdict]:
    return {result.name: result.verdict for result in apply_family(results, sides, ALPHA)}


def _draw(
    study: Study,
    claim: Hypothesis,
    effect: float,
    metrics: Mapping[str, str],
    examples: Mapping[str, int],
    assumed: Assumptions,
    generator: np.random.Generator,
) -> tuple[Test, list[Evidence], Evidence]:
    if isinstance(claim, Overhead):
        return _draw_served(study, claim, effect, assumed, generator)
    seeds = len(study.seeds)
    by_task: list[SeedDifferences] = []
    for task in study.tasks:
        count = examples[task.name]
        if isinstance(claim, Lower):
            on_drift = claim.on == "drift"
            variance = (assumed.drift_sd if on_drift else assumed.cost_sd) ** 2
            shared = assumed.probe * variance / seeds if on_drift else 0.0
            by_task.append(_differences(effect, seeds, 1000, variance, 0.0, shared, generator))
            continue
        noise = assumed.discordant / count / 2
        seed_variance = assumed.seed_sd**2
        scale = 1 / REFERENCE_SCORE if _is_share(claim) else 1.0
        by_task.append(
            _differences(effect, seeds, count, scale**2 * seed_variance, scale**2 * noise, scale**2 * noise, generator)
        )
    names = () if isinstance(claim, Lower) else tuple(_metric(claim, metrics, task.name) for task in study.tasks)
    test = hypothesis_test(claim, tuple(dict.fromkeys(names)))
    usable = seeds > 1
    parts = [
        Evidence(model.name, task.name, estimate_difference(one, continuous=isinstance(claim, Lower)), usable)
        for task, one in zip(study.tasks, by_task, strict=True)
        for model in study.models[:1]
    ]
    mean: BootstrapEstimate = estimate_average(by_task, seeding="derived", continuous=isinstance(claim, Lower))
    return test, parts, Evidence("*", "*", mean, usable)


def _is_share(claim: Hypothesis) -> bool:
    return isinstance(claim, NonInferior | Equivalent) and isinstance(claim.margin, RelativeMargin)


def _metric(claim: NonInferior | Equivalent | Superior, metrics: Mapping[str, str], task: str) -> str:
    return metrics[task] if claim.on == "primary" else claim.on


def _differences(
    truth: float,
    seeds: int,
    examples: int,
    seed_variance: float,
    own: float,
    shared: float,
    generator: np.random.Generator,
) -> SeedDifferences:
    """Differences of `seeds` seeds, and what sampling the examples gives to their covariance: own each, shared by all."""
    values = truth + math.sqrt(shared) * generator.standard_normal()
    values = values + math.sqrt(seed_variance + own) * generator.standard_normal(seeds)
    deviations = np.column_stack([math.sqrt(own) * np.eye(seeds), np.full(seeds, math.sqrt(shared))])
    return SeedDifferences(values, deviations, examples)


def _draw_served(
    study: Study, claim: Overhead, effect: float, assumed: Assumptions, generator: np.random.Generator
) -> tuple[Test, list[Evidence], Evidence]:
    """Batch sizes of a repeat share half of the variance between repeats, for they share its processes."""
    serving = study.measure.serving
    assert serving is not None
    levels = [(workload, size) for workload in serving.workloads for size in serving.batch_sizes]
    half = assumed.repeat_sd / math.sqrt(2)
    common = half * generator.standard_normal((1, serving.repeats))
    logs = effect + common + half * generator.standard_normal((len(levels), serving.repeats))
    parts = [
        Evidence("*", f"{workload}, batch {size}", estimate_of_logs(row), serving.repeats >= 3)
        for (workload, size), row in zip(levels, logs, strict=True)
    ]
    return hypothesis_test(claim), parts, Evidence("*", "*", estimate_of_logs(logs.mean(0)), serving.repeats >= 3)
