"""Runs steps one after another in this very process: for debuggers, tests and small studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorascope.engine.events import Emit
from lorascope.engine.executor import Completion, needs
from lorascope.engine.run import try_steps
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.warm import Warm
from lorascope.engine.workers.devices import check_devices, find_devices
from lorascope.engine.workplace import Workplace


class InlineExecutor:
    """devices: the first is used; None: the best one of this machine."""

    def __init__(self, store: Store, *, devices: Sequence[str] | None = None, data_dir: Path | None = None) -> None:
        self._store = store
        self._devices = devices
        self._data_dir = data_dir
        self._next: Sequence[Step] = ()
        self._warm_for: frozenset[str] = frozenset()
        self._warm = Warm()

    def prepare(self) -> None:
        if self._devices is not None:
            check_devices(self._devices)

    def warmth(self, step: Step) -> int | None:
        if self._next:
            return None
        return len(needs(step) & self._warm_for) if self._warm_for else 0

    def num_free(self, step: Step) -> int:
        return 0 if self._next else 1

    def submit(self, steps: Sequence[Step]) -> None:
        assert not self._next, "an inline executor takes one step, or one gang, at a time"
        self._next = steps

    def poll(self, emit: Emit, *, timeout_s: float) -> list[Completion]:
        """Runs what was submitted to its end, however long that takes."""
        if not self._next:
            return []
        steps, self._next = self._next, ()
        if self._devices is None:
            self._devices = find_devices()
        self._warm_for = frozenset().union(*map(needs, steps))
        settled: list[Completion] = []
        try_steps(
            steps,
            Workplace(
                store=self._store,
                device=self._devices[0],
                data_dir=self._data_dir,
                emit=emit,
                warm=self._warm,
                worker=f"inline-{self._devices[0]}",
            ),
            report=settled.append,
        )
        return settled

    def close(self) -> None:
        self._next = ()
        self._warm.clear()
