"""The study as it was written: what a report says of models, tasks, methods, training, search and hypotheses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorascope.stats.facts.fact import Fact


@dataclass(frozen=True)
class NamedFacts(Fact):
    """A model, or whatever else the study names, by its name."""

    name: str


@dataclass(frozen=True)
class TaskDeclared(NamedFacts):
    """A task, and what it sets for itself. settings: of training. methods: method -> settings of it."""

    protocol: str | None = None
    test_rows: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoppingFacts(Fact):
    """patience: evaluations without gain."""

    patience: int | None = None


@dataclass(frozen=True)
class TrainFacts(Fact):
    """How runs are trained; of a method's own settings, those that it changes."""

    epochs: float | None = None
    batch_size: int | None = None
    max_length: int | None = None
    precision: str | None = None
    schedule: str | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    gradient_clip: float | None = None
    early_stopping: StoppingFacts | None = None


@dataclass(frozen=True)
class MethodFacts(Fact):
    """A method's settings. hyperparameters: "file", where a file set them."""

    name: str = ""
    kind: str = ""
    learning_rate: float | None = None
    rank: int | None = None
    alpha: float | None = None
    sites: tuple[str, ...] = ()
    train: TrainFacts | None = None
    hyperparameters: str | None = None


@dataclass(frozen=True)
class DataCaps(Fact):
    """The most examples of a split that the study uses; None: all."""

    train_examples: int | None = None
    validation_examples: int | None = None
    test_examples: int | None = None


@dataclass(frozen=True)
class SearchDeclared(Fact):
    """How hyper-parameters were searched."""

    sampler: str = ""
    pruning: str = "none"
    seeds: tuple[Any, ...] = ()
    confirm: int = 0
    at_once: int | None = None
    train_examples: int | None = None


@dataclass(frozen=True)
class RelativeFacts(Fact):
    """A margin that is a share of what the other arm reaches."""

    relative: float


@dataclass(frozen=True)
class HypothesisDeclared(Fact):
    """A hypothesis as it was written: the arm under the key of its kind, the arm it is compared with, and the bound."""

    non_inferior: str | None = None
    equivalent: str | None = None
    superior: str | None = None
    lower: str | None = None
    overhead: str | None = None
    to: str | None = None
    than: str | None = None
    over: str | None = None
    on: str | None = None
    margin: float | RelativeFacts | None = None

    @property
    def absolute_margin(self) -> float | None:
        """In the metric's own unit; None where the margin is a share, or there is none."""
        return self.margin if isinstance(self.margin, float | int) else None

    @property
    def subject(self) -> str | None:
        """The arm that the claim is about."""
        named = (self.non_inferior, self.equivalent, self.superior, self.lower, self.overhead)
        return next((arm for arm in named if arm is not None), None)

    @property
    def reference(self) -> str | None:
        """The arm that it is compared with."""
        return self.to or self.than or self.over


@dataclass(frozen=True)
class StudyDeclared(Fact):
    """The study as it was written, without places on a machine."""

    name: str
    question: str
    models: tuple[NamedFacts, ...]
    tasks: tuple[TaskDeclared, ...]
    methods: tuple[MethodFacts, ...]
    protocol: str = "strict"
    train: TrainFacts = field(default_factory=TrainFacts)
    data: DataCaps = field(default_factory=DataCaps)
    search: SearchDeclared | None = None
    hypotheses: Mapping[str, HypothesisDeclared] = field(default_factory=dict)
