"""MLflow 3: a tracking server, or a database file on this machine."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import RunStatus as Status
from mlflow.exceptions import MlflowException

from lorascope.tracking.tracker import OpenRun, RunStatus, TrackedRun, Tracker, TrackingPlace, flat

if TYPE_CHECKING:
    from lorascope.study.track import MlflowSpec

_STATUS = {"finished": Status.FINISHED, "failed": Status.FAILED, "interrupted": Status.KILLED}
_LONGEST_VALUE = 5000
_MOST_IN_A_CALL = 100


class MlflowTracker(Tracker):
    """Phases are tags (`phase`), by which MLflow's table can be grouped."""

    def __init__(self, settings: MlflowSpec, place: TrackingPlace) -> None:
        self._client = MlflowClient(tracking_uri=settings.uri)
        name = settings.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or place.study
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)

    def open(self, run: TrackedRun) -> MlflowRun:
        if run.known_as is not None:
            try:
                self._client.update_run(run.known_as, status=Status.to_string(Status.RUNNING))
                return MlflowRun(self._client, run.known_as)
            except MlflowException:  # deleted since, or of another server
                pass
        tags = {"phase": run.group, "step": run.kind}
        opened = MlflowRun(
            self._client, self._client.create_run(self._experiment, run_name=run.name, tags=tags).info.run_id
        )
        opened.describe(run.config)
        return opened


class MlflowRun(OpenRun):
    """A run in MLflow."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.id = client, run_id
        self._last = 0

    def describe(self, config: Mapping[str, object]) -> None:
        params = [Param(_name(key), str(value)[:_LONGEST_VALUE]) for key, value in flat(config).items()]
        for start in range(0, len(params), _MOST_IN_A_CALL):
            self._client.log_batch(self.id, params=params[start : start + _MOST_IN_A_CALL])

    def log(self, values: Mapping[str, float], *, at: int) -> None:
        self._last = max(self._last, at)
        now_ms = int(time.time() * 1000)
        metrics = [Metric(_name(key), value, now_ms, at) for key, value in values.items() if math.isfinite(value)]
        for start in range(0, len(metrics), _MOST_IN_A_CALL):
            self._client.log_batch(self.id, metrics=metrics[start : start + _MOST_IN_A_CALL])

    def summarise(self, values: Mapping[str, float | str]) -> None:
        # After the curves: MLflow shows the value of a name's last step, and a summary may have a curve's name.
        self.log({key: value for key, value in values.items() if not isinstance(value, str)}, at=self._last)
        texts = {key: value for key, value in values.items() if isinstance(value, str)}
        if texts:
            self._client.log_batch(
                self.id, tags=[RunTag(_name(key), text[:_LONGEST_VALUE]) for key, text in texts.items()]
            )

    def attach(self, files: Mapping[str, Path], *, name: str, kind: str) -> None:
        for inside, path in files.items():
            self._client.log_artifact(self.id, str(path), artifact_path=str(Path(kind, inside).parent))

    def close(self, status: RunStatus) -> None:
        self._client.set_terminated(self.id, Status.to_string(_STATUS[status]))


def _name(key: str) -> str:
    """MLflow's names are made of letters, digits and some signs."""
    return re.sub(r"[^\w\-. /]", "_", key)
