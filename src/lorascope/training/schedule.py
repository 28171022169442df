"""Learning-rate schedules: a factor of the peak rate for each update."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]


def learning_rate_factor(update: int, *, total: int, warmup_fraction: float, schedule: Schedule) -> float:
    """The factor for update `update` (0 is the first): a linear rise over the warm-up, then the schedule's fall.

    The first update already has a positive rate, and linear and cosine reach 0 only after the last one.
    """
    warmup = math.ceil(warmup_fraction * total)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = (update - warmup) / max(1, total - warmup)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
