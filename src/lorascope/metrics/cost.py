"""Costs: what a run takes. One number a run, which hypotheses compare as a share of another method's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorascope.metrics.metric import Metric


@dataclass(frozen=True)
class CostMetric(Metric):
    """saving: "less training time", as a claim says it; None: no hypothesis is about it."""

    saving: str | None = None


_ROWS = (
    CostMetric("training_seconds", "training time", "s", direction="lower", saving="less training time"),
    CostMetric("peak_memory_bytes", "peak memory", "byte", direction="lower", saving="less peak memory"),
    CostMetric("trainable_parameters", "trainable parameters", direction="lower", saving="fewer trainable parameters"),
    CostMetric("energy_joules", "energy", "J", direction="lower", saving="less energy"),
    CostMetric("export_bytes", "export size", "byte", direction="lower", saving="less space for its export"),
    CostMetric("tokens_per_second", "tokens/s", "1/s", direction="higher"),
    CostMetric("mfu", "MFU", "fraction", 100, 1, direction="higher", low=0.0),
)

COSTS: Mapping[str, CostMetric] = {row.name: row for row in _ROWS}
CLAIMED: Mapping[str, CostMetric] = {name: row for name, row in COSTS.items() if row.saving is not None}
"""Those that a hypothesis can be about."""
