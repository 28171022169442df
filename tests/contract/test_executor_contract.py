"""What every executor promises, whichever machines it uses: run against each entry of `registry.EXECUTORS`."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import engine_steps
import pytest
from clusters import ray_cluster
from engine_steps import make, make_alone, make_member, wait_until

from lorascope import registry
from lorascope.engine.events import (
    CurvePoint,
    Event,
    Notice,
    StepBlocked,
    StepFailed,
    StepFinished,
    StepHandedBack,
    StepStarted,
)
from lorascope.engine.executor import Executor
from lorascope.engine.failure import Failure
from lorascope.engine.scheduler import Computed, execute
from lorascope.engine.step import Resources, Step
from lorascope.engine.store import lock as lock_module
from lorascope.engine.store.directory import Store
from lorascope.engine.store.lock import StepLock
from lorascope.engine.workers.inline import InlineExecutor
from lorascope.engine.workers.local import LocalExecutor
from lorascope.errors import DataError, EnvironmentProblem, StepFailure
from lorascope.plugins import NameTable

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def joined_cluster() -> Iterator[None]:
    """A Ray cluster that this process is part of, and that the processes it starts find."""
    import ray

    with ray_cluster(1, num_cpus=8) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(params=sorted(registry.EXECUTORS))
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("joined_cluster")
    return request.param


@pytest.fixture
def executor(kind: str, store: Store) -> Iterator[Executor]:
    made = registry.resolve(registry.EXECUTORS, kind)(store, devices=["cpu"])
    made.prepare()
    yield made
    made.close()


@pytest.fixture
def local(store: Store) -> Iterator[Callable[..., LocalExecutor]]:
    made: list[LocalExecutor] = []

    def make_local(*devices: str) -> LocalExecutor:
        made.append(LocalExecutor(store, devices=devices))
        return made[-1]

    yield make_local
    for executor in made:
        executor.close()


def run(steps: list[Step], store: Store, executor: Executor) -> tuple[Computed, list[Event]]:
    events: list[Event] = []
    return execute(steps, store=store, executor=executor, emit=events.append, poll_s=0.05), events


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def start_coordinator(store: Store, steps: list[Step], executor: str) -> subprocess.Popen[str]:
    store.root.mkdir(parents=True, exist_ok=True)
    graph = store.root / "graph.json"
    graph.write_text(json.dumps([step.to_json() for step in steps]))
    command = [sys.executable, str(HERE / "engine_coordinator.py"), str(store.root), str(graph), executor]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())


def run_while_waiting(store: Store, step: Step, tally: Path) -> subprocess.Popen[str]:
    """Another process that has begun `step`, which leaves a line in `tally`."""
    other = start_coordinator(store, [step], "inline")
    wait_until(tally.exists)
    return other


# ------------------------------------------------------------------------------------------------- every executor


def test_a_chain_is_computed_in_order_and_a_second_time_is_all_cached(store, executor):
    first = make("count", value=1)
    second = make("count", value=10, deps={"before": first.id})
    third = make("count", value=100, deps={"a": first.id, "b": second.id})
    outcome, events = run([third, second, first], store, executor)
    assert outcome.done == [first.id, second.id, third.id]
    assert not outcome.cached
    assert store.artifact(third.id).result == {"value": 112}
    kinds = [type(event) for event in events if event.step == second.id]
    assert kinds == [StepStarted, CurvePoint, StepFinished]
    again, events = run([third, second, first], store, executor)
    assert not again.done
    assert set(again.cached) == {first.id, second.id, third.id}
    assert events == []


def test_only_what_is_missing_is_computed(store, executor, tmp_path):
    first = make("count", value=1, tally=str(tmp_path / "tally"))
    second = make("count", value=2, tally=str(tmp_path / "tally"), deps={"before": first.id})
    run([first], store, executor)
    outcome, _ = run([first, second], store, executor)
    assert outcome.cached == [first.id]
    assert outcome.done == [second.id]
    assert (tmp_path / "tally").read_text().split() == [first.id, second.id]


def test_a_dependency_in_the_store_need_not_be_given(store, executor):
    first = make("count", value=1)
    second = make("count", value=2, deps={"before": first.id})
    run([first], store, executor)
    outcome, _ = run([second], store, executor)
    assert outcome.done == [second.id]


def test_a_step_that_must_be_alone_overlaps_no_other(store, local):
    executor = local("cpu", "cpu", "cpu")
    quiet = [make_alone("span", value=v, sleep_s=0.1) for v in (1, 2)]
    others = [make("span", value=v, sleep_s=0.1) for v in range(3, 7)]
    outcome, _ = run([quiet[0], *others[:2], quiet[1], *others[2:]], store, executor)
    assert len(outcome.done) == 6
    check_alone(store, quiet, others)


def check_alone(store: Store, quiet: list[Step], others: list[Step]) -> None:
    spans = {step.id: store.artifact(step.id).result for step in [*quiet, *others]}
    for step in quiet:
        mine = spans[step.id]
        overlaps = [i for i, s in spans.items() if s["started"] < mine["ended"] and mine["started"] < s["ended"]]
        assert overlaps == [step.id]


def test_a_failure_blocks_its_dependents_and_nothing_else(store, executor):
    bad = make("wrong")
    blocked = make("count", value=1, deps={"x": bad.id})
    also_blocked = make("count", value=2, deps={"x": blocked.id})
    fine = make("count", value=3)
    outcome, events = run([bad, blocked, also_blocked, fine], store, executor)
    assert outcome.done == [fine.id]
    assert list(outcome.failed) == [bad.id]
    assert outcome.blocked == {blocked.id: bad.id, also_blocked.id: bad.id}
    failed = [event for event in events if isinstance(event, StepFailed)]
    assert [(event.step, event.error) for event in failed] == [(bad.id, "ValueError")]
    assert "ValueError: the step is wrong" in failed[0].text
    assert "in wrong" in (failed[0].traceback or "")
    assert [(event.step, event.by) for event in events if isinstance(event, StepBlocked)] == [
        (blocked.id, bad.id),
        (also_blocked.id, bad.id),
    ]
    recorded = store.failure(bad.id)
    assert recorded is not None
    assert recorded.message == "ValueError: the step is wrong"


def test_a_plan_grows_by_what_was_found(store, executor):
    """Each step's result says what the next is, as a search's trials do."""

    def plan() -> list[Step]:
        steps = [make("count", value=1)]
        while store.has(steps[-1].id) and len(steps) < 4:
            found = store.artifact(steps[-1].id).result["value"]
            steps.append(make("count", value=found * 10, deps={"before": steps[-1].id}))
        return steps

    events: list[Event] = []
    options = {"store": store, "executor": executor, "emit": events.append, "poll_s": 0.05, "more": plan}
    outcome = execute(plan(), **options)
    assert [store.artifact(step_id).result["value"] for step_id in outcome.done] == [1, 11, 121, 1331]
    again = execute(plan()[:1], **options)
    assert (again.done, again.cached) == ([], outcome.done)


def test_a_step_planned_after_what_it_needs_has_failed_is_blocked(store, executor):
    bad, fine = make("wrong"), make("count", value=1)
    blocked = make("count", value=2, deps={"x": bad.id})
    late = make("count", value=3, deps={"x": blocked.id, "y": fine.id})

    def more() -> list[Step]:
        return [bad, fine, blocked, late] if store.has(fine.id) else []

    outcome = execute(
        [bad, fine, blocked], store=store, executor=executor, emit=lambda event: None, poll_s=0.05, more=more
    )
    assert outcome.done == [fine.id]
    assert list(outcome.failed) == [bad.id]
    assert outcome.blocked == {blocked.id: bad.id, late.id: bad.id}


def test_a_failed_step_is_tried_again_by_the_next_run(store, executor):
    bad = make("wrong")
    for _ in range(2):
        outcome, events = run([bad], store, executor)
        assert list(outcome.failed) == [bad.id]
        assert [type(event) for event in events] == [StepStarted, StepFailed]


def test_a_mistake_keeps_its_class_hint_place_and_exit_code(store, executor):
    step = make("mistaken")
    outcome, _ = run([step], store, executor)
    failure = outcome.failed[step.id]
    error = failure.to_error()
    assert type(error) is DataError
    assert error.exit_code == failure.exit_code == 2
    assert (error.message, error.hint, error.where) == (
        "column 'labl' is missing",
        "did you mean 'label'?",
        "study.yaml:7",
    )
    assert failure.traceback is None
    assert failure.text == "study.yaml:7: column 'labl' is missing\n  hint: did you mean 'label'?"
    recorded = store.failure(step.id)
    assert recorded is not None
    assert recorded.to_error().args == error.args


def test_an_unknown_exception_becomes_a_step_failure_with_its_traceback(store, executor):
    step = make("wrong")
    outcome, _ = run([step], store, executor)
    failure = outcome.failed[step.id]
    assert type(failure.to_error()) is StepFailure
    assert failure.exit_code == 1
    assert 'raise ValueError("the step is wrong")' in (failure.traceback or "")


def test_running_out_of_memory_names_the_setting_to_lower(store, executor):
    step = make("exhaust")
    outcome, _ = run([step], store, executor)
    error = outcome.failed[step.id].to_error()
    assert "ran out of memory on cpu" in error.message
    assert "train.micro_batch_size" in (error.hint or "")


def test_stray_prints_do_not_reach_the_events(store, executor):
    step = make("chatty")
    outcome, events = run([step], store, executor)
    assert outcome.done == [step.id]
    assert [event.text for event in events if isinstance(event, Notice)] == ["heard"]


def test_steps_that_share_a_model_run_one_after_another_on_what_is_warm(store, executor):
    steps = [make("warm", model=model, seed=seed) for seed in range(3) for model in ("a", "b")]
    outcome, _ = run(steps, store, executor)
    models = [store.artifact(step_id).step.params["model"] for step_id in outcome.done]
    assert models == ["a", "a", "a", "b", "b", "b"]
    assert [store.artifact(step_id).result["seen"] for step_id in outcome.done] == [0, 1, 2, 0, 1, 2]


def test_what_came_to_light_waits_for_what_was_known(store, executor):
    """Two searches: the second round of one does not keep the first of the other waiting."""
    first, other, second = (
        make("warm", model="a", seed=0),
        make("warm", model="b", seed=0),
        make("warm", model="a", seed=1),
    )
    options = {"store": store, "executor": executor, "emit": lambda event: None, "poll_s": 0.05}
    outcome = execute([first, other], **options, more=lambda: [second] if store.has(first.id) else [])
    assert outcome.done == [first.id, other.id, second.id]


def test_the_order_is_that_given_when_nothing_is_shared(store, executor):
    steps = [make("count", value=value) for value in (5, 3, 9, 1)]
    outcome, _ = run(steps, store, executor)
    assert outcome.done == [step.id for step in steps]


def test_a_missing_dependency_is_named(store, executor):
    lost = make("count", value=1)
    step = make("count", value=2, deps={"before": lost.id})
    with pytest.raises(AssertionError, match=rf"{step.id} needs {lost.id} as before"):
        run([step], store, executor)


def test_a_circle_is_named(store, executor):
    one, two = make("count", value=1, deps={"x": "two"}), make("count", value=2, deps={"x": "one"})
    one.__dict__["id"], two.__dict__["id"] = "one", "two"
    with pytest.raises(AssertionError, match=r"one -> two -> one|two -> one -> two"):
        run([one, two], store, executor)


def test_a_full_disk_stops_the_study_instead_of_failing_every_step(store, executor):
    steps = [make("disk_full", n=n) for n in range(3)]
    with pytest.raises(EnvironmentProblem, match="no space is left"):
        run(steps, store, executor)
    assert not any(store.failure(step.id) for step in steps)


def test_a_step_under_way_elsewhere_is_waited_for_and_not_computed_twice(store, executor, tmp_path):
    tally, done_here = tmp_path / "tally", str(tmp_path / "done-here")
    slow = make("count", value=1, tally=str(tally), until=done_here)
    after = make("count", value=2, deps={"before": slow.id})
    free = make("count", value=7, tells=done_here)
    other = run_while_waiting(store, slow, tally)
    outcome, _ = run([slow, after, free], store, executor)
    assert slow.id in outcome.cached
    assert outcome.done == [free.id, after.id], "the other one ends when what is free was done"
    assert other.wait() == 0
    assert tally.read_text().split() == [slow.id]


def test_a_step_whose_process_is_killed_elsewhere_is_computed_here(store, executor, tmp_path):
    tally = tmp_path / "tally"
    slow = make("count", value=1, lingers=True, tally=str(tally))
    other = run_while_waiting(store, slow, tally)
    other.kill()
    outcome, _ = run([slow], store, executor)
    assert outcome.done == [slow.id]
    other.wait()


def test_a_step_of_a_lost_machine_is_computed_once_its_lock_is_stale(store, executor, monkeypatch):
    step, other = make("count", value=1), make("count", value=2)
    me = lock_module.this_process()
    foreign = lock_module._spell(dataclasses.replace(me, host="elsewhere", machine="another machine"), 12)
    (store.root / "locks" / step.id).mkdir(parents=True)
    (store.root / "locks" / step.id / "00000004").write_bytes(foreign)
    soon_stale = functools.partial(StepLock, stale_after_s=0.3)
    monkeypatch.setattr(store, "lock", lambda step_id: soon_stale(store.root / "locks" / step_id))
    outcome, _ = run([step, other], store, executor)
    assert sorted(outcome.done) == sorted([other.id, step.id])


def fails_elsewhere(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_wrong: bool) -> Step:
    """A step that another process has begun and that fails there once we have found it busy."""
    files = {"tally": str(tmp_path / "tally"), "until": str(tmp_path / "until")}
    step = make("fail_late", is_wrong=is_wrong, **files)
    start_coordinator(store, [step], "inline")
    wait_until((tmp_path / "tally").exists)

    def failure(step_id: str) -> Failure | None:
        found = type(store).failure(store, step_id)
        (tmp_path / "until").touch()
        return found

    monkeypatch.setattr(store, "failure", failure)
    return step


def test_a_failure_elsewhere_is_taken_over_and_not_repeated(store, executor, tmp_path, monkeypatch):
    bad = fails_elsewhere(store, tmp_path, monkeypatch, is_wrong=True)
    outcome, _ = run([bad], store, executor)
    assert list(outcome.failed) == [bad.id]
    assert (tmp_path / "tally").read_text().split() == [bad.id]


def test_what_found_no_memory_elsewhere_is_tried_here(store, executor, tmp_path, monkeypatch):
    step = fails_elsewhere(store, tmp_path, monkeypatch, is_wrong=False)
    outcome, _ = run([step], store, executor)
    assert outcome.done == [step.id]
    assert (tmp_path / "tally").read_text().split() == [step.id] * 2


def test_two_coordinators_share_the_work_and_compute_nothing_twice(store, tmp_path, kind):
    tally = tmp_path / "tally"
    steps = [make("meet", value=value, num=2, place=str(tmp_path / "place"), tally=str(tally)) for value in range(20)]
    both = [start_coordinator(store, steps, kind) for _ in range(2)]
    outcomes = [json.loads(coordinator.communicate(timeout=300)[0]) for coordinator in both]
    assert Counter(tally.read_text().split()) == {step.id: 1 for step in steps}
    assert sorted(outcomes[0]["done"] + outcomes[1]["done"]) == sorted(step.id for step in steps)
    for outcome in outcomes:
        assert sorted(outcome["done"] + outcome["cached"]) == sorted(step.id for step in steps)
    assert all(outcome["done"] for outcome in outcomes), "no step ends before both have begun one"


def test_an_interrupt_stops_at_once_and_releases_the_locks(store, tmp_path, kind):
    tally = tmp_path / "tally"
    slow = make("count", value=1, sleep_s=3600.0, tally=str(tally))
    coordinator = start_coordinator(store, [slow], kind)
    wait_until(tally.exists)
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(timeout=300) == 130, "long before the step would have ended"
    assert store.lock(slow.id).holder() is None
    assert b"released" in next((store.root / "locks" / slow.id).iterdir()).read_bytes()
    assert list((store.root / "staging").iterdir()) == []


# ---------------------------------------------------------------------------------------------- gangs, everywhere


def together(store: Store, steps: list[Step]) -> list[list[str]]:
    """With which others each step was computed, in the order in which their function was given them."""
    return [store.artifact(step.id).result["together"] for step in steps]


def test_a_gang_is_computed_together_and_each_member_is_a_step_of_its_own(store, executor):
    steps = [make_member(seed=seed) for seed in range(3)]
    after = make("count", value=1, deps={})
    ids = [step.id for step in steps]
    outcome, events = run([*steps, after], store, executor)
    assert outcome.done == [*reversed(ids), after.id], "each is committed when it is yielded"
    assert together(store, steps) == [ids] * 3
    for step in steps:
        assert [type(event) for event in events if event.step == step.id] == [StepStarted, CurvePoint, StepFinished]
        assert store.artifact(step.id).provenance["gang"] == 3
        assert store.artifact(step.id).file("value.txt").read_text() == step.id
        assert store.verify(step.id) == []
    assert store.artifact(after.id).provenance["gang"] == 1
    assert [path for name in ("locks", "staging", "work") for path in (store.root / name).iterdir()] == []


def test_a_member_fails_alone_and_what_is_warm_stays(store, executor):
    steps = [make_member(seed=0), make_member(seed=1, ends="fails"), make_member(seed=2)]
    late = make_member(key="other", seed=3)
    outcome, _ = run([*steps, late], store, executor)
    assert outcome.done == [steps[2].id, steps[0].id, late.id]
    assert list(outcome.failed) == [steps[1].id]
    recorded = store.failure(steps[1].id)
    assert recorded is not None
    assert recorded.message == "ValueError: this member is wrong"
    assert store.artifact(late.id).result["gangs_before"] == 1


def test_what_leaves_the_gang_function_fails_all_that_were_not_yielded(store, executor):
    steps = [make_member(seed=0), make_member(seed=1, ends="raises"), make_member(seed=2)]
    late = make_member(key="other", seed=3)
    outcome, events = run([*steps, late], store, executor)
    assert outcome.done == [steps[2].id, late.id]
    assert [outcome.failed[step.id].message for step in steps[:2]] == ["ValueError: the gang is wrong"] * 2
    assert [event.step for event in events if isinstance(event, StepFailed)] == [step.id for step in steps[:2]]
    assert store.artifact(late.id).result["gangs_before"] == 0, "nothing warm is trusted after that"


def test_a_gang_that_ends_too_early_fails_those_it_left_out(store, executor):
    steps = [make_member(seed=0, ends="forgotten"), make_member(seed=1), make_member(seed=2)]
    outcome, _ = run(steps, store, executor)
    assert outcome.done == [steps[2].id, steps[1].id]
    assert "ended without a result of 1 of its 3 steps" in outcome.failed[steps[0].id].message


def test_a_gang_out_of_memory_names_its_size_as_the_setting(store, executor):
    steps = [make_member(seed=seed, ends="exhausts") for seed in range(2)]
    outcome, _ = run(steps, store, executor)
    for step in steps:
        assert outcome.failed[step.id].message.startswith(f"{step.id} ran out of memory on cpu")
        assert "train.gang" in (outcome.failed[step.id].hint or "")


def test_what_a_worker_hands_back_is_given_again(store, executor):
    steps = [make_member(seed=seed, keeps=2) for seed in range(9)]
    outcome, events = run(steps, store, executor)
    assert sorted(outcome.done) == sorted(step.id for step in steps)
    results = [store.artifact(step.id).result for step in steps]
    assert max(len(result["together"]) for result in results) == 2
    assert all(
        store.artifact(step.id).provenance["gang"] == len(result["together"])
        for step, result in zip(steps, results, strict=True)
    )
    first = next(result["together"] for result in results if result["given"] == 9)
    for step in steps:
        told = [type(event) for event in events if event.step == step.id]
        returned = [StepStarted, StepHandedBack] * told.count(StepHandedBack)
        assert told == [*returned, StepStarted, CurvePoint, StepFinished]
        assert bool(returned) == (step.id not in first)
    assert [path for name in ("locks", "staging", "work") for path in (store.root / name).iterdir()] == []


def test_a_worker_is_given_twice_what_the_last_one_kept(store):
    """Of one kind each finds room for two. Of the other the first finds room for one, and who comes after takes all."""
    narrow = [make_member(seed=seed, keeps=2, key="narrow") for seed in range(9)]
    wide = [make_member(seed=0, keeps=1), *(make_member(seed=seed) for seed in range(1, 10))]
    run([*narrow, *wide], store, InlineExecutor(store, devices=["cpu"]))
    given = [[store.artifact(step.id).result["given"] for step in steps] for steps in (narrow, wide)]
    assert given == [[9, 9, 4, 4, 4, 4, 3, 3, 1], [10, 2, 2, 4, 4, 4, 4, 3, 3, 3]]


def test_what_a_worker_hands_back_goes_to_one_that_is_free(store, local, tmp_path):
    told = str(tmp_path / "told")
    alone = make("span", sleep_s=0.0)
    steps = [make_member(seed=0, keeps=1, until=told), make_member(seed=1, keeps=1, tells=told)]
    outcome, _ = run([alone, *steps], store, local("cpu", "cpu"))
    assert len(outcome.done) == 3
    assert store.artifact(steps[0].id).result["given"] == 2
    assert store.artifact(steps[1].id).result["pid"] != store.artifact(steps[0].id).result["pid"]


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 2, 2, 1]), (None, [5] * 5)])
def test_a_gang_is_no_larger_than_its_limit(store, executor, limit, sizes):
    steps = [make_member(seed=seed, limit=limit) for seed in range(5)]
    run(steps, store, executor)
    assert [len(members) for members in together(store, steps)] == sizes


def test_only_steps_of_one_key_and_kind_run_together(store, executor):
    a, b = [make_member(key="a", seed=seed) for seed in range(2)], [make_member(key="b", seed=seed) for seed in (2, 3)]
    other_kind = Step(kind="engine_member_too", version=1, params={"seed": 1}, resources=a[0].resources)
    keyless = Step(kind="engine_member", version=1, params={"seed": 9})
    outcome, _ = run([a[0], b[0], other_kind, keyless, a[1], b[1]], store, executor)
    assert not outcome.failed
    assert together(store, [*a, *b]) == [[step.id for step in a]] * 2 + [[step.id for step in b]] * 2
    assert together(store, [other_kind, keyless]) == [[other_kind.id], [keyless.id]]


@pytest.mark.parametrize("functions", [{}, {"plain": "engine_steps:member_gang"}])
def test_only_kinds_with_a_gang_function_run_together(store, monkeypatch, functions):
    monkeypatch.setattr(registry, "STEP_KINDS", NameTable("step_kinds", {"plain": "engine_steps:member"}))
    monkeypatch.setattr(registry, "GANG_FUNCTIONS", NameTable("gang_functions", functions))
    resources = make_member().resources
    steps = [Step(kind="plain", version=1, params={"seed": seed}, resources=resources) for seed in range(2)]
    run(steps, store, InlineExecutor(store, devices=["cpu"]))
    assert [len(members) for members in together(store, steps)] == ([2, 2] if functions else [1, 1])


def test_a_gang_prefers_those_that_share_its_inputs(store, executor):
    one, two = make("count", value=1), make("count", value=2)
    steps = [make_member(seed=seed, limit=2, deps={"tokens": (one, two)[seed % 2].id}) for seed in range(5)]
    run([one, two, *steps], store, executor)
    first, second, third, fourth, fifth = (step.id for step in steps)
    assert together(store, steps) == [[first, third], [fifth, second], [first, third], [fourth], [fifth, second]]


def test_a_member_under_way_elsewhere_is_left_out_of_the_gang(store, executor):
    slow = make_member(seed=0, part_s=1.0)
    others = [make_member(seed=seed) for seed in (1, 2)]
    elsewhere = start_coordinator(store, [slow], "inline")
    wait_until(lambda: store.lock(slow.id).holder())
    outcome, _ = run([slow, *others], store, executor)
    assert outcome.cached == [slow.id]
    assert together(store, others) == [[step.id for step in others]] * 2
    assert elsewhere.wait() == 0


def test_an_interrupt_releases_the_locks_of_a_whole_gang(store, kind):
    steps = [make_member(seed=seed, part_s=3600.0) for seed in range(3)]
    coordinator = start_coordinator(store, steps, kind)
    wait_until(lambda: all((owner := store.lock(step.id).holder()) and owner.pid for step in steps))
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(timeout=300) == 130
    assert [store.lock(step.id).holder() for step in steps] == [None] * 3
    assert list((store.root / "staging").iterdir()) == []


# -------------------------------------------------------------------------------------------------- local workers


def test_a_killed_worker_is_replaced_and_its_step_tried_again(store, local):
    step, after = make("die", times=2), make("count", value=1)
    outcome, events = run([step, after], store, local("cpu"))
    assert outcome.done == [step.id, after.id]
    assert store.artifact(step.id).result == {"deaths": 2}
    notices = [event for event in events if isinstance(event, Notice)]
    assert len(notices) == 2
    assert all("SIGKILL" in notice.text and notice.level == "warning" for notice in notices)
    assert [event.attempt for event in events if isinstance(event, StepStarted)] == [1, 2, 3, 1]


def test_a_step_that_keeps_killing_its_worker_fails_and_the_others_go_on(store, local):
    step, after = make("die", times=99), make("count", value=1)
    outcome, _ = run([step, after], store, local("cpu"))
    assert outcome.done == [after.id]
    failure = outcome.failed[step.id]
    assert "lost its worker 3 times, last by SIGKILL" in failure.message
    assert "short of memory" in (failure.hint or "")
    assert failure.log is not None
    assert Path(failure.log).exists()
    recorded = store.failure(step.id)
    assert recorded is not None
    assert recorded.message == failure.message


def test_members_of_a_killed_gang_resume_from_their_own_checkpoints(store, local):
    steps = [make_member(seed=0), make_member(seed=1, num_parts=3, ends="kills", times=1), make_member(seed=2)]
    outcome, events = run(steps, store, local("cpu"))
    assert sorted(outcome.done) == sorted(step.id for step in steps)
    assert together(store, steps) == [[step.id for step in steps]] * 3
    # The kill came when the third had not got to its first checkpoint.
    assert [store.artifact(step.id).result["resumed_at"] for step in steps] == [1, 1, 0]
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert f"SIGKILL) during {steps[0].id} and 2 more; trying again" in notice.text
    for step in steps:
        assert [event.attempt for event in events if isinstance(event, StepStarted) and event.step == step.id] == [1, 2]


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_a_member_that_keeps_killing_its_worker_takes_no_others_with_it(store, local, devices):
    bad = make_member(seed=1, ends="kills", times=99, limit=3)
    good = [make_member(seed=seed) for seed in (0, 2, 3)]
    outcome, events = run([good[0], bad, *good[1:]], store, local(*devices))
    assert sorted(outcome.done) == sorted(step.id for step in good)
    assert list(outcome.failed) == [bad.id]
    assert "lost its worker 3 times, last by SIGKILL" in outcome.failed[bad.id].message
    assert together(store, good[:1]) == [[good[0].id]]
    assert store.artifact(good[0].id).result["resumed_at"] == 1
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert len(notices) == 2
    assert notices[1].endswith("trying each again alone")
    assert not any(store.lock(step.id).holder() for step in (bad, *good))


def test_runs_on_other_data_only_fill_a_small_gang(store, local):
    first, other = (Step(kind="engine_count", version=1, params={"value": value}) for value in (1, 2))
    many = [make_member(seed=seed, deps={"data": first.id}) for seed in range(5)]
    few = [make_member(seed=seed, deps={"data": other.id}) for seed in range(5, 8)]
    run([first, other, *many, *few], store, local("cpu"))
    assert [len(members) for members in together(store, [*many, *few])] == [5] * 5 + [3] * 3


def test_free_workers_share_the_members(store, local):
    steps = [make_member(seed=seed, part_s=0.05) for seed in range(5)]
    run(steps, store, local("cpu", "cpu"))
    ids = [step.id for step in steps]
    assert together(store, steps) == [ids[:3]] * 3 + [ids[3:]] * 2
    assert len({store.artifact(step_id).result["pid"] for step_id in ids}) == 2


def test_a_worker_stays_warm_and_each_device_has_its_own(store, local):
    steps = [make("warm", model="m", seed=seed, sleep_s=0.1) for seed in range(8)]
    run(steps, store, local("cpu", "cpu"))
    seen: dict[int, list[int]] = {}
    for step in steps:
        result = store.artifact(step.id).result
        seen.setdefault(result["pid"], []).append(result["seen"])
    assert len(seen) == 2
    assert os.getpid() not in seen
    for counts in seen.values():
        assert sorted(counts) == list(range(len(counts)))


def test_a_step_that_others_left_no_memory_is_tried_again_alone(store, local, tmp_path):
    files = {"held": str(tmp_path / "held"), "missed": str(tmp_path / "missed")}
    holds, needs = make("hold", **files), make("need", sleep_s=0.5, **files)
    later = [make("span", sleep_s=0.1, seed=seed) for seed in range(15)]
    outcome, events = run([holds, needs, *later], store, local("cpu", "cpu"))
    assert not outcome.failed
    assert [e.text for e in events if isinstance(e, Notice)] == [
        f"{needs.id} ran out of memory next to others; it is tried again when it has cpu to itself"
    ]
    alone, others = store.artifact(needs.id).result, [store.artifact(step.id).result for step in later]
    assert all(other["ended"] <= alone["started"] or alone["ended"] <= other["started"] for other in others)
    assert any(alone["ended"] <= other["started"] for other in others), "the device is kept free for it"


def test_a_step_that_finds_no_memory_alone_either_fails(store, local, tmp_path):
    tally = tmp_path / "tally"
    busy, step = make("count", value=1, model="m"), make("exhaust", tally=str(tally))  # whose worker keeps a model
    outcome, _ = run([busy, step], store, local("cpu", "cpu"))
    assert "ran out of memory on cpu" in outcome.failed[step.id].message
    assert len(tally.read_text().splitlines()) == 2
    assert outcome.done == [busy.id]


def test_a_failed_step_leaves_nothing_warm_behind(store, local):
    one, bad, two = make("warm", model="m", seed=1), make("spoil", model="m"), make("warm", model="m", seed=2)
    run([one, bad, two], store, local("cpu"))
    assert store.artifact(two.id).result["seen"] == 0


def test_nothing_starts_when_everything_is_cached(store, local):
    step = make("count", value=1)
    run([step], store, InlineExecutor(store, devices=["cpu"]))
    run([step], store, local("cpu"))
    assert not (store.root / "logs").exists()


def test_what_a_worker_prints_is_kept_in_its_log(store, local):
    run([make("chatty"), make("wrong")], store, local("cpu"))
    log = next((store.root / "logs").iterdir()).read_text()
    assert "raw bytes" in log
    assert "ValueError: the step is wrong" in log


def test_a_worker_that_died_idle_costs_no_attempt(store, local):
    executor = local("cpu")
    run([make("warm", model="m", seed=1)], store, executor)
    pid = store.artifact(make("warm", model="m", seed=1).id).result["pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and still to be found out
    outcome, events = run([make("warm", model="m", seed=2)], store, executor)
    assert len(outcome.done) == 1
    assert not any(isinstance(event, Notice) for event in events)


def test_a_worker_that_cannot_start_says_why_and_is_not_tried_for_ever(store, local, monkeypatch, tmp_path):
    (tmp_path / "hollow" / "lorascope").mkdir(parents=True)  # found before any installed one, and nothing in it
    (tmp_path / "hollow" / "lorascope" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "hollow")])
    with pytest.raises(EnvironmentProblem, match=r"could not start .exit code 1.: .*No module named"):
        run([make("count", value=1)], store, local("cpu"))


def test_a_step_that_needs_an_absent_accelerator_names_the_remedy(store, local):
    base = make("count", value=1)
    picky = Step(kind=base.kind, version=1, params={"value": 2}, resources=Resources(device="accelerator"))
    outcome, _ = run([picky, base], store, local("cpu"))
    assert outcome.done == [base.id]
    assert type(outcome.failed[picky.id].to_error()) is EnvironmentProblem
    assert "this machine has cpu" in outcome.failed[picky.id].message


def test_workers_end_when_their_coordinator_is_killed(store, tmp_path):
    tally = tmp_path / "tally"
    slow = make("count", value=1, sleep_s=3600.0, tally=str(tally))
    coordinator = start_coordinator(store, [slow], "local")
    wait_until(tally.exists)
    owner = store.lock(slow.id).holder()
    assert owner is not None
    assert owner.pid != coordinator.pid
    coordinator.kill()
    coordinator.wait()
    wait_until(owner.is_gone)
    assert store.lock(slow.id).holder() is None


def by_hand(store: Store, step_id: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorascope.engine.workers.worker", "--store", str(store.root), "--device", "cpu"]
    return subprocess.run([*command, "--step", step_id], capture_output=True, text=True, env=environment())


def test_any_step_runs_by_hand_from_its_id(store):
    good, bad, mistaken = make("count", value=1), make("wrong"), make("mistaken")
    late = make("count", value=2, deps={"x": bad.id})
    for step in (good, bad, mistaken, late):
        store.save_step(step)
    shown = by_hand(store, good.id)
    assert shown.returncode == 0
    assert Path(shown.stdout.strip()) == store.artifact(good.id).path
    assert "already done" in by_hand(store, good.id).stderr
    shown = by_hand(store, bad.id)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    shown = by_hand(store, mistaken.id)
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr
    assert shown.stderr == "error: study.yaml:7: column 'labl' is missing\n  hint: did you mean 'label'?\n"
    shown = by_hand(store, "train-unknown")
    assert shown.returncode == 2
    assert "does not know a step 'train-unknown'" in shown.stderr
    shown = by_hand(store, late.id)
    assert shown.returncode == 3
    assert f"needs {bad.id}, not done yet" in shown.stderr


def test_the_kinds_used_here_are_found_by_workers():
    assert Path(engine_steps.__file__).parent == HERE


def test_idle_workers_are_ended_before_a_step_that_must_be_alone(store, local, tmp_path):
    executor = local("cpu", "cpu")
    others = [make("meet", value=v, num=2, place=str(tmp_path / "place")) for v in (1, 2)]
    quiet = make_alone("span", value=3, sleep_s=0.1, deps={f"{i}": s.id for i, s in enumerate(others)})
    last = make("span", value=4, sleep_s=0.0, deps={"quiet": quiet.id})
    outcome, _ = run([*others, quiet, last], store, executor)
    assert len(outcome.done) == 4
    check_alone(store, [quiet], [*others, last])
    pids = {store.artifact(step.id).result["pid"] for step in others}
    assert len(pids) == 2, "both workers were used"
    (idle,) = pids - {store.artifact(quiet.id).result["pid"]}
    assert not Path(f"/proc/{idle}").exists()
