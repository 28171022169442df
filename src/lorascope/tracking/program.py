"""The process of one tracker: events come in as JSON lines, and end up as runs in the tracker.

    python -m lorascope.tracking.program

The first line says which tracker; {"sign": n} lines answer as events are dealt with and {"uploading": run} lines come while
files are on their way, {"tell": text} and {"failure": text} are for the person who runs the study. They leave on a duplicate
of the first stdout, so that no print of a package can break the protocol. When the input ends, so that also when the
coordinator was killed, what is left is recorded and the runs are closed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter

from lorascope.engine.events import event_from_json
from lorascope.engine.store.opening import open_store
from lorascope.plugins import imported
from lorascope.study.track import TrackerSpec
from lorascope.tracking.recorder import Recorder
from lorascope.tracking.tracker import TrackingPlace

_SIGN_INTERVAL_S = 0.5
_LONGEST_END_S = 600.0
_NICENESS = 5


class _Answers:
    """The lines that leave, from whichever thread. longest_upload_s: for so long an upload is a sign of life."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self.longest_upload_s = 0.0

    def send(self, **message: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    @contextmanager
    def uploading(self, run: str) -> Iterator[None]:
        is_over = threading.Event()
        signs = threading.Thread(target=self._sign_until, args=(is_over, run), daemon=True)
        signs.start()
        try:
            yield
        finally:
            is_over.set()
            signs.join()

    def _sign_until(self, is_over: threading.Event, run: str) -> None:
        deadline = time.monotonic() + self.longest_upload_s
        while not is_over.wait(_SIGN_INTERVAL_S) and time.monotonic() < deadline:
            self.send(uploading=run)


def main() -> int:
    """Record what comes in until it ends; the exit code."""
    answers = _Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    try:
        os.nice(_NICENESS)  # who trains goes first
        _record(answers)
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().splitlines()
        text = re.sub(r"//[^/@\s]+@", "//", said[0]) if said else "no reason given"  # an address may hold a password
        answers.send(failure=f"{type(error).__name__}: {text}")
        return 1
    return 0


def _record(answers: _Answers) -> None:
    given = json.loads(sys.stdin.readline())
    settings = TypeAdapter(TrackerSpec).validate_python(given["settings"])
    directory = Path(given["directory"])
    answers.longest_upload_s = given["longest_upload_s"]
    place = TrackingPlace(study=given["study"], directory=directory, tell=lambda text: answers.send(tell=text))
    tracker = imported(given["tracker"])(settings, place)
    recorder = Recorder(
        tracker,
        ledger=directory / "runs.jsonl",
        artifacts=getattr(settings, "artifacts", ()),
        find_artifact=lambda step: open_store(given["store"]).artifact(step).checked_path,
        uploading=answers.uploading,
    )
    signed = 0.0
    for count, line in enumerate(sys.stdin, start=1):
        recorder(event_from_json(json.loads(line)))
        if time.monotonic() - signed > _SIGN_INTERVAL_S:
            answers.send(sign=count)
            signed = time.monotonic()
    _end_within(_LONGEST_END_S)
    recorder.close()


def _end_within(seconds: float) -> None:
    """A package that hangs at the end must not outlive a coordinator that is gone."""
    clock = threading.Timer(seconds, os._exit, [1])
    clock.daemon = True
    clock.start()


if __name__ == "__main__":
    raise SystemExit(main())
