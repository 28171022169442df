"""An estimate with its confidence interval, and dataclasses that hold some, from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

Record = TypeVar("Record")


@dataclass(frozen=True)
class Interval:
    """estimate with a confidence interval. confidence: 0.95 or 0.90. method: how it was made ("multi-bootstrap")."""

    estimate: float
    low: float
    high: float
    confidence: float
    method: str

    def within(self, low: float | None, high: float | None) -> Interval:
        """The same with its limits inside what the number can be (None: it has no such bound)."""
        lower = self.low if low is None else max(self.low, low)
        upper = self.high if high is None else min(self.high, high)
        return replace(self, low=min(lower, self.estimate), high=max(upper, self.estimate))


def rebuild(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """A dataclass from what `asdict` and JSON made of it, with the dataclasses in its fields, alone or in lists. Raises
    TypeError for a record of another shape."""
    parts = {name: part for name, part in _parts(kind).items() if data.get(name) is not None}
    return kind(**{**data, **{name: _rebuilt(part, data[name]) for name, part in parts.items()}})


@cache
def _parts(kind: type) -> dict[str, type]:
    """The fields that hold dataclasses: name -> which."""
    mentioned = [(name, part) for name, hint in get_type_hints(kind).items() for part in (hint, *get_args(hint))]
    return {name: part for name, part in mentioned if isinstance(part, type) and is_dataclass(part)}


def _rebuilt(part: type, value: Any) -> Any:
    return [rebuild(part, item) for item in value] if isinstance(value, list) else rebuild(part, value)
