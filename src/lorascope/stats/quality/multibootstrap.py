"""The difference between two arms when both seeds and test examples are a sample: the corrected multi-bootstrap.

One idea: what a seed scores varies because of the seed and because of the examples it is scored on. The variance of the
mean difference over n seeds is therefore

    Var = s^2 / n + c

with s^2 the sample variance of the seeds' differences and c the covariance that the shared examples put between any two
seeds. The multi-bootstrap of Sellam et al. (2022, section 3) resamples seeds and examples together; resampling examples
with the same weights in every seed and arm is where c comes from. Its seed part, and percentile limits, are too narrow
for a handful of seeds, so seeds enter through s^2 / n (divisor n - 1) and limits are Student's t with the degrees of
freedom of Hillis (2007, eq. 9), who solved the same two-way design (readers x cases) for few readers:

    df = (s^2 / n + c)^2 / ((s^2 / n)^2 / (n - 1))

s^2 cannot truly be below the interaction, which is what the finite test set adds to each seed on its own and which the
examples tell. Where few seeds agree by chance and s^2 is smaller, the interaction takes its place: the interval over seeds
and examples is then never narrower than the one over examples with the trained models fixed, whose variance is
interaction / n + c. What is added is known from the examples, so it brings their degrees of freedom.
docs/statistics.md has the simulated coverage of this and of the plain percentile interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.metrics.metric import Estimator, Mean
from lorascope.stats.analysis import Interval
from lorascope.stats.quality.scores import Rows, scorer

NUM_RESAMPLES = 2000
_CELLS_AT_ONCE = 20_000_000  # float64 weights held at a time: 160 MB


@dataclass(frozen=True)
class SeedDifferences:
    """values: [seeds], method - reference of each seed on the whole test set.

    deviations: [seeds, draws], scaled so that deviations @ deviations.T is the covariance [seeds, seeds] that sampling
    the examples gives to `values`. Being linear, both can be averaged over models that share examples, and over tasks.
    one_example: the variance of `values` where one example changes sides; of a mean over tasks it is not the default.
    """

    values: np.ndarray
    deviations: np.ndarray
    num_examples: int
    one_example: float | None = None

    @property
    def num_seeds(self) -> int:
        return len(self.values)

    @property
    def least_variance(self) -> float:
        """What a score that counts examples cannot be below."""
        return 1 / self.num_examples**2 if self.one_example is None else self.one_example


@dataclass(frozen=True)
class BootstrapEstimate:
    """A mean over seeds and examples with its uncertainty taken apart.

    variance: of `mean`. df: of Student's t. seed_variance: true variance between seeds (0 if none is visible).
    interaction_variance: what the finite test set adds to each seed on its own. shared_variance: what it adds to all
    seeds alike; more seeds do not reduce it. All at the present number of examples.
    """

    mean: float
    variance: float
    df: float
    seed_variance: float
    interaction_variance: float
    shared_variance: float
    num_seeds: int
    num_examples: int

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.variance)

    def interval(self, confidence: float, *, method: str = "multi-bootstrap") -> Interval:
        """mean -+ t x standard error."""
        from scipy import special  # its functions are those of scipy.stats without the checks, and 50 times as fast

        reach = float(special.stdtrit(self.df, (1 + confidence) / 2)) * self.standard_error if self.variance else 0.0
        return Interval(self.mean, self.mean - reach, self.mean + reach, confidence, method)

    def p_above(self, threshold: float) -> float:
        """One-sided p of "the true mean is above threshold" (small: it is)."""
        from scipy import special

        if self.variance == 0:
            return 0.0 if self.mean > threshold else 1.0
        return float(special.stdtr(self.df, (threshold - self.mean) / self.standard_error))

    def p_below(self, threshold: float) -> float:
        """One-sided p of "the true mean is below threshold" (small: it is)."""
        from scipy import special

        if self.variance == 0:
            return 0.0 if self.mean < threshold else 1.0
        return float(special.stdtr(self.df, (self.mean - threshold) / self.standard_error))

    def p_two_sided(self, threshold: float = 0.0) -> float:
        return min(1.0, 2 * min(self.p_above(threshold), self.p_below(threshold)))


def mean_differences(method: np.ndarray, reference: np.ndarray) -> SeedDifferences:
    """Seed differences of a score that is a mean over examples (accuracy, loss).

    method, reference: [seeds, examples], same seeds and examples in the same order. The covariance is the exact limit
    of bootstrapping the examples with ever more resamples, so nothing is drawn.
    """
    differences = np.asarray(method, float) - np.asarray(reference, float)
    num_examples = differences.shape[1]
    values = differences.mean(1)
    deviations = (differences - values[:, None]) / math.sqrt(num_examples * (num_examples - 1))
    return SeedDifferences(values, deviations, num_examples)


def metric_differences(
    estimator: Estimator,
    method: Rows,
    reference: Rows,
    *,
    num_classes: int,
    generator: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> SeedDifferences:
    """Seed differences of a metric. method, reference: the estimator's columns, same seeds and examples in the same order.

    A mean needs no draws (`mean_differences`). Anything else takes its example covariance from `num_resamples` bootstrap
    resamples. Every seed and both arms are scored under the same weights, which is what makes the comparison paired.
    """
    if isinstance(estimator, Mean):
        return mean_differences(method[estimator.column], reference[estimator.column])
    num_examples = method[estimator.columns[0]].shape[1]
    first, second = (scorer(estimator, rows, num_classes=num_classes) for rows in (method, reference))

    def difference(weights: np.ndarray) -> np.ndarray:
        return first(weights) - second(weights)

    values = difference(np.ones((1, num_examples)))[0]
    resampled = np.concatenate([difference(w) for w in _weights(num_examples, num_resamples, generator)])
    deviations = (resampled - resampled.mean(0)).T / math.sqrt(num_resamples - 1)
    return SeedDifferences(values, deviations, num_examples)


def metric_scores(
    estimator: Estimator,
    rows: Rows,
    *,
    num_classes: int,
    generator: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> SeedDifferences:
    """Seed scores of one arm, in place of differences. Two arms scored by generators of one state share their resamples, so
    their scores may be subtracted or divided."""
    if isinstance(estimator, Mean):
        values = rows[estimator.column]
        return mean_differences(values, np.zeros_like(values))
    num_examples = rows[estimator.columns[0]].shape[1]
    score = scorer(estimator, rows, num_classes=num_classes)
    values = score(np.ones((1, num_examples)))[0]
    resampled = np.concatenate([score(w) for w in _weights(num_examples, num_resamples, generator)])
    deviations = (resampled - resampled.mean(0)).T / math.sqrt(num_resamples - 1)
    return SeedDifferences(values, deviations, num_examples)


def _weights(num_examples: int, num_resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Bootstrap weights [some resamples, examples] in blocks that fit memory."""
    block = max(1, _CELLS_AT_ONCE // num_examples)
    probabilities = np.full(num_examples, 1 / num_examples)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        yield generator.multinomial(num_examples, probabilities, size=size).astype(float)


def average_differences(parts: Sequence[SeedDifferences]) -> SeedDifferences:
    """The mean over models scored on the same examples by the same seeds, in the same order."""
    return SeedDifferences(
        np.mean([part.values for part in parts], axis=0),
        np.mean([part.deviations for part in parts], axis=0),
        parts[0].num_examples,
    )


def average_over_tasks(parts: Sequence[SeedDifferences]) -> SeedDifferences:
    """The mean over tasks, which have examples of their own but the same seeds in the same order. A seed that starts every
    task from the same numbers moves all tasks together, so they are averaged within each seed before seeds are compared."""
    k = len(parts)
    return SeedDifferences(
        np.mean([part.values for part in parts], axis=0),
        np.concatenate([part.deviations / k for part in parts], axis=1),
        sum(part.num_examples for part in parts),
        sum(part.least_variance for part in parts) / k**2,
    )


def ratio_of_means(
    method: Sequence[SeedDifferences], reference: Sequence[SeedDifferences]
) -> tuple[float, list[SeedDifferences]]:
    """(mean of `method` / mean of `reference` over tasks, how each task's seeds lie around this ratio).

    The latter is linear in both arms (the delta method): its mean over tasks is 0 and has the variance of the ratio.
    method, reference: one a task, made by `metric_scores`.
    """
    centre = float(np.mean([part.values.mean() for part in reference]))
    ratio = float(np.mean([part.values.mean() for part in method])) / centre
    around = [
        SeedDifferences(
            (first.values - ratio * second.values) / centre,
            (first.deviations - ratio * second.deviations) / centre,
            first.num_examples,
            first.least_variance / centre**2,
        )
        for first, second in zip(method, reference, strict=True)
    ]
    return ratio, around


def estimate_difference(differences: SeedDifferences, *, continuous: bool = False) -> BootstrapEstimate:
    """The mean difference with its variance components. With one seed, only examples are sampled (df = examples - 1).

    The shared variance is at least that of one example changing sides, 1 / examples^2: a test set cannot show a smaller
    difference, even where both arms predict alike. continuous: of a number that does not count examples (drift, a loss),
    whose variance has no such floor.
    """
    n, num_examples = differences.num_seeds, differences.num_examples
    covariance = differences.deviations @ differences.deviations.T
    own = float(np.trace(covariance)) / n
    floor = 0.0 if continuous else differences.least_variance
    if n == 1:
        variance = max(own, floor)
        return BootstrapEstimate(
            float(differences.values[0]), variance, num_examples - 1, 0.0, 0.0, variance, 1, num_examples
        )
    shared = max((float(covariance.sum()) - own * n) / (n * (n - 1)), floor)
    between = float(differences.values.var(ddof=1))
    interaction = max(own - shared, 0.0)
    added = max(interaction - between, 0.0)  # few seeds can agree by chance
    variance = (between + added) / n + shared
    spread = (between / n) ** 2 / (n - 1) + ((added / n) ** 2 + shared**2) / (num_examples - 1)
    df = variance**2 / spread if spread else n - 1
    return BootstrapEstimate(
        float(differences.values.mean()),
        variance,
        df,
        max(between - interaction, 0.0),
        interaction,
        shared,
        n,
        num_examples,
    )


def average_estimates(parts: Sequence[BootstrapEstimate]) -> BootstrapEstimate:
    """The equally weighted mean of independent estimates (tasks), with Satterthwaite's degrees of freedom."""
    k = len(parts)
    variance = sum(part.variance for part in parts) / k**2
    spread = sum((part.variance / k**2) ** 2 / part.df for part in parts)
    df = variance**2 / spread if spread else math.inf

    def mean(name: str) -> float:
        return float(sum(getattr(part, name) for part in parts)) / k**2

    return BootstrapEstimate(
        sum(part.mean for part in parts) / k,
        variance,
        df,
        mean("seed_variance"),
        mean("interaction_variance"),
        mean("shared_variance"),
        min(part.num_seeds for part in parts),
        sum(part.num_examples for part in parts),
    )
