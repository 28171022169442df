"""trackio: a dashboard on this machine, without an account."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trackio

from lorascope.tracking.tracker import OpenRun, RunStatus, TrackedRun, Tracker, TrackingPlace

if TYPE_CHECKING:
    from lorascope.study.track import TrackioSpec


class TrackioTracker(Tracker):
    """A project of trackio."""

    def __init__(self, settings: TrackioSpec, place: TrackingPlace) -> None:
        self._project = settings.project or place.study

    def open(self, run: TrackedRun) -> TrackioRun:
        def init() -> Any:
            return trackio.init(
                project=self._project,
                name=run.known_as or run.name,
                group=run.group,
                config=dict(run.config),
                resume="allow" if run.known_as else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

        # `init` ends the run that it finds in its context; in a context of its own it finds none.
        return TrackioRun(contextvars.copy_context().run(init))


class TrackioRun(OpenRun):
    """trackio finds a run again by its name. Texts have no place in its curves, so the summary goes into the last point."""

    def __init__(self, run: Any) -> None:
        self.trackio, self.id = run, run.name
        self._last = 0

    def log(self, values: Mapping[str, float], *, at: int) -> None:
        self._last = max(self._last, at)
        self.trackio.log(dict(values), step=at)

    def summarise(self, values: Mapping[str, float | str]) -> None:
        self.trackio.log(dict(values), step=self._last)

    def attach(self, files: Mapping[str, Path], *, name: str, kind: str) -> None:
        artifact = trackio.Artifact(name=name, type=kind)
        for inside, path in files.items():
            artifact.add_file(path, name=inside)
        self.trackio.log_artifact(artifact)

    def close(self, status: RunStatus) -> None:
        self.trackio.log({"status": status}, step=self._last)
        self.trackio.finish()
