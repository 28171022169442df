"""A thousand bootstrap resamples of debiased CKA: sums over all draws at once against a resample at a time.

The plain way gathers the rows and columns of each resample from both Gram matrices, U-centres them and takes the cosine.
It also takes copies of an example for different examples, so its values are wrong (docs/drift.md); only its time counts.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from clock import compared, seconds_in_turn
from torch import Tensor

from lorascope.drift.grams import grams
from lorascope.drift.resampling import bootstrap_cka, bootstrap_counts

HIDDEN = 576


def a_resample_at_a_time(first: Tensor, second: Tensor, counts: Tensor) -> Tensor:
    """[draws] of one layer from its Gram matrices."""

    def centred(gram: Tensor, order: Tensor) -> Tensor:
        n = len(order)
        moved = gram[order.unsqueeze(1), order].fill_diagonal_(0)
        means = moved.sum(0) / (n - 2)
        means -= means.sum() / (2 * (n - 1))
        return moved.sub_(means).sub_(means.unsqueeze(1)).fill_diagonal_(0)

    values = []
    for row in counts:
        order = torch.repeat_interleave(torch.arange(len(row), device=row.device), row.long())
        a, b = centred(first, order), centred(second, order)
        values.append((a * b).sum() / (torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b)))
    return torch.stack(values)


def rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours: all models and layers. The plain way: one layer of one model, scaled."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(given.layers, given.examples, HIDDEN, generator=generator)
    models = [
        grams((base + 0.1 * torch.randn(base.shape, generator=generator)).to(given.device)) for _ in range(given.models)
    ]
    reference = grams(base.to(given.device))
    counts = bootstrap_counts(given.examples, generator=np.random.default_rng(0), draws=given.draws).to(given.device)
    seconds = seconds_in_turn(
        {
            "ours": lambda: bootstrap_cka(reference, models, counts=counts),
            "plain": lambda: a_resample_at_a_time(reference.matrices[0], models[0].matrices[0], counts),
        },
        repeats=given.repeats,
        device=given.device,
    )
    comparisons = given.models * given.layers
    row = compared(
        f"{given.draws} bootstrap draws of debiased CKA, {given.models} models x {given.layers} layers, "
        f"{given.examples} examples",
        seconds["ours"],
        [comparisons * s for s in seconds["plain"]],
        peer_name=f"a resample at a time, {reference.matrices.dtype} (one layer measured, times {comparisons})",
    )
    return [row]
