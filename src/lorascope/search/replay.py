"""A search as a function of what its trials have given so far, and of nothing else.

The one idea: a search has no state of its own. Replaying it from the trials' artifacts gives the same proposals, the same
survivors and the same next trials wherever and as often as it is done, so a search that was killed goes on by being
replayed, and two coordinators propose alike. A round of proposals is made from the rounds before it alone; who is asked for
it may remember what was proposed before, so that another version of the sampler does not make another search of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, Literal

from lorascope.metrics.metric import Direction
from lorascope.metrics.quality import quality
from lorascope.search.propose import Ask, ask_sampler, points_of_grid, question
from lorascope.search.pruning import RUNGS, is_worse, survivors_of_halving
from lorascope.search.space import Space
from lorascope.study.search import SearchSpec

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
        fields = ("number", "round", "state", "value", "loss")
        return {key: getattr(self, key) for key in fields} | {
            "params": dict(self.params), "by_step": list(self.by_step)
        }  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """How far a search has come. open: the attempts to train now, none if it is over or a trial failed. space: the ranges in
    force, which an extension changes. to_propose: trials not proposed yet."""

    trials: tuple[Trial, ...]
    open: tuple[Attempt, ...]
    space: Space
    to_propose: int

    @property
    def attempts(self) -> Sequence[Attempt]:
        """What has been trained, and what is to be trained now."""
        return [*(attempt for trial in self.trials for attempt in trial.results), *self.open]

    @property
    def is_over(self) -> bool:
        return not self.open and not self.to_propose

    @property
    def best(self) -> Trial | None:
        """The best of the trials that were trained to their end."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return max(complete, key=lambda trial: trial.rank, default=None)


def proposers(trials: Sequence[Trial]) -> str | None:
    """ "optuna 5.0.0"; of several, which proposed which trials, counted from 1; None for a grid."""
    numbers: dict[str, list[int]] = {}
    for trial in trials:
        if trial.proposed_by is not None:
            numbers.setdefault(trial.proposed_by, []).append(trial.number + 1)
    if len(numbers) < 2:
        return next(iter(numbers), None)
    return ", ".join(f"{who} (trials {found[0]} to {found[-1]})" for who, found in numbers.items())


LookUp = Callable[[Attempt], Mapping[str, Any] | None]


def replay(
    spec: SearchSpec, space: Space, *, look_up: LookUp, extension: Space | None = None, ask: Ask = ask_sampler
) -> Replay:
    """The search as far as `look_up` knows its results: a `trial` step's result, None while there is none.

    extension: ranges of one more round, after the others. ask: proposes a round.
    """
    done: list[Trial] = []
    sizes = [min(spec.at_once, spec.trials - start) for start in range(0, spec.trials, spec.at_once)]
    rounds = [(size, space) for size in sizes] + ([(spec.at_once, extension)] if extension else [])
    for number, (size, ranges) in enumerate(rounds):
        trials = _propose(spec, ranges, done, ask, size=size, number=number)
        trials, waiting = _train(trials, spec, done, look_up)
        done += trials
        if waiting:
            left = sum(size for size, _ in rounds[number + 1 :])
            return Replay(tuple(done), tuple(waiting), ranges, left)
    return Replay(tuple(done), (), rounds[-1][1], 0)


def _propose(spec: SearchSpec, space: Space, done: Sequence[Trial], ask: Ask, *, size: int, number: int) -> list[Trial]:
    if spec.sampler == "grid":
        answer = {"proposals": points_of_grid(spec, space)[len(done) : len(done) + size], "proposed_by": None}
    else:
        answer = ask(question(spec, space, told=done, count=size, number=number))
    return [
        Trial(len(done) + index, number, params, proposed_by=answer["proposed_by"])
        for index, params in enumerate(answer["proposals"])
    ]


def stages(spec: SearchSpec) -> list[list[tuple[int, tuple[float, ...]]]]:
    """What a round trains, one stage after the other: (seed, stops) of each attempt. Between stages trials may end."""
    if spec.pruning == "halving":
        return [[(seed, RUNGS[: rung + 1]) for seed in spec.seeds] for rung in range(len(RUNGS))]
    if spec.pruning == "wilcoxon":
        return [[(seed, (1.0,))] for seed in spec.seeds]
    return [[(seed, (1.0,)) for seed in spec.seeds]]


def _train(
    trials: list[Trial], spec: SearchSpec, before: Sequence[Trial], look_up: LookUp
) -> tuple[list[Trial], list[Attempt]]:
    """The round's trials as far as they have come, and the attempts that are wanted now."""
    plan = stages(spec)
    for number, stage in enumerate(plan):
        waiting: list[Attempt] = []
        for index, trial in enumerate(trials):
            if trial.state != "open":
                continue
            attempts = [Attempt(trial.number, trial.params, seed, stops) for seed, stops in stage]
            found = {attempt: result for attempt in attempts if (result := look_up(attempt)) is not None}
            waiting += [attempt for attempt in attempts if attempt not in found]
            if len(found) == len(attempts):
                trials[index] = _scored(trial, found)
        if waiting:
            return trials, waiting
        if number == len(plan) - 1:
            trials = [replace(t, state="complete") if t.state == "open" else t for t in trials]
        else:
            survivors = {t.number for t in _survivors(trials, spec, before, stage=number)}
            trials = [
                replace(t, state="pruned") if t.state == "open" and t.number not in survivors else t for t in trials
            ]
    return trials, []


def _scored(trial: Trial, found: Mapping[Attempt, Mapping[str, Any]]) -> Trial:
    """The trial after one more stage. One seed that diverged is a trial that diverged."""
    results = {**trial.results, **found}
    trial = replace(trial, direction=direction_of(found.values()))
    if any(result["diverged"] for result in found.values()):
        return replace(trial, state="diverged", value=None, loss=None, results=results)
    last = {attempt.seed: result for attempt, result in results.items()}  # a later stop of a seed supersedes an earlier
    stage = mean(result["value"] for result in found.values())
    return replace(
        trial,
        value=mean(result["value"] for result in last.values()),
        loss=mean(result["loss"] for result in last.values()),
        by_step=(*trial.by_step, stage),
        results=results,
    )


def direction_of(results: Iterable[Mapping[str, Any]]) -> Direction:
    """Which scores are better, by the metric that the results of trials name."""
    metric = next((result["metric"] for result in results if "metric" in result), None)
    return "higher" if metric is None else quality(metric).direction


def _survivors(trials: Sequence[Trial], spec: SearchSpec, before: Sequence[Trial], *, stage: int) -> Sequence[Trial]:
    alive = [trial for trial in trials if trial.state == "open"]
    if spec.pruning == "wilcoxon":
        return [trial for trial in alive if not is_worse(trial, before=before)]
    return survivors_of_halving(alive, before=before, stage=stage)
