"""A search for the lowest score is the search for the highest one, turned over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from lorascope.search.propose import optuna_study, question
from lorascope.search.replay import Attempt, Replay, replay
from lorascope.stats.search import best_so_far, expected_best
from lorascope.study.search import Range, SearchSpec

SPACE: Mapping[str, Any] = {"learning_rate": Range(low=1e-5, high=1e-2, log=True), "dropout": (0.0, 0.1, 0.2)}


def distance(attempt: Attempt) -> float:
    noise = math.sin(12.9898 * (attempt.trial + 1) + 78.233 * attempt.seed) / 100
    return abs(math.log10(attempt.params["learning_rate"]) + 3) + noise + 1 - attempt.stops[-1]


def searched(spec: SearchSpec, *, metric: str, sign: float) -> Replay:
    """One that scores sign * distance; a rate above 5e-3 diverges."""
    known: dict[Attempt, Mapping[str, Any]] = {}
    while (found := replay(spec, SPACE, look_up=known.get)).open:
        for attempt in found.open:
            diverged = "the loss became nan" if attempt.params["learning_rate"] > 5e-3 else None
            value = None if diverged else sign * distance(attempt)
            known[attempt] = {"value": value, "loss": 1.0, "diverged": diverged, "metric": metric}
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "tpe", "trials": 9, "at_once": 3},
        {"sampler": "gp", "trials": 9, "at_once": 3},
        {"pruning": "halving", "trials": 9, "at_once": 3},
        {"pruning": "wilcoxon", "seeds": (11, 12, 13, 14, 15), "trials": 6, "at_once": 2},
    ],
)
def test_lower_is_better_searches_as_higher_is_better_of_the_negative(settings: dict[str, Any]) -> None:
    spec = SearchSpec(**settings)
    lower = searched(spec, metric="perplexity", sign=1.0)
    higher = searched(spec, metric="accuracy", sign=-1.0)
    assert [(t.params, t.state) for t in lower.trials] == [(t.params, t.state) for t in higher.trials]
    assert lower.best is not None and higher.best is not None
    assert lower.best.number == higher.best.number and lower.best.value == -(higher.best.value or 0)
    assert lower.best.value == min(t.value for t in lower.trials if t.value is not None and t.state == "complete")


def test_a_question_names_the_direction_only_where_lower_is_better() -> None:
    """A question is the identity of a kept answer: those that were asked before must stay what they were."""
    spec = SearchSpec(trials=6, at_once=3)
    asked = {
        metric: question(spec, SPACE, told=searched(spec, metric=metric, sign=sign).trials[:3], count=3, number=1)
        for metric, sign in (("accuracy", -1.0), ("perplexity", 1.0))
    }
    assert "direction" not in asked["accuracy"] and asked["perplexity"]["direction"] == "lower"


def test_a_diverged_trial_counts_as_the_highest_perplexity_seen() -> None:
    told = searched(SearchSpec(sampler="random", trials=12, at_once=12), metric="perplexity", sign=1.0).trials
    assert any(trial.state == "diverged" for trial in told)
    study = optuna_study(SPACE, told, direction="lower")
    worst = max(trial.value for trial in told if trial.value is not None)
    values = {trial.number: trial.value for trial in study.trials}
    assert {values[trial.number] for trial in told if trial.state == "diverged"} == {worst}
    assert study.best_value == min(trial.value for trial in told if trial.value is not None)


def test_the_best_so_far_and_the_best_expected_fall_where_lower_is_better() -> None:
    assert best_so_far([None, 5.0, 6.0, None, 4.0], "lower") == [None, 5.0, 5.0, 5.0, 4.0]
    higher = expected_best([-7.0, -9.0, -8.0])
    assert expected_best([7.0, 9.0, 8.0], "lower") == pytest.approx([-value for value in higher])
