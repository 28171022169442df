"""What a store promises: complete or absent, first commit wins, nothing lost when the disk misbehaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_steps import make, make_member

from lorascope.engine.events import Notice
from lorascope.engine.executor import Completion
from lorascope.engine.failure import Failure
from lorascope.engine.run import StepBusy, run_step, try_steps
from lorascope.engine.scheduler import execute
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store, StoreProblem
from lorascope.engine.store.lock import StepLock
from lorascope.engine.workers.inline import InlineExecutor
from lorascope.engine.workplace import Workplace
from lorascope.errors import DataError, GateFailure


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def commit(store: Store, step: Step, *, text: str = "content", result: dict | None = None):
    staging = store.stage(step.id)
    (staging / "nested").mkdir()
    (staging / "nested" / "file.txt").write_text(text)
    return store.commit(step, staging, result=result or {"value": 1}, provenance={"python": "3"})


def workplace(store: Store) -> Workplace:
    return Workplace(store=store, device="cpu", emit=lambda event: None, worker="test")


def run(step: Step, store: Store):
    return run_step(step, workplace(store))


def staged(store: Store) -> list[Path]:
    return list((store.root / "staging").glob("*"))


def test_a_committed_artifact_is_found_again_as_it_was(store):
    step = make("count", value=3, slug="Three!")
    assert not store.has(step.id)
    with pytest.raises(KeyError):
        store.artifact(step.id)
    commit(store, step, result={"value": 0.1, "list": [1, None, True], "text": "ü"})
    found = Store(store.root).artifact(step.id)
    assert found.id == step.id
    assert found.step == step
    assert found.result == {"value": 0.1, "list": [1, None, True], "text": "ü"}
    assert found.record["files"] == {"nested/file.txt": 7}
    assert found.file("nested/file.txt").read_text() == "content"
    assert staged(store) == []


def test_an_absent_store_is_empty_and_reading_does_not_create_it(store):
    assert store.artifacts() == []
    assert not store.has("train-x")
    assert store.failure("train-x") is None
    assert store.verify("train-x") == ["train-x: there is no such artifact"]
    assert not store.root.exists()


def test_artifacts_are_listed_by_kind_in_order_of_their_ids(store):
    steps = [Step(kind=kind, version=1, params={"n": n}) for kind in ("train", "data") for n in range(3)]
    for step in steps:
        commit(store, step)
    assert [artifact.id for artifact in store.artifacts()] == sorted(step.id for step in steps)
    assert [artifact.id for artifact in store.artifacts("data")] == sorted(step.id for step in steps[3:])


def test_the_first_commit_wins_and_the_second_is_discarded(store):
    step = make("count", value=1)
    first = commit(store, step, text="first")
    second = commit(store, step, text="second")
    assert second.path == first.path
    assert second.file("nested/file.txt").read_text() == "first"
    assert store.verify(step.id) == []
    assert staged(store) == []


def test_a_directory_without_a_record_gives_way(store):
    step = make("count", value=1)
    (commit(store, step).path / "record.json").unlink()
    assert not store.has(step.id)
    commit(store, step, text="again")
    assert store.artifact(step.id).file("nested/file.txt").read_text() == "again"
    assert store.verify(step.id) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), {1, 2}, {3: "key"}])
def test_a_result_without_canonical_bytes_is_refused_by_name(store, value):
    step = make("count", value=1)
    with pytest.raises(AssertionError, match=r"result\.scores\.loss"):
        commit(store, step, result={"scores": {"loss": value}})
    assert not store.has(step.id)


def test_a_link_is_no_file_of_an_artifact(store, tmp_path):
    step = make("count", value=1)
    staging = store.stage(step.id)
    (staging / "link").symlink_to(tmp_path)
    with pytest.raises(AssertionError, match="link"):
        store.commit(step, staging, result={}, provenance={})


def test_verify_names_every_kind_of_damage(store):
    step = make("count", value=1)
    path = commit(store, step).path
    assert store.verify(step.id) == []
    (path / "nested" / "file.txt").write_text("CONTENT")
    assert store.verify(step.id) == [
        f"{step.id}: nested/file.txt is not the file that was committed (its checksum differs)"
    ]
    (path / "nested" / "file.txt").write_text("longer than it was")
    assert store.verify(step.id) == [f"{step.id}: nested/file.txt has 18 bytes, 7 were committed"]
    (path / "nested" / "file.txt").rename(path / "other.txt")
    assert store.verify(step.id) == [
        f"{step.id}: nested/file.txt is missing",
        f"{step.id}: other.txt was added after the commit",
    ]
    record = json.loads((path / "record.json").read_text())
    record["step"]["params"]["value"] = 2
    (path / "record.json").write_text(json.dumps(record))
    assert store.verify(step.id)[0].startswith(f"{step.id}: the record is that of ")
    (path / "record.json").write_text("{")
    assert "record.json cannot be read" in store.verify(step.id)[0]


def test_a_step_can_be_loaded_by_id_before_and_after_its_commit(store):
    step = make("count", value=1)
    with pytest.raises(KeyError):
        store.load_step(step.id)
    store.save_step(step)
    assert store.load_step(step.id) == step
    commit(store, step)
    shutil.rmtree(store.root / "steps")
    assert store.load_step(step.id) == step


def test_the_work_directory_lives_until_the_commit(store):
    step = make("count", value=1)
    (store.work_dir(step.id) / "checkpoint").write_text("half")
    assert (Store(store.root).work_dir(step.id) / "checkpoint").read_text() == "half"
    commit(store, step)
    assert not (store.root / "work" / step.id).exists()


@pytest.mark.parametrize(
    "error",
    [
        DataError("bad column", hint="rename it", where="study.yaml:3"),
        GateFailure("gate", hint=None),
        ZeroDivisionError("division"),
    ],
)
def test_a_failure_is_remembered_until_it_is_cleared(store, error):
    failure = Failure.of("train-x", error)
    store.record_failure("train-x", failure)
    assert store.failure("train-x") == failure
    store.clear_failure("train-x")
    store.clear_failure("train-x")
    assert store.failure("train-x") is None


def test_a_commit_clears_the_failure(store):
    step = make("count", value=1)
    store.record_failure(step.id, Failure.of(step.id, ValueError("once")))
    commit(store, step)
    assert store.failure(step.id) is None


def test_sweep_removes_what_the_dead_left_and_nothing_of_the_living(store):
    dead, alive, done = (make("count", value=value) for value in range(3))
    left, kept = store.stage(dead.id), store.stage(alive.id)
    lock = store.lock(alive.id)
    assert lock.try_acquire()
    checkpoint = store.work_dir(dead.id) / "checkpoint"
    checkpoint.write_text("for later")
    commit(store, done)
    store.work_dir(done.id)  # as if killed between commit and removal
    store.sweep()
    assert kept.exists()
    assert not left.exists()
    assert checkpoint.exists()
    assert not (store.root / "work" / done.id).exists()
    lock.release()


def test_a_thousand_cached_steps_are_recognised_in_a_moment(store):
    data = Step(kind="train", version=1, params={"n": -1})
    steps = [data, *(Step(kind="train", version=1, params={"n": n}, deps={"data": data.id}) for n in range(999))]
    for step in steps:
        path = store.root / "artifacts" / "train" / step.id
        path.mkdir(parents=True)
        (path / "record.json").write_text("{}")
    executor = InlineExecutor(store, devices=["cpu"])
    started = time.perf_counter()
    outcome = execute(steps, store=store, executor=executor, emit=lambda event: None)
    assert time.perf_counter() - started < 0.5
    assert len(outcome.cached) == 1000


# ---------------------------------------------------------------------------------------------- disks that misbehave


CUT_COMMIT_SHORT = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from lorascope.engine.store.directory import Store
from engine_steps import make
store, step, limit, lines = Store(Path(sys.argv[1])), make("count", value=1), int(sys.argv[2]), 0
staging = store.stage(step.id)
for name in ("a", "b", "z"):
    (staging / name).write_text(name * 10000)
def trace(frame, event, argument):
    global lines
    if event == "line":
        if lines == limit:
            os._exit(9)
        lines += 1
    return trace
sys.settrace(trace)
store.commit(step, staging, result=dict(value=1), provenance=dict())
sys.settrace(None)
print(lines)
"""


def test_a_kill_at_any_line_of_a_commit_leaves_all_or_nothing(store):
    """Cuts a commit short at 40 points spread over every line that Python runs for it."""
    step = make("count", value=1)
    script = CUT_COMMIT_SHORT.format(path=[path for path in sys.path if path])

    def commit_up_to(limit: int) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(store.root, ignore_errors=True)
        command = [sys.executable, "-c", script, str(store.root), str(limit)]
        return subprocess.run(command, capture_output=True, text=True)

    num_lines = int(commit_up_to(10**9).stdout)
    seen = set()
    for point in range(40):
        assert commit_up_to(point * num_lines // 40).returncode == 9
        seen.add(store.has(step.id))
        assert store.verify(step.id) == ([] if store.has(step.id) else [f"{step.id}: there is no such artifact"])
        store.sweep()
        assert staged(store) == []
        assert not store.has(step.id) or store.artifact(step.id).record["files"] == dict.fromkeys("abz", 10000)
    assert seen == {True, False}, "the points lie on one side of the commit only"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_during_commit_says_what_to_do_and_loses_nothing(store, monkeypatch, code):
    before, step = make("count", value=1), make("count", value=2)
    commit(store, before)

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreProblem) as caught:
        run(step, store)
    assert caught.value.exit_code == 3
    assert "no space is left" in caught.value.message
    assert "Nothing finished is lost" in (caught.value.hint or "")
    assert "--store" in (caught.value.hint or "")
    monkeypatch.undo()
    assert not store.has(step.id)
    assert store.verify(before.id) == []
    assert staged(store) == []
    assert run(step, store).result == {"value": 2}, "the lock was released and the same step goes through later"


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 1 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a file system needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_stops_the_study_which_goes_on_when_there_is_room(small_disk):
    store, step = Store(small_disk / "store"), make("count", value=1)
    commit(store, make("count", value=0))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 << 20))  # writes what fits
    with pytest.raises(StoreProblem, match="no space is left"):
        run(step, store)
    ballast.unlink()
    assert run(step, store).result == {"value": 1}
    assert [problem for artifact in store.artifacts() for problem in store.verify(artifact.id)] == []


def test_a_step_that_fills_the_disk_itself_gets_the_same_answer(small_disk):
    store = Store(small_disk / "store")
    with pytest.raises(StoreProblem, match="no space is left"):
        run(make("fill", megabytes=4), store)
    assert staged(store) == []
    assert run(make("count", value=1), store).result == {"value": 1}


def test_a_read_only_store_still_reads_and_says_how_to_write(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mount)], capture_output=True).returncode
    ):
        pytest.skip("mounting a file system needs root")
    try:
        store, done = Store(mount / "store"), make("count", value=1)
        commit(store, done)
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        assert run(done, store).result == {"value": 1}
        with pytest.raises(StoreProblem, match="Read-only file system") as caught:
            run(make("count", value=2), store)
        assert "--store" in (caught.value.hint or "")
        assert caught.value.exit_code == 3
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_of_somebody_else_is_named(tmp_path):
    (tmp_path / "store").mkdir(mode=0o555)
    with pytest.raises(StoreProblem, match="Permission denied"):
        run(make("count", value=1), Store(tmp_path / "store"))


def test_a_file_in_the_place_of_the_store_is_named(tmp_path):
    (tmp_path / "store").write_text("not a directory")
    with pytest.raises(StoreProblem, match="the store is not a directory") as caught:
        run(make("count", value=1), Store(tmp_path / "store"))
    assert "--store" in (caught.value.hint or "")


# ------------------------------------------------------------------------------------------- locks lost on the way


def take_over(store: Store, step: Step) -> None:
    """What another process does that calls our lock stale."""
    lock = store.lock(step.id)
    lock._stale_after_s = 0.0
    assert lock.try_acquire()


def test_a_step_committed_before_our_lock_is_not_computed_again(store, monkeypatch):
    step, acquire = make("count", value=1), StepLock.try_acquire

    def acquire_late(lock):
        commit(store, step, text="theirs")
        return acquire(lock)

    monkeypatch.setattr(StepLock, "try_acquire", acquire_late)
    computed = []
    monkeypatch.setattr("engine_steps.count", computed.append)
    assert run(step, store).file("nested/file.txt").read_text() == "theirs"
    assert computed == []
    assert not (store.root / "locks" / step.id).exists()


def test_a_step_that_was_taken_over_returns_what_the_other_committed(store, monkeypatch):
    step = make("count", value=1)

    def overtaken(context):
        take_over(store, step)
        commit(store, step, text="theirs", result={"value": 1})
        raise FileNotFoundError("the work directory is gone")

    monkeypatch.setattr("engine_steps.count", overtaken)
    assert run(step, store).file("nested/file.txt").read_text() == "theirs"
    assert store.failure(step.id) is None
    assert store.verify(step.id) == []


def test_a_step_that_was_taken_over_stops_at_its_next_event(store, monkeypatch):
    step = make("count", value=1)
    reached = []

    def overtaken(context):
        take_over(store, step)
        monkeypatch.setattr(StepLock, "was_taken_over", property(lambda lock: lock.is_lost))  # the next heartbeat
        context.emit(Notice(level="info", text="going on"))
        reached.append("after the event")
        return {}

    monkeypatch.setattr("engine_steps.count", overtaken)
    with pytest.raises(StepBusy):
        run(step, store)
    assert reached == []
    assert store.failure(step.id) is None
    assert not store.has(step.id)
    assert store.lock(step.id).holder() is not None, "the new holder keeps its lock"


def try_together(store: Store, steps: list[Step]) -> dict[str, str]:
    settled: list[Completion] = []
    try_steps(steps, workplace(store), report=settled.append)
    assert len(settled) == len(steps)
    return {completion.step_id: completion.outcome for completion in settled}


def test_members_that_others_hold_or_have_committed_are_left_out_of_a_gang(store):
    held, committed, *ours = [make_member(seed=seed) for seed in range(4)]
    commit(store, committed)
    lock = store.lock(held.id)
    assert lock.try_acquire()
    outcomes = try_together(store, [ours[0], held, committed, ours[1]])
    lock.release()
    assert outcomes == {held.id: "busy", committed.id: "found", ours[0].id: "done", ours[1].id: "done"}
    for step in ours:
        assert store.artifact(step.id).result["together"] == [step.id for step in ours]
        assert store.artifact(step.id).provenance["gang"] == 2


@pytest.mark.parametrize("is_caught", [True, False])
def test_a_member_whose_lock_was_taken_over_stops_and_no_other_fails(store, monkeypatch, is_caught):
    lost, other = [make_member(seed=seed) for seed in range(2)]

    def overtaken(contexts):
        take_over(store, lost)
        monkeypatch.setattr(StepLock, "was_taken_over", property(lambda lock: lock.is_lost))  # the next heartbeat
        for index, context in enumerate(contexts):
            try:
                context.emit(Notice(step=context.step.id, level="info", text="going on"))
            except StepBusy as error:
                if not is_caught:
                    raise
                yield index, error
            else:
                yield index, {}

    monkeypatch.setattr("engine_steps.member_gang", overtaken)
    outcomes = try_together(store, [lost, other])
    assert outcomes == {lost.id: "busy", other.id: "done" if is_caught else "busy"}
    assert (store.failure(lost.id), store.failure(other.id)) == (None, None)
    assert store.lock(lost.id).holder() is not None, "the new holder keeps its lock"
    assert store.lock(other.id).holder() is None


def test_a_result_that_is_no_json_fails_its_member_alone(store, monkeypatch):
    bad, good = [make_member(seed=seed) for seed in range(2)]

    def careless(contexts):
        yield 0, {"score": float("nan")}
        yield 1, {"score": 1.0}

    monkeypatch.setattr("engine_steps.member_gang", careless)
    assert try_together(store, [bad, good]) == {bad.id: "failed", good.id: "done"}
    assert "nan has no canonical bytes" in store.failure(bad.id).message


def test_a_store_that_is_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "store").write_text("not a directory")
    with pytest.raises(StoreProblem, match="the store is not a directory"):
        Store(tmp_path / "store")


def test_a_store_where_nothing_can_be_made_says_so():
    with pytest.raises(StoreProblem, match="the store cannot be written"):
        Store(Path("/proc/no-such-place")).work_dir("train-1")
