"""Numbers as people write them: fractions ("6%")."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

def parse_fraction(value: object) -> object:
    """ "6%" -> 0.06; numbers pass through. Anything else is left for pydantic to refuse."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)):
        return float(match.group(1)) / 100
    return value


Fraction = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, le=1)]
