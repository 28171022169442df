"""What a study says about serving, as data: what each arm does, what it costs over another, and when merging pays.

The unit of replication is the repeat (a fresh engine process an arm), never the request: requests of one process share
its luck. Every cell keeps its repeats, so that any two arms can be paired and any number recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lorascope.stats.interval import Interval, rebuild


@dataclass(frozen=True)
class ServingCell:
    """One metric of one arm under one load. interval: of the geometric mean over repeats (t on logs; None where fewer
    than 3 repeats or a value without a log). level: batch size or requests/s (None: no load). repeats: number -> value.
    """

    model: str
    arm: str
    workload: str
    loop: str
    level: float | None
    choice: str
    sampling: str
    setting: str
    metric: str
    unit: str
    median: float
    mad: float
    interval: Interval | None
    repeats: dict[str, float]
    num_requests: int | None

    @property
    def num_repeats(self) -> int:
        return len(self.repeats)


@dataclass(frozen=True)
class ServingOverhead:
    """What `arm` costs over `reference` under one load, as a ratio: above 1 is dearer, for latency and throughput alike.

    estimate: geometric mean of the repeats' ratios. interval: t over repeats on logs; it decides. bootstrap: percentiles
    over resampled repeats; shown, decides nothing. median, mad: of the repeats' ratios. num_dropped: repeats that only
    one of the arms has. reason: why there is no interval. reference_setting: of the reference, where it has only that.
    """

    model: str
    arm: str
    reference: str
    workload: str
    loop: str
    level: float | None
    choice: str
    sampling: str
    setting: str
    reference_setting: str
    metric: str
    estimate: float
    interval: Interval | None
    bootstrap: Interval | None
    median: float
    mad: float
    num_repeats: int
    num_dropped: int
    reason: str = ""


@dataclass(frozen=True)
class FitPoint:
    """The fitted overhead (a ratio) of so many adapters at a batch size."""

    num_adapters: float
    level: float
    ratio: Interval


@dataclass(frozen=True)
class ServingRegression:
    """log overhead over merged = intercept + per_adapter N + per_doubling log2(batch), fitted in every repeat.

    Intervals of the coefficients are t over repeats; as factors they are exp() of them. r_squared: of the pooled fit.
    Coefficients are None where `reason` says why there is no fit.
    """

    model: str
    workload: str
    metric: str
    intercept: Interval | None
    per_adapter: Interval | None
    per_doubling: Interval | None
    r_squared: float | None
    num_cells: int
    num_repeats: int
    points: list[FitPoint]
    reason: str = ""


@dataclass(frozen=True)
class Figure:
    """A number that is computed from several cells: within every repeat that has all of them.

    value: the geometric mean over repeats where there is an interval (t over repeats on logs), else what medians over
    repeats give; None if nothing does. interval: None where fewer than 3 repeats have the cells, or where in some of them
    the number does not exist (merging never pays) or is 0. num_found: in how many of the `num_repeats` it does.
    """

    value: float | None
    interval: Interval | None
    num_found: int
    num_repeats: int

    @property
    def is_at_every_repeat(self) -> bool:
        return self.num_found == self.num_repeats


@dataclass(frozen=True)
class OneMachine:
    """`num_tasks` tasks on one machine: one engine with that many adapters at `batch`, or as many merged engines that
    share the machine, each at batch / tasks. gain: adapters over merged (above 1: adapters serve more); None: `reason`."""

    model: str
    workload: str
    metric: str
    num_tasks: int
    batch: float
    adapters: Figure | None
    merged: Figure | None
    gain: Figure | None
    reason: str = ""


@dataclass(frozen=True)
class TasksBreakEven:
    """tasks: from how many on, of those compared on one machine at `batch`, one engine with adapters serves more than merged
    ones in turns. fewest_tasks, most_tasks: of those compared. A break-even at the fewest is "at most" so many, as fewer were
    not looked at; one that is absent is "more than" the most."""

    model: str
    workload: str
    batch: float
    tasks: Figure
    most_tasks: int
    fewest_tasks: int = 2

    @property
    def at_edge(self) -> str:
        """ "at most" or "more than", where the break-even lies at the edge of what was compared; "" where it lies within."""
        if self.tasks.value is None:
            return "more than"
        return "at most" if self.tasks.value <= self.fewest_tasks else ""


@dataclass(frozen=True)
class TaskMemory:
    """weights_bytes: of one merged model (W). adapter_bytes: of one adapter (a). break_even_tasks: the fewest tasks for
    which W + T a is less than T W."""

    model: str
    workload: str
    weights_bytes: float
    adapter_bytes: float
    break_even_tasks: Figure


@dataclass(frozen=True)
class TrafficBreakEven:
    """Machines for total traffic: ceil(traffic / C_a) with adapters, sum over tasks of ceil(traffic p / C_m) merged.

    adapter_capacity, merged_capacity: requests/s of one machine. first: the lowest traffic at which merging needs fewer
    machines; last: beyond it merging never needs more. mix: "uniform" or "zipf".
    """

    model: str
    workload: str
    num_tasks: int
    mix: str
    adapter_capacity: float
    merged_capacity: float
    first: Figure
    last: Figure
    reason: str = ""


@dataclass(frozen=True)
class Switching:
    """Latency of a request by where its adapter is. ratio: to the resident adapter, paired by repeat."""

    model: str
    arm: str
    workload: str
    state: str
    setting: str
    median_ms: float
    latency_ms: Interval | None
    ratio: Interval | None
    num_repeats: int
    reason: str = ""


@dataclass(frozen=True)
class Tuning:
    """What the tuned setting gains over the default one: a ratio of costs, default / tuned (above 1: a gain)."""

    model: str
    arm: str
    workload: str
    loop: str
    level: float | None
    choice: str
    sampling: str
    metric: str
    estimate: float
    interval: Interval | None
    num_repeats: int
    reason: str = ""


@dataclass(frozen=True)
class LeftOut:
    """An arm that is in no figure of a setting, and why: it failed a gate, or its engine failed."""

    model: str
    arm: str
    workload: str
    setting: str
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """A sentence made from the numbers. rests_on: which of them."""

    text: str
    rests_on: str


@dataclass(frozen=True)
class ServingAnalysis:
    """Everything a report states about serving. engines: what served, with versions and device, in words."""

    alpha: float
    num_repeats: int
    engines: list[str]
    cells: list[ServingCell]
    overheads: list[ServingOverhead]
    regressions: list[ServingRegression]
    one_machine: list[OneMachine]
    tasks: list[TasksBreakEven]
    memory: list[TaskMemory]
    traffic: list[TrafficBreakEven]
    switching: list[Switching]
    tuning: list[Tuning]
    recommendations: list[Recommendation]
    left_out: list[LeftOut] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON literals; `from_json` gives an equal object back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ServingAnalysis:
        """The analysis that `to_json` wrote. Raises TypeError for a record of another shape."""
        return rebuild(cls, data)
