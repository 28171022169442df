"""The health of layers: effective rank and the first component in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from lorascope.drift.grams import grams
from lorascope.drift.health import effective_ranks, layer_health, top_components
from lorascope.drift.views import Points

EXAMPLES = 64
DIRECTIONS = torch.from_numpy(hadamard(EXAMPLES)[:, 1:]).float()  # centred, orthogonal, of equal length


def features(*variances: float) -> torch.Tensor:
    """[1, examples, directions], with these variances along orthogonal directions."""
    return (DIRECTIONS[:, : len(variances)] * torch.tensor(variances).sqrt())[None] + 3.0


@pytest.mark.parametrize(
    ("variances", "rank", "share"),
    [((1.0,), 1.0, 1.0), ((1.0,) * 7, 7.0, 1 / 7), ((3.0, 1.0), 1.6, 0.75), ((97.0, 1.0, 1.0, 1.0), 1.0625, 0.97)],
)
def test_effective_rank_is_the_participation_ratio(variances: tuple[float, ...], rank: float, share: float) -> None:
    """(sum of variances)^2 / sum of their squares, whatever the offset."""
    biased = grams(features(*variances), estimator="biased")
    assert float(effective_ranks(biased)) == pytest.approx(rank, rel=2e-4)
    assert float(top_components(biased)[0]) == pytest.approx(share, rel=1e-4)


def test_the_first_component_is_that_of_a_full_decomposition() -> None:
    spread = torch.arange(1, 41).float().rsqrt()
    x = torch.randn(3, 200, 40, generator=torch.Generator().manual_seed(0)) * spread
    biased = grams(x, estimator="biased")
    shares, vectors = top_components(biased)
    values, expected = torch.linalg.eigh(biased.matrices.double())
    torch.testing.assert_close(shares, values[:, -1] / values.sum(1), rtol=1e-3, atol=1e-4)
    agreement = torch.linalg.vecdot(vectors, expected[:, :, -1]).abs()
    assert (agreement > 0.99).all()


def test_a_layer_that_follows_length_or_label_is_seen_and_named_unhealthy() -> None:
    lengths = np.arange(EXAMPLES) + 4.0
    labels = np.tile([0, 1], EXAMPLES // 2)
    centre = torch.tensor(1 / lengths - (1 / lengths).mean()).float()
    of_length = (100 * centre / centre.norm())[:, None] * torch.ones(1, 8) + 0.01 * DIRECTIONS[:, :8]
    of_label = 10 * torch.tensor(labels * 2.0 - 1).float()[:, None] * torch.ones(1, 8) + 0.01 * DIRECTIONS[:, 8:16]
    biased = {"mlp": grams(torch.stack([of_length, of_label]), estimator="biased")}
    first, second = layer_health(biased, Points({"mlp": (0, 1)}), lengths=lengths, labels=labels)
    assert (first.layer, second.layer) == (1, 2) and not first.is_healthy and not second.is_healthy
    assert first.length_correlation == pytest.approx(1, abs=1e-3) and first.top_share > 0.99
    assert second.label_correlation == pytest.approx(1, abs=1e-3)
    assert second.length_correlation is not None and second.length_correlation < 0.3


def test_images_have_no_length_and_texts_without_classes_no_label() -> None:
    biased = {"residual": grams(features(1.0, 1.0, 1.0, 1.0), estimator="biased")}
    (row,) = layer_health(biased, Points({"residual": (0,)}), lengths=np.ones(EXAMPLES), labels=None)
    assert row.is_healthy and row.length_correlation is None and row.label_correlation is None
