"""Runs steps on this machine: one warm worker process a device, replaced when it dies.

A step that raises has failed. A worker that dies (killed, out of memory, crashed) says nothing about its steps, which are
therefore tried again on a fresh worker, at most twice; the second time each alone, so that one which kills its worker
takes no others with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lorascope.engine.devices import find_devices
from lorascope.engine.events import Emit, Notice, event_from_json
from lorascope.engine.executor import Completion, needs
from lorascope.engine.failure import Failure
from lorascope.engine.provenance import WORKERS_ON_DEVICE
from lorascope.engine.step import Step
from lorascope.engine.store import Store
from lorascope.errors import EnvironmentProblem, StepFailure

MAX_ATTEMPTS = 3

_MEMORY_HINT = "Most often the system ran short of memory: lower train.micro_batch_size or train.batch_size. "
_STOP_TIMEOUT_S = 5.0
_DEATH_CHECK_S = 0.5


class LocalExecutor:
    """devices: one worker each ("cpu", "cuda:0", "mps"), and several on a device that is named several times; None: all
    accelerators, else one cpu. Workers start when they get their first step, so a study that is all cached starts none.
    """

    def __init__(self, store: Store, *, devices: Sequence[str] | None = None, data_dir: Path | None = None) -> None:
        self._store = store
        self._data_dir = data_dir
        self._devices = devices
        self._slots: list[_Slot] | None = None
        self._settled: list[Completion] = []
        self._last_tries: list[Step] = []
        self._needs: dict[str, frozenset[str]] = {}

    def warmth(self, step: Step) -> int | None:
        if self._settled:
            return None
        slots = self._fitting(step)
        if not slots:
            return 0  # no device will ever fit: let it be submitted, and fail
        needed = self._needed(step)
        return max((len(needed & slot.warm_for) for slot in slots if not slot.steps), default=None)

    def num_free(self, step: Step) -> int:
        # Workers of one accelerator would only take turns on it: a gang is not divided among them.
        free = [slot for slot in self._fitting(step) if not slot.steps]
        return len({slot.index if slot.device == "cpu" else slot.device for slot in free})

    def submit(self, steps: Sequence[Step]) -> None:
        slots = self._fitting(steps[0])
        if not slots:
            self._settled += [Completion(step.id, "failed", self._no_device(step)) for step in steps]
            return
        free = [slot for slot in slots if not slot.steps]
        slot = max(free, key=lambda slot: len(self._needed(steps[0]) & slot.warm_for))
        if steps[0].resources.alone:
            for other in self._slots or ():
                if other is not slot and other.process is not None:
                    _retire(other)
        self._start(slot, steps, attempt=1)

    def poll(self, emit: Emit, *, timeout_s: float) -> list[Completion]:
        deadline = time.monotonic() + timeout_s
        settled, self._settled = self._settled, []
        while not settled:
            remaining = deadline - time.monotonic()
            running = [slot for slot in self._slots or () if slot.steps]
            if remaining <= 0 or not running:
                break
            _wait_for_output(running, timeout_s=min(remaining, _DEATH_CHECK_S))
            for slot in running:
                settled += self._listen(slot, emit)
            self._start_last_tries()
        return settled

    def close(self) -> None:
        processes = [slot.process for slot in self._slots or () if slot.process is not None]
        for process in processes:
            process.stop()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
        for slot in self._slots or ():
            for step_id in slot.steps:
                # Of a worker that had to be killed. This machine knows its lock for stale anyway; others would wait.
                with contextlib.suppress(OSError):
                    self._store.lock(step_id).reap()
            slot.process, slot.steps, slot.warm_for = None, {}, frozenset()
        self._last_tries.clear()

    def _fitting(self, step: Step) -> list[_Slot]:
        if self._slots is None:
            self._slots = [_Slot(device, index) for index, device in enumerate(self._devices or find_devices())]
        if step.resources.device == "accelerator":
            return [slot for slot in self._slots if not slot.device.startswith("cpu")]
        return self._slots

    def _needed(self, step: Step) -> frozenset[str]:
        """`needs`, computed once a step: the scheduler asks about every ready step whenever a worker is free."""
        if step.id not in self._needs:
            self._needs[step.id] = needs(step)
        return self._needs[step.id]

    def _no_device(self, step: Step) -> Failure:
        found = ", ".join(slot.device for slot in self._slots or ())
        problem = EnvironmentProblem(
            f"{step.id} needs an accelerator; this machine has {found}",
            hint="Run the study on a machine with a GPU; the store can be copied there, or shared with it.",
        )
        return self._record(Failure.of(step.id, problem))

    def _record(self, failure: Failure) -> Failure:
        self._store.record_failure(failure.step_id, failure)
        return failure

    def _start(self, slot: _Slot, steps: Sequence[Step], *, attempt: int) -> None:
        if slot.process is not None and slot.process.is_dead():  # it died idle, which concerns no step
            slot.process.wait(0)
            slot.process = None
        if slot.process is None:
            slot.process = self._start_process(slot)
        slot.steps, slot.attempt = {step.id: step for step in steps}, attempt
        slot.warm_for = frozenset().union(*map(self._needed, steps))
        with contextlib.suppress(BrokenPipeError):  # it died just now: the next poll sees that
            slot.process.write({"run": [step.to_json() for step in steps], "attempt": attempt})

    def _start_last_tries(self) -> None:
        for step in list(self._last_tries):
            slot = next((slot for slot in self._fitting(step) if not slot.steps), None)
            if slot is not None:
                self._last_tries.remove(step)
                self._start(slot, [step], attempt=MAX_ATTEMPTS)

    def _start_process(self, slot: _Slot) -> _Process:
        slot.num_started += 1
        name = f"{slot.device.replace(':', '')}-{slot.index}"
        log = self._store.logs_dir / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{name}-{slot.num_started}.log"
        command = [sys.executable, "-m", "lorascope.engine.worker", "--store", str(self._store.root)]
        command += ["--device", slot.device, "--parent", str(os.getpid()), "--name", name, "--log", str(log)]
        if self._data_dir is not None:
            command += ["--data", str(self._data_dir)]
        with self._store.guard():
            return _Process(command, log, self._environment(slot.device))

    def _environment(self, device: str) -> Mapping[str, str]:
        # Workers import what this process imports, however it came by its path (as multiprocessing's "spawn" does).
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment[WORKERS_ON_DEVICE] = str(sum(slot.device == device for slot in self._slots or ()))
        # Threads that spin while they wait cost nothing alone and most of the speed beside any other busy process.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if (num_workers := len(self._slots or ())) > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))
        return environment

    def _listen(self, slot: _Slot, emit: Emit) -> list[Completion]:
        """Relay what the worker said; the completions that came; a death is dealt with here."""
        process = slot.process
        assert process is not None
        is_dead = process.is_dead()  # asked before reading, so that a dead worker's last words are all heard
        settled = []
        for message in process.messages():
            if "event" in message:
                emit(event_from_json(message["event"]))
            elif "completion" in message:
                settled.append(_completion(message["completion"], attempt=slot.attempt))
                del slot.steps[settled[-1].step_id]
        if is_dead and slot.steps:
            settled += self._after_death(slot, list(slot.steps.values()), process, emit)
        return settled

    def _after_death(self, slot: _Slot, steps: list[Step], process: _Process, emit: Emit) -> list[Completion]:
        slot.process, slot.steps, slot.warm_for = None, {}, frozenset()
        death = process.describe_death()
        process.wait(0)
        if not process.was_ready and not process.was_killed():
            raise EnvironmentProblem(
                f"a worker for {slot.device} could not start ({death}): {process.last_words()}",
                hint="Its log says why; `python -c 'import lorascope.engine.worker'` shows a broken installation.",
                where=str(process.log),
            )
        if slot.attempt < MAX_ATTEMPTS:
            is_last = slot.attempt + 1 == MAX_ATTEMPTS and len(steps) > 1
            others = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
            again = "trying each again alone" if is_last else "trying again on a new one"
            text = f"the worker on {slot.device} was lost ({death}) during {steps[0].id}{others}; {again}"
            emit(Notice(step=steps[0].id, level="warning", text=text))
            if is_last:
                self._last_tries += steps
            else:
                self._start(slot, steps, attempt=slot.attempt + 1)
            return []
        (step,) = steps  # the last try is that of a step alone
        error = StepFailure(
            f"{step.id} lost its worker {slot.attempt} times, last by {death}",
            hint=(_MEMORY_HINT if death == "SIGKILL" else "") + f"The worker's last words are in {process.log}.",
        )
        return [Completion(step.id, "failed", self._record(Failure.of(step.id, error, log=str(process.log))))]


@dataclass
class _Slot:
    """One device and its worker process, if started. steps: what it works on, by id; empty if free."""

    device: str
    index: int
    process: _Process | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    attempt: int = 1
    warm_for: frozenset[str] = field(default_factory=frozenset)
    num_started: int = 0


class _Process:
    """A worker process and its two pipes."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.was_ready = False
        self._unfinished = b""
        with log.open("wb") as stderr:
            # In a session of its own: Ctrl-C reaches the coordinator alone, which then stops its workers in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        self.stdin: IO[bytes] = self._pipe(self._process.stdin)
        self.stdout: IO[bytes] = self._pipe(self._process.stdout)
        os.set_blocking(self.stdout.fileno(), False)

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None
        return stream

    def write(self, message: Mapping[str, Any]) -> None:
        self.stdin.write(json.dumps(message).encode() + b"\n")
        self.stdin.flush()

    def messages(self) -> Iterator[dict[str, Any]]:
        """The complete lines that have arrived. A line torn by a death is dropped."""
        while True:
            try:
                chunk = os.read(self.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not chunk:
                return
            *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self.was_ready |= "ready" in message
                yield message

    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def was_killed(self) -> bool:
        return self._process.wait() < 0

    def describe_death(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def stop(self) -> None:
        """Ask it to end: closing its input ends an idle worker, SIGTERM unwinds a running step."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Wait for the end, and force it after `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()


def _retire(slot: _Slot) -> None:
    """End an idle worker, so that what it keeps loaded is free; its next step gets a new one."""
    assert slot.process is not None and not slot.steps
    slot.process.stop()
    slot.process.wait(_STOP_TIMEOUT_S)
    slot.process, slot.warm_for = None, frozenset()


def _completion(data: Mapping[str, Any], *, attempt: int) -> Completion:
    failure = Failure.from_json(data["failure"]) if data["failure"] is not None else None
    outcome = data["outcome"]
    if outcome == "found" and attempt > 1:  # our own worker had committed it before it died
        outcome = "done"
    return Completion(data["step_id"], outcome, failure)


def _wait_for_output(slots: Sequence[_Slot], *, timeout_s: float) -> None:
    with selectors.DefaultSelector() as selector:
        for slot in slots:
            if slot.process is not None:
                selector.register(slot.process.stdout, selectors.EVENT_READ)
        selector.select(timeout_s)
