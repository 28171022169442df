"""What a store in object storage promises, kept over fsspec's file system in memory and over S3's protocol: complete or
absent, first commit wins, one holder of a lock, and nothing trusted that differs from its record."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from engine_steps import make
from object_server import object_server

from lorascope.engine.failure import Failure
from lorascope.engine.run import run_step
from lorascope.engine.scheduler import execute
from lorascope.engine.step import Step
from lorascope.engine.store import lock as lock_module
from lorascope.engine.store.bucket import Bucket, BucketTrouble, open_bucket
from lorascope.engine.store.directory import Store, StoreProblem
from lorascope.engine.store.generations import BucketGenerations
from lorascope.engine.store.integrity import CorruptArtifact
from lorascope.engine.store.lock import StepLock
from lorascope.engine.store.notes import notes_in
from lorascope.engine.store.opening import LOCAL_STORE, local_directory, open_store
from lorascope.engine.store.remote import RemoteStore
from lorascope.engine.workers.inline import InlineExecutor
from lorascope.engine.workplace import Workplace
from lorascope.errors import EnvironmentProblem, StudyError

CREATE = """
import sys
from lorascope.engine.store.bucket import open_bucket
bucket = open_bucket(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(" ".join(str(n) for n in range(20) if bucket.create(f"race/{n}", sys.argv[2].encode())))
"""
COORDINATE = """
import json, sys
from lorascope.engine.workers.inline import InlineExecutor
from lorascope.engine.store.opening import open_store
from lorascope.engine.scheduler import execute
from lorascope.engine.step import Step
store = open_store(sys.argv[1])
store.look_every_s = 0.1
steps = [Step.from_json(step) for step in json.loads(sys.argv[2])]
print("ready", flush=True)
sys.stdin.readline()
done = execute(steps, store=store, executor=InlineExecutor(store, devices=["cpu"]), emit=lambda e: None, poll_s=0.1)
print(json.dumps([done.done, done.cached, list(done.failed)]))
"""
TAKE_AND_SLEEP = """
import sys, time
from lorascope.engine.store.opening import open_store
assert open_store(sys.argv[1]).lock(sys.argv[2]).try_acquire()
print("held", flush=True)
time.sleep(60)
"""
LEAVE_BEFORE_THE_RECORD = """
import os, sys
from lorascope.engine.store.bucket import Bucket
from lorascope.engine.store.opening import open_store
from lorascope.engine.run import run_step
from lorascope.engine.workplace import Workplace
from engine_steps import make
create = Bucket.create
Bucket.create = lambda self, key, content: os._exit(9) if key.startswith("records/") else create(self, key, content)
run_step(make("fill", megabytes=1), Workplace(store=open_store(sys.argv[1]), device="cpu", emit=print, worker="w"))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with object_server("studies") as found:
        yield found


@pytest.fixture
def s3(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place on the server."""
    for name, value in {**server, LOCAL_STORE: str(tmp_path / "local")}.items():
        monkeypatch.setenv(name, value)
    return f"s3://studies/{uuid.uuid4().hex[:8]}"


def test_an_address_is_looked_up_in_the_environment_of_now(
    server: dict[str, str], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BucketTrouble, match="does not answer"):
        open_bucket(s3).prove()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server["AWS_ENDPOINT_URL"])
    open_bucket(s3).prove()


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    if request.param == "s3":
        return open_bucket(request.getfixturevalue("s3"))
    root = f"/{uuid.uuid4().hex[:8]}/place"
    return Bucket(fsspec.filesystem("memory"), root, url=f"memory:/{root}", patience_s=0.0)


@pytest.fixture
def store(bucket: Bucket, tmp_path: Path) -> RemoteStore:
    return RemoteStore(bucket, tmp_path / "here")


def commit(store: Store, step: Step, *, text: str = "content", result: dict[str, Any] | None = None):
    staging = store.stage(step.id)
    (staging / "nested").mkdir()
    (staging / "nested" / "file.txt").write_text(text)
    (staging / "empty").write_bytes(b"")
    return store.commit(step, staging, result=result or {"value": 1}, provenance={"python": "3"})


def run(step: Step, store: Store):
    return run_step(step, Workplace(store=store, device="cpu", emit=lambda event: None, worker="test"))


def start(script: str, *arguments: str, **changes: str) -> subprocess.Popen[str]:
    """A process of this machine that waits for a line after it has printed one."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **changes},
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() in ("ready", "held")
    return process


# ------------------------------------------------------------------------------------------------------- the bucket


def test_a_key_is_created_once(bucket):
    assert bucket.create("a/x", b"first")
    assert not bucket.create("a/x", b"second")
    assert bucket.read("a/x") == b"first"


def test_a_creation_whose_answer_was_lost_counts_as_ours(bucket):
    """A request that is made again finds what it wrote itself."""
    bucket.create("a/x", b"ours")
    assert bucket.create("a/x", b"ours")


def test_keys_below_a_directory_are_no_others(bucket):
    for key in ("a/x", "a/y/z", "ab/x", "b"):
        bucket.write(key, b"1")
    assert bucket.keys("a") == ["a/x", "a/y/z"]
    assert bucket.keys("none") == []
    assert bucket.read_all(["a/x", "none/x", "b"]) == {"a/x": b"1", "b": b"1"}
    bucket.remove(["a/x", "a/none"])
    assert bucket.keys("a") == ["a/y/z"]
    with pytest.raises(FileNotFoundError):
        bucket.read("a/x")


def test_of_many_that_create_one_key_at_the_server_one_succeeds(s3):
    contenders = [start(CREATE, s3, f"process {n}") for n in range(3)]
    bucket, barrier = open_bucket(s3), threading.Barrier(5)
    won: list[int] = []

    def contend(name: str) -> None:
        barrier.wait()
        won.extend(n for n in range(20) if bucket.create(f"race/{n}", name.encode()))

    threads = [threading.Thread(target=contend, args=(f"thread {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait()
    answers = [process.communicate("go\n", timeout=60)[0] for process in contenders]
    for thread in threads:
        thread.join()
    won += [int(n) for answer in answers for n in answer.split()]
    assert sorted(won) == list(range(20))


def test_a_place_that_creates_what_is_there_is_refused(bucket, monkeypatch):
    bucket.prove()
    assert bucket.keys("checks") == []
    pipe_file = bucket._files.pipe_file
    monkeypatch.setattr(bucket._files, "pipe_file", lambda path, value, mode="overwrite": pipe_file(path, value))
    with pytest.raises(BucketTrouble, match="let an object be created that was there already") as refused:
        bucket.prove()
    assert "If-None-Match" in refused.value.hint


# ------------------------------------------------------------------------------------------------ complete or absent


def test_a_committed_artifact_is_found_from_another_directory_as_it_was(store, tmp_path):
    step = make("count", value=3, slug="Three!")
    assert not store.has(step.id)
    with pytest.raises(KeyError):
        store.artifact(step.id)
    commit(store, step, result={"value": 0.1, "list": [1, None, True], "text": "ü"})
    elsewhere = RemoteStore(store.bucket, tmp_path / "elsewhere")
    assert elsewhere.present([step.id, "count-none"]) == {step.id}
    found = elsewhere.artifact(step.id)
    assert (found.id, found.step) == (step.id, step)
    assert found.result == {"value": 0.1, "list": [1, None, True], "text": "ü"}
    assert not list((tmp_path / "elsewhere").rglob("file.txt")), "a record is read without the files"
    assert found.file("nested").joinpath("file.txt").read_text() == "content"
    assert not list((tmp_path / "elsewhere").rglob("empty")), "only what was asked for is fetched"
    assert (found.path / "empty").read_bytes() == b""
    with pytest.raises(FileNotFoundError, match="has no file other"):
        found.file("other")
    assert elsewhere.verify(step.id) == []
    assert [artifact.id for artifact in elsewhere.artifacts(step.kind)] == elsewhere.ids() == [step.id]
    assert elsewhere.ids("train") == []


def test_what_was_made_here_is_not_fetched(store, monkeypatch):
    artifact = commit(store, make("count", value=1))
    monkeypatch.setattr(Bucket, "download", None)
    assert artifact.file("nested/file.txt").read_text() == "content"


def test_the_first_commit_wins_and_of_the_second_nothing_stays(store, tmp_path):
    step = make("count", value=1)
    other = RemoteStore(store.bucket, tmp_path / "other")
    commit(store, step, text="first")
    assert commit(other, step, text="second").file("nested/file.txt").read_text() == "first"
    assert len(store.bucket.keys("files")) == 2
    assert not list((tmp_path / "other" / "staging").iterdir())
    assert store.verify(step.id) == other.verify(step.id) == []


def test_an_upload_without_a_record_is_completed_by_the_next_run(s3):
    step = make("fill", megabytes=1)
    script = LEAVE_BEFORE_THE_RECORD
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    cut_off = subprocess.run([sys.executable, "-c", script, s3], env=environment, stdout=subprocess.DEVNULL)
    assert cut_off.returncode == 9
    store = open_store(s3)
    assert isinstance(store, RemoteStore)
    assert len(store.bucket.keys("files")) == 1
    assert not store.has(step.id)
    assert store.ids() == []
    assert store.verify(step.id) == [f"{step.id}: there is no such artifact"]
    store.sweep()
    assert not list((store.root / "staging").iterdir())
    assert run(step, store).file("large.bin").stat().st_size == 1 << 20
    assert len(store.bucket.keys("files")) == 1, "the upload that was cut off is removed by the commit"
    assert store.locked() == []


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_commit_cut_off_at_any_request_leaves_all_or_nothing(store, tmp_path, monkeypatch, is_answered):
    """The process ends before a request, or after the service has dealt with it."""
    ask, left, seen = Bucket._ask, [0], []

    def ask_until_the_end(bucket, call, *given):
        left[0] -= 1
        if left[0] == 0:
            if not is_answered:
                ask(bucket, call, *given)
            raise SystemExit
        return ask(bucket, call, *given)

    monkeypatch.setattr(Bucket, "_ask", ask_until_the_end)
    for point in range(1, 100):
        step = make("count", value=point)
        left[0] = point
        try:
            commit(store, step)
        except SystemExit:
            left[0] = 0
        else:
            break
        other = RemoteStore(store.bucket, tmp_path / f"other-{point}")
        seen.append(other.has(step.id))
        assert other.verify(step.id) == ([] if seen[-1] else [f"{step.id}: there is no such artifact"])
        assert commit(other, step, text="again").file("nested/file.txt").read_text() == (
            "content" if seen[-1] else "again"
        )
        assert other.verify(step.id) == []
        assert len(store.bucket.keys(f"files/{step.id}")) == 2
    assert set(seen) == {False, True}


def test_a_file_that_changed_in_the_bucket_is_not_trusted(store, tmp_path):
    step = make("count", value=1)
    commit(store, step)
    (key,) = [key for key in store.bucket.keys("files") if key.endswith("file.txt")]
    elsewhere = RemoteStore(store.bucket, tmp_path / "elsewhere")
    store.bucket.write(key, b"CONTENT")
    with pytest.raises(CorruptArtifact, match="is not the file that was committed") as caught:
        elsewhere.artifact(step.id).file("nested/file.txt")
    assert "--repair" in (caught.value.hint or "")
    assert not list((tmp_path / "elsewhere").rglob("file.txt"))
    assert elsewhere.verify(step.id) == [
        f"{step.id}: nested/file.txt is not the file that was committed (its checksum differs)"
    ]
    store.bucket.remove([key])
    with pytest.raises(CorruptArtifact, match="is missing"):
        _ = elsewhere.artifact(step.id).path
    assert elsewhere.verify(step.id) == [f"{step.id}: nested/file.txt is missing"]
    dependent = make("count", value=1, deps={"left": step.id})
    with pytest.raises(CorruptArtifact):
        run(replace(dependent, kind="engine_read_input"), elsewhere)


def test_a_record_that_is_none_is_named(store):
    store.bucket.write("records/count-x.json", b"{")
    with pytest.raises(CorruptArtifact, match=r"records/count-x\.json is not a record"):
        store.has("count-x")
    assert "its record cannot be read" in store.verify("count-x")[0]


def test_a_copy_of_this_machine_that_changed_is_found_and_fetched_again(store):
    artifact = commit(store, make("count", value=1))
    artifact.file("nested/file.txt").write_text("CONTENT")
    (problem,) = store.verify(artifact.id)
    assert "a copy of this machine" in problem
    assert artifact.file("nested/file.txt").read_text() == "content"
    assert store.verify(artifact.id) == []


def test_a_damaged_record_is_set_aside_with_its_files_and_computed_again(store):
    step = make("count", value=1)
    commit(store, step)
    record = json.loads(store.bucket.read(f"records/{step.id}.json"))
    store.bucket.write(f"records/{step.id}.json", json.dumps({**record, "result": {"value": 2}}).encode())
    elsewhere = RemoteStore(store.bucket, store.root)
    with pytest.raises(CorruptArtifact, match="its seal does not agree"):
        elsewhere.has(step.id)
    assert f"damaged/{step.id}/" in elsewhere.set_aside(step.id)
    assert not elsewhere.has(step.id) and elsewhere.set_aside(step.id) is None
    commit(elsewhere, step)
    assert elsewhere.verify(step.id) == []
    assert any(record["attempt"] in key for key in store.bucket.keys(f"files/{step.id}")), "the damaged files are kept"


def test_what_was_remembered_is_found_from_another_machine(store, tmp_path):
    assert store.recall("engines") == {}
    store.remember("engines", {"seen": []})
    assert RemoteStore(store.bucket, tmp_path / "elsewhere").recall("engines") == {"seen": []}


# -------------------------------------------------------------------------------------------- failures, steps, notes


def test_failures_and_steps_are_seen_by_others(store, tmp_path):
    step, elsewhere = make("count", value=1), RemoteStore(store.bucket, tmp_path / "elsewhere")
    failure = Failure.of(step.id, ValueError("once"))
    store.record_failure(step.id, failure)
    store.save_steps([step])
    assert elsewhere.failure(step.id) == failure
    assert elsewhere.failures([step.id, "count-none"]) == {step.id: failure}
    assert elsewhere.load_step(step.id) == step
    commit(elsewhere, step)
    assert store.failure(step.id) is None
    with pytest.raises(KeyError):
        store.load_step("count-none")


def test_notes_are_seen_by_others_and_not_written_twice(store, tmp_path):
    ours, theirs = notes_in(store, "t"), notes_in(RemoteStore(store.bucket, tmp_path / "elsewhere"), "t")
    assert not theirs.is_there("ours")
    ours.leave("ours")
    assert theirs.is_there("ours")
    assert theirs.is_refused("ours")
    ours.forget()
    assert store.bucket.keys("checks") == []


# ------------------------------------------------------------------------------------------------------------- locks


def test_a_held_lock_names_its_holder_and_leaves_nothing_when_discarded(store):
    first, second = store.lock("step"), store.lock("step")
    assert first.try_acquire()
    assert not second.try_acquire()
    assert second.holder().pid == os.getpid()
    assert first.changed_hands_at() is not None
    assert store.locked() == ["step"]
    first.release()
    assert second.holder() is None
    assert second.try_acquire()
    second.release(discard=True)
    assert store.locked() == []
    assert first.try_acquire()
    first.release()


def write_foreign_generation(bucket: Bucket, number: int) -> BucketGenerations:
    """A generation as a process of another machine would create it."""
    owner = replace(lock_module.this_process(), host="elsewhere", machine="another machine", token="theirs")
    generations = BucketGenerations(bucket, "locks/step")
    assert generations.create(number, f"{0:012d} {json.dumps(asdict(owner))}\n".encode())
    return generations


def test_a_foreign_lock_goes_stale_when_its_note_stands_still(bucket):
    now = 1000.0
    theirs = write_foreign_generation(bucket, 7)
    lock = StepLock(BucketGenerations(bucket, "locks/step"), stale_after_s=60, clock=lambda: now)
    assert not lock.try_acquire()
    now += 59
    assert not lock.try_acquire()
    theirs.renew(7, b"000000000001 {}\n")
    now += 59
    assert not lock.try_acquire(), "the note changed, so the wait begins anew"
    now += 60
    assert lock.try_acquire()
    assert theirs.numbers() == [8]
    lock.release()


def test_a_note_written_too_late_brings_no_lock_back_and_takes_none_away(bucket):
    """A holder that was suspended renews its note after the lock was taken over, released and discarded."""
    theirs = write_foreign_generation(bucket, 1)
    theirs.remove(1)
    theirs.renew(1, b"000000000001 {}\n")
    lock = StepLock(BucketGenerations(bucket, "locks/step"))
    assert lock.holder() is None
    assert lock.try_acquire()
    assert StepLock(BucketGenerations(bucket, "locks/step")).holder().pid == os.getpid()
    lock.release()


def test_the_heartbeat_is_seen_and_a_loser_knows(bucket):
    lock = StepLock(BucketGenerations(bucket, "locks/step"), beat_s=0.01)
    assert lock.try_acquire()
    generations, deadline = BucketGenerations(bucket, "locks/step"), time.monotonic() + 60
    seen = {generations.read(1)}
    while len(seen) < 3:
        assert time.monotonic() < deadline, "the note does not change"
        time.sleep(0.01)
        seen.add(generations.read(1))
    assert generations.create(2, b"released\n")
    while not lock.was_taken_over:
        assert time.monotonic() < deadline, "the loser does not notice"
        time.sleep(0.01)
    assert lock.is_lost
    lock.release()


def test_of_many_contenders_for_a_stale_lock_one_wins(bucket):
    now = 1000.0
    write_foreign_generation(bucket, 3)
    places = [BucketGenerations(bucket, "locks/step") for _ in range(8)]
    contenders = [StepLock(place, stale_after_s=60, clock=lambda: now) for place in places]
    assert all(contender.holder() is not None for contender in contenders)
    now += 61
    start, won = threading.Barrier(len(contenders)), []

    def contend(contender: StepLock) -> None:
        start.wait()
        if contender.try_acquire():
            won.append(contender)

    if bucket.url.startswith("memory"):  # it looks first and writes then, so threads must take turns
        start = threading.Barrier(1)
    threads = [threading.Thread(target=contend, args=(contender,)) for contender in contenders]
    for thread in threads:
        thread.start()
        if bucket.url.startswith("memory"):
            thread.join()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release(discard=True)


def test_a_process_killed_here_loses_its_lock_and_its_step_is_computed(s3):
    step = make("count", value=1)
    holder = start(TAKE_AND_SLEEP, s3, step.id)
    store = open_store(s3)
    assert not store.lock(step.id).try_acquire()
    holder.kill()
    holder.wait()
    assert run(step, store).result == {"value": 1}
    assert store.locked() == []


# -------------------------------------------------------------------------------------------------------- coordinators


def test_two_coordinators_with_a_directory_each_compute_each_step_once(s3, tmp_path):
    leaves = [make("count", value=value) for value in range(6)]
    pairs = zip(leaves[::2], leaves[1::2], strict=True)
    steps = [*leaves, *(make("count", value=1, deps={"left": left.id, "right": right.id}) for left, right in pairs)]
    text = json.dumps([step.to_json() for step in steps])
    both = [start(COORDINATE, s3, text, **{LOCAL_STORE: str(tmp_path / name)}) for name in ("one", "two")]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    computed = [step_id for done, _, _ in outcomes for step_id in done]
    assert sorted(computed) == sorted(step.id for step in steps)
    assert all(len(done) + len(cached) == len(steps) and not failed for done, cached, failed in outcomes)
    store = open_store(s3)
    assert [problem for step in steps for problem in store.verify(step.id)] == []


def test_a_study_that_is_all_there_costs_a_listing_and_its_records(store, tmp_path, monkeypatch):
    steps = [make("count", value=value) for value in range(30)]
    for step in steps:
        commit(store, step)
    fresh, asked = RemoteStore(store.bucket, tmp_path / "fresh"), []
    ask = Bucket._ask
    monkeypatch.setattr(Bucket, "_ask", lambda self, call, *given: (asked.append(call), ask(self, call, *given))[1])
    executor = InlineExecutor(fresh, devices=["cpu"])
    outcome = execute(steps, store=fresh, executor=executor, emit=lambda event: None)
    assert len(outcome.cached) == 30
    assert len(asked) <= 3
    assert not (tmp_path / "fresh" / "files").exists()


# ------------------------------------------------------------------------------------------ what a person is told


def test_sweep_removes_the_locks_of_what_is_committed(store):
    step = make("count", value=1)
    commit(store, step)
    lock = store.lock(step.id)
    assert lock.try_acquire()
    lock.release()
    store.work_dir(step.id)
    store.sweep()
    assert store.locked() == []
    assert not (store.root / "work" / step.id).exists()


def test_the_directory_can_be_deleted(store):
    step = make("count", value=1)
    commit(store, step)
    shutil.rmtree(store.root)
    assert store.artifact(step.id).file("nested/file.txt").read_text() == "content"


@pytest.mark.parametrize("url", ["gs://bucket/place", "memory://place", "file:///tmp/place", "http://host/place"])
def test_file_systems_that_cannot_refuse_are_refused_by_name(url):
    with pytest.raises(StudyError) as refused:
        open_store(url)
    assert refused.value.message.startswith(f"--store {url}: object storage is reached as s3://BUCKET/PREFIX")


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3://bucket/a?b"])
def test_an_address_without_a_bucket_is_the_users_mistake(url):
    with pytest.raises(StudyError, match="names no bucket"):
        open_store(url)


def test_an_address_made_a_path_is_the_users_mistake():
    with pytest.raises(StudyError, match="went through a Path"):
        open_store(Path("s3://bucket/place"))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(EnvironmentProblem, match="needs the package `s3fs`") as refused:
        open_store("s3://bucket/place")
    assert refused.value.hint == 'pip install "lorascope[s3]"'


def test_a_full_disk_of_this_machine_is_not_the_buckets_fault(store, tmp_path, monkeypatch):
    commit(store, make("count", value=1))
    elsewhere = RemoteStore(store.bucket, tmp_path / "elsewhere")

    def fill(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.bucket._files, "get_file", fill)
    with pytest.raises(StoreProblem, match="no space is left for the store") as stopped:
        _ = elsewhere.artifact(make("count", value=1).id).path
    assert LOCAL_STORE in (stopped.value.hint or "")


def test_a_bucket_that_is_not_there_is_told_before_work(s3):
    with pytest.raises(StoreProblem, match="there is no bucket for s3://nobodys/place") as refused:
        open_store("s3://nobodys/place").check()
    assert refused.value.exit_code == 3


def test_credentials_that_are_missing_or_refused_are_told(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(StoreProblem, match=f"there are no credentials for {s3}") as refused:
        open_store(s3).check()
    assert "AWS_ACCESS_KEY_ID" in (refused.value.hint or "")


def test_a_service_that_refuses_is_told_with_the_permissions_it_takes(bucket, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(bucket._files, "pipe_file", refuse)
    with pytest.raises(BucketTrouble, match=r"may not be used with these credentials \(Access Denied\)") as refused:
        bucket.prove()
    assert "s3:ListBucket" in refused.value.hint


def test_brief_trouble_is_waited_for_and_lasting_trouble_stops(store, monkeypatch):
    step, write, left = make("count", value=1), store.bucket._files.put_file, [1, 1]

    def fail_at_times(*arguments):
        if left:
            left.pop()
            raise OSError("Please reduce your request rate")
        return write(*arguments)

    monkeypatch.setattr("lorascope.engine.store.bucket._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(store.bucket._files, "put_file", fail_at_times)
    store.bucket.patience_s = 5.0
    assert run(step, store).result == {"value": 1}
    left += [1] * 1000
    store.bucket.patience_s = 0.0
    with pytest.raises(StoreProblem, match="does not answer as it should") as stopped:
        run(make("count", value=2), store)
    assert "What is finished is kept" in (stopped.value.hint or "")
    assert stopped.value.exit_code == 3


def test_each_address_has_a_directory_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv(LOCAL_STORE, str(tmp_path))
    places = {local_directory(url) for url in ("s3://a/b", "s3://a/c", "s3://a-b")}
    assert len(places) == 3
    assert {place.parent for place in places} == {tmp_path}
