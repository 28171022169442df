"""What is asked of an engine: prompts, which adapter answers each, and when each arrives.

The one idea: a load is drawn from its name and the repeat alone, so every arm of a repeat answers the same prompts at the
same times, and what differs between arms is the arm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from lorascope.serving.exchange import Request
from lorascope.study.measure import ServingSpec

T = TypeVar("T")

TEMPERATURE = 1.0
FEWEST_BATCHES = 4
"""In a closed loop: one batch would be one sample of its time."""
_ZIPF_EXPONENT = 1.0
_FIRST_ORDINARY_TOKEN = 5
"""Synthetic prompts leave out the first ids, which vocabularies use for padding, unknown text and the ends of sequences."""


@dataclass(frozen=True)
class Load:
    """One thing an engine is asked to do. loop: "batch" (level requests at once, the next when all are answered) or "rate"
    (level requests a second, whether or not earlier ones are answered). choice: how a request's adapter is chosen.
    sampling: "greedy" or "sampled".
    """

    workload: str
    loop: str
    level: float
    choice: str
    sampling: str

    def num_requests(self, wanted: int) -> int:
        """`wanted`, or in a closed loop what the fewest batches hold where that is more."""
        return max(wanted, FEWEST_BATCHES * int(self.level)) if self.loop == "batch" else wanted

    @property
    def name(self) -> str:
        return f"{self.workload}-{self.loop}-{self.level:g}-{self.choice}-{self.sampling}"

    def keys(self) -> dict[str, Any]:
        return asdict(self)


def loads_of(spec: ServingSpec, *, workload: str, num_adapters: int) -> list[Load]:
    """What an arm with so many adapters (0: none) is asked in one workload. Further choices of an adapter are measured
    where there are most of them, at the largest batch."""
    sampling = spec.sampling if workload == "generation" else ("greedy",)
    first, *further = spec.choices
    found = [
        Load(workload, loop, level, first, how)
        for how in sampling
        for loop, levels in (("batch", spec.batch_sizes), ("rate", spec.request_rates))
        for level in levels
    ]
    if num_adapters > 1 and num_adapters == spec.most_adapters:
        found += [Load(workload, "batch", max(spec.batch_sizes), choice, sampling[0]) for choice in further]
    return found


def draw_batches(
    load: Load,
    prompts: Sequence[Sequence[int]],
    *,
    adapters: Sequence[str],
    num_requests: int,
    output_tokens: int,
    repeat: int,
) -> list[list[Request]]:
    """The requests of a load, in batches that follow each other; one batch for an open loop.

    prompts: token ids; drawn without replacement, all of them before any comes again. adapters: their names; none: the
    model alone answers. The draws of prompts and arrival times do not depend on the arm, nor those of an adapter's number
    on anything but how many there are.
    """
    generator = generator_of(load.name, repeat)
    rounds = -(-num_requests // len(prompts))
    order = np.concatenate([generator.permutation(len(prompts)) for _ in range(rounds)])[:num_requests]
    gaps = generator.exponential(1.0, num_requests)
    arrivals = np.cumsum(gaps) / load.level if load.loop == "rate" else np.zeros(num_requests)
    asked: list[str | None] = [None] * num_requests
    if adapters:
        chosen = choose_adapters(load.choice, len(adapters), num_requests, generator)
        asked = [adapters[int(place)] for place in chosen]
    requests = [
        Request(
            id=index,
            prompt=prompts[row],
            adapter=asked[index],
            output_tokens=output_tokens,
            temperature=TEMPERATURE if load.sampling == "sampled" else 0.0,
            seed=index if load.sampling == "sampled" else None,
            arrival_s=float(arrivals[index]),
        )
        for index, row in enumerate(order)
    ]
    size = int(load.level) if load.loop == "batch" else num_requests
    return [requests[start : start + size] for start in range(0, num_requests, size)]


def choose_adapters(choice: str, num_adapters: int, num_requests: int, generator: np.random.Generator) -> np.ndarray:
    """int [num_requests], which adapter each request asks for. "zipf": probability 1 / rank, the first is the favourite."""
    places = np.arange(num_requests)
    if choice == "fixed":
        return np.zeros(num_requests, dtype=int)
    if choice == "round-robin":
        return places % num_adapters
    if choice == "random":
        return generator.integers(num_adapters, size=num_requests)
    assert choice == "zipf", choice
    weights = 1 / np.arange(1, num_adapters + 1) ** _ZIPF_EXPONENT
    return generator.choice(num_adapters, size=num_requests, p=weights / weights.sum())


def synthetic_prompts(lengths: Sequence[int], *, vocabulary: int, count: int) -> list[list[int]]:
    """Prompts of random tokens; their lengths take turns."""
    generator = generator_of("synthetic prompts", 0)
    wanted = [lengths[index % len(lengths)] for index in range(count)]
    return [generator.integers(_FIRST_ORDINARY_TOKEN, vocabulary, size=length).tolist() for length in wanted]


def generator_of(name: str, repeat: int) -> np.random.Generator:
    """A generator for this name and repeat, the same in every process."""
    digest = hashlib.sha256(f"{name}/{repeat}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest[:16], dtype=np.uint32))


def in_random_order(arms: Sequence[T], *, repeat: int) -> Iterator[T]:
    """The arms of a repeat in an order of its own, so that a machine that warms up or slows down favours none."""
    yield from (arms[index] for index in generator_of("order of arms", repeat).permutation(len(arms)))
