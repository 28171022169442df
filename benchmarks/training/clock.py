"""Times the steps of a run without making the host wait for the device: both sides are read by the same clock."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from lorascope.training.hardware import synchronise


class StepClock:
    """start, then `tick` after every step. On CUDA a tick is an event on the device; the host is waited for only at the
    start, at the end, and after `warm_up` steps, which count in the training's seconds and not in the steps' times."""

    def __init__(self, device: str, *, warm_up: int = 0) -> None:
        self.device, self.warm_up = device, warm_up
        self._on_cuda = device.startswith("cuda")
        self._ticks: list[Any] = []
        self.started = self.warm = self.ended = 0.0

    def start(self) -> None:
        synchronise(self.device)
        self.started = self.warm = time.perf_counter()
        self._note()

    def tick(self) -> None:
        self._note()
        if len(self._ticks) - 1 == self.warm_up:
            synchronise(self.device)
            self.warm = time.perf_counter()

    def stop(self) -> None:
        synchronise(self.device)
        self.ended = time.perf_counter()

    def _note(self) -> None:
        if self._on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ticks.append(event)
        else:
            self._ticks.append(time.perf_counter())

    def step_ms(self) -> list[float]:
        """Milliseconds of every step, the warm-up's first."""
        pairs = zip(self._ticks, self._ticks[1:], strict=False)
        return [a.elapsed_time(b) if self._on_cuda else 1000 * (b - a) for a, b in pairs]

    def summary(self, *, runs: int = 1, other_seconds: float = 0.0) -> dict[str, Any]:
        """Step times of one run: a gang's divided by its `runs`. other_seconds: validations between the steps.

        step_ms_mean, step_ms_median: after the warm-up; step_ms_whole: warm-up, capture and compilation included.
        """
        steps = self.step_ms()
        measured = steps[self.warm_up :]
        seconds = self.ended - self.started - other_seconds
        return {
            "training_seconds": seconds,
            "updates": len(steps),
            "warm_up_updates": self.warm_up,
            "step_ms_mean": 1000 * (self.ended - self.warm - other_seconds) / len(measured) / runs
            if measured
            else None,
            "step_ms_median": statistics.median(measured) / runs if measured else None,
            "step_ms_whole": 1000 * seconds / len(steps) / runs,
            "step_ms": [round(ms, 3) for ms in steps],
        }
