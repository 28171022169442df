"""Ratios over repeats: paired by repeat, taken on the log scale, with the interval that decides and the one that does not.

Repeats are few (5 or 10), so limits are Student's t with n - 1 degrees of freedom. Percentiles of resampled repeats are
shown beside it because readers expect them; with 5 repeats they cover far less than they say (docs/statistics.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from lorascope.stats.interval import Interval
from lorascope.stats.quality.multibootstrap import BootstrapEstimate

FEWEST = 3
"""Repeats below which no interval is printed: two have one degree of freedom, and t = 12.7."""
OVER_REPEATS = "t over repeats, log scale"
BOOTSTRAP = "percentile bootstrap over repeats"
_RESAMPLES = 2000


def paired_logs(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Log of first / second in every repeat that has both, above 0."""
    return {
        repeat: math.log(first[repeat] / second[repeat])
        for repeat in first
        if repeat in second and first[repeat] > 0 and second[repeat] > 0
    }


def estimate_of_logs(logs: np.ndarray) -> BootstrapEstimate:
    """The mean of one number a repeat; repeats are all that varies. logs: [repeats]."""
    n = len(logs)
    between = float(logs.var(ddof=1)) if n > 1 else 0.0
    return BootstrapEstimate(float(logs.mean()), between / n, max(n - 1, 1), between, 0.0, 0.0, n, 0)


def ratio_over_repeats(estimate: BootstrapEstimate, *, confidence: float = 0.95) -> Interval:
    """The interval of a ratio from the estimate of its log."""
    log = estimate.interval(confidence)
    return Interval(math.exp(log.estimate), math.exp(log.low), math.exp(log.high), confidence, OVER_REPEATS)


def interval_of(logs: np.ndarray) -> Interval | None:
    """The 95% t interval of a ratio; None below FEWEST repeats. logs: [repeats]."""
    return ratio_over_repeats(estimate_of_logs(logs)) if len(logs) >= FEWEST else None


def bootstrap_interval(logs: np.ndarray) -> Interval | None:
    """Percentiles of the geometric mean over resampled repeats, the same resamples for all; None below FEWEST repeats."""
    if len(logs) < FEWEST:
        return None
    low, high = np.quantile(_resamples(len(logs)) @ logs, (0.025, 0.975))
    return Interval(math.exp(float(logs.mean())), math.exp(float(low)), math.exp(float(high)), 0.95, BOOTSTRAP)


@functools.cache
def _resamples(count: int) -> np.ndarray:
    """Weights [resamples, repeats] of resampling `count` repeats."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count


def too_few(count: int) -> str:
    """Why so many repeats have no interval; "" if they have one."""
    if count >= FEWEST:
        return ""
    return f"{count} {'repeat' if count == 1 else 'repeats'}: an interval takes at least {FEWEST}"


def median_and_mad(values: np.ndarray) -> tuple[float, float]:
    """Median, and the median distance from it (not scaled to a standard deviation)."""
    median = float(np.median(values))
    return median, float(np.median(np.abs(values - median)))
