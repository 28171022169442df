"""A worker process on another machine: an actor that holds it there, and the handle through which a coordinator speaks to it.

The actor runs no step itself. It starts the same worker process that a local study uses, so that logs, interrupts, deaths
and what is kept warm are the same everywhere; and it dies with its coordinator, as that process dies with it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.engine.ray.cluster import Machine, is_head_there, machines, ray_module
from lorascope.engine.store.lock import Owner
from lorascope.engine.store.opening import open_store
from lorascope.engine.workers.process import (
    STOP_TIMEOUT_S,
    Death,
    WorkerProcess,
    WorkerSettings,
    start_worker,
    stop_all,
    wait_for_output,
)

LISTEN_S = 0.5
COLLECT_S = 0.05

_OMP_NUM_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Reply:
    """What the worker said since the last one, its death if it died, and who it is once it said so."""

    messages: list[dict[str, Any]]
    death: Death | None
    process: Owner | None
    log: Path


class Host:
    """The actor. Its calls run one after another, so none takes longer than `LISTEN_S` but the end."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: WorkerProcess | None = None
        self._num_started = 0

    def greet(self) -> None:
        """Answered once Ray has found room for this actor."""

    def run(self, message: Mapping[str, Any]) -> Reply:
        """Give the worker process steps, started if need be; what it says at once."""
        if self._process is not None and self._process.is_dead():  # it died idle, which concerns no step
            self._process.wait(0)
            self._process = None
        if self._process is None:
            self._process = self._start()
        self._process.write(message)
        return self.listen()

    def listen(self) -> Reply:
        """What the worker process says within a moment."""
        process = self._process
        assert process is not None, "nothing was started yet"
        messages: list[dict[str, Any]] = []
        death, until = None, time.monotonic() + LISTEN_S
        while death is None and (remaining := until - time.monotonic()) > 0:
            wait_for_output([process], timeout_s=remaining)
            heard, death = process.hear()
            messages += heard
            if any("completion" in message for message in heard):
                break
            if heard:  # more may follow at once, and an answer for each line would cost more than the line
                until = min(until, time.monotonic() + COLLECT_S)
        if death is not None:
            self._process = None
        return Reply(messages, death, process.process, process.log)

    def stop(self) -> None:
        """End the worker process."""
        if self._process is not None:
            stop_all([self._process])
            self._process = None

    def _start(self) -> WorkerProcess:
        given = self._settings
        self._num_started += 1
        stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{given.name}-{self._num_started}"
        logs = open_store(given.store).logs_dir
        # Ray sets one thread for an actor that reserves one processor; the worker has its machine's share.
        environment = {**os.environ, **given.environment, _OMP_NUM_THREADS: str(given.num_threads)}
        return start_worker(replace(given, environment=environment), log=logs / f"{stamp}.log")


class RemoteWorker:
    """A worker on `machine`, which may still have to wait for room there. whole: with all of that machine to itself."""

    def __init__(self, settings: WorkerSettings, machine: Machine, *, whole: bool) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        num_gpus = 0 if settings.device == "cpu" else machine.num_gpus if whole else 1
        options = {"num_cpus": machine.num_cpus if whole else 1, "num_gpus": num_gpus, "max_restarts": 0}
        there = NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
        self._ray = ray_module()
        self._machine = machine
        self._actor = self._ray.remote(Host).options(scheduling_strategy=there, **options).remote(settings)
        self.asked_at = time.monotonic()
        self._process: Owner | None = None
        self._log = open_store(settings.store).root / "logs"
        self._num_running = 0
        self.awaited: Any = self._actor.greet.remote()  # the answer that is to come, if one is
        self.is_lost = False
        self._is_ready = False

    def is_ready(self) -> bool:
        """Whether it has its place on the machine. Raises ray.exceptions.RayError if it never will."""
        if not self._is_ready and self._has_answer():
            self._ray.get(self.awaited)
            self.awaited, self._is_ready = None, True
        return self._is_ready

    def write(self, message: Mapping[str, Any]) -> None:
        self._num_running = len(message["run"])
        self.awaited = self._actor.run.remote(message)

    def hear(self) -> tuple[list[dict[str, Any]], Death | None]:
        if not self._has_answer():
            return [], None
        try:
            reply: Reply = self._ray.get(self.awaited)
        except self._ray.exceptions.RayError as error:
            cause = self._cause(error)
            self.kill()  # if it lives after all, it must not go on beside its successor
            return [], Death(cause, False, "it was cut off", log=self._log, process=self._process)
        self._process, self._log = reply.process, reply.log
        self._num_running -= sum("completion" in message for message in reply.messages)
        goes_on = self._num_running > 0 and reply.death is None
        self.awaited = self._actor.listen.remote() if goes_on else None
        return reply.messages, reply.death

    def stop(self) -> Any:
        """Ask it to end; what to wait for before it is killed."""
        return self._actor.stop.remote()

    def kill(self) -> None:
        """End it at once."""
        self.awaited, self.is_lost = None, True
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)

    def _has_answer(self) -> bool:
        return self.awaited is not None and bool(self._ray.wait([self.awaited], timeout=0)[0])

    def _cause(self, error: Exception) -> str:
        name = self._machine.name
        if self._machine.node_id not in {machine.node_id for machine in machines()}:
            return f"the loss of {name}"
        is_silent = isinstance(error, self._ray.exceptions.ActorUnavailableError)
        return f"no answer from {name}" if is_silent else f"the end of its process on {name}"


def end_all(workers: Sequence[RemoteWorker]) -> None:
    """End them together: each gets to unwind what it runs, and is killed then. What is gone already, with its machine or
    with the whole cluster, has ended; what else goes wrong with one is raised after all the others have ended."""
    stopped: list[Any] = []
    with contextlib.ExitStack() as ending:  # last in, first out
        ending.callback(_kill_all, workers)
        ending.callback(_wait_for, stopped)
        for worker in workers:
            ending.callback(_ask_to_end, worker, stopped)


def _ask_to_end(worker: RemoteWorker, stopped: list[Any]) -> None:
    with contextlib.suppress(ray_module().exceptions.RayError, ConnectionError):
        if worker.is_ready():
            stopped.append(worker.stop())


def _wait_for(stopped: list[Any]) -> None:
    ray = ray_module()
    with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
        if stopped:
            ray.wait(stopped, num_returns=len(stopped), timeout=STOP_TIMEOUT_S + 1)


def _kill_all(workers: Sequence[RemoteWorker]) -> None:
    if is_head_there():  # else they end by themselves, and asking Ray would end this process
        with contextlib.ExitStack() as killing:
            for worker in workers:
                killing.callback(worker.kill)
