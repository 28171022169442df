"""The messages between lorascope and an engine program: JSON lines, commands in on stdin, answers out on stdout.

An engine may live in an environment of its own, so a program is run by path under that environment's interpreter and
imports nothing of lorascope: this module is the standard library alone, and found beside the program. Answers leave on a
duplicate of the first stdout while file descriptor 1 points to stderr, so that no stray print of an engine can break the
protocol. A program never outlives its parent.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

clock = time.perf_counter

_PARENT_CHECK_S = 0.5
_NUM_ERROR_LINES = 6
_OUT_OF_MEMORY = (
    "out of memory",
    "OutOfMemory",
    "No available memory",
    "Cannot allocate memory",
    "Free memory on device",
)


class EngineError(Exception):
    """Why the engine cannot go on. kind: "adapter-rejected", "out-of-memory", "model", "option",
    "port", "died" or "engine"."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Engine(Protocol):
    """What a program serves with. Requests and answers are the JSON of `lorascope.serving.exchange`."""

    def describe(self) -> dict[str, Any]:
        """versions, device_name, settings (what is in effect), head, notes."""
        ...

    def serve(self, requests: list[dict[str, Any]], keep_outputs: bool) -> tuple[list[dict[str, Any]], float]:
        """One batch, from its start to its last answer: the served requests in request order, and its seconds."""
        ...

    def load(self, adapter: str) -> None: ...

    def unload(self, adapter: str) -> None: ...

    def memory(self) -> dict[str, int]: ...

    def close(self) -> None: ...


def run_program(start: Callable[[dict[str, Any]], Engine], *, has_children: bool = False) -> int:
    """Start the engine that --config describes and obey commands until {"do": "stop"} or the end of stdin. has_children: it
    starts processes, which must end with the parent too."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True, help="the JSON of an EngineConfig")
    parser.add_argument("--parent", type=int, default=None, help="end when this process is no longer the parent")
    given = parser.parse_args()
    if given.parent is not None:
        _end_with_parent(given.parent, with_group=has_children)
    answers = _take_stdout()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        begin = clock()
        engine = start(json.loads(given.config.read_text(encoding="utf-8")))
        load_s = clock() - begin
        answer({"ready": {"load_s": load_s, **engine.describe(), "memory": engine.memory()}})
        for command in _commands():
            answer(_obey(engine, command))
        engine.close()
    except Exception as error:
        traceback.print_exc()
        answer({"error": {"kind": _kind_of(error), "text": first_lines(str(error) or repr(error))}})
        return 1
    return 0


def _commands() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "stop":
            return
        yield command


def _obey(engine: Engine, command: dict[str, Any]) -> dict[str, Any]:
    if command["do"] == "serve":
        served, wall_s = [], []
        for batch in command["batches"]:
            answers, seconds = engine.serve(batch, command["keep_outputs"])
            served += answers
            wall_s.append(seconds)
        return {"served": served, "wall_s": wall_s}
    if command["do"] in ("load", "unload"):
        begin = clock()
        (engine.load if command["do"] == "load" else engine.unload)(command["adapter"])
        return {"loaded": {"seconds": clock() - begin}}
    if command["do"] == "memory":
        return {"memory": engine.memory()}
    raise EngineError("engine", f"unknown command {command['do']!r}")


class Arrivals:
    """The requests of a batch, handed out when they are due. `start` is when the batch began."""

    def __init__(self, requests: Iterable[dict[str, Any]]) -> None:
        self._waiting = deque(sorted(requests, key=lambda request: request["arrival_s"]))
        self.start = clock()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def now(self) -> float:
        return clock() - self.start

    def take_due(self, limit: int | None = None) -> list[dict[str, Any]]:
        now, due = self.now(), []
        while self._waiting and self._waiting[0]["arrival_s"] <= now and (limit is None or len(due) < limit):
            due.append(self._waiting.popleft())
        return due

    def sleep(self) -> None:
        """Until the next is due: only for an engine that has nothing to do meanwhile."""
        time.sleep(max(0.0, self._waiting[0]["arrival_s"] - self.now()))


def served_request(
    request: dict[str, Any], token_s: list[float], output: list[int] | list[float] | None, *, sent_s: float
) -> dict[str, Any]:
    times = {"arrival_s": request["arrival_s"], "first_s": token_s[0], "last_s": token_s[-1], "token_s": token_s}
    return {"id": request["id"], **times, "output": output, "sent_s": sent_s}


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def installed_versions(*packages: str) -> dict[str, str]:
    """What is installed of the packages, and the interpreter's own version."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def process_memory(process: int | str = "self") -> dict[str, int]:
    """Resident bytes of a process now, and the most they have been."""
    status = Path(f"/proc/{process}/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    else:  # macOS: ru_maxrss is in bytes there
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
        resident, peak = int(shown.stdout) * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_bytes": resident, "peak_process_bytes": peak}


def first_lines(text: str) -> str:
    """The useful beginning of an error text: blank lines left out, and not the whole of a dump."""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][:_NUM_ERROR_LINES])


def _kind_of(error: Exception) -> str:
    if isinstance(error, EngineError):
        return error.kind
    is_memory = isinstance(error, MemoryError) or is_out_of_memory(f"{type(error).__name__}: {error}")
    return "out-of-memory" if is_memory else "engine"


def is_out_of_memory(text: str) -> bool:
    return any(sign in text for sign in _OUT_OF_MEMORY)


def _take_stdout() -> TextIO:
    """The stdout we were started with, for the protocol alone; what is printed from now on goes to stderr."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _end_with_parent(parent: int, *, with_group: bool) -> None:
    """Make this process, or its whole process group, die at once when its parent does, however that dies."""

    def end() -> None:
        if with_group:
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    if sys.platform == "linux" and not with_group:  # the signal would end us before we could end the others
        ask_for_signal_on_parent_death = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(ask_for_signal_on_parent_death, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        end()

    if os.getppid() != parent:  # it died before we could ask
        end()
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
