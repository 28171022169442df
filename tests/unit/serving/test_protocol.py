"""Proof before time: what is not proven to be the run is never timed. The engine here is a stand-in that counts requests."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pandas as pd
import pytest

from lorascope.engine.events import StepProgress
from lorascope.serving import protocol, step, together
from lorascope.serving.arms import EngineArm
from lorascope.serving.equivalence import EquivalenceGate
from lorascope.serving.exchange import EngineConfig, EngineFailure, Ready, ServedBatches, ServedRequests
from lorascope.study.measure import ServingSpec


class Engine:
    """Answers every request after 10 ms, and keeps a diary."""

    diary: ClassVar[list[str]] = []
    asked: ClassVar[list[tuple[str, int]]] = []
    """(engine, batch size) of every load"""

    def __init__(self, *arguments: Any, directory: Path, **named: Any) -> None:
        self.name = directory.name
        self.ready = Ready(1.0, {}, "none", {}, {}, None, ())
        self.num_asked = 0
        self.is_over = False
        self.fails: dict[str, EngineFailure] = {}  # at what it is asked next

    def start_again(self, why: str) -> Engine:
        self.end()
        self.is_over = False
        self.ready = replace(self.ready, notes=(why,))
        return self.start()

    def fail_at(self, what: str) -> None:
        if what in self.fails:
            raise self.fails.pop(what)

    def start(self) -> Engine:
        self.diary.append(f"{self.name} starts")
        return self

    def end(self) -> None:
        if not self.is_over:
            self.diary.append(f"{self.name} ends")
        self.is_over = True

    def serve(self, batches: Any, **named: Any) -> ServedBatches:
        self.fail_at("serve")
        self.diary.append(f"{self.name} serves")
        self.asked.append((self.name, len(batches[0])))
        asked = [request for batch in batches for request in batch]
        self.num_asked += len(asked)
        return ServedBatches(
            tuple(ServedRequests(r.id, 0.0, 0.01, 0.01, (0.01,), None, 0.0) for r in asked), (0.01,) * len(batches)
        )

    def memory(self) -> dict[str, int]:
        self.fail_at("memory")
        return {"weights_bytes": 1}


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engines do, in order."""
    monkeypatch.setattr(Engine, "diary", [])
    monkeypatch.setattr(Engine, "asked", [])
    monkeypatch.setattr(protocol, "EngineProcess", Engine)
    monkeypatch.setattr(together, "time", SimpleNamespace(sleep=lambda seconds: Engine.diary.append("rest")))
    return Engine.diary


def comparison_of(
    directory: Path, check: Any, *arms: Any, repeats: int = 1, at_once: int = 3, batch_sizes: tuple[int, ...] = (1,)
) -> protocol.ServingComparison:
    return protocol.ServingComparison(
        spec=ServingSpec(
            arms=arms, batch_sizes=batch_sizes, requests=3, warmup=1, repeats=repeats, engines_at_once=at_once
        ),
        workload="classification",
        arms={arm: EngineArm(arm, directory, {}) for arm in arms},
        prompts=[[5, 6, 7]],
        check=check,
        engine="transformers",
        python=directory,
        config=EngineConfig("classification", directory, {}, "float32", "cpu", 8, 1),
        directory=directory,
    )


def equals_its_run(engine: Any, arm: EngineArm) -> list[EquivalenceGate]:
    return [EquivalenceGate("log-odds", 0.0, 1e-3, True, 1, "")]


@pytest.mark.parametrize("passed", [True, False])
def test_an_arm_is_timed_only_if_it_computes_what_its_run_does(tmp_path: Path, diary: list[str], passed: bool) -> None:
    asked_when_checked = []

    def check(engine: Any, arm: EngineArm) -> list[EquivalenceGate]:
        asked_when_checked.append(engine.num_asked)
        return [EquivalenceGate("log-odds", 0.5, 1e-3, passed, 1, "it answers otherwise")]

    comparison = comparison_of(tmp_path, check, "merged")
    (process,) = comparison.processes()
    ((_, found),) = protocol.run_processes(comparison, [process])
    assert asked_when_checked == [0], "the check comes before any load"
    assert bool(found["figures"]) is passed
    assert (tmp_path / f"{process.name}.parquet").exists() is passed
    assert found["gates"][0]["passed"] is passed
    assert list(protocol.run_processes(comparison, [process])) == [(process, found)], (
        "a second time it is read, not served"
    )
    assert len(asked_when_checked) == 1


@pytest.mark.parametrize("passed", [True, False])
def test_rows_of_a_killed_process_stand_in_no_table(tmp_path: Path, diary: list[str], passed: bool) -> None:
    def check(engine: Any, arm: EngineArm) -> list[EquivalenceGate]:
        return [EquivalenceGate("log-odds", 0.5, 1e-3, passed, 1, "it answers otherwise")]

    directory = tmp_path / "processes"
    directory.mkdir()
    comparison = comparison_of(directory, check, "merged")
    (process,) = comparison.processes()
    killed = pd.DataFrame({"request": [77], "latency_ms": [1.0]})
    killed.to_parquet(directory / f"{process.name}.parquet")
    found = [told for _, told in protocol.run_processes(comparison, [process])]
    context: Any = SimpleNamespace(work=tmp_path)
    table = step._requests_table(context, found)
    assert len(table) == (4 if passed else 0)
    assert not passed or 77 not in set(table["request"])


def test_arms_of_a_repeat_take_turns_and_repeats_do_not_mix(tmp_path: Path, diary: list[str]) -> None:
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", repeats=2, at_once=4, batch_sizes=(1, 2))
    processes = list(comparison.processes())
    found = [told for _, told in protocol.run_processes(comparison, processes)]
    assert sorted(diary[:4]) == sorted(f"{process.name} starts" for process in processes)
    assert diary[4] == "rest" and diary.count("rest") == 1
    expected = []
    for first, second in (processes[:2], processes[2:]):
        warm_up = [(process.name, size) for process in (first, second) for size in (1, 2)]
        expected += [*warm_up, (first.name, 1), (second.name, 1), (first.name, 2), (second.name, 2)]
    assert Engine.asked == expected
    for process in processes:
        mine = [place for place, line in enumerate(diary) if line.startswith(process.name)]
        assert diary[mine[-1]] == f"{process.name} ends" and mine[-1] == mine[-2] + 1, "as soon as it is measured"
    assert [(told["repeat"], told["arm"]) for told in found] == [(p.repeat, p.arm) for p in processes]
    assert all({figure.get("level") for figure in told["figures"]} == {1, 2, None} for told in found)


@pytest.mark.parametrize(
    ("at_once", "sizes"),
    [(3, [3, 3, 3]), (5, [3, 3, 3]), (7, [6, 3]), (20, [9]), (2, [2, 2, 2, 2, 1]), (1, [1] * 9)],
)
def test_engines_are_started_by_whole_repeats_where_one_fits(tmp_path: Path, at_once: int, sizes: list[int]) -> None:
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", "full", repeats=3, at_once=at_once)
    processes = list(comparison.processes())
    groups = list(protocol.groups_started_together(processes, at_once=at_once))
    assert [len(group) for group in groups] == sizes
    assert [process for group in groups for process in group] == processes


def test_an_engine_that_dies_starts_over_while_others_go_on(
    tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", batch_sizes=(1, 2, 4))
    first, second = comparison.processes()
    dies_at_load(monkeypatch, first.name, 2)
    found = dict(protocol.run_processes(comparison, [first, second]))
    a, b = first.name, second.name
    warm_up = [1, 2, 4]
    assert Engine.asked == [
        *((a, size) for size in warm_up), *((b, size) for size in warm_up), (a, 1), (b, 1),
        *((a, size) for size in warm_up), (b, 2), (a, 1), (b, 4), (a, 2), (a, 4),
    ]  # fmt: skip
    assert diary.index(f"{b} ends") < len(diary) - 1 - diary[::-1].index(f"{a} serves"), (
        "it does not wait for the other"
    )
    assert list(found) == [second, first]
    assert found[first]["lost"] == ["died: it died"] and not found[second]["lost"]
    for told in found.values():
        levels = [figure["level"] for figure in told["figures"] if figure["metric"] == "latency_ms_p95"]
        assert told["failure"] is None and levels == [1, 2, 4]


def test_only_a_group_of_engines_that_was_measured_whole_tells_a_pace(tmp_path: Path, diary: list[str]) -> None:
    """Two groups of three; the first process was measured before a kill."""
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", "full", repeats=2)
    list(protocol.run_processes(comparison, list(comparison.processes())[:1]))
    told: list[StepProgress] = []
    context: Any = SimpleNamespace(step=SimpleNamespace(id="serving-1"), emit=told.append)
    assert len(step._measured(context, comparison)) == 6
    assert [(news.done, news.is_even) for news in told] == [
        (1, False), (2, False), (3, True), (4, False), (5, False), (6, True),
    ]  # fmt: skip
    told.clear()
    step._measured(context, comparison)
    assert not any(news.is_even for news in told), "what is read takes no time"


@pytest.mark.parametrize(("at_once", "told"), [(1, True), (2, False)])
def test_the_time_to_load_is_told_only_where_engines_load_alone(
    tmp_path: Path, diary: list[str], at_once: int, told: bool
) -> None:
    comparison = comparison_of(tmp_path, equals_its_run, "base", at_once=at_once)
    ((_, found),) = protocol.run_processes(comparison, list(comparison.processes()))
    assert ("load_s" in {figure["metric"] for figure in found["figures"]}) is told


def test_an_engine_without_memory_is_started_again_alone(
    tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Engine) -> Engine:
        self.diary.append(f"{self.name} starts")
        if len([line for line in self.diary if line.endswith("starts")]) == 2:
            raise EngineFailure("no memory is left", kind="out-of-memory")
        return self

    monkeypatch.setattr(Engine, "start", start)
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", "full")
    found = [told for _, told in protocol.run_processes(comparison, list(comparison.processes()))]
    assert [bool(told["figures"]) for told in found] == [True, True, True]
    last_start = max(place for place, line in enumerate(diary) if line.endswith("starts"))
    assert sum(line.endswith("ends") for line in diary[:last_start]) >= 2, "once the others have ended"
    assert diary[last_start + 1] == "rest"


def failing_once(monkeypatch: pytest.MonkeyPatch, name: str, what: str, failure: EngineFailure) -> None:
    """The first engine with `name` in its own fails so, once it has started."""
    start, failed = Engine.start, []

    def start_to_fail(self: Engine) -> Engine:
        if name in self.name and not failed:
            self.fails[what] = failure
            failed.append(self)
        return start(self)

    monkeypatch.setattr(Engine, "start", start_to_fail)


def dies_at_load(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """The first engine of that name dies at its load of that number, after its warm-up."""
    serve, sizes = Engine.serve, []

    def serve_or_die(self: Engine, batches: Any, **named: Any) -> ServedBatches:
        if self.name == name:
            sizes.append(len(batches[0]))
            if len(sizes) == 3 + number:
                raise EngineFailure("it died", kind="died")
        return serve(self, batches, **named)

    monkeypatch.setattr(Engine, "serve", serve_or_die)


def of_arm(diary: list[str], arm: str) -> list[str]:
    """What the engines of an arm do, and the rests, each line once where it repeats itself."""
    mine = [line.split()[-1] for line in diary if arm in line or line == "rest"]
    return [word for place, word in enumerate(mine) if place == 0 or mine[place - 1] != word]


def test_an_engine_that_ends_while_waiting_starts_at_its_turn(
    tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_once(monkeypatch, "merged", "memory", EngineFailure("the engine died (SIGKILL)\n | log", kind="died"))
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", "full")
    found = {told["arm"]: told for _, told in protocol.run_processes(comparison, list(comparison.processes()))}
    assert of_arm(diary, "merged") == ["starts", "rest", "ends", "starts", "rest", "serves", "ends"]
    assert all(told["figures"] and not told["lost"] for told in found.values()), "none of its attempts is used up"
    assert found["merged"]["engine"]["notes"] == [
        "started again: it ended while it waited for its turn (the engine died (SIGKILL))"
    ]
    assert diary.index("rest") == 3 and diary.count("rest") == 2


@pytest.mark.parametrize(("at_once", "rests"), [(3, True), (1, False)])
def test_one_that_is_started_again_rests_where_the_others_rested(
    tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch, at_once: int, rests: bool
) -> None:
    failing_once(monkeypatch, "merged", "serve", EngineFailure("it died", kind="died"))
    comparison = comparison_of(tmp_path, equals_its_run, "merged", at_once=at_once)
    ((_, found),) = protocol.run_processes(comparison, list(comparison.processes()))
    assert found["figures"] and found["lost"] == ["died: it died"]
    rest = ["rest"] if rests else []
    assert of_arm(diary, "merged") == ["starts", *rest, "ends", "starts", *rest, "serves", "ends"]


def test_an_engine_out_of_memory_is_measured_alone_at_the_end(
    tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", "full")
    processes = list(comparison.processes())
    failing_once(monkeypatch, processes[0].name, "serve", EngineFailure("no memory is left", kind="out-of-memory"))
    found = [told for _, told in protocol.run_processes(comparison, processes)]
    assert [told["order"] for told in found] == [1, 2, 0]
    assert all(told["figures"] and told["failure"] is None for told in found)
    again = len(diary) - 1 - diary[::-1].index(f"{processes[0].name} starts")
    assert {f"{process.name} ends" for process in processes} <= set(diary[:again]) and diary[again + 1] == "rest"


def test_nothing_is_measured_while_an_engine_starts(
    tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Engine) -> Engine:
        time.sleep(0.3 if "base" in self.name else 0.0)
        self.diary.append(f"{self.name} is ready")
        return self

    monkeypatch.setattr(Engine, "start", start)
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", "full")
    list(protocol.run_processes(comparison, list(comparison.processes())))
    assert [line.split()[-1] for line in diary[:4]] == ["ready", "ready", "ready", "rest"]


def test_no_engine_is_left_when_another_cannot_be_started_at_all(
    tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Engine) -> Engine:
        if "base" in self.name:
            raise OSError("no more processes")
        self.diary.append(f"{self.name} starts")
        return self

    monkeypatch.setattr(Engine, "start", start)
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", "full")
    with pytest.raises(OSError, match="no more processes"):
        list(protocol.run_processes(comparison, list(comparison.processes())))
    started = {line.split()[0] for line in diary if line.endswith("starts")}
    assert len(started) == 2
    assert started <= {line.split()[0] for line in diary if line.endswith("ends")}


def test_engines_that_wait_are_ended_when_the_study_is_interrupted(tmp_path: Path, diary: list[str]) -> None:
    def interrupt(engine: Any, arm: EngineArm) -> list[EquivalenceGate]:
        raise KeyboardInterrupt

    comparison = comparison_of(tmp_path, interrupt, "base", "merged", "full")
    with pytest.raises(KeyboardInterrupt):
        list(protocol.run_processes(comparison, list(comparison.processes())))
    assert {line.split()[0] for line in diary if line.endswith("ends")} == {
        line.split()[0] for line in diary if line != "rest"
    }


def started_and_ended(diary: list[str]) -> tuple[list[str], list[str]]:
    """Names, one an engine."""
    starts, ends = ([line.split()[0] for line in diary if line.endswith(word)] for word in ("starts", "ends"))
    return sorted(starts), sorted(ends)


def test_an_error_at_a_turn_ends_all_engines(tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", repeats=2, at_once=4, batch_sizes=(1, 2, 4))
    first, second, *_ = processes = list(comparison.processes())
    dies_at_load(monkeypatch, first.name, 1)
    serve = Engine.serve

    def serve_until_the_second_load(self: Engine, batches: Any, **named: Any) -> ServedBatches:
        if [name for name, _ in self.asked].count(second.name) == 4 and self.name == second.name:
            raise KeyboardInterrupt
        return serve(self, batches, **named)

    monkeypatch.setattr(Engine, "serve", serve_until_the_second_load)
    with pytest.raises(KeyboardInterrupt) as caught:
        list(protocol.run_processes(comparison, processes))
    starts, ends = started_and_ended(diary)
    assert starts.count(first.name) == 2 and starts == ends
    assert caught.tb, "the traceback still holds the turns: nothing was ended by being forgotten"
    assert not list(tmp_path.glob("*.json"))


def test_engines_end_when_nobody_wants_more(tmp_path: Path, diary: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", repeats=2, at_once=4, batch_sizes=(1, 2, 4))
    first, second, *_ = processes = list(comparison.processes())
    dies_at_load(monkeypatch, first.name, 2)
    with pytest.raises(OSError, match="no room for a table"):
        for process, _ in protocol.run_processes(comparison, processes):
            assert process == second, "the other has been started again and is not done"
            raise OSError("no room for a table")
    starts, ends = started_and_ended(diary)
    assert len(starts) == 5 and starts == ends


def test_of_a_repeat_that_was_interrupted_only_what_is_missing_takes_turns(tmp_path: Path, diary: list[str]) -> None:
    comparison = comparison_of(tmp_path, equals_its_run, "base", "merged", "full", batch_sizes=(1, 2))
    first, second, third = processes = list(comparison.processes())
    before = dict(protocol.run_processes(comparison, processes))
    for process in (first, third):
        comparison.path(process).unlink()
    Engine.asked.clear()
    again = dict(protocol.run_processes(comparison, processes))
    assert again[second] == before[second] and again.keys() == before.keys()
    assert [name for name, _ in Engine.asked[4:]] == [first.name, third.name] * 2
