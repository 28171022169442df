"""Optuna's part: proposals from the trials told so far, and the pruner over seeds.

An `optuna.Study` lives as long as one call. It is filled with the finished trials and asked for a round; its sampler is
seeded by the study's `proposal_seed` and the number of the round, so it needs no memory. Only here is optuna imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.errors import EnvironmentProblem
from lorascope.search.space import Space, grid, rounded
from lorascope.study.hyperparameters import is_whole
from lorascope.study.search import Range, SearchSpec

if TYPE_CHECKING:
    import optuna

    from lorascope.search.replay import Trial


def propose(spec: SearchSpec, space: Space, *, told: Sequence[Trial], count: int, number: int) -> list[dict[str, Any]]:
    """The hyper-parameters of the trials of round `number`, given those of the rounds before."""
    if spec.sampler == "grid":
        points = list(grid(space))
        order = np.random.default_rng(spec.proposal_seed).permutation(len(points))
        if spec.trials == len(points):
            order = np.arange(len(points))
        return [points[index] for index in order[len(told) : len(told) + count]]
    key = repr((spec, space, [(t.params, t.state, t.value, t.by_step) for t in told], count, number))
    if key not in _PROPOSED:
        _PROPOSED[key] = _asked(spec, space, told, count, number)
    return _PROPOSED[key]


_PROPOSED: dict[str, list[dict[str, Any]]] = {}
"""What this process has asked before: a replay asks again for every round it has been through, and an answer is a function of
the question."""


def _asked(spec: SearchSpec, space: Space, told: Sequence[Trial], count: int, number: int) -> list[dict[str, Any]]:
    study = optuna_study(space, told, sampler=_sampler(spec, number))
    distributions = _distributions(space)
    asked = [study.ask(distributions) for _ in range(count)]
    return [{name: rounded(name, trial.params[name], space[name]) for name in space} for trial in asked]


def optuna_study(space: Space, told: Sequence[Trial], *, sampler: Any = None) -> optuna.Study:
    """An `optuna.Study` that has seen these trials. One that diverged counts as the worst score seen, so that every sampler
    learns to keep away from it. One that was pruned keeps its values by step; tree-structured Parzen estimators rank it below
    every finished trial, so beside pruned ones a diverged one is pruned without any value, the lowest of all. Those outside
    `space` (a search whose ranges were extended keeps its earlier trials) are inside its new ranges by construction."""
    optuna = optuna_or_problem()
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = _distributions(space)
    scores = [trial.value for trial in told if trial.value is not None]
    worst = min(scores, default=0.0)
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


def pruned_by_wilcoxon(trial: Trial, *, told: Sequence[Trial]) -> bool:
    """Whether the trial is worse than the best finished one by a signed-rank test over the seeds it has been trained with."""
    optuna = optuna_or_problem()
    complete = [other for other in told if other.state == "complete"]
    if not complete:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner()
    study = optuna.create_study(direction="maximize", pruner=pruner)
    best = max(complete, key=lambda other: other.rank)
    study.add_trial(optuna.trial.create_trial(value=best.value, intermediate_values=dict(enumerate(best.by_step))))
    running = study.ask()
    for step, value in enumerate(trial.by_step):
        running.report(value, step)
    return running.should_prune()


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


def _sampler(spec: SearchSpec, number: int) -> Any:
    samplers = optuna_or_problem().samplers
    seed = int(np.random.SeedSequence([spec.proposal_seed, number]).generate_state(1)[0])
    if spec.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if spec.sampler == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=spec.at_once)
    return samplers.TPESampler(seed=seed, n_startup_trials=spec.at_once, constant_liar=True)


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
