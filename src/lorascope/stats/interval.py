"""An estimate with its confidence interval, and dataclasses that hold some, from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Interval:
    """estimate with a confidence interval. confidence: 0.95 or 0.90. method: how it was made ("multi-bootstrap")."""

    estimate: float
    low: float
    high: float
    confidence: float
    method: str


def rebuild(kind: type, data: Mapping[str, Any]) -> Any:
    """A dataclass from JSON, its intervals included."""
    intervals = [item.name for item in fields(kind) if "Interval" in str(item.type)]
    return kind(**{**data, **{name: Interval(**data[name]) for name in intervals if data[name] is not None}})
