"""What was found besides numbers: data, runs, gates, baselines, published figures, failures, machines and versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from lorascope.stats.facts.declared import MethodFacts
from lorascope.stats.facts.fact import Fact


@dataclass(frozen=True)
class BalanceFacts(Fact):
    """How often each class, or whatever else a task's examples fall into, occurs. names: in the task's order. counts: split
    -> name -> examples. of: what the names are."""

    names: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    of: str = "label"


@dataclass(frozen=True)
class DataFacts(Fact):
    """The data of a task. num_examples, sha256, example_ids_sha256: by split. truncated_fraction: model -> split -> share.
    duplicates: "SPLIT~SPLIT" -> texts in both. protocol: None in older records: the study's. dropped_parts: examples taken out
    of train that are parts of examples of another split. unit: what the size of an example counts. balance: None for a task
    whose examples fall into no classes."""

    num_examples: Mapping[str, int]
    source: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    example_ids_sha256: Mapping[str, str] = field(default_factory=dict)
    duplicates: Mapping[str, int] = field(default_factory=dict)
    dropped_duplicates: int = 0
    truncated_fraction: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unit: str = "token"
    protocol: str | None = None
    dropped_parts: int = 0
    balance: BalanceFacts | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The balance may stand there as `label_names` and `label_counts`, as classification writes it."""
        if "balance" not in data and data.get("label_names"):
            data = {**data, "balance": {"names": data["label_names"], "counts": data["label_counts"]}}
        return super().from_json(data)


@dataclass(frozen=True)
class UpdateFacts(Fact):
    """How a run's updates were computed. problem: why they were not captured as CUDA graphs; remark: why not compiled."""

    problem: str | None = None
    remark: str | None = None


@dataclass(frozen=True)
class HeadFacts(Fact):
    """Where the layers of a run's head come from. drawn: from the run's seed. kept: from the checkpoint. replaced: tensors of
    the drawn layers that the checkpoint has for another task -> their shape there."""

    drawn: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    replaced: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts(Fact):
    """A trained run: what it is, what it was trained with, what it took. None: not measured."""

    run: str
    model: str
    task: str
    method: str
    seed: Any
    device: str | None = None
    precision: str | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    updates: int | None = None
    best_update: int | None = None
    stopped_early: bool | None = None
    resumed: int | None = None
    gang: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    training_seconds: float | None = None
    step_ms_median: float | None = None
    tokens_per_second: float | None = None
    padding_fraction: float | None = None
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    export_bytes: int | None = None
    energy_joules: float | None = None
    step: UpdateFacts = field(default_factory=UpdateFacts)
    head: HeadFacts | None = None


@dataclass(frozen=True)
class GateFacts(Fact):
    """A check without which numbers mean nothing. seed: None where it is of an arm."""

    gate: str
    passed: bool
    model: str | None = None
    task: str | None = None
    method: str | None = None
    seed: Any = None
    value: float | None = None
    threshold: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class BaselineFacts(Fact):
    """A baseline's score: the mean over its seeds, and each."""

    model: str | None
    task: str
    name: str
    metric: str
    mean: float
    sd: float | None
    values: tuple[float, ...]
    num_examples: int


@dataclass(frozen=True)
class PublishedFacts(Fact):
    """A figure from the literature, and in which setting it was found."""

    task: str
    model: str
    method: str
    metric: str
    value: float
    setting: str
    citation: str


@dataclass(frozen=True)
class FailureFacts(Fact):
    """A step that failed. error: the name of its class; text: what it said."""

    step: str
    kind: str
    error: str
    text: str
    model: str | None = None
    task: str | None = None
    method: str | None = None
    seed: Any = None


@dataclass(frozen=True)
class ProvenanceFacts(Fact):
    """On which machines, from which code and by which versions the numbers were made."""

    started: str | None = None
    finished: str | None = None
    command: str | None = None
    hardware: Mapping[str, Any] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GapFacts(Fact):
    """An arm's score by the strict protocol and by the literature's."""

    model: str
    task: str
    method: str
    strict: float | None
    paper: float | None


@dataclass(frozen=True)
class NotMeasuredFacts(Fact):
    """A part of a measure that could not be measured, and why."""

    model: str
    task: str
    method: str
    what: str
    why: str


@dataclass(frozen=True)
class DriftDefinition(Fact):
    """What the drift in one number of a (model, task) is: by which pooling, and over how many layers of the residual stream.
    poolings: all that were measured, that one first. left_out: pooling -> layers below `least_effective_rank` in the base,
    which averages leave out (None: no layer's rank was looked at)."""

    model: str
    task: str
    pooling: str
    poolings: tuple[str, ...] = ()
    num_layers: int = 0
    left_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    least_effective_rank: float | None = None


@dataclass(frozen=True)
class TunedFacts(Fact):
    """What the runs of an arm were trained with, where a search or a file set some of it."""

    model: str
    task: str
    method: str
    settings: MethodFacts
