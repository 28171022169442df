"""Rows of a serving table, one a repeat."""

from __future__ import annotations


def rows(arm: str, values: list[float], *, metric: str = "latency_ms_p95", first_repeat: int = 0, **keys) -> list[dict]:
    return [
        {"model": "m", "arm": arm, "repeat": first_repeat + i, "workload": "generation", "loop": "batch", "level": 4.0,
         "choice": "round-robin", "sampling": "greedy", "setting": "default", "metric": metric, "value": value,
         "unit": "ms", **keys}
        for i, value in enumerate(values)
    ]  # fmt: skip
