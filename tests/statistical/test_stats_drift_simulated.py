"""Coverage of the interval of a ratio of drifts, and how often "lora drifts less" is supported where it is not so.

Runs are drawn whose drift is a mean over examples: an arm's own level, a seed effect, a difficulty that all runs share, and
terms of (arm x example) and (arm x seed x example), all log-normal with mean 1. The true ratio is thus known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from lorascope.stats.drift import DriftSample, estimate_log_ratio, estimate_mean
from lorascope.stats.hypotheses import hypothesis_test
from lorascope.study.spec import Lower

STUDIES, DRAWS, EXAMPLES = 300, 150, 120
SEEDS = ("1", "2", "3", "4", "5")
TRUE_RATIO = 0.8


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the logs."""

    difficulty: float
    arm_example: float
    arm_seed: float
    arm_seed_example: float


SPREADS = {
    "both": Spread(0.8, 0.6, 0.10, 0.6),
    "seeds dominate": Spread(0.8, 0.2, 0.30, 0.2),
    "examples dominate": Spread(0.8, 1.0, 0.02, 0.1),
}


def lognormal(generator: np.random.Generator, sd: float, shape: tuple[int, ...]) -> np.ndarray:
    """Mean 1."""
    return np.exp(generator.normal(-(sd**2) / 2, sd, shape))


def draw_arms(generator: np.random.Generator, spread: Spread, *, ratio: float, seeds=SEEDS) -> list[DriftSample]:
    n, examples = len(seeds), EXAMPLES
    counts = generator.multinomial(examples, np.full(examples, 1 / examples), size=DRAWS) / examples
    difficulty = lognormal(generator, spread.difficulty, (examples,))
    arms = []
    for method, level in (("lora", ratio), ("full", 1.0)):
        each = difficulty * lognormal(generator, spread.arm_example, (examples,))
        each = each * lognormal(generator, spread.arm_seed_example, (n, examples))
        each = 0.01 * level * each * np.exp(generator.normal(0, spread.arm_seed, (n, 1)))
        arms.append(DriftSample(method, seeds, each.mean(1), counts @ each.T, examples))
    return arms


@pytest.mark.parametrize("name", SPREADS)
def test_the_interval_of_a_ratio_covers_the_truth_and_a_ratio_at_the_threshold_is_rarely_supported(name):
    generator = np.random.default_rng(5)
    test = hypothesis_test(Lower(lower="lora", than="full", on="drift", by=0.2), "drift")
    covered, supported = [], []
    for _ in range(STUDIES):
        estimate, reason = estimate_log_ratio(*draw_arms(generator, SPREADS[name], ratio=TRUE_RATIO))
        assert estimate is not None, reason
        interval = estimate.interval(0.95)
        covered.append(interval.low <= math.log(TRUE_RATIO) <= interval.high)
        supported.append(test.p_support(estimate) <= 0.05)
    slack = 3 * math.sqrt(0.05 * 0.95 / STUDIES)
    assert 0.95 - slack - 0.01 < np.mean(covered), np.mean(covered)
    assert np.mean(supported) < 0.05 + slack, np.mean(supported)
    print(f"{name}: coverage {np.mean(covered):.3f}, supported at the threshold {np.mean(supported):.3f}")


def test_the_guard_sees_intervals_over_examples_alone_fail():
    """With each run held fixed, variation between seeds is missed; so would a wrong ratio of the two variances be."""
    generator = np.random.default_rng(6)
    covered = []
    for _ in range(100):
        arms = [arm.at(("1",)) for arm in draw_arms(generator, SPREADS["seeds dominate"], ratio=TRUE_RATIO)]
        estimate, _ = estimate_log_ratio(*arms)
        assert estimate is not None
        interval = estimate.interval(0.95)
        covered.append(interval.low <= math.log(TRUE_RATIO) <= interval.high)
    assert np.mean(covered) < 0.6


def test_the_interval_of_a_mean_drift_covers_the_truth():
    generator = np.random.default_rng(7)
    spread = Spread(0.4, 0.3, 0.1, 0.4)
    covered = []
    for _ in range(STUDIES):
        interval = estimate_mean(draw_arms(generator, spread, ratio=1.0)[0]).interval(0.95)
        covered.append(interval.low <= 0.01 * math.exp(spread.arm_seed**2 / 2) <= interval.high)
    assert np.mean(covered) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / STUDIES) - 0.01
