"""What is asked of an engine: the same of every arm, in batches or at random times, of adapters by a stated rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lorascope.serving.exchange import Request, ServedRequests
from lorascope.serving.load import (
    Load,
    choose_adapters,
    draw_batches,
    generator_of,
    in_random_order,
    loads_of,
    synthetic_prompts,
)
from lorascope.serving.switching import CPU_SLOTS, NUM_PROBES, draw_probes
from lorascope.serving.timing import load_figures, request_rows
from lorascope.study.measure import ServingSpec

PROMPTS = [[index] * (3 + index) for index in range(10)]
BATCHES_OF_FOUR = Load("generation", "batch", 4, "round-robin", "greedy")


def drawn(load: Load, **changes) -> list[list[Request]]:
    settings = {"adapters": ["a", "b", "c"], "num_requests": 25, "output_tokens": 7, "repeat": 0, **changes}
    return draw_batches(load, PROMPTS, **settings)


def test_a_closed_loop_asks_in_batches_and_an_open_one_all_at_their_times() -> None:
    batches = drawn(BATCHES_OF_FOUR)
    assert [len(batch) for batch in batches] == [4] * 6 + [1]
    assert {request.arrival_s for batch in batches for request in batch} == {0.0}
    (stream,) = drawn(Load("generation", "rate", 5.0, "round-robin", "greedy"), num_requests=4000)
    gaps = np.diff([request.arrival_s for request in stream])
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.08), "a Poisson stream's gaps scatter as much as they last"


def test_every_arm_is_asked_the_same_prompts_at_the_same_times() -> None:
    for load in (BATCHES_OF_FOUR, Load("generation", "rate", 2.0, "zipf", "sampled")):
        streams = [
            [(r.id, r.prompt, r.output_tokens, r.arrival_s, r.seed, r.temperature) for batch in batches for r in batch]
            for batches in (drawn(load), drawn(load, adapters=[]), drawn(load, adapters=["x"]))
        ]
        assert streams[0] == streams[1] == streams[2]
    assert {r.adapter for batch in drawn(BATCHES_OF_FOUR, adapters=[]) for r in batch} == {None}


def test_another_repeat_draws_other_prompts() -> None:
    first, second = ([r.prompt for batch in drawn(BATCHES_OF_FOUR, repeat=k) for r in batch] for k in (0, 1))
    assert first != second
    assert first == [r.prompt for batch in drawn(BATCHES_OF_FOUR, repeat=0) for r in batch]


def test_every_prompt_comes_once_before_any_comes_again() -> None:
    asked = [tuple(r.prompt) for batch in drawn(BATCHES_OF_FOUR, num_requests=20) for r in batch]
    assert len(set(asked[:10])) == len(set(asked[10:])) == 10


def test_adapters_are_chosen_by_the_rule() -> None:
    def chosen(choice: str, count: int = 12_000) -> np.ndarray:
        return choose_adapters(choice, 3, count, generator_of("test", 0))

    assert set(chosen("fixed")) == {0}
    assert chosen("round-robin", 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert np.bincount(chosen("random")) / 12_000 == pytest.approx([1 / 3] * 3, abs=0.02)
    assert np.bincount(chosen("zipf")) / 12_000 == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.02)


def test_only_sampled_requests_have_a_temperature_and_seeds_of_their_own() -> None:
    sampled = [r for batch in drawn(Load("generation", "batch", 4, "fixed", "sampled")) for r in batch]
    assert len({r.seed for r in sampled}) == len(sampled)
    assert {r.temperature for r in sampled} == {1.0}
    assert {(r.temperature, r.seed) for batch in drawn(BATCHES_OF_FOUR) for r in batch} == {(0.0, None)}


def test_the_loads_of_an_arm_are_those_the_study_names() -> None:
    spec = ServingSpec.model_validate(
        {
            "arms": ["merged", 1, 4], "workloads": ["generation", "classification"], "batch_sizes": [1, 8],
            "request_rates": [3], "choices": ["round-robin", "zipf"], "sampling": ["greedy", "sampled"],
        }
    )  # fmt: skip
    merged = [load.name for load in loads_of(spec, workload="generation", num_adapters=0)]
    assert merged == [
        f"generation-{loop}-round-robin-{how}"
        for how in ("greedy", "sampled")
        for loop in ("batch-1", "batch-8", "rate-3")
    ]
    largest = [load.name for load in loads_of(spec, workload="generation", num_adapters=4)]
    assert largest == [*merged, "generation-batch-8-zipf-greedy"]
    assert {load.sampling for load in loads_of(spec, workload="classification", num_adapters=4)} == {"greedy"}


def test_synthetic_prompts_take_lengths_in_turn_without_specials() -> None:
    prompts = synthetic_prompts([4, 6], vocabulary=50, count=5)
    assert [len(prompt) for prompt in prompts] == [4, 6, 4, 6, 4]
    assert min(map(min, prompts)) >= 5
    assert max(map(max, prompts)) < 50
    assert len({tuple(prompt) for prompt in prompts}) == 5


def test_the_order_of_arms_is_another_in_every_repeat() -> None:
    arms = ["base", "full", "merged", "adapters-1", "adapters-4"]
    orders = [tuple(in_random_order(arms, repeat=repeat)) for repeat in range(20)]
    assert all(sorted(order) == sorted(arms) for order in orders)
    assert len(set(orders)) > 10
    firsts = [order[0] for order in orders]
    assert len(set(firsts)) > 2, "no arm is always the one that starts"


# --------------------------------------------------------------------------------------------------------------- times


def served(request: Request, *, first: float, last: float, count: int) -> ServedRequests:
    times = tuple(np.linspace(first, last, count).tolist())
    return ServedRequests(
        id=request.id, arrival_s=request.arrival_s, first_s=first, last_s=last, token_s=times, output=None, sent_s=0.0
    )  # fmt: skip


def test_figures_of_a_load_are_those_computed_by_hand() -> None:
    (batch,) = drawn(BATCHES_OF_FOUR, num_requests=2)[:1]
    answers = [served(batch[0], first=0.1, last=0.7, count=7), served(batch[1], first=0.2, last=1.4, count=7)]
    rows = request_rows([batch], answers)
    assert [row["latency_ms"] for row in rows] == pytest.approx([700, 1400])
    assert [row["ttft_ms"] for row in rows] == pytest.approx([100, 200])
    figures = {name: value for name, value, _ in load_figures(rows, answers, wall_s=[1.4])}
    assert figures["latency_ms_mean"] == pytest.approx(1050)
    assert figures["latency_ms_p50"] == pytest.approx(1050)
    assert figures["latency_ms_p99"] == pytest.approx(1393)
    assert figures["itl_ms_p50"] == pytest.approx(150), "six gaps of 100 ms and six of 200 ms"
    assert figures["tokens_per_second"] == pytest.approx(10)
    assert figures["requests_per_second"] == pytest.approx(2 / 1.4)


def test_latency_of_an_open_loop_runs_from_the_arrival() -> None:
    (stream,) = drawn(Load("classification", "rate", 2.0, "fixed", "greedy"), num_requests=2, output_tokens=0)
    answers = [
        served(request, first=request.arrival_s + 0.3, last=request.arrival_s + 0.3, count=1) for request in stream
    ]
    rows = request_rows([stream], answers)
    assert [row["latency_ms"] for row in rows] == pytest.approx([300, 300])
    assert [row["ttft_ms"] for row in rows] == [None, None]
    figures = {name: value for name, value, _ in load_figures(rows, answers, wall_s=[2.0])}
    assert not any(name.startswith(("ttft", "itl")) for name in figures)
    assert figures["tokens_per_second"] == pytest.approx(sum(len(r.prompt) for r in stream) / 2.0)


# ----------------------------------------------------------------------------------------------------------- switching


@pytest.mark.parametrize("num_adapters", [3, 4, 16])
def test_probes_say_where_an_adapter_lies(num_adapters: int) -> None:
    probes = draw_probes(num_adapters, keeps_all=False, generator=generator_of("test", num_adapters))
    assert [p.state for p in probes[:num_adapters]] == ["disk"] * num_adapters
    used: list[int] = []
    for probe in probes:
        recent = list(dict.fromkeys(reversed(used)))[:CPU_SLOTS]
        expected = "disk" if probe.adapter not in used else "evicted"
        if probe.adapter in recent:
            expected = "resident" if probe.adapter == recent[0] else "cpu"
        assert probe.state == expected
        used.append(probe.adapter)
    states = [probe.state for probe in probes]
    assert {state: states.count(state) for state in ("resident", "cpu", "evicted")} == dict.fromkeys(
        ("resident", "cpu", "evicted"), NUM_PROBES
    )


def test_two_adapters_are_never_evicted() -> None:
    states = {p.state for p in draw_probes(2, keeps_all=False, generator=generator_of("test", 0))}
    assert states == {"disk", "resident", "cpu"}
    probes = draw_probes(4, keeps_all=True, generator=generator_of("test", 0))
    assert {p.state for p in probes} == {"resident", "switched"}
    for before, probe in itertools.pairwise(probes):
        assert (probe.adapter == before.adapter) == (probe.state == "resident")


@pytest.mark.parametrize(
    ("loop", "level", "expected"), [("batch", 1, 16), ("batch", 4, 16), ("batch", 16, 64), ("rate", 32, 16)]
)
def test_a_closed_loop_has_four_batches_at_least(loop: str, level: float, expected: int) -> None:
    assert Load("generation", loop, level, "round-robin", "greedy").num_requests(16) == expected
