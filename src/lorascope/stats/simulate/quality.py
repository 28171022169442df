"""Simulated type I error and coverage of every shipped test.

`python -m lorascope.stats.simulate --write docs/statistics.md` makes the table of that document.

Studies are drawn from a latent probit model: an example is answered rightly where

    arm + example + (arm x example) + (arm x seed) + (arm x seed x example) > 0,

all normal, so accuracies, and with them the true difference, are known in closed form. The functions under test are the
ones an analysis calls. Tests that hold the examples (or the seeds) fixed are judged on fixed ones. Three rows show the
common practice that is not shipped.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from lorascope.metrics.quality import quality
from lorascope.stats.analysis import Interval, Score
from lorascope.stats.quality.anova import method_by_task_anova
from lorascope.stats.quality.multibootstrap import (
    average_estimates,
    estimate_difference,
    mean_differences,
    metric_differences,
)
from lorascope.stats.quality.paired import discordance_odds_ratio, hedges_g, mcnemar, sign_flip_p, t_interval
from lorascope.stats.simulate.drift import SPREADS, drift_trial
from lorascope.stats.simulate.hard import hard_cells

NUM_SEEDS = (3, 5, 8)
NUM_EXAMPLES = (277, 408, 872)  # RTE, MRPC, SST-2
ACCURACY, MARGIN = 0.85, 0.03
TRUE_COST_RATIO, COST_SPREAD = 0.8, 0.03
BEGIN, END = "<!-- simulated: begin -->", "<!-- simulated: end -->"


@dataclass(frozen=True)
class Scenario:
    """Standard deviations of the latent terms, beside 1 for the example's difficulty."""

    arm_example: float
    arm_seed: float
    arm_seed_example: float


SCENARIOS = {
    "even": Scenario(0.3, 0.06, 0.4),
    "seeds dominate": Scenario(0.3, 0.25, 0.4),
    "examples dominate": Scenario(0.6, 0.03, 0.1),
    "noise dominates": Scenario(0.1, 0.02, 0.6),
}

Outcomes = dict[str, bool | None]
Trial = Callable[[np.random.Generator], Outcomes]
Results = dict[tuple[str, str, int], dict[str, list[bool | None]]]  # -> scenario -> outcome of each study


def draw_study(
    scenario: Scenario, *, num_seeds: int, num_examples: int, difference: float, generator: np.random.Generator
) -> np.ndarray:
    """0/1 [arms = 2, seeds, examples]: the second arm has accuracy ACCURACY, the first ACCURACY + difference."""
    latent, _ = _draw_latent(scenario, num_seeds, num_examples, difference, generator)
    return (latent > 0).astype(float)


def _draw_latent(
    scenario: Scenario, num_seeds: int, num_examples: int, difference: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(latent [2, seeds, examples], accuracy over seeds on these examples [2])."""
    parts = (scenario.arm_example, scenario.arm_seed, scenario.arm_seed_example)
    total = math.sqrt(1 + sum(part**2 for part in parts))
    arms = stats.norm.ppf(np.array([ACCURACY + difference, ACCURACY]))[:, None, None] * total
    fixed = arms + generator.standard_normal((1, 1, num_examples))
    fixed = fixed + scenario.arm_example * generator.standard_normal((2, 1, num_examples))
    latent = fixed + scenario.arm_seed * generator.standard_normal((2, num_seeds, 1))
    latent = latent + scenario.arm_seed_example * generator.standard_normal((2, num_seeds, num_examples))
    own = math.hypot(scenario.arm_seed, scenario.arm_seed_example)
    return latent, stats.norm.cdf(fixed / own).mean((1, 2))


def _covers(interval: Interval | None, truth: float) -> bool | None:
    return None if interval is None else interval.low <= truth <= interval.high


def accuracy_trial(scenario: Scenario, n: int, examples: int, generator: np.random.Generator) -> Outcomes:
    """One study at zero difference and one at the margin; every test of accuracy that generalises over both."""
    arms = draw_study(scenario, num_seeds=n, num_examples=examples, difference=0.0, generator=generator)
    null = estimate_difference(mean_differences(arms[0], arms[1]))
    lower = draw_study(scenario, num_seeds=n, num_examples=examples, difference=-MARGIN, generator=generator)
    margin = estimate_difference(mean_differences(lower[0], lower[1]))
    return {
        "superiority, accuracy (multi-bootstrap)|error": null.p_two_sided() <= 0.05,
        "95% interval, no difference (multi-bootstrap)|coverage": _covers(null.interval(0.95), 0.0),
        "95% interval, difference at the margin (multi-bootstrap)|coverage": _covers(margin.interval(0.95), -MARGIN),
        "non-inferiority at the margin|error": margin.p_above(-MARGIN) <= 0.05,
        "equivalence (TOST) at the margin|error": max(margin.p_above(-MARGIN), margin.p_below(MARGIN)) <= 0.05,
        "odds ratio over seeds and examples|coverage": _covers(discordance_odds_ratio(arms[0], arms[1]), 1.0),
    }


def percentile_trial(scenario: Scenario, n: int, examples: int, generator: np.random.Generator) -> Outcomes:
    """The plain multi-bootstrap with percentile limits, no difference."""
    arms = draw_study(scenario, num_seeds=n, num_examples=examples, difference=0.0, generator=generator)
    differences = arms[0] - arms[1]
    seeds = generator.multinomial(n, np.full(n, 1 / n), size=200) / n
    weights = generator.multinomial(examples, np.full(examples, 1 / examples), size=200) / examples
    low, high = np.quantile(((weights @ differences.T) * seeds).sum(1), (0.025, 0.975))
    return {"*not shipped:* percentile multi-bootstrap|coverage": bool(low <= 0.0 <= high)}


def confusion_trial(scenario: Scenario, n: int, examples: int, generator: np.random.Generator) -> Outcomes:
    """F1 and MCC of two arms that are equally good, two thirds of the examples of class 1 (MRPC)."""
    labels = (generator.random(examples) < 0.67).astype(int)
    right = draw_study(scenario, num_seeds=n, num_examples=examples, difference=0.0, generator=generator)
    predictions = np.where(right == 1, labels, 1 - labels).astype(int)
    results: dict[str, bool | None] = {}
    for metric in ("f1", "mcc"):
        arms = [{"label": np.broadcast_to(labels, arm.shape), "prediction": arm} for arm in predictions]
        estimator = quality(metric).estimator
        assert estimator is not None
        differences = metric_differences(
            estimator, arms[0], arms[1], num_classes=2, generator=generator, num_resamples=200
        )  # fmt: skip
        estimate = estimate_difference(differences)
        results[f"superiority, {metric} (multi-bootstrap)|error"] = estimate.p_two_sided() <= 0.05
        results[f"95% interval, {metric}, no difference (multi-bootstrap)|coverage"] = _covers(
            estimate.interval(0.95), 0
        )
    return results


def fixed_examples_trial(scenario: Scenario, n: int, examples: int, generator: np.random.Generator) -> Outcomes:
    """Tests over seeds on one test set: the truth is each arm's expectation over seeds on these examples."""
    latent, truth = _draw_latent(scenario, n, examples, 0.0, generator)
    scores = (latent > 0).mean(-1)
    differences = scores[0] - scores[1]
    permutation = sign_flip_p(differences - (truth[0] - truth[1]))
    resampled = differences[generator.integers(0, n, (500, n))].mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {
        "t interval of one arm's score over seeds|coverage": _covers(t_interval(scores[0]), truth[0]),
        "t interval of the difference over seeds|coverage": _covers(t_interval(differences), truth[0] - truth[1]),
        "sign-flip permutation over seeds|error": None if permutation is None else permutation <= 0.05,
        "*not shipped:* percentile bootstrap over seeds|coverage": bool(low <= truth[0] - truth[1] <= high),
    }


def fixed_seeds_trial(scenario: Scenario, n: int, examples: int, generator: np.random.Generator) -> Outcomes:
    """Tests over examples with the trained models held fixed: no seed effect, so that the models are equally good."""
    fixed = Scenario(scenario.arm_example, 0.0, scenario.arm_seed_example)
    arms = draw_study(fixed, num_seeds=n, num_examples=examples, difference=0.0, generator=generator)
    one = mcnemar(arms[0, 0], arms[1, 0], seed="0")
    pooled = mcnemar(arms[0].ravel(), arms[1].ravel(), seed="all")
    return {
        "McNemar, exact, one seed|error": one.p_value <= 0.05,
        "odds ratio of one seed (Clopper-Pearson)|coverage": _covers(one.odds_ratio, 1.0),
        "*not shipped:* McNemar pooled over seeds|error": pooled.p_value <= 0.05,
    }


def average_trial(scenario: Scenario, n: int, generator: np.random.Generator) -> Outcomes:
    """The average of three tasks, at the margin."""
    estimates = []
    for examples in NUM_EXAMPLES:
        arms = draw_study(scenario, num_seeds=n, num_examples=examples, difference=-MARGIN, generator=generator)
        estimates.append(estimate_difference(mean_differences(arms[0], arms[1])))
    average = average_estimates(estimates)
    return {
        "average over three tasks, non-inferiority at the margin|error": average.p_above(-MARGIN) <= 0.05,
        "average over three tasks, 95% interval|coverage": _covers(average.interval(0.95), -MARGIN),
    }


def normal_trial(n: int, generator: np.random.Generator) -> Outcomes:
    """Effect size and cost ratio, whose model is normal differences and log-normal costs."""
    differences = generator.normal(1.0, 1.0, n)
    logs = math.log(TRUE_COST_RATIO) + COST_SPREAD * math.sqrt(2) * generator.standard_normal(n)
    ratio = t_interval(logs)
    return {
        "Hedges g (noncentral t), true effect 1|coverage": _covers(hedges_g(differences), 1.0),
        "cost ratio (t, log scale)|coverage": _covers(ratio, math.log(TRUE_COST_RATIO)),
        "lower cost at the threshold, both sides|error": not _covers(ratio, math.log(TRUE_COST_RATIO)),
    }


def anova_trial(n: int, generator: np.random.Generator) -> Outcomes:
    """Two methods on three tasks, no effect of the method: its main effect, the interaction, and Tukey on one task."""
    scores = []
    for task, method in itertools.product(("a", "b", "c"), ("full", "lora")):
        values = generator.normal({"a": 0.7, "b": 0.85, "c": 0.9}[task], 0.01, n)
        seeds = {str(seed): float(value) for seed, value in enumerate(values)}
        scores.append(Score("m", task, method, "accuracy", float(values.mean()), None, None, seeds, 400))
    rows = method_by_task_anova(scores)
    assert rows is not None
    p = {row.get("term", row.get("task")): row["p_value"] for row in rows}
    return {
        "ANOVA, method|error": p["method"] <= 0.05,
        "ANOVA, method x task|error": p["method x task"] <= 0.05,
        "Tukey, within a task|error": p["a"] <= 0.05,
    }


def simulate(num_studies: int, *, seed: int) -> Results:
    """Outcomes (True: rejected, or covered; None: refused to print) of every test, by seeds and scenario.

    num_studies: studies drawn per cell (seeds x scenario x test-set size) for the cheap tests; costly ones take the
    share of it that `_cells` names. One process for each number of seeds, each with a generator of its own.
    """
    with ProcessPoolExecutor(len(NUM_SEEDS)) as pool:
        futures = [pool.submit(_simulate_one, n, num_studies, seed) for n in NUM_SEEDS]
        return {key: outcomes for future in futures for key, outcomes in future.result().items()}


def _simulate_one(n: int, num_studies: int, seed: int) -> Results:
    results: Results = {}
    generator = np.random.default_rng([seed, n])
    for scenario, trial, share in _cells(n):
        for _ in range(max(1, int(num_studies * share))):
            for name, outcome in trial(generator).items():
                test, quantity = name.split("|")
                results.setdefault((test, quantity, n), {}).setdefault(scenario, []).append(outcome)
    return results


def _cells(n: int) -> Iterator[tuple[str, Trial, float]]:
    """Every trial to repeat, with its scenario and the share of num_studies it is repeated for."""
    shares = {accuracy_trial: 1.0, fixed_examples_trial: 1.0, fixed_seeds_trial: 1.0}
    shares |= {confusion_trial: 0.25, percentile_trial: 0.25}
    for name, scenario in SCENARIOS.items():
        for trial, share in shares.items():
            for examples in NUM_EXAMPLES:
                yield name, lambda g, t=trial, s=scenario, e=examples: t(s, n, e, g), share
        yield name, lambda g, s=scenario: average_trial(s, n, g), 1.0
    yield "normal", lambda g: normal_trial(n, g), 6.0
    yield "normal", lambda g: anova_trial(n, g), 1.5
    for name, spread in SPREADS.items():
        for examples in NUM_EXAMPLES:
            yield name, lambda g, s=spread, e=examples: drift_trial(s, n, e, g), 1.0
    yield from hard_cells(n)


def rate(outcomes: dict[str, list[bool | None]]) -> tuple[float, float, float, int] | None:
    """(over all, lowest scenario, highest scenario, studies), or None if more than half refused to print."""
    printed = {name: [o for o in found if o is not None] for name, found in outcomes.items()}
    everything = [outcome for found in printed.values() for outcome in found]
    if 2 * len(everything) < sum(map(len, outcomes.values())):
        return None
    by_scenario = [float(np.mean(found)) for found in printed.values() if found]
    return float(np.mean(everything)), min(by_scenario), max(by_scenario), len(everything)


def render_table(results: Results) -> str:
    """Markdown: one row a test; each cell the rate over all studies, and that of the lowest and highest scenario."""
    lines = ["| test | | 3 seeds | 5 seeds | 8 seeds | studies a cell | +- |", "|---|---|---|---|---|---|---|"]
    names = {"error": "type I error", "coverage": "coverage"}
    for test, quantity in dict.fromkeys((test, quantity) for test, quantity, _ in results):
        rates = [rate(results[test, quantity, n]) for n in NUM_SEEDS]
        studies = max(found[3] for found in rates if found)
        margin = 1.96 * math.sqrt(0.05 * 0.95 / studies)
        lines.append(
            f"| {test} | {names[quantity]} | {' | '.join(map(_cell, rates))} | {studies} | {100 * margin:.1f} points |"
        )
    return "\n".join(lines)


def _cell(found: tuple[float, float, float, int] | None) -> str:
    if found is None:
        return "not printed"
    overall, low, high, _ = found
    return f"{overall:.1%}" + (f" ({low:.1%} to {high:.1%})" if low < high else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--write", type=Path, help="a document whose table between the markers is replaced")
    options = parser.parse_args()
    results = simulate(options.studies, seed=2022)
    table = render_table(results)
    print(table)
    if options.write:
        text = options.write.read_text()
        before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
        options.write.write_text(f"{text[:before]}\n{table}\n{text[after:]}")


if __name__ == "__main__":
    main()
