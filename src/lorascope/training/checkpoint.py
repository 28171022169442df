"""Checkpoints of a run in progress: all that decides what comes next, so that a resumed run equals an undisturbed one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

INTERVAL_VARIABLE = "LORASCOPE_CHECKPOINT_SECONDS"
_DEFAULT_INTERVAL_S = 30.0
_LARGEST_SHARE = 0.05


class Checkpointer:
    """Writes the state at most every 30 s, and less often where writing is slow: never over 5% of the run's time.

    The file is replaced atomically, so a kill while writing leaves the one before.
    """

    def __init__(self, directory: Path, *, largest_share: float = _LARGEST_SHARE) -> None:
        self.path = directory / "checkpoint.pt"
        self._largest_share = largest_share
        self._interval_s = float(os.environ.get(INTERVAL_VARIABLE, _DEFAULT_INTERVAL_S))
        self._next = time.monotonic() + self._interval_s

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def save(self, state: dict[str, Any]) -> float:
        """state: nested dictionaries and lists of tensors and plain values. Returns the seconds it took."""
        start = time.monotonic()
        staging = self.path.with_suffix(".new")
        with staging.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, self.path)
        spent = time.monotonic() - start
        self.wait_after(spent)
        return spent

    def wait_after(self, spent: float) -> None:
        """Is due again when so many seconds of writing (of all runs of a gang) have become a small share of the time."""
        self._next = time.monotonic() + max(self._interval_s, spent / self._largest_share)

    def load(self, device: str) -> dict[str, Any] | None:
        """The last state, its tensors on `device`, or None if there is none."""
        if not self.path.exists():
            return None
        return torch.load(self.path, map_location=device, weights_only=True)
