"""What the parts of a plan are called, and what one part of it hands to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.engine.step import Step

VERSIONS: Mapping[str, int] = {
    "data": 1, "tokens": 1, "baseline": 2, "sanity": 3, "train": 4, "evaluate": 1, "drift": 3, "serving": 4,
    "analysis": 8, "calibration": 2, "proposals": 1, "trial": 1, "search": 1,
}  # fmt: skip

SEARCH = "search"
"""Stands for the seed in the name of what only a search needs: its capped data, its gates."""


@dataclass(frozen=True)
class RunLabel:
    """What a step is called in this study: names a person chose, not part of any identity. None: not specific to one."""

    model: str | None = None
    task: str | None = None
    method: str | None = None
    seed: str | None = None

    def __str__(self) -> str:
        return " / ".join(part for part in (self.model, self.task, self.method, self.seed) if part)


@dataclass(frozen=True)
class PlannedModel:
    """A base model: its name in the study, what it is, and where its files lie."""

    name: str
    identity: dict[str, Any]
    locations: dict[str, str]


@dataclass(frozen=True)
class TrainedArms:
    """The steps of a (model, task). inputs: its data and tokens. trained: method -> its train steps, in order of seeds;
    a method whose search goes on is absent."""

    task: str
    inputs: dict[str, str]
    trained: dict[str, list[Step]]
