"""Passes the stream of events to a tracker in a process of its own, which can neither stop a study nor slow it.

The study only ever puts an event into a queue. When the tracker does not keep up, points of curves are left out rather
than waited for; when it fails or hangs, that is said once and the study goes on without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lorascope.engine.events import CurvePoint, Emit, Event, Notice, StepProgress, StepStarted
from lorascope.engine.store.opening import StorePlace
from lorascope.engine.workers.process import import_path
from lorascope.registry import TRACKERS
from lorascope.study.track import AnyTrackerSpec

MOST_WAITING = 20_000
PATIENCE_S = 60.0
LONGEST_UPLOAD_S = 600.0
_PATIENCE_IF_INTERRUPTED_S = 5.0


@dataclass(frozen=True)
class Patience:
    """How long a tracker may give no sign at the end before it is stopped; an upload in progress is a sign, for
    longest_upload_s, unless the study was interrupted. most_waiting: events; beyond that points of curves are left out."""

    seconds: float = PATIENCE_S
    longest_upload_s: float = LONGEST_UPLOAD_S
    most_waiting: int = MOST_WAITING


class TrackerFeed:
    """An Emit. Its process starts with the first step that is computed, so a study that is all cached starts none.

    directory: the tracker's own, for what it writes and its log. tell: where what it has to say goes, always from the
    thread that emits. place: what implements the tracker, "module:Class"; default: what is registered for its kind.
    """

    def __init__(
        self,
        spec: AnyTrackerSpec,
        *,
        study: str,
        directory: Path,
        store: StorePlace,
        tell: Emit,
        patience: Patience = Patience(),
        place: str | None = None,
    ) -> None:
        self.kind = spec.kind
        self._directory, self._tell = directory.absolute(), tell
        self._patience = patience
        self._first = {
            "tracker": place or TRACKERS[spec.kind].place,
            "settings": spec.model_dump(mode="json"),
            "study": study,
            "directory": str(self._directory),
            "store": str(store),
            "longest_upload_s": patience.longest_upload_s,
        }
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._said: deque[tuple[str, str]] = deque()  # level, text
        self._num_left_out = 0
        self._process: _Process | None = None

    def __call__(self, event: Event) -> None:
        self._pass_on()
        if self._process is None and isinstance(event, StepStarted):
            self._process = self._start()
        elif self._process is not None and self._process.has_ended:
            return
        if self._waiting.qsize() >= self._patience.most_waiting and isinstance(event, CurvePoint | StepProgress):
            self._num_left_out += 1
        else:
            self._waiting.put(_as_line(event.to_json()))

    def close(self, *, interrupted: bool = False) -> None:
        """Waits until the tracker has recorded everything, as long as it gives signs of life."""
        if self._process is None:
            return
        self._waiting.put(None)
        patience_s = min(self._patience.seconds, _PATIENCE_IF_INTERRUPTED_S) if interrupted else self._patience.seconds
        if not self._process.wait(patience_s, for_uploads=not interrupted):
            self._warn(
                f"gave no sign for {patience_s:g} s and was stopped; what it had recorded is in {self._directory}"
            )
        if self._num_left_out:
            self._warn(f"did not keep up: {self._num_left_out:,} points of curves are missing there")
        self._pass_on()
        self._process = None

    def __enter__(self) -> TrackerFeed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(interrupted=kind is not None)

    def _start(self) -> _Process:
        self._directory.mkdir(parents=True, exist_ok=True)
        return _Process(self._first, self._waiting, self._said, log=self._directory / "log.txt")

    def _warn(self, text: str) -> None:
        self._said.append(("warning", text))

    def _pass_on(self) -> None:
        while self._said:
            level, text = self._said.popleft()
            self._tell(Notice(level=level, text=f"{self.kind}: {text}"))


class _Process:
    """The tracker's process, one thread that feeds it and one that listens to it."""

    def __init__(
        self,
        first: Mapping[str, Any],
        waiting: queue.SimpleQueue[bytes | None],
        said: deque[tuple[str, str]],
        *,
        log: Path,
    ) -> None:
        self.has_ended = self._was_stopped = False
        self._log, self._said = log, said
        self._last_sign_s, self._waits_for_uploads = time.monotonic(), True
        with log.open("ab") as stderr:
            # In a session of its own: Ctrl-C reaches the coordinator alone, which then closes its trackers.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lorascope.tracking.program"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": import_path()},
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        threading.Thread(target=self._feed, args=(_as_line(first), waiting), daemon=True).start()

    def wait(self, patience_s: float, *, for_uploads: bool) -> bool:
        """Whether it came to its end by itself; it is killed after `patience_s` without a sign. for_uploads: whether one in
        progress is a sign."""
        self._last_sign_s, self._waits_for_uploads = time.monotonic(), for_uploads
        while self._listener.is_alive():
            self._listener.join(0.1)
            if time.monotonic() - self._last_sign_s > patience_s:
                self._was_stopped = True
                self._process.kill()
                self._listener.join()
                return False
        return True

    def _feed(self, line: bytes | None, waiting: queue.SimpleQueue[bytes | None]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError):  # it died, and the listener says so
            while line is not None:
                stdin.write(line)
                stdin.flush()
                line = waiting.get()
            stdin.close()

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        reason = None
        for line in stdout:
            message = json.loads(line)
            if "uploading" not in message or self._waits_for_uploads:
                self._last_sign_s = time.monotonic()
            reason = message.get("failure", reason)
            if "tell" in message:
                self._said.append(("info", message["tell"]))
        code = self._process.wait()
        if code != 0 and not self._was_stopped:
            reason = reason or f"it ended with exit code {code}"
            self._said.append(("warning", f"{reason}; the study goes on without it (details: {self._log})"))
        self.has_ended = True


def _as_line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
