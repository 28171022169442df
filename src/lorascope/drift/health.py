"""How many directions the base's features use, layer by layer, and what the first of them is.

The effective rank is the participation ratio of the covariance's eigenvalues, tr(C)^2 / tr(C^2), which a centred Gram matrix
K = X X' gives as tr(K)^2 / ||K||_F^2: 1 for a single direction, d for d alike ones. The top component is K's first
eigenvector, one value an example; |correlation| with 1 / length shows a layer that is mostly about how many tokens there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorascope.drift.grams import Grams, layers_at_once
from lorascope.drift.views import Points, layer_number
from lorascope.stats.drift.health import is_healthy

_BLOCK, _ITERATIONS, _PRODUCTS = 8, 12, 4


@dataclass(frozen=True)
class LayerHealth:
    """One layer of the base by one pooling. top_share: of the variance that lies along the top principal component. The
    correlations are absolute; None where all examples have one length, or no label."""

    site: str
    layer: int
    effective_rank: float
    top_share: float
    length_correlation: float | None
    label_correlation: float | None

    @property
    def is_healthy(self) -> bool:
        return is_healthy(self.effective_rank)


def layer_health(
    biased: Mapping[str, Grams], points: Points, *, lengths: np.ndarray, labels: np.ndarray | None
) -> list[LayerHealth]:
    """One a point. biased: double-centred Grams of the base, of the points' layers. lengths, labels: [rows]; labels are
    classes by number."""
    found = []
    for site, grams in biased.items():
        ranks, (shares, components) = effective_ranks(grams), top_components(grams)
        for index, position in enumerate(points.kept[site]):
            first = components[index].cpu().numpy()
            of_length = _correlation(first, 1 / lengths)
            of_label = None if labels is None else _class_correlation(first, labels)
            numbers = float(ranks[index]), float(shares[index]), of_length, of_label
            found.append(LayerHealth(site, layer_number(site, position), *numbers))
    return found


def effective_ranks(biased: Grams) -> Float64[Tensor, " layers"]:
    """tr(K)^2 / ||K||_F^2 of each layer."""
    assert biased.estimator == "biased", "the trace is on the diagonal, which only biased Grams have"
    traces = biased.matrices.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64)
    return (traces / biased.norms).square()


def top_components(biased: Grams) -> tuple[Float64[Tensor, " layers"], Float64[Tensor, "layers examples"]]:
    """The share of the largest eigenvalue in the trace, and its eigenvector, by subspace iteration: a full decomposition of
    every layer would take a hundred times as long."""
    shares, vectors = [], []
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(biased.num_examples, min(_BLOCK, biased.num_examples), generator=generator, dtype=torch.float64)
    for layers in layers_at_once(biased.matrices):
        grams = biased.matrices[layers].double()
        grams = grams / grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]  # of trace 1
        basis = start.to(grams.device).expand(len(grams), -1, -1)
        for _ in range(_ITERATIONS):
            for _ in range(_PRODUCTS):
                basis = grams @ basis
            basis = torch.linalg.qr(basis).Q
        values, inner = torch.linalg.eigh(basis.mT @ grams @ basis)
        shares.append(values[:, -1])
        vectors.append((basis @ inner[:, :, -1:]).squeeze(2))
    return torch.cat(shares), torch.cat(vectors)


def _correlation(first: Float[np.ndarray, " rows"], second: Float[np.ndarray, " rows"]) -> float | None:
    """|Pearson's r|; None where one does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return abs(float(np.corrcoef(first, second)[0, 1]))


def _class_correlation(values: Float[np.ndarray, " rows"], classes: np.ndarray) -> float | None:
    """The multiple correlation with the classes (for two of them |Pearson's r|); None where there is one class."""
    total = float(np.square(values - values.mean()).sum())
    names = np.unique(classes)
    if len(names) < 2 or total == 0:
        return None
    groups = [values[classes == name] for name in names]
    between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups)
    return float(np.sqrt(between / total))
