"""Adapters side by side against merged models, from what was measured: throughput of a machine, memory, machines.

Medians over repeats go into the formulas of `break_even`; every answer that would need a figure nobody measured says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorascope.stats.break_even import (
    Mix,
    interpolate_adapters,
    interpolate_throughput,
    shares_of,
    tasks_from_which_adapters_save_memory,
    traffic_break_even,
)
from lorascope.stats.serving_analysis import OneMachine, ServingCell, TaskMemory, TrafficBreakEven
from lorascope.stats.serving_cells import num_adapters, pick, places, standard_cells

MIXES: tuple[Mix, ...] = ("uniform", "zipf")
THROUGHPUT, CAPACITY = "tokens_per_second", "requests_per_second"


def machine_comparisons(cells: Sequence[ServingCell]) -> list[OneMachine]:
    """T tasks on one machine, for every T from 2 to the most adapters and every batch size measured."""
    standard, found = standard_cells(cells), []
    for model, workload in places(standard):
        merged, adapters = _throughputs(pick(standard, model, workload, metric=THROUGHPUT))
        counts = [count for count in adapters if count > 1]
        batches = sorted({level for by_batch in adapters.values() for level in by_batch})
        for tasks in range(2, max(counts, default=1) + 1) if merged else ():
            found += [_on_one_machine((model, workload), tasks, batch, merged, adapters) for batch in batches]
    return found


def _throughputs(cells: Sequence[ServingCell]) -> tuple[dict[float, float], dict[int, dict[float, float]]]:
    """(of merged by batch size, of adapters by their number and batch size): medians over repeats."""
    merged: dict[float, float] = {}
    adapters: dict[int, dict[float, float]] = {}
    for cell in cells:
        count = num_adapters(cell.arm)
        if cell.level is None or cell.median <= 0:
            continue
        if cell.arm == "merged":
            merged[cell.level] = cell.median
        elif count is not None:
            adapters.setdefault(count, {})[cell.level] = cell.median
    return merged, adapters


def _on_one_machine(
    place: tuple[str, str],
    tasks: int,
    batch: float,
    merged: Mapping[float, float],
    adapters: Mapping[int, Mapping[float, float]],
) -> OneMachine:
    together = interpolate_adapters(adapters, tasks, batch)
    in_turns = interpolate_throughput(merged, batch / tasks)
    reason = ""
    if in_turns is None:
        reason = f"merged was not measured at batch {batch / tasks:g} or around it"
    elif together is None:
        reason = f"{tasks} adapters were not measured at batch {batch:g}, nor fewer and more of them"
    gain = together / in_turns if together and in_turns else None
    return OneMachine(*place, THROUGHPUT, tasks, batch, together, in_turns, gain, reason)


def task_memory(cells: Sequence[ServingCell]) -> list[TaskMemory]:
    """W and a of every (model, workload) that measured both; a is a slot's share of the arm with most adapters."""
    facts = [cell for cell in cells if cell.loop == "none" and cell.setting == "default"]
    found = []
    for model, workload in places(facts):
        weights = [cell.median for cell in pick(facts, model, workload, metric="weights_bytes", arm="merged")]
        slots = {
            count: cell.median
            for cell in pick(facts, model, workload, metric="adapter_bytes")
            if (count := num_adapters(cell.arm)) and cell.median > 0
        }
        if weights and weights[0] > 0 and slots:
            each = slots[max(slots)] / max(slots)
            fewest = tasks_from_which_adapters_save_memory(weights[0], each)
            found.append(TaskMemory(model, workload, weights[0], each, fewest))
    return found


def traffic_comparisons(cells: Sequence[ServingCell]) -> list[TrafficBreakEven]:
    """Machines needed, for every number of adapters measured above 1; capacity is the best of the batch sizes."""
    standard, found = standard_cells(cells), []
    for model, workload in places(standard):
        merged, adapters = _throughputs(pick(standard, model, workload, metric=CAPACITY))
        for tasks, by_batch in sorted(adapters.items()) if merged else ():
            for mix in MIXES if tasks > 1 else ():
                capacities = (max(by_batch.values()), max(merged.values()))
                first, last, reason = traffic_break_even(*capacities, shares=shares_of(tasks, mix))
                found.append(TrafficBreakEven(model, workload, tasks, mix, *capacities, first, last, reason))
    return found


def bytes_of_tasks(memory: TaskMemory, num_tasks: int) -> tuple[float, float]:
    """(with adapters, merged): W + T a and T W."""
    return memory.weights_bytes + num_tasks * memory.adapter_bytes, num_tasks * memory.weights_bytes
