"""What a plan hands to a measure: the models and trained arms that its steps look at, and what the steps are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorascope.engine.step import Step


@dataclass(frozen=True)
class RunLabel:
    """What a step is called in this study: names a person chose, no part of any identity. None: not specific to one."""

    model: str | None = None
    task: str | None = None
    method: str | None = None
    seed: str | None = None

    def __str__(self) -> str:
        return " / ".join(part for part in (self.model, self.task, self.method, self.seed) if part)


@dataclass(frozen=True)
class KnownEngine:
    """The engine that serves a study's models: its name and version, and where its interpreter lies."""

    identity: dict[str, str]
    locations: dict[str, str]


@dataclass(frozen=True)
class PlannedModel:
    """A base model: its name in the study, what it is, and where its files lie. engine: what serves it; None where nothing
    does, or its version was never seen."""

    name: str
    identity: dict[str, Any]
    locations: dict[str, str]
    engine: KnownEngine | None = None


@dataclass(frozen=True)
class TrainedArms:
    """The steps of a (model, task). inputs: its data and tokens. trained: method -> its train steps, in order of seeds;
    a method whose search goes on is absent. is_prepared: False where its data or tokens failed, so that what other tasks
    need of it will not come."""

    task: str
    inputs: dict[str, str]
    trained: dict[str, list[Step]]
    is_prepared: bool = True
