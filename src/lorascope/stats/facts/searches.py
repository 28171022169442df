"""What searches for hyper-parameters tried and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.stats.facts.fact import Fact


@dataclass(frozen=True)
class TrialFacts(Fact):
    """One trial of a search. value: its last score, None where it diverged. state: complete, pruned or diverged."""

    number: int
    state: str
    params: Mapping[str, Any]
    value: float | None = None
    tokens: int = 0
    unpruned_tokens: int = 0
    updates: int = 0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    num_seeds: int = 1


@dataclass(frozen=True)
class OptimumFacts(Fact):
    """The best trial."""

    number: int
    params: Mapping[str, Any]
    value: float


@dataclass(frozen=True)
class EdgeFacts(Fact):
    """A setting whose optimum lies at an end of its range. further: an end that would show whether there is a better one."""

    name: str
    side: str
    value: Any
    further: Any


@dataclass(frozen=True)
class SearchFacts(Fact):
    """A search that ended. space: setting -> its range, or its values. proposed_by: library and version, None of a grid.
    importance: setting -> share of the variance of the scores, None where there is nothing to divide."""

    model: str
    task: str
    method: str
    metric: str
    space: Mapping[str, Any]
    trials: tuple[TrialFacts, ...]
    extended: bool = False
    optimum: OptimumFacts | None = None
    edges: tuple[EdgeFacts, ...] = ()
    importance: Mapping[str, float] | None = None
    importance_of: str | None = None
    proposed_by: str | None = None

    @property
    def tried(self) -> tuple[TrialFacts, ...]:
        """One trial for each setting: a sampler may propose one again, which trains nothing and shows nothing new. Of copies,
        the one that was trained furthest."""
        furthest: dict[str, TrialFacts] = {}
        for trial in self.trials:
            setting = repr(sorted(trial.params.items()))
            if setting not in furthest or trial.updates > furthest[setting].updates:
                furthest[setting] = trial
        return tuple(furthest.values())
