"""Simulated serving, for which a benchmark and the tests ask how often intervals over repeats hold the truth.

A repeat starts every arm once, in random order, in a fresh process. The log of a process's latency is the arm's own level,
the repeat's luck, a trend over the hours that the comparison takes, and the process's own luck; a process then answers
requests whose log latencies follow an AR(1), of which the 95th percentile is taken, as an engine's figures are. The
functions under test are the ones an analysis calls. One row shows what is printed but decides nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lorascope.stats.hypotheses import hypothesis_test
from lorascope.stats.serving.analysis import ServingCell
from lorascope.stats.serving.fit import fit_overheads
from lorascope.stats.serving.repeats import bootstrap_interval, estimate_of_logs, interval_of
from lorascope.study.hypothesis import Overhead

NUM_REPEATS = (3, 5, 8, 10)
TRUE_OVERHEAD = 0.30
PER_ADAPTER, PER_DOUBLING, INTERCEPT = 0.03, -0.02, math.log(1 + TRUE_OVERHEAD) - 4 * 0.03
ADAPTERS, BATCHES = (1, 2, 4), (1.0, 4.0, 16.0)
ARMS = ("base", "full", "merged", *(f"adapters-{count}" for count in ADAPTERS))
_REQUESTS, _REQUEST_SD = 200, 0.10


@dataclass(frozen=True)
class SimulatedMachine:
    """Standard deviations of logs: of a process (its tails: degrees of freedom of a t, inf: normal) and of a repeat.
    trend: growth of the log from the first process to the last. persistence: AR(1) of requests within a process. slow:
    share of processes that run a quarter slower."""

    process: float
    repeat: float
    tails: float = math.inf
    trend: float = 0.0
    persistence: float = 0.3
    slow: float = 0.0


MACHINES = {
    "quiet": SimulatedMachine(0.01, 0.01),
    "noisy": SimulatedMachine(0.05, 0.05),
    "warming up": SimulatedMachine(0.02, 0.02, trend=0.15),
    "heavy tails": SimulatedMachine(0.03, 0.03, tails=3.0),
    "persistent": SimulatedMachine(0.02, 0.02, persistence=0.95),
    "slow now and then": SimulatedMachine(0.02, 0.02, slow=0.05),
}


def draw_latencies(
    machine: SimulatedMachine, *, num_repeats: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Log p95 latencies [repeats, batches] of every arm; an arm's overhead over merged is the one of the constants."""
    count = len(ARMS)
    order = generator.permuted(np.tile(np.arange(count), (num_repeats, 1)), axis=1)
    place = (np.arange(num_repeats)[:, None] * count + order) / (num_repeats * count)
    logs = machine.repeat * generator.standard_normal((num_repeats, 1)) + machine.trend * place
    logs = logs + machine.process * _luck(machine, (num_repeats, count), generator)
    logs = logs + math.log(1.25) * (generator.random((num_repeats, count)) < machine.slow)
    shape = (num_repeats, count, len(BATCHES))
    logs = logs[:, :, None] + _request_quantiles(machine, shape, generator)
    return {arm: logs[:, i] + np.array([_level(arm, batch) for batch in BATCHES]) for i, arm in enumerate(ARMS)}


def _luck(machine: SimulatedMachine, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if math.isinf(machine.tails):
        return generator.standard_normal(shape)
    return generator.standard_t(machine.tails, shape) / math.sqrt(machine.tails / (machine.tails - 2))


def _request_quantiles(machine: SimulatedMachine, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """The 95th percentile of each load's log latencies."""
    from scipy.signal import lfilter

    innovations = generator.standard_normal((*shape, _REQUESTS)) * math.sqrt(1 - machine.persistence**2)
    innovations[..., 0] /= math.sqrt(1 - machine.persistence**2)
    requests = lfilter([1.0], [1.0, -machine.persistence], innovations, axis=-1)
    return _REQUEST_SD * np.quantile(requests, 0.95, axis=-1)


def _level(arm: str, batch: float) -> float:
    """The true log latency, beside what batch size does to all arms alike."""
    if not arm.startswith("adapters-"):
        return 0.0
    return true_log_overhead(int(arm.removeprefix("adapters-")), batch)


def true_log_overhead(num_adapters: int, batch: float) -> float:
    """TRUE_OVERHEAD for four adapters at batch 1, the first of BATCHES."""
    return INTERCEPT + PER_ADAPTER * num_adapters + PER_DOUBLING * math.log2(batch)


def serving_trial(machine: SimulatedMachine, num_repeats: int, generator: np.random.Generator) -> dict[str, bool]:
    """One comparison in which four adapters cost at batch 1 just what the hypothesis allows: both verdicts are errors."""
    drawn = draw_latencies(machine, num_repeats=num_repeats, generator=generator)
    logs, truth = drawn["adapters-4"][:, 0] - drawn["merged"][:, 0], math.log(1 + TRUE_OVERHEAD)
    test = hypothesis_test(Overhead(overhead="adapters-4", over="merged", at_most=TRUE_OVERHEAD))
    estimate = estimate_of_logs(logs)
    interval, bootstrap = interval_of(logs), bootstrap_interval(logs)
    average = estimate_of_logs((drawn["adapters-4"] - drawn["merged"]).mean(1))
    average_truth = float(np.mean([true_log_overhead(4, batch) for batch in BATCHES]))
    fit = fit_overheads(_cells(drawn))[0]
    assert interval and bootstrap and fit.intercept and fit.per_adapter and fit.per_doubling
    return {
        "overhead at most so much, at the threshold: supported|error": test.p_support(estimate) <= 0.05,
        "overhead at most so much, at the threshold: refuted|error": test.p_refute(estimate) <= 0.05,
        "overhead, 95% interval (t, log scale)|coverage": interval.low <= math.exp(truth) <= interval.high,
        "average overhead over batch sizes at the threshold: supported|error": average.p_below(average_truth) <= 0.05,
        "fit: per adapter|coverage": fit.per_adapter.low <= PER_ADAPTER <= fit.per_adapter.high,
        "fit: per doubling of the batch|coverage": fit.per_doubling.low <= PER_DOUBLING <= fit.per_doubling.high,
        "*decides nothing:* overhead, percentile bootstrap over repeats|coverage": bootstrap.low
        <= math.exp(truth)
        <= bootstrap.high,
    }


def latency_trial(machine: SimulatedMachine, num_repeats: int, generator: np.random.Generator) -> dict[str, bool]:
    """Whether an arm's own interval holds its geometric mean latency: the mean over processes, where there is no trend."""
    logs = draw_latencies(machine, num_repeats=num_repeats, generator=generator)["merged"][:, 0]
    interval = interval_of(logs)
    assert interval is not None
    truth = math.exp(true_mean(machine, num_repeats))
    return {"an arm's latency, 95% interval (t, log scale)|coverage": interval.low <= truth <= interval.high}


def true_mean(machine: SimulatedMachine, num_repeats: int) -> float:
    """Expectation of merged's log p95 latency, from many draws for its request quantile."""
    processes = num_repeats * len(ARMS)
    return _mean_quantile(machine) + machine.trend * (processes - 1) / (2 * processes) + machine.slow * math.log(1.25)


@functools.cache
def _mean_quantile(machine: SimulatedMachine) -> float:
    return float(_request_quantiles(machine, (20_000, 1, 1), np.random.default_rng(77)).mean())


def _cells(drawn: Mapping[str, np.ndarray]) -> list[ServingCell]:
    return [
        ServingCell(
            "m", arm, "generation", "batch", batch, "round-robin", "greedy", "default", "latency_ms_p95", "ms", 0.0, 0.0,
            None, {str(repeat): math.exp(log) for repeat, log in enumerate(logs[:, column])}, None,
        )
        for arm, logs in drawn.items()
        for column, batch in enumerate(BATCHES)
    ]  # fmt: skip
