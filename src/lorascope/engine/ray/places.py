"""Where the workers of a Ray cluster go: so many places on each machine, and all of a machine for a step that must be alone.

Laying out is done anew whenever machines join or leave. Places that are there stay what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lorascope.engine.ray.cluster import Machine
from lorascope.engine.ray.host import RemoteWorker
from lorascope.engine.workers.pool import Slot

DEVICES = {"cuda": "cuda:0", "cpu": "cpu"}
"""What a kind of device is called within a worker: Ray shows it no GPU but its own."""


@dataclass
class Place(Slot):
    """Room for one worker on a machine, or all of that machine. idle_since: on the monotonic clock."""

    machine: Machine = field(kw_only=True)
    whole: bool = False
    worker: RemoteWorker | None = None
    idle_since: float = 0.0

    @property
    def place(self) -> str:
        return f"{self.device.partition(':')[0]} of {self.machine.name}"


def lay_out(
    places: Sequence[Place], machines: Mapping[str, Machine], *, kind: str, devices: Sequence[str] | None
) -> list[Place]:
    """Places for the machines there are (by node id); those of lost ones go, once their steps are dealt with.

    devices: so many workers of each kind, spread over the machines; None: one for each GPU where `kind` is "cuda", else one
    for each machine.
    """
    found = [p for p in places if p.machine.node_id in machines or p.steps]
    for machine in machines.values():
        kind_of_whole = kind if devices is None else devices[0]
        mine = [place for place in found if place.machine.node_id == machine.node_id]
        if not any(place.whole for place in mine) and (kind_of_whole == "cpu" or machine.num_gpus):
            _add(found, kind_of_whole, machine, whole=True)
        if devices is None:
            wished = machine.num_gpus if kind == "cuda" else 1
            for _ in range(wished - sum(not place.whole for place in mine)):
                _add(found, kind, machine)
    if devices is not None:
        placed = Counter(place.device for place in found if not place.whole)
        for each, number in Counter(devices).items():
            for _ in range(number - placed[DEVICES[each]]):
                _spread(found, each, machines)
    return found


def _spread(places: list[Place], kind: str, machines: Mapping[str, Machine]) -> None:
    """One more place, on the machine that has fewest for what it can carry."""
    taken = Counter(p.machine.node_id for p in places if not p.whole and p.device == DEVICES[kind])
    capacity = {m.node_id: m.num_gpus if kind == "cuda" else m.num_cpus for m in machines.values()}
    roomy = [m for m in machines.values() if capacity[m.node_id] > taken[m.node_id]]
    if roomy:
        _add(places, kind, min(roomy, key=lambda machine: taken[machine.node_id]))


def _add(places: list[Place], kind: str, machine: Machine, *, whole: bool = False) -> None:
    names = {place.name for place in places}
    spellings = (f"{machine.name}-{'all' if whole else kind}-{number}" for number in range(len(names) + 1))
    name = next(name for name in spellings if name not in names)
    places.append(Place(DEVICES[kind], name, machine=machine, whole=whole))
