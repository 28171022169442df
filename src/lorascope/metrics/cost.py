"""Costs: what a run takes. One number a run, which hypotheses compare as a share of another method's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorascope.metrics.metric import Metric


@dataclass(frozen=True)
class Cost(Metric):
    """saving: "less training time", as a claim says it; None: no hypothesis is about it."""

    saving: str | None = None


_ROWS = (
    Cost("training_seconds", "training time", "s", direction="lower", saving="less training time"),
    Cost("peak_memory_bytes", "peak memory", "byte", direction="lower", saving="less peak memory"),
    Cost("trainable_parameters", "trainable parameters", direction="lower", saving="fewer trainable parameters"),
    Cost("energy_joules", "energy", "J", direction="lower", saving="less energy"),
    Cost("export_bytes", "export size", "byte", direction="lower", saving="less space for its export"),
    Cost("tokens_per_second", "tokens/s", "1/s", direction="higher"),
    Cost("mfu", "MFU", "fraction", 100, 1, direction="higher", low=0.0),
)

COSTS: Mapping[str, Cost] = {row.name: row for row in _ROWS}
CLAIMED: Mapping[str, Cost] = {name: row for name, row in COSTS.items() if row.saving is not None}
"""Those that a hypothesis can be about."""
