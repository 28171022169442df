"""A worker process and its two pipes, on the machine it runs on: started, spoken to, heard, ended.

Its coordinator writes it one line a gang and reads events and completions; a death is told apart by what can be done
about it. `engine/workers/worker.py` is the other end.
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lorascope.engine.provenance import WORKERS_ON_DEVICE
from lorascope.engine.store.lock import Owner

STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Death:
    """How a worker ended. cause: "SIGKILL", "exit code 1". never_ready: it could not even start. last_words: the last
    line of its log. process: who it was, as its locks name it; None if it never said.
    """

    cause: str
    never_ready: bool
    last_words: str
    log: Path
    process: Owner | None


class WorkerProcess:
    """`python -m lorascope.engine.workers.worker`, started here. command: its arguments."""

    def __init__(self, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.process: Owner | None = None
        self._unfinished = b""
        with log.open("wb") as stderr:
            # In a session of its own: Ctrl-C reaches the coordinator alone, which then stops its workers in order.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lorascope.engine.workers.worker", *arguments],
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
        with contextlib.suppress(BrokenPipeError):  # it died just now: whoever listens to it sees that
            self.stdin.write(json.dumps(message).encode() + b"\n")
            self.stdin.flush()

    def hear(self) -> tuple[list[dict[str, Any]], Death | None]:
        """What it said since, and its death if it died, after which it says no more."""
        is_dead = self.is_dead()  # asked before reading, so that a dead worker's last words are all heard
        messages = list(self._messages())
        return messages, self._bury() if is_dead else None

    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

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

    def _messages(self) -> Iterator[dict[str, Any]]:
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
                if "ready" in message:
                    self.process = Owner(**message["ready"])
                else:
                    yield message

    def _bury(self) -> Death:
        code = self._process.wait()
        self.wait(0)
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return Death(
            _cause(code),
            never_ready=self.process is None and code >= 0,
            last_words=lines[-1] if lines else "it said nothing",
            log=self.log,
            process=self.process,
        )


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker process is started; what a `Workplace` is made of there. store: its directory or address.

    num_on_device: how many workers of the study share the device. num_threads: its share of the processors, unless the
    environment says otherwise; None: what libraries take by themselves. environment: variables that it gets.
    """

    store: str
    device: str
    name: str
    data_dir: Path | None
    num_on_device: int
    num_threads: int | None
    environment: Mapping[str, str]


def start_worker(given: WorkerSettings, *, log: Path) -> WorkerProcess:
    """A worker of this process, on a device of this machine. log: the file of its standard error."""
    arguments = ["--store", given.store, "--device", given.device, "--parent", str(os.getpid()), "--name", given.name]
    arguments += ["--log", str(log)] + (["--data", str(given.data_dir)] if given.data_dir is not None else [])
    settings = {**given.environment, "PYTHONPATH": import_path()}
    settings[WORKERS_ON_DEVICE] = str(given.num_on_device)
    # Threads that spin while they wait cost nothing alone and most of the speed beside any other busy process.
    settings.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if given.num_threads is not None:
        settings.setdefault("OMP_NUM_THREADS", str(given.num_threads))
    return WorkerProcess(arguments, log=log, environment=settings)


def import_path() -> str:
    """PYTHONPATH of a process of ours: what this one imports from, however it came by its path (as multiprocessing's "spawn"
    does), but for the directory it was started in, where a study and anybody's files lie. One that the user's own PYTHONPATH
    names stays.
    """
    asked = {os.path.realpath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path}
    left_out = {os.path.realpath(os.curdir)} - asked
    return os.pathsep.join(path for path in sys.path if path and os.path.realpath(path) not in left_out)


def wait_for_output(processes: Sequence[WorkerProcess], *, timeout_s: float) -> None:
    """Until one of them says something or ends, or the time is over."""
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.stdout, selectors.EVENT_READ)
        selector.select(timeout_s)


def stop_all(processes: Sequence[WorkerProcess]) -> None:
    """End them together: each gets to unwind what it runs, and is killed if that takes too long."""
    for process in processes:
        process.stop()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        process.wait(max(0.0, deadline - time.monotonic()))


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
