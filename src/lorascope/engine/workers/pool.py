"""Warm workers, on this machine or on many: who gets which steps, and what a worker's death means.

A step that raises has failed. A worker that dies (killed, out of memory, crashed, its machine lost) says nothing about its
steps, which are therefore tried again on another worker, at most twice; the second time each alone, so that one which
kills its worker takes no others with it. A step that finds no memory on a device that other workers use has not failed
either: it waits until it has the device to itself. An executor adds where workers are and how they are started.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lorascope.engine.events import Emit, Notice, event_from_json
from lorascope.engine.executor import Completion, needs
from lorascope.engine.failure import Failure
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.workers.process import Death
from lorascope.errors import EnvironmentProblem, OutOfMemory, StepFailure

MAX_ATTEMPTS = 3

_MEMORY_HINT = "Most often the system ran short of memory: lower train.micro_batch_size or train.batch_size. "


class Worker(Protocol):
    """A worker process, wherever it is."""

    def write(self, message: Mapping[str, Any]) -> None:
        """Send {"run": [Step.to_json(), ...], "attempt": n}."""
        ...

    def hear(self) -> tuple[list[dict[str, Any]], Death | None]:
        """What it said since, without waiting, and its death if it died."""
        ...


@dataclass
class Slot:
    """A place for one worker. name: for logs and events. steps: what it works on, by id; empty if free."""

    device: str
    name: str
    steps: dict[str, Step] = field(default_factory=dict)
    attempt: int = 1
    warm_for: frozenset[str] = field(default_factory=frozenset)

    @property
    def place(self) -> str:
        """Where its worker is, for people."""
        return self.device


S = TypeVar("S", bound=Slot)


class WorkerPool(ABC, Generic[S]):
    """The part of an executor that is the same wherever its workers are."""

    def __init__(self, store: Store, *, data_dir: Path | None) -> None:
        self._store = store
        self._data_dir = data_dir
        self._settled: list[Completion] = []
        self._again: list[tuple[list[Step], int]] = []  # steps of lost workers, each with its next attempt
        self._crowded_out: dict[str, tuple[Step, S]] = {}  # to be tried alone, or being so, and where
        self._needs: dict[str, frozenset[str]] = {}

    # -- what differs

    @abstractmethod
    def _all_slots(self) -> Sequence[S]:
        """The slots there are now."""

    @abstractmethod
    def _is_ready(self, slot: S) -> bool:
        """Whether steps given to the slot now would start now, as far as its worker is concerned."""

    @abstractmethod
    def _worker(self, slot: S) -> Worker:
        """The live worker of a slot that is ready, started if need be."""

    @abstractmethod
    def _forget_worker(self, slot: S) -> None:
        """The slot's worker is dead."""

    @abstractmethod
    def _retire(self, slot: S) -> None:
        """End an idle worker, if there is one, so that what it keeps loaded is free; the next step gets a new one."""

    @abstractmethod
    def _wait(self, running: Sequence[S], *, timeout_s: float) -> bool:
        """Until a worker says something, or something else changes, or the time is over. Whether a slot became ready."""

    @abstractmethod
    def _no_slot_for(self, step: Step) -> EnvironmentProblem:
        """Why no slot will ever fit `step`."""

    def _want(self, step: Step) -> None:
        """`step` could start if there were another worker. For executors whose workers take a while to come."""

    # -- the executor's protocol

    def warmth(self, step: Step) -> int | None:
        if self._settled:
            return None
        slots = self._fitting(step)
        if not slots:
            return 0  # none will ever fit: let it be submitted, and fail
        free = self._free(slots)
        if not free:
            self._want(step)
            return None
        return len(self._needed(step) & self._warmest(free, step).warm_for)

    def submit(self, steps: Sequence[Step]) -> None:
        slots = self._fitting(steps[0])
        if not slots:
            problem = self._no_slot_for(steps[0])
            self._settled += [self._record(Failure.of(step.id, problem)) for step in steps]
            return
        slot = self._warmest(self._free(slots), steps[0])
        if steps[0].resources.alone:
            for other in self._beside(slot):
                self._retire(other)
        self._start(slot, steps, attempt=1)

    def poll(self, emit: Emit, *, timeout_s: float) -> list[Completion]:
        deadline = time.monotonic() + timeout_s
        settled, self._settled = self._settled, []
        while not settled and self._is_waiting():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            running = [slot for slot in self._all_slots() if slot.steps]
            is_changed = self._wait(running, timeout_s=remaining)
            for slot in running:
                settled += self._listen(slot, emit)
            self._start_again()
            self._start_alone()
            settled += self._settled
            self._settled = []
            if is_changed:
                break
        return settled

    # -- slots

    def _fitting(self, step: Step) -> Sequence[S]:
        if step.resources.device == "accelerator":
            return [slot for slot in self._all_slots() if not slot.device.startswith("cpu")]
        return self._all_slots()

    def _free(self, slots: Sequence[S]) -> list[S]:
        held = [other for _, slot in self._crowded_out.values() for other in (slot, *self._sharing(slot))]
        return [slot for slot in slots if not slot.steps and self._is_ready(slot) and slot not in held]

    def _beside(self, slot: S) -> list[S]:
        """The others whose workers a measurement in `slot` would feel."""
        return [other for other in self._all_slots() if other is not slot]

    def _sharing(self, slot: S) -> list[S]:
        """The others whose workers take memory from the same device."""
        return [other for other in self._beside(slot) if other.device == slot.device]

    def _warmest(self, slots: Sequence[S], step: Step) -> S:
        return max(slots, key=lambda slot: len(self._needed(step) & slot.warm_for))

    def _needed(self, step: Step) -> frozenset[str]:
        """`needs`, computed once a step: the scheduler asks about every ready step whenever a worker is free."""
        if step.id not in self._needs:
            self._needs[step.id] = needs(step)
        return self._needs[step.id]

    def _is_waiting(self) -> bool:
        return bool(self._again or self._crowded_out) or any(slot.steps for slot in self._all_slots())

    # -- steps

    def _start(self, slot: S, steps: Sequence[Step], *, attempt: int) -> None:
        worker = self._worker(slot)
        slot.steps, slot.attempt = {step.id: step for step in steps}, attempt
        slot.warm_for = frozenset().union(*map(self._needed, steps))
        worker.write({"run": [step.to_json() for step in steps], "attempt": attempt})

    def _start_again(self) -> None:
        for steps, attempt in list(self._again):
            fitting = self._fitting(steps[0])
            if not fitting and self._all_slots():  # the machine it fitted is gone, and the others will never do
                self._again.remove((steps, attempt))
                problem = self._no_slot_for(steps[0])
                self._settled += [self._record(Failure.of(step.id, problem)) for step in steps]
            elif free := self._free(fitting):
                self._again.remove((steps, attempt))
                self._start(self._warmest(free, steps[0]), steps, attempt=attempt)
            else:
                self._want(steps[0])

    def _start_alone(self) -> None:
        """The steps that others left no memory, one at a time, once nothing else runs on their device."""
        for step, slot in list(self._crowded_out.values()):
            if slot not in self._all_slots():  # its machine is gone
                self._again.append(([self._crowded_out.pop(step.id)[0]], 1))
            elif slot.steps or any(other.steps for other in self._sharing(slot)):
                continue
            elif not self._is_ready(slot):
                self._want(step)
            else:
                for other in self._sharing(slot):
                    self._retire(other)
                self._start(slot, [step], attempt=1)

    def _listen(self, slot: S, emit: Emit) -> list[Completion]:
        """Relay what the worker said; the completions that came; a death is dealt with here."""
        messages, death = self._worker(slot).hear()
        settled = []
        for message in messages:
            if "event" in message:
                emit(event_from_json(message["event"]))
            elif "completion" in message:
                completion = _completion(message["completion"], attempt=slot.attempt)
                step = slot.steps.pop(completion.step_id)
                self._crowded_out.pop(step.id, None)
                if self._was_crowded_out(completion, slot):
                    self._crowded_out[step.id] = step, slot
                    text = f"{step.id} ran out of memory next to others; it is tried again when it has {slot.place} to itself"
                    emit(Notice(step=step.id, level="warning", text=text))
                else:
                    settled.append(completion)
        if death is not None:
            steps, slot.steps, slot.warm_for = list(slot.steps.values()), {}, frozenset()
            self._forget_worker(slot)
            if steps:
                settled += self._after_death(slot, steps, death, emit)
        return settled

    def _was_crowded_out(self, completion: Completion, slot: S) -> bool:
        """Whether there was too little memory, of which other workers held some."""
        is_memory = completion.failure is not None and isinstance(completion.failure.to_error(), OutOfMemory)
        return is_memory and any(other.steps or other.warm_for for other in self._sharing(slot))

    def _after_death(self, slot: S, steps: list[Step], death: Death, emit: Emit) -> list[Completion]:
        self._let_go(steps, death)
        for step in steps:
            self._crowded_out.pop(step.id, None)
        if death.never_ready:
            raise EnvironmentProblem(
                f"a worker for {slot.place} could not start ({death.cause}): {death.last_words}",
                hint="Its log says why; `python -c 'import lorascope.engine.workers.worker'` shows a broken installation.",
                where=str(death.log),
            )
        if slot.attempt < MAX_ATTEMPTS:
            is_last = slot.attempt + 1 == MAX_ATTEMPTS and len(steps) > 1
            others = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
            again = "trying each again alone" if is_last else "trying again on a new one"
            text = f"the worker on {slot.place} was lost ({death.cause}) during {steps[0].id}{others}; {again}"
            emit(Notice(step=steps[0].id, level="warning", text=text))
            groups = [[step] for step in steps] if is_last else [steps]
            self._again += [(group, slot.attempt + 1) for group in groups]
            return []
        (step,) = steps  # the last try is that of a step alone
        error = StepFailure(
            f"{step.id} lost its worker {slot.attempt} times, last by {death.cause}",
            hint=(_MEMORY_HINT if death.cause == "SIGKILL" else "") + f"The worker's last words are in {death.log}.",
        )
        return [self._record(Failure.of(step.id, error, log=str(death.log)))]

    def _let_go(self, steps: Sequence[Step], death: Death | None) -> None:
        """Release the locks of a worker that is over. The scheduler of its machine would find them stale by itself;
        others would have to wait."""
        for step in steps:
            with contextlib.suppress(OSError):
                self._store.lock(step.id).reap(ended=death.process if death else None)

    def _record(self, failure: Failure) -> Completion:
        self._store.record_failure(failure.step_id, failure)
        return Completion(failure.step_id, "failed", failure)


def _completion(data: Mapping[str, Any], *, attempt: int) -> Completion:
    failure = Failure.from_json(data["failure"]) if data["failure"] is not None else None
    outcome = data["outcome"]
    if outcome == "found" and attempt > 1:  # our own worker had committed it before it died
        outcome = "done"
    return Completion(data["step_id"], outcome, failure)
