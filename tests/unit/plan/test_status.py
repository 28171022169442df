"""A study looked at from outside: states from the store, holders from locks, progress from the log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from plan_fixture import finish, finish_preparation, small_graph, trained

from lorascope.cli.status_verb import left_in_words
from lorascope.engine.events import CurvePoint, Event, StepProgress, StepStarted
from lorascope.engine.failure import Failure
from lorascope.engine.store.directory import Store
from lorascope.errors import GateFailure
from lorascope.plan.graph import Graph
from lorascope.plan.status import StatusReader
from lorascope.plan.steps.results import analysis_step
from lorascope.tracking.follow import LogFollower
from lorascope.tracking.jsonl import JsonlSink

_HOLDER = """
import sys
from pathlib import Path
from lorascope.engine.store.directory import Store
locks = [Store(Path(sys.argv[1])).lock(step) for step in sys.argv[2:]]
print(all(lock.try_acquire() for lock in locks), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return small_graph(tmp_path)


@pytest.fixture
def store(tmp_path: Path, graph: Graph) -> Store:
    store = Store(tmp_path / "store")
    finish_preparation(store, graph)
    return store


@contextmanager
def another_process_at(store: Store, *steps: str) -> Iterator[int]:
    """A live process that holds the locks of these steps; its pid."""
    command = [sys.executable, "-c", _HOLDER, str(store.root), *steps]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        yield process.pid
        process.kill()


def reader(graph: Graph, store: Store, **options: object) -> StatusReader:
    return StatusReader(lambda: graph, store, store.root.parent / "results" / "small" / "events.jsonl", **options)  # type: ignore[arg-type]


def tell(store: Store, *events: Event) -> None:
    with JsonlSink(store.root.parent / "results" / "small" / "events.jsonl") as log:
        for event in events:
            log(event)


def progress(step: str, *news: tuple[float, float], is_even: bool = True) -> list[StepProgress]:
    """News of a run of 120 updates: (time in seconds, updates done)."""
    return [
        StepProgress(step=step, done=done, total=120, unit="update", time_s=at, is_even=is_even) for at, done in news
    ]


def only(graph: Graph, *steps: str) -> Graph:
    """The graph without the runs, scores and drift of others."""
    kept = [s for s in graph.steps if s.id in steps or s.kind in ("data", "tokens", "sanity")]
    return replace(graph, steps=kept)


def test_states_come_from_the_store_alone(graph: Graph, store: Store) -> None:
    run = graph.of_kind("train")[0]
    store.record_failure(run.id, Failure.of(run.id, GateFailure("the loss became nan")))
    found = reader(graph, store).read()
    states = {step.id: state for step, _, state in found.states}
    blocked = {step.id for step in graph.steps if run.id in step.deps.values()}
    assert {i for i, state in states.items() if state == "failed"} == {run.id}
    assert {i for i, state in states.items() if state == "blocked"} == blocked
    assert found.phases()["sanity and baselines"] == {"done": 4, "missing": 1}
    assert found.running == ()
    assert not found.is_over


def test_another_processes_gang_is_shown_with_progress_and_loss(graph: Graph, store: Store) -> None:
    first, second = (step.id for step in graph.of_kind("train")[:2])
    with another_process_at(store, first, second) as pid:
        tell(
            store,
            StepProgress(step=first, done=120, total=120, unit="update"),  # of an attempt before this one
            StepStarted(step=first, worker="cpu-0"),
            StepProgress(step=first, done=30, total=120, unit="update"),
            CurvePoint(step=first, name="train/loss", value=0.5, at=29),
            CurvePoint(step=first, name="validation/loss", value=0.9, at=29),
        )
        found = reader(graph, store).read()
    (gang,) = found.running
    assert (gang.kind, gang.pid, gang.is_of_study) == ("train", pid, True)
    assert [member.step_id for member in gang.members] == [first, second]
    assert (gang.members[0].done, gang.members[0].total, gang.members[0].loss) == (30, 120, 0.5)
    assert (gang.members[1].done, gang.members[1].loss) == (None, None)
    assert found.workers == [(gang.host, pid)]
    assert abs(found.at_s - gang.since_s) < 60
    assert {step.id for step, _, state in found.states if state == "running"} == {first, second}


def test_a_holder_that_died_no_longer_runs(graph: Graph, store: Store) -> None:
    run = graph.of_kind("train")[0].id
    with another_process_at(store, run):
        looking = reader(graph, store)
        assert len(looking.read().running) == 1
    assert looking.read().running == ()


def test_the_work_of_others_on_the_store_is_told_apart(graph: Graph, store: Store) -> None:
    with another_process_at(store, "train-of-another-study-0123"):
        found = reader(graph, store).read()
    (gang,) = found.running
    assert not gang.is_of_study
    assert all(state != "running" for _, _, state in found.states)


def test_the_time_left_is_none_while_nothing_supports_one(graph: Graph, store: Store) -> None:
    assert reader(graph, store).read().left is None


def test_time_left_rests_on_finished_and_running_runs(graph: Graph, store: Store) -> None:
    """One of two arms is finished at 20 s a run; a run of the other is half through after 30 s, its twin is to come."""
    full, lora = graph.of_kind("train")[:2], graph.of_kind("train")[2:]
    finish(store, full[0], seconds=20, result=trained(training=12, evaluation=6))
    with another_process_at(store, lora[0].id):
        tell(store, *progress(lora[0].id, (100, 0), (130, 60)))
        found = reader(graph, store).read()
    assert found.left is not None
    # 30 s are left of the running one; then 20 s of full's second run and 60 s of lora's second, on one worker.
    assert found.left.seconds == pytest.approx(110)
    assert found.left.is_least  # nothing is known of evaluation and drift
    assert found.left.basis == "1 step by finished ones, 1 step by others scaled and the pace of what runs; 1 worker"


def test_what_a_run_found_done_is_no_part_of_its_pace(graph: Graph, store: Store) -> None:
    """Taken up at 60 of 120 updates, it did 20 more in 10 s: the other 40 take 20 s."""
    run = graph.of_kind("train")[0].id
    with another_process_at(store, run):
        tell(
            store,
            *progress(run, (10, 0), (50, 70)),  # an attempt that was killed
            StepStarted(step=run, worker="cpu-0"),
            *progress(run, (100, 60), (110, 80)),
        )
        found = reader(only(graph, run), store).read()
    assert found.left is not None and found.left.seconds == pytest.approx(20)
    assert not found.left.is_rough


def test_what_compiling_and_capturing_took_is_no_part_of_a_pace(graph: Graph, store: Store) -> None:
    """The first of 120 updates took a minute and a half, the 59 after it half a second each."""
    run = graph.of_kind("train")[0].id
    looking = reader(only(graph, run), store)
    with another_process_at(store, run):
        tell(store, *progress(run, (0, 0), is_even=False), *progress(run, (90, 1)))
        assert looking.read().left is None
        tell(store, *progress(run, (119.5, 60)))
        found = looking.read()
    assert found.left is not None and found.left.seconds == pytest.approx(30)


def test_a_resumed_run_without_a_pace_takes_the_rest_of_its_estimate(graph: Graph, store: Store) -> None:
    first, second = (step for step in graph.of_kind("train")[:2])
    finish(store, first, seconds=20, result=trained(training=12, evaluation=6))
    with another_process_at(store, second.id):
        tell(store, *progress(second.id, (100, 90)))
        found = reader(only(graph, second.id), store).read()
    assert found.left is not None and found.left.seconds == pytest.approx(20 * 30 / 120)


def test_runs_of_a_gang_that_trains_in_turns_wait_for_each_other(graph: Graph, store: Store) -> None:
    """One of three is half through after 30 s, one was put off at a quarter, one has not begun: 30 + 45 + 60 s, roughly."""
    runs = [step.id for step in graph.of_kind("train")[:3]]
    with another_process_at(store, *runs):
        tell(store, *progress(runs[1], (10, 0), (40, 30)), *progress(runs[0], (100, 0), (130, 60)))
        found = reader(only(graph, *runs), store).read()
    assert found.left is not None and found.left.seconds == pytest.approx(30 + 45 + 60)
    assert found.left.is_rough
    assert left_in_words(found).startswith("roughly 2 min 15 s left")


def test_runs_of_a_gang_that_train_together_end_together(graph: Graph, store: Store) -> None:
    runs = [step.id for step in graph.of_kind("train")[:2]]
    with another_process_at(store, *runs):
        tell(store, *(event for run in runs for event in progress(run, (100, 0), (130, 60))))
        found = reader(only(graph, *runs), store).read()
    assert found.left is not None and found.left.seconds == pytest.approx(30)


def test_a_study_is_over_when_its_analysis_is_done_and_not_before(graph: Graph, store: Store) -> None:
    for step in graph.steps:
        if not store.has(step.id):
            finish(store, step, seconds=1, result=trained(training=1, evaluation=0))
    looking = reader(graph, store)
    found = looking.read()
    assert found.states[-1][0].kind == "analysis"
    assert (found.states[-1][2], found.is_over) == ("missing", False)
    last = analysis_step(graph, finished=[step.id for step in graph.steps], failures={})
    assert last is not None
    finish(store, last, seconds=1)
    assert looking.read().is_over


# ----------------------------------------------------------------------------------------------------------------- log


def test_a_log_is_read_on_from_where_the_last_look_ended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = LogFollower(path)
    assert list(follower.new_events()) == []
    first, second = StepStarted(step="a", worker="w"), StepStarted(step="b", worker="w")
    path.write_text(json.dumps(first.to_json()) + "\n" + json.dumps(second.to_json())[:20])
    assert list(follower.new_events()) == [first]
    with path.open("a") as file:
        file.write(json.dumps(second.to_json())[20:] + "\n")
    assert list(follower.new_events()) == [second]
    assert list(follower.new_events()) == []


def test_lines_that_are_not_events_are_skipped_and_new_logs_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = StepStarted(step="a", worker="w")
    path.write_text('{"event": "of-the-future", "x": 1}\n{torn\n' + json.dumps(event.to_json()) + "\n")
    follower = LogFollower(path)
    assert list(follower.new_events()) == [event]
    path.write_text(json.dumps(event.to_json()) + "\n")
    assert list(follower.new_events()) == [event]
