"""Simulated drift, for which `simulate` and the tests ask how often its intervals hold the truth.

A run's drift is here a mean over examples of an arm's own level, a seed effect, a difficulty that all runs share, and terms
of (arm x example) and (arm x seed x example), all log-normal: the true ratio of two arms is known in closed form. Debiased
CKA is no mean over examples, but its draws enter in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lorascope.stats.drift.runs import DriftSample, estimate_log_ratio, estimate_mean
from lorascope.stats.hypotheses import hypothesis_test
from lorascope.study.hypothesis import Lower

TRUE_RATIO, LEVEL = 0.8, 0.01
NUM_DRAWS = 200


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the logs."""

    difficulty: float
    arm_example: float
    arm_seed: float
    arm_seed_example: float


SPREADS = {
    "even": Spread(0.8, 0.6, 0.10, 0.6),
    "seeds dominate": Spread(0.8, 0.2, 0.30, 0.2),
    "examples dominate": Spread(0.8, 1.0, 0.02, 0.1),
}


def draw_drifts(
    spread: Spread, *, num_seeds: int, num_examples: int, ratio: float, generator: np.random.Generator
) -> tuple[DriftSample, DriftSample]:
    """Two arms, "lora" and "full", whose geometric mean drifts over seeds have this ratio; `full`'s is LEVEL."""
    counts = generator.multinomial(num_examples, np.full(num_examples, 1 / num_examples), size=NUM_DRAWS)
    difficulty = _around_one(generator, spread.difficulty, (num_examples,))
    seeds = tuple(map(str, range(num_seeds)))

    def draw_arm(method: str, level: float) -> DriftSample:
        drifts = level * difficulty * _around_one(generator, spread.arm_example, (num_examples,))
        drifts = drifts * np.exp(generator.normal(0, spread.arm_seed, (num_seeds, 1)))
        drifts = drifts * _around_one(generator, spread.arm_seed_example, (num_seeds, num_examples))
        return DriftSample(method, seeds, drifts.mean(1), counts @ drifts.T / num_examples, num_examples)

    return draw_arm("lora", ratio * LEVEL), draw_arm("full", LEVEL)


def _around_one(generator: np.random.Generator, sd: float, shape: tuple[int, ...]) -> np.ndarray:
    """Log-normal with mean 1."""
    return np.exp(generator.normal(-(sd**2) / 2, sd, shape))


def drift_trial(
    spread: Spread, num_seeds: int, num_examples: int, generator: np.random.Generator
) -> dict[str, bool | None]:
    """One study in which the ratio is just what the hypothesis claims at least to hold: support is an error."""
    lora, full = draw_drifts(
        spread, num_seeds=num_seeds, num_examples=num_examples, ratio=TRUE_RATIO, generator=generator
    )
    estimate, reason = estimate_log_ratio(lora, full)
    assert estimate is not None, reason
    log_ratio, mean = estimate.interval(0.95), estimate_mean(full).interval(0.95)
    true_mean = LEVEL * math.exp(spread.arm_seed**2 / 2)
    test = hypothesis_test(Lower(lower="lora", than="full", on="drift", by=1 - TRUE_RATIO))
    return {
        "ratio of drifts (t over seeds and examples)|coverage": log_ratio.low <= math.log(TRUE_RATIO) <= log_ratio.high,
        "mean drift of an arm (t over seeds and examples)|coverage": mean.low <= true_mean <= mean.high,
        "less drift at the threshold, supported|error": test.p_support(estimate) <= 0.05,
    }
