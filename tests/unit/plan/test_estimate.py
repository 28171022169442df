"""Estimates: from the nearest finished work there is, scaled by counts, and unknown where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_fixture import EXAMPLES, TOKENS, finish, finish_preparation, small_graph, trained

from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.plan.calibration import calibration_of, calibration_steps, preparation_steps
from lorascope.plan.estimate import Estimate, estimate_step
from lorascope.plan.graph import Graph
from lorascope.plan.history import read_history
from lorascope.plan.outlook import Machines, StudyPlan, plan_study
from lorascope.plan.workload import num_evaluations, training_of
from lorascope.report.plan.wording import disk_of
from lorascope.training.member import evaluation_points

MACHINE = {"host": "abc", "device": "cpu", "torch": "2"}


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return small_graph(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def estimated(step: Step, store: Store, **options: object) -> Estimate:
    return estimate_step(step, read_history(store, device="cpu"))


def runs(graph: Graph, method: str) -> list[Step]:
    return [step for step in graph.of_kind("train") if graph.labels[step.id].method == method]


def test_nothing_is_invented_for_a_store_that_is_empty(graph: Graph, store: Store) -> None:
    for step in graph.steps:
        found = estimated(step, store)
        assert (found.seconds, found.memory_bytes, found.disk_bytes, found.source) == (None, None, None, "unknown")
        assert found.basis


def test_a_run_takes_what_another_seed_of_its_arm_took(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    first, second = runs(graph, "full")
    finish(store, first, seconds=20, result=trained(training=12, evaluation=6), size=5000)
    found = estimated(second, store)
    assert found.seconds == pytest.approx(20)
    assert (found.memory_bytes, found.source, found.basis) == (70, "finished", "1 finished run of the same arm")
    assert found.disk_bytes == 5000


def test_runs_trained_together_share_the_time_they_took(graph: Graph, store: Store) -> None:
    """Two runs side by side for 30 s cost 15 s each, not 30."""
    finish_preparation(store, graph)
    for step in runs(graph, "lora"):
        finish(store, step, seconds=30, gang=2, result=trained(training=10, evaluation=2, gang=2))
    bigger = small_graph(Path(store.root).parent, "seeds=[1,2,3]")
    found = estimated(runs(bigger, "lora")[-1], store)
    assert found.seconds == pytest.approx(15)
    assert found.gang == 2
    assert found.basis == "2 finished runs of the same arm"


def test_another_number_of_epochs_is_scaled_by_updates_and_evaluations(graph: Graph, store: Store) -> None:
    """120 updates and 8 evaluations took 12 s and 4 s, 2 s are overhead: half the epochs take 6 + 2 + 2."""
    finish_preparation(store, graph)
    finish(store, runs(graph, "full")[0], seconds=18, result=trained(training=12, evaluation=4))
    shorter = small_graph(Path(store.root).parent, "train.epochs=2")
    found = estimated(runs(shorter, "full")[0], store)
    assert found.seconds == pytest.approx(10)
    assert found.source == "scaled"
    assert "scaled by updates and tokens" in found.basis


def test_a_run_of_another_method_says_nothing(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    finish(store, runs(graph, "full")[0], seconds=18, result=trained(training=12, evaluation=4))
    assert estimated(runs(graph, "lora")[0], store).source == "unknown"


def test_a_resumed_run_is_no_measure_of_time(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    finish(store, runs(graph, "full")[0], seconds=1, result=trained(training=12, evaluation=4, resumed=1))
    assert estimated(runs(graph, "full")[1], store).source == "unknown"


def test_a_calibration_counts_until_a_run_is_finished(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    first, second = runs(graph, "full")
    figures = {
        "timed_updates": 10, "update_seconds": 0.5, "preparation_seconds": 0.0, "evaluation_seconds": 1.0,
        "overhead_seconds": 3.0, "worker_start_seconds": 7.0, "gang": 1,
    }  # fmt: skip
    result = trained(training=5, evaluation=0, updates=10, calibration=figures)
    finish(store, calibration_of(first, machine=MACHINE), seconds=9, result=result)
    found = estimated(second, store)
    assert found.seconds == pytest.approx(120 * 0.5 + 8 * 1.0 + 3.0)
    assert (found.source, found.basis) == ("calibration", "a calibration of the same arm")
    finish(store, first, seconds=20, result=trained(training=12, evaluation=6))
    assert estimated(second, store).source == "finished"


def test_trials_tell_what_a_run_takes_until_a_run_is_finished(graph: Graph, store: Store) -> None:
    """A trial of half the epochs, two evaluations an epoch like the run."""
    finish_preparation(store, graph)
    run = runs(graph, "full")[0]
    short = {**run.params["train"], "epochs": 2}
    trial = Step("trial", 1, {**run.params, "train": short, "learning_rate": 1e-5, "stops": [1.0]}, deps=run.deps)
    finish(store, trial, seconds=10, result=trained(training=6, evaluation=2, updates=60, epochs=2))
    found = estimated(run, store)
    assert found.seconds == pytest.approx(2 * 6 + 2 * 2 + 2)
    assert (found.memory_bytes, found.disk_bytes) == (70, None), "a trial keeps no weights"
    (trained_ones,) = (part for part in plan(graph, store).kinds() if part.name == "train")
    assert (trained_ones.num_unknown, trained_ones.num_disk_unknown) == (2, 4)
    assert disk_of(trained_ones) == "unknown"
    assert found.basis == "1 finished trial step of its model and method, scaled by updates and tokens"
    finish(store, runs(graph, "full")[1], seconds=20, result=trained(training=12, evaluation=6))
    assert estimated(run, store).basis == "1 finished run of the same arm"


def test_stages_of_a_pruned_search_are_told_apart_as_too_short(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    run = runs(graph, "full")[0]
    stage = Step("trial", 1, {**run.params, "learning_rate": 1e-5, "stops": [0.25]}, deps=run.deps)
    finish(store, stage, seconds=10, result=trained(training=6, evaluation=2, updates=30, epochs=1))
    assert "rather too long, as stages of a pruned search are short" in estimated(run, store).basis
    like_it = Step("trial", 1, {**stage.params, "learning_rate": 2e-5}, deps=run.deps)
    assert "too long" not in estimated(like_it, store).basis


def test_of_work_like_it_what_is_nearest_in_tokens_counts_alone(graph: Graph, store: Store) -> None:
    """Trials of two tasks, the updates of one twenty times as long and no slower: scaled from those, a run of the other
    would seem twenty times as quick as it is."""
    finish_preparation(store, graph)
    run = runs(graph, "full")[0]
    data, tokens = Step("data", 1, {"task": "long"}), Step("tokens", 1, {"task": "long"})
    finish(store, data, seconds=1, result={"num_examples": EXAMPLES})
    finish(store, tokens, seconds=1, result={"num_tokens": {key: 20 * value for key, value in TOKENS.items()}})
    for deps in (run.deps, {**run.deps, "data": data.id, "tokens": tokens.id}):
        trial = Step("trial", 1, {**run.params, "learning_rate": 1e-5, "stops": [1.0]}, deps=deps)
        finish(store, trial, seconds=20, result=trained(training=12, evaluation=8))
    assert estimated(run, store).seconds == pytest.approx(20)


def test_times_taken_beside_as_many_workers_hold_for_as_many(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    for step in (runs(graph, "full")[0], runs(graph, "lora")[0]):
        result = trained(training=12, evaluation=6)
        finish(store, step, seconds=20, result=result, workers_on_device=2)
    history = read_history(store, device="cpu")
    four = plan_study(graph, store, history, machines=Machines(1, 4, "cpu", sharing=4))
    assert four.in_turns_seconds == pytest.approx(40)
    two = plan_study(graph, store, history, machines=Machines(1, 2, "cpu", sharing=2))
    assert (two.schedule.makespan, two.in_turns_seconds) == (pytest.approx(20), None)


def test_times_of_another_device_do_not_count(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    first, second = runs(graph, "full")
    finish(store, first, seconds=20, device="cuda:0", result=trained(training=12, evaluation=6))
    assert estimated(second, store).source == "unknown"
    assert estimate_step(second, read_history(store, device="cuda")).seconds == pytest.approx(20)


def test_of_unlike_machines_the_one_that_finished_last_counts(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    bigger = small_graph(Path(store.root).parent, "seeds=[1,2,3]")
    old, new, planned = runs(bigger, "full")
    finish(store, old, seconds=90, machine="slow", at_s=0, result=trained(training=80, evaluation=6))
    finish(store, new, seconds=20, machine="fast", at_s=500, result=trained(training=12, evaluation=6))
    assert estimated(planned, store).seconds == pytest.approx(20)


def test_a_plan_reads_the_device_the_store_was_made_on(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    assert read_history(store, device="cuda").device == "cpu"
    assert read_history(store, device="cuda", is_binding=True).device == "cuda"


def test_an_evaluation_grows_with_the_test_set(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    step = graph.of_kind("evaluate")[0]
    finish(store, step, seconds=4)
    other = small_graph(Path(store.root).parent, "data.test_examples=30")
    half = {"num_examples": {**EXAMPLES, "test": 30}, "task": {"metrics": ["accuracy"]}}
    finish(store, other.of_kind("data")[0], seconds=1, result=half)
    tokens = {"num_tokens": {**TOKENS, "test": 300}, "mean_length": dict.fromkeys(TOKENS, 10.0)}
    finish(store, other.of_kind("tokens")[0], seconds=1, result=tokens)
    found = estimated(other.of_kind("evaluate")[0], store)
    assert found.seconds == pytest.approx(2)
    assert found.source == "scaled"
    tiny = Step("tokens", 1, {"task": "tiny"})
    finish(store, tiny, seconds=1, result={"num_tokens": {"test": 6}})
    finish(store, Step("evaluate", 1, step.params, deps={**step.deps, "tokens": tiny.id}), seconds=3)
    assert estimated(other.of_kind("evaluate")[0], store).seconds == pytest.approx(2), "scaled from the nearest"


@pytest.mark.parametrize("updates, an_epoch, per_epoch", [(90, 30, 2), (7, 30, 1), (100, 33, 4), (1, 1, 3)])
def test_evaluations_are_counted_as_training_places_them(updates: int, an_epoch: int, per_epoch: int) -> None:
    assert num_evaluations(updates, an_epoch, per_epoch) == len(evaluation_points(updates, an_epoch, per_epoch))


def test_the_work_of_a_run_is_counted_from_its_data(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    work = training_of(graph.of_kind("train")[0], read_history(store, device="cpu").results)
    assert work is not None
    assert (work.updates, work.evaluations, work.update_tokens, work.validation_tokens) == (120, 8, 160, 600)


# --------------------------------------------------------------------------------------------------------- calibration


def test_a_calibration_changes_no_identity_and_nothing_needs_it(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    steps = calibration_steps(graph, machine=MACHINE, results=read_history(store, device="cpu").results)
    own = {step.id for step in graph.steps}
    new = [step for step in steps if step.id not in own]
    assert {step.kind for step in new} == {"calibration", "evaluate", "drift"}
    assert not {dep for step in graph.steps for dep in step.deps.values()} & {step.id for step in new}
    assert {step.kind for step in preparation_steps(graph)} == {"data", "tokens", "sanity"}


def test_a_calibration_covers_every_arm_and_each_measurement_once(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    steps = calibration_steps(graph, machine=MACHINE, results=read_history(store, device="cpu").results)
    kinds = [step.kind for step in steps]
    assert (kinds.count("calibration"), kinds.count("evaluate"), kinds.count("drift"), kinds.count("baseline")) == (
        4,
        2,
        2,
        1,
    )
    known = {step.id for step in [*steps, *graph.steps]}
    assert all(dep in known for step in steps for dep in step.deps.values())
    assert all(
        dep.startswith("calibration-")
        for step in steps
        if step.kind == "evaluate"
        for r, dep in step.deps.items()
        if r == "train"
    )


def test_another_machine_is_calibrated_anew(graph: Graph) -> None:
    run = graph.of_kind("train")[0]
    assert calibration_of(run, machine=MACHINE).id != calibration_of(run, machine={**MACHINE, "host": "def"}).id


# ---------------------------------------------------------------------------------------------------------------- plan


def plan(graph: Graph, store: Store, machines: int = 1) -> StudyPlan:
    return plan_study(graph, store, read_history(store, device="cpu"), machines=Machines(machines, 1, "cpu"))


def test_sums_say_what_is_cached_and_what_they_lack(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    finish(store, runs(graph, "full")[0], seconds=20, result=trained(training=12, evaluation=6))
    parts = {part.name: part for part in plan(graph, store).kinds()}
    assert (parts["train"].total, parts["train"].cached, parts["train"].to_run) == (4, 1, 3)
    assert (parts["train"].seconds, parts["train"].num_unknown) == (pytest.approx(20), 2)
    assert (parts["data"].to_run, parts["analysis"].total) == (0, 1)


def test_runs_that_train_together_stay_one_job_on_one_worker(graph: Graph, store: Store) -> None:
    finish_preparation(store, graph)
    for step in graph.of_kind("train"):
        finish(store, step, seconds=30, gang=2, at_s=0 if "-full-" in step.id else 40,
               result=trained(training=10, evaluation=2, gang=2))  # fmt: skip
    bigger = small_graph(Path(store.root).parent, "seeds=[1,2,3,4,5,6]")
    found = plan(bigger, store, machines=3)
    gangs = [placed.job for placed in found.schedule.placed if placed.job.name.startswith("train-")]
    assert sorted(len(job.steps) for job in gangs) == [2, 2, 2, 2]
    assert all(job.seconds == pytest.approx(30) for job in gangs)
    assert sorted(i for placed in found.schedule.placed for i in placed.job.steps) == sorted(
        p.step.id for p in found.to_run
    )
    off = plan(small_graph(Path(store.root).parent, "seeds=[1,2,3,4,5,6]", "train.gang=off"), store)
    assert all(len(p.job.steps) == 1 for p in off.schedule.placed)


def test_the_detectable_difference_shrinks_with_seeds(graph: Graph, store: Store) -> None:
    (unknown,) = plan(graph, store).power
    assert (unknown.num_examples, unknown.difference) == (None, None)
    finish_preparation(store, graph)
    (known,) = plan(graph, store).power
    assert known.num_examples == 60
    assert known.difference is not None
    assert known.difference > known.with_more_seeds[5] > known.with_more_seeds[20] > 0
    margin, least = known.margins["H1a"]
    assert (margin, least < known.difference) == (0.05, True)
