"""Simulated studies that break the assumptions of a t test: seeds that tasks share, runs that collapse, one skewed arm,
metrics that are ratios or corpus scores, claims about every part.

A rare event that no run shows cannot be counted by any test. So a verdict is about all runs where one of them collapsed,
and about runs that do not collapse where none did; the report says how often they may still. The rows judge it by what it
claims, and the rows "not claimed" show what reading more into it would err.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy import stats

from lorascope.metrics.metric import Corpus, Estimator, Ratio
from lorascope.stats.drift.runs import DriftSample, estimate_log_ratio
from lorascope.stats.hypotheses import Evidence, hypothesis_test
from lorascope.stats.quality.multibootstrap import (
    BootstrapEstimate,
    SeedDifferences,
    average_estimates,
    average_over_tasks,
    estimate_difference,
    mean_differences,
    metric_differences,
    ratio_of_means,
)
from lorascope.stats.serving.repeats import estimate_of_logs
from lorascope.stats.verdicts import judge
from lorascope.study.hypothesis import Lower, NonInferior, Overhead

Outcomes = dict[str, bool | None]
Trial = Callable[[np.random.Generator], Outcomes]

MARGIN = 0.03
_EXAMPLES, _TASKS = 400, 3
_SEED_SD, _OWN_SD, _SHARED_SD = 0.012, 0.30, 0.30
COLLAPSE = {"10% collapse": 0.10, "20% collapse": 0.20}
_FALL = 0.18
"""What a collapsed run loses of its accuracy."""


def differences(
    truth: float, n: int, generator: np.random.Generator, *, seed_effects: np.ndarray | None = None
) -> SeedDifferences:
    """Paired differences of a score with mean `truth`: seeds, examples and their interaction are normal."""
    seeds = generator.normal(0, _SEED_SD, n) if seed_effects is None else seed_effects
    shared = generator.normal(0, _SHARED_SD, _EXAMPLES)
    own = generator.normal(0, _OWN_SD, (n, _EXAMPLES))
    rows = truth + seeds[:, None] + shared + own
    return mean_differences(rows, np.zeros_like(rows))


def shared_seeds_trial(n: int, generator: np.random.Generator) -> Outcomes:
    """Three tasks that start from the same seeds and move alike, at the margin."""
    common = generator.normal(0, 2 * _SEED_SD, n)
    parts = [differences(-MARGIN, n, generator, seed_effects=common) for _ in range(_TASKS)]
    within = estimate_difference(average_over_tasks(parts), continuous=True)
    apart = average_estimates([estimate_difference(part, continuous=True) for part in parts])
    return {
        "seeds shared over tasks, averaged within a seed first|error": within.p_above(-MARGIN) <= 0.05,
        "*not shipped:* seeds shared over tasks, taken as independent|error": apart.p_above(-MARGIN) <= 0.05,
    }


def every_part_trial(n: int, generator: np.random.Generator) -> Outcomes:
    """A claim about every task that holds just: each loses exactly the margin. Refuting it is an error, by either way."""
    estimates = [estimate_difference(differences(-MARGIN, n, generator), continuous=True) for _ in range(_TASKS)]
    claim = NonInferior(non_inferior="lora", to="full", margin=MARGIN, over="every")
    parts = [Evidence("m", str(index), estimate, True) for index, estimate in enumerate(estimates)]
    average = Evidence("*", "*", average_estimates(estimates), True)
    result, sides = judge(
        "H",
        hypothesis_test(claim, ["accuracy"]),
        metric="accuracy",
        parts=parts,
        average=average,
        over="every",
        alpha=0.05,
    )
    return {
        "claim about every part, at the margin: refuted|error": result.verdict == "refuted",
        "claim about every part, at the margin: supported|error": sides.support <= 0.05,
    }


def relative_trial(n: int, generator: np.random.Generator) -> Outcomes:
    """A margin as a share, at its edge: LoRA reaches exactly 97% of full fine-tuning's 0.85."""
    shared = generator.normal(0, _SHARED_SD, _EXAMPLES)
    arms = []
    for level in (0.97 * 0.85, 0.85):
        rows = level + shared + generator.normal(0, _SEED_SD, (n, 1)) + generator.normal(0, _OWN_SD, (n, _EXAMPLES))
        arms.append([mean_differences(rows, np.zeros_like(rows))])
    ratio, (around,) = ratio_of_means(*arms)
    estimate = estimate_difference(around, continuous=True)
    high = ratio + estimate.interval(0.90).low
    return {"margin as a share, at its edge: supported|error": high >= 0.97}


def collapsed_quality_trial(share: float, n: int, generator: np.random.Generator) -> Outcomes:
    """`share` of LoRA's runs collapse; the mean over all runs loses exactly the margin."""
    fallen = generator.random(n) < share
    seeds = generator.normal(0, _SEED_SD, n) + np.where(fallen, -_FALL, 0.0) + share * _FALL
    estimate = estimate_difference(differences(-MARGIN, n, generator, seed_effects=seeds), continuous=True)
    truth, kept = (-MARGIN if fallen.any() else -MARGIN + share * _FALL), ~fallen
    found: Outcomes = {
        "collapsed runs in one arm: supported|error": estimate.p_above(truth) <= 0.05,
        "collapsed runs in one arm: refuted|error": estimate.p_below(truth) <= 0.05,
    }
    if not fallen.any():
        found["*not claimed:* none collapsed, read as if none ever did: supported|error"] = (
            estimate.p_above(-MARGIN) <= 0.05
        )
    elif kept.sum() > 1:
        rest = differences(-MARGIN, int(kept.sum()), generator, seed_effects=seeds[kept])
        sound = estimate_difference(rest, continuous=True)
        name = "collapsed runs in one arm, left out (secondary): supported|error"
        found[name] = sound.p_above(-MARGIN + share * _FALL) <= 0.05
    return found


def collapsed_drift_trial(share: float, n: int, generator: np.random.Generator) -> Outcomes:
    """`share` of LoRA's runs hardly move (a tenth of the drift); the geometric mean over all runs is at the threshold."""
    fallen = generator.random(n) < share
    shift = share * math.log(0.1)
    logs = math.log(0.8) + generator.normal(0, 0.25, n) + np.where(fallen, math.log(0.1), 0.0) - shift
    estimate = _log_ratio(logs, generator)
    ratio = 0.8 if fallen.any() else 0.8 * math.exp(-shift)
    test = hypothesis_test(Lower(lower="lora", than="full", on="drift", by=1 - ratio)) if ratio < 1 else None
    at = math.log(ratio)
    return {
        "runs that hardly move in one arm: less drift, supported|error": (
            test.p_support(estimate) if test else estimate.p_below(at)
        )
        <= 0.05,
        "runs that hardly move in one arm: less drift, refuted|error": estimate.p_above(at) <= 0.05,
    }


def _log_ratio(logs: np.ndarray, generator: np.random.Generator) -> BootstrapEstimate:
    n = len(logs)
    seeds = tuple(map(str, range(n)))
    wobble = np.exp(generator.normal(0, 0.03, (100, 1)) + generator.normal(0, 0.03, (100, n)))
    full = np.full(n, 0.01)
    arms = [DriftSample(name, seeds, values, values * wobble, _EXAMPLES) for name, values in
            (("lora", full * np.exp(logs)), ("full", full))]  # fmt: skip
    estimate, reason = estimate_log_ratio(*arms)
    assert estimate is not None, reason
    return estimate


def skewed_serving_trial(n: int, generator: np.random.Generator) -> Outcomes:
    """One arm is slower by half in one process of five; the geometric mean over all processes is at the bound."""
    slow = generator.random(n) < 0.2
    shift = 0.2 * math.log(1.5)
    logs = math.log(1.3) + generator.normal(0, 0.03, n) + np.where(slow, math.log(1.5), 0.0) - shift
    estimate = estimate_of_logs(logs)
    at = math.log(1.3) if slow.any() else math.log(1.3) - shift
    test = hypothesis_test(Overhead(overhead="adapters-4", over="merged", on="latency_p95", at_most=math.expm1(at)))
    found: Outcomes = {
        "one skewed serving arm, at the bound: supported|error": test.p_support(estimate) <= 0.05,
        "one skewed serving arm, at the bound: refuted|error": test.p_refute(estimate) <= 0.05,
    }
    if not slow.any():
        name = "*not claimed:* no slow process seen, read as if there were none: supported|error"
        found[name] = estimate.p_below(math.log(1.3)) <= 0.05
    return found


def _exp(ratio: np.ndarray) -> np.ndarray:
    return np.exp(ratio)


def _overlap(rows: Mapping[str, np.ndarray]) -> float:
    """A corpus score of the shape of BLEU: a geometric mean of two precisions of sums, times a penalty for short output."""
    one, two = rows["matches_1"].sum() / rows["length"].sum(), rows["matches_2"].sum() / rows["length"].sum()
    penalty = min(1.0, math.exp(1 - rows["reference"].sum() / rows["length"].sum()))
    return 100 * penalty * math.sqrt(max(one, 1e-9) * max(two, 1e-9))


PERPLEXITY: Estimator = Ratio("total_loss", "tokens", _exp)
CORPUS: Estimator = Corpus(("matches_1", "matches_2", "length", "reference"), _overlap)


def text_trial(n: int, generator: np.random.Generator) -> Outcomes:
    """Perplexity and a corpus score of two arms that are equally good, on 200 texts of very unlike lengths."""
    count = 200
    tokens = np.round(np.exp(generator.normal(4, 0.8, count))) + 2
    difficulty = generator.normal(0, 0.4, count)
    ratio, corpus = [], []
    for _ in range(2):
        seeds = generator.normal(0, 0.02, (n, 1))
        loss = 2 + difficulty + seeds + generator.normal(0, 0.15, (n, count))
        ratio.append({"total_loss": loss * tokens, "tokens": np.broadcast_to(tokens, loss.shape)})
        rate = stats.norm.cdf(0.2 - difficulty + seeds * 2 + generator.normal(0, 0.3, (n, count)))
        first = generator.binomial(tokens.astype(int), rate)
        second = generator.binomial(first, 0.6)
        long = np.broadcast_to(tokens, first.shape)
        corpus.append({"matches_1": first * 1.0, "matches_2": second * 1.0, "length": long, "reference": long})
    found: Outcomes = {}
    for name, estimator, arms in (("perplexity", PERPLEXITY, ratio), ("a corpus score", CORPUS, corpus)):
        between = metric_differences(estimator, *arms, num_classes=2, generator=generator, num_resamples=200)
        estimate = estimate_difference(between, continuous=True)
        interval = estimate.interval(0.95)
        found[f"superiority, {name}|error"] = estimate.p_two_sided() <= 0.05
        found[f"95% interval, {name}, no difference|coverage"] = interval.low <= 0 <= interval.high
    return found


def hard_cells(n: int) -> Iterator[tuple[str, Trial, float]]:
    """(scenario, what to repeat, the share of the studies it is repeated for)."""
    for trial in (shared_seeds_trial, every_part_trial, relative_trial, skewed_serving_trial):
        yield "normal", lambda g, t=trial: t(n, g), 6.0
    for scenario, share in COLLAPSE.items():
        for trial in (collapsed_quality_trial, collapsed_drift_trial):
            yield scenario, lambda g, t=trial, s=share: t(s, n, g), 6.0
    yield "texts", lambda g: text_trial(n, g), 1.5
