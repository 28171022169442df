"""Coverage of intervals over repeats, and how often a verdict on overhead is wrong at the threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorascope.stats.simulate.serving import MACHINES, draw_latencies, latency_trial, serving_trial, true_log_overhead

COMPARISONS = 250
SLACK = 3 * math.sqrt(0.05 * 0.95 / COMPARISONS)


@pytest.mark.parametrize("num_repeats", [5])
@pytest.mark.parametrize("name", MACHINES)
def test_intervals_over_repeats_cover_and_rarely_err_at_the_threshold(name, num_repeats):
    generator = np.random.default_rng(num_repeats)
    outcomes = [serving_trial(MACHINES[name], num_repeats, generator) for _ in range(COMPARISONS)]
    for what in outcomes[0]:
        found = float(np.mean([outcome[what] for outcome in outcomes]))
        if what.startswith("*decides nothing"):
            assert found < 0.94, "were it as good as the t interval, it could decide"
        elif what.endswith("|coverage"):
            assert found > 0.94 - SLACK, what
        else:
            assert found < 0.055 + SLACK, what


@pytest.mark.parametrize("name", ["quiet", "noisy", "warming up", "persistent"])
def test_an_arm_s_own_interval_covers_where_luck_is_not_skewed(name):
    generator = np.random.default_rng(3)
    outcomes = [latency_trial(MACHINES[name], 5, generator) for _ in range(COMPARISONS)]
    assert np.mean([next(iter(outcome.values())) for outcome in outcomes]) > 0.94 - SLACK


def test_the_guard_sees_an_analysis_of_requests_instead_of_repeats_fail():
    """Loads of one process taken for repeats: its luck is missed."""
    generator = np.random.default_rng(4)
    truth = np.array([true_log_overhead(4, batch) for batch in (1.0, 4.0, 16.0)])
    covered = []
    for _ in range(200):
        drawn = draw_latencies(MACHINES["noisy"], num_repeats=1, generator=generator)
        errors = (drawn["adapters-4"] - drawn["merged"])[0] - truth
        covered.append(abs(errors.mean()) <= 4.30 * errors.std(ddof=1) / math.sqrt(3))
    assert np.mean(covered) < 0.6


def test_an_overhead_far_below_the_bound_is_found_so():
    generator = np.random.default_rng(5)
    highs = []
    for _ in range(50):
        drawn = draw_latencies(MACHINES["quiet"], num_repeats=5, generator=generator)
        logs = drawn["adapters-4"][:, 0] - drawn["merged"][:, 0] - math.log(1.3) + math.log(1.1)
        highs.append(logs.mean() + 2.13 * logs.std(ddof=1) / math.sqrt(5))
    assert np.mean(np.array(highs) < math.log(1.3)) > 0.9
