"""TensorBoard: event files, one folder a run under its phase.

Written with TensorBoard's own writer: that of torch would load torch for nothing.
"""

# pyright: reportAttributeAccessIssue=false
# The names in protocol buffers' modules are made when they are imported.

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from lorascope.tracking.tracker import OpenRun, RunStatus, TrackedRun, Tracker, TrackingPlace, flat

_STATUS = {
    "finished": Status.STATUS_SUCCESS,
    "failed": Status.STATUS_FAILURE,
    "interrupted": Status.STATUS_UNKNOWN,
}


class TensorboardTracker(Tracker):
    """Event files, one directory a run."""

    def __init__(self, settings: Any, place: TrackingPlace) -> None:
        self._directory = place.directory

    def open(self, run: TrackedRun) -> TensorboardRun:
        folder = f"{_as_path(run.group)}/{_as_path(run.name)}"
        if run.group not in ("training", "search", "study"):
            folder += f"-{run.kind}"  # a gate and a baseline may be of one arm
        return TensorboardRun(self._directory, folder, run.config)


class TensorboardRun(OpenRun):
    """A run that goes on writes another file in its folder, which TensorBoard joins."""

    def __init__(self, directory: Any, folder: str, config: Mapping[str, Any]) -> None:
        self.id = folder
        self._writer = EventFileWriter(str(directory / folder), flush_secs=10)
        self._last = 0
        start = SessionStartInfo(start_time_secs=time.time())
        for key, value in flat(config).items():
            if isinstance(value, int | float):
                start.hparams[key].number_value = value
            else:
                start.hparams[key].string_value = str(value)
        self._write_session(hparams.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))

    def log(self, values: Mapping[str, float], *, at: int) -> None:
        self._last = max(self._last, at)
        self._write(Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in values.items()]), at=at)

    def summarise(self, values: Mapping[str, float | str]) -> None:
        self.log({key: value for key, value in values.items() if not isinstance(value, str)}, at=self._last)
        for key, text in values.items():
            if isinstance(text, str):
                metadata = create_summary_metadata(display_name=key, description="")
                tensor = make_tensor_proto(text.encode())
                self._write(Summary(value=[Summary.Value(tag=key, metadata=metadata, tensor=tensor)]), at=self._last)

    def close(self, status: RunStatus) -> None:
        end = SessionEndInfo(status=_STATUS[status], end_time_secs=time.time())
        self._write_session(hparams.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))
        self._writer.close()

    def _write_session(self, tag: str, data: HParamsPluginData) -> None:
        """For the table of hyper-parameters."""
        metadata = hparams.create_summary_metadata(data)
        self._write(Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=hparams.NULL_TENSOR)]))

    def _write(self, summary: Any, *, at: int = 0) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=at, summary=summary))


def _as_path(name: str) -> str:
    """A folder's name: "tiny / mrpc / lora / 1" -> "tiny-mrpc-lora-1"."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")
