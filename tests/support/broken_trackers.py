"""Trackers that go wrong in the ways in which one can, and one that writes down what it is told."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from lorascope.tracking.tracker import OpenRun, TrackedRun, Tracker, TrackingPlace


class Written(OpenRun):
    def __init__(self, path: Path, run_id: str) -> None:
        self.path, self.id = path, run_id

    def _write(self, *said: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([self.id, *said]) + "\n")

    def log(self, values: Any, *, at: int) -> None:
        self._write("log", at, dict(values))

    def summarise(self, values: Any) -> None:
        self._write("summarise", dict(values))

    def attach(self, files: Any, *, name: str, kind: str) -> None:
        self._write("attach", kind, sorted(files))

    def close(self, status: Any) -> None:
        self._write("close", status)


class Writes(Tracker):
    """Everything it is told, as JSON lines in `told.jsonl`."""

    def __init__(self, settings: Any, place: TrackingPlace) -> None:
        self.path = place.directory / "told.jsonl"

    def open(self, run: TrackedRun) -> Written:
        written = Written(self.path, run.known_as or f"{run.group}: {run.name}")
        written._write("open", run.kind, dict(run.config), run.known_as)
        return written


class Raises(Writes):
    def open(self, run: TrackedRun) -> Written:
        print("a stray line that is no part of the protocol")
        raise ValueError("the server said no\nand more")


class Hangs(Writes):
    def open(self, run: TrackedRun) -> Written:
        time.sleep(3600)
        raise AssertionError


class Dies(Writes):
    def open(self, run: TrackedRun) -> Written:
        os._exit(9)


class IsSlow(Writes):
    def open(self, run: TrackedRun) -> Written:
        time.sleep(1.0)
        return super().open(run)


class Uploads(Written):
    seconds = 4.0

    def attach(self, files: Any, *, name: str, kind: str) -> None:
        time.sleep(self.seconds)
        super().attach(files, name=name, kind=kind)


class UploadsSlowly(Writes):
    """A backend to which files take their time, and no step of theirs is seen from outside."""

    kind = Uploads

    def open(self, run: TrackedRun) -> Written:
        return self.kind(self.path, f"{run.group}: {run.name}")


class WaitsForFilesAtTheEnd(Writes):
    """Takes files at once, and has them when the study's run is closed."""

    def open(self, run: TrackedRun) -> Written:
        return ClosesSlowly(self.path, f"{run.group}: {run.name}")


class ClosesSlowly(Written):
    def close(self, status: Any) -> None:
        time.sleep(4.0 if self.id.startswith("study") else 0.0)
        super().close(status)


class Stuck(Uploads):
    seconds = 3600.0


class UploadsForEver(UploadsSlowly):
    kind = Stuck
