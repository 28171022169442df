"""Debiased CKA of every layer with every layer of two models, from features already in memory.

torch-cka runs as its users run it, through its `CKA` class, on modules that return stored features instead of computing
them, in one batch. ckatorch's class makes the examples of a batch the batch axis of a three-dimensional tensor and
compares positions, so for pooled features its function `cka_batch` is called for each pair, as its class does.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from clock import compared, seconds_in_turn
from torch import Tensor, nn

from lorascope.drift.grams import grams
from lorascope.drift.similarity import linear_cka_pairs

PEERS = {"torch-cka": "0.21", "ckatorch": "1.0.3"}


def peer_versions() -> dict[str, str]:
    found = {}
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def ours(first: Tensor, second: Tensor) -> Tensor:
    return linear_cka_pairs(grams(first), grams(second))


def a_product_per_pair(first: Tensor, second: Tensor) -> Tensor:
    """Gram matrices once, then HSIC_1 of each pair by tr(K L) of a matrix product, float32: what caching alone gives."""

    def kernels(features: Tensor) -> Tensor:
        gram = features @ features.mT
        gram.diagonal(dim1=1, dim2=2).zero_()
        return gram

    def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 (Song et al.'s letter)
        n = len(k)
        product = k @ l
        return product.trace() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * product.sum() / (n - 2)

    a, b = kernels(first), kernels(second)
    own_a, own_b = torch.stack([hsic(k, k) for k in a]), torch.stack([hsic(l, l) for l in b])  # noqa: E741
    return torch.stack([torch.stack([hsic(k, l) for l in b]) for k in a]) / torch.outer(own_a, own_b).sqrt()  # noqa: E741


class Stored(nn.Module):
    """A model whose layers return what they are given at construction."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Returns(layer) for layer in features)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            layer(x)
        return x


class _Returns(nn.Module):
    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.features


class _OneBatch(list):
    dataset = "stored features"


def with_torch_cka(first: Tensor, second: Tensor) -> Tensor:
    from torch_cka import CKA

    names = [f"layers.{layer}" for layer in range(len(first))]
    batch = _OneBatch([(torch.zeros(first.shape[1], 1),)])
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        cka = CKA(Stored(first), Stored(second), "first", "second", names, names)
        cka.compare(batch, batch)
    return cka.export()["CKA"]


def with_ckatorch(first: Tensor, second: Tensor) -> Tensor:
    from ckatorch.core import cka_batch

    return torch.stack([torch.stack([cka_batch(x[None], y[None]) for y in second]) for x in first])


SIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch-cka": with_torch_cka,
    "ckatorch": with_ckatorch,
    "cached Grams, a float32 product per pair": a_product_per_pair,
}


def reference(first: Tensor, second: Tensor) -> Tensor:
    """HSIC_1 of each pair in float64, in feature space, without any Gram matrix."""

    def hsic(x: Tensor, y: Tensor) -> float:
        n = len(x)
        squares = x.square().sum(1), y.square().sum(1)
        rows = x @ x.sum(0) - squares[0], y @ y.sum(0) - squares[1]
        trace = torch.linalg.matrix_norm(y.T @ x).square() - squares[0] @ squares[1]
        return float(trace + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2)) - 2 * (rows[0] @ rows[1]) / (n - 2))

    a, b = (f.double() - f.double().mean(1, keepdim=True) for f in (first, second))
    own_a, own_b = [hsic(x, x) for x in a], [hsic(y, y) for y in b]
    pairs = [
        [hsic(x, y) / math.sqrt(p * q) for y, q in zip(b, own_b, strict=True)] for x, p in zip(a, own_a, strict=True)
    ]
    return torch.tensor(pairs, dtype=torch.float64)


def two_models(
    layers: int, examples: int, hidden: int, *, offset: float = 0.0, noise: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Layers that build on each other, and a second model that is the first with noise."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(layers, examples, hidden, generator=generator).cumsum(0)
    second = first + noise * torch.randn(first.shape, generator=generator)
    return first + offset, second + offset


def errors(first: Tensor, second: Tensor) -> dict[str, float | str]:
    """The largest absolute error of each side's CKA, or what it raised."""
    exact, found = reference(first, second), {}
    for name, side in {"ours": ours, **SIDES}.items():
        try:
            error = float((side(first, second).double() - exact).abs().max())
            found[name] = "NaN" if math.isnan(error) else error
        except Exception as failure:  # a peer that fails here is a finding
            found[name] = f"{type(failure).__name__}: {failure}"
    return found


def rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    missing = [f"{name}=={version}" for name, version in PEERS.items() if name not in peer_versions()]
    if missing:
        raise SystemExit(
            f"the peers are not installed: pip install {' '.join(missing)} (in an environment of their own)"
        )
    small = {
        "4 layers x 256 examples x 512 features": two_models(4, 256, 512),
        "each feature shifted by 3": two_models(4, 256, 512, offset=3.0),
        "each feature shifted by 30": two_models(4, 256, 512, offset=30.0),
        "second model 1e-3 away": two_models(4, 256, 512, noise=1e-3),
    }
    accuracy = {name: errors(*models) for name, models in small.items()}
    for name, found in accuracy.items():
        print(
            f"largest error, {name}: "
            + ", ".join(f"{side} {e if isinstance(e, str) else f'{e:.1e}'}" for side, e in found.items())
        )
    results = []
    for size in given.sizes:
        layers, examples, hidden = map(int, size.split("x"))
        models = two_models(layers, examples, hidden)
        sides = {name: functools.partial(side, *models) for name, side in {"ours": ours, **SIDES}.items()}
        seconds = seconds_in_turn(sides, repeats=given.repeats)
        work = f"debiased CKA, all pairs of {layers} x {layers} layers, {examples} examples x {hidden} features, CPU"
        for name in SIDES:
            row = compared(work, seconds["ours"], seconds[name], peer_name=name)
            results.append(
                {**row, "largest_error": {case: {s: e[s] for s in ("ours", name)} for case, e in accuracy.items()}}
            )
    return results
