"""Adapters side by side against merged models, from what was measured: throughput of a machine, memory, machines.

Every figure is computed within each repeat, by the formulas of `break_even`, and its interval is taken over them; every
answer that would need a figure nobody measured says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorascope.stats.serving.analysis import (
    Figure,
    OneMachine,
    ServingCell,
    TaskMemory,
    TasksBreakEven,
    TrafficBreakEven,
)
from lorascope.stats.serving.break_even import (
    Mix,
    interpolate_adapters,
    interpolate_throughput,
    shares_of,
    tasks_from_which_adapters_save_memory,
    traffic_break_even,
)
from lorascope.stats.serving.cells import num_adapters, pick, places, standard_cells
from lorascope.stats.serving.repeats import interval_of

MIXES: tuple[Mix, ...] = ("uniform", "zipf")
THROUGHPUT, CAPACITY = "tokens_per_second", "requests_per_second"


@dataclass(frozen=True)
class _Throughputs:
    """Of one repeat, or of medians over repeats. merged: by batch size; adapters: by their number and batch size."""

    merged: dict[float, float] = field(default_factory=dict)
    adapters: dict[int, dict[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, cells: Sequence[ServingCell], value: Callable[[ServingCell], float]) -> _Throughputs:
        found = cls()
        for cell in cells:
            count = num_adapters(cell.arm)
            if cell.arm == "merged":
                found.merged[cell.level or 0.0] = value(cell)
            elif count is not None:
                found.adapters.setdefault(count, {})[cell.level or 0.0] = value(cell)
        return found

    @property
    def counts(self) -> list[int]:
        """The numbers of tasks that can be compared: from 2 to the most adapters."""
        return list(range(2, max(self.adapters, default=1) + 1)) if self.merged else []

    @property
    def batches(self) -> list[float]:
        return sorted({level for by_batch in self.adapters.values() for level in by_batch})

    def together(self, tasks: int, batch: float) -> float | None:
        return interpolate_adapters(self.adapters, tasks, batch)

    def in_turns(self, tasks: int, batch: float) -> float | None:
        return interpolate_throughput(self.merged, batch / tasks)

    def gain(self, tasks: int, batch: float) -> float | None:
        together, in_turns = self.together(tasks, batch), self.in_turns(tasks, batch)
        return together / in_turns if together and in_turns else None

    def tasks_from(self, batch: float) -> int | None:
        """From so many tasks on adapters serve more, up to the most that can be compared; None if not even there."""
        compared = {tasks: gain for tasks in self.counts if (gain := self.gain(tasks, batch)) is not None}
        losing = [tasks for tasks, gain in compared.items() if gain <= 1]
        return next((tasks for tasks in compared if tasks > max(losing, default=0)), None)

    def capacities(self, num_adapters: int) -> tuple[float, float]:
        """(with so many adapters, merged): the best over the batch sizes."""
        return max(self.adapters[num_adapters].values()), max(self.merged.values())


@dataclass(frozen=True)
class _MeasuredLoads:
    """Throughputs of one place: of medians, and of each repeat that measured every arm and batch size."""

    medians: _Throughputs
    repeats: list[_Throughputs]

    @classmethod
    def of(cls, cells: Sequence[ServingCell]) -> _MeasuredLoads:
        known = [
            cell
            for cell in cells
            if cell.level is not None and cell.median > 0 and (cell.arm == "merged" or num_adapters(cell.arm))
        ]
        kept = [r for r in known[0].repeats if all(cell.repeats.get(r, 0.0) > 0 for cell in known)] if known else []
        return cls(
            _Throughputs.of(known, lambda cell: cell.median),
            [_Throughputs.of(known, lambda cell, r=r: cell.repeats[r]) for r in kept],
        )

    def figure(self, compute: Callable[[_Throughputs], float | None]) -> Figure:
        return _figure(compute(self.medians), [compute(repeat) for repeat in self.repeats])


def _figure(of_medians: float | None, values: Sequence[float | None]) -> Figure:
    """values: one a repeat, None where the figure does not exist."""
    found = [value for value in values if value is not None and 0 < value < math.inf]
    interval = interval_of(np.log(found)) if len(found) == len(values) and found else None
    value = interval.estimate if interval is not None else of_medians
    return Figure(value, interval, len(found), len(values))


def _known(figure: Figure) -> Figure | None:
    return None if figure.value is None else figure


def _whole(figure: Figure, of_medians: int | None) -> Figure:
    """A number of tasks stays what medians give: a mean over repeats would be no number of tasks."""
    return Figure(of_medians, figure.interval, figure.num_found, figure.num_repeats)


def machine_comparisons(cells: Sequence[ServingCell]) -> list[OneMachine]:
    """T tasks on one machine, for every T from 2 to the most adapters and every batch size measured."""
    return [
        _on_one_machine(place, tasks, batch, measured)
        for place, measured in _places(cells, THROUGHPUT)
        for tasks in measured.medians.counts
        for batch in measured.medians.batches
    ]


def _places(cells: Sequence[ServingCell], metric: str) -> list[tuple[tuple[str, str], _MeasuredLoads]]:
    standard = standard_cells(cells)
    return [(place, _MeasuredLoads.of(pick(standard, *place, metric=metric))) for place in places(standard)]


def _on_one_machine(place: tuple[str, str], tasks: int, batch: float, measured: _MeasuredLoads) -> OneMachine:
    together, in_turns, gain = (
        measured.figure(lambda found, of=of: of(found, tasks, batch))
        for of in (_Throughputs.together, _Throughputs.in_turns, _Throughputs.gain)
    )
    reason = ""
    if in_turns.value is None:
        reason = f"merged was not measured at batch {batch / tasks:g} or around it"
    elif together.value is None:
        reason = f"{tasks} adapters were not measured at batch {batch:g}, nor fewer and more of them"
    return OneMachine(*place, THROUGHPUT, tasks, batch, _known(together), _known(in_turns), _known(gain), reason)


def tasks_break_evens(cells: Sequence[ServingCell]) -> list[TasksBreakEven]:
    """From how many tasks on adapters serve more, at every batch size at which some numbers of tasks can be compared."""
    found = []
    for place, measured in _places(cells, THROUGHPUT):
        medians = measured.medians
        for batch in medians.batches:
            compared = [tasks for tasks in medians.counts if medians.gain(tasks, batch) is not None]
            if compared:
                figure = measured.figure(lambda repeat, batch=batch: repeat.tasks_from(batch))
                tasks = _whole(figure, medians.tasks_from(batch))
                found.append(TasksBreakEven(*place, batch, tasks, max(compared), min(compared)))
    return found


def task_memory(cells: Sequence[ServingCell]) -> list[TaskMemory]:
    """W and a of every (model, workload) that measured both; a is a slot's share of the arm with most adapters."""
    facts = [cell for cell in cells if cell.loop == "none" and cell.setting == "default"]
    found = []
    for model, workload in places(facts):
        weights = pick(facts, model, workload, metric="weights_bytes", arm="merged")
        slots = {
            count: cell
            for cell in pick(facts, model, workload, metric="adapter_bytes")
            if (count := num_adapters(cell.arm)) and cell.median > 0
        }
        if weights and weights[0].median > 0 and slots:
            whole, most = weights[0], max(slots)
            each = slots[most].median / most
            pairs = [(whole.repeats[r], own / most) for r, own in slots[most].repeats.items() if r in whole.repeats]
            fewest = tasks_from_which_adapters_save_memory(whole.median, each)
            over = _figure(fewest, [tasks_from_which_adapters_save_memory(*pair) for pair in pairs])
            found.append(TaskMemory(model, workload, whole.median, each, _whole(over, fewest)))
    return found


def traffic_comparisons(cells: Sequence[ServingCell]) -> list[TrafficBreakEven]:
    """Machines needed, for every number of adapters measured above 1; capacity is the best of the batch sizes."""
    found = []
    for (model, workload), measured in _places(cells, CAPACITY):
        for tasks in sorted(measured.medians.adapters) if measured.medians.merged else ():
            for mix in MIXES if tasks > 1 else ():
                found.append(_traffic((model, workload), tasks, mix, measured))
    return found


def _traffic(place: tuple[str, str], tasks: int, mix: Mix, measured: _MeasuredLoads) -> TrafficBreakEven:
    shares = shares_of(tasks, mix)
    of_medians, *of_repeats = (
        (*found.capacities(tasks), *traffic_break_even(*found.capacities(tasks), shares=shares))
        for found in (measured.medians, *measured.repeats)
    )
    adapters, merged, first, last = (
        _figure(median, values)
        for median, *values in zip(of_medians[:4], *(repeat[:4] for repeat in of_repeats), strict=True)
    )
    assert adapters.value is not None and merged.value is not None
    return TrafficBreakEven(*place, tasks, mix, adapters.value, merged.value, first, last, of_medians[4])


def bytes_of_tasks(memory: TaskMemory, num_tasks: int) -> tuple[float, float]:
    """(with adapters, merged): W + T a and T W."""
    return memory.weights_bytes + num_tasks * memory.adapter_bytes, num_tasks * memory.weights_bytes
