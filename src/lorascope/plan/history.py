"""What finished steps took: the store's records, read as observations an estimate can stand on.

A worker that computes several runs together is one span of time; each run is booked its share, so that shares add up to
the span however many there were.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store

T = TypeVar("T")
_SAME_START_S = 5.0
_BY_COORDINATOR = ("proposals",)  # on no worker: it says nothing of the machines that train


@dataclass(frozen=True)
class Observation:
    """One finished step. seconds: its share of the worker's time. memory_bytes: at its peak, the whole gang's (None: not
    recorded). device: "cpu", "cuda" or "mps"; machine: what that device is called. workers_on_device: of its study, its own
    included. result: of its record."""

    step: Step
    seconds: float
    memory_bytes: int | None
    disk_bytes: int
    device: str
    machine: str
    workers_on_device: int
    result: Mapping[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        return self.step.kind

    @property
    def is_calibration(self) -> bool:
        """Whether it is a calibration, or measures one: such a run saw a few updates only."""
        return self.kind == "calibration" or any(dep.startswith("calibration-") for dep in self.step.deps.values())


@dataclass(frozen=True)
class History:
    """Every observation of one store on one kind of device. results: step id -> result, of any device: what is known of
    examples and tokens."""

    device: str
    observations: tuple[Observation, ...]
    results: Mapping[str, Mapping[str, Any]]
    _known: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def of(self, kind: str) -> list[Observation]:
        return self.grouped(kind, _kind_alone).get("", [])

    def grouped(self, kind: str, by: Callable[[Step], str]) -> Mapping[str, list[Observation]]:
        """The observations of a kind by what `by` says of their steps."""
        return self.remembered((kind, by), lambda: self._group(kind, by))

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was worked out of this history under `key`, worked out now if it was not yet: many steps of a plan ask for the
        same, and each question reads every record."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _group(self, kind: str, by: Callable[[Step], str]) -> Mapping[str, list[Observation]]:
        found: dict[str, list[Observation]] = {}
        for observation in self.observations:
            if observation.kind == kind:
                found.setdefault(by(observation.step), []).append(observation)
        return found

    @property
    def machines(self) -> list[str]:
        """What the devices were called, the most frequent first."""
        names = [observation.machine for observation in self.observations if observation.machine != self.device]
        return sorted(set(names), key=lambda name: (-names.count(name), name))


def _kind_alone(step: Step) -> str:
    return ""


def read_history(store: Store, *, device: str, is_binding: bool = False) -> History:
    """The finished steps of the store, as they were timed on one kind of machine.

    device: its device, "cuda". Where the store holds no times of it and the choice is not binding, those of the device that
    it has most of. Of machines that are called differently, those that finished last count.
    """
    records = [record for record in store.glances() if record["step"]["kind"] not in _BY_COORDINATOR]
    spans = [span for record in records if (span := _Span.of(record)) is not None]
    devices = [span.device for span in spans]
    if devices and device not in devices and not is_binding:
        device = max(set(devices), key=devices.count)
    there = [span for span in spans if span.device == device]
    if there:
        newest = max(there, key=lambda span: span.end).machine
        there = [span for span in there if span.machine in (newest, device)]
    shares = {key: seconds for gang in _gangs(there) for key, seconds in _shares(gang).items()}
    kept = [_observation(span, shares[span.record["id"]]) for span in there]
    return History(device, tuple(kept), {record["id"]: record["result"] for record in records})


@dataclass(frozen=True)
class _Span:
    """When a step ran, and where. gang: how many were computed together; start, end: Unix time."""

    record: Mapping[str, Any]
    start: float
    end: float
    gang: int
    host: str
    place: str

    @property
    def device(self) -> str:
        return self.place.partition(":")[0]

    @property
    def machine(self) -> str:
        """What the device is called; a step that did not load torch knows of a GPU only that it is one."""
        return self.record["provenance"].get("device_name") or self.device

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Span | None:
        origin = record["provenance"]
        try:
            times = [datetime.datetime.fromisoformat(origin[key]).timestamp() for key in ("started", "finished")]
            return cls(record, *times, gang=origin["gang"], host=origin["host"], place=origin["device"])
        except (KeyError, TypeError, ValueError):  # of another lorascope, which did not record it
            return None


def _gangs(spans: Iterable[_Span]) -> Iterable[list[_Span]]:
    """Spans that began together on one worker, as those of a gang do."""
    groups: dict[tuple[str, str, str, int], list[list[_Span]]] = {}
    for span in sorted(spans, key=lambda span: span.start):
        kind = span.record["step"]["kind"]
        alike = groups.setdefault((kind, span.host, span.place, span.gang), [])
        last = alike[-1] if alike else None
        if last and span.gang > len(last) and span.start - last[0].start <= _SAME_START_S:
            last.append(span)
        else:
            alike.append([span])
    return (gang for alike in groups.values() for gang in alike)


def _shares(gang: list[_Span]) -> Mapping[str, float]:
    """The time from the first start to the last end, divided by what each run was booked."""
    whole = max(span.end for span in gang) - min(span.start for span in gang)
    weights = [_booked(span.record["result"]) for span in gang]
    total = sum(weights)
    return {
        span.record["id"]: whole * (weight / total if total else 1 / len(gang))
        for span, weight in zip(gang, weights, strict=True)
    }


def _booked(result: Mapping[str, Any]) -> float:
    return float(result.get("training_seconds", 0.0)) + float(result.get("evaluation_seconds", 0.0))


def _observation(span: _Span, seconds: float) -> Observation:
    result = span.record["result"]
    memory = result.get("gang_peak_memory_bytes", result.get("peak_memory_bytes"))
    return Observation(
        step=Step.from_json(span.record["step"]),
        seconds=seconds,
        memory_bytes=None if memory is None else int(memory),
        disk_bytes=sum(span.record["files"].values()),
        device=span.device,
        machine=span.machine,
        workers_on_device=span.record["provenance"].get("workers_on_device", 1),
        result=result,
    )
