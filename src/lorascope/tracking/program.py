"""The process of one tracker: events come in as JSON lines, and end up as runs in the tracker.

    python -m lorascope.tracking.program

The first line says which tracker; {"sign": n} lines answer as events are dealt with, {"tell": text} and {"failure": text}
are for the person who runs the study. They leave on a duplicate of the first stdout, so that no print of a package can
break the protocol. When the input ends, so that also when the coordinator was killed, what is left is recorded and the
runs are closed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lorascope import registry
from lorascope.engine.events import event_from_json
from lorascope.engine.store import Store
from lorascope.study.track import TrackerSpec
from lorascope.tracking.recorder import Recorder
from lorascope.tracking.tracker import Place

_SIGN_INTERVAL_S = 0.5
_LONGEST_END_S = 600.0
_NICENESS = 5


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        os.nice(_NICENESS)  # who trains goes first
        _record(send)
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().splitlines()
        text = re.sub(r"//[^/@\s]+@", "//", said[0]) if said else "no reason given"  # an address may hold a password
        send(failure=f"{type(error).__name__}: {text}")
        return 1
    return 0


def _record(send: Any) -> None:
    given = json.loads(sys.stdin.readline())
    settings = TypeAdapter(TrackerSpec).validate_python(given["settings"])
    directory = Path(given["directory"])
    place = Place(study=given["study"], directory=directory, tell=lambda text: send(tell=text))
    tracker = registry.resolve({"": given["tracker"]}, "")(settings, place)
    recorder = Recorder(
        tracker,
        ledger=directory / "runs.jsonl",
        artifacts=getattr(settings, "artifacts", ()),
        find_artifact=lambda step: Store(given["store"]).artifact(step).path,
    )
    signed = 0.0
    for count, line in enumerate(sys.stdin, start=1):
        recorder(event_from_json(json.loads(line)))
        if time.monotonic() - signed > _SIGN_INTERVAL_S:
            send(sign=count)
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
