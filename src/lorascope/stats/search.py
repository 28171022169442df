"""What a search of a given length may be expected to find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def expected_best(scores: Sequence[float]) -> list[float]:
    """The expected best of n of these trials in random order, for n = 1 to all: expected validation performance (Dodge et
    al. 2019, eq. 1), with replacement, from the empirical distribution: E_n = sum_i v_(i) ((i/N)^n - ((i-1)/N)^n).

    Trials of a sampler that learns are not alike, so for them it is what random order of the same trials would give.
    Raises ValueError without scores.
    """
    if not scores:
        raise ValueError("no score to expect anything from")
    ordered, size = np.sort(np.asarray(scores, dtype=np.float64)), len(scores)
    shares = np.arange(size + 1) / size
    return [float(ordered @ np.diff(shares**count)) for count in range(1, size + 1)]


def best_so_far(scores: Sequence[float | None]) -> list[float | None]:
    """The best score after each trial, in their order; None before the first that has one."""
    found: list[float | None] = []
    for score in scores:
        known = [value for value in (score, found[-1] if found else None) if value is not None]
        found.append(max(known, default=None))
    return found
