"""What serving found besides its figures: gates, engines, failures, settings tried, and what merging changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorascope.stats.facts.fact import Fact


@dataclass(frozen=True)
class ServedGateFacts(Fact):
    """Whether a started engine answers what its arm's runs answer offline. n: tokens or examples compared."""

    model: str
    arm: str
    workload: str
    what: str
    value: float
    tolerance: float
    passed: bool
    n: int
    setting: str = "default"
    detail: str | None = None


@dataclass(frozen=True)
class EngineFacts(Fact):
    """An engine process that ran. settings: as it reports them. head: where the head is, in the adapter or the model."""

    model: str
    arm: str
    workload: str
    setting: str = "default"
    engine: str = ""
    device: str | None = None
    device_name: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineFailureFacts(Fact):
    """An engine process that failed, and why. repeat: the first is 0."""

    model: str
    arm: str
    workload: str
    text: str
    setting: str = "default"
    repeat: int | None = None


@dataclass(frozen=True)
class LeverTrialFacts(Fact):
    """A setting that a search for a faster one tried: the engine's levers that it changes (none: the default), the time
    of a batch by its size, and what became of it."""

    model: str
    arm: str
    workload: str
    levers: tuple[str, ...]
    outcome: str
    reason: str
    chosen: bool
    batch_ms: Mapping[str, float] = field(default_factory=dict)
    cost_ms: float | None = None


@dataclass(frozen=True)
class MergingFacts(Fact):
    """What merging alone changes of an adapter's answers. what: which two are compared. n: examples."""

    model: str
    workload: str
    what: str
    dtype: str
    max_abs_logit_difference: float
    max_probability_difference: float
    flip_rate: float
    n: int


@dataclass(frozen=True)
class ServingFacts(Fact):
    """What serving found besides its figures."""

    gates: tuple[ServedGateFacts, ...] = ()
    engines: tuple[EngineFacts, ...] = ()
    failures: tuple[EngineFailureFacts, ...] = ()
    trials: tuple[LeverTrialFacts, ...] = ()
    merging: tuple[MergingFacts, ...] = ()
