"""Break-even of adapters and merging: the formulas against counting machines one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lorascope.stats.break_even import (
    interpolate_adapters,
    interpolate_throughput,
    machines_merged,
    machines_with_adapters,
    shares_of,
    tasks_from_which_adapters_save_memory,
    traffic_break_even,
)
from lorascope.stats.serving_analysis import ServingCell
from lorascope.stats.serving_trade import machine_comparisons, task_memory, traffic_comparisons


def cell(arm: str, level: float | None, metric: str, value: float, *, loop: str = "batch") -> ServingCell:
    choice = "round-robin" if loop == "batch" else "none"
    return ServingCell(
        "m",
        arm,
        "generation",
        loop,
        level,
        choice,
        "greedy",
        "default",
        metric,
        "1/s",
        value,
        0.0,
        None,
        {"0": value},
        None,
    )


def test_throughput_between_measured_batches_is_linear_in_logs_and_is_never_extrapolated():
    measured = {1.0: 100.0, 4.0: 400.0, 16.0: 800.0}
    assert interpolate_throughput(measured, 2.0) == pytest.approx(200.0)
    assert interpolate_throughput(measured, 8.0) == pytest.approx(400.0 * math.sqrt(2))
    assert interpolate_throughput(measured, 16.0) == pytest.approx(800.0)
    assert interpolate_throughput(measured, 0.5) is None and interpolate_throughput(measured, 17.0) is None
    assert interpolate_throughput({}, 1.0) is None


def test_adapters_between_measured_arms_are_interpolated_and_beyond_them_unknown():
    measured = {2: {4.0: 100.0}, 4: {4.0: 400.0}}
    assert interpolate_adapters(measured, 3, 4.0) == pytest.approx(200.0)
    assert interpolate_adapters(measured, 5, 4.0) is None and interpolate_adapters(measured, 1, 4.0) is None


@pytest.mark.parametrize(
    ("weights", "adapter"), [(100.0, 1.0), (100.0, 50.0), (100.0, 51.0), (100.0, 75.0), (3.0, 2.0)]
)
def test_the_memory_break_even_is_the_fewest_tasks_that_take_less(weights, adapter):
    fewest = next(t for t in itertools.count(2) if weights + t * adapter < t * weights)
    assert tasks_from_which_adapters_save_memory(weights, adapter) == fewest


def test_an_adapter_as_large_as_the_model_never_saves_memory():
    assert tasks_from_which_adapters_save_memory(100.0, 100.0) is None


@pytest.mark.parametrize("mix", ["uniform", "zipf"])
@pytest.mark.parametrize("tasks", [1, 2, 4, 7])
@pytest.mark.parametrize("capacities", [(60.0, 100.0), (95.0, 100.0), (7.0, 10.0), (33.3, 100.0)])
def test_the_traffic_break_even_is_what_counting_machines_at_every_traffic_finds(capacities, tasks, mix):
    adapters, merged = capacities
    shares = shares_of(tasks, mix)
    first, last, reason = traffic_break_even(adapters, merged, shares=shares)
    assert not reason and first is not None and last is not None
    grid = np.linspace(0.0, 1.3 * tasks / (1 / adapters - 1 / merged) + 3 * adapters, 20_000)[1:]
    more = np.array([machines_merged(t, merged, shares=shares) - machines_with_adapters(t, adapters) for t in grid])
    step = grid[1] - grid[0]
    assert first == pytest.approx(grid[more < 0].min(), abs=1.01 * step)
    assert last == pytest.approx(grid[more > 0].max() if (more > 0).any() else 0.0, abs=1.01 * step)
    assert not (more[grid > last + step] > 0).any() and not (more[grid <= first] < 0).any()


def test_adapters_as_fast_as_merged_models_never_need_more_machines():
    assert traffic_break_even(100.0, 100.0, shares=shares_of(4, "uniform")) == (None, None, "")
    generator = np.random.default_rng(0)
    for traffic in generator.uniform(0, 5000, 200):
        assert machines_merged(traffic, 100.0, shares=shares_of(4, "zipf")) >= machines_with_adapters(traffic, 100.0)


def test_throughputs_too_close_to_tell_have_no_break_even_but_a_reason():
    *_, reason = traffic_break_even(100.0, 100.0001, shares=shares_of(4, "uniform"))
    assert reason == "the two throughputs are too close to tell"


def test_machines_rise_just_above_a_multiple_of_a_capacity():
    assert machines_with_adapters(0.3, 0.1) == 3, "0.3 / 0.1 is a little below 3 in floating point, 0.1 * 3 above 0.3"
    assert machines_with_adapters(0.1 * 3, 0.1) == 3
    assert machines_with_adapters(0.30001, 0.1) == 4
    assert machines_merged(100.0, 25.0, shares=shares_of(4, "uniform")) == 4
    assert machines_merged(100.1, 25.0, shares=shares_of(4, "uniform")) == 8


def test_shares_add_up_and_zipf_falls_as_one_over_rank():
    assert shares_of(4, "uniform") == [0.25] * 4
    assert shares_of(3, "zipf") == pytest.approx([6 / 11, 3 / 11, 2 / 11])


def test_one_machine_compares_adapters_with_merged_models_that_take_turns_at_a_share_of_the_batch():
    merged = {1: 100.0, 2: 190.0, 4: 360.0}
    adapters = {2: {2: 150.0, 4: 280.0}, 4: {2: 140.0, 4: 260.0}}
    cells = [cell("merged", level, "tokens_per_second", value) for level, value in merged.items()]
    cells += [
        cell(f"adapters-{n}", level, "tokens_per_second", v) for n, by in adapters.items() for level, v in by.items()
    ]
    found = {(m.num_tasks, m.batch): m for m in machine_comparisons(cells)}
    assert found[2, 2].gain == pytest.approx(150 / 100) and found[2, 4].gain == pytest.approx(280 / 190)
    assert found[4, 4].gain == pytest.approx(260 / 100)
    assert found[3, 4].adapters == pytest.approx(math.sqrt(280 * 260))
    assert found[4, 2].gain is None and "batch 0.5" in found[4, 2].reason


def test_memory_and_machines_come_from_the_measured_cells():
    cells = [
        cell("merged", None, "weights_bytes", 1000.0, loop="none"),
        cell("adapters-4", None, "adapter_bytes", 40.0, loop="none"),
        *(cell("merged", level, "requests_per_second", value) for level, value in ((1, 5.0), (8, 20.0))),
        *(cell("adapters-4", level, "requests_per_second", value) for level, value in ((1, 3.0), (8, 12.0))),
    ]
    (memory,) = task_memory(cells)
    assert (memory.weights_bytes, memory.adapter_bytes, memory.break_even_tasks) == (1000.0, 10.0, 2)
    uniform, zipf = traffic_comparisons(cells)
    assert (uniform.mix, zipf.mix, uniform.adapter_capacity, uniform.merged_capacity) == ("uniform", "zipf", 12.0, 20.0)
    assert uniform.last is not None and zipf.last is not None
    assert not traffic_comparisons(cells[:2]) and not machine_comparisons(cells[:2])
