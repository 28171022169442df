"""A margin as a share of what the other arm reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up_perplexity import TASK, perplexity_measurements, perplexity_study
from made_up_study import make_measurements, make_study

from lorascope.stats.analyse import analyse_study
from lorascope.stats.quality.multibootstrap import (
    estimate_difference,
    mean_differences,
    metric_scores,
    ratio_of_means,
)
from lorascope.study.hypothesis import NonInferior, RelativeMargin

PRIMARY = {"mrpc": "accuracy", "rte": "accuracy"}


def result_of(table, **claim):
    claim = {"non_inferior": "lora", "to": "full", "margin": {"relative": "3%"}, **claim}
    study = make_study(hypotheses={"H": claim}, conclusion=None)
    return analyse_study(study, table, primary=PRIMARY).hypotheses[0]


def test_a_relative_margin_is_read_with_its_percentage():
    claim = NonInferior.model_validate({"non_inferior": "lora", "to": "full", "margin": {"relative": "3%"}})
    assert claim.margin == RelativeMargin(relative=0.03)
    with pytest.raises(ValueError, match=r"above 0 and below 1, such as 0\.03 or 3%; found 3"):
        NonInferior.model_validate({"non_inferior": "lora", "to": "full", "margin": {"relative": 3}})


def test_the_estimate_is_the_ratio_of_means_over_tasks():
    table = make_measurements(lora=0.84)
    result = result_of(table)
    means = table[table["metric"] == "accuracy"].groupby("method")["value"].mean()
    assert result.is_ratio and result.average.estimate == pytest.approx(means["lora"] / means["full"])
    assert (result.threshold, result.verdict) == (0.97, "supported")
    assert result.claim.startswith("lora reaches at least 97% of the accuracy of full on average")
    assert "the whole 90% interval lies at or above 97% of full" in result.reason


def test_a_loss_beyond_the_share_is_refuted_over_average_and_every():
    table = make_measurements(lora=0.75)
    assert result_of(table).verdict == "refuted"
    assert result_of(table, over="every").verdict == "refuted"


def test_a_share_and_points_agree_where_the_reference_scores_all():
    """With a reference near 100% a share of 3% is three points."""
    table = make_measurements(lora=0.955, full=0.998)
    share, points = result_of(table), result_of(table, margin="3%")
    assert share.average.low - 1 == pytest.approx(points.average.low, abs=0.001)


def test_less_is_better_bounds_the_ratio_from_above():
    claim = {"non_inferior": "lora", "to": "full", "margin": {"relative": "5%"}}
    study = perplexity_study(hypotheses={"H": claim})
    result = analyse_study(study, perplexity_measurements(0.02), primary={TASK: "perplexity"}).hypotheses[0]
    assert result.threshold == 1.05 and result.verdict == "supported"
    assert result.average.estimate == pytest.approx(math.exp(0.02), abs=0.01)
    worse = analyse_study(study, perplexity_measurements(0.2), primary={TASK: "perplexity"}).hypotheses[0]
    assert worse.verdict == "refuted"


def test_equivalence_within_a_share_is_two_sided():
    claim = {"equivalent": "lora", "to": "full", "margin": {"relative": "5%"}}
    study = make_study(hypotheses={"H": claim}, conclusion=None)
    for lora, verdict in ((0.85, "supported"), (0.7, "refuted"), (0.98, "refuted")):
        assert analyse_study(study, make_measurements(lora=lora), primary=PRIMARY).hypotheses[0].verdict == verdict


def test_the_interval_of_a_ratio_of_means_covers_its_truth():
    """The delta method, by simulation: seeds, examples and their interaction all vary."""
    generator, covered = np.random.default_rng(5), []
    for _ in range(400):
        difficulty = generator.normal(0, 0.3, 300)
        arms = [
            level + difficulty + generator.normal(0, 0.05, (5, 1)) + generator.normal(0, 0.3, (5, 300))
            for level in (1.9, 2.0)
        ]
        zero = np.zeros_like(arms[0])
        ratio, around = ratio_of_means(*([mean_differences(arm, zero)] for arm in arms))
        interval = estimate_difference(around[0], continuous=True).interval(0.95)
        covered.append(ratio + interval.low <= 0.95 <= ratio + interval.high)
    assert 0.93 <= np.mean(covered) <= 0.98


def test_scores_of_one_arm_subtract_to_the_paired_difference():
    from lorascope.metrics.quality import quality
    from lorascope.stats.quality.multibootstrap import metric_differences

    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 200)
    arms = [
        {"label": np.tile(label, (3, 1)), "prediction": np.where(generator.random((3, 200)) < p, label, 1 - label)}
        for p in (0.8, 0.9)
    ]
    estimator = quality("f1").estimator
    assert estimator is not None
    given = {"num_classes": 2, "num_resamples": 100}
    both = metric_differences(estimator, *arms, generator=np.random.default_rng(1), **given)
    first, second = (metric_scores(estimator, arm, generator=np.random.default_rng(1), **given) for arm in arms)
    assert both.values == pytest.approx(first.values - second.values)
    assert both.deviations == pytest.approx(first.deviations - second.deviations)
