"""Attention sinks: tokens whose states are so large that a mean over tokens says little but how many tokens there are.

Pre-norm decoders give a few tokens, mostly the first, massive activations that attention parks on (Xiao et al. 2024; Sun et
al. 2024). The one idea: what is a sink is decided on the base alone, at each layer of each site by itself, and the same
tokens are left out for every run. A run that grows a sink of its own is not masked for it: its growth is drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lorascope.stats.drift.health import SINK_NORM, SINK_NORM_CHANGE, SINK_SHARE

SINK_FACTOR = 10.0
"""A sink's norm exceeds so many times the median norm of its sequence."""


@dataclass(frozen=True)
class Sinks:
    """The sinks of the base on a probe. norms: site -> the norm of a token that is a sink at that layer, 0 for every other,
    on the model's device."""

    norms: Mapping[str, Float[Tensor, "layers examples tokens"]]


@dataclass(frozen=True)
class SinkFigures:
    """What a model shows of sinks, site -> [layers]. share: of its own real tokens that are sinks. norm: of the base's sinks,
    in medians of their sequences; change: the same norms against the base's, less 1. Both NaN where the base has no sink."""

    share: Mapping[str, np.ndarray]
    norm: Mapping[str, np.ndarray]
    change: Mapping[str, np.ndarray]


@dataclass
class SinkReader:
    """Notes sinks while models read, batch by batch. layers: site -> how many. num_examples: of the probe. of_base: decided
    before; None: the model that is read is the base, whose sinks are decided now."""

    layers: Mapping[str, int]
    num_examples: int
    runs: int
    of_base: Sinks | None
    device: torch.device
    _norms: dict[str, Tensor] = field(default_factory=dict)
    _sums: dict[str, Float[Tensor, "four runs layers"]] = field(default_factory=dict)
    _written: list[np.ndarray] = field(default_factory=list)
    _num_tokens: int = 0

    def prepare(self, rows: np.ndarray, mask: Tensor | None) -> None:
        """Notes a batch: its examples, and which of its positions are real (None: all)."""
        self._rows = torch.from_numpy(rows).to(self.device)
        self._mask = None if mask is None else mask.bool().repeat(self.runs, 1)
        start = sum(map(len, self._written))
        self._next = slice(start, start + len(rows))
        self._written.append(rows)
        self._is_counted = False

    def read(self, site: str, layer: int, hidden: Float[Tensor, "batch tokens hidden"]) -> Bool[Tensor, "batch tokens"]:
        """Which tokens of the batch are sinks of the base here. hidden: of runs * examples."""
        norms = torch.linalg.vector_norm(hidden.float(), dim=2)
        real = torch.ones_like(norms, dtype=torch.bool) if self._mask is None else self._mask
        if not self._is_counted:
            self._num_tokens, self._is_counted = self._num_tokens + int(real.sum()), True
        medians = _medians(norms, real)
        own = (norms > SINK_FACTOR * medians) & real
        if self.of_base is None:
            base = norms * own
            if self.runs == 1:
                self._stored(site, norms.shape[1])[layer, self._next, : norms.shape[1]] = base
        else:
            stored = self.of_base.norms[site][layer].index_select(0, self._rows)[:, : norms.shape[1]]
            base = stored.repeat(self.runs, 1)
        sinks = base > 0
        found = (
            own.float(),
            sinks.float(),
            torch.where(sinks, norms / medians, 0.0),
            torch.where(sinks, norms / torch.where(sinks, base, 1.0), 0.0),
        )
        if site not in self._sums:
            self._sums[site] = torch.zeros(len(found), self.runs, self.layers[site], device=self.device)
        by_run = torch.stack([values.unflatten(0, (self.runs, -1)).sum((1, 2)) for values in found])
        self._sums[site][:, :, layer] += by_run
        return sinks

    def decided(self) -> Sinks:
        """The base's sinks, its examples in their own order."""
        if self.of_base is not None:
            return self.of_base
        order = torch.from_numpy(np.argsort(np.concatenate(self._written))).to(self.device)
        return Sinks({site: norms.index_select(1, order) for site, norms in self._norms.items()})

    def figures(self, run: int) -> SinkFigures:
        """What one of the runs showed."""
        share, norm, change = {}, {}, {}
        tokens = self._num_tokens / self.runs
        for site, sums in self._sums.items():
            own, count, ratio, growth = sums[:, run].double().cpu().numpy()
            share[site] = own / tokens
            known = np.where(count > 0, count, np.nan)
            norm[site], change[site] = ratio / known, growth / known - 1
        return SinkFigures(share, norm, change)

    def _stored(self, site: str, tokens: int) -> Tensor:
        """Where a site's norms go. The first batch holds the longest example."""
        if site not in self._norms:
            self._norms[site] = torch.zeros(self.layers[site], self.num_examples, tokens, device=self.device)
        return self._norms[site]


def sink_rows(figures: SinkFigures, *, is_base: bool = False) -> list[tuple[str, int, str, float]]:
    """(site, position of the layer, metric, value), without what is not defined."""
    metrics = {SINK_SHARE: figures.share, SINK_NORM: figures.norm}
    if not is_base:
        metrics[SINK_NORM_CHANGE] = figures.change
    return [
        (site, layer, metric, float(value))
        for metric, by_site in metrics.items()
        for site, values in by_site.items()
        for layer, value in enumerate(values)
        if np.isfinite(value)
    ]


def _medians(norms: Float[Tensor, "batch tokens"], real: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch one"]:
    """The (lower) median norm of each sequence's real tokens. Sorted, because CUDA has no deterministic median."""
    ordered = torch.where(real, norms, torch.inf).sort(dim=1).values
    return ordered.gather(1, (real.sum(1, keepdim=True) - 1).clamp(min=0) // 2)
