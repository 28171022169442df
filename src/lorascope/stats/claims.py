"""Claims and the reasons of verdicts in plain words: differences in points, costs as percentages, never raw fractions.

Intervals stand beside a reason as data (`Part.estimate`), so a reason says only where they lie.
"""

from __future__ import annotations

from lorascope.stats.analysis import Interval, Verdict

POINTS = ("accuracy", "f1")
"""Metrics whose differences are counted in hundredths, called points."""

_SAVINGS = {
    "training_seconds": "less training time",
    "peak_memory_bytes": "less peak memory",
    "trainable_parameters": "fewer trainable parameters",
    "energy_joules": "less energy",
    "export_bytes": "less space for its export",
}


def saving(cost: str, by: float) -> str:
    """ "at least 90% fewer trainable parameters"."""
    return f"at least {100 * by:g}% {_SAVINGS[cost]}"


def lower_claim(method: str, reference: str, on: str, by: float) -> str:
    """ "lora needs at least 90% fewer trainable parameters than full"; of drift: "lora drifts at least 20% less ..."."""
    if on == "drift":
        return f"{method} drifts at least {100 * by:g}% less from the base than {reference}"
    return f"{method} needs {saving(on, by)} than {reference}"


_OVERHEADS = {
    "latency_p50": "median latency",
    "latency_p95": "p95 latency",
    "latency_p99": "p99 latency",
    "ttft_p50": "median time to first token",
    "ttft_p95": "p95 time to first token",
    "tokens_per_second": "time per token",
    "requests_per_second": "time per request",
}


def overhead_claim(arm: str, over: str, on: str, at_most: float) -> str:
    """ "adapters-4 costs at most 30% more p95 latency than merged"; throughput is spoken of as the time it takes."""
    return f"{arm} costs at most {100 * at_most:g}% more {_OVERHEADS[on]} than {over}"


def amount(metric: str, value: float) -> str:
    """ "3 points of accuracy", "0.03 of mcc". metric: one name, or several joined by " / "."""
    return f"{_number(metric, abs(value))} of {metric}"


def edge(metric: str, value: float) -> str:
    """Where a threshold lies, with a true minus sign: "−3 points", "0"."""
    if value == 0:
        return "0"
    return ("−" if value < 0 else "+") + _number(metric, abs(value))


def _number(metric: str, value: float) -> str:
    if not all(name in POINTS for name in metric.split(" / ")):
        return f"{value:g}"
    points = round(100 * value, 6)
    return f"{points:g} {'point' if points == 1 else 'points'}"


def relation(interval: Interval, verdict: Verdict, *, low: float | None, high: float | None, bounds: str) -> str:
    """Where an interval lies, seen from the region of the claim.

    low, high: the region's bounds (None: open). bounds: the region in words, "above −3 points".
    """
    level = f"{interval.confidence:.0%} interval"
    inside = (low is None or interval.low >= low) and (high is None or interval.high <= high)
    outside = (low is not None and interval.high < low) or (high is not None and interval.low > high)
    if verdict == "supported":
        return f"the whole {level} lies {bounds}"
    if verdict == "refuted":
        return f"no part of the {level} lies {bounds}"
    if outside:
        return f"no part of the {level} lies {bounds}, but the refutation does not survive its correction"
    return f"the {level} lies {bounds}, too close to call" if inside else f"only part of the {level} lies {bounds}"
