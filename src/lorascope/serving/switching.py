"""What it costs when a request's adapter is not where the last one's was.

An engine keeps a few adapters in slots on its device, more in the processor's memory, and reads the rest from disk, each
time dropping the one unused for longest. A sequence of single requests is drawn for which we know beforehand where each
adapter lies, because we keep the same books; the engine is given room for one adapter on the device and two in memory, so
that three are enough to see every case.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SLOTS, CPU_SLOTS = 1, 2
NUM_PROBES = 20
"""Requests a state."""


@dataclass(frozen=True)
class SwitchProbe:
    """adapter: its place among those served. state: "disk" (never asked for), "resident" (the last one's), "cpu" (in memory),
    "evicted" (read again from disk); "switched": another one's turn where all stay on the device."""

    adapter: int
    state: str


def draw_probes(num_adapters: int, *, keeps_all: bool, generator: np.random.Generator) -> list[SwitchProbe]:
    """A sequence with each adapter's first request, then NUM_PROBES requests of every state that can occur, in random
    order. keeps_all: the engine keeps every adapter on its device. Needs two adapters; "evicted" needs three."""
    if keeps_all:
        return _probes_without_eviction(num_adapters, generator)
    cache: OrderedDict[int, None] = OrderedDict()
    probes = [_ask(cache, adapter, first=True) for adapter in generator.permutation(num_adapters).tolist()]
    states = ["resident", "cpu", *(["evicted"] if num_adapters > CPU_SLOTS else [])]
    for state in generator.permutation(np.repeat(states, NUM_PROBES)).tolist():
        resident = next(reversed(cache))
        choices = {
            "resident": [resident],
            "cpu": [adapter for adapter in cache if adapter != resident],
            "evicted": [adapter for adapter in range(num_adapters) if adapter not in cache],
        }[state]
        probes.append(_ask(cache, int(generator.choice(choices)), first=False))
    return probes


def _ask(cache: OrderedDict[int, None], adapter: int, *, first: bool) -> SwitchProbe:
    """Where the adapter lies when it is asked for; afterwards it is the one used last."""
    resident = next(reversed(cache), None)
    state = "disk" if first else "resident" if adapter == resident else "cpu" if adapter in cache else "evicted"
    cache[adapter] = None
    cache.move_to_end(adapter)
    while len(cache) > CPU_SLOTS:
        cache.popitem(last=False)
    return SwitchProbe(adapter, state)


def _probes_without_eviction(num_adapters: int, generator: np.random.Generator) -> list[SwitchProbe]:
    probes, last = [], 0
    for state in generator.permutation(np.repeat(["resident", "switched"], NUM_PROBES)).tolist():
        others = [adapter for adapter in range(num_adapters) if adapter != last]
        last = last if state == "resident" else int(generator.choice(others))
        probes.append(SwitchProbe(last, state))
    return probes


def states_of(probes: Sequence[SwitchProbe]) -> list[str]:
    """The states that occur, from the cheapest."""
    order = ["resident", "switched", "cpu", "evicted", "disk"]
    return [state for state in order if any(probe.state == state for probe in probes)]
