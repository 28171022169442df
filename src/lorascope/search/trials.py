"""What a search tries: a trial, and each training of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lorascope.metrics.metric import Direction

State = Literal["open", "complete", "pruned", "diverged", "failed"]


@dataclass(frozen=True)
class Attempt:
    """One training of a trial: with one of the search's seeds, as far as the last of `stops` (shares of its updates), and
    scored at each."""

    trial: int
    params: Mapping[str, Any] = field(compare=False)  # the trial's, whose number says it all
    seed: int
    stops: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """params: the hyper-parameters. results: attempt -> what its step gave, as far as there is anything. value, loss: means
    over seeds of the best validation score and its loss, of as much as was trained; None before, and of a diverged one.
    num_seeds: 1, or more where the best trials were confirmed with further seeds.
    by_step: what the value was at each rung or seed. proposed_by: the library and its version; None for a point of a grid.
    direction: which values are better; known once there is a result."""

    number: int
    round: int
    params: Mapping[str, Any]
    state: State = "open"
    value: float | None = None
    loss: float | None = None
    by_step: tuple[float, ...] = ()
    results: Mapping[Attempt, Mapping[str, Any]] = field(default_factory=dict)
    proposed_by: str | None = None
    num_seeds: int = 1
    direction: Direction = "higher"

    @property
    def rank(self) -> tuple[float, float, int]:
        """What makes one trial better than another: the score, then the loss, then having come first."""
        assert self.value is not None
        return self.gain(self.value), -(self.loss or 0.0), -self.number

    def gain(self, value: float) -> float:
        """A score of this search as a number of which more is better."""
        return value if self.direction == "higher" else -value

    def to_json(self) -> dict[str, Any]:
        """All but the results, their direction, and who proposed it, which is no part of what was tried."""
        fields = ("number", "round", "state", "value", "loss", "num_seeds")
        return {key: getattr(self, key) for key in fields} | {
            "params": dict(self.params), "by_step": list(self.by_step)
        }  # fmt: skip


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """One trial for each setting: a copy trains nothing and shows nothing new. Of copies, the one that was trained furthest."""
    furthest: dict[str, Trial] = {}
    for trial in trials:
        setting = repr(sorted(trial.params.items()))
        if setting not in furthest or len(trial.by_step) > len(furthest[setting].by_step):
            furthest[setting] = trial
    return list(furthest.values())
