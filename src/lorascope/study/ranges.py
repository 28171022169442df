"""Where a setting is searched: a range of numbers, or a list of values."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from lorascope.study.base import Spec
from lorascope.study.loading.document import describe
from lorascope.study.units import parse_fraction


def _as_number(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and not value.strip().endswith("%")):
        raise ValueError(f"expected a number; found {describe(value)}")
    return _finite(parse_fraction(value))


def _as_choice(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a number or a word; found {describe(value)}")
    return _finite(parse_fraction(value) if isinstance(value, str) and value.strip().endswith("%") else value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number; found {describe(value)}")
    return value


Number = Annotated[int | float, BeforeValidator(_as_number)]


class Range(Spec):
    """Every number from low to high, both included. log: equal factors are equally likely. Whole where both ends are and
    the setting counts something (batch_size, epochs, rank, alpha)."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low == self.high:
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty: give the method the value itself")
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}: swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0; found low {self.low:g}")
        return self

    def place(self, value: float) -> float:
        """Where a value lies: 0 at low, 1 at high, on the range's own scale."""
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def at(self, place: float) -> float:
        """The value at a place, which may lie outside 0 to 1."""
        if self.log:
            return self.low * (self.high / self.low) ** place
        return self.low + (self.high - self.low) * place


Choice = Annotated[str | int | float, BeforeValidator(_as_choice)]
Values = tuple[Choice, ...]


def logarithmic(low: int | float, high: int | float) -> Range:
    """Equal factors are equally likely."""
    return Range(low=low, high=high, log=True)
