"""The bootstrap and permutation of CKA against sums over all tuples, and against simulated truth."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.drift.grams import grams
from lorascope.drift.resampling import (
    bootstrap_cka,
    bootstrap_counts,
)
from lorascope.drift.similarity import linear_cka
from lorascope.errors import StudyError


def related(layers: int, examples: int, hidden: int, *, models: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(layers, examples, hidden, generator=generator, dtype=torch.float64)
    noise = torch.randn(models, *base.shape, generator=generator, dtype=torch.float64)
    return [base, *(base + (1 + index) * 0.4 * extra for index, extra in enumerate(noise))]


def hsic_over_all_tuples(k: np.ndarray, l: np.ndarray, w: np.ndarray) -> float:  # noqa: E741
    """The weighted U-statistic from its definition: every four different examples."""
    total = weight = 0.0
    for i, j, q, r in permutations(range(len(w)), 4):
        product = w[i] * w[j] * w[q] * w[r]
        total += product * (k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q])
        weight += product
    return total / weight


def test_bootstrap_cka_equals_the_sum_over_all_different_examples():
    base, first, second = related(1, 8, 5, models=2)
    counts = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [2, 0, 1, 1, 3, 1, 0, 0], [0, 0, 2, 2, 2, 1, 1, 0.0]]).double()
    draws = bootstrap_cka(grams(base), [grams(first), grams(second)], counts=counts)
    assert draws.shape == (3, 2, 1)
    raw = [(x[0] @ x[0].T).numpy() for x in (base, first, second)]  # neither centred nor of zero diagonal
    for draw, w in enumerate(counts.numpy()):
        for model in (1, 2):
            product, one, other = (
                hsic_over_all_tuples(raw[a], raw[b], w) for a, b in ((0, model), (0, 0), (model, model))
            )
            assert draws[draw, model - 1, 0].item() == pytest.approx(product / (one * other) ** 0.5, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(8, 40), st.integers(2, 60))
def test_a_resample_of_every_example_once_is_the_estimate(seed, examples, hidden):
    base, *models = (grams(x.float()) for x in related(2, examples, hidden, models=2, seed=seed))
    draws = bootstrap_cka(base, models, counts=torch.ones(1, examples, dtype=torch.float64))
    expected = torch.stack([linear_cka(base, model) for model in models])
    torch.testing.assert_close(draws[0], expected, atol=1e-5, rtol=0)


def test_resamples_do_not_see_a_shift():
    base, model = related(1, 12, 6, models=1)
    counts = bootstrap_counts(12, generator=np.random.default_rng(0), draws=20)
    before = bootstrap_cka(grams(base), [grams(model)], counts=counts)
    after = bootstrap_cka(grams(base + 3), [grams(model - 7)], counts=counts)
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)


def test_a_model_given_alone_gets_the_draws_it_gets_among_others():
    base, *models = (grams(x) for x in related(2, 30, 10, models=3))
    counts = bootstrap_counts(30, generator=np.random.default_rng(0), draws=50)
    together = bootstrap_cka(base, models, counts=counts)
    alone = bootstrap_cka(base, models[1:2], counts=counts)
    torch.testing.assert_close(together[:, 1:2], alone)


def test_models_share_their_resamples_so_that_differences_are_paired():
    """Two models that drifted alike: their difference varies far less than either."""
    base, noise, extra = related(1, 100, 20, models=2)
    first = base + 0.5 * (noise - base)
    second = first + 0.02 * (extra - base)
    counts = bootstrap_counts(100, generator=np.random.default_rng(0), draws=200)
    draws = bootstrap_cka(grams(base), [grams(first), grams(second)], counts=counts)[..., 0]
    assert (draws[:, 0] - draws[:, 1]).std() < 0.3 * draws[:, 0].std()


def test_bootstrap_intervals_hold_the_cka_of_the_population():
    """120 samples of 64 examples of Gaussian features whose population CKA is known in closed form."""
    examples, hidden, draws, samples = 64, 64, 200, 120
    rng = np.random.default_rng(0)
    mix = np.eye(hidden) + 0.3 * rng.normal(size=(hidden, hidden)) / np.sqrt(hidden)
    covariance = mix.T @ mix + 0.05 * np.eye(hidden)
    truth = np.sum(mix**2) / (np.sqrt(hidden) * np.linalg.norm(covariance))
    base = rng.normal(size=(samples, examples, hidden))
    model = base @ mix + np.sqrt(0.05) * rng.normal(size=base.shape)
    a, b = grams(torch.from_numpy(base)), grams(torch.from_numpy(model))
    counts = bootstrap_counts(examples, generator=rng, draws=draws)
    low, high = np.quantile(bootstrap_cka(a, [b], counts=counts)[:, 0], [0.025, 0.975], axis=0)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.93
    copies = [np.repeat(np.arange(examples), w.astype(int)) for w in counts[:40].numpy()]
    naive = torch.stack([linear_cka(*(grams(torch.from_numpy(x[:20, i])) for x in (base, model))) for i in copies])
    low, high = np.quantile(naive, [0.025, 0.975], axis=0)
    assert np.mean((low <= truth) & (truth <= high)) < 0.1


def test_counts_are_resamples_with_replacement():
    counts = bootstrap_counts(50, generator=np.random.default_rng(0), draws=400)
    assert (counts.sum(1) == 50).all()
    assert counts.var(0).mean().item() == pytest.approx(1 - 1 / 50, abs=0.05)


def test_a_resample_with_nothing_to_compare_is_refused():
    base, model = (grams(x) for x in related(1, 6, 3, models=1))
    three = torch.tensor([[2, 2, 2, 0, 0, 0]]).double()
    with pytest.raises(StudyError, match="fewer than four different"):
        bootstrap_cka(base, [model], counts=three)
    two_differ = torch.zeros(1, 12, 2, dtype=torch.float64)
    two_differ[0, :2] = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    spread = grams(two_differ)
    without = torch.tensor([[0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0]]).double()
    with pytest.raises(StudyError, match="no spread in a resample"):
        bootstrap_cka(spread, [spread], counts=without)
