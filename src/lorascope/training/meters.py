"""What a run costs: time, tokens, memory, energy, and how much of the machine it used."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from lorascope.training.hardware import energy_meter, synchronise

_KEPT = (
    "training_seconds", "evaluation_seconds", "preparation_seconds", "real_tokens", "padded_tokens", "updates",
    "energy_joules", "peak_memory_bytes", "largest_gang", "window_ms",
)  # fmt: skip


@dataclass
class Meters:
    """Counters of one run. Training time is that of updates alone, what compiling and capturing took
    (`preparation_seconds`) included; evaluations and checkpoints are kept apart. In a gang a run is booked its share of
    the time, 1 / (runs under way), and of the energy.

    They survive a kill: `state` goes into the checkpoint and `restore` takes it up again.
    """

    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    preparation_seconds: float = 0.0
    real_tokens: int = 0
    padded_tokens: int = 0
    updates: int = 0
    energy_joules: float | None = None
    peak_memory_bytes: int = 0
    largest_gang: int = 1
    window_ms: list[float] = field(default_factory=list)

    def count(self, *, real_tokens: int, padded_tokens: int) -> None:
        """Books one update's tokens."""
        self.real_tokens += real_tokens
        self.padded_tokens += padded_tokens
        self.updates += 1

    def tokens_per_second(self) -> float:
        """Real tokens a second of training, so far."""
        return self.real_tokens / max(self.training_seconds, 1e-9)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in _KEPT}

    def restore(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def summary(self, *, flops_per_token: float | None, peak: tuple[float, str]) -> dict[str, Any]:
        """The figures of a record. mfu: model FLOPs (real tokens) over what the device could have done in the time; None
        where the sizes count something else than tokens, whose FLOPs are not known."""
        seconds = max(self.training_seconds, 1e-9)
        rate, basis = peak
        return {
            "training_seconds": self.training_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "preparation_seconds": self.preparation_seconds,
            "tokens_per_second": self.real_tokens / seconds,
            "padded_tokens_per_second": self.padded_tokens / seconds,
            "padding_fraction": 1 - self.real_tokens / max(self.padded_tokens, 1),
            "step_ms_median": statistics.median(self.window_ms) if self.window_ms else None,
            "peak_memory_bytes": self.peak_memory_bytes,
            "energy_joules": self.energy_joules,
            "gang": self.largest_gang,
            "mfu": None if flops_per_token is None else flops_per_token * self.real_tokens / seconds / rate,
            "mfu_basis": basis,
        }


class GangClock:
    """Reads time and energy of a gang and books each run its share."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._read_energy = energy_meter(device)
        self._joules = self._read_energy() if self._read_energy else 0.0
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, the device's work included."""
        synchronise(self._device)
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds

    def book(self, meters: list[Meters], kind: str, *, updates: int = 0) -> None:
        """Shares the lap out over the runs. kind: "training", "evaluation" or "other" (checkpoints: booked to none)."""
        share = self.lap() / max(len(meters), 1)
        joules = self._lap_joules() / max(len(meters), 1)
        for meter in meters:
            if self._read_energy:
                meter.energy_joules = (meter.energy_joules or 0.0) + joules
            if kind == "training":
                meter.training_seconds += share
                if updates:
                    meter.window_ms.append(1000 * share / updates)
            elif kind == "evaluation":
                meter.evaluation_seconds += share

    def _lap_joules(self) -> float:
        if not self._read_energy:
            return 0.0
        now = self._read_energy()
        joules, self._joules = now - self._joules, now
        return joules
