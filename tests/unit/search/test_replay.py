"""A search as a function of its results: determinism, budgets, pruning, divergence, edges."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from environment import ENVIRONMENT

from lorascope.search import propose
from lorascope.search.pruning import REDUCTION, RUNGS, is_worse
from lorascope.search.replay import Attempt, Replay, Trial, replay
from lorascope.search.space import edges, extended
from lorascope.study.search import Range, SearchSpec

SPACE: Mapping[str, Any] = {
    "learning_rate": Range(low=1e-5, high=1e-2, log=True),
    "alpha": Range(low=8, high=64),
    "dropout": (0.0, 0.1, 0.2),
}
Objective = Callable[[Attempt], float | None]


def score(attempt: Attempt) -> float:
    """Best at a rate of 1e-3; noise that depends on trial and seed; better the longer it is trained."""
    distance = abs(math.log10(attempt.params["learning_rate"]) + 3)
    noise = math.sin(12.9898 * (attempt.trial + 1) + 78.233 * attempt.seed) / 100
    return 1 - distance / 5 + noise - 0.1 * (1 - attempt.stops[-1])


def result(value: float | None) -> Mapping[str, Any]:
    if value is None:
        return {"value": None, "loss": None, "diverged": "the training loss became nan"}
    return {"value": value, "loss": 1 - value, "diverged": None}


def carry_out(
    spec: SearchSpec, objective: Objective = score, *, order: int = 1, extension: Any = None
) -> tuple[Replay, list[Attempt]]:
    """Trains what is open until nothing is; order -1: the last first, one at a time."""
    known: dict[Attempt, Mapping[str, Any]] = {}
    trained: list[Attempt] = []
    while True:
        found = replay(spec, SPACE, look_up=known.get, extension=extension)
        if not found.open:
            return found, trained
        wanted = found.open if order == 1 else found.open[-1:]
        for attempt in wanted:
            known[attempt] = result(objective(attempt))
            trained.append(attempt)


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_the_same_results_give_the_same_search_in_whatever_order_they_come(sampler: Any) -> None:
    spec = SearchSpec(sampler=sampler, trials=9, at_once=3)
    straight, _ = carry_out(spec)
    propose._ANSWERS.clear()
    piecemeal, _ = carry_out(spec, order=-1)
    assert straight == piecemeal
    assert straight.is_over
    assert [trial.round for trial in straight.trials] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_replay_needs_no_memory_of_its_process() -> None:
    """What a killed coordinator proposed is what the next one proposes."""
    spec = SearchSpec(trials=4, at_once=2)
    here, _ = carry_out(spec)
    program = (
        "import sys; sys.path[:0] = ['tests/support', 'tests/unit/search']\n"
        "from test_replay import *\n"
        "print([dict(t.params) for t in carry_out(SearchSpec(trials=4, at_once=2))[0].trials])"
    )
    there = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str([dict(trial.params) for trial in here.trials])


def test_rounds_after_the_first_learn_and_another_seed_proposes_otherwise() -> None:
    spec = SearchSpec(trials=6, at_once=3)
    (a, _), (b, _) = carry_out(spec), carry_out(spec, lambda attempt: -score(attempt))
    assert [t.params for t in a.trials[:3]] == [t.params for t in b.trials[:3]], "the first round knows nothing"
    assert [t.params for t in a.trials[3:]] != [t.params for t in b.trials[3:]]
    other, _ = carry_out(SearchSpec(trials=6, at_once=3, proposal_seed=1))
    assert [t.params for t in a.trials[:3]] != [t.params for t in other.trials[:3]]


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_proposals_lie_in_their_ranges_with_four_digits(sampler: Any) -> None:
    found, _ = carry_out(SearchSpec(sampler=sampler, trials=6, at_once=3))
    for trial in found.trials:
        assert set(trial.params) == set(SPACE)
        assert 1e-5 <= trial.params["learning_rate"] <= 1e-2
        assert float(f"{trial.params['learning_rate']:.4g}") == trial.params["learning_rate"]
        assert type(trial.params["alpha"]) is int and 8 <= trial.params["alpha"] <= 64
        assert trial.params["dropout"] in SPACE["dropout"]


def test_a_grid_tries_every_point_once_in_the_order_written() -> None:
    space = {"learning_rate": (1e-4, 1e-3), "alpha": (8, 16, 32)}
    spec = SearchSpec(sampler="grid", trials=6, at_once=4)
    known: dict[Attempt, Mapping[str, Any]] = {}
    while (found := replay(spec, space, look_up=known.get)).open:
        known.update({attempt: result(score(attempt)) for attempt in found.open})
    points = [tuple(trial.params.values()) for trial in found.trials]
    assert points == [(1e-4, 8), (1e-4, 16), (1e-4, 32), (1e-3, 8), (1e-3, 16), (1e-3, 32)]
    part = replay(spec.model_copy(update={"trials": 4}), space, look_up=known.get)
    assert len({tuple(trial.params.values()) for trial in part.trials}) == 4


def test_every_trial_is_trained_with_every_seed_and_scored_by_their_mean() -> None:
    found, trained = carry_out(SearchSpec(trials=4, at_once=2, seeds=(7, 8, 9)))
    assert len(trained) == 12
    for trial in found.trials:
        values = [score(attempt) for attempt in trained if attempt.trial == trial.number]
        assert trial.value == pytest.approx(sum(values) / 3)
    assert found.best is not None
    assert found.best.value == max(trial.value or 0 for trial in found.trials)


def test_of_equal_scores_the_lower_loss_and_then_the_first_trial_wins() -> None:
    spec = SearchSpec(trials=3, at_once=3)
    alike = replay(spec, SPACE, look_up=lambda a: {"value": 0.5, "loss": 0.3, "diverged": None}).best
    lower = replay(spec, SPACE, look_up=lambda a: {"value": 0.5, "loss": 0.3 - a.trial, "diverged": None}).best
    assert alike is not None and alike.number == 0
    assert lower is not None and lower.number == 2


def test_a_trial_that_diverges_is_an_outcome_that_never_wins() -> None:
    found, _ = carry_out(
        SearchSpec(trials=6, at_once=3, seeds=(0, 1)),
        lambda a: None if a.params["learning_rate"] > 1e-3 and a.seed == 1 else score(a),
    )
    states = {trial.params["learning_rate"] > 1e-3: trial.state for trial in found.trials}
    assert states == {True: "diverged", False: "complete"}
    assert found.best is not None and found.best.state == "complete"
    nothing, _ = carry_out(SearchSpec(trials=2, at_once=2), lambda attempt: None)
    assert nothing.is_over and nothing.best is None


# ---------------------------------------------------------------------------------------------------------- pruning


def test_halving_lets_the_best_third_go_on_after_a_cheap_look() -> None:
    spec = SearchSpec(trials=9, at_once=9, pruning="halving")
    found, trained = carry_out(spec)
    by_stop = {stop: [a.trial for a in trained if a.stops[-1] == stop] for stop in RUNGS}
    assert [len(by_stop[stop]) for stop in RUNGS] == [9, 9 // REDUCTION, 1]
    best = sorted(found.trials, key=lambda trial: trial.by_step[0], reverse=True)[:3]
    assert set(by_stop[RUNGS[1]]) == {trial.number for trial in best}
    assert [trial.state for trial in found.trials].count("complete") == 1
    spent = sum(
        stop - before
        for stop, before in zip(RUNGS, (0.0, *RUNGS), strict=False)
        for attempt in trained
        if attempt.stops[-1] == stop
    )
    assert spent < 0.4 * 9, "at least 60% of the training is spared"


def test_a_later_round_competes_with_the_trials_of_earlier_ones() -> None:
    def worse_every_round(attempt: Attempt) -> float:
        return 1 - attempt.trial / 100

    found, trained = carry_out(SearchSpec(trials=12, at_once=6, pruning="halving"), worse_every_round)
    second = [attempt for attempt in trained if attempt.trial >= 6 and len(attempt.stops) > 1]
    assert second == [], "no trial of the second round is among the best third of all twelve"
    assert found.best is not None and found.best.number == 0


def test_the_stops_of_a_stage_hold_those_before_it() -> None:
    _, trained = carry_out(SearchSpec(trials=6, at_once=6, pruning="halving"))
    assert {attempt.stops for attempt in trained} == {RUNGS[:1], RUNGS[:2], RUNGS}


@pytest.mark.filterwarnings("ignore:WilcoxonPruner is experimental")
@pytest.mark.parametrize("seed", range(20))
def test_what_counts_as_worse_is_what_optunas_wilcoxon_pruner_prunes(seed: int) -> None:
    import optuna

    rng = np.random.default_rng(seed)
    best = tuple(rng.normal(size=8).round(1).tolist())
    trial = tuple((rng.normal(size=int(rng.integers(1, 9))) - 0.7).round(1).tolist())
    peer = optuna.create_study(direction="maximize", pruner=optuna.pruners.WilcoxonPruner())
    value = sum(best) / len(best)
    peer.add_trial(optuna.trial.create_trial(value=value, intermediate_values=dict(enumerate(best))))
    asked = peer.ask()
    for step, score in enumerate(trial):
        asked.report(score, step)
    finished = Trial(0, 0, {}, "complete", value, 0.0, best)
    assert is_worse(Trial(1, 1, {}, "open", None, None, trial), before=[finished]) == asked.should_prune()


def test_wilcoxon_ends_a_trial_that_is_worse_seed_by_seed() -> None:
    spec = SearchSpec(trials=6, at_once=2, seeds=(0, 1, 2, 3, 4, 5), pruning="wilcoxon")

    def one_good_trial(attempt: Attempt) -> float:
        return (0.9 if attempt.trial == 1 else 0.5) + attempt.seed / 100

    found, trained = carry_out(spec, one_good_trial)
    num_seeds = [sum(attempt.trial == trial.number for attempt in trained) for trial in found.trials]
    assert num_seeds == [6, 6, 4, 4, 4, 4]
    assert [trial.state for trial in found.trials] == ["complete", "complete", *["pruned"] * 4]
    alike, trained = carry_out(spec, lambda attempt: 0.5 + math.sin(7.7 * attempt.trial + 3.3 * attempt.seed) / 100)
    assert [trial.state for trial in alike.trials].count("pruned") < 3


# ------------------------------------------------------------------------------------------------------------- edges


def test_an_optimum_at_an_end_is_flagged_with_how_to_extend_it() -> None:
    (edge,) = edges(SPACE, {"learning_rate": 9.5e-3, "alpha": 32, "dropout": 0.1})
    assert (edge.name, edge.side, edge.limit) == ("learning_rate", "high", 1e-2)
    assert edge.further == pytest.approx(1e-2 * 1e3**0.5, rel=1e-2)
    (edge,) = edges(SPACE, {"learning_rate": 1e-3, "alpha": 64, "dropout": 0.1})
    assert (edge.name, edge.further) == ("alpha", 92)
    (edge,) = edges(SPACE, {"learning_rate": 1e-3, "alpha": 32, "dropout": 0.2})
    assert (edge.name, edge.side) == ("dropout", "high")


def test_an_end_beyond_which_nothing_lies_is_no_edge() -> None:
    space = {"warmup": Range(low=0, high=0.3), "batch_size": Range(low=1, high=4), "schedule": ("linear", "cosine")}
    assert edges(space, {"warmup": 0.0, "batch_size": 1, "schedule": "linear"}) == []
    found = edges(space, {"warmup": 0.3, "batch_size": 4, "schedule": "cosine"})
    assert [edge.name for edge in found] == ["warmup", "batch_size"]


def test_an_extended_search_keeps_its_trials_and_adds_a_round() -> None:
    spec = SearchSpec(trials=4, at_once=2, confirm=0)
    before, _ = carry_out(spec)
    found = edges(SPACE, {"learning_rate": 1e-2, "alpha": 32, "dropout": 0.1})
    longer = extended(SPACE, found)
    assert longer["learning_rate"].high > 0.1 and longer["learning_rate"].low == 1e-5  # type: ignore[union-attr]
    after, trained = carry_out(spec, extension=longer)
    assert after.trials[:4] == before.trials
    assert len(after.trials) == 6 == len(trained)
    assert after.space == longer


@pytest.mark.parametrize(
    "fails",
    [lambda attempt: True, lambda attempt: len(attempt.stops) > 1],
    ids=["before the first look", "before the second"],
)
def test_a_first_round_of_which_nothing_is_left_is_followed_by_the_next(fails: Callable[[Attempt], bool]) -> None:
    def objective(attempt: Attempt) -> float | None:
        return None if attempt.trial < 5 and fails(attempt) else score(attempt)

    found, _ = carry_out(SearchSpec(trials=10, at_once=5, pruning="halving"), objective)
    assert len(found.trials) == 10
    assert not found.open


@pytest.mark.parametrize(
    ("name", "low", "high", "log"), [("epochs", 1, 3, False), ("alpha", 1, 64, False), ("alpha", 2, 64, True)]
)
def test_no_range_is_extended_to_a_count_of_nothing(name: str, low: int, high: int, log: bool) -> None:
    space: Mapping[str, Any] = {name: Range(low=low, high=high, log=log)}
    longer = extended(space, edges(space, {name: low}))[name]
    assert 1 <= longer.low <= low


def test_beside_pruned_trials_a_diverged_one_is_no_model_to_follow() -> None:
    def objective(attempt: Attempt) -> float | None:
        return None if attempt.params["learning_rate"] > 3e-3 else score(attempt)

    found, _ = carry_out(SearchSpec(trials=30, at_once=5, pruning="halving"), objective)
    late = [trial for trial in found.trials if trial.round >= 2]
    assert sum(trial.state == "diverged" for trial in late) <= len(late) // 3


# ------------------------------------------------------------------------------------------------------- confirmation


def lucky(attempt: Attempt) -> float:
    """Trial 3 is the best with the search's own seed by luck alone; trial 5 is the best with the others."""
    level = {3: 0.9, 5: 0.89, 7: 0.88}.get(attempt.trial, 0.5 + attempt.trial / 1000)
    return level if attempt.seed == 0 else {3: 0.3, 5: 0.89, 7: 0.7}.get(attempt.trial, 0.99)


def test_the_best_three_get_two_more_seeds_and_are_chosen_by_the_mean() -> None:
    found, trained = carry_out(SearchSpec(trials=9, at_once=3), lucky)
    further = [(attempt.trial, attempt.seed) for attempt in trained[9:]]
    assert further == [(trial, seed) for trial in (3, 5, 7) for seed in (1_000_003, 2_000_003)]
    assert found.is_over and found.best is not None
    assert (found.best.number, found.best.num_seeds, found.best.value) == (5, 3, pytest.approx(0.89))
    assert {trial.num_seeds for trial in found.trials if trial.number not in (3, 5, 7)} == {1}


def test_confirmation_can_be_off_and_several_seeds_do_not_need_it() -> None:
    for spec in (SearchSpec(trials=9, at_once=3, confirm=0), SearchSpec(trials=9, at_once=3, seeds=(0, 9))):
        found, trained = carry_out(spec, lucky)
        assert len(trained) == 9 * len(spec.seeds) and found.best is not None
        assert spec.confirming_seeds == ()
    off, _ = carry_out(SearchSpec(trials=9, at_once=3, confirm=0), lucky)
    assert off.best is not None and off.best.number == 3


def test_a_finalist_that_diverges_with_another_seed_is_out() -> None:
    found, _ = carry_out(
        SearchSpec(trials=9, at_once=3), lambda a: None if a.trial == 5 and a.seed == 2_000_003 else lucky(a)
    )
    assert found.is_over and found.best is not None and found.best.number == 7
    assert found.trials[5].state == "diverged"


def test_copies_of_a_setting_are_one_finalist() -> None:
    spec = SearchSpec(sampler="grid", trials=6, at_once=6, proposal_seed=1)
    grid: Mapping[str, Any] = {"dropout": (0.0, 0.1)}
    known: dict[Attempt, Mapping[str, Any]] = {}
    while (found := replay(spec, grid, look_up=known.get)).open:
        known.update({attempt: result(0.5 + attempt.params["dropout"]) for attempt in found.open})
    confirmed = [trial for trial in found.trials if trial.num_seeds > 1]
    assert sorted(trial.params["dropout"] for trial in confirmed) == [0.0, 0.1]
