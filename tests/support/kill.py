"""Kills a running study again and again, and checks what must survive: the harness behind the kill tests.

`kill_repeatedly(command, ...)` starts a command that runs lorascope on a store, sends SIGKILL to its workers, to itself
or to both at random moments, and starts it again, until so many kills are done; then it lets the command end in peace.
After every kill it checks that no committed artifact was lost, changed or computed again. Any command will do:

    kill_repeatedly(["lorascope", "run", "study.yaml", "--store", str(root)], store=Store(root), ...)

Compare `results(store)` with those of an undisturbed run. Linux only (it reads /proc to find the workers).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lorascope.engine.store.directory import Store

TARGETS = ("worker", "coordinator", "both")
_WORKER_MODULE = b"lorascope.engine.workers.worker"


@dataclass(frozen=True)
class Kill:
    """One kill. after_s: since the start, the kill before, or the first worker. num_committed: artifacts there at that
    moment. num_workers: worker processes found and killed. hit: whether anything was running that it could kill.
    """

    target: str
    after_s: float
    num_committed: int
    num_workers: int
    hit: bool


def kill_repeatedly(
    command: Sequence[str],
    *,
    store: Store,
    rng: random.Random,
    num_kills: int,
    delay_s: tuple[float, float],
    targets: Sequence[str] = TARGETS,
    environment: Mapping[str, str] | None = None,
    log: Path,
    end_timeout_s: float = 600.0,
    sight: Callable[[], bool] = lambda: True,
) -> list[Kill]:
    """Kill `command` `num_kills` times after random delays, then run it to its end (exit code 0 is asserted).

    Targets take turns, so each is hit; the delay of a worker's kill counts from when there is one. A step may fail for
    good when its worker is killed three times in a row, as it should; the command is then run once more, as a person
    would. log: receives the command's output. sight: what every other kill waits for before its delay, so that some meet
    a moment that chance alone may miss on a slow machine.
    """
    kills: list[Kill] = []
    before = committed(store)
    with log.open("ab") as output:
        running = _start(command, environment, output)
        for number in range(num_kills):
            if running.poll() is not None:
                running = _start(command, environment, output)
            target, after_s = targets[number % len(targets)], rng.uniform(*delay_s)
            if target == "worker":
                _wait_for_worker(running)
            if number % 2:
                _wait_for_sight(running, sight)
            time.sleep(after_s)
            kills.append(_kill(running, target, after_s=after_s, store=store))
            now = committed(store)
            assert_untouched(before, now)
            before = now
        for _ in range(2):
            if running.poll() is None:
                running.wait(end_timeout_s)
            if running.returncode == 0:
                break
            running = _start(command, environment, output)
        code = running.wait(end_timeout_s)
    assert code == 0, f"the command ended with {code} after the kills; its output is in {log}"
    assert_untouched(before, committed(store))
    damaged = [problem for artifact in store.artifacts() for problem in store.verify(artifact.id)]
    assert not damaged, damaged
    return kills


def committed(store: Store) -> dict[str, tuple[int, int]]:
    """Every artifact's record, as inode and time of writing: both change if it is ever written again."""
    found = {}
    for artifact in store.artifacts():
        stat = (artifact.path / "record.json").stat()
        found[artifact.path.name] = (stat.st_ino, stat.st_mtime_ns)
    return found


def assert_untouched(before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]]) -> None:
    lost = sorted(set(before) - set(now))
    assert not lost, f"committed artifacts are gone: {lost}"
    rewritten = [step_id for step_id in before if before[step_id] != now[step_id]]
    assert not rewritten, f"committed artifacts were computed again: {rewritten}"


def results(store: Store) -> dict[str, dict[str, Any]]:
    """What a study computed, without when and where: result and checksum of every file, by step id."""
    return {
        artifact.id: {"result": artifact.result, "sha256": artifact.record["sha256"]} for artifact in store.artifacts()
    }


def _start(command: Sequence[str], environment: Mapping[str, str] | None, output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def _kill(running: subprocess.Popen[bytes], target: str, *, after_s: float, store: Store) -> Kill:
    num_committed = len(committed(store))
    is_running = running.poll() is None
    workers = _workers_of(running.pid) if is_running else []
    if target != "coordinator":
        for worker in workers:
            _send_kill(worker)
    if target != "worker" and is_running:
        running.kill()
        running.wait()
        _wait_until_gone(workers)
    hit = is_running and (target != "worker" or bool(workers))
    return Kill(target, after_s, num_committed, len(workers) if target != "coordinator" else 0, hit)


def _wait_for_worker(running: subprocess.Popen[bytes], *, timeout_s: float = 60.0) -> None:
    """Until the command has a worker, or has ended without one because all is cached."""
    deadline = time.monotonic() + timeout_s
    while running.poll() is None and not _workers_of(running.pid):
        assert time.monotonic() < deadline, "the command runs without ever starting a worker"
        time.sleep(0.02)


def _wait_for_sight(running: subprocess.Popen[bytes], sight: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    """Until it is seen, or the command has ended."""
    deadline = time.monotonic() + timeout_s
    while running.poll() is None and not sight():
        assert time.monotonic() < deadline, "what the kill waits for never happened"
        time.sleep(0.02)


def _workers_of(coordinator: int) -> list[int]:
    """The worker processes below `coordinator`, at any depth."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields[1])
    below = {coordinator}
    while grown := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= grown
    return [pid for pid in sorted(below - {coordinator}) if _WORKER_MODULE in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _send_kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wait_until_gone(pids: Sequence[int], *, timeout_s: float = 5.0) -> None:
    """A worker must not outlive its coordinator."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if _command_line(pid)]:
        assert time.monotonic() < deadline, f"workers {left} outlived their coordinator"
        time.sleep(0.01)
