"""What a search of a given length may be expected to find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorascope.metrics.metric import Direction


def expected_best(scores: Sequence[float], direction: Direction = "higher") -> list[float]:
    """The expected best of n of these trials in random order, for n = 1 to all: expected validation performance (Dodge et
    al. 2019, eq. 1), with replacement, from the empirical distribution: E_n = sum_i v_(i) ((i/N)^n - ((i-1)/N)^n), v_(1)
    the worst and v_(N) the best.

    Trials of a sampler that learns are not alike, so for them it is what random order of the same trials would give.
    Raises ValueError without scores.
    """
    if not scores:
        raise ValueError("no score to expect anything from")
    ordered, size = np.sort(np.asarray(scores, dtype=np.float64)), len(scores)
    ordered = ordered if direction == "higher" else ordered[::-1]  # from the worst to the best
    shares = np.arange(size + 1) / size
    return [float(ordered @ np.diff(shares**count)) for count in range(1, size + 1)]


def best_so_far(scores: Sequence[float | None], direction: Direction = "higher") -> list[float | None]:
    """The best score after each trial, in their order; None before the first that has one."""
    found: list[float | None] = []
    best = max if direction == "higher" else min
    for score in scores:
        known = [value for value in (score, found[-1] if found else None) if value is not None]
        found.append(best(known, default=None))
    return found
