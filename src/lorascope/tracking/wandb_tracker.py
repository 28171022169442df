"""Weights & Biases. Without an API key, or without a way to its server, runs are kept offline, to be uploaded later."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb
from wandb.errors import CommError, UsageError

from lorascope.tracking.tracker import OpenRun, RunStatus, TrackedRun, Tracker, TrackingPlace

if TYPE_CHECKING:
    from lorascope.study.track import WandbSpec

_CONNECT_TIMEOUT_S = 30.0
_LONGEST_NAME = 128


class WandbTracker(Tracker):
    """A project of Weights & Biases."""

    def __init__(self, settings: WandbSpec, place: TrackingPlace) -> None:
        self._place = place
        self._project = settings.project or os.environ.get("WANDB_PROJECT") or place.study
        self._entity = settings.entity  # None: WANDB_ENTITY, else that of the key
        self._directory = Path(os.environ.get("WANDB_DIR") or place.directory)
        self._mode: Any = None  # None: WANDB_MODE, else online

    def open(self, run: TrackedRun) -> WandbRun:
        if self._mode is None:
            try:
                return self._init(run)
            except (UsageError, CommError) as error:  # no key; no such key; no connection
                reason = str(error).splitlines()[0].rstrip(".")
                self._mode = "offline"
                self._place.tell(
                    f"works offline ({reason}); `wandb sync {self._directory}/wandb/offline-run-*` uploads what it keeps"
                )
        return self._init(run)

    def _init(self, run: TrackedRun) -> WandbRun:
        return WandbRun(
            wandb.init(
                project=self._project,
                entity=self._entity,
                group=run.group,
                job_type=run.kind,
                name=run.name,
                id=run.known_as or uuid.uuid4().hex[:16],
                resume="allow" if run.known_as else None,
                config=dict(run.config),
                dir=self._directory,
                mode=self._mode,
                reinit="create_new",  # several runs are open at once
                settings=_quiet(),
            )
        )


class WandbRun(OpenRun):
    """A run in Weights & Biases."""

    def __init__(self, run: wandb.Run) -> None:
        self.wandb, self.id = run, run.id
        run.define_metric("update")
        run.define_metric("*", step_metric="update")

    def log(self, values: Mapping[str, float], *, at: int) -> None:
        self.wandb.log({**values, "update": at})

    def summarise(self, values: Mapping[str, float | str]) -> None:
        self.wandb.summary.update(dict(values))

    def attach(self, files: Mapping[str, Path], *, name: str, kind: str) -> None:
        artifact = wandb.Artifact(name=name[:_LONGEST_NAME], type=kind)
        for inside, path in files.items():
            artifact.add_file(str(path), name=inside)
        self.wandb.log_artifact(artifact)

    def close(self, status: RunStatus) -> None:
        self.wandb.finish(exit_code=0 if status == "finished" else 1)


def _quiet() -> wandb.Settings:
    """Nothing of this process: it only passes on what others computed."""
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        init_timeout=_CONNECT_TIMEOUT_S,
        silent=True,
        x_disable_stats=True,
    )
