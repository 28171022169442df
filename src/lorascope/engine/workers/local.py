"""Runs steps on this machine: one warm worker process for each device, replaced when it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorascope.engine.provenance import usable_cpus
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.workers.devices import check_devices, find_devices
from lorascope.engine.workers.pool import Slot, WorkerPool
from lorascope.engine.workers.process import WorkerProcess, WorkerSettings, start_worker, stop_all, wait_for_output
from lorascope.errors import EnvironmentProblem

_DEATH_CHECK_S = 0.5


@dataclass
class _Seat(Slot):
    """One device and its worker process, if started."""

    process: WorkerProcess | None = None
    num_started: int = 0


class LocalExecutor(WorkerPool[_Seat]):
    """devices: one worker each ("cpu", "cuda:0", "mps"), and several on a device that is named several times; None: all
    accelerators, else one cpu. Workers start when they get their first step, so a study that is all cached starts none.
    """

    def __init__(self, store: Store, *, devices: Sequence[str] | None = None, data_dir: Path | None = None) -> None:
        super().__init__(store, data_dir=data_dir)
        self._devices = devices
        self._places: list[_Seat] | None = None

    def prepare(self) -> None:
        if self._devices is not None:
            check_devices(self._devices)

    def num_free(self, step: Step) -> int:
        # Workers of one accelerator would only take turns on it: a gang is not divided among them.
        free = self._free(self._fitting(step))
        return len({slot.name if slot.device == "cpu" else slot.device for slot in free})

    def close(self) -> None:
        places = self._places or []
        stop_all([place.process for place in places if place.process is not None])
        for place in places:
            self._let_go(list(place.steps.values()), None)  # of a worker that had to be killed
            place.process, place.steps, place.warm_for = None, {}, frozenset()
        self._again.clear()
        self._crowded_out.clear()

    def _all_slots(self) -> Sequence[_Seat]:
        if self._places is None:
            devices = self._devices or find_devices()
            self._places = [_Seat(device, f"{device.replace(':', '')}-{i}") for i, device in enumerate(devices)]
        return self._places

    def _is_ready(self, slot: _Seat) -> bool:
        return True

    def _worker(self, slot: _Seat) -> WorkerProcess:
        if slot.process is not None and not slot.steps and slot.process.is_dead():  # it died idle: no step's concern
            slot.process.wait(0)
            slot.process = None
        if slot.process is None:
            slot.process = self._start_process(slot)
        return slot.process

    def _start_process(self, slot: _Seat) -> WorkerProcess:
        slot.num_started += 1
        num_workers = len(self._all_slots())
        settings = WorkerSettings(
            store=self._store.place,
            device=slot.device,
            name=slot.name,
            data_dir=self._data_dir,
            num_on_device=sum(other.device == slot.device for other in self._all_slots()),
            num_threads=max(1, usable_cpus() // num_workers) if num_workers > 1 else None,
            environment=os.environ,
        )
        stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{slot.name}-{slot.num_started}"
        with self._store.guard():
            return start_worker(settings, log=self._store.logs_dir / f"{stamp}.log")

    def _forget_worker(self, slot: _Seat) -> None:
        slot.process = None

    def _retire(self, slot: _Seat) -> None:
        assert not slot.steps
        if slot.process is not None:
            stop_all([slot.process])
            slot.process, slot.warm_for = None, frozenset()

    def _wait(self, running: Sequence[_Seat], *, timeout_s: float) -> bool:
        processes = [slot.process for slot in running if slot.process is not None]
        wait_for_output(processes, timeout_s=min(timeout_s, _DEATH_CHECK_S))
        return False

    def _no_slot_for(self, step: Step) -> EnvironmentProblem:
        found = ", ".join(slot.device for slot in self._all_slots())
        return EnvironmentProblem(
            f"{step.id} needs an accelerator; this machine has {found}",
            hint="Run the study on a machine with a GPU; the store can be copied there, or shared with it.",
        )
