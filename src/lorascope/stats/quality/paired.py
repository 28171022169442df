"""Tests and effect sizes that are shown with the multi-bootstrap, each with the one question it answers.

McNemar and its odds ratio: this seed's two models, other examples. t interval, Hedges g and the permutation test: other
seeds, these very examples. Only the multi-bootstrap speaks about other seeds and other examples together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lorascope.stats.analysis import Interval, McNemar
from lorascope.stats.quality.multibootstrap import SeedDifferences, estimate_difference


def t_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval | None:
    """Student's t interval of the mean. values: [seeds]. None below two seeds, or where all seeds agree exactly."""
    from scipy import stats

    if len(values) < 2:
        return None
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    if sd == 0:
        return None
    reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach, confidence, "t over seeds")


def mcnemar(first: np.ndarray, second: np.ndarray, *, seed: str) -> McNemar:
    """The exact McNemar test (McNemar 1947; binomial on discordant pairs) of one seed.

    first, second: [examples] 0/1. The odds ratio b/c has the exact (Clopper-Pearson) interval of b / (b + c); None
    where b or c is 0, for it is then 0 or unbounded.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
    from statsmodels.stats.proportion import proportion_confint

    both = int(((first == 1) & (second == 1)).sum())
    b, c = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    neither = len(first) - both - b - c
    test: Any = exact_mcnemar([[both, b], [c, neither]], exact=True)
    p_value = float(test.pvalue) if b + c else 1.0
    odds = None
    if b and c:
        limits: Any = proportion_confint(b, b + c, alpha=0.05, method="beta")
        low, high = map(float, limits)
        odds = Interval(b / c, low / (1 - low), high / (1 - high), 0.95, "Clopper-Pearson")
    return McNemar(seed, b, c, p_value, odds)


def discordance_odds_ratio(method: np.ndarray, reference: np.ndarray) -> Interval | None:
    """Odds that a discordant example is the method's: mean b / mean c over seeds, for other seeds and examples.

    method, reference: 0/1 [seeds, examples]. The log ratio is linearised (delta method), b_ji / mean b - c_ji / mean c,
    and its variance taken as that of any mean over seeds and examples. None below two seeds or if no example favours
    one of the arms.
    """
    first, second = np.asarray(method, float), np.asarray(reference, float)
    only_method, only_reference = first * (1 - second), second * (1 - first)
    b, c = only_method.mean(), only_reference.mean()
    if len(first) < 2 or not b or not c:
        return None
    influence = only_method / b - only_reference / c
    num_examples = first.shape[1]
    values = influence.mean(1)
    deviations = (influence - values[:, None]) / math.sqrt(num_examples * (num_examples - 1))
    log_ratio = estimate_difference(SeedDifferences(values, deviations, num_examples)).interval(0.95)
    ratio = float(b / c)
    return Interval(
        ratio, ratio * math.exp(log_ratio.low), ratio * math.exp(log_ratio.high), 0.95, "multi-bootstrap, log scale"
    )


def hedges_g(differences: np.ndarray) -> Interval | None:
    """Hedges g of paired seed differences: their mean in units of their standard deviation (Hedges 1981).

    differences: [seeds]. The estimate carries the exact correction J(df) = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2));
    the interval inverts the noncentral t distribution (Cumming and Finch 2001). None below three seeds (J(1) = 0) and
    where all seeds differ alike.
    """
    n = len(differences)
    if n < 3 or np.std(differences, ddof=1) == 0:
        return None
    df = n - 1
    d = float(np.mean(differences) / np.std(differences, ddof=1))
    correction = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
    low, high = noncentrality_interval(d * math.sqrt(n), df)
    return Interval(d * correction, low / math.sqrt(n), high / math.sqrt(n), 0.95, "noncentral t")


def noncentrality_interval(t: float, df: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The noncentralities for which an observed t lies on the upper and lower tail's edge.

    P(T <= t) is the mean of Phi(t u - noncentrality) over u = sqrt(chi^2 / df), taken on 4000 equally likely u
    (error below 2e-4): library routines return NaN for the large t that three seeds often give.
    """
    from scipy import special
    from scipy.optimize import brentq

    probabilities = (np.arange(4000) + 0.5) / 4000
    scaled = t * np.sqrt(2 * special.gammaincinv(df / 2, probabilities) / df)
    bounds = (float(scaled.min()) - 10, float(scaled.max()) + 10)

    def edge(probability: float) -> float:
        root: Any = brentq(lambda nc: float(special.ndtr(scaled - nc).mean()) - probability, *bounds)
        return float(root)

    return edge((1 + confidence) / 2), edge((1 - confidence) / 2)


def permutation_floor(num_seeds: int) -> float:
    """The smallest two-sided p that sign flips of `num_seeds` paired differences can give: 2 / 2^n."""
    return 2.0 ** (1 - num_seeds)


def seeds_needed_to_permute(alpha: float) -> int:
    """The fewest paired seeds whose permutation floor is at most alpha (6 for 0.05)."""
    return math.ceil(1 - math.log2(alpha))


def sign_flip_p(differences: np.ndarray, *, alpha: float = 0.05) -> float | None:
    """Exact two-sided sign-flip (paired permutation) test of mean 0 (Fisher 1935). None where its floor exceeds alpha.

    differences: [seeds]. All 2^n flips up to 17 seeds, as many random ones beyond.
    """
    from scipy import stats

    if permutation_floor(len(differences)) > alpha:
        return None
    resamples = 2 ** min(len(differences), 17)  # at least 2^n is exact
    test = stats.permutation_test(
        (np.asarray(differences, float),),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        n_resamples=resamples,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
