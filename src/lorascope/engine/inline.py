"""Runs steps one after another in this very process: for debuggers, tests and small studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorascope.engine.devices import find_devices
from lorascope.engine.events import Emit
from lorascope.engine.executor import Completion, needs
from lorascope.engine.run import try_step
from lorascope.engine.step import Step
from lorascope.engine.store import Store


class InlineExecutor:
    """devices: the first is used; None: the best one of this machine."""

    def __init__(self, store: Store, *, devices: Sequence[str] | None = None, data_dir: Path | None = None) -> None:
        self._store = store
        self._devices = devices
        self._data_dir = data_dir
        self._next: Step | None = None
        self._warm_for: frozenset[str] = frozenset()
        self._warm: dict[str, Any] = {}

    def warmth(self, step: Step) -> int | None:
        if self._next is not None:
            return None
        return len(needs(step) & self._warm_for) if self._warm_for else 0

    def submit(self, step: Step) -> None:
        assert self._next is None, "an inline executor takes one step at a time"
        self._next = step

    def poll(self, emit: Emit, *, timeout_s: float) -> list[Completion]:
        """Runs the submitted step to its end, however long that takes."""
        if self._next is None:
            return []
        step, self._next = self._next, None
        if self._devices is None:
            self._devices = find_devices()
        self._warm_for = needs(step)
        done = try_step(
            step,
            self._store,
            device=self._devices[0],
            data_dir=self._data_dir,
            emit=emit,
            warm=self._warm,
            worker=f"inline-{self._devices[0]}",
        )
        return [done]

    def close(self) -> None:
        self._next = None
        self._warm.clear()
