"""What a run costs: time, tokens, memory, energy, and how much of the machine it used."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from lorascope.training.hardware import energy_meter, peak_memory_bytes, reset_peak_memory, synchronise


@dataclass
class Meters:
    """Counters of one run. Training time is that of updates alone; evaluations and checkpoints are kept apart.

    They survive a kill: `state` goes into the checkpoint and `restore` takes it up again.
    """

    device: str
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    real_tokens: int = 0
    padded_tokens: int = 0
    updates: int = 0
    energy_joules: float | None = None
    peak_memory_bytes: int = 0
    window_ms: list[float] = field(default_factory=list)
    _start: float = 0.0
    _paused: float = 0.0
    _window: tuple[int, float] = (0, 0.0)

    def begin(self) -> None:
        """Starts the clocks of a session (a run that was killed has several)."""
        reset_peak_memory(self.device)
        reading = energy_meter(self.device)
        self._read_energy = reading
        self._energy_start = reading() if reading else 0.0
        self._energy_before = self.energy_joules or 0.0
        self.resume_clock()

    def resume_clock(self, *, after_evaluation: bool = False) -> None:
        """Training goes on after an evaluation or a checkpoint."""
        synchronise(self.device)
        self._start = time.perf_counter()
        self._window = (self.updates, self._start)
        if after_evaluation:
            self.evaluation_seconds += self._start - self._paused

    def pause_clock(self) -> None:
        """Training stops for an evaluation or a checkpoint: its time is booked."""
        self.mark()
        self._paused = time.perf_counter()
        self.training_seconds += self._paused - self._start

    def mark(self) -> None:
        """Closes a window of updates and books its mean step time."""
        synchronise(self.device)
        now = time.perf_counter()
        updates, start = self._window
        if self.updates > updates:
            self.window_ms.append(1000 * (now - start) / (self.updates - updates))
        self._window = (self.updates, now)

    def count(self, *, real_tokens: int, padded_tokens: int) -> None:
        """Books one update."""
        self.real_tokens += real_tokens
        self.padded_tokens += padded_tokens
        self.updates += 1

    def tokens_per_second(self) -> float:
        """Real tokens a second of training, so far."""
        seconds = self.training_seconds + (time.perf_counter() - self._start if self._start else 0.0)
        return self.real_tokens / max(seconds, 1e-9)

    def book(self) -> None:
        """Reads the high-water mark and the energy of this session so far."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory_bytes(self.device))
        if self._read_energy:
            self.energy_joules = self._energy_before + self._read_energy() - self._energy_start

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self.book()
        kept = ("training_seconds", "evaluation_seconds", "real_tokens", "padded_tokens", "updates", "energy_joules")
        return {name: getattr(self, name) for name in (*kept, "peak_memory_bytes", "window_ms")}

    def restore(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def summary(self, *, flops_per_token: float, peak: tuple[float, str]) -> dict[str, Any]:
        """The figures of a record. mfu: model FLOPs (real tokens) over what the device could have done in the time."""
        seconds = max(self.training_seconds, 1e-9)
        rate, basis = peak
        return {
            "training_seconds": self.training_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "tokens_per_second": self.real_tokens / seconds,
            "padded_tokens_per_second": self.padded_tokens / seconds,
            "padding_fraction": 1 - self.real_tokens / max(self.padded_tokens, 1),
            "step_ms_median": statistics.median(self.window_ms) if self.window_ms else None,
            "peak_memory_bytes": self.peak_memory_bytes,
            "energy_joules": self.energy_joules,
            "mfu": flops_per_token * self.real_tokens / seconds / rate,
            "mfu_basis": basis,
        }
