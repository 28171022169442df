"""Type I error and coverage in simulation: a fast guard; the full table is `python -m lorascope.stats.simulate`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorascope.stats.simulate import quality as simulate


def pooled(trial, key: str, *, repeats: int, generator: np.random.Generator) -> float:
    return float(np.mean([trial(generator)[key] for _ in range(repeats)]))


@pytest.mark.parametrize("num_seeds", simulate.NUM_SEEDS)
@pytest.mark.parametrize("scenario", ["even", "seeds dominate"])
def test_multi_bootstrap_covers_and_rejects_as_stated(num_seeds, scenario):
    generator = np.random.default_rng(1)
    outcomes = [simulate.accuracy_trial(simulate.SCENARIOS[scenario], num_seeds, 277, generator) for _ in range(250)]
    slack = 3 * math.sqrt(0.05 * 0.95 / 250)
    for name in outcomes[0]:
        found = float(np.mean([outcome[name] for outcome in outcomes if outcome[name] is not None]))
        if name.endswith("|coverage"):
            assert found > 0.93 - slack, name
        else:
            assert found < 0.07 + slack, name


def test_the_guard_sees_the_percentile_bootstrap_fail_at_three_seeds():
    scenario = simulate.SCENARIOS["seeds dominate"]
    generator = np.random.default_rng(2)
    key = "*not shipped:* percentile multi-bootstrap|coverage"
    covered = pooled(lambda g: simulate.percentile_trial(scenario, 3, 277, g), key, repeats=100, generator=generator)
    assert covered < 0.88


def test_the_guard_sees_mcnemar_pooled_over_seeds_fail():
    scenario = simulate.SCENARIOS["examples dominate"]
    generator = np.random.default_rng(3)
    key = "*not shipped:* McNemar pooled over seeds|error"
    rejected = pooled(lambda g: simulate.fixed_seeds_trial(scenario, 8, 277, g), key, repeats=150, generator=generator)
    assert rejected > 0.15
