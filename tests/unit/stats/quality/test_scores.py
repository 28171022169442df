"""Estimators of metrics: equal to plain loops over resamples, and a ratio's interval covers."""

from __future__ import annotations

import numpy as np
import pytest

from lorascope.metrics.counts import f1
from lorascope.metrics.metric import Corpus, FromCounts, Mean, Ratio
from lorascope.metrics.quality import QUALITY
from lorascope.stats.quality.multibootstrap import _weights, estimate_difference, metric_differences
from lorascope.stats.quality.scores import scorer, whole_scores

SEEDS, EXAMPLES, DRAWS = 3, 40, 30


def longest_share(rows: dict[str, np.ndarray]) -> float:
    """A score that no sum gives: the share of the longest example in all tokens, and how many are drawn."""
    return float(rows["tokens"].max() / rows["tokens"].sum() + 0.01 * np.median(rows["total_loss"]))


@pytest.fixture
def arms() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(2)
    tokens = np.tile(generator.integers(1, 30, EXAMPLES).astype(float), (SEEDS, 1))
    return [
        {
            "tokens": tokens,
            "total_loss": tokens * generator.normal(2, 0.3, tokens.shape),
            "label": np.tile(np.arange(EXAMPLES) % 3, (SEEDS, 1)),
            "prediction": generator.integers(0, 3, tokens.shape),
        }
        for _ in range(2)
    ]


ESTIMATORS = {
    "perplexity": QUALITY["perplexity"].estimator,
    "plain ratio": Ratio("total_loss", "tokens"),
    "corpus": Corpus(("tokens", "total_loss"), longest_share),
    "f1": FromCounts(f1),
}


def plain_score(name: str, rows: dict[str, np.ndarray]) -> float:
    """The definition, on drawn examples [examples]."""
    from sklearn.metrics import f1_score

    if name == "f1":
        return float(f1_score(rows["label"], rows["prediction"], labels=[0, 1, 2], average="macro", zero_division=0))
    if name == "corpus":
        return longest_share(rows)
    ratio = rows["total_loss"].sum() / rows["tokens"].sum()
    return float(np.exp(ratio)) if name == "perplexity" else float(ratio)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_resampled_differences_equal_a_plain_loop(name, arms):
    estimator = ESTIMATORS[name]
    assert estimator is not None
    found = metric_differences(
        estimator, *arms, num_classes=3, generator=np.random.default_rng(9), num_resamples=DRAWS
    )  # fmt: skip
    (weights,) = _weights(EXAMPLES, DRAWS, np.random.default_rng(9))
    draws = [np.repeat(np.arange(EXAMPLES), times.astype(int)) for times in weights]
    looped = np.array([
        [plain_score(name, {key: arms[0][key][seed, drawn] for key in arms[0]})
         - plain_score(name, {key: arms[1][key][seed, drawn] for key in arms[1]}) for drawn in draws]
        for seed in range(SEEDS)
    ])  # fmt: skip
    np.testing.assert_allclose(found.deviations @ found.deviations.T, np.cov(looped), rtol=1e-9)
    whole = [[plain_score(name, {key: arm[key][seed] for key in arm}) for seed in range(SEEDS)] for arm in arms]
    np.testing.assert_allclose(found.values, np.subtract(*whole), rtol=1e-12)


def test_a_mean_weighted_by_ones_is_the_mean(arms):
    weighted = scorer(Mean("total_loss"), arms[0], num_classes=2)(np.ones((1, EXAMPLES)))[0]
    np.testing.assert_allclose(weighted, whole_scores(Mean("total_loss"), arms[0], num_classes=2))


def test_interval_of_a_difference_of_perplexities_covers():
    """Two arms drawn alike: 0 lies in the 95% interval of nine studies in ten and more; in all would be too wide."""
    generator, num_studies, covered = np.random.default_rng(4), 200, 0
    estimator = QUALITY["perplexity"].estimator
    assert estimator is not None
    for _ in range(num_studies):
        tokens = np.tile(generator.integers(5, 100, 150).astype(float), (5, 1))
        shared = generator.normal(2, 0.5, 150)
        arms = []
        for _ in range(2):
            mean = shared + generator.normal(0, 0.05, 150) + generator.normal(0, 0.01, (5, 1))
            losses = tokens * (mean + generator.normal(0, 0.05, tokens.shape))
            arms.append({"tokens": tokens, "total_loss": losses})
        differences = metric_differences(estimator, *arms, num_classes=2, generator=generator, num_resamples=200)
        interval = estimate_difference(differences, continuous=True).interval(0.95)
        covered += interval.low <= 0 <= interval.high
    assert 0.91 <= covered / num_studies <= 0.99
