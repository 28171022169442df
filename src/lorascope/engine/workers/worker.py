"""The worker process: runs steps given as JSON lines, and stays warm between them.

    python -m lorascope.engine.workers.worker --store S --device D [--data DIR] --step ID    runs one step by hand
    python -m lorascope.engine.workers.worker --store S --device D [--data DIR]              serves on stdin and stdout

Serving, it reads {"run": [Step.to_json(), ...], "attempt": n} a line and answers {"ready": Owner}, {"event": ...} and
{"completion": ...} lines, one completion for each step as it is settled. These leave on a duplicate of the first stdout
while file descriptor 1 points to stderr, so that no stray print of a library can break the protocol. It never outlives
its coordinator.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from lorascope.engine.events import Event, Notice, StepFinished
from lorascope.engine.executor import Completion
from lorascope.engine.provenance import workers_on_device
from lorascope.engine.run import StepBusy, run_step, try_steps
from lorascope.engine.step import Step
from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.directory import Store
from lorascope.engine.store.lock import this_process
from lorascope.engine.store.opening import open_store
from lorascope.engine.workplace import Workplace
from lorascope.errors import EnvironmentProblem, LorascopeError, StudyError

_PARENT_CHECK_S = 0.5
_BUSY_CHECK_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run one step, or serve until the input ends; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lorascope.engine.workers.worker", description="Run steps of a store."
    )
    parser.add_argument("--store", required=True, help="the store's directory or address")
    parser.add_argument("--device", required=True, help="a torch device: cpu, cuda:0, mps")
    parser.add_argument("--data", type=Path, default=None, help="where {task}_{split}.parquet may lie")
    parser.add_argument("--step", default=None, help="run this step and end")
    parser.add_argument("--parent", type=int, default=None, help="end when this process is no longer the parent")
    parser.add_argument("--name", default=None, help="the worker's name in events")
    parser.add_argument("--log", default=None, help="where stderr goes, for failure records")
    given = parser.parse_args(arguments)
    store = open_store(given.store)
    name = given.name or f"worker-{given.device}"
    if given.step is not None:
        return _run_by_hand(
            given.step,
            Workplace(store=store, device=given.device, data_dir=given.data, emit=_emit_by_hand, worker=name),
        )
    if given.parent is not None:
        _end_with_parent(given.parent)
    signal.signal(signal.SIGTERM, _leave)
    with _take_stdout() as answers:
        say = _Replies(answers)
        workplace = Workplace(
            store=store, device=given.device, data_dir=given.data, emit=say.event, worker=name, log=given.log
        )
        _serve(workplace, say)
    return 0


class _Replies:
    """The lines that leave, from whichever thread: steps may emit from threads of their own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._sending = stream, threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def event(self, event: Event) -> None:
        self.send({"event": event.to_json()})


def _serve(workplace: Workplace, say: _Replies) -> None:
    def report(completion: Completion) -> None:
        if completion.failure is not None:
            print(completion.failure.traceback or completion.failure.text, file=sys.stderr, flush=True)
        say.send({"completion": asdict(completion)})

    say.send({"ready": asdict(this_process())})
    for line in sys.stdin:
        request = json.loads(line)
        steps = [Step.from_json(step) for step in request["run"]]
        for step in steps:
            print(f"-- {step.id}", file=sys.stderr, flush=True)
        try_steps(steps, workplace, attempt=request["attempt"], report=report)
        _give_back_memory(workplace.device)


def _give_back_memory(device: str) -> None:
    """What torch keeps of a GPU for later steps, which other workers of the device would miss."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda") and workers_on_device() > 1:
        gc.collect()
        torch.cuda.empty_cache()


def _emit_by_hand(event: Event) -> None:
    if isinstance(event, Notice):
        print(f"{event.level}: {event.text}", file=sys.stderr)
    elif isinstance(event, StepFinished):
        print(f"{event.step}: done in {event.seconds:.1f} s", file=sys.stderr)


def _run_by_hand(step_id: str, workplace: Workplace) -> int:
    """Run one step in the foreground; waits if another process is at it. The exit code is the command line's."""
    try:
        step = _known_step(workplace.store, step_id)
        if workplace.store.has(step_id):
            print(f"{step_id}: already done", file=sys.stderr)
        artifact = _wait_and_run(step, workplace)
        print(artifact.place)
    except LorascopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _known_step(store: Store, step_id: str) -> Step:
    try:
        step = store.load_step(step_id)
    except KeyError:
        raise StudyError(
            f"the store does not know a step {step_id!r}",
            hint="A study saves its steps when it runs; the ids are those that `lorascope plan` and `status` show.",
            where=store.place,
        ) from None
    missing = [dep for dep in step.deps.values() if not store.has(dep)]
    if missing:
        raise EnvironmentProblem(
            f"{step_id} needs {', '.join(missing)}, not done yet", hint="Run those first.", where=store.place
        )
    return step


def _wait_and_run(step: Step, workplace: Workplace) -> Artifact:
    store = workplace.store
    lock = store.lock(step.id)  # one object for the whole wait: it is what sees the holder's counter stand still
    is_told = False
    while True:
        try:
            return run_step(step, workplace)
        except StepBusy as busy:
            if not is_told:
                print(f"{busy}: waiting for it", file=sys.stderr)
                is_told = True
        with store.guard():
            while not lock.reap() and not store.has(step.id):
                time.sleep(max(_BUSY_CHECK_S, store.look_every_s))


def _take_stdout() -> TextIO:
    """The stdout we were started with, for the protocol alone; what is printed from now on goes to stderr."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _leave(signal_number: int, frame: Any) -> None:
    """Unwinds the running step, so that its lock is released before the process ends."""
    raise SystemExit(128 + signal_number)


def _end_with_parent(parent: int) -> None:
    """Make this process die at once when its coordinator does, however that dies."""
    if sys.platform == "linux":
        ask_for_signal_on_parent_death = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(ask_for_signal_on_parent_death, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    if os.getppid() != parent:  # it died before we could ask
        os._exit(1)
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
