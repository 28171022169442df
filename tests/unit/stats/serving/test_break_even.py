"""Break-even of adapters and merging: the formulas against counting machines one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lorascope.stats.serving.analysis import ServingCell
from lorascope.stats.serving.break_even import (
    interpolate_adapters,
    interpolate_throughput,
    machines_merged,
    machines_with_adapters,
    shares_of,
    tasks_from_which_adapters_save_memory,
    traffic_break_even,
)
from lorascope.stats.serving.trade import machine_comparisons, task_memory, tasks_break_evens, traffic_comparisons


def cell(arm: str, level: float | None, metric: str, value: float, *others: float, loop: str = "batch") -> ServingCell:
    """value, others: one a repeat."""
    choice = "round-robin" if loop == "batch" else "none"
    repeats = {str(repeat): each for repeat, each in enumerate((value, *others))}
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
        float(np.median(list(repeats.values()))),
        0.0,
        None,
        repeats,
        None,
    )


def test_throughput_is_linear_in_logs_and_never_extrapolated():
    measured = {1.0: 100.0, 4.0: 400.0, 16.0: 800.0}
    assert interpolate_throughput(measured, 2.0) == pytest.approx(200.0)
    assert interpolate_throughput(measured, 8.0) == pytest.approx(400.0 * math.sqrt(2))
    assert interpolate_throughput(measured, 16.0) == pytest.approx(800.0)
    assert interpolate_throughput(measured, 0.5) is None and interpolate_throughput(measured, 17.0) is None
    assert interpolate_throughput({}, 1.0) is None


def test_adapters_are_interpolated_between_arms_never_beyond():
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
def test_the_traffic_break_even_is_what_counting_machines_finds(capacities, tasks, mix):
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


def test_one_machine_compares_adapters_with_merged_models_in_turns():
    merged = {1: 100.0, 2: 190.0, 4: 360.0}
    adapters = {2: {2: 150.0, 4: 280.0}, 4: {2: 140.0, 4: 260.0}}
    cells = [cell("merged", level, "tokens_per_second", value) for level, value in merged.items()]
    cells += [
        cell(f"adapters-{n}", level, "tokens_per_second", v) for n, by in adapters.items() for level, v in by.items()
    ]
    found = {(m.num_tasks, m.batch): m for m in machine_comparisons(cells)}

    def gain(tasks: int, batch: int) -> float:
        figure = found[tasks, batch].gain
        assert figure is not None and figure.value is not None and figure.interval is None
        return figure.value

    assert gain(2, 2) == pytest.approx(150 / 100) and gain(2, 4) == pytest.approx(280 / 190)
    assert gain(4, 4) == pytest.approx(260 / 100)
    between = found[3, 4].adapters
    assert between is not None and between.value == pytest.approx(math.sqrt(280 * 260))
    assert found[4, 2].gain is None and "batch 0.5" in found[4, 2].reason


def test_memory_and_machines_come_from_the_measured_cells():
    cells = [
        cell("merged", None, "weights_bytes", 1000.0, loop="none"),
        cell("adapters-4", None, "adapter_bytes", 40.0, loop="none"),
        *(cell("merged", level, "requests_per_second", value) for level, value in ((1, 5.0), (8, 20.0))),
        *(cell("adapters-4", level, "requests_per_second", value) for level, value in ((1, 3.0), (8, 12.0))),
    ]
    (memory,) = task_memory(cells)
    assert (memory.weights_bytes, memory.adapter_bytes, memory.break_even_tasks.value) == (1000.0, 10.0, 2)
    uniform, zipf = traffic_comparisons(cells)
    assert (uniform.mix, zipf.mix, uniform.adapter_capacity, uniform.merged_capacity) == ("uniform", "zipf", 12.0, 20.0)
    assert uniform.last.value is not None and zipf.last.value is not None
    assert not traffic_comparisons(cells[:2]) and not machine_comparisons(cells[:2])


def on_one_machine(gains: list[float], *, luck: list[float]) -> list[ServingCell]:
    """Two tasks at batch 2, adapters over merged in turns as given in every repeat; luck: of the repeat, on all arms."""
    merged = [100.0 * own for own in luck]
    return [
        cell("merged", 1, "tokens_per_second", *merged),
        cell("adapters-2", 2, "tokens_per_second", *(g * m for g, m in zip(gains, merged, strict=True))),
    ]


def test_a_gain_is_taken_within_repeats_with_a_t_interval_on_logs() -> None:
    gains = [1.2, 1.3, 1.25, 1.4]
    (found,) = machine_comparisons(on_one_machine(gains, luck=[1.0, 3.0, 0.2, 1.5]))
    assert found.gain is not None and found.gain.interval is not None and found.gain.value is not None
    logs = np.log(gains)
    half = 3.182446 * logs.std(ddof=1) / 2  # t with 3 degrees of freedom
    assert found.gain.value == pytest.approx(math.exp(logs.mean()))
    assert math.log(found.gain.interval.low) == pytest.approx(logs.mean() - half, rel=1e-5)
    assert math.log(found.gain.interval.high) == pytest.approx(logs.mean() + half, rel=1e-5)
    assert (found.gain.num_found, found.gain.num_repeats) == (4, 4)
    assert found.merged is not None and found.merged.interval is not None
    assert found.merged.interval.high / found.merged.interval.low > 5, "what an hour does drops out of the gain alone"


def test_the_interval_of_a_break_even_holds_the_truth_as_often_as_it_says() -> None:
    """Capacities of 60 and 100 requests/s with 1% of luck a process, of which the first break-even is 180 requests/s."""
    generator = np.random.default_rng(0)
    truth = 180.0
    assert (
        traffic_break_even(60.0, 100.0, shares=shares_of(3, "uniform"))[0] == truth
    )  # three machines of either kind until adapters need a fourth
    held = []
    for _ in range(400):
        adapters, merged = (base * np.exp(generator.normal(0, 0.01, 5)) for base in (60.0, 100.0))
        cells = [cell("merged", 1, "requests_per_second", *merged)]
        uniform, _ = traffic_comparisons([*cells, cell("adapters-3", 1, "requests_per_second", *adapters)])
        assert uniform.first.interval is not None and uniform.first.num_repeats == 5
        held.append(uniform.first.interval.low <= truth <= uniform.first.interval.high)
    assert 0.92 < np.mean(held) < 0.98


def test_a_break_even_that_some_repeats_lack_has_no_interval() -> None:
    """In two of five repeats adapters are as fast as merging: there is no traffic from which merging pays."""
    cells = [
        cell("merged", 1, "requests_per_second", *[100.0] * 5),
        cell("adapters-2", 1, "requests_per_second", 60.0, 60.0, 60.0, 100.0, 101.0),
    ]
    uniform, _ = traffic_comparisons(cells)
    assert uniform.last.interval is None and (uniform.last.num_found, uniform.last.num_repeats) == (3, 5)
    assert uniform.last.value == traffic_break_even(60.0, 100.0, shares=shares_of(2, "uniform"))[1]


def test_two_repeats_and_a_repeat_that_one_arm_lacks_make_no_interval() -> None:
    cells = on_one_machine([1.2, 1.3, 1.25], luck=[1.0, 1.0, 1.0])
    (found,) = machine_comparisons([cells[0], cell("adapters-2", 2, "tokens_per_second", 120.0, 130.0)])
    assert found.gain is not None and found.gain.interval is None
    assert (found.gain.num_found, found.gain.num_repeats) == (2, 2)


def test_the_tasks_from_which_adapters_win_are_found_by_repeat() -> None:
    """Merged in turns serves 100 whatever its batch. Adapters serve 90 for two tasks and 110 for four in most repeats: they
    cross at three; in one they cross at four only, and in the last never."""
    merged = [cell("merged", batch, "tokens_per_second", *[100.0] * 5) for batch in (1, 2, 4)]
    two = cell("adapters-2", 4, "tokens_per_second", 95.0, 95.0, 95.0, 80.0, 80.0)

    def found(*four: float) -> tuple[float | None, bool, int]:
        (row,) = tasks_break_evens([*merged, two, cell("adapters-4", 4, "tokens_per_second", *four)])
        return row.tasks.value, row.tasks.interval is not None, row.tasks.num_found

    assert found(110.0, 110.0, 110.0, 110.0, 110.0) == (3, True, 5)
    assert found(110.0, 110.0, 110.0, 110.0, 90.0) == (3, False, 4)


def test_the_memory_break_even_is_found_in_every_repeat() -> None:
    cells = [
        cell("merged", None, "weights_bytes", 100.0, 100.0, 100.0, loop="none"),
        cell("adapters-2", None, "adapter_bytes", 40.0, 40.0, 120.0, loop="none"),  # 20, 20 and 60 an adapter
    ]
    (memory,) = task_memory(cells)
    assert memory.break_even_tasks.value == 2 and memory.break_even_tasks.interval is not None
    assert memory.break_even_tasks.interval.estimate == pytest.approx((2 * 2 * 3) ** (1 / 3))
