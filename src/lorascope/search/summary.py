"""The `search` step: what one search tried, what it cost, what it found, and which settings mattered.

It reads the records of the trials; nothing is trained. Its result is all that a report knows of the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lorascope.engine.context import StepContext
from lorascope.search.propose import optuna_or_problem, optuna_study
from lorascope.search.replay import Replay, Trial, direction_of
from lorascope.search.space import Space, dimension_of, edges
from lorascope.search.trial import forget_states
from lorascope.search.trials import distinct

_FEWEST_FOR_IMPORTANCE = 6
_SPENT = ("tokens", "updates", "training_seconds", "evaluation_seconds")


def summarise_search(context: StepContext) -> dict[str, Any]:
    """params: search, space, trials (search/literals.py), extended; deps: the trials, by role."""
    params = context.step.params
    space = {name: dimension_of(literal) for name, literal in params["space"].items()}
    records = [{role: context.deps[role].result for role in trial["roles"]} for trial in params["trials"]]
    direction = direction_of(record for of_trial in records for record in of_trial.values())
    trials = [
        Trial(**{k: v for k, v in trial.items() if k != "roles"}, direction=direction) for trial in params["trials"]
    ]
    num_seeds = len(params["search"]["seeds"])
    best = Replay(tuple(trials), (), space, 0).best
    for artifact in context.deps.values():
        forget_states(context.cache_dir, artifact.step)
    return {
        "metric": next(record["metric"] for of_trial in records for record in of_trial.values()),
        "space": params["space"],
        "extended": params["extended"],
        "trials": [
            {**trial.to_json(), **_cost(trial, of, num_seeds=num_seeds)}
            for trial, of in zip(trials, records, strict=True)
        ],
        "optimum": None if best is None else {"number": best.number, "params": best.params, "value": best.value},
        "edges": [] if best is None else [asdict(edge) for edge in edges(space, best.params)],
        **_importance(space, distinct(trials)),
    }


def _cost(trial: Trial, records: Mapping[str, Mapping[str, Any]], *, num_seeds: int) -> dict[str, Any]:
    """What a trial took, all its seeds and stages together; records: by role. tokens: trained on, those that a stage went
    over again included. unpruned_tokens: those of the same trial without pruning: its own if it was trained to its end,
    else the whole training with every seed."""
    by_seed: dict[str, list[Mapping[str, Any]]] = {}
    for name, record in records.items():
        by_seed.setdefault(name.split(":")[2], []).append(record)
    first, last = next(iter(records.values())), [stages[-1] for stages in by_seed.values()]
    spent = {key: sum(_spent(key, stages) for stages in by_seed.values()) for key in _SPENT}
    whole = trial.state != "pruned"
    return {
        **spent,
        "unpruned_tokens": sum(r["tokens"] for r in last) if whole else first["planned_tokens"] * num_seeds,
        "planned_updates": first["planned_updates"],
        "gang": max(record["gang"] for record in records.values()),
        "examples": first["examples"],
        "diverged": next((record["diverged"] for record in last if record["diverged"]), None),
        "curve": (by_seed[next(iter(by_seed))] if trial.num_seeds > 1 else last)[-1]["curve"],
    }


def _spent(key: str, stages: Sequence[Mapping[str, Any]]) -> float:
    """A figure of which each stage knows the sum since the beginning; one that began anew spent all of it again."""
    pairs = zip(stages, [None, *stages[:-1]], strict=True)
    return sum(record[key] - (before[key] if before and record["taken_up"] else 0) for record, before in pairs)


def _importance(space: Space, trials: Sequence[Trial]) -> dict[str, Any]:
    """Shares of the variance of the score (fANOVA; Hutter et al. 2014). importance_of: "score", or "first look" where pruning
    left too few finished trials; None, with the reason, where there is nothing to divide."""
    complete = [trial for trial in trials if trial.state == "complete"]
    basis, values = "score", {trial.number: trial.value for trial in complete}
    if len(complete) < _FEWEST_FOR_IMPORTANCE:
        basis, values = "first look", {trial.number: trial.by_step[0] for trial in trials if trial.by_step}
    if len(values) < _FEWEST_FOR_IMPORTANCE:
        return {"importance": None, "importance_of": f"fewer than {_FEWEST_FOR_IMPORTANCE} trials have a score"}
    if len(set(values.values())) == 1:
        return {"importance": None, "importance_of": "all trials score alike"}
    optuna = optuna_or_problem()
    told = [
        Trial(trial.number, trial.round, trial.params, "complete", values[trial.number])
        for trial in trials
        if trial.number in values
    ]
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(optuna_study(space, told), evaluator=evaluator)
    return {"importance": {name: float(found[name]) for name in space}, "importance_of": basis}
