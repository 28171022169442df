"""Coverage of the intervals of drift, and how often "lora drifts less" is supported where it is not so."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorascope.stats.drift.runs import estimate_log_ratio
from lorascope.stats.simulate.drift import SPREADS, TRUE_RATIO, draw_drifts, drift_trial

STUDIES = 300
SLACK = 3 * math.sqrt(0.05 * 0.95 / STUDIES)


@pytest.mark.parametrize("name", SPREADS)
def test_five_seeds_cover_the_truth_and_rarely_err_at_the_threshold(name):
    generator = np.random.default_rng(5)
    outcomes = [drift_trial(SPREADS[name], 5, 150, generator) for _ in range(STUDIES)]
    for what in outcomes[0]:
        found = float(np.mean([bool(outcome[what]) for outcome in outcomes]))
        if what.endswith("|coverage"):
            assert found > 0.94 - SLACK, what
        else:
            assert found < 0.05 + SLACK, what


def test_the_guard_sees_intervals_over_examples_alone_fail():
    """One run an arm, held fixed: what varies between seeds is missed."""
    generator = np.random.default_rng(6)
    covered = []
    for _ in range(100):
        lora, full = draw_drifts(
            SPREADS["seeds dominate"], num_seeds=1, num_examples=150, ratio=TRUE_RATIO, generator=generator
        )
        estimate, _ = estimate_log_ratio(lora, full)
        assert estimate is not None
        interval = estimate.interval(0.95)
        covered.append(interval.low <= math.log(TRUE_RATIO) <= interval.high)
    assert np.mean(covered) < 0.6


def test_a_much_smaller_drift_is_found_smaller():
    generator = np.random.default_rng(8)
    highs = []
    for _ in range(50):
        lora, full = draw_drifts(SPREADS["even"], num_seeds=5, num_examples=150, ratio=0.4, generator=generator)
        estimate, _ = estimate_log_ratio(lora, full)
        assert estimate is not None
        highs.append(estimate.interval(0.95).high)
    assert np.mean(np.array(highs) < math.log(TRUE_RATIO)) > 0.8
