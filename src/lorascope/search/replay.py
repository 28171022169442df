"""A search as a function of what its trials have given so far, and of nothing else.

The one idea: a search has no state of its own. Replaying it from the trials' artifacts gives the same proposals, the same
survivors and the same next trials wherever and as often as it is done, so a search that was killed goes on by being
replayed, and two coordinators propose alike. A round of proposals is made from the rounds before it alone; who is asked for
it may remember what was proposed before, so that another version of the sampler does not make another search of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from lorascope.metrics.metric import Direction
from lorascope.metrics.quality import quality
from lorascope.search.propose import Ask, ask_sampler, points_of_grid, question
from lorascope.search.pruning import RUNGS, is_worse, survivors_of_halving
from lorascope.search.space import Space
from lorascope.search.trials import Attempt as Attempt
from lorascope.search.trials import State as State
from lorascope.search.trials import Trial as Trial
from lorascope.search.trials import distinct
from lorascope.study.search import SearchSpec


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
        """The best of the trials that were trained to their end, and with the most seeds."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        most = max((trial.num_seeds for trial in complete), default=0)
        return max((t for t in complete if t.num_seeds == most), key=lambda trial: trial.rank, default=None)


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
    done, waiting = _confirm(done, spec, look_up)
    return Replay(tuple(done), tuple(waiting), rounds[-1][1], 0)


def _confirm(done: list[Trial], spec: SearchSpec, look_up: LookUp) -> tuple[list[Trial], list[Attempt]]:
    """The best trials with their further seeds, and what of these is wanted now. Copies of a setting are one finalist. One
    seed that diverges takes its trial out, and the others stay. A trial that is the last left needs no choice."""
    complete = sorted(
        (trial for trial in distinct(done) if trial.state == "complete"), key=lambda t: t.rank, reverse=True
    )
    finalists = complete[: spec.confirm] if spec.confirming_seeds and len(complete) > 1 else []
    waiting: list[Attempt] = []
    for trial in finalists:
        attempts = [Attempt(trial.number, trial.params, seed, (1.0,)) for seed in spec.confirming_seeds]
        found = {attempt: result for attempt in attempts if (result := look_up(attempt)) is not None}
        waiting += [attempt for attempt in attempts if attempt not in found]
        if len(found) == len(attempts):
            done[trial.number] = replace(_scored(trial, found), by_step=trial.by_step, num_seeds=1 + len(attempts))
    return done, waiting


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
