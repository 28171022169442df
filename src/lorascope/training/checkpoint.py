"""Checkpoints of a run in progress: all that decides what comes next, so that a resumed run equals an undisturbed one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

INTERVAL_VARIABLE = "LORASCOPE_CHECKPOINT_SECONDS"
_DEFAULT_INTERVAL_S = 30.0
_LARGEST_SHARE = 0.05


def save_together(states: Iterable[tuple[Checkpointer, dict[str, Any]]]) -> None:
    """Checkpoints the runs of a gang as of one moment; each state is taken when it is written. They are put only when all
    are written: a kill between two would leave runs that go on from different updates, and round differently for it.
    """
    start, written = time.monotonic(), []
    for checkpointer, state in states:
        checkpointer.write(state)
        written.append(checkpointer)
    for checkpointer in written:
        checkpointer.put()
    for checkpointer in written:
        checkpointer.wait_after(time.monotonic() - start)


class Checkpointer:
    """Writes the state at most every 30 s, and less often where writing is slow: never over 5% of the run's time.

    The file is replaced atomically, so a kill while writing leaves the one before.
    """

    def __init__(self, directory: Path, *, largest_share: float = _LARGEST_SHARE) -> None:
        self.path = directory / "checkpoint.pt"
        self._written = self.path.with_suffix(".new")
        self._largest_share = largest_share
        self._interval_s = float(os.environ.get(INTERVAL_VARIABLE, _DEFAULT_INTERVAL_S))
        self._next = time.monotonic() + self._interval_s

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def write(self, state: dict[str, Any]) -> None:
        """state: nested dictionaries and lists of tensors and plain values. It counts only once it was put."""
        with self._written.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def put(self) -> None:
        """What was written becomes the checkpoint."""
        os.replace(self._written, self.path)

    def wait_after(self, spent: float) -> None:
        """Is due again when so many seconds of writing (of all runs of a gang) have become a small share of the time."""
        self._next = time.monotonic() + max(self._interval_s, spent / self._largest_share)

    def load(self, device: str) -> dict[str, Any] | None:
        """The last state, its tensors on `device`, or None if there is none."""
        if not self.path.exists():
            return None
        return torch.load(self.path, map_location=device, weights_only=True)
