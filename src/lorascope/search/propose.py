"""Optuna's part: a round of proposals from the trials told so far.

An `optuna.Study` lives as long as one call. It is filled with the finished trials and asked for a round; its sampler is
seeded by the study's `proposal_seed` and the number of the round, so it needs no memory. A question is literals, so that
its answer can be kept: another version of Optuna may answer otherwise. Only here is optuna imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.engine.step import canonical_json
from lorascope.errors import EnvironmentProblem
from lorascope.metrics.metric import Direction
from lorascope.search.space import Space, as_literal, dimension_of, grid, rounded
from lorascope.study.hyperparameters import is_whole
from lorascope.study.search import Range, SearchSpec

if TYPE_CHECKING:
    import optuna

    from lorascope.engine.context import StepContext
    from lorascope.search.trials import Trial


Question = Mapping[str, Any]
"""A round that is to be proposed, as literals: all that the proposals depend on but the version of the sampler."""
Ask = Callable[[Question], Mapping[str, Any]]


def question(spec: SearchSpec, space: Space, *, told: Sequence[Trial], count: int, number: int) -> Question:
    """What is asked for round `number` of `count` trials, given the trials of the rounds before it. space is a list, because
    a sampler draws the settings in their order. direction: there only where lower is better, so that what was asked before
    there was a direction is still the same question."""
    asked = {
        "sampler": spec.sampler,
        "proposal_seed": spec.proposal_seed,
        "at_once": spec.at_once,
        "space": [[name, as_literal(dimension)] for name, dimension in space.items()],
        "told": [
            {"params": dict(t.params), "state": t.state, "value": t.value, "by_step": list(t.by_step)} for t in told
        ],
        "count": count,
        "round": number,
    }
    is_lower = any(trial.direction == "lower" for trial in told)
    return {**asked, "direction": "lower"} if is_lower else asked


def propose_round(context: StepContext) -> dict[str, Any]:
    """The `proposals` step. params: the question. Raises EnvironmentProblem where Optuna is not installed."""
    return dict(ask_sampler(context.step.params))


def ask_sampler(asked: Question) -> Mapping[str, Any]:
    """{"proposals": the hyper-parameters of each trial, "proposed_by": the library and its version}."""
    key = canonical_json(asked)
    if key not in _ANSWERS:
        _ANSWERS[key] = {
            "proposals": _proposals(asked),
            "proposed_by": f"optuna {optuna_or_problem().__version__}",
        }
    return _ANSWERS[key]


_ANSWERS: dict[str, Mapping[str, Any]] = {}
"""What this process has asked before: a replay asks again for every round it has been through that no store holds, and an
answer is a function of the question."""


def points_of_grid(spec: SearchSpec, space: Space) -> list[dict[str, Any]]:
    """The points that a grid tries, in their order: all as written, or a random part of them."""
    points = list(grid(space))
    if spec.trials == len(points):
        return points
    order = np.random.default_rng(spec.proposal_seed).permutation(len(points))
    return [points[index] for index in order[: spec.trials]]


def _proposals(asked: Question) -> list[dict[str, Any]]:
    space = {name: dimension_of(literal) for name, literal in asked["space"]}
    sampler = _sampler(asked["sampler"], seed=asked["proposal_seed"], number=asked["round"], startup=asked["at_once"])
    told = [_told(trial, space) for trial in asked["told"]]
    study = optuna_study(space, told, direction=asked.get("direction", "higher"), sampler=sampler)
    distributions = _distributions(space)
    trials = [study.ask(distributions) for _ in range(asked["count"])]
    return [{name: rounded(name, trial.params[name], space[name]) for name in space} for trial in trials]


@dataclass(frozen=True)
class Told:
    """A trial as far as a sampler is told of it."""

    params: Mapping[str, Any]
    state: str
    value: float | None
    by_step: Sequence[float] = ()


def _told(trial: Mapping[str, Any], space: Space) -> Told:
    params = {name: trial["params"][name] for name in space}
    return Told(params, trial["state"], trial["value"], trial["by_step"])


def optuna_study(
    space: Space, told: Sequence[Trial | Told], *, direction: Direction = "higher", sampler: Any = None
) -> optuna.Study:
    """An `optuna.Study` that has seen these trials. One that diverged counts as the worst score seen, so that every sampler
    learns to keep away from it. One that was pruned keeps its values by step; tree-structured Parzen estimators rank it below
    every finished trial, so beside pruned ones a diverged one is pruned without any value, the lowest of all. Those outside
    `space` (a search whose ranges were extended keeps its earlier trials) are inside its new ranges by construction."""
    optuna = optuna_or_problem()
    is_higher = direction == "higher"
    study = optuna.create_study(direction="maximize" if is_higher else "minimize", sampler=sampler)
    distributions = _distributions(space)
    scores = [trial.value for trial in told if trial.value is not None]
    worst = (min if is_higher else max)(scores, default=0.0)
    has_pruned = any(trial.state == "pruned" for trial in told) and not isinstance(sampler, optuna.samplers.GPSampler)
    for trial in told:
        is_lowest = has_pruned and trial.state == "diverged"
        if trial.state == "pruned" or is_lowest:
            outcome: dict[str, Any] = {"state": optuna.trial.TrialState.PRUNED}
        else:
            outcome = {"value": worst if trial.value is None else trial.value}
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(trial.params),
                distributions=distributions,
                intermediate_values={} if is_lowest else dict(enumerate(trial.by_step)),
                **outcome,
            )
        )
    return study


def optuna_or_problem() -> Any:
    """The library, told to keep quiet. Raises EnvironmentProblem where it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise EnvironmentProblem(
            "the study searches hyper-parameters, for which optuna is not installed",
            hint='pip install "lorascope[search]"',
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _sampler(name: str, *, seed: int, number: int, startup: int) -> Any:
    """startup: how many trials are drawn before it learns from them."""
    samplers = optuna_or_problem().samplers
    seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup)
    return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


def _distributions(space: Space) -> dict[str, Any]:
    made = optuna_or_problem().distributions
    found: dict[str, Any] = {}
    for name, dimension in space.items():
        if not isinstance(dimension, Range):
            found[name] = made.CategoricalDistribution(dimension)
        elif is_whole(name, dimension):
            found[name] = made.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            found[name] = made.FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)
    return found
