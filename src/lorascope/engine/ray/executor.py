"""Runs steps on the machines of a Ray cluster, over a store that all of them share: a warm worker for each GPU.

Whoever is free gets the next step, so fast machines do more; a machine that joins gets workers, one that is lost costs
the steps under way there, which are tried again elsewhere. Where no machine has a GPU, each gets one worker. A step that
must be alone has a whole machine to itself, one labelled `lorascope=measure` if there is any.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lorascope.engine.events import Emit, Notice
from lorascope.engine.executor import Completion
from lorascope.engine.ray.checks import check_machines
from lorascope.engine.ray.cluster import Machine, connect, is_head_there, machines, ray_module
from lorascope.engine.ray.host import RemoteWorker, end_all
from lorascope.engine.ray.places import DEVICES, Place, lay_out
from lorascope.engine.ray.refusals import Refusals
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.store.opening import LOCAL_STORE
from lorascope.engine.workers.pool import WorkerPool
from lorascope.engine.workers.process import WorkerSettings
from lorascope.errors import EnvironmentProblem, StudyError

REFRESH_S = 2.0
IDLE_S = 60.0  # a worker that had nothing to do for so long makes room for others on the cluster
PATIENCE_S = 30.0  # for room on a machine, before a person is told and gangs no longer count on it
MACHINE_WAIT_S = 300.0  # for another machine to join when the last one that fits is gone


class RayExecutor(WorkerPool[Place]):
    """devices: so many workers of each kind ("cuda", "cpu"), spread over the machines; None: one for each GPU, or where no
    machine has one, one for each machine. address: "host:port"; None: RAY_ADDRESS, else the cluster of this machine.
    """

    def __init__(
        self,
        store: Store,
        *,
        devices: Sequence[str] | None = None,
        address: str | None = None,
        data_dir: Path | None = None,
    ) -> None:
        super().__init__(store, data_dir=data_dir.absolute() if data_dir else None)
        if unknown := [device for device in devices or () if device not in DEVICES]:
            raise StudyError(
                f"--device {unknown[0]} names no kind of device that Ray gives away",
                hint="With --executor ray: cuda or cpu, once for each worker; Ray chooses which GPU.",
            )
        self._address = address
        self._devices = list(devices) if devices else None
        self._kind = ""  # "cuda" or "cpu": what workers are made for, if that is not given
        self._is_connected = self._is_ours = False
        self._machines: dict[str, Machine] = {}
        self._refusals = Refusals()
        self._places: list[Place] = []
        self._notices: list[str] = []
        self._wanted: set[str] = set()
        self._refreshed_at = self._last_machine_at = 0.0
        self._is_told_to_wait = False

    def prepare(self) -> None:
        """Raises EnvironmentProblem as well if a machine of the cluster does not share the store, or has other code."""
        if self._is_connected:
            return
        self._is_ours = connect(self._address)
        self._is_connected = True
        try:
            found = machines()
            problems, self._notices = check_machines(found, self._store, data_dir=self._data_dir)
            for problem in problems.values():
                raise problem
            self._machines = {machine.node_id: machine for machine in found}
            self._kind = "cuda" if any(machine.num_gpus for machine in found) else "cpu"
            self._lay_out()
            for kind in set(self._devices or ()):
                if not any(place.device == DEVICES[kind] for place in self._places):
                    raise EnvironmentProblem(
                        f"--device {kind}: no machine of the cluster has one", hint="`ray status` lists what there is."
                    )
        except BaseException:
            self.close()
            raise

    def warmth(self, step: Step) -> int | None:
        if not self._all_slots():  # all machines are lost: one may come back
            self._wanted.add(step.id)
            return None
        return super().warmth(step)

    def num_free(self, step: Step) -> int:
        # Those that have yet to start count: a gang should not all go to the worker that happens to be there first.
        now = time.monotonic()
        free = [place for place in self._fitting(step) if not place.steps]
        return sum(self._is_ready(p) or p.worker is None or now - p.worker.asked_at < PATIENCE_S for p in free)

    def poll(self, emit: Emit, *, timeout_s: float) -> list[Completion]:
        self._refresh()
        for text in self._notices:
            emit(Notice(level="warning", text=text))
        self._notices.clear()
        settled = super().poll(emit, timeout_s=timeout_s)
        self._end_idle()
        self._wanted.clear()
        return settled

    def close(self) -> None:
        if not self._is_connected:
            return
        workers = [place.worker for place in self._places if place.worker is not None]
        with contextlib.ExitStack() as closing:  # whatever one raises, the others are done first
            closing.callback(self._leave)
            for place in self._places:
                closing.callback(self._let_go, list(place.steps.values()), None)
            end_all(workers)

    def _leave(self) -> None:
        self._places.clear()
        self._again.clear()
        self._crowded_out.clear()
        self._is_connected = False
        if self._is_ours and is_head_there():  # else there is nobody to take leave of
            ray_module().shutdown()

    # -- places

    def _all_slots(self) -> Sequence[Place]:
        self.prepare()
        return self._places

    def _fitting(self, step: Step) -> Sequence[Place]:
        fitting = [place for place in super()._fitting(step) if place.whole == step.resources.alone]
        needed = step.resources.memory_bytes
        if needed is not None:
            fitting = [p for p in fitting if p.machine.memory_bytes is None or p.machine.memory_bytes >= needed]
        labelled = [place for place in fitting if place.machine.is_for_measuring]
        return labelled if step.resources.alone and labelled else fitting

    def _is_ready(self, slot: Place) -> bool:
        ray = ray_module()
        try:
            return slot.worker is not None and slot.worker.is_ready()
        except ray.exceptions.RayError as error:
            slot.worker = None
            if slot.machine.node_id in {machine.node_id for machine in machines()}:
                raise EnvironmentProblem(
                    f"a worker for {slot.place} could not start: {str(error).strip().splitlines()[-1]}",
                    hint="`ray status` and the logs of Ray (/tmp/ray/session_latest/logs there) say more.",
                ) from error
            return False

    def _lay_out(self) -> None:
        self._places = lay_out(self._places, self._machines, kind=self._kind, devices=self._devices)

    def _refresh(self) -> None:
        """Take in machines that joined, and let go of those that left."""
        now = time.monotonic()
        if not self._is_connected or now - self._refreshed_at < REFRESH_S:
            return
        self._refreshed_at = now
        alive = {machine.node_id: machine for machine in machines()}
        self._refusals.forget_all_but(alive)
        asked = [
            m for m in alive.values() if m.node_id not in self._machines and self._refusals.may_ask(m.node_id, now=now)
        ]
        problems, notices = check_machines(asked, self._store, data_dir=self._data_dir) if asked else ({}, [])
        self._notices += notices
        now = time.monotonic()  # checking takes its time
        news = [self._refusals.note(machine, problems.get(machine.node_id), now=now) for machine in asked]
        self._notices += [text for text in news if text is not None]
        self._machines = {node_id: m for node_id, m in alive.items() if node_id not in self._refusals}
        self._lay_out()

    # -- workers

    def _want(self, step: Step) -> None:
        self._wanted.add(step.id)
        if len(self._wanted) > len(self._places):
            return
        places = self._fitting(step)
        pending = sum(place.worker is not None and not self._is_ready(place) for place in places)
        free = [place for place in places if place.worker is None and not place.steps]
        if not free or pending >= (1 if step.resources.alone else len(self._wanted)):
            return
        busy = Counter(place.machine.node_id for place in self._places if place.worker is not None)
        place = min(free, key=lambda place: busy[place.machine.node_id])
        for other in self._beside(place):
            if other.whole != place.whole and not other.steps:
                self._retire(other)
        place.worker = RemoteWorker(self._settings(place), place.machine, whole=place.whole)

    def _beside(self, slot: Place) -> list[Place]:
        return [p for p in super()._beside(slot) if p.machine.node_id == slot.machine.node_id]

    def _sharing(self, slot: Place) -> list[Place]:
        """Ray shows each worker a GPU of its own, whatever it is called there."""
        return super()._sharing(slot) if slot.device == "cpu" else []

    def _settings(self, place: Place) -> WorkerSettings:
        passed = {
            name: value for name, value in os.environ.items() if name.startswith("LORASCOPE_") and name != LOCAL_STORE
        }
        beside = 1 if place.whole else 1 + sum(not other.whole for other in self._beside(place))
        return WorkerSettings(
            store=self._store.place,
            device=place.device,
            name=place.name,
            data_dir=self._data_dir,
            num_on_device=beside if place.device == "cpu" else 1,
            num_threads=max(1, place.machine.num_cpus // beside),
            environment=passed,
        )

    def _worker(self, slot: Place) -> RemoteWorker:
        assert slot.worker is not None
        return slot.worker

    def _forget_worker(self, slot: Place) -> None:
        if slot.worker is not None and slot.worker.is_lost:  # else its actor starts another process at the next step
            slot.worker = None

    def _retire(self, slot: Place) -> None:
        assert not slot.steps
        if slot.worker is not None:
            end_all([slot.worker])
            slot.worker, slot.warm_for = None, frozenset()

    def _end_idle(self) -> None:
        now = time.monotonic()
        for place in self._places:
            if place.steps or place.worker is None or not self._is_ready(place):
                place.idle_since = now
            elif now - place.idle_since > IDLE_S:
                self._retire(place)

    # -- waiting

    def _is_waiting(self) -> bool:
        return bool(self._wanted) or super()._is_waiting()

    def _wait(self, running: Sequence[Place], *, timeout_s: float) -> bool:
        pending = [p for p in self._places if p.worker is not None and not p.steps and not self._is_ready(p)]
        awaited = [p.worker.awaited for p in [*running, *pending] if p.worker is not None]
        if awaited:
            ray_module().wait(awaited, timeout=timeout_s)
        else:
            time.sleep(timeout_s)
        self._say_if_in_vain(running, pending)
        return any(self._is_ready(place) for place in pending)

    def _say_if_in_vain(self, running: Sequence[Place], pending: Sequence[Place]) -> None:
        """Nothing runs though something could: no room for a worker, or no machine at all."""
        now = time.monotonic()
        if self._places:
            self._last_machine_at = now
        elif now - self._last_machine_at > MACHINE_WAIT_S:
            raise EnvironmentProblem(
                f"the cluster has had no machine for this study for {MACHINE_WAIT_S / 60:.0f} minutes",
                hint="What is finished is kept: start machines with `ray start --address=...` and give the same command.",
            )
        waited = [now - place.worker.asked_at for place in pending if place.worker is not None]
        if waited and min(waited) > PATIENCE_S and not running and not self._is_told_to_wait:
            self._is_told_to_wait = True
            self._notices.append(
                "waiting for room on the cluster: its GPUs or processors are all reserved; `ray status` shows by whom"
            )

    def _no_slot_for(self, step: Step) -> EnvironmentProblem:
        needed = "an accelerator" if step.resources.device == "accelerator" else f"{step.resources.memory_bytes} bytes"
        return EnvironmentProblem(
            f"{step.id} needs {needed}, which no machine of the cluster has",
            hint="`ray status` lists what there is; add a machine with `ray start --address=...`.",
        )
