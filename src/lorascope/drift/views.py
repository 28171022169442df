"""What a model shows on a probe, prepared once for all comparisons, and how far another model's view lies from it.

Every value is a distance to the base, 0 where nothing has changed (drift/similarity.py says what each is blind to). A layer
in which all examples look the same in the base, such as the embedding of a first token that they share, has no similarity
and is left out of every view.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorascope.drift.grams import Grams, constant_layers, grams
from lorascope.drift.similarity import (
    centred_cosine,
    linear_cka,
    mutual_knn,
    preshapes,
    procrustes_angle,
    raw_cosine,
)

Features = Mapping[str, Float[Tensor, "layers examples hidden"]]
Row = tuple[str, int, str, float]
"""site, layer, metric, value."""


@dataclass(frozen=True)
class Points:
    """Where the base can be compared. kept: site -> positions along the features' first axis."""

    kept: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, base: Features) -> Points:
        """All layers of the base's features but the constant ones."""
        constant = {site: constant_layers(features) for site, features in base.items()}
        return cls({s: tuple(i for i in range(len(x)) if i not in constant[s]) for s, x in base.items()})

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(site, layer) of each point. Layer 0 is the embedding; a block's outputs have the block's number, from 1."""
        return ((site, layer_number(site, i)) for site, positions in self.kept.items() for i in positions)

    def left_out(self, base: Features) -> list[str]:
        """The constant layers, in words."""
        return [
            f"{site} layer {layer_number(site, i)}"
            for site, x in base.items() for i in range(len(x)) if i not in self.kept[site]
        ]  # fmt: skip


def layer_number(site: str, position: int) -> int:
    """The layer at a position of a site's features: only the residual stream begins with the embedding, layer 0."""
    return position if site == "residual" else position + 1


@dataclass(frozen=True)
class View:
    """One model on one probe, by one pooling. debiased, standardised, biased: Grams a site; shapes: Procrustes preshapes a
    site. biased and shapes are empty in a view that is for the drift alone."""

    features: dict[str, Tensor]
    debiased: dict[str, Grams]
    standardised: dict[str, Grams]
    biased: dict[str, Grams]
    shapes: dict[str, Tensor]

    @classmethod
    def of(cls, features: Features, points: Points, *, is_base: bool = False, only_drift: bool = False) -> View:
        """is_base: whether others are compared with it; on CUDA its Procrustes preshapes alone are reduced. only_drift: no
        other measure is wanted, but the standardised drift.

        Raises StudyError for features that are not finite, for a layer that is constant here though not in the base, and
        below 4 examples."""
        chosen = {site: features[site][list(positions)] for site, positions in points.kept.items() if positions}
        if only_drift:
            debiased = {site: grams(x, site=site) for site, x in chosen.items()}
            return cls(
                chosen,
                debiased,
                {s: grams(x, standardise=True, site=s) for s, x in chosen.items()},
                biased={},
                shapes={},
            )
        return cls(
            chosen,
            {site: grams(x, site=site) for site, x in chosen.items()},
            {site: grams(x, standardise=True, site=site) for site, x in chosen.items()},
            {site: grams(x, estimator="biased", site=site) for site, x in chosen.items()},
            {site: preshapes(x, reduce=is_base or not x.is_cuda, site=site) for site, x in chosen.items()},
        )


def debiased_grams(features: Features, points: Points, *, examples: int | None = None) -> dict[str, Grams]:
    """Only the Grams that drift is made of, of the first `examples` examples."""
    return {s: grams(features[s][list(kept), :examples], site=s) for s, kept in points.kept.items() if kept}


def distances(base: View, run: View, points: Points, *, neighbours: int) -> list[Row]:
    """Every distance of a run to its base, point by point."""
    rows: list[Row] = []
    for site in base.features:
        first, second = base.features[site], run.features[site]
        measured = {
            "drift": 1 - linear_cka(base.debiased[site], run.debiased[site]),
            "drift_standardised": 1 - linear_cka(base.standardised[site], run.standardised[site]),
        }
        if site in run.shapes:
            measured |= {
                "drift_biased": 1 - linear_cka(base.biased[site], run.biased[site]),
                "cosine_distance": 1 - centred_cosine(first, second).mean(1),
                "raw_cosine_distance": 1 - raw_cosine(first, second).mean(1),
                "procrustes_distance": procrustes_angle(base.shapes[site], run.shapes[site]),
                "neighbour_change": 1 - mutual_knn(base.biased[site], run.biased[site], k=neighbours).mean(1),
            }
        for metric, values in measured.items():
            rows += _rows(points, site, metric, values)
    return rows


def drift_between(first: Mapping[str, Grams], second: Mapping[str, Grams], points: Points) -> list[Row]:
    """1 - debiased CKA of two models, or of one on two sets of examples."""
    return [row for s in first for row in _rows(points, s, "drift", 1 - linear_cka(first[s], second[s]))]


def mean_rows(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """Point by point, the mean over several tables of the same points."""
    columns = zip(*tables, strict=True)
    return [(*same[0][:3], sum(row[3] for row in same) / len(same)) for same in columns]


def _rows(points: Points, site: str, metric: str, values: Tensor) -> list[Row]:
    pairs: Any = zip(points.kept[site], values.tolist(), strict=True)
    return [(site, layer_number(site, position), metric, float(value)) for position, value in pairs]


def is_block_output(site: str, layer: int) -> bool:
    """Whether a point counts in a run's drift in one number: the residual stream after each block."""
    return site == "residual" and layer > 0


def mean_drift(rows: Sequence[Row], *, without: Container[tuple[str, int]] = ()) -> float | None:
    """A run's drift in one number: the mean over the residual stream after each block. without: layers that are left out,
    (site, layer). None where nothing is left or that was not read."""
    counted = [row for row in rows if row[2] == "drift" and is_block_output(*row[:2]) and row[:2] not in without]
    values = [value for *_, value in counted]
    return float(torch.tensor(values, dtype=torch.float64).mean()) if values else None
