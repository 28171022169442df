"""Searches in the graph of a study: what is planned when, equal budgets, and what is no part of an identity."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from plan_fixture import finish
from small_study import write_small_study

from lorascope import api
from lorascope.engine.store.directory import Store
from lorascope.plan.allocation import allocate
from lorascope.plan.estimate import Estimate
from lorascope.plan.graph import Graph, build_graph
from lorascope.plan.growing import Planner, chosen
from lorascope.plan.outlook import PlannedStep, jobs_of
from lorascope.plan.steps.results import analysis_step
from lorascope.search import propose
from lorascope.search.literals import optimum_yaml
from lorascope.study.loading.load import load_study
from lorascope.study.spec import Study

STUDY = """
name: small
question: Does LoRA learn sentiment as well as full fine-tuning?
models: [{name: tiny, source: {path: bert}}]
tasks:
  - {name: sentiment, kind: classification, train: train.csv, text: text, label: label, metrics: [accuracy]}
methods:
  - full
  - {kind: lora, rank: 4}
seeds: [1, 2]
train: {epochs: 4, batch_size: 16, max_length: 32}
search:
  trials: 4
  at_once: 2
  confirm: 0
  space:
    full: {learning_rate: {low: 1e-4, high: 1e-1, log: true}, epochs: {low: 2, high: 4}}
    lora: {learning_rate: {low: 1e-3, high: 1e+1, log: true}, alpha: {low: 4, high: 32}}
measure: {drift: {examples: 60}}
"""


class Results:
    """Stands for a store: the trials of a graph that were "trained", scored by their learning rate."""

    def __init__(self, study: Study, *, best_rate: float = 1e-2) -> None:
        self.study, self.best_rate = study, best_rate
        self.known: dict[str, Mapping[str, Any]] = {}

    def graph(self) -> Graph:
        return build_graph(self.study, finished=self.known.get)

    def train(self, graph: Graph, *, kind: str = "") -> None:
        """Every trial that is open, or those of one method kind."""
        for step in graph.of_kind("trial"):
            if kind in step.params["method"]["kind"]:
                value = -abs(math.log10(step.params["learning_rate"] / self.best_rate))
                self.known.setdefault(step.id, {"value": value, "loss": 0.0, "diverged": None, "metric": "accuracy"})

    def to_the_end(self) -> Graph:
        while (graph := self.graph()).waiting:
            self.train(graph)
        return graph


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(write_small_study(tmp_path, STUDY))


def kinds(graph: Graph) -> Counter[str]:
    return Counter(step.kind for step in graph.steps)


def test_first_the_plan_holds_one_round_of_every_search_and_no_run(study: Study) -> None:
    graph = Results(study).graph()
    assert kinds(graph) == {"data": 1, "tokens": 1, "baseline": 1, "sanity": 2, "trial": 4}
    assert Counter(kind for kind, _ in graph.waiting) == {
        "train": 4,
        "evaluate": 4,
        "sanity": 2,
        "drift": 2,
        "search": 2,
    }
    assert [search.found.to_propose for search in graph.searches] == [2, 2]


def test_gates_are_passed_before_any_trial_is_trained(study: Study) -> None:
    graph = Results(study).graph()
    gates = {step.id for step in graph.of_kind("sanity")}
    assert all(step.deps["sanity"] in gates for step in graph.of_kind("trial"))


def test_one_searchs_runs_do_not_wait_for_anothers_search(study: Study) -> None:
    results = Results(study)
    for _ in range(2):
        results.train(results.graph(), kind="lora")
    graph = results.graph()
    assert {graph.labels[step.id].method for step in graph.of_kind("train")} == {"lora"}
    assert {graph.labels[step.id].method for step in graph.of_kind("search")} == {"lora"}
    assert {label.method for _, label in graph.waiting} == {"full"}


def test_in_the_end_the_runs_are_trained_with_the_optimum_and_fresh_seeds(study: Study) -> None:
    graph = Results(study, best_rate=3e-2).to_the_end()
    assert kinds(graph)["trial"] == 8 and kinds(graph)["train"] == 4 and kinds(graph)["drift"] == 2
    for search in graph.searches:
        rates = [trial.params["learning_rate"] for trial in search.found.trials]
        best = min(rates, key=lambda rate: abs(math.log10(rate / 3e-2)))
        assert search.optimum is not None and search.optimum["learning_rate"] == best
        runs = [step for step in graph.of_kind("train") if graph.labels[step.id].method == search.method.name]
        assert {step.params["learning_rate"] for step in runs} == {best}
    seeds = {kind: {step.params["seeds"]["order"] for step in graph.of_kind(kind)} for kind in ("train", "trial")}
    assert seeds == {"train": {1, 2}, "trial": {0}}


def test_the_best_trials_are_confirmed_before_any_run(study: Study) -> None:
    """Four trials, the best three of them with two more seeds each: as many for either method."""
    search = study.search.model_copy(update={"confirm": 3})  # type: ignore[union-attr]
    results = Results(study.model_copy(update={"search": search}), best_rate=3e-2)
    for _ in range(2):
        results.train(results.graph())
    graph = results.graph()
    assert not graph.of_kind("train") and not graph.of_kind("search")
    further = [step for step in graph.of_kind("trial") if step.params["seeds"]["order"] > 1000]
    assert Counter(graph.labels[step.id].method for step in further) == {"full": 6, "lora": 6}
    assert Counter(kinds(results.to_the_end())) >= Counter({"trial": 20, "train": 4})


def test_every_method_gets_the_same_budget(study: Study) -> None:
    """Trials, seeds and examples are one setting; so is the round that an edge adds."""
    for at_edge, each in (("flag", 4), ("extend", 6)):
        search = study.search.model_copy(update={"at_edge": at_edge})  # type: ignore[union-attr]
        # The best rate lies beyond the ranges of full, within those of LoRA: one optimum at an edge extends both.
        graph = Results(study.model_copy(update={"search": search}), best_rate=3.0).to_the_end()
        trials = Counter(graph.labels[step.id].method for step in graph.of_kind("trial"))
        assert trials == {"full": each, "lora": each}, at_edge
        assert {search.extended for search in graph.searches} == {at_edge == "extend"}


def test_no_optimum_stands_before_it_is_known_whether_it_is_extended(study: Study) -> None:
    search = study.search.model_copy(update={"at_edge": "extend"})  # type: ignore[union-attr]
    results = Results(study.model_copy(update={"search": search}))
    for _ in range(2):
        results.train(results.graph(), kind="lora")
    graph = results.graph()
    assert [search.optimum for search in graph.searches] == [None, None]
    assert not graph.of_kind("train") and not graph.of_kind("search")


def test_planning_again_from_the_same_results_gives_the_same_graph(study: Study, tmp_path: Path) -> None:
    first, second = Results(study), Results(load_study(tmp_path / "study.yaml"))
    for results in (first, second):
        results.train(results.graph())
        results.train(results.graph(), kind="full")
    assert [step.id for step in first.graph().steps] == [step.id for step in second.graph().steps]


def test_a_cap_on_rows_gives_trials_data_of_their_own(study: Study) -> None:
    search = study.search.model_copy(update={"train_examples": 100})  # type: ignore[union-attr]
    graph = Results(study.model_copy(update={"search": search})).to_the_end()
    data = {step.id: step.params["data"]["train_examples"] for step in graph.of_kind("data")}
    assert {data[step.deps["data"]] for step in graph.of_kind("trial")} == {100}
    assert {data[step.deps["data"]] for step in graph.of_kind("train")} == {None}


def test_the_analysis_hears_of_a_search_from_its_summary_alone(study: Study) -> None:
    search = study.search.model_copy(update={"train_examples": 100})  # type: ignore[union-attr]
    graph = Results(study.model_copy(update={"search": search})).to_the_end()
    last = analysis_step(graph, finished=[step.id for step in graph.steps], failures={})
    assert last is not None
    roles = Counter(role.partition(":")[0] for role in last.deps)
    assert "trial" not in roles
    assert roles["search"] == 2 and roles["data"] == roles["tokens"] == 1 and roles["sanity"] == 2


def test_runs_that_wait_for_a_search_are_missing_runs(study: Study) -> None:
    results = Results(study)
    for _ in range(2):
        results.train(results.graph(), kind="lora")
    graph = results.graph()
    last = analysis_step(graph, finished=[step.id for step in graph.steps], failures={})
    assert last is not None and last.params["missing_runs"] == 2


def test_given_hyperparameters_make_the_runs_of_their_search(study: Study, tmp_path: Path) -> None:
    """What was found is written, taken up in another study, and nothing is trained again."""
    from lorascope.pipeline import _write_optima

    graph = Results(study).to_the_end()
    _write_optima(graph, tmp_path / "results" / "optimal")
    text = STUDY[: STUDY.index("search:")] + STUDY[STUDY.index("measure:") :]
    text = text.replace("  - full\n", "  - {kind: full, hyperparameters: results/optimal}\n")
    (tmp_path / "given.yaml").write_text(text.replace("rank: 4}", "rank: 4, hyperparameters: results/optimal}"))
    given = build_graph(load_study(tmp_path / "given.yaml", files=True))
    for kind in ("train", "evaluate", "drift"):
        assert [s.id for s in given.of_kind(kind)] == [s.id for s in graph.of_kind(kind)], kind
    last = analysis_step(given, finished=[step.id for step in given.steps], failures={})
    assert last is not None and str(tmp_path) not in repr(last.params)


def test_where_every_trial_diverged_there_is_no_run(study: Study) -> None:
    results = Results(study)
    while (graph := results.graph()).of_kind("trial") and any(search.found.open for search in graph.searches):
        results.known |= {
            step.id: {"value": None, "loss": None, "diverged": "nan", "metric": "accuracy"}
            for step in graph.of_kind("trial")
        }
    assert not graph.of_kind("train")
    assert len(graph.of_kind("search")) == 2


def test_only_takes_the_search_with_the_runs_that_need_it(study: Study) -> None:
    results = Results(study)
    graph = results.graph()
    steps = chosen(graph, "train*lora*")
    assert Counter(step.kind for step in steps) == {"data": 1, "tokens": 1, "sanity": 1, "trial": 2}
    assert {graph.labels[step.id].method for step in steps if step.kind == "trial"} == {"lora"}
    assert [step.id for step in chosen(graph, "search:*lora*")] == [step.id for step in steps]
    graph = results.to_the_end()
    assert {graph.labels[step.id].method for step in chosen(graph, "train*lora*") if step.kind == "train"} == {"lora"}


def test_the_outlook_holds_all_that_is_to_come(study: Study, tmp_path: Path) -> None:
    planner = Planner(study, Store(tmp_path / "store"), data_dir=None)
    assert kinds(planner.graph)["trial"] == 4 and planner.graph.waiting
    outlook = planner.outlook()
    assert kinds(outlook)["trial"] == 8 and kinds(outlook)["train"] == 4 and not outlook.waiting


def finish_trials(planner: Planner, store: Store) -> None:
    """Every trial that is open, scored by its learning rate."""
    for step in planner.graph.of_kind("trial"):
        if not store.has(step.id):
            value = -abs(math.log10(step.params["learning_rate"] / 1e-2))
            finish(store, step, seconds=1, result={"value": value, "loss": 0.0, "diverged": None, "metric": "accuracy"})


def become_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna in a version that proposes otherwise."""
    import optuna

    as_now = propose._proposals
    monkeypatch.setattr(optuna, "__version__", "99.0")
    monkeypatch.setattr(propose, "_proposals", lambda q: as_now({**q, "proposal_seed": q["proposal_seed"] + 1}))
    propose._ANSWERS.clear()
    monkeypatch.setattr(propose, "_ANSWERS", {})


def test_another_version_of_the_sampler_goes_on_with_the_trials_there_are(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    here, store = optuna.__version__, Store(tmp_path / "store")
    planner = Planner(study, store, data_dir=None, keeps_proposals=True)
    finish_trials(planner, store)
    proposed = [trial.params for search in planner.graph.searches for trial in search.found.trials]
    become_another_version(monkeypatch)
    fresh = Planner(study, Store(tmp_path / "fresh"), data_dir=None).graph
    assert proposed != [trial.params for search in fresh.searches for trial in search.found.trials]

    after = Planner(study, store, data_dir=None, keeps_proposals=True)
    told = [trial for search in after.graph.searches for trial in search.found.trials]
    assert [trial.params for trial in told if trial.round == 0] == proposed
    assert {(t.round, t.state, t.proposed_by) for t in told} == {
        (0, "complete", f"optuna {here}"),
        (1, "open", "optuna 99.0"),
    }
    finish_trials(after, store)
    done = after.current()
    text = optimum_yaml(done.searches[0].found, study.search, study="small", label={}, kind="full")  # type: ignore[arg-type]
    both = f"optuna {here} (trials 1 to 2), optuna 99.0 (trials 3 to 4)"
    assert f"  proposed_by: {both}\n" in text
    last = analysis_step(done, finished=[step.id for step in done.steps], failures={})
    assert last is not None and list(last.params["proposed_by"].values()) == [both, both]
    assert {last.deps[role] for role in last.params["proposed_by"]} == {step.id for step in done.of_kind("search")}

    monkeypatch.setitem(sys.modules, "optuna", None)  # and what is finished is read without any
    read = Planner(study, store, data_dir=None).graph
    assert not read.waiting and [step.id for step in read.steps] == [step.id for step in done.steps]


def test_proposals_repeat_in_fresh_stores_and_lookers_keep_none(study: Study, tmp_path: Path) -> None:
    def kept(name: str, **options: bool) -> dict[str, Any]:
        store = Store(tmp_path / name)
        finish_trials(Planner(study, store, data_dir=None, **options), store)
        planner = Planner(study, store, data_dir=None, **options)
        planner.outlook()
        return {artifact.id: artifact.result for artifact in store.artifacts("proposals")}

    first = kept("first", keeps_proposals=True)
    propose._ANSWERS.clear()
    assert len(first) == 4 and first == kept("second", keeps_proposals=True)
    assert kept("third") == {}


def test_proposals_are_verified_with_the_study(study: Study, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    Planner(study, store, data_dir=None, keeps_proposals=True)
    kept = store.artifacts("proposals")
    assert len(kept) == 2 and api.verify(study, store=store.root).is_good
    (kept[0].path / "more").write_text("")
    (problem,) = api.verify(study, store=store.root).problems
    assert kept[0].id in problem


def test_no_trial_holds_a_path_in_its_params(study: Study, tmp_path: Path) -> None:
    for step in Results(study).to_the_end().steps:
        assert str(tmp_path) not in repr(step.params)


@pytest.mark.parametrize("pruning", ["none", "halving"])
def test_no_number_of_machines_makes_rounds_overlap(study: Study, tmp_path: Path, pruning: str) -> None:
    """Two rounds (of three stages each where trials are halved), one after the other, then the runs."""
    rounds, stages = (2, 1) if pruning == "none" else (2, 3)
    search = study.search.model_copy(update={"pruning": pruning})  # type: ignore[union-attr]
    planner = Planner(study.model_copy(update={"search": search}), Store(tmp_path / "store"), data_dir=None)
    graph = planner.outlook()
    planned = [
        PlannedStep(
            s, graph.labels[s.id], False, Estimate(10.0 if s.kind == "trial" else 1.0, None, None, "finished", "")
        )
        for s in graph.steps
    ]
    found = allocate(jobs_of(planned, graph.decided_by), workers=100)
    # data, tokens and gates; the trials; the gates of the optimum, a run, and its score or its drift
    assert found.bound >= 3 + rounds * stages * 10 + 3
    assert found.limit == "chain" and found.makespan >= found.bound
    ends = {i: placed.end for placed in found.placed for i in placed.job.steps}
    starts = {i: placed.start for placed in found.placed for i in placed.job.steps}
    for search in graph.searches:
        runs = [step.id for step in graph.of_kind("train") if graph.labels[step.id].method == search.method.name]
        assert runs and all(starts[run] >= max(ends[trial] for trial in search.steps) for run in runs)


def test_the_round_that_an_edge_adds_waits_for_every_search_of_its_task(study: Study) -> None:
    search = study.search.model_copy(update={"at_edge": "extend"})  # type: ignore[union-attr]
    graph = Results(study.model_copy(update={"search": search}), best_rate=3.0).to_the_end()
    first = {
        i for each in graph.searches for i, trial in zip(each.steps, each.found.trials, strict=True) if trial.round < 2
    }
    for each in graph.searches:
        added = [i for i, trial in zip(each.steps, each.found.trials, strict=True) if trial.round == 2]
        assert added and all(graph.decided_by[i] == first for i in added)
