"""Numbers as people write them: fractions ("6%")."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field


def parse_fraction(value: object) -> object:
    """ "6%" -> 0.06; numbers pass through. Other text is refused."""
    if not isinstance(value, str):
        return value
    if match := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", value):
        return float(match.group(1)) / 100
    raise ValueError(f"a fraction is a number from 0 to 1 or a percentage such as '6%'; found {value!r}")


Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(parse_fraction)]
