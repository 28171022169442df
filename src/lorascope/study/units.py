"""Numbers as people write them: fractions ("6%"), durations ("30 s", "5 min")."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}


def parse_fraction(value: object) -> object:
    """ "6%" -> 0.06; numbers pass through. Other text is refused."""
    if not isinstance(value, str):
        return value
    if match := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", value):
        return float(match.group(1)) / 100
    raise ValueError(f"a fraction is a number from 0 to 1 or a percentage such as '6%'; found {value!r}")


def parse_duration(value: object) -> object:
    """ "30 s", "5 min", "2 h" -> seconds. A bare number is refused: durations carry a unit."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|sec|min|h)\s*", value)):
        return float(match.group(1)) * _SECONDS[match.group(2)]
    raise ValueError(f"a duration needs a unit, such as '30 s' or '5 min'; found {value!r}")


Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(parse_fraction)]
Duration = Annotated[
    float,
    Field(gt=0),
    BeforeValidator(parse_duration),
    PlainSerializer(lambda seconds: f"{seconds} s", return_type=str),
]
