"""The heartbeat lock: one holder, whoever dies, sleeps or contends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lorascope.engine.store import lock as lock_module
from lorascope.engine.store.lock import StepLock

TAKE_AND_SLEEP = """
import sys, time
from pathlib import Path
from lorascope.engine.store.lock import StepLock
assert StepLock(Path(sys.argv[1]), beat_s=0.05).try_acquire()
print("held", flush=True)
time.sleep(3600)
"""

COUNT_UNDER_LOCK = """
import sys, time
from pathlib import Path
from lorascope.engine.store.lock import StepLock
directory, counter, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for _ in range(rounds):
    lock = StepLock(directory)
    while not lock.try_acquire():
        time.sleep(0.001)
    value = int(counter.read_text())
    time.sleep(0.001)
    counter.write_text(str(value + 1))
    lock.release()
"""


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def start_holder(directory: Path) -> subprocess.Popen[str]:
    """Another process of this machine that holds the lock until it is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", TAKE_AND_SLEEP, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def write_foreign_generation(directory: Path, generation: int, counter: int) -> None:
    """A generation as a process of another machine would write it."""
    owner = replace(lock_module.this_process(), host="elsewhere", machine="another machine", token="theirs")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{generation:08d}").write_text(f"{counter:012d} {json.dumps(asdict(owner))}\n")


def test_a_held_lock_is_refused_and_names_its_holder(tmp_path):
    first, second = StepLock(tmp_path / "lock"), StepLock(tmp_path / "lock")
    assert first.try_acquire()
    assert not second.try_acquire()
    assert str(second.holder()) == f"process {os.getpid()} on {lock_module.platform.node()}"
    first.release()
    assert second.holder() is None
    assert second.try_acquire()
    second.release()


def test_a_discarded_lock_leaves_nothing(tmp_path):
    lock = StepLock(tmp_path / "locks" / "step")
    assert lock.try_acquire()
    lock.release(discard=True)
    assert list((tmp_path / "locks").iterdir()) == []
    assert lock.try_acquire(), "and can be taken again"
    lock.release()


def test_a_process_killed_on_this_machine_loses_its_lock_at_once(tmp_path):
    holder = start_holder(tmp_path / "lock")
    lock = StepLock(tmp_path / "lock")
    assert not lock.try_acquire()
    holder.kill()  # not waited for: a zombie holds no lock either
    deadline = time.monotonic() + 120
    while not lock.try_acquire():
        assert time.monotonic() < deadline, "a dead process still holds the lock"
        time.sleep(0.01)
    lock.release()
    holder.wait()


def test_a_reused_process_id_does_not_keep_a_lock(tmp_path):
    me = lock_module.this_process()
    directory = tmp_path / "lock"
    directory.mkdir()
    (directory / "00000001").write_bytes(lock_module._spell(replace(me, started="another time"), 3))
    assert StepLock(directory).try_acquire()


def test_a_foreign_lock_goes_stale_when_its_counter_stands_still(tmp_path):
    clock = FakeClock()
    lock = StepLock(tmp_path / "lock", stale_after_s=60, clock=clock)
    write_foreign_generation(tmp_path / "lock", 7, counter=1)
    assert not lock.try_acquire()
    clock.now += 59
    assert not lock.try_acquire()
    write_foreign_generation(tmp_path / "lock", 7, counter=2)
    clock.now += 59
    assert not lock.try_acquire(), "the counter moved, so the wait begins anew"
    clock.now += 59
    assert not lock.try_acquire()
    clock.now += 1
    assert lock.try_acquire()
    lock.release()


def test_file_times_and_wall_clocks_do_not_matter(tmp_path):
    write_foreign_generation(tmp_path / "lock", 1, counter=1)
    for skewed in (0.0, time.time() + 1e9):
        os.utime(tmp_path / "lock" / "00000001", (skewed, skewed))
        assert not StepLock(tmp_path / "lock").try_acquire()


def test_a_half_written_generation_counts_as_held_until_the_timeout(tmp_path):
    clock = FakeClock()
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "00000001").write_bytes(b"0000")
    lock = StepLock(tmp_path / "lock", stale_after_s=60, clock=clock)
    assert not lock.try_acquire()
    clock.now += 61
    assert lock.try_acquire()
    lock.release()


def test_an_interrupt_leaves_no_half_written_lock(tmp_path, monkeypatch):
    def interrupted(handle, content):
        raise SystemExit(143)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "write", interrupted)
        StepLock(tmp_path / "lock").try_acquire()
    assert StepLock(tmp_path / "lock").holder() is None


def test_the_heartbeat_moves_the_counter(tmp_path):
    lock = StepLock(tmp_path / "lock", beat_s=0.01)
    assert lock.try_acquire()
    before = (tmp_path / "lock" / "00000001").read_bytes()
    deadline = time.monotonic() + 120
    while (tmp_path / "lock" / "00000001").read_bytes() == before:
        assert time.monotonic() < deadline, "the counter does not move"
        time.sleep(0.01)
    lock.release()


def test_a_suspended_holder_is_taken_over_and_notices(tmp_path):
    holder = start_holder(tmp_path / "lock")
    try:
        os.kill(holder.pid, signal.SIGSTOP)
        watcher = StepLock(tmp_path / "lock", stale_after_s=0.3)
        deadline = time.monotonic() + 120
        while not watcher.try_acquire():
            assert time.monotonic() < deadline, "a suspended holder keeps its lock for ever"
            time.sleep(0.02)
        os.kill(holder.pid, signal.SIGCONT)
        time.sleep(0.2)  # several of its beats
        assert not watcher.is_lost, "the old holder must not disturb the new one"
        watcher.release()
    finally:
        holder.kill()
        holder.wait()


def test_the_loser_of_a_lock_knows_and_releases_nothing(tmp_path):
    clock = FakeClock()
    loser = StepLock(tmp_path / "lock", beat_s=1000)
    assert loser.try_acquire()
    winner = StepLock(tmp_path / "lock", stale_after_s=60, clock=clock)
    assert winner.holder() is not None
    clock.now += 61
    assert winner.try_acquire()
    assert loser.is_lost
    loser.release(discard=True)
    assert not winner.is_lost
    assert StepLock(tmp_path / "lock").holder() is not None
    winner.release()


def test_reaping_frees_the_lock_of_the_dead_and_of_nobody_else(tmp_path):
    alive = StepLock(tmp_path / "alive")
    assert alive.try_acquire()
    assert not StepLock(tmp_path / "alive").reap()
    alive.release()
    clock = FakeClock()
    watcher = StepLock(tmp_path / "dead", stale_after_s=60, clock=clock)
    write_foreign_generation(tmp_path / "dead", 1, counter=5)
    assert not watcher.reap()
    clock.now += 61
    assert watcher.reap()
    newcomer = StepLock(tmp_path / "dead")  # has watched nothing, and need not
    assert newcomer.try_acquire()
    newcomer.release()


@pytest.mark.parametrize("seed", range(5))
def test_of_many_contenders_for_a_stale_lock_one_wins(tmp_path, seed):
    for attempt in range(10):
        directory = tmp_path / f"{attempt}"
        clock = FakeClock()
        contenders = [StepLock(directory, stale_after_s=60, clock=clock) for _ in range(16)]
        write_foreign_generation(directory, seed + 1, counter=1)
        assert all(contender.holder() is not None for contender in contenders)
        clock.now += 61
        start, won = threading.Barrier(len(contenders)), []

        def contend(contender: StepLock, start: threading.Barrier = start, won: list[StepLock] = won) -> None:
            start.wait()
            if contender.try_acquire():
                won.append(contender)

        threads = [threading.Thread(target=contend, args=(contender,)) for contender in contenders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert not won[0].is_lost
        won[0].release(discard=True)


def test_processes_that_contend_never_hold_the_lock_together(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT_UNDER_LOCK, str(tmp_path / "lock"), str(counter), "25"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [subprocess.Popen(command, env=environment) for _ in range(6)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 6
    assert counter.read_text() == "150", "an increment was lost: two processes were inside at once"


def test_a_lock_interrupted_as_its_heartbeat_starts_can_be_released(tmp_path, monkeypatch):
    def interrupted(thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    lock = StepLock(tmp_path / "lock")
    with pytest.raises(KeyboardInterrupt):
        lock.try_acquire()
    lock.release()
    assert StepLock(tmp_path / "lock").holder() is None


def test_a_holder_known_to_be_over_need_not_be_waited_for(tmp_path):
    write_foreign_generation(tmp_path / "lock", 3, 5)
    lock = StepLock(tmp_path / "lock")
    holder = lock.holder()
    assert holder is not None
    namesake = replace(holder, started="at another time")  # another process, of the same number
    assert not lock.reap(ended=namesake)
    assert lock.holder() is not None
    assert lock.reap(ended=replace(holder, token="of another lock"))
    assert lock.holder() is None
    assert lock.try_acquire()
    lock.release()
