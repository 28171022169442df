"""Tests and effect sizes against closed forms and against scipy, statsmodels and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from lorascope.metrics.counts import f1, mcc
from lorascope.metrics.metric import FromCounts
from lorascope.stats.quality.multibootstrap import (
    average_differences,
    average_estimates,
    estimate_difference,
    mean_differences,
    metric_differences,
)
from lorascope.stats.quality.paired import (
    discordance_odds_ratio,
    hedges_g,
    mcnemar,
    noncentrality_interval,
    permutation_floor,
    seeds_needed_to_permute,
    sign_flip_p,
    t_interval,
)
from lorascope.stats.quality.power import detectable_difference, what_would_decide
from lorascope.stats.quality.scores import confusion_cells


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_f1_and_mcc_from_counts_equal_scikit_learn(generator, num_classes):
    labels, predictions = generator.integers(0, num_classes, (2, 200))
    counts = confusion_cells(labels, predictions, num_classes=num_classes).sum(0).reshape(num_classes, num_classes)
    average = "binary" if num_classes == 2 else "macro"
    assert f1(counts) == pytest.approx(f1_score(labels, predictions, average=average))
    assert mcc(counts) == pytest.approx(matthews_corrcoef(labels, predictions))


def test_f1_and_mcc_are_zero_where_undefined():
    counts = np.array([[10.0, 0.0], [0.0, 0.0]])
    assert f1(counts) == 0 and mcc(counts) == 0


def test_without_example_noise_the_interval_is_the_t_interval(generator):
    """Every example of a seed shifts alike, so only seeds vary; what remains is the floor of one example."""
    shifts = generator.normal(0.1, 0.5, 5)
    differences = mean_differences(np.repeat(shifts[:, None], 1_000_000, axis=1), np.zeros((5, 1_000_000)))
    ours, plain = estimate_difference(differences).interval(0.95), t_interval(shifts)
    assert plain is not None
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high), rel=1e-6)


def test_identical_seeds_leave_only_the_paired_example_interval(generator):
    row = generator.choice([-1.0, 0.0, 1.0], 500, p=[0.1, 0.8, 0.1])
    estimate = estimate_difference(mean_differences(np.tile(row, (4, 1)), np.zeros((4, 500))))
    assert estimate.standard_error == pytest.approx(row.std(ddof=1) / math.sqrt(500))
    assert estimate.df == pytest.approx(499)


def test_identical_arms_still_have_an_interval_of_one_example():
    estimate = estimate_difference(mean_differences(np.ones((3, 100)), np.ones((3, 100))))
    assert estimate.standard_error == pytest.approx(0.01)
    assert estimate.p_two_sided() == 1.0


def test_resampled_covariance_approaches_the_exact_one(generator):
    """MCC's cousin with a closed form: F1 on all-positive labels is a function of accuracy, 2a / (1 + a)."""
    labels = np.ones(400, int)
    first, second = (generator.random((2, 3, 400)) < 0.8).astype(int)
    arms = [{"label": np.tile(labels, (3, 1)), "prediction": arm} for arm in (first, second)]
    resampled = metric_differences(FromCounts(f1), *arms, num_classes=2, generator=generator, num_resamples=4000)
    slope = 2 / (1 + 0.8) ** 2
    exact = mean_differences(first, second)
    ours = np.trace(resampled.deviations @ resampled.deviations.T)
    assert ours == pytest.approx(slope**2 * np.trace(exact.deviations @ exact.deviations.T), rel=0.1)


def test_averaging_over_models_that_predict_alike_changes_nothing(generator):
    part = mean_differences(*(generator.random((2, 4, 300)) < 0.8).astype(float))
    once, twice = estimate_difference(part), estimate_difference(average_differences([part, part]))
    assert twice == once


def test_averaging_independent_tasks_halves_the_variance(generator):
    estimate = estimate_difference(mean_differences(*(generator.random((2, 4, 300)) < 0.8).astype(float)))
    average = average_estimates([estimate, estimate])
    assert average.variance == pytest.approx(estimate.variance / 2)
    assert average.df == pytest.approx(2 * estimate.df)


def test_mcnemar_equals_the_binomial_test(generator):
    first, second = (generator.random((2, 300)) < 0.8).astype(int)
    result = mcnemar(first, second, seed="1")
    assert result.p_value == pytest.approx(stats.binomtest(result.b, result.b + result.c).pvalue)
    assert result.odds_ratio is not None and result.odds_ratio.estimate == result.b / result.c


def test_mcnemar_without_disagreement_has_p_one_and_no_odds():
    result = mcnemar(np.ones(10), np.ones(10), seed="1")
    assert (result.p_value, result.odds_ratio) == (1.0, None)


def test_swapping_arms_inverts_the_odds_ratio(generator):
    first, second = (generator.random((2, 3, 300)) < 0.8).astype(int)
    there, back = discordance_odds_ratio(first, second), discordance_odds_ratio(second, first)
    assert there is not None and back is not None
    assert (there.estimate, there.low) == pytest.approx((1 / back.estimate, 1 / back.high))


def test_t_interval_equals_scipy(generator):
    values = generator.normal(size=5)
    limits = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ours = t_interval(values)
    assert ours is not None and (ours.low, ours.high) == pytest.approx((limits.low, limits.high))
    assert t_interval(values[:1]) is None


def test_noncentrality_limits_put_the_observed_t_on_the_edge():
    low, high = noncentrality_interval(2.5, 4)
    assert stats.nct.sf(2.5, 4, low) == pytest.approx(0.025, abs=3e-4)
    assert stats.nct.cdf(2.5, 4, high) == pytest.approx(0.025, abs=3e-4)


def test_noncentrality_limits_exist_for_a_huge_t():
    low, high = noncentrality_interval(-900.0, 2)
    assert -2500 < low < -900 < high < 0


def test_hedges_g_shrinks_the_standardised_mean_by_the_exact_factor():
    result = hedges_g(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert result is not None
    exact = math.gamma(2) / (math.sqrt(2) * math.gamma(1.5))
    assert result.estimate == pytest.approx(3 / math.sqrt(2.5) * exact)
    assert hedges_g(np.array([1.0, 2.0])) is None


def test_permutation_floors_and_the_seeds_they_need():
    assert [permutation_floor(n) for n in (3, 5, 6, 8)] == [0.25, 0.0625, 0.03125, 0.0078125]
    assert seeds_needed_to_permute(0.05) == 6
    assert sign_flip_p(np.arange(1.0, 6.0)) is None
    assert sign_flip_p(np.arange(1.0, 9.0)) == pytest.approx(0.0078125)


def test_detectable_difference_with_seeds_alone_equals_the_paired_t_power():
    from statsmodels.stats.power import TTestPower

    ours = detectable_difference(5, 10**9, seed_sd=0.01)
    effect = TTestPower().solve_power(nobs=5, alpha=0.05, power=0.8)
    assert ours == pytest.approx(0.01 * float(effect), rel=1e-3)


def test_more_seeds_and_more_examples_see_smaller_differences():
    base = detectable_difference(3, 277)
    assert detectable_difference(8, 277) < base and detectable_difference(3, 872) < base


def test_what_would_decide_says_when_examples_cannot_help():
    shifts = np.array([0.05, -0.05, 0.0])
    estimate = estimate_difference(mean_differences(np.repeat(shifts[:, None], 500, axis=1), np.zeros((3, 500))))
    text = what_would_decide(estimate, distance=0.05, tail=0.05)
    assert "more examples cannot help: variance between seeds dominates" in text and "now 3 seeds" in text
