"""Power: what a design can see before it is run, and what would settle a question after.

One idea: the variance of a difference is (seed + interaction) / seeds + shared, the last two shrinking with the number
of examples. More seeds help only against the first part; more examples never help against seed variance.
"""

from __future__ import annotations

import math
from typing import Any

from lorascope.stats.quality.multibootstrap import BootstrapEstimate

POWER = 0.8
_MAX_SEEDS = 100
_MAX_EXAMPLES = 1_000_000


def detectable_difference(
    num_seeds: int,
    num_examples: int,
    *,
    seed_sd: float = 0.01,
    discordant_fraction: float = 0.10,
    shared_fraction: float = 0.5,
    alpha: float = 0.05,
    power: float = POWER,
) -> float:
    """The smallest true difference in accuracy that a two-sided test at `alpha` finds with probability `power`.

    seed_sd: standard deviation between seeds of the true difference. discordant_fraction: share of examples on which
    the arms differ in being right. shared_fraction: share of that disagreement that recurs in every seed. The defaults
    are a planning guess (one point between seeds, one example in ten discordant); once a study has run, its own
    variances replace them (`detectable_after`). One seed: examples only, nothing about other seeds.
    """
    if num_seeds < 1 or num_examples < 2:
        raise ValueError(f"power needs a seed and two examples; found {num_seeds} and {num_examples}")
    per_example = discordant_fraction / num_examples
    if num_seeds == 1:
        return _detectable(math.sqrt(per_example), num_examples - 1, alpha, power)
    shared, own = per_example * shared_fraction, per_example * (1 - shared_fraction)
    seed_part = (seed_sd**2 + own) / num_seeds
    return _detectable(math.sqrt(seed_part + shared), _df(seed_part, shared, num_seeds, num_examples), alpha, power)


def detectable_after(estimate: BootstrapEstimate, *, alpha: float = 0.05, power: float = POWER) -> float:
    """What this estimate's own variance could have seen (it does not depend on the difference found)."""
    return _detectable(estimate.standard_error, estimate.df, alpha, power)


def _df(seed_part: float, shared: float, num_seeds: int, num_examples: int) -> float:
    return (seed_part + shared) ** 2 / (seed_part**2 / (num_seeds - 1) + shared**2 / (num_examples - 1))


def _detectable(standard_error: float, df: float, alpha: float, power: float) -> float:
    """Standard errors times the noncentrality at which P(T > t critical) = power."""
    from scipy import special, stats
    from scipy.optimize import brentq

    critical = float(stats.t.ppf(1 - alpha / 2, df))
    high = critical + 10.0
    while special.nctdtr(df, high, critical) > 1 - power:
        high *= 2
    root: Any = brentq(lambda nc: special.nctdtr(df, nc, critical) - (1 - power), 0.0, high)
    return standard_error * float(root)


def what_would_decide(estimate: BootstrapEstimate, *, distance: float, tail: float, kind: str = "test examples") -> str:
    """Plain words: how many seeds, or how many examples, would give 80% power if the estimate were the truth.

    distance: from the estimate to what it is compared with. tail: the one-sided level of the deciding test. kind: what
    the examples are called ("probe examples").
    """
    seeds = _seeds_for(estimate, distance, tail)
    examples = _examples_for(estimate, distance, tail)
    assumption = " (80% power, if the estimate is the truth)"
    now = f"now {_seeds(estimate.num_seeds)} and {estimate.num_examples} {kind}"
    if seeds and examples:
        return f"about {_seeds(seeds)} or about {examples} {kind}{assumption}; {now}"
    if seeds:
        return f"about {_seeds(seeds)}{assumption}; more examples cannot help: variance between seeds dominates; {now}"
    if examples:
        return f"about {examples} {kind}{assumption}; more seeds cannot help: there are too few {kind}; {now}"
    return (
        "no reachable number of seeds or of examples alone: the estimate lies too close to the threshold; "
        f"more of both, or a threshold that asks less; {now}"
    )


def what_would_decide_by_repeats(estimate: BootstrapEstimate, *, distance: float, tail: float) -> str:
    """The same where repeats are all that varies."""
    repeats = _seeds_for(estimate, distance, tail) if estimate.variance else None
    now = f"now {estimate.num_seeds} repeats"
    if repeats:
        return f"about {repeats} repeats (80% power, if the estimate is the truth); {now}"
    return f"no reachable number of repeats: the estimate lies too close to the threshold; {now}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _reaches(seed_part: float, shared: float, *, seeds: int, examples: int, distance: float, tail: float) -> bool:
    from scipy import stats

    df = _df(seed_part, shared, seeds, examples)
    reach = float(stats.t.ppf(1 - tail, df) + stats.t.ppf(POWER, df))
    return reach * math.sqrt(seed_part + shared) <= distance


def _seeds_for(estimate: BootstrapEstimate, distance: float, tail: float) -> int | None:
    own = estimate.seed_variance + estimate.interaction_variance
    if distance <= 0:
        return None
    for seeds in range(estimate.num_seeds + 1, _MAX_SEEDS + 1):
        if _reaches(own / seeds, estimate.shared_variance, seeds=seeds, examples=estimate.num_examples,
                    distance=distance, tail=tail):  # fmt: skip
            return seeds
    return None


def _examples_for(estimate: BootstrapEstimate, distance: float, tail: float) -> int | None:
    n, examples = estimate.num_seeds, estimate.num_examples
    if distance <= 0 or n < 2:
        return None
    while examples <= _MAX_EXAMPLES:
        examples = math.ceil(examples * 1.1)
        shrink = estimate.num_examples / examples
        seed_part = (estimate.seed_variance + estimate.interaction_variance * shrink) / n
        if _reaches(seed_part, estimate.shared_variance * shrink, seeds=n, examples=examples,
                    distance=distance, tail=tail):  # fmt: skip
            return _round_up(examples)
    return None


def _round_up(count: int) -> int:
    """Two significant digits: the variances behind it are not known better."""
    step = 10 ** max(len(str(count)) - 2, 0)
    return math.ceil(count / step) * step
