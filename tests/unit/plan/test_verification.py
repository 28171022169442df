"""Verifying says what it saw; repairing sets aside what is damaged; one task's failure leaves another's drift alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_fixture import finish, finish_preparation, small_graph
from small_study import STUDY, write_small_study

from lorascope import api
from lorascope.engine.failure import Failure
from lorascope.engine.store.directory import Store
from lorascope.engine.store.integrity import CorruptArtifact
from lorascope.errors import DataError
from lorascope.plan.graph import Graph, build_graph
from lorascope.plan.growing import Planner

TWO_TASKS = (
    "tasks=[{name: one, kind: classification, train: train.csv, text: text, label: label}, "
    "{name: two, kind: classification, train: train.csv, text: text, label: label}]"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return small_graph(tmp_path)


def test_nothing_to_verify_is_not_success(graph, store):
    found = api.verify(graph.study, store=store.root)
    assert (found.problems, found.num_checked, found.is_good) == ((), 0, False)
    assert found.num_steps == len(graph.steps)


def test_verify_says_how_many_of_how_many_steps_it_saw(graph, store):
    finish_preparation(store, graph)
    found = api.verify(graph.study, store=store.root)
    assert found.is_good and (found.num_checked, found.num_steps) == (4, len(graph.steps))
    victim = store.artifacts("data")[0]
    (victim.path / "weights").write_bytes(b"x")
    found = api.verify(graph.study, store=store.root)
    assert not found.is_good and found.num_checked == 4
    assert found.problems == (f"{victim.id}: weights has 1 bytes, 1000 were committed",)


def test_repair_sets_aside_the_damaged_alone(graph, store):
    finish_preparation(store, graph)
    victim, torn = store.artifacts("data")[0], store.artifacts("tokens")[0]
    (victim.path / "weights").write_bytes(b"x")
    (torn.path / "record.json").write_text("{")
    found = api.repair(graph.study, store=store.root)
    assert sorted(text.partition(":")[0] for text in found) == sorted([victim.id, torn.id])
    assert all("was set aside in" in text for text in found)
    assert not store.has(victim.id) and not store.has(torn.id) and len(store.ids("sanity")) == 2
    assert len(list((store.root / "damaged").iterdir())) == 2
    assert api.repair(graph.study, store=store.root) == []


def test_a_plan_survives_a_damaged_record_of_another_study(graph, store, tmp_path):
    finish_preparation(store, graph)
    other = small_graph(tmp_path, "train.max_length=64").of_kind("tokens")[0]
    finish(store, other, seconds=1)
    (store.artifact(other.id).path / "record.json").write_bytes(b"\xff{")
    assert len([p for p in api.plan(graph.study, store=store.root).steps if p.is_cached]) == 4


def test_damage_to_what_a_search_is_planned_from_is_named(tmp_path, store):
    searched = STUDY.replace("learning_rate: 3e-3", "rank: 4").replace(
        "learning_rate: 1e-2, rank: 4, dropout: 0.1", "rank: 4"
    )
    write_small_study(
        tmp_path, searched.replace("kind: full, rank: 4", "kind: full") + "search: {sampler: random, trials: 2}\n"
    )
    graph = small_graph(tmp_path)
    trial = graph.of_kind("trial")[0]
    finish(store, trial, seconds=1, result={"value": 0.5})
    (store.artifact(trial.id).path / "record.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match="is not a record"):
        Planner(graph.study, store, data_dir=None)
    assert trial.id in api.repair(graph.study, store=store.root)[0]
    Planner(graph.study, store, data_dir=None)


# ------------------------------------------------------------------------------------- drift of one task without another


def test_a_task_that_failed_leaves_the_drift_of_the_other_alone(tmp_path):
    whole = small_graph(tmp_path, TWO_TASKS)
    lost = next(step for step in whole.of_kind("data") if whole.labels[step.id].task == "two")
    graph = build_graph(whole.study, failed=lambda step_id: step_id == lost.id)
    drift = {graph.labels[step.id].task: step for step in graph.of_kind("drift")}
    assert drift["one"].params["other_task"] is None and "other_data" not in drift["one"].deps
    assert drift["two"].params["other_task"] == "one"
    before = {whole.labels[step.id].task: step for step in whole.of_kind("drift")}
    assert before["one"].params["other_task"] == "two" and before["two"].id == drift["two"].id


def test_who_trains_plans_anew_when_a_task_fails(tmp_path, store):
    study = small_graph(tmp_path, TWO_TASKS).study
    lost = next(step for step in build_graph(study).of_kind("data") if step.slug == "two")
    store.record_failure(lost.id, Failure.of(lost.id, DataError("of yesterday")))
    planner = Planner(study, store, data_dir=None, keeps_proposals=True)
    assert others(planner.graph) == {"one": "two", "two": "one"}, "it is tried again first"
    assert planner.more() == ()
    store.record_failure(lost.id, Failure.of(lost.id, DataError("of today")))
    assert planner.more() and others(planner.graph) == {"one": None, "two": "one"}
    assert planner.more() == ()
    assert others(Planner(study, store, data_dir=None).graph) == {"one": None, "two": "one"}, "who reads sees the same"


def others(graph: Graph) -> dict[str | None, str | None]:
    return {graph.labels[step.id].task: step.params["other_task"] for step in graph.of_kind("drift")}
