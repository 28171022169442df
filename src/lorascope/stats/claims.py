"""Claims and the reasons of verdicts in plain words: differences in points, costs as percentages, never raw fractions.

Intervals stand beside a reason as data (`Part.estimate`), so a reason says only where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorascope.metrics import cost, serving
from lorascope.metrics.metric import Direction
from lorascope.metrics.quality import QUALITY
from lorascope.stats.analysis import Interval, Verdict


def saving(on: str, by: float) -> str:
    """ "at least 90% fewer trainable parameters"."""
    return f"at least {100 * by:g}% {cost.CLAIMED[on].saving}"


def lower_claim(method: str, reference: str, on: str, by: float) -> str:
    """ "lora needs at least 90% fewer trainable parameters than full"; of drift: "lora drifts at least 20% less ..."."""
    if on == "drift":
        return f"{method} drifts at least {100 * by:g}% less from the base than {reference}"
    return f"{method} needs {saving(on, by)} than {reference}"


def overhead_claim(arm: str, over: str, on: str, at_most: float) -> str:
    """ "adapters-4 costs at most 30% more p95 latency than merged"; throughput is spoken of as the time it takes."""
    return f"{arm} costs at most {100 * at_most:g}% more {serving.CLAIMED[on].cost} than {over}"


def margin_claim(method: str, reference: str, metrics: Sequence[str], margin: float, direction: Direction) -> str:
    """ "lora loses at most 3 points of accuracy to full"; "the perplexity of lora is at most 0.5 above that of full"."""
    if direction == "higher":
        return f"{method} loses at most {amount(metrics, margin)} to {reference}"
    above = edge(metrics, margin).removeprefix("+")
    return f"the {spoken(metrics)} of {method} is at most {above} above that of {reference}"


def relative_claim(
    method: str, reference: str, metrics: Sequence[str], limit: float, direction: Direction
) -> tuple[str, str]:
    """The claim, and its bound in words: "lora reaches at least 97% of the accuracy of full", "at or above 97% of full"."""
    if direction == "higher":
        claim = f"{method} reaches at least {100 * limit:g}% of the {spoken(metrics)} of {reference}"
        return claim, f"at or above {100 * limit:g}% of {reference}"
    claim = f"the {spoken(metrics)} of {method} is at most {100 * limit:g}% of that of {reference}"
    return claim, f"at or below {100 * limit:g}% of {reference}"


def superior_claim(method: str, reference: str, metrics: Sequence[str], direction: Direction) -> str:
    """ "lora has a higher accuracy than full"; "lora has a lower perplexity than full"."""
    return f"{method} has a {direction} {spoken(metrics)} than {reference}"


def spoken(metrics: Sequence[str]) -> str:
    """ "accuracy", "accuracy / f1", "exact match"."""
    return " / ".join(metrics).replace("_", " ")


def amount(metrics: Sequence[str], value: float) -> str:
    """ "3 points of accuracy", "0.03 of mcc"."""
    return f"{_number(metrics, abs(value))} of {spoken(metrics)}"


def edge(metrics: Sequence[str], value: float) -> str:
    """Where a threshold lies, with a true minus sign: "−3 points", "0"."""
    if value == 0:
        return "0"
    return ("−" if value < 0 else "+") + _number(metrics, abs(value))


def _number(metrics: Sequence[str], value: float) -> str:
    if not all(name in QUALITY and QUALITY[name].in_points for name in metrics):
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
    if inside:
        return f"the whole {level} lies {bounds}, but the support does not survive its correction"
    return f"only part of the {level} lies {bounds}"
