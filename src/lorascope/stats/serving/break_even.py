"""When merging pays: throughput, memory and machines of T tasks, served by one engine with T adapters or by T merged ones.

Pure arithmetic on measured figures. Three questions:

One machine, throughput: C_a(T, B), the engine with T adapters at batch B, against C_m(B / T): T merged engines that take
turns on the machine, each a T-th of the time and with a T-th of the requests at once. One machine, memory: W + T a against
T W. Several machines under total traffic L with shares p of the tasks: ceil(L / C_a) against the sum of ceil(L p / C_m),
for a machine that holds one merged model cannot answer for another.

Throughput between two measured points is interpolated on log scales; outside them there is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Mix = Literal["uniform", "zipf"]
_MOST_STEPS = 2_000_000


def interpolate_throughput(measured: Mapping[float, float], at: float) -> float | None:
    """Throughput at `at`, linear in its logs between measured points; None outside them.

    measured: batch size -> throughput, both above 0.
    """
    levels = sorted(measured)
    if not levels or not levels[0] <= at <= levels[-1]:
        return None
    logs = np.interp(math.log(at), np.log(levels), np.log([measured[level] for level in levels]))
    return float(math.exp(logs))


def interpolate_adapters(
    measured: Mapping[int, Mapping[float, float]], num_adapters: int, batch: float
) -> float | None:
    """Throughput of so many adapters at a batch size: log throughput is linear in the number of adapters between arms
    that measured the batch size (or sizes around it); None outside them."""
    found = {n: value for n, by_batch in measured.items() if (value := interpolate_throughput(by_batch, batch))}
    numbers = sorted(found)
    if not numbers or not numbers[0] <= num_adapters <= numbers[-1]:
        return None
    return float(math.exp(np.interp(num_adapters, numbers, np.log([found[n] for n in numbers]))))


def tasks_from_which_adapters_save_memory(weights: float, adapter: float) -> int | None:
    """The fewest T of at least 2 for which W + T a < T W; None if an adapter is as large as the model."""
    if adapter >= weights:
        return None
    return max(2, math.floor(weights / (weights - adapter)) + 1)


def shares_of(num_tasks: int, mix: Mix) -> list[float]:
    """Traffic of each task as a share of all: equal, or Zipf's 1 / rank."""
    weights = [1.0 if mix == "uniform" else 1.0 / rank for rank in range(1, num_tasks + 1)]
    return [weight / sum(weights) for weight in weights]


def machines_with_adapters(traffic: float, capacity: float) -> int:
    """ceil(L / C_a). traffic, capacity: requests/s; every machine has all adapters."""
    return _ceil(traffic / capacity)


def machines_merged(traffic: float, capacity: float, *, shares: Sequence[float]) -> int:
    """The sum over tasks of ceil(L p / C_m): every machine has one task's model."""
    return sum(_ceil(traffic * share / capacity) for share in shares)


def traffic_break_even(
    adapters: float, merged: float, *, shares: Sequence[float]
) -> tuple[float | None, float | None, str]:
    """(first, last, reason). first: above this traffic merging needs fewer machines for the first time. last: beyond it,
    merging never needs more. adapters, merged: requests/s of a machine.

    Both counts are steps that rise just above a multiple of a capacity, so it is enough to look at those. Since
    sum ceil(L p / C_m) < L / C_m + T and ceil(L / C_a) >= L / C_a, no adapters win beyond T / (1/C_a - 1/C_m).
    Where adapters are as fast as merging, merging never needs fewer machines: (None, None, "").
    """
    if adapters >= merged:
        return None, None, ""
    end = len(shares) / (1 / adapters - 1 / merged)
    if end / adapters + end / merged > _MOST_STEPS:
        return None, None, "the two throughputs are too close to tell"
    rises = [adapters * np.arange(1, _ceil(end / adapters) + 1)]
    rises += [merged / share * np.arange(1, _ceil(end * share / merged) + 1) for share in shares]
    steps = np.unique(np.concatenate(rises))  # counts are constant on (steps[i - 1], steps[i]]
    more = _ceils(steps[:, None] * np.array(shares) / merged).sum(1) - _ceils(steps / adapters)
    ahead = np.flatnonzero(more > 0)
    last = float(steps[ahead[-1]]) if len(ahead) else 0.0
    fewer = int(np.flatnonzero(more < 0)[0])  # there is one: beyond `end` merging needs fewer
    return float(steps[fewer - 1]) if fewer else 0.0, last, ""


def _ceil(value: float) -> int:
    """Rounded up; a millionth of a millionth above a whole number is rounding, not another machine."""
    return math.ceil(value - 1e-9 * max(1.0, abs(value)))


def _ceils(values: np.ndarray) -> np.ndarray:
    return np.ceil(values - 1e-9 * np.maximum(1.0, np.abs(values)))
