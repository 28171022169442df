"""Numbers as people write them: fractions ("6%"), durations ("30 s", "5 min")."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}


def parse_fraction(value: object) -> object:
    """ "6%" -> 0.06; numbers pass through. Anything else is left for pydantic to refuse."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)):
        return float(match.group(1)) / 100
    return value


def parse_duration(value: object) -> object:
    """ "30 s", "5 min", "2 h" -> seconds. A bare number is refused: durations carry a unit."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*(s|sec|min|h)\s*", value)):
        return float(match.group(1)) * _SECONDS[match.group(2)]
    raise ValueError(f"a duration needs a unit, such as '30 s' or '5 min'; found {value!r}")


Fraction = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, le=1)]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
